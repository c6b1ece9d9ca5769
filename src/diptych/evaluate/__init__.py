"""What is measured of a model: each entry of this folder is one file with a ``run(model, ...) -> Result``.

``retrieval`` finds texts by images and images by texts; ``zeroshot`` names pictures by prompts. The scores themselves are
pure functions on feature tensors (``retrieval_scores``, ``chance``, ``top_k``), which one process calls after features were
gathered. ``gallery`` turns a retrieval result into pictures for the report. No loss is computed here: objectives do that.
"""

from __future__ import annotations

from typing import Any

from diptych.evaluate._cache import image_features
from diptych.evaluate._classifier import build_classifier
from diptych.evaluate._encode import Encoder
from diptych.evaluate._gallery import gallery, mistakes
from diptych.evaluate._intervals import Difference, Outcome, paired
from diptych.evaluate._prompts import ClassFolder, class_folder, class_names, load_templates
from diptych.evaluate._result import Result
from diptych.evaluate._scores import chance, retrieval_scores, top_k
from diptych.registry import Registry

EVALUATORS: Registry[Any] = Registry("diptych.evaluate", "evaluator")

__all__ = [
    "EVALUATORS",
    "ClassFolder",
    "Difference",
    "Encoder",
    "Outcome",
    "Result",
    "build_classifier",
    "chance",
    "class_folder",
    "class_names",
    "gallery",
    "image_features",
    "load_templates",
    "mistakes",
    "paired",
    "retrieval_scores",
    "top_k",
]
