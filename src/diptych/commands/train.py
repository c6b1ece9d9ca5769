"""``diptych train``: pretrain or fine-tune from a recipe and flags; flags keep open_clip's names.

Every flag of open_clip's own training program is taken, mapped or refused first (``_open_clip_flags``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from diptych.commands import command
from diptych.commands._declip_yaml import flags_of
from diptych.commands._open_clip_flags import translated
from diptych.errors import ConfigError
from diptych.train.config import TrainConfig, known_flags, read

if TYPE_CHECKING:
    from diptych.train.loop import Outcome

EXAMPLE = "diptych train --model ViT-B-32 --train-data photos.csv --val-data val.csv --batch-size 128 --epochs 8 --output runs/a"


def parse(argv: Sequence[str]) -> TrainConfig:
    """Flags, over a recipe (``--recipe NAME|FILE.toml``), DeCLIP's YAML (``--config FILE.yaml``) or a resumed run's config."""
    description = (
        f"Example: {EXAMPLE}\n\n{(main.__doc__ or '').strip()}\n\n"
        "--recipe NAME|FILE.toml sets options that flags then change, --config FILE.yaml those of DeCLIP's YAML; "
        "--objective NAME shows its own options. "
        "Flags of open_clip's training program are taken too: docs/open_clip.md says what each is here."
    )
    path, given = _configuration(argv)
    before = flags_of(path) if path else []
    own = known_flags([*before, *given])
    return read([*before, *translated(given, own)], program="diptych train", description=description)


def _configuration(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The value of --config, empty without one, and the other arguments. Raises ConfigError where it has none, or is repeated."""
    paths: list[str] = []
    rest, arguments = [], iter(argv)
    for argument in arguments:
        if argument == "--config":
            paths.append(next(arguments, ""))
        elif argument.startswith("--config="):
            paths.append(argument.partition("=")[2])
        else:
            rest.append(argument)
    if len(paths) > 1 or "" in paths:
        raise ConfigError("--config: expected one file of DeCLIP's, such as --config declip.yaml.")
    return (paths or [""])[0], rest


@command("train", example=EXAMPLE, parse=parse)
def main(options: TrainConfig) -> int:
    """Train a model on image-text pairs; leaves a folder with weights, checkpoints, metrics and a report."""
    from diptych.train.loop import train

    outcome = train(options)
    if outcome.main:
        _print_outcome(outcome)
    return 0


def _print_outcome(outcome: Outcome) -> None:
    from diptych import log
    from diptych.commands._tables import print_summaries
    from diptych.report import read_run, summary, write_report

    report = write_report(outcome.folder)
    print_summaries([summary(read_run(outcome.folder))], stderr=True)
    steps = f"{outcome.steps}/{outcome.total_steps} steps"
    if outcome.finished:
        log.info(f"trained {steps}; weights: {outcome.folder / 'model.safetensors'}; report: {report}")
    else:
        saved = (
            "and saved"
            if outcome.saved == outcome.steps
            else f"without a checkpoint (the last: {outcome.saved or 'none'})"
        )
        log.info(f"stopped {saved} at {steps}; continue with: diptych train --output {outcome.folder} --resume latest")
    results = outcome.folder / "results.json"
    entries = json.loads(results.read_text(encoding="utf-8")) if results.exists() else []
    scores = [{key: entry[key] for key in ("name", "metrics", "chance", "count")} for entry in entries]
    print(
        json.dumps(
            {"output": str(outcome.folder), "steps": outcome.steps, "finished": outcome.finished, "results": scores}
        )
    )
