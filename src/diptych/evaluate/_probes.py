"""What probes share: features of a training and a test set that fit together, and the fields of a result from class scores.

Fits nothing and votes on nothing; the probes do.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from diptych.errors import SourceError
from diptych.evaluate._accuracy import classification
from diptych.evaluate._cache import Labeled, labeled_features
from diptych.evaluate._encode import Encoder, Progress, counting
from diptych.evaluate._labeled import ProbeData


def probe_features(encoder: Encoder, data: ProbeData, progress: Progress | None) -> tuple[Labeled, Labeled]:
    """Features of the training and of the test set. Raises SourceError when the two do not fit together."""
    train_classes, test_classes = data.train.classes, data.test.classes
    if train_classes and test_classes and tuple(train_classes) != tuple(test_classes):
        differ = sorted(set(train_classes) ^ set(test_classes)) or list(train_classes)
        raise SourceError(
            f"training and test set have different classes: {', '.join(differ[:5])}; they must be the same."
        )
    advance = counting(progress, len(data.train) + len(data.test))
    with encoder.evaluating():
        train, test = (labeled_features(encoder, source, advance) for source in data)
    unknown = set(test.labels.tolist()) - set(train.labels.tolist())
    if unknown:
        raise SourceError(f"the test set has the class {min(unknown)}, of which the training set has no image.")
    return train, test


def probe_result(data: ProbeData, scores: Tensor, train: Labeled, test: Labeled) -> dict[str, Any]:
    """The fields of a Result from class scores [N, classes] of the test set; ties go to the lower class."""
    labels = test.labels
    answers = scores.sort(dim=1, descending=True, stable=True).indices[:, :5]
    classes = scores.shape[1]
    count = {"images": len(labels), "classes": classes, "training images": len(train.labels)}
    if train.bad or test.bad:
        count["bad images"] = train.bad + test.bad
    return {"name": data.name, "count": count, **classification(answers, labels, classes)._asdict()}
