"""Looking at how good the model is while it trains: the loss on held-out pairs, retrieval, zero-shot classification.

Scores come from the evaluate room; here they are called at the right moment, and kept in the run's folder as
``results.json`` for the report. All processes share the work: each encodes its part; rank 0 keeps what was found.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diptych import log
from diptych.devices import Device
from diptych.distributed import process_group
from diptych.distributed.process_group import World
from diptych.errors import DataError
from diptych.evaluate import EVALUATORS, Result, gallery, mistakes
from diptych.files import write_text
from diptych.objectives import Objective
from diptych.train.config import TrainConfig
from diptych.train.pipeline import Pipeline
from diptych.train.step import move, total
from diptych.types import Batch


@dataclass(frozen=True)
class ValidationRequest:
    """What to look at: ``pairs`` (loss and retrieval), ``zeroshot``; ``last``: at the end, when pictures are kept too."""

    pairs: bool
    zeroshot: bool
    last: bool = False


class Validator:
    """Measures an objective's model on the run's validation data."""

    def __init__(self, config: TrainConfig, pipeline: Pipeline, device: Device, world: World, precision: str) -> None:
        self.config, self.pipeline, self.device, self.world, self.precision = config, pipeline, device, world, precision
        self._entries: dict[str, Any] = {}  # the last scores of each data set: they are not all measured each time

    @property
    def wanted(self) -> bool:
        """Whether there is anything to measure on."""
        return self.pipeline.val_source is not None or self.pipeline.zeroshot_source is not None

    def measure(self, objective: Objective, folder: Path, looks: ValidationRequest) -> Iterator[dict[str, Any]]:
        """Yield a row of scores per data set, on every rank; rank 0 leaves ``results.json`` in the folder."""
        pairs = looks.pairs and self.pipeline.val_source is not None
        loss = self.loss(objective) if pairs else 0.0
        yield from self._scores(objective, folder, looks, loss)

    def _scores(
        self, objective: Objective, folder: Path, looks: ValidationRequest, loss: float
    ) -> Iterator[dict[str, Any]]:
        rows, pictures = [], []
        pairs, named = self.pipeline.val_source, self.pipeline.zeroshot_source
        if looks.pairs and pairs is not None:
            found: Any = self._score("retrieval", objective, pairs, protocol=self.config.evaluate.protocol)
            self._entries["val"] = found.entry("val")
            rows.append({"name": "val", "loss": loss, **found.metrics})
            log.info(f"val: loss {loss:.3f} · " + headline(found))
            pictures += gallery(found, pairs, title="val") if looks.last and self.world.main else []
        if looks.zeroshot and named is not None:
            options = {**self.pipeline.zeroshot_options, "keep_classifier": False}
            found = self._score("zeroshot", objective, named, **options)
            self._entries["zeroshot"] = found.entry("zeroshot")
            rows.append({"name": "zeroshot", **found.metrics})
            log.info("zeroshot: " + headline(found))
            pictures += mistakes(found, named, title="zeroshot") if looks.last and self.world.main else []
        if self.world.main:
            self._keep(folder, pictures)
        yield from rows

    def _keep(self, folder: Path, pictures: list[Any]) -> None:
        write_text(folder / "results.json", json.dumps(list(self._entries.values()), indent=1) + "\n", "results")
        if pictures:
            write_text(folder / "gallery.json", json.dumps(pictures), "gallery")

    def _score(self, evaluator: str, objective: Objective, source: Any, **options: Any) -> Result:
        run = EVALUATORS.get(evaluator)
        pipeline = self.pipeline
        return run(
            objective.model, source, pipeline.tokenizer, pipeline.eval_transform, self.device,
            batch_size=min(64, self.config.data.batch_size), workers=min(1, self.config.data.workers),
            precision=self.precision, shared=self.world.size > 1, **options,
        )  # fmt: skip

    @torch.no_grad()
    def loss(self, objective: Objective) -> float:
        """The objective's mean loss over the validation pairs in batches of --batch-size; the last partial one is left out."""
        objective.eval()
        losses, batches = [], iter(self.pipeline.validation_loader(self.world))
        try:
            while (batch := self._next(batches)) is not None:
                with self.device.autocast(self.precision):
                    losses.append(float(total(objective(move(batch, self.device.torch_device)))))
        finally:
            objective.train()
        local = torch.tensor(losses, device=self.device.torch_device).mean()
        return float(process_group.all_reduce_mean(local))

    def _next(self, batches: Iterator[tuple[Batch, Any]]) -> Batch | None:
        """The next batch; None at the end. A DataError of one process is raised in all, before they gather."""
        batch, failed = None, None
        try:
            batch = next(batches, (None, None))[0]
        except DataError as error:
            failed = error
        if self.world.size > 1 and process_group.any_rank(failed is not None, self.device.torch_device):
            failed = process_group.first_not_none(failed)
        if failed is not None:
            raise failed
        return batch


def headline(result: Result) -> str:
    """The few scores that a person wants to see at once, in percent, with chance beside them."""
    wanted = ("image_to_text_R@1", "image_to_text_R@10", "text_to_image_R@1", "text_to_image_R@10", "top1", "top5")
    return " · ".join(
        f"{name} {100 * result.metrics[name]:.1f} % (chance {100 * result.chance.get(name, 0.0):.2f} %)"
        for name in wanted
        if name in result.metrics
    )
