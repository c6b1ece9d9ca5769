"""Training on a locked image tower: its features are computed once, before the first step, and batches carry them.

Exact: a locked tower gives a picture the same features every time, when the picture is cropped the same every time; so pictures
are cropped as in evaluation. A picture that cannot be read is met as a bad sample when its turn comes, like any other.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from diptych import log
from diptych.data import PRECOMPUTED_FEATURES, Source
from diptych.devices import Device
from diptych.distributed.process_group import World
from diptych.errors import ConfigError, RecordError
from diptych.evaluate import Encoder, image_features
from diptych.models import TwoTower
from diptych.train.config import TrainConfig
from diptych.train.pipeline import Pipeline
from diptych.types import Record


class FeatureSource:
    """A source whose records carry the features of their pictures, fp32 [D], so that nothing is decoded."""

    def __init__(self, source: Source, features: np.ndarray, row: np.ndarray) -> None:
        self.source, self.name, self.classes = source, source.name, source.classes
        self._features, self._row = features, row
        if hasattr(source, "sources"):  # what mixtures ask for
            self.sources = source.sources

    def __len__(self) -> int:
        return len(self.source)

    def record(self, index: int) -> Record:
        """The record with its features. Raises RecordError where the picture could not be read."""
        found = self.source.record(index)
        known = self._features[self._row[index]]
        if np.isnan(known[0]):
            raise RecordError(found.key, "the picture could not be read when features were computed")
        return dataclasses.replace(found, extra={**found.extra, PRECOMPUTED_FEATURES: known})

    def splits(self) -> dict[str, int]:
        """Those of the source."""
        return self.source.splits()


def checked_locks(config: TrainConfig) -> None:
    """Raise ConfigError for locks that leave nothing to train, or features cached of a tower that is trained."""
    options = config.model
    if options.lock_image and options.lock_text:
        raise ConfigError("--lock-image and --lock-text together leave nothing to train; give one of them.")
    if options.cache_features and not options.lock_image:
        raise ConfigError("--cache-features needs --lock-image: features of a tower that is trained change every step.")
    if not 0 <= options.force_patch_dropout < 1:
        raise ConfigError(f"--force-patch-dropout {options.force_patch_dropout}: expected at least 0 and less than 1.")
    if options.force_patch_dropout and config.accum_freq > 1:
        # Its two passes would see different patches, and the gradient would belong to neither.
        raise ConfigError("--force-patch-dropout does not go with --accum-freq above 1; use one of them.")
    if options.lock_image and not (options.pretrained or config.output.resume):
        log.warn("--lock-image without --pretrained keeps an image tower of random weights.")


def with_features(pipeline: Pipeline, model: TwoTower, device: Device, here: World, precision: str) -> Pipeline:
    """The pipeline with features in place of training pictures; every process computes a part, and all keep all."""
    source: Any = pipeline.train_source
    indices, row = _pictures(source)
    data = pipeline.data
    encoder = Encoder(
        model, pipeline.tokenizer, pipeline.eval_transform, device, max(64, data.batch_size), data.workers, precision,
        shared=here.size > 1,
    )  # fmt: skip
    features = _encoded(encoder, source, indices)
    return dataclasses.replace(pipeline, train_source=FeatureSource(source, features.numpy(), row))


def _pictures(source: Source) -> tuple[list[int], np.ndarray]:
    """One record of each distinct picture, and for every record the row of its picture."""
    rows: dict[str, int] = {}
    indices: list[int] = []
    row = np.empty(len(source), dtype=np.int64)
    for index in range(len(source)):
        record = source.record(index)
        name = record.group if record.group is not None else record.key
        if name not in rows:
            rows[name] = len(indices)
            indices.append(index)
        row[index] = rows[name]
    return indices, row


def _encoded(encoder: Encoder, source: Source, indices: list[int]) -> torch.Tensor:
    done = 0
    was_training = encoder.model.training
    encoder.model.eval()
    try:
        with log.progress("features of the locked tower", len(indices)) as tell:

            def step(count: int) -> None:
                nonlocal done
                done += count
                tell(done)

            return image_features(encoder, source, indices, step, unreadable=lambda error: None)
    finally:
        encoder.model.train(was_training)
