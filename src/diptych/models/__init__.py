"""Architectures: an image tower, a text tower, and the scale that their similarities are multiplied with.

A family of towers is a file here; a size is a table in ``presets/``. Models know no device, no loss, no parallelism and no
parameter names of other libraries.
"""

from __future__ import annotations

from diptych.models._base import TOWERS, ImageTower, TextTower, Tower, lengths_of
from diptych.models._causal import CausalPlan, VarlenCausal, causal_plan, unplanned
from diptych.models._config import CLIP_VOCABULARY, ModelConfig, ModelNeeds, PreprocessConfig, TextConfig, VisionConfig
from diptych.models._cpu_attention import attention_as_elsewhere
from diptych.models._locks import parameter_groups
from diptych.models._model import TwoTower, create_model
from diptych.models._observed import hooked, traced
from diptych.models._packing import FullAttention
from diptych.models._presets import list_models, model_config, model_config_from_dict
from diptych.models._seeded import integers as seeded_integers
from diptych.models._statistics import Statistics, put_back, restored_statistics, running_statistics, statistics_of
from diptych.models._text_layout import text_layout
from diptych.types import SharedPrefixes

__all__ = [
    "CLIP_VOCABULARY",
    "TOWERS",
    "CausalPlan",
    "FullAttention",
    "ImageTower",
    "ModelConfig",
    "ModelNeeds",
    "PreprocessConfig",
    "SharedPrefixes",
    "Statistics",
    "TextConfig",
    "TextTower",
    "Tower",
    "TwoTower",
    "VarlenCausal",
    "VisionConfig",
    "attention_as_elsewhere",
    "causal_plan",
    "create_model",
    "hooked",
    "lengths_of",
    "list_models",
    "model_config",
    "model_config_from_dict",
    "parameter_groups",
    "put_back",
    "restored_statistics",
    "running_statistics",
    "seeded_integers",
    "statistics_of",
    "text_layout",
    "traced",
    "unplanned",
]
