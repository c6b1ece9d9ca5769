"""The images of a source that can be read: evaluation's policy of bad samples, the same as training's.

With ``skip`` a bad image leaves the evaluation, is counted and named in one line, and above the limit's share the evaluation
stops. With ``raise`` the first one stops it. It encodes and scores nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from diptych import log
from diptych.errors import RecordError, SourceError
from diptych.evaluate._decode import Records
from diptych.evaluate._encode import Encoder
from diptych.types import Record

UNKNOWN = "could not be read when its features were computed"


@dataclass
class BadImages:
    """The bad records of one source in one evaluation: (key, reason) of each, as far as this process knows them."""

    source: Records
    encoder: Encoder
    known: list[tuple[str, str]] = field(default_factory=list)

    def record(self, index: int) -> Record | None:
        """A record; None for a bad one under ``skip``. Raises RecordError under ``raise``."""
        try:
            return self.source.record(index)
        except RecordError as error:
            self.met(error)
            return None

    def met(self, error: RecordError) -> None:
        """Note a bad one. Raises it under ``raise``."""
        if self.encoder.bad_samples == "raise":
            raise error
        self.known.append((error.key, error.reason))

    def encoded(self, encode: Callable[[Callable[[RecordError], None] | None], Tensor]) -> tuple[Tensor, Tensor]:
        """Features of what could be read, and its rows int64 among all; ``encode(unreadable)`` gives NaN for what could not."""
        features = encode(None if self.encoder.bad_samples == "raise" else self.met)
        rows = (~features[:, :1].isnan().any(dim=1)).nonzero()[:, 0]
        return features[rows.to(features.device)], rows.cpu()

    def finish(self, lost: int, total: int) -> dict[str, int]:
        """Say how many of ``total`` were lost; the entry of a result's ``count``, empty without any.

        Raises SourceError when their share is above the encoder's ``bad_limit``, or none is left.
        """
        if not lost:
            return {}
        key, reason = self.known[0] if self.known else ("", UNKNOWN)
        first = f"the first is {key}: {reason}" if key else f"their images {reason}"
        if lost == total or lost > self.encoder.bad_limit * total:
            raise SourceError(
                f"{self.source.name}: {lost} of {total} images are bad, more than --bad-samples-max "
                f"{self.encoder.bad_limit:.2%}; {first}"
            )
        log.warn(f"{self.source.name}: {lost} of {total} images are bad and left out of the scores; {first}")
        return {"bad images": lost}


class LabeledRows(NamedTuple):
    """The records that have a label: their indices, the labels int64, and of each class the names that records give it
    ("label_name"), each with the first key that does.
    """

    indices: list[int]
    labels: Tensor
    names: dict[int, dict[str, str]]


def labels_of(source: Records, bad: BadImages) -> LabeledRows:
    """Read the labels of all records, once. Raises SourceError where none has one."""
    indices, labels = [], []
    names: dict[int, dict[str, str]] = {}
    for index in range(len(source)):
        record = bad.record(index)
        if record is None:
            continue
        if record.label is None:
            if bad.encoder.bad_samples == "raise":
                raise SourceError(f"{source.name}: classification needs a label for each image; {record.key} has none.")
            bad.met(RecordError(record.key, "has no label"))
            continue
        if record.label < 0:
            raise SourceError(f"{source.name}: the label {record.label} is negative; labels count from 0.")
        if isinstance(name := record.extra.get("label_name"), str):
            names.setdefault(record.label, {}).setdefault(name, record.key)
        indices.append(index)
        labels.append(record.label)
    if not labels:
        raise SourceError(f"{source.name}: holds no image with a label to classify.")
    return LabeledRows(indices, torch.tensor(labels), names)
