"""What a weight file is, without building a model: layout, architecture, activation, preprocessing, counts, digest.

Reads as safely as loading does. Judges nothing: a file that would be refused is still described as far as it goes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

from diptych.errors import WeightsError
from diptych.tensorfiles.read import read
from diptych.weights._open import described, file_in


def inspect(path: Path) -> dict[str, Any]:
    """Facts about a file or folder, in the order to show them. Raises WeightsError when it is no weight file at all."""
    file = file_in(path)
    stored = read(file)
    kinds = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in stored.tensors.values())
    facts: dict[str, Any] = {
        "file": str(file),
        "bytes": file.stat().st_size,
        "sha256": digest(file),
        "container": stored.kind,
        "tensors": len(stored.tensors),
        "parameters": sum(tensor.numel() for tensor in stored.tensors.values() if tensor.is_floating_point()),
        "numbers": ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common()),
    }
    facts |= {key: value for key, value in stored.notes.items() if key in ("epoch", "name", "last_iter", "global_step")}
    try:
        layout, found = described(stored)
    except WeightsError as error:
        return facts | {"layout": "unknown", "why": error.line}
    config, look = found.config, found.config.preprocess
    text = config.text
    return facts | {
        "layout": layout.about if layout else "Diptych",
        "architecture": config.name,
        "told by": found.told_by,
        "image": f"{config.vision.family} {config.vision.image_size} px, width {config.vision.width}",
        "text": f"{text.family}, width {text.width}, {text.layers} layers, {text.context_length} tokens",
        "tokenizer": config.text.tokenizer,
        "embed_dim": config.embed_dim,
        "activation": config.activation if found.activation_known else "not said: gelu or quickgelu",
        "preprocess": (
            f"mean {_numbers(look.mean)}, std {_numbers(look.std)}, {look.interpolation}, {look.resize_mode}"
            if found.preprocess_known
            else "not said"
        ),
    }


def _numbers(values: tuple[float, ...]) -> str:
    return "/".join(f"{value:.4g}" for value in values)


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
