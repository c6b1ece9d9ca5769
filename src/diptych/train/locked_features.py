"""Training on a locked image tower: its features are computed once, before the first step, and batches carry them; so are those
of a teacher that sees each image once.

Exact: a locked tower gives an image the same features every time, if it is cropped the same every time; so images are
preprocessed as in evaluation. An image that cannot be read is a bad sample when its turn comes, like any other.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from diptych import log
from diptych.data import PRECOMPUTED_FEATURES, LeftOut, Source
from diptych.errors import ConfigError, RecordError
from diptych.evaluate import Encoder, image_features
from diptych.objectives import Objective
from diptych.types import Record, Wants


class FeatureSource:
    """A source whose records carry the features of their images, fp32 [D], so that nothing is decoded."""

    def __init__(self, source: Source, features: np.ndarray, row: np.ndarray) -> None:
        self.source, self.name = source, source.name
        self._features, self._row = features, row
        if hasattr(source, "sources"):  # what mixtures ask for
            self.sources = source.sources

    def __len__(self) -> int:
        return len(self.source)

    def record(self, index: int) -> Record:
        """The record with its features. Raises RecordError where the image could not be read."""
        record = self.source.record(index)
        features = self._features[self._row[index]]
        if np.isnan(features[0]):
            raise RecordError(record.key, "the image could not be read when features were computed")
        return dataclasses.replace(record, extra={**record.extra, PRECOMPUTED_FEATURES: features})

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Those of the source."""
        return self.source.classes

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """That of the source."""
        return self.source.left_out

    def splits(self) -> dict[str, int]:
        """Those of the source."""
        return self.source.splits()


def check_cacheable(objective: Objective) -> None:
    """Raise ConfigError for an objective that needs more of an image than its pooled feature."""
    if not objective.cacheable:
        raise ConfigError(
            f"--cache-features keeps one feature of each image and no pixels, and --objective {objective.config.objective} needs "
            "more of it; leave --cache-features out."
        )


def with_features(source: Source, encoder: Encoder, wants: Wants) -> FeatureSource:
    """The training source with the features of its images in place of pixels.

    ``encoder`` has the locked tower and the transform of evaluations; where it is ``shared``, every process computes a part, and
    all get all. Raises ConfigError when the objective wants other image views than the training crop.
    """
    if wants.images != ("crop",):
        raise ConfigError(
            f"--cache-features computes a single feature of each image, but this objective wants the image views "
            f"{', '.join(wants.images) or 'of none'}; leave --cache-features out."
        )
    features, row = _computed(source, encoder, "features of the locked tower")
    return FeatureSource(source, features.numpy(), row)


def stored_features(source: Source, encoder: Encoder) -> Tensor:
    """Features fp32 [records, E], on the CPU, of each record's image, from the cache folder or computed and written there."""
    features, row = _computed(source, encoder, "features of the teacher")
    return features[torch.from_numpy(row)]


def _computed(source: Source, encoder: Encoder, title: str) -> tuple[Tensor, np.ndarray]:
    """Features of each distinct image, and for every record the row of its image; ``title`` is shown while it lasts."""
    indices, row = _distinct_images(source)
    with encoder.evaluating(), log.progress(title, len(indices)) as report:
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            report(done)

        features = image_features(encoder, source, indices, advance, unreadable=lambda error: None)
    return features, row


def _distinct_images(source: Source) -> tuple[list[int], np.ndarray]:
    """A record of each distinct image, and for every record the row of its image."""
    rows: dict[str, int] = {}
    indices: list[int] = []
    row = np.empty(len(source), dtype=np.int64)
    for index in range(len(source)):
        record = source.record(index)
        image = record.group if record.group is not None else record.key
        if image not in rows:
            rows[image] = len(indices)
            indices.append(index)
        row[index] = rows[image]
    return indices, row
