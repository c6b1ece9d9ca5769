"""What is compared: towers, arms with their flags, and seeds, in the order in which they are run. Starts nothing itself.

Every arm of a tower takes the same number of steps with the same flags, but for what its name says. Batches of 512 see as
many pairs as batches of 64, in an eighth of the steps. "clip-time" takes as many steps more as a step of ``slip`` costs more
than one of ``clip``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
STEP_TIMES = RESULTS / "objective_steps.json"

TOWERS = {"ViT-Mini-8-64": 120, "emoji-64": 240}
"""Steps of 64 pairs: about 90 seconds for ``clip`` on two cores without AVX-512 (see the page for what was measured)."""

SEEDS = (0, 1, 2)
TEACHER_STEPS = 6  # times a student's

COMMON = (
    "--device cpu --workers 1 --lr 1e-3 --wd 0.2 --beta2 0.98 --eps 1e-6 --grad-clip-norm 1 --warmup 0.1 --aug-scale 0.5 1 "
    "--aug-flip 0.5 --save-every-steps 0 --save-frequency 0 --val-frequency 0 --zeroshot-frequency 0 --log-every-n-steps 10"
)

ARMS = {
    "clip": "",
    "clip-strong": "--train-view strong",
    "clip-time": "",
    "siglip": "--objective siglip",
    "distill": "--objective distill",
    "superclip": "--objective superclip",
    "fastclip": "--objective fastclip --scale-lr 2e-4",
    "slip": "--objective slip",
    "filip": "--objective filip --filip-global-weight 0.5 --strong-recipe moco-v2",
    "declip": "--objective declip --strong-recipe moco-v2",
    "defilip": "--objective defilip --strong-recipe moco-v2",
    "clip-512": "--batch-size 512",
    "siglip-512": "--objective siglip --batch-size 512",
    "fastclip-512": "--objective fastclip --scale-lr 2e-4 --batch-size 512",
}
"""Name -> flags beside the common ones. "distill" gets its teacher's folder when it is run.

The scores compare pooled features, which the published FILIP does not train: its arm trains them too, with half of the weight.
"""


@dataclass(frozen=True)
class Cell:
    """One training run of the table."""

    tower: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.tower}-{self.arm}-{self.seed}"

    @property
    def steps(self) -> int:
        """Optimizer steps. Raises FileNotFoundError for "clip-time" while no step was timed."""
        steps = TOWERS[self.tower]
        if self.arm == "teacher":
            return TEACHER_STEPS * steps
        if self.arm == "clip-time":
            return round(steps * step_ratio(self.tower))
        return steps * 64 // self.batch_size

    @property
    def batch_size(self) -> int:
        """Pairs of a step."""
        return 512 if self.arm.endswith("-512") else 64

    def flags(self, folder: Path) -> list[str]:
        """What ``diptych train`` is called with, beside data and output; ``folder`` holds the teachers."""
        own = ARMS.get(self.arm, "").split()
        if self.arm == "distill":
            own += ["--distill-model", str(folder / Cell(self.tower, "teacher", 100).name)]
        sizes = ["--model", self.tower, "--max-steps", str(self.steps), "--seed", str(self.seed)]
        return [*COMMON.split(), "--batch-size", "64", *sizes, *own]


def step_ratio(tower: str) -> float:
    """How many times a step of ``clip`` a step of ``slip`` takes, as ``steps.py`` measured it."""
    rows = json.loads(STEP_TIMES.read_text())["rows"]
    return float(next(row["ratio"] for row in rows if row["tower"] == tower and row["objective"] == "slip"))


def cells() -> Iterator[Cell]:
    """All cells: every arm of both towers with the first seed, then the other seeds; a teacher before its student."""
    for seed in SEEDS:
        for tower in TOWERS:
            for arm in ARMS:
                if arm == "distill" and seed == SEEDS[0]:
                    yield Cell(tower, "teacher", 100)
                yield Cell(tower, arm, seed)
