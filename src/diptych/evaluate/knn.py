"""k nearest neighbours on frozen image features: nothing is fitted, so nothing can hide what the features know.

Each of the k training pictures nearest by cosine votes for its class with weight exp(cosine / temperature), the protocol of Wu et
al. (2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination"). The model is not trained.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diptych.errors import ConfigError
from diptych.evaluate import EVALUATORS
from diptych.evaluate._cache import Labelled
from diptych.evaluate._encode import Encoder, Progress, Records
from diptych.evaluate._probes import probe_sets, scored
from diptych.evaluate._result import Result
from diptych.evaluate._scores import top_k


@dataclass(frozen=True)
class Options:
    """How neighbours vote."""

    train: Any = None
    """The labelled source whose pictures vote; the evaluated source is the test set."""
    k: int = 20
    """Neighbours that vote."""
    temperature: float = 0.07
    """Lower makes near neighbours count more."""
    batch_size: int = 64
    """Images encoded at a time."""
    workers: int = 0
    """Processes that decode images; 0 decodes in this one."""
    precision: str = "fp32"
    """fp32, bf16 or fp16 inside the tower; votes are fp32."""
    keep_features: bool = True
    """Keep the features in the cache folder."""


@EVALUATORS.register("knn")
def run(
    model: Any,
    source: Records,
    tokenizer: Any,
    transform: Any,
    device: Any,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Result:
    """Let ``options["train"]`` vote on ``source``. Metrics and errors are those of the linear probe."""
    chosen = replace(Options(), **options)
    if chosen.k < 1 or chosen.temperature <= 0:
        raise ConfigError(f"k {chosen.k}, temperature {chosen.temperature}: expected at least 1, and above 0.")
    encoder = Encoder(model, tokenizer, transform, device, chosen.batch_size, chosen.workers, chosen.precision)
    train, test = probe_sets(encoder, source, chosen.train, chosen.keep_features, progress)
    classes = int(train.labels.max()) + 1
    found = votes(train, test.features, classes, chosen.k, chosen.temperature)
    return Result(**scored(str(getattr(source, "name", "knn")), found, test.labels, classes, len(train.labels)))


def votes(train: Labelled, features: Tensor, classes: int, k: int, temperature: float) -> Tensor:
    """Return the votes [N, classes] for each class; those of no neighbour's class are 0."""
    nearness, neighbours = top_k(features, train.features, k)
    weights = torch.exp((nearness - nearness[:, :1]) / temperature)  # the nearest counts 1: nothing overflows
    return torch.zeros(len(features), classes).scatter_add(1, train.labels[neighbours], weights)
