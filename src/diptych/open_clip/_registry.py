"""Architectures by name, as open_clip's configs: Diptych's presets, JSON files that a program adds, folders and repositories.

A name may have a schema: ``hf-hub:OWNER/NAME`` or ``local-dir:FOLDER``.
"""

from __future__ import annotations

import json
import re
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from diptych.models import list_models as presets
from diptych.models import model_config
from diptych.open_clip._absent import INSTEAD
from diptych.open_clip._errors import InvalidError, MissingError, ModelError
from diptych.open_clip.constants import HF_CONFIG_NAME
from diptych.open_clip.pretrained import download_pretrained_from_hf
from diptych.registry import did_you_mean
from diptych.weights import open_clip_config

HF_HUB_PREFIX = "hf-hub:"
LOCAL_DIR_PREFIX = "local-dir:"
PARTS = ("embed_dim", "vision_cfg", "text_cfg")
DEFAULTS = {
    "": {"quick_gelu": False, "init_logit_scale": model_config("ViT-B-32").logit_scale},
    "vision_cfg": {"head_width": 64, "mlp_ratio": 4.0},
    "text_cfg": {"mlp_ratio": 4.0},
}
# open_clip's names of architectures that are not here, by how they begin or what they contain.
ABSENT = (
    (r"^coca_", "CoCa"),
    (r"siglip", "TimmModel"),
    (r"^(convnext|swin|vit_|eva|mobileclip|pe-|vitamin)", "TimmModel"),
    (r"^(roberta|xlm-roberta|mt5|nllb)", "HFTextEncoder"),
)
_added: dict[str, dict[str, Any]] = {}


@cache
def _of_presets() -> dict[str, dict[str, Any]]:
    """The presets that open_clip's config can say, without values that are its defaults."""
    configs = {name: model_config(name) for name in presets()}
    # SigLIP's image tower is timm's in open_clip, and no projection of its CLIP has a bias, as DeCLIP's has.
    expressible = [
        name for name, item in configs.items() if item.vision.family != "siglip" and not item.text.projection_bias
    ]
    return {name: open_clip_values(name) for name in expressible} | _worldwide()


def _worldwide() -> dict[str, dict[str, Any]]:
    """The multilingual models (Chuang et al. 2025, "Meta CLIP 2"): known image towers, other tokenizers, pooled at "eos".

    Diptych's own library has no such text tower; here the full form runs it.
    """
    xlm = {"hf_tokenizer_name": "facebook/xlm-v-base", "pool_type": "eos", "eos_id": 2, "vocab_size": 901629}
    mt5 = {"hf_tokenizer_name": "google/mt5-base", "pool_type": "eos", "eos_id": 1, "vocab_size": 250100}
    mt5 = {**mt5, "tokenizer_kwargs": {"clean": "canonicalize"}}
    sources = {"ViT-L-14": ("", mt5), "ViT-H-14": ("-378", xlm), "ViT-bigG-14": ("-378", xlm)}
    configs: dict[str, dict[str, Any]] = {}
    for name, (larger, tokens) in sources.items():
        values = open_clip_values(name)
        values["text_cfg"] |= tokens
        configs[f"{name}-worldwide"] = values
        if name != "ViT-bigG-14":
            configs[f"{name}-worldwide-quickgelu"] = {**values, "quick_gelu": True}
        if larger:
            configs[f"{name}-worldwide{larger}"] = {**values, "vision_cfg": values["vision_cfg"] | {"image_size": 378}}
    return configs


def open_clip_values(name: str) -> dict[str, Any]:
    """A preset as open_clip's config, without values that are its defaults."""
    values: dict[str, Any] = dict(open_clip_config(model_config(name))[0])
    for part, defaults in DEFAULTS.items():
        table = values[part] if part else values
        for key, default in defaults.items():
            if table.get(key) == default:
                del table[key]
    for part in ("vision_cfg", "text_cfg"):
        values[part] = values.pop(part)  # last, as in open_clip's files
    if isinstance(values["vision_cfg"]["layers"], list):
        values["vision_cfg"]["patch_size"] = None  # a ResNet has none
    return values


def _natural(name: str) -> list[tuple[int, str]]:
    """So that 4 stands before 16, and case does not matter."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name.lower())]


def list_models() -> list[str]:
    """The names of all architectures, numbers in their order."""
    return sorted({**_of_presets(), **_added}, key=_natural)


def add_model_config(path: str | Path) -> None:
    """Add the JSON config ``path``, or all of a folder, under the names of the files.

    Raises MissingError where there is none, InvalidError for a file that is no JSON; a JSON file without the three parts of a
    config is passed over in a folder, as in open_clip, and InvalidError alone.
    """
    path = Path(path)
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not path.exists() or not files:
        raise MissingError(f"{path}: no config of a model is there; expected a .json file, or a folder of them.")
    for file in files:
        values = _read(file)
        if all(part in values for part in PARTS):
            _added[file.stem] = values
        elif not path.is_dir():
            raise InvalidError(f"{file}: no config of a model; expected the keys {', '.join(PARTS)}.")


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MissingError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except ValueError as error:
        raise InvalidError(f"{path}: no JSON ({' '.join(str(error).split())}).") from error
    if not isinstance(values, dict):
        raise InvalidError(f"{path}: holds {type(values).__name__}; expected an object.")
    return values


def parse_model_name(model_name: str) -> tuple[str | None, str]:
    """Schema ("hf-hub", "local-dir" or None) and the rest. Raises InvalidError where nothing follows the schema."""
    for prefix in (LOCAL_DIR_PREFIX, HF_HUB_PREFIX):
        if model_name.startswith(prefix):
            if model_name == prefix:
                raise InvalidError(
                    f"{model_name!r} was given; expected a {'folder' if 'dir' in prefix else 'repository'} after it."
                )
            return prefix[:-1], model_name.removeprefix(prefix)
    return None, model_name


def config_file(model_name: str, cache_dir: str | None = None) -> dict[str, Any]:
    """``open_clip_config.json`` of a folder or repository. Raises MissingError, InvalidError."""
    schema, identifier = parse_model_name(model_name)
    if schema == "local-dir":
        folder = Path(identifier).expanduser()
        if not folder.is_dir():
            raise MissingError(f"{model_name}: there is no such folder.")
        return _read(folder / HF_CONFIG_NAME)
    return _read(Path(download_pretrained_from_hf(identifier, filename=HF_CONFIG_NAME, cache_dir=cache_dir)))


def get_model_config(model_name: str) -> dict[str, Any] | None:
    """The config of an architecture; None for an unknown name. A copy: changing it changes nothing else."""
    schema, identifier = parse_model_name(model_name)
    if schema is not None:
        values = config_file(model_name)
        return values.get("model_cfg", values)  # type: ignore[no-any-return]
    known = _added.get(identifier) or _of_presets().get(identifier)
    return None if known is None else deepcopy(known)


def unknown_model(name: str) -> ModelError:
    """The error for a name without config: what it is in open_clip, if that is not here, or the nearest name."""
    for pattern, what in ABSENT:
        if re.search(pattern, name, re.IGNORECASE):
            return ModelError(f"{name} was asked for: {INSTEAD[what]}.")
    return ModelError(did_you_mean(name, list_models(), "model"))
