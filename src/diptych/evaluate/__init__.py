"""What is measured of a model: each entry of this folder is a file with an ``Evaluator``, from options to drawings.

``retrieval`` ranks texts by image and images by text; ``zeroshot`` classifies images by prompts; probes classify by image
features. The scores themselves are pure functions on feature tensors (``retrieval_scores``, ``chance``, ``top_k``), which one
process calls after features were gathered. No loss is computed: objectives do that.
"""

from __future__ import annotations

from diptych.evaluate._base import EVALUATORS, AnyEvaluator, DataKind, Evaluator, evaluators, options_from
from diptych.evaluate._cache import image_features
from diptych.evaluate._class_names import class_names
from diptych.evaluate._classifier import build_classifier
from diptych.evaluate._clean_names import clean_names
from diptych.evaluate._decode import Records
from diptych.evaluate._encode import Encoder
from diptych.evaluate._intervals import Difference, Outcome, paired
from diptych.evaluate._labeled import ClassFolder, LabeledImages, ProbeData, class_folder, open_labeled
from diptych.evaluate._prompts import class_set, load_templates
from diptych.evaluate._result import Result
from diptych.evaluate._scores import chance, retrieval_scores, top_k
from diptych.evaluate._token_maps import TOKEN_MAPS_FILE, write_token_maps
from diptych.evaluate._usable import TRIED, check_usable, use_labeled, use_pair

__all__ = [
    "EVALUATORS",
    "TOKEN_MAPS_FILE",
    "TRIED",
    "AnyEvaluator",
    "ClassFolder",
    "DataKind",
    "Difference",
    "Encoder",
    "Evaluator",
    "LabeledImages",
    "Outcome",
    "ProbeData",
    "Records",
    "Result",
    "build_classifier",
    "chance",
    "check_usable",
    "class_folder",
    "class_names",
    "class_set",
    "clean_names",
    "evaluators",
    "image_features",
    "load_templates",
    "open_labeled",
    "options_from",
    "paired",
    "retrieval_scores",
    "top_k",
    "use_labeled",
    "use_pair",
    "write_token_maps",
]
