"""PaddleMIX's CLIP: ``.pdparams`` files and folders, read and written without Paddle.

OpenAI's names, but q, k and v are separate and linear weights are [in, out]; square matrices would hide a wrong transpose,
so tests compare numbers. Paddle's own vision tower always runs exact GELU, whatever the weights were trained with: Diptych
runs what the config says, and the catalog for the zoo's names.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diptych.files import replacing, write_text
from diptych.models import ModelConfig
from diptych.tensorfiles.read import Stored
from diptych.weights._base import CHECKPOINT_FORMATS, CheckpointFormat, Description, require_clip
from diptych.weights._clip_names import NamingScheme, clip_rules
from diptych.weights._config_table import read_json
from diptych.weights._infer import SHAPES, config_from_shapes
from diptych.weights._open_clip_config import config_of, model_cfg, preprocess_cfg
from diptych.weights._rename import Rule

WEIGHTS, NAMES = "model_state.pdparams", "StructuredToParameterName@@"


@CHECKPOINT_FORMATS.register("paddle")
class Paddle(CheckpointFormat):
    """Names of PaddleMIX."""

    name = "paddle"
    summary = "PaddleMIX (.pdparams, Paddle not needed)"
    ignored = ("attn_mask",)

    def recognizes(self, stored: Stored) -> bool:
        """Separate q, k and v under OpenAI's names."""
        names = stored.tensors
        image = any(name.startswith("visual.") for name in names)
        if not image or not {"token_embedding.weight", "text.token_embedding.weight"} & set(names):
            return False
        return stored.kind == "paddle" or "visual.transformer.resblocks.0.attn.q_proj.weight" in names

    def describe(self, stored: Stored) -> Description:
        """By ``config.json`` beside the file, else by the shapes."""
        path = stored.path.parent / "config.json"
        values = read_json(path)
        vision, text = values.get("vision_cfg"), values.get("text_cfg")
        if isinstance(vision, dict) and isinstance(text, dict):
            quick = bool(values.get("quick_gelu") or text.get("quick_gelu"))
            text = {key: value for key, value in text.items() if key != "quick_gelu"}
            model = {key: values.get(key) for key in ("embed_dim", "init_logit_scale", "init_logit_bias")}
            model |= {"vision_cfg": vision, "text_cfg": text, "quick_gelu": quick}
            config = config_of(model, str(path), values.get("preprocess_cfg"))
            # False may only mean that PaddleMIX has no key for the image tower's QuickGELU.
            ours = "preprocess_cfg" in values
            return Description(config, "config.json", activation_known=quick or ours, preprocess_known=ours)
        config = config_from_shapes(stored.tensors, _scheme(stored), str(stored.path))
        return Description(config, SHAPES, activation_known=False, heads_known=False)

    def rules(self, config: ModelConfig, stored: Stored | None = None) -> list[Rule]:
        """PaddleMIX's names."""
        require_clip(config, self.name)
        return clip_rules(config, _scheme(stored))

    def write(self, folder: Path, config: ModelConfig, tensors: Mapping[str, Tensor]) -> Path:
        """``model_state.pdparams`` and ``config.json``; the config also holds the preprocessing, which Paddle ignores."""
        values = model_cfg(config)
        text = {**values.pop("text_cfg"), "quick_gelu": config.activation == "quickgelu"}  # type: ignore[dict-item]
        values |= {
            "model_type": "clip",
            "custom_text": False,
            "text_cfg": text,
            "preprocess_cfg": preprocess_cfg(config),
        }
        path = folder / WEIGHTS
        arrays = {name: _array(tensor) for name, tensor in tensors.items()}
        with replacing(path, "weight file") as beside, beside.open("wb") as file:
            pickle.dump({**arrays, NAMES: {name: name for name in arrays}}, file, protocol=4)
        write_text(folder / "config.json", json.dumps(values, indent=2) + "\n", "config")
        return path


def _scheme(stored: Stored | None) -> NamingScheme:
    text = "text." if stored and "text.token_embedding.weight" in stored.tensors else ""
    return NamingScheme(text=text, stacked=False, linear_transposed=True, scale_shape=1)


def _array(tensor: Tensor) -> np.ndarray:
    """A contiguous array; bfloat16 as its bits in uint16, as Paddle stores it."""
    values = tensor.detach().cpu().contiguous()
    return values.view(torch.int16).numpy().view(np.uint16) if values.dtype == torch.bfloat16 else values.numpy()
