"""``diptych evaluate``: measure weights on pairs and on labeled images. Handles flags and prints."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from diptych.commands import _measure as measuring
from diptych.commands import command
from diptych.commands._tables import print_differences, print_results
from diptych.distributed import process_group

if TYPE_CHECKING:
    Options = measuring.MeasureOptions
else:
    Options = measuring.with_evaluators(measuring.MeasureOptions)


@command("evaluate", example="diptych evaluate --pretrained runs/a --val-data photos.jsonl --val-split test")
def main(options: Options) -> int:
    """Measure weights: retrieval on pairs, zero-shot and probes on labeled images; chance and intervals beside every score."""
    try:
        return _evaluate(options)
    finally:
        process_group.stop()


def _evaluate(options: Options) -> int:
    """Processes of torchrun share the encoding and measure the same; the first prints and writes."""
    tasks = measuring.tasks(options)
    measured = measuring.measure(options, options.pretrained, tasks)
    entries = [item.entry() for item in measured]
    if options.against:
        others = measuring.measure(options, options.against, tasks)
        for entry, first, second in zip(entries, measured, others, strict=True):
            entry["against"] = {"weights": options.against, **measuring.compared(first, second)}
    if not process_group.world_from_environment().main:
        return 0
    report = measuring.write_results(options.output, entries, measured) if options.output else None
    if options.json:
        print(json.dumps(entries))
        return 0
    print_results(entries)
    print_differences(entries)
    if report:
        print(f"report: {report}")
    return 0
