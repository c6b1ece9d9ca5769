"""How far each precision is from the truth: single operations and one step against float64, 50 steps against fp32.

    python benchmarks/precision.py [--steps 50]

Errors: ViT-S-32 with random weights, 16 pairs, on the CPU; a root mean square over all numbers, as a share of that of float64.
Steps: the emoji that ship with Diptych, trained by the demo's recipe, the same pairs in every precision. Writes
benchmarks/results/precision.json; with ``--page`` only writes the tables of docs/precision.md out of it, and measures nothing.
It measures no speed, and nothing on accelerators.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))
from _peers import machine

from diptych import log
from diptych.commands.demo import EMOJI
from diptych.devices import PRECISIONS, PURE, get_device
from diptych.devices._matmul import PRECISION, choose_matmul, matmul_precision
from diptych.distributed.parallel import parallelize
from diptych.distributed.process_group import World
from diptych.errors import ConfigError
from diptych.models import create_model
from diptych.models._layers import scaled_dot_product
from diptych.objectives import OBJECTIVES, Objective, create_objective
from diptych.train.config import read
from diptych.train.dry_run import trial_batch
from diptych.train.loop import train
from diptych.train.step import total

RESULT = Path(__file__).resolve().parent / "results" / "precision.json"
PAGE = Path(__file__).resolve().parent.parent / "docs" / "precision.md"
BEGIN, END = "<!-- result: python benchmarks/precision.py -->", "<!-- end of result -->"
MODEL, PAIRS, SCALE = "ViT-S-32", 16, 1024.0
BATCH = 128
WAYS = {
    "fp32, --matmul exact": ("fp32", "exact"),
    "fp32, --matmul fast": ("fp32", "fast"),
    "bf16": ("bf16", "exact"),
    "fp16": ("fp16", "exact"),
    "pure_bf16": ("pure_bf16", "exact"),
}
RUNS = {
    "fp32": "--precision fp32 --matmul exact",
    "fp32, --matmul fast": "--precision fp32 --matmul fast",
    "bf16": "--precision bf16 --matmul exact",
    "pure_bf16": "--precision pure_bf16 --matmul exact",
    "pure_bf16, --master-weights none": "--precision pure_bf16 --matmul exact --master-weights none",
}


def error(actual: Tensor, exact: Tensor) -> float:
    """Distance as a share of the norm."""
    return float((actual.double() - exact).norm() / exact.norm())


def operations(dtype: torch.dtype) -> dict[str, Tensor]:
    """A linear layer, attention and a norm of a ViT-B-32's sizes, in the type that the towers compute in."""
    source = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64).to(dtype)

    x, weight, bias = normal(PAIRS * 50, 768), normal(768, 768), normal(768)
    query, key, value = (normal(PAIRS, 12, 50, 64) for _ in range(3))
    attended = scaled_dot_product(query, key, value)
    return {"product": F.linear(x, weight), "attention": attended, "layer norm": F.layer_norm(x, (768,), bias, bias)}


def one_step(objective: Objective, precision: str) -> dict[str, Tensor]:
    """Unit features, loss and all gradients of one batch; gradients as the optimizer gets them."""
    device = get_device("cpu")
    layout = parallelize(objective, device, World(), None, precision)
    layout.train()
    batch = trial_batch(objective.model.config, objective.wants, PAIRS)
    source = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, batch.images.shape, generator=source, dtype=torch.uint8)
    tokens = torch.randint(1, 49_000, batch.tokens.shape, generator=source)
    tokens[:, :, 20:] = batch.tokens[:, :, -1:]
    batch = batch._replace(images=images, tokens=tokens, lengths=torch.full_like(batch.lengths, 21))
    scale = SCALE if precision == "fp16" else 1.0
    with device.autocast(precision):
        terms, features = layout.terms(batch)
    (total(terms) * scale).backward()
    layout.complete_gradients()
    gradients = [item.grad.flatten().double() / scale for _, item in layout.trainable()]
    return {
        "image features": features.image, "text features": features.text, "loss": total(terms).detach(),
        "gradients": torch.cat(gradients),
    }  # fmt: skip


def errors() -> dict[str, dict[str, float]]:
    """By way and quantity, against float64."""
    torch.manual_seed(0)
    objective = create_objective(OBJECTIVES.get("clip").Config(), create_model(MODEL))
    exact = {**operations(torch.float64), **one_step(copy.deepcopy(objective).double(), "fp32")}
    results: dict[str, dict[str, float]] = {}
    for way, (precision, matmul) in WAYS.items():
        try:
            library = PRECISION[choose_matmul(matmul)]
        except ConfigError as refused:
            log.warn(f"{way} is left out: {refused}")
            continue
        dtype = PRECISIONS[PURE.get(precision, precision)]
        with matmul_precision(library):
            computed = {**operations(dtype), **one_step(copy.deepcopy(objective), precision)}
        results[way] = {name: error(computed[name], value) for name, value in exact.items()}
    return results


def trained(folder: Path, flags: str, steps: int) -> Run:
    """A run of the demo's recipe: the loss of each step, and the weights at the end."""
    recipe = f"--recipe emoji --device cpu --batch-size {BATCH} --max-steps {steps} --warmup 5"
    quiet = "--log-every-n-steps 1 --val-every-steps 0 --save-every-steps 0"
    data = str(EMOJI / "train-*.tar.gz")
    argv = [*f"{recipe} {quiet} {flags}".split(), "--train-data", data, "--output", str(folder)]
    train(read(argv, program="benchmark"))
    rows = [row["loss"] for row in log.read_rows(folder / "metrics.jsonl") if row["phase"] == "train"]
    return Run(rows, load_file(folder / "model.safetensors"))


class Run(NamedTuple):
    """Losses of all steps, and weights in fp32 or as they are stored."""

    losses: list[float]
    weights: Mapping[str, Tensor]

    def distance(self, other: Run) -> float:
        """Of the weights, over all of them."""
        return (
            sum(
                float((item.double() - other.weights[name].double()).square().sum())
                for name, item in self.weights.items()
            )
            ** 0.5
        )


def curves(steps: int) -> dict[str, Any]:
    """The first loss, and by run, against the fp32 one: losses, and weights as a share of the way that they went in it."""
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        start = trained(Path(folder) / "start", f"{RUNS['fp32']} --lr 1e-30", 1)
        exact: Run | None = None
        for number, (name, flags) in enumerate(RUNS.items()):
            try:
                run = trained(Path(folder) / str(number), flags, steps)
            except ConfigError as refused:
                log.warn(f"{name} is left out: {refused}")
                continue
            exact = exact or run
            gaps = [abs(own - other) for own, other in zip(run.losses, exact.losses, strict=True)]
            results[name] = {
                "last loss": run.losses[-1],
                "mean gap": sum(gaps) / steps,
                "largest gap": max(gaps),
                "weights": run.distance(exact) / exact.distance(start),
            }
    return {"first_loss": start.losses[0], "runs": results}


def tables(result: Mapping[str, Any]) -> str:
    """The page's tables, in Markdown."""
    quantities = list(next(iter(result["errors"].values())))
    lines = [
        f"One step of {MODEL} with random weights, {PAIRS} pairs, on a CPU: distance from float64 as a share of its norm.",
        "",
        f"| | {' | '.join(quantities)} |",
        "|---|" + "---|" * len(quantities),
    ]
    lines += [
        f"| {name} | " + " | ".join(f"{values[quantity]:.1e}" for quantity in quantities) + " |"
        for name, values in result["errors"].items()
    ]
    lines += [
        "",
        f"{result['steps']} steps of the demo (emoji, batches of {BATCH}), against the fp32 run; the loss begins at "
        f"{result['first_loss']:.2f}:",
        "",
        "| | last loss | gap of the loss, mean | largest | distance of the weights, of the way they went |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {values['last loss']:.3f} | {values['mean gap']:.4f} | {values['largest gap']:.4f} | "
        f"{values['weights']:.3f} |"
        for name, values in result["runs"].items()
    ]
    return "\n".join(lines)


def write_page(result: Mapping[str, Any]) -> None:
    """Put the tables between their marks."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables(result)}\n\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Measure and write, or write the page out of what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--page", action="store_true")
    options = parser.parse_args()
    if not options.page:
        result = {"machine": machine("torch"), "steps": options.steps, "errors": errors(), **curves(options.steps)}
        RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    write_page(json.loads(RESULT.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
