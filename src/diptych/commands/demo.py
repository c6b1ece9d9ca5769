"""``diptych demo``: the whole life of a small model in a few minutes, on data that ships with Diptych."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.commands import command
from diptych.commands._tables import print_results

EMOJI = Path(__file__).parent.parent / "assets" / "emoji"
# Name of the test split -> what its title says in the report.
SPLITS = {"unseen_style": "unseen drawing style", "held_out_names": "names never seen"}


@dataclass(frozen=True)
class Options:
    """Where the demo goes and how long it takes."""

    output: str = ""
    """Folder of the run; empty takes runs/demo, or runs/demo-2 and so on when that is taken."""
    short: bool = False
    """A few steps only: shows that everything works, learns little."""
    device: str = "auto"
    """Accelerator: auto, or the name of one."""


@command("demo", example="diptych demo")
def main(options: Options) -> int:
    """Train a small CLIP on emoji and their names, test it on a drawing style it never saw, write a report."""
    from diptych import log
    from diptych.report import write_report
    from diptych.train.loop import train

    folder = Path(options.output) if options.output else _free_folder()
    outcome = train(_config(folder, options))
    if not outcome.main:
        return 0
    if not outcome.finished:
        log.info(f"stopped and saved; continue with: diptych train --output {folder} --resume latest")
        return 130
    entries = _evaluate(folder, options.device)
    report = write_report(folder)
    print_results(entries)
    print(f"report: {report}")
    return 0


def _free_folder() -> Path:
    number = 1
    while (folder := Path("runs") / ("demo" if number == 1 else f"demo-{number}")).exists():
        number += 1
    return folder


def _config(folder: Path, options: Options) -> Any:
    from diptych.train.config import read

    words = [
        "--recipe",
        "emoji",
        "--train-data",
        str(EMOJI / "train-*.tar.gz"),
        "--val-data",
        str(EMOJI / "unseen_style-*.tar.gz"),
    ]
    words += ["--output", str(folder), "--device", options.device]
    if options.short:
        words += ["--max-steps", "30", "--val-every-steps", "0", "--val-frequency", "0"]
    return read(words, program="diptych demo")


def _evaluate(folder: Path, device_name: str) -> list[dict[str, Any]]:
    from diptych import log, weights
    from diptych.data import SourceOptions, open_source
    from diptych.devices import get_device
    from diptych.evaluate import EVALUATORS, gallery
    from diptych.files import write_text

    device = get_device(device_name)
    model = weights.load(folder).to(device.torch_device)
    tokenizer = weights.tokenizer_of(model.config)
    look = weights.transforms(model.config)[1].transform
    entries, pictures = [], []
    for split, title in SPLITS.items():
        source = open_source(str(EMOJI / f"{split}-*.tar.gz"), options=SourceOptions())
        with log.progress(f"evaluating: {title}", len(source)) as tell:
            result: Any = EVALUATORS.get("retrieval")(
                model, source, tokenizer, look, device, captions_per_image=1,
                progress=lambda done, total, tell=tell: tell(done, total=total),
            )  # fmt: skip
        entries.append(result.entry(title))
        pictures += gallery(result, source, title=title)
    write_text(folder / "results.json", json.dumps(entries, indent=1) + "\n", "results")
    write_text(folder / "gallery.json", json.dumps(pictures), "gallery")
    return entries
