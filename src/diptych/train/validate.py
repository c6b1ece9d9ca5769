"""Validation of a run: the loss on held-out pairs, and the evaluators that training runs.

Scores come from ``diptych.evaluate``; a Validator measures them when they are due, and writes them into the run's folder
as ``results.json`` for the report. All processes share the work: each encodes its part, and rank 0 writes. It trains nothing and
names no evaluator.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from diptych import log
from diptych.data import Position, Source
from diptych.distributed import process_group
from diptych.distributed.layout import Layout
from diptych.errors import DataError, SourceError
from diptych.evaluate import DataKind, Encoder, LabeledImages, Result, evaluators, options_from
from diptych.files import write_text
from diptych.train.average import SUFFIX, WeightAverage
from diptych.train.config import EvaluateOptions
from diptych.train.step import total
from diptych.train.transfer import move
from diptych.types import Batch, Terms

HEADLINE = ("image_to_text_R@1", "image_to_text_R@10", "text_to_image_R@1", "text_to_image_R@10", "top1", "top5")


@dataclass(frozen=True)
class ValidationRequest:
    """Which kinds of data are due: ``pairs``, ``labeled``; ``last``: at the end of the run, when drawings are written too."""

    pairs: bool
    labeled: bool
    last: bool = False


@dataclass(frozen=True)
class ValidationData:
    """What a run validates on, None where it has none.

    ``batches`` begins a pass over the pairs: batches of this process, made as the objective's ``validation_wants`` asks, as many
    and as large in every process. ``labeled_v2`` is a second set of labeled images; its results have "-v2" after their name.
    """

    pairs: Source | None
    labeled: LabeledImages | None
    batches: Callable[[], Iterable[tuple[Batch, Position]]]
    labeled_v2: LabeledImages | None = None

    def due(self, request: ValidationRequest) -> list[tuple[DataKind, str, Source | LabeledImages]]:
        """The sources that are there and due: kind, what stands after the name of its results, source."""
        sources: list[tuple[DataKind, str, Source | LabeledImages | None]] = []
        if request.pairs:
            sources.append(("pairs", "", self.pairs))
        if request.labeled:
            sources += [("labeled", "", self.labeled), ("labeled", "-v2", self.labeled_v2)]
        return [(kind, suffix, source) for kind, suffix, source in sources if source is not None]


class Validator:
    """Measures the objective and the model of a ``layout`` on the run's validation data.

    ``encoder`` encodes with that layout; ``options`` are the run's, from which an evaluator takes those that it declares under
    the same name. Where the run has an ``average`` of its weights, it is measured too; its results have "-ema" after their name.
    """

    def __init__(
        self,
        layout: Layout,
        encoder: Encoder,
        data: ValidationData,
        options: EvaluateOptions,
        average: WeightAverage | None = None,
    ) -> None:
        self.layout, self.encoder, self.data, self.options, self.average = layout, encoder, data, options, average
        self._entries: dict[
            str, dict[str, Any]
        ] = {}  # the last scores of each data set: they are not all due each time

    @property
    def wanted(self) -> bool:
        """Whether there is anything to measure on."""
        return bool(self.data.due(ValidationRequest(pairs=True, labeled=True)))

    def measure(self, folder: Path, request: ValidationRequest) -> Iterator[dict[str, Any]]:
        """Yield a row of scores per evaluator, on every rank; rank 0 leaves ``results.json`` in the folder.

        The row of the pairs has their ``loss``, its parts and the objective's metrics too. Raises the DataError of any rank.
        """
        rows, drawings = self._measured(request, "")
        if self.average is not None:
            with self.average.applied():
                rows += self._measured(dataclasses.replace(request, last=False), SUFFIX)[0]
        if process_group.rank() == 0:
            self._write(folder, drawings)
        yield from rows

    def _measured(self, request: ValidationRequest, after: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Rows of scores of the weights as they stand, and drawings; ``after`` the name of each result."""
        due = self.data.due(request)
        losses = self.losses() if any(kind == "pairs" for kind, _, _ in due) else {}
        rows, drawings = [], []
        measured = [item for item in evaluators().values() if item.training_name]
        for evaluator, (_, suffix, source) in [
            (item, entry) for item in measured for entry in due if entry[0] == item.data
        ]:
            name = evaluator.training_name + suffix + after
            result = evaluator().run(self.encoder, source, options_from(evaluator, self.options))
            own, losses = (losses, {}) if evaluator.data == "pairs" else ({}, losses)
            self._entries[name] = result.entry(name)
            rows.append({"name": name, **own, **result.metrics})
            log.info(f"{name}: " + (f"loss {own['loss']:.3f} · " if own else "") + headline(result))
            if request.last and process_group.rank() == 0:
                drawings += evaluator().images(result, source, name)
        return rows, drawings

    def losses(self) -> dict[str, float]:
        """Means over the validation batches of all ranks: ``loss``, each ``loss_<part>`` where several are summed, and metrics.

        The last batch of the pass is left out where it is not full. Raises SourceError where there is no batch at all.
        """
        sums: dict[str, Tensor] = {}
        count = 0
        with self.layout.evaluating(), self.encoder.inference():
            for batch in self._batches():
                terms = self.layout.validation_terms(move(batch, self.encoder.device.torch_device))
                for name, value in _values(terms).items():
                    sums[name] = sums[name] + value if name in sums else value
                count += 1
        if not count:
            raise SourceError("the validation pairs do not fill a batch; give more, or lower --batch-size.")
        means = {name: value / count for name, value in sums.items()}
        return process_group.all_reduce_mean_of(means, self.layout.group)

    def _batches(self) -> Iterator[Batch]:
        """The batches of a pass. A DataError of one process is raised in all, before they compute together."""
        batches = iter(self.data.batches())
        while True:
            batch, failed = None, None
            try:
                batch = next(batches, (None, None))[0]
            except DataError as error:
                failed = error
            if process_group.any_rank(failed is not None, self.encoder.device.torch_device, self.layout.group):
                failed = process_group.first_not_none(failed, self.layout.group)
            if failed is not None:
                raise failed
            if batch is None:
                return
            yield batch

    def _write(self, folder: Path, drawings: list[dict[str, Any]]) -> None:
        write_text(folder / "results.json", json.dumps(list(self._entries.values()), indent=1) + "\n", "results")
        if drawings:
            write_text(folder / "gallery.json", json.dumps(drawings), "gallery")


def _values(terms: Terms) -> dict[str, Tensor]:
    parts = {f"loss_{name}": part for name, part in terms.losses.items()} if len(terms.losses) > 1 else {}
    values = {"loss": total(terms), **parts, **terms.metrics}
    return {name: value.detach().float() for name, value in values.items()}


def headline(result: Result) -> str:
    """The few scores that a person wants to see at once, in percent, with chance beside them."""
    return " · ".join(
        f"{name} {100 * result.metrics[name]:.1f} % (chance {100 * result.chance.get(name, 0.0):.2f} %)"
        for name in HEADLINE
        if name in result.metrics
    )
