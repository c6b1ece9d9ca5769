"""A LoRA adapter of peft over the base that its ``adapter_config.json`` names, merged when it is read.

Only plain LoRA is merged: W + (alpha / r) B A for every matrix that it names. Whatever else an adapter may hold (DoRA, biases,
saved modules, ranks by pattern) is an error that says how peft merges it; so is a base that is not on this machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from diptych.errors import WeightsError
from diptych.weights._config_table import ConfigTable, read_json
from diptych.weights._refused import ADAPTER_CONFIG, adapter_line

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
PREFIX, DOWN, UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
OTHER_KINDS = (
    "use_dora",
    "modules_to_save",
    "fan_in_fan_out",
    "rank_pattern",
    "alpha_pattern",
    "use_qalora",
    "lora_bias",
)


def is_adapter(path: Path) -> bool:
    """Whether a file is an adapter's, with its config beside it."""
    return path.name in WEIGHTS and (path.parent / ADAPTER_CONFIG).is_file()


def adapter_of(folder: Path) -> Path:
    """The adapter's weights in a folder. Raises WeightsError when its base is not on this machine, or it is not there."""
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise WeightsError(adapter_line(folder, base_name(folder)))
    base_of(path)
    return path


def base_name(folder: Path) -> str:
    """The base that an adapter's config names; "" for none."""
    name = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    return name if isinstance(name, str) else ""


def base_of(path: Path) -> Path:
    """The base of an adapter's file, as a path. Raises WeightsError when it is not on this machine."""
    name = base_name(path.parent)
    for base in (Path(name).expanduser(), path.parent / name):
        if name and base.exists() and base.resolve() != path.parent.resolve():
            return base
    raise WeightsError(adapter_line(path.parent, name))


def merged(path: Path, adapter: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The base's tensors with the adapter at ``path`` added. Raises WeightsError unless it is plain LoRA of this base."""
    scale, result = _scale(path), dict(base)
    pairs = {name.removesuffix(DOWN) for name in adapter if name.endswith(DOWN)}
    rest = [name for name in adapter if not name.endswith((DOWN, UP)) or name.rpartition(".lora_")[0] not in pairs]
    for module in sorted(pairs):
        target = f"{module.removeprefix(PREFIX)}.weight"
        down, up = adapter[module + DOWN], adapter.get(module + UP)
        matrix = base.get(target)
        fits = up is not None and matrix is not None and matrix.shape == (up.shape[0], down.shape[-1])
        if up is None or matrix is None or not fits or up.shape[-1] != down.shape[0]:
            rest.append(module + DOWN)
            continue
        result[target] = (matrix.float() + scale * (up.float() @ down.float())).to(matrix.dtype)
    if rest or not pairs:
        raise WeightsError(
            f"{adapter_line(path.parent, base_name(path.parent))} It has more than plain LoRA: {rest[:4]}."
        )
    return result


def _scale(path: Path) -> float:
    values = read_json(path.parent / ADAPTER_CONFIG)
    others = [key for key in OTHER_KINDS if values.get(key)]
    if values.get("peft_type") != "LORA" or others or values.get("bias", "none") != "none":
        what = ", ".join(others) or f"peft_type {values.get('peft_type')!r}, bias {values.get('bias')!r}"
        raise WeightsError(f"{adapter_line(path.parent, base_name(path.parent))} It is not plain LoRA ({what}).")
    table = ConfigTable(values)
    try:
        rank, alpha = table.integer("r"), table.number("lora_alpha")
        return alpha / (math.sqrt(rank) if table.flag("use_rslora") else rank)
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise WeightsError(f"{path.parent / ADAPTER_CONFIG}: not a LoRA's config ({error}).") from error
