"""Tensors that are no model that can be run as it stands: adapters, quantized weights, one shard; each with a way on."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from diptych.errors import WeightsError
from diptych.tensorfiles.read import Stored

ADAPTER = re.compile(r"\.(lora_[ABE]|lora_embedding_[AB]|lora_magnitude_vector|hada_w\d_[ab]|base_layer|ia3_l)(\.|$)")
QUANTIZED = re.compile(r"\.(SCB|CB|qweight|qzeros|absmax|quant_map|weight_format|weight_scale|_data|_scale)$")
SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.")
PACKED = (torch.int8, torch.uint8)
ADAPTER_CONFIG, MERGE = "adapter_config.json", "merge_and_unload"


def adapter_line(where: object, base: str = "") -> str:
    """What to do with an adapter."""
    over = f" of {base}" if base else ""
    return (
        f"{where}: a LoRA adapter{over} (peft), not a whole model; merge it into its base with peft "
        f"(PeftModel.from_pretrained(base, adapter).{MERGE}().save_pretrained(FOLDER)) and give that FOLDER."
    )


def refuse_what_is_no_model(stored: Stored) -> None:
    """Raise WeightsError for adapters, quantized weights, and a single shard."""
    names, where = stored.tensors, stored.path
    if any(ADAPTER.search(name) for name in names):
        raise WeightsError(adapter_line(where))
    packed = [name for name in names if QUANTIZED.search(name)] or _packed(names)
    if packed:
        raise WeightsError(
            f"{where}: quantized weights ({packed[0]}), which Diptych does not run; save the model in fp16 or fp32 before it is "
            "quantized (or dequantize it) and give that."
        )
    if match := SHARD.search(where.name):
        raise WeightsError(
            f"{where}: shard {int(match.group(1))} of {int(match.group(2))}; give the folder, with all of them and their "
            "index (.index.json)."
        )


def _packed(tensors: Mapping[str, Tensor]) -> list[str]:
    """Matrices of 8-bit integers, which are packed weights."""
    return [name for name, item in tensors.items() if item.ndim > 1 and item.dtype in PACKED]


def refuse_non_finite(tensors: Mapping[str, Tensor], where: object, allowed: Iterable[str]) -> None:
    """Raise WeightsError when a tensor of floating-point numbers holds NaN or an infinity, unless a pattern allows it."""
    patterns: Collection[str] = tuple(allowed)
    bad = [
        name
        for name, item in tensors.items()
        if item.is_floating_point()
        and not _finite(item)
        and not any(fnmatchcase(name, pattern) for pattern in patterns)
    ]
    if bad:
        raise WeightsError(
            f"{where}: {len(bad)} of {len(tensors)} tensors hold NaN or infinities ({', '.join(bad[:4])}): the run that wrote it "
            "had diverged; take an earlier checkpoint."
        )


def _finite(tensor: Tensor) -> bool:
    if not tensor.numel():
        return True
    # A sum is the fastest operation that NaN and infinities survive; one that overflowed says nothing yet. A thread beside
    # building the model gains nothing: the time goes into touching the pages of the file. 8-bit numbers have no operations.
    total = tensor.float().sum() if tensor.dtype.itemsize == 1 else tensor.sum(dtype=_SUMS.get(tensor.dtype))
    if torch.isfinite(total):
        return True
    least, most = torch.aminmax(tensor.float() if tensor.dtype.itemsize == 1 else tensor)
    return bool(torch.isfinite(least) and torch.isfinite(most))


_SUMS = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
