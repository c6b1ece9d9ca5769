"""open_clip's weights: OpenAI's names for CLIP, timm's for SigLIP's image tower, and ``open_clip_config.json`` beside them.

Reads released files, training checkpoints and folders; the architecture comes from the config, or from the shapes when they
are a known architecture's. Without a config the activation stays unknown, and has to be given. Its text tower may be at the
root or under ``text.``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from diptych.files import replacing, write_text
from diptych.models import ModelConfig
from diptych.models.siglip import SiglipConfig
from diptych.models.vit import VitConfig
from diptych.tensorfiles.read import Stored
from diptych.weights._base import CHECKPOINT_FORMATS, CheckpointFormat, Description, require_last_end
from diptych.weights._clip_names import NamingScheme, clip_rules
from diptych.weights._config_table import read_json
from diptych.weights._infer import SHAPES, config_from_shapes
from diptych.weights._open_clip_config import config_of, model_cfg, preprocess_cfg
from diptych.weights._rename import LEADING, LEADING_TWO, SCALAR, STACKED, Rule, same
from diptych.weights._vocabulary import with_vocabulary

CONFIG = "open_clip_config.json"


@CHECKPOINT_FORMATS.register("openclip")
class OpenClip(CheckpointFormat):
    """Names of open_clip."""

    name = "openclip"
    summary = "open_clip (file, training checkpoint or folder with open_clip_config.json)"
    ignored = ("text.transformer.embeddings.position_ids", "attn_mask", "text.attn_mask")
    # SigLIP weights converted for inference may lack it; it changes no ranking, and open_clip takes 0.
    optional = ("logit_bias",)

    def recognizes(self, stored: Stored) -> bool:
        """OpenAI's names at the root, or text under ``text.`` beside an image tower under ``visual.``."""
        image = any(name.startswith("visual.") for name in stored.tensors)
        return image and bool({"token_embedding.weight", "text.token_embedding.weight"} & set(stored.tensors))

    def describe(self, stored: Stored) -> Description:
        """By ``open_clip_config.json``, else by the shapes."""
        path = stored.path.parent / CONFIG
        values = read_json(path)
        if values:
            model, preprocess = values.get("model_cfg", values), values.get("preprocess_cfg")
            config = with_vocabulary(config_of(model, str(path), preprocess), path)
            return Description(config, CONFIG, preprocess_known=bool(preprocess))
        config = config_from_shapes(stored.tensors, _scheme(stored), str(stored.path))
        return Description(config, SHAPES, activation_known=False, heads_known=False)

    def rules(self, config: ModelConfig, stored: Stored | None = None) -> list[Rule]:
        """OpenAI's names, or those of timm and of the text module when it is a SigLIP."""
        if stored is None:
            require_last_end(config, self.name)
        return siglip_rules(config) if isinstance(config.vision, SiglipConfig) else clip_rules(config, _scheme(stored))

    def write(self, folder: Path, config: ModelConfig, tensors: Mapping[str, Tensor]) -> Path:
        """``open_clip_model.safetensors`` and ``open_clip_config.json``: what open_clip opens as ``local-dir:FOLDER``."""
        values = {"model_cfg": model_cfg(config), "preprocess_cfg": preprocess_cfg(config)}
        path = folder / "open_clip_model.safetensors"
        with replacing(path, "weight file") as beside:
            save_file(dict(tensors), beside, metadata={"format": "pt"})
        write_text(folder / CONFIG, json.dumps(values, indent=2) + "\n", "config")
        return path


def _scheme(stored: Stored | None) -> NamingScheme:
    return NamingScheme(text="text." if stored and "text.token_embedding.weight" in stored.tensors else "")


def siglip_rules(config: ModelConfig) -> list[Rule]:
    """timm's names for the image tower, open_clip's text module for the other."""
    vision = config.vision
    assert isinstance(vision, SiglipConfig)
    rules = [Rule("logit_scale", ("logit_scale",), SCALAR), Rule("logit_bias", ("logit_bias",), SCALAR)]
    trunk, pool = "visual.trunk", "visual.trunk.attn_pool"
    rules += [
        *same(f"{trunk}.patch_embed.proj", "image.patch_embedding"),
        Rule(f"{trunk}.pos_embed", ("image.positional_embedding",), LEADING),
        *same(f"{trunk}.norm", "image.ln_post"),
        Rule(f"{pool}.latent", ("image.pool.probe",), LEADING_TWO),
        *same(f"{pool}.q", "image.pool.q"), *same(f"{pool}.proj", "image.pool.out"), *same(f"{pool}.norm", "image.pool.norm"),
        *same(f"{pool}.mlp.fc1", "image.pool.mlp_in"), *same(f"{pool}.mlp.fc2", "image.pool.mlp_out"),
    ]  # fmt: skip
    for leaf in ("weight", "bias"):
        rules.append(Rule(f"{pool}.kv.{leaf}", (f"image.pool.k.{leaf}", f"image.pool.v.{leaf}"), STACKED))
    names = [
        ("norm1", "ln_1"), ("norm2", "ln_2"), ("attn.proj", "attention.out"), ("mlp.fc1", "mlp_in"), ("mlp.fc2", "mlp_out"),
    ]  # fmt: skip
    for layer in range(vision.layers):
        theirs, ours = f"{trunk}.blocks.{layer}", f"image.layers.{layer}"
        rules += [rule for their, our in names for rule in same(f"{theirs}.{their}", f"{ours}.{our}")]
        for leaf in ("weight", "bias"):
            parts = tuple(f"{ours}.attention.{letter}.{leaf}" for letter in "qkv")
            rules.append(Rule(f"{theirs}.attn.qkv.{leaf}", parts, STACKED))
    # Its text tower has CLIP's names under "text."; only the image tower is timm's.
    stand_in = dataclasses.replace(config, vision=VitConfig(224, 32, 0, 1, width=64), logit_bias=None)
    text = clip_rules(stand_in, NamingScheme(text="text."))
    return rules + [rule for rule in text if rule.theirs.startswith("text.")]
