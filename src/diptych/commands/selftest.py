"""``diptych selftest``: hold an accelerator to everything that this toolkit asks of it, and print a table.

Exit code 0 when every required check passed, 1 when one failed, 2 when the accelerator is not available at all. The checks
are in ``diptych.conformance``. It measures no speed: that is ``diptych profile``.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from diptych.commands import command

if TYPE_CHECKING:
    from diptych.conformance.checks import Row

COLORS = {"passed": "green", "failed": "bold red", "skipped": "yellow"}


@dataclass(frozen=True)
class Options:
    """Which accelerator is tested, and how the result is printed."""

    device: str = "auto"
    """Accelerator: auto, or the name of one; NAME:1 picks the second; module:Class takes a third party's."""
    matmul: Literal["auto", "exact", "fast"] = "auto"
    """fp32 products: exact (MKL), fast (oneDNN, equal to rounding; a device with TF32: TF32), or what suits this CPU."""
    list: bool = False
    """Only list the known accelerators, and whether each can be used on this machine."""
    json: bool = False
    """One JSON object instead of a table."""


@command("selftest", example="diptych selftest --device auto")
def main(options: Options) -> int:
    """Check an accelerator against the CPU: every operator, mixed precision, the optimizer, two training steps."""
    if options.list:
        return _list(options.json)
    import torch

    from diptych.conformance.suite import run
    from diptych.devices import get_device

    device = get_device(options.device)
    matmul = device.prepare_process(options.matmul)
    if not options.json:
        claims = [name for name, claimed in dataclasses.asdict(device.abilities).items() if claimed]
        print(f"{device.torch_device}, {device.backend}; claims {', '.join(claims) or 'nothing beyond fp32'}")
        print(f"fp32 products: matmul {matmul}, torch precision {torch.get_float32_matmul_precision()}\n")
    rows = _collected(run(device), quiet=options.json)
    failed = [row for row in rows if row.outcome == "failed" and row.required]
    if options.json:
        head = {"device": str(device.torch_device), "torch": torch.__version__, "passed": not failed, "matmul": matmul}
        body = {"abilities": dataclasses.asdict(device.abilities), "rows": [dataclasses.asdict(row) for row in rows]}
        print(json.dumps({**head, **body}))
    else:
        _conclude(rows, str(device.torch_device))
    return 1 if failed else 0


def _list(as_json: bool) -> int:
    from diptych.devices import DEVICES, list_devices

    reasons = {name: DEVICES.get(name).why_absent() for name in list_devices()}
    if as_json:
        print(json.dumps({name: {"available": why is None, "reason": why} for name, why in reasons.items()}))
    else:
        for name, why in reasons.items():
            print(f"{name:<8} {'available' if why is None else why}")
    return 0


def _collected(rows: Iterable[Row], quiet: bool) -> list[Row]:
    """All rows; each is printed as it comes, because some take seconds, and a crash must leave a trace."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    collected = []
    for row in rows:
        collected.append(row)
        if not quiet:
            mark = row.outcome if row.required or row.outcome != "failed" else "failed (optional)"
            line = Text(f"{row.group:<10} {row.name:<37} ")
            line.append(f"{mark:<8}", style=COLORS[row.outcome]).append(f" {row.seconds:6.2f} s  {row.detail}")
            # A narrow terminal truncates what passed; what failed is shown in full, and so is everything in a file.
            short = sys.stdout.isatty() and row.outcome == "passed"
            console.print(line, no_wrap=short, overflow="ellipsis" if short else None, soft_wrap=not short)
    return collected


def _conclude(rows: list[Row], device: str) -> None:
    counts = {outcome: sum(row.outcome == outcome for row in rows) for outcome in COLORS}
    summary = ", ".join(f"{number} {outcome}" for outcome, number in counts.items())
    print(f"\n{device}: {summary}, in {sum(row.seconds for row in rows):.1f} s")
