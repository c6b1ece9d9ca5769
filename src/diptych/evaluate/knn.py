"""k nearest neighbors on frozen image features: nothing is fitted, so nothing can hide what the features know.

Each of the k training images nearest by cosine votes for its class with weight exp(cosine / temperature), the protocol of Wu et
al. (2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination"). The model is not trained.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diptych.errors import ConfigError
from diptych.evaluate._base import EVALUATORS, Evaluator
from diptych.evaluate._cache import Labeled
from diptych.evaluate._encode import Encoder, Progress
from diptych.evaluate._labeled import ProbeData
from diptych.evaluate._probes import probe_features, probe_result
from diptych.evaluate._result import Result
from diptych.evaluate._scores import top_k

TEMPERATURE = 0.07  # Wu et al.: lower makes near neighbors count more


@dataclass(frozen=True)
class NeighborOptions:
    """How neighbors vote."""

    knn_k: int = 20
    """Neighbors that vote."""


@EVALUATORS.register("knn")
class NearestNeighbors(Evaluator[ProbeData, NeighborOptions, Result]):
    """Classifies each test image by the training images nearest to it."""

    Options = NeighborOptions
    data = "probe"
    title = "nearest neighbors"

    def run(
        self, encoder: Encoder, source: ProbeData, options: NeighborOptions, progress: Progress | None = None
    ) -> Result:
        """Metrics: ``top1``, ``top5`` (from five classes on), ``mean_per_class``. Raises SourceError for sets that do not fit."""
        if options.knn_k < 1:
            raise ConfigError(f"--knn-k {options.knn_k}: expected at least 1.")
        train, test = probe_features(encoder, source, progress)
        scores = votes(train, test.features, int(train.labels.max()) + 1, options.knn_k)
        return Result(**probe_result(source, scores, train, test))


def votes(train: Labeled, features: Tensor, classes: int, k: int, temperature: float = TEMPERATURE) -> Tensor:
    """Return the votes [N, classes] for each class; a class of no neighbor has 0."""
    cosines, neighbors = top_k(features, train.features, k)
    weights = torch.exp((cosines - cosines[:, :1]) / temperature)  # the nearest counts 1: nothing overflows
    return torch.zeros(len(features), classes).scatter_add(1, train.labels[neighbors], weights)
