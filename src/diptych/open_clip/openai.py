"""OpenAI's own weights by their names, with the architecture that their shapes say; always QuickGELU.

A TorchScript archive is read as data and never run.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from diptych.devices import get_device
from diptych.open_clip._errors import ModelError
from diptych.open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from diptych.open_clip.model import build_model_from_openai_state_dict, convert_weights_to_lp, get_cast_dtype
from diptych.open_clip.pretrained import (
    download_pretrained_from_url,
    get_pretrained_url,
    list_pretrained_models_by_tag,
)
from diptych.registry import did_you_mean
from diptych.weights import open_clip_state

__all__ = ["list_openai_models", "load_openai_model"]


def list_openai_models() -> list[str]:
    """The architectures that OpenAI published weights of."""
    return list_pretrained_models_by_tag("openai")


def load_openai_model(
    name: str,
    precision: str | None = None,
    device: str | torch.device | None = None,
    cache_dir: str | None = None,
) -> nn.Module:
    """A model in evaluation mode, from a name of ``list_openai_models`` (fetched) or a path.

    ``device`` None takes the accelerator that there is, else the CPU; ``precision`` None is "fp32" on the CPU and "fp16"
    elsewhere. Raises ModelError for an unknown name, WeightsError for a file that is no CLIP.
    """
    target = get_device("auto" if device is None else device)
    wanted = precision or ("fp32" if target.torch_device.type == "cpu" else "fp16")
    if wanted not in ("fp32", "fp16", "bf16", "amp", "amp_bf16"):
        raise ModelError(did_you_mean(wanted, ("fp32", "fp16", "bf16", "amp", "amp_bf16"), "precision"))
    url = get_pretrained_url(name, "openai")
    if url:
        path = Path(download_pretrained_from_url(url, cache_dir=cache_dir))
    elif Path(name).expanduser().is_file():
        path = Path(name).expanduser()
    else:
        raise ModelError(
            f"there is no such file, and {did_you_mean(str(name), list_openai_models(), 'model of OpenAI')}"
        )
    state = dict(open_clip_state(path).tensors)
    model = build_model_from_openai_state_dict(state, cast_dtype=get_cast_dtype(wanted) or torch.float32)
    model.to(target.torch_device)
    if wanted != "fp16":
        # Once more from the file: in fp32 it may hold more than the half precision that this model was built in.
        model.float().load_state_dict(state)
        if wanted == "bf16":
            convert_weights_to_lp(model, dtype=torch.bfloat16)
    model.visual.image_mean, model.visual.image_std = OPENAI_DATASET_MEAN, OPENAI_DATASET_STD  # type: ignore[assignment]
    return model
