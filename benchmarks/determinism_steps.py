"""Which tensors of a training step differ from one repetition to the next on a CPU: where nondeterminism hides.

    python benchmarks/determinism_steps.py [--repeats 6] [--load 2] [--cases ViT-B-32,fp32,fast,2,1 ...]

Each case (model, precision, matmul, threads, micro-batches) takes the same step from the same state again and again, forward,
backward, clipping and AdamW, while other processes keep the cores busy so that threads are scheduled in every order. Gradients
and stepped weights are compared bit for bit with those of the first repetition. This searches one process for the operator;
``determinism.py`` compares whole runs. Nothing here is measured by a clock.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from diptych.conformance.training import training_step
from diptych.devices import get_device
from diptych.models import create_model
from diptych.types import Batch

RESULT = Path(__file__).resolve().parent / "results" / "determinism_steps.json"
BUSY = "import torch\ntorch.set_num_threads(2)\nx = torch.randn(700, 700)\nwhile True: x @ x"
CASES = [
    f"{model},{precision},{matmul},{threads},{micro_batches}"
    for model in ("ViT-B-32", "RN50", "ViT-B-16-SigLIP")
    for precision, matmul, threads, micro_batches in (
        ("fp32", "exact", 2, 1), ("fp32", "exact", 4, 2), ("fp32", "fast", 2, 2), ("fp32", "fast", 4, 1), ("bf16", "fast", 4, 2),
    )
]  # fmt: skip


class Case(NamedTuple):
    """One configuration; ``name`` is its spelling on the command line."""

    model: str
    precision: str
    matmul: str
    threads: int
    micro_batches: int

    @classmethod
    def of(cls, name: str) -> Case:
        """From "MODEL,PRECISION,MATMUL,THREADS,MICRO-BATCHES"."""
        model, precision, matmul, threads, micro_batches = name.split(",")
        return cls(model, precision, matmul, int(threads), int(micro_batches))


def batch_of(size: int, image_size: int, context: int, fixed: bool) -> Batch:
    """Random images and captions of 6 to 24 tokens (of the whole context where the tower takes no lengths)."""
    source = torch.Generator().manual_seed(12)
    images = torch.randint(0, 256, (1, size, 3, image_size, image_size), generator=source).to(torch.uint8)
    longest = context if fixed else 24
    lengths = torch.full((1, size), context) if fixed else torch.randint(6, longest + 1, (1, size), generator=source)
    tokens = torch.randint(1, 30_000, (1, size, longest), generator=source)
    if not fixed:
        tokens = tokens.masked_fill(torch.arange(longest) >= lengths[..., None], 0)
        tokens.scatter_(2, lengths[..., None] - 1, 49_407)
    numbers = torch.arange(size)
    return Batch(images, tokens, lengths, tuple(map(str, range(size))), numbers, numbers, numbers)


def split(batch: Batch, count: int) -> list[Batch]:
    """Consecutive micro-batches."""
    from diptych.conformance.training import part_of

    size = len(batch.keys) // count
    return [part_of(batch, slice(start, start + size)) for start in range(0, size * count, size)]


def repeated(case: Case, size: int, repeats: int) -> dict[str, list[str]]:
    """Names of the gradients and weights that differed from the first repetition at least once."""
    torch.set_num_threads(case.threads)
    device = get_device("cpu")
    device.prepare_process(case.matmul)
    torch.manual_seed(0)
    model = create_model(case.model)
    config = model.config
    batches = split(
        batch_of(size, config.vision.image_size, config.text.context_length, config.text.family != "transformer"),
        case.micro_batches,
    )
    start = {name: value.clone() for name, value in model.state_dict().items()}
    first: dict[str, dict[str, Tensor]] = {}
    differing: dict[str, set[str]] = {"gradients": set(), "weights": set()}
    for repetition in range(repeats):
        model.load_state_dict(start)
        step = training_step(model, device, case.precision, learning_rate=1e-3, clip_norm=1.0)
        step(batches)
        seen = {
            "gradients": {name: item.grad for name, item in model.named_parameters() if item.grad is not None},
            "weights": dict(model.state_dict()),
        }
        if repetition == 0:
            first = {kind: {name: item.clone() for name, item in items.items()} for kind, items in seen.items()}
            continue
        for kind, items in seen.items():
            differing[kind] |= {name for name, item in items.items() if not torch.equal(item, first[kind][name])}
    return {kind: sorted(names) for kind, names in differing.items()}


def main(argv: Sequence[str]) -> int:
    """Print a row per case and write them; exit code 1 when anything differed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", default=CASES)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--load", type=int, default=2, help="busy processes beside")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args(argv)
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(options.load)]
    rows = []
    try:
        for name in options.cases:
            differing = repeated(Case.of(name), options.batch_size, options.repeats)
            rows.append({"case": name, "repeats": options.repeats, **differing})
            print(
                f"{name:<36} {', '.join(f'{len(items)} {kind}' for kind, items in differing.items())} differ",
                flush=True,
            )
    finally:
        for process in busy:
            process.kill()
    options.out.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return int(any(row["gradients"] or row["weights"] for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
