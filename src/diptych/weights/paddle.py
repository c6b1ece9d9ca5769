"""PaddleMIX's CLIP: ``.pdparams`` files and folders, read and written without Paddle.

OpenAI's names, but q, k and v stand apart and linear weights are [in, out]; square matrices would hide a wrong transpose,
so tests compare numbers. Paddle's own vision tower always runs exact GELU, whatever the weights were trained with: here the
config's word counts, and the catalogue's for the zoo's names.
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
from diptych.weights import CHECKPOINT_FORMATS
from diptych.weights._clip_names import NamingScheme, clip_rules, shapes_tell
from diptych.weights._format import CheckpointFormat, Found, only_clip, read_json
from diptych.weights._open_clip_config import config_of, model_cfg, preprocess_cfg
from diptych.weights._rename import Rule

WEIGHTS, NAMES = "model_state.pdparams", "StructuredToParameterName@@"


@CHECKPOINT_FORMATS.register("paddle")
class Paddle(CheckpointFormat):
    """Names of PaddleMIX."""

    name = "paddle"
    about = "PaddleMIX (.pdparams, Paddle not needed)"
    ignored = ("attn_mask",)

    def recognises(self, stored: Stored) -> bool:
        """q, k and v apart under OpenAI's names."""
        return stored.kind == "paddle" or "visual.transformer.resblocks.0.attn.q_proj.weight" in stored.tensors

    def describe(self, stored: Stored) -> Found:
        """By ``config.json`` beside the file, else by the shapes."""
        path = stored.path.parent / "config.json"
        about = read_json(path)
        if isinstance(about.get("vision_cfg"), dict) and isinstance(about.get("text_cfg"), dict):
            wanted = {key: about[key] for key in ("embed_dim", "vision_cfg", "text_cfg") if key in about}
            quick = bool(about.get("quick_gelu") or about["text_cfg"].get("quick_gelu"))
            wanted["text_cfg"] = {key: value for key, value in about["text_cfg"].items() if key != "quick_gelu"}
            config = config_of(wanted | {"quick_gelu": quick}, str(path), about.get("preprocess_cfg"))
            # False may only mean that PaddleMIX has no word for the image tower's QuickGELU.
            return Found(config, "config.json", quick or "preprocess_cfg" in about, "preprocess_cfg" in about)
        config = shapes_tell(stored.tensors, _dialect(stored), str(stored.path))
        return Found(config, "the shapes of the tensors", activation_known=False)

    def rules(self, config: ModelConfig, stored: Stored | None = None) -> list[Rule]:
        """PaddleMIX's names."""
        only_clip(config, self.name)
        return clip_rules(config, _dialect(stored))

    def write(self, folder: Path, config: ModelConfig, tensors: Mapping[str, Tensor]) -> Path:
        """``model_state.pdparams`` and ``config.json``; the config also holds the preprocessing, which Paddle ignores."""
        about = model_cfg(config) | {
            "model_type": "clip",
            "custom_text": False,
            "preprocess_cfg": preprocess_cfg(config),
        }
        about["text_cfg"] |= {"quick_gelu": config.activation == "quickgelu"}
        path = folder / WEIGHTS
        arrays = {name: _array(tensor) for name, tensor in tensors.items()}
        with replacing(path, "weight file") as beside, beside.open("wb") as file:
            pickle.dump({**arrays, NAMES: {name: name for name in arrays}}, file, protocol=4)
        write_text(folder / "config.json", json.dumps(about, indent=2) + "\n", "config")
        return path


def _dialect(stored: Stored | None) -> NamingScheme:
    text = "text." if stored and "text.token_embedding.weight" in stored.tensors else ""
    return NamingScheme(text=text, stacked=False, linear_transposed=True, scale_shape=1)


def _array(tensor: Tensor) -> np.ndarray:
    """A contiguous array; bfloat16 as its bits in uint16, which is how Paddle keeps it."""
    whole = tensor.detach().cpu().contiguous()
    return whole.view(torch.int16).numpy().view(np.uint16) if whole.dtype == torch.bfloat16 else whole.numpy()
