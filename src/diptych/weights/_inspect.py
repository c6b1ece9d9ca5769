"""What a weight file is, without building a model: format, architecture, activation, preprocessing, counts, digest.

Reads as safely as loading does. Judges nothing: a file that would be refused is still described as far as it goes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

from diptych.errors import WeightsError
from diptych.files import StrPath
from diptych.models import PreprocessConfig, list_models
from diptych.weights._base import Description
from diptych.weights._describe import describe
from diptych.weights._locate import locate
from diptych.weights._state_dict import read_model

NOTES = ("epoch", "name", "last_iter", "global_step")


def inspect_file(source: StrPath) -> dict[str, str | int | float]:
    """Facts about a file, a folder or a hub's name, in the order to show them. Raises WeightsError when it is no weight file."""
    location = locate(source)
    file = location.path
    choice = read_model(file, location.which)
    stored = choice.stored
    dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in stored.tensors.values())
    facts: dict[str, str | int | float] = {
        "file": str(file),
        "bytes": file.stat().st_size,
        "sha256": sha256(file),
        "container": stored.kind,
        "tensors": len(stored.tensors),
        "parameters": sum(tensor.numel() for tensor in stored.tensors.values() if tensor.is_floating_point()),
        "numbers": ", ".join(f"{count} x {dtype}" for dtype, count in dtypes.most_common()),
    }
    facts |= {key: value for key, value in stored.notes.items() if key in NOTES}
    facts |= {"prefix": choice.prefix} if choice.prefix else {}
    remarks = [*location.remarks, *choice.remarks]
    facts |= {"remark" if number == 1 else f"remark {number}": line for number, line in enumerate(remarks, 1)}
    try:
        checkpoint_format, description = describe(stored)
    except WeightsError as error:
        return facts | {"layout": "unknown", "why": error.line}
    return {
        **facts,
        "layout": checkpoint_format.summary if checkpoint_format else "Diptych",
        **_architecture(description),
    }


def _architecture(description: Description) -> dict[str, str | int | float]:
    config = description.config
    vision, text = config.vision, config.text
    return {
        "architecture": config.name if config.name in list_models() else f"{config.name} (its own, no preset)",
        "described by": description.origin,
        "image": f"{vision.family} {vision.image_size} px, width {vision.width}",
        "text": f"{text.family}, width {text.width}, {text.layers} layers, {text.context_length} tokens",
        "tokenizer": text.tokenizer,
        "embed_dim": config.embed_dim,
        "activation": config.activation if description.activation_known else "not said: gelu or quickgelu",
        "preprocess": _preprocess(config.preprocess) if description.preprocess_known else "not said",
    }


def _preprocess(preprocess: PreprocessConfig) -> str:
    mean, std = ("/".join(f"{value:.4g}" for value in values) for values in (preprocess.mean, preprocess.std))
    return f"mean {mean}, std {std}, {preprocess.interpolation}, {preprocess.resize_mode}"


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
