"""The table and the plot of docs/objectives.md, from the scored cells; trains and times nothing.

    python benchmarks/objectives/table.py [--check]        (the project's own environment; no peer)

Scores are means over the seeds that are there, whose number is the column n. Differences to ``clip`` are of the same seeds
and the same queries: each image's difference is averaged over seeds, and images are resampled (bootstrap, 95 %). "No
difference seen" where the interval contains 0, or where seeds disagree about the sign. ``--check`` writes nothing and exits 1
where the page is not what the cells say.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from diptych.evaluate import Outcome, paired

sys.path.insert(0, str(Path(__file__).resolve().parent))

from arms import ARMS, RESULTS, ROOT, STEP_TIMES, TOWERS

RESULT = RESULTS / "objectives.json"
PAGE, PLOT = ROOT / "docs" / "objectives.md", ROOT / "docs" / "objectives.png"
BEGIN, END = "<!-- result: python benchmarks/objectives/table.py -->", "<!-- end of result -->"
SCORES = [f"{side}_R@{k}" for side in ("image_to_text", "text_to_image") for k in (1, 5, 10)]

Rows = dict[tuple[str, str], dict[int, dict[str, Any]]]


class Compared(NamedTuple):
    """A difference to ``clip`` in percent points, its interval, and whether seeds and interval agree that there is one."""

    value: float
    low: float
    high: float
    seen: bool

    def __str__(self) -> str:
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def rows_of(cells: Iterable[dict[str, Any]]) -> Rows:
    """Cells by tower and arm, then by seed."""
    rows: Rows = defaultdict(dict)
    for cell in cells:
        rows[cell["tower"], cell["arm"]][cell["seed"]] = cell
    return rows


def answers(cell: dict[str, Any], score: str) -> torch.Tensor:
    """What a score is the mean of, float64: of each image its mean reciprocal rank, or of each picture 0 or 1."""
    if score == "mrr":
        return torch.tensor(cell["reciprocal"], dtype=torch.float64)
    return torch.tensor([float(bit) for bit in f"{int(cell['right'], 16):0{cell['probed']}b}"], dtype=torch.float64)


def compared(own: dict[int, dict[str, Any]], base: dict[int, dict[str, Any]], score: str) -> Compared | None:
    """The arm's difference to ``clip`` over the seeds that both have; None where there are none."""
    seeds = sorted(own.keys() & base.keys())
    if not seeds:
        return None
    both = [torch.stack([answers(arm[seed], score) for seed in seeds]) for arm in (base, own)]
    result = paired(*(Outcome(item.mean(dim=0)) for item in both))
    signs = {bool(item > 0) for item in (both[1] - both[0]).mean(dim=1)}
    return Compared(
        100 * result.value, 100 * result.low, 100 * result.high, len(signs) == 1 and (result.low > 0 or result.high < 0)
    )


def mean(cells: dict[int, dict[str, Any]], score: str) -> float:
    """The mean over seeds, in percent."""
    return 100 * sum(cell[score] for cell in cells.values()) / len(cells)


def verdict(differences: list[Compared | None]) -> str:
    """What the differences in MRR and probe say, in words."""
    said = [
        f"{name} {'up' if item.value > 0 else 'down'}"
        for name, item in zip(("MRR", "probe"), differences, strict=True)
        if item is not None and item.seen
    ]
    return ", ".join(said) or "no difference seen"


def table(rows: Rows, tower: str) -> list[str]:
    """The lines of one tower's table."""
    lines = [
        f"### `{tower}`, {TOWERS[tower]} steps of 64 pairs",
        "",
        "| arm | n | image to text R@1, 5, 10 | text to image R@1, 5, 10 | MRR | probe | MRR - clip | probe - clip | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    base = rows[tower, "clip"]
    for arm in ARMS:
        own = rows.get((tower, arm))
        if not own:
            continue
        recalls = [f"{mean(own, name):.1f}" for name in SCORES]
        scores = [
            ", ".join(recalls[:3]),
            ", ".join(recalls[3:]),
            f"{mean(own, 'mrr'):.2f}",
            f"{mean(own, 'probe'):.1f}",
        ]
        differences = [None if arm == "clip" else compared(own, base, score) for score in ("mrr", "probe")]
        shown = ["" if item is None else str(item) for item in differences]
        said = "" if arm == "clip" else verdict(differences)
        lines.append(f"| `{arm}` | {len(own)} | {' | '.join([*scores, *shown, said])} |")
    return [*lines, ""]


def times() -> list[str]:
    """The table of step times, where they were measured."""
    if not STEP_TIMES.is_file():
        return []
    rows = json.loads(STEP_TIMES.read_text())["rows"]
    towers = list(dict.fromkeys(row["tower"] for row in rows))
    ratios = {(row["objective"], row["tower"]): f"{row['ratio']:.2f}" for row in rows}
    bars = {row["objective"]: row["bar"] for row in rows}
    lines = [
        "### A step, in steps of `clip`",
        "",
        f"| objective | {' | '.join(f'`{tower}`' for tower in towers)} | bar |",
        "|---|" + "---|" * (len(towers) + 1),
    ]
    for objective, bar in bars.items():
        own = " | ".join(ratios.get((objective, tower), "") for tower in towers)
        lines.append(f"| `{objective}` | {own} | {bar or ''} |")
    return [*lines, ""]


def section() -> str:
    """What stands between the page's markers."""
    rows = rows_of(json.loads(RESULT.read_text()))
    lines = [line for tower in TOWERS if (tower, "clip") in rows for line in table(rows, tower)]
    return "\n".join([BEGIN, "", *lines, *times(), END])


def plot() -> None:
    """Differences to ``clip`` with their intervals, a panel for each tower and score."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = rows_of(json.loads(RESULT.read_text()))
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 7), sharey=True, layout="constrained")
    arms = [arm for arm in ARMS if arm != "clip"]
    for column, tower in enumerate(TOWERS):
        for line, (score, title) in enumerate((("mrr", "retrieval, MRR"), ("probe", "linear probe, CIFAR-10"))):
            panel = axes[line][column]
            panel.axvline(0, color="#888", linewidth=1)
            for height, arm in enumerate(arms):
                item = compared(rows.get((tower, arm), {}), rows.get((tower, "clip"), {}), score)
                if item is not None:
                    color = "#999" if not item.seen else "#1b7837" if item.value > 0 else "#b2182b"
                    panel.plot([item.low, item.high], [height, height], color=color, linewidth=2)
                    panel.plot(item.value, height, "o", color=color)
            panel.set_yticks(range(len(arms)), arms)
            panel.set_title(f"{tower}: {title}", fontsize=10)
            panel.set_xlabel("percent points more than clip")
    axes[0][0].invert_yaxis()
    figure.savefig(PLOT, dpi=110)


def main() -> None:
    """Write page and plot, or check the page."""
    before = PAGE.read_text()
    start, rest = before.split(BEGIN)
    after = start + section() + rest.split(END)[1]
    if "--check" in sys.argv:
        sys.exit(0 if before == after else f"{PAGE.name} is not what the cells say; run {Path(__file__).name}")
    PAGE.write_text(after)
    plot()


if __name__ == "__main__":
    main()
