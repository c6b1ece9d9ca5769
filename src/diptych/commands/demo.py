"""``diptych demo``: the whole life of a small model in a few minutes, on data that ships with Diptych.

Training's validation and the scores at the end share one protocol, the recipe's: the recall curve ends at the headline.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.commands import command
from diptych.commands._tables import print_results

if TYPE_CHECKING:
    from diptych.train.config import TrainConfig

EMOJI = Path(__file__).parent.parent / "assets" / "emoji"
SHORT = "--max-steps 30 --warmup 3 --val-every-steps 0 --val-frequency 0"
# Name of the test split -> its title in the report.
SPLITS = {"unseen_style": "unseen drawing style", "held_out_names": "unseen names"}


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
    config = run_config(folder, options.device, SHORT if options.short else "")
    outcome = train(config)
    if not outcome.main:
        return 0
    if not outcome.finished:
        log.info(f"stopped and saved; continue with: diptych train --output {folder} --resume latest")
        return 130
    entries = evaluate_splits(folder, config)
    report = write_report(folder)
    print_results(entries)
    print(f"report: {report}")
    return 0


def _free_folder() -> Path:
    number = 1
    while (folder := Path("runs") / ("demo" if number == 1 else f"demo-{number}")).exists():
        number += 1
    return folder


def run_config(folder: Path, device: str, flags: str = "") -> TrainConfig:
    """The training run of the demo, in ``folder``; ``flags`` come after the recipe."""
    from diptych.train.config import read

    argv = ["--train-data", str(EMOJI / "train-*.tar.gz"), "--val-data", str(EMOJI / "unseen_style-*.tar.gz")]
    argv += ["--recipe", "emoji", "--output", str(folder), "--device", device, *flags.split()]
    return read(argv, program="diptych demo")


def evaluate_splits(folder: Path, config: TrainConfig) -> list[dict[str, Any]]:
    """Measure the run's weights on the test splits as its validation did; leaves ``results.json`` and ``gallery.json``."""
    from diptych import log, weights
    from diptych.data import open_source
    from diptych.devices import get_device
    from diptych.evaluate import Encoder, evaluators, options_from
    from diptych.files import write_text

    device = get_device(config.parallel.device)
    model = weights.load(folder).to(device.torch_device)
    encoder = Encoder(
        model, weights.tokenizer_of(model.config), weights.eval_transform(model.config), device,
        workers=min(1, config.data.workers), precision=device.default_precision(),
    )  # fmt: skip
    entries, drawings = [], []
    for split, title in SPLITS.items():
        source = open_source(str(EMOJI / f"{split}-*.tar.gz"))
        for entry in (item for item in evaluators().values() if item.data == "pairs"):
            with log.progress(f"evaluating: {title}", len(source)) as report:
                result = entry().run(
                    encoder, source, options_from(entry, config.evaluate), lambda done, total: report(done, total=total)
                )
            entries.append(result.entry(title))
            drawings += entry().images(result, source, title)
    write_text(folder / "results.json", json.dumps(entries, indent=1) + "\n", "results")
    write_text(folder / "gallery.json", json.dumps(drawings), "gallery")
    return entries
