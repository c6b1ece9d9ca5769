"""From named tensors to a model whose parameters they are, without a copy.

The model is built without memory and the (mapped) tensors become its parameters, so loading costs what is read. What a loss
needs and the weights lack, a bias or a scale, is initialized here, with a line in the log.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from diptych import log
from diptych.errors import WeightsError
from diptych.models import ModelConfig, ModelNeeds, TwoTower, create_model
from diptych.weights._rename import listed

# Preprocessing is part of the description, whatever tensors a file holds under these names.
BUFFERS = ("image.mean", "image.std")
SCALARS = ("logit_bias", "logit_scale")
TOKEN_TABLE = "text.token_embedding.weight"


def is_counter(name: str) -> bool:
    """Whether a tensor is a counter of batch norm, which some files leave out and nothing depends on."""
    return name.endswith("num_batches_tracked")


def needed_values(needs: ModelNeeds | None) -> dict[str, float]:
    """The initial values that a loss gives, by the name of the parameter."""
    values = {} if needs is None else {"logit_bias": needs.logit_bias, "logit_scale": needs.logit_scale}
    return {name: value for name, value in values.items() if value is not None}


def with_needs(
    tensors: dict[str, Tensor], config: ModelConfig, needs: ModelNeeds | None, where: str
) -> tuple[dict[str, Tensor], ModelConfig]:
    """The tensors and config with a bias and scale of the needed values where the weights have none.

    Values of the weights win over the needed ones: weights continue as they were trained.
    """
    if needs is None:
        return tensors, config
    absent = {name: value for name, value in needed_values(needs).items() if name not in tensors}
    if absent:
        log.info(f"{where}: has no {' and no '.join(absent)}; initialized as the loss needs: {_listed_values(absent)}.")
    elif needs.logit_bias is None and "logit_bias" in tensors:
        value = tensors["logit_bias"].item()
        log.info(f"{where}: has a logit_bias ({value:.4g}), which stays, though the loss needs none.")
    dtype = floating_dtype(tensors)
    fresh = {name: torch.full((1,), value, dtype=dtype) for name, value in absent.items()}
    if needs.mask_token and config.text.lacks_mask:
        log.info(f"{where}: has no mask token; one more row of the token embedding is initialized at random.")
        table = tensors[TOKEN_TABLE]
        fresh[TOKEN_TABLE] = torch.cat([table, torch.randn(1, table.shape[1]).mul_(0.02).to(table.dtype)])
    asked = ModelNeeds(absent.get("logit_bias"), absent.get("logit_scale"), needs.mask_token)
    return {**tensors, **fresh}, config.with_needs(asked)


def with_zeros(tensors: dict[str, Tensor], names: Iterable[str], config: ModelConfig, where: str) -> dict[str, Tensor]:
    """The tensors with zeros for those of ``names`` that the config has and the weights lack; says so in the log."""
    expected = create_model(config, device="meta").state_dict()
    absent = [name for name in names if name in expected and name not in tensors]
    if absent:
        log.info(f"{where}: has no {' and no '.join(absent)}; set to 0, which changes no ranking.")
    zeros = {name: torch.zeros(expected[name].shape, dtype=floating_dtype(tensors)) for name in absent}
    return {**tensors, **zeros}


def floating_dtype(tensors: dict[str, Tensor]) -> torch.dtype:
    """The dtype of the first tensor of floating-point numbers; fp32 when there is none."""
    return next((tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()), torch.float32)


def pixel_statistics(config: ModelConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and std of the pixels, [3, 1, 1], for weights of ``dtype``: in fp32 at least, since bf16 would shift the pixels."""
    exact = torch.promote_types(dtype, torch.float32)
    preprocess = config.preprocess
    return (
        torch.tensor(preprocess.mean, dtype=exact).view(3, 1, 1),
        torch.tensor(preprocess.std, dtype=exact).view(3, 1, 1),
    )


def assemble(tensors: dict[str, Tensor], config: ModelConfig, where: str) -> TwoTower:
    """A model whose parameters are these tensors. Names that were allowed to be missing get initial values.

    Raises WeightsError for a tensor of another shape, or of integers.
    """
    model = create_model(config, device="meta")
    expected = model.state_dict()
    state = {name: tensor for name, tensor in tensors.items() if name in expected and name not in BUFFERS}
    _check_tensors(state, expected, config, where)
    absent = [name for name in expected if name not in state and name not in BUFFERS and not is_counter(name)]
    if absent:
        log.info(f"{where}: initialized from scratch, as allowed: {listed(absent)}.")
        initial = create_model(config).state_dict()
        state.update({name: initial[name] for name in absent})
    mean, std = pixel_statistics(config, floating_dtype(state))
    state |= {"image.mean": mean, "image.std": std}
    counters = [name for name in expected if is_counter(name) and name not in state]
    state.update({name: torch.zeros((), dtype=torch.int64) for name in counters})
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(True)


def _check_tensors(state: dict[str, Tensor], expected: dict[str, Tensor], config: ModelConfig, where: str) -> None:
    for name, tensor in state.items():
        if expected[name].shape != tensor.shape:
            raise WeightsError(
                f"{where}: {name} has shape {list(tensor.shape)}, expected {list(expected[name].shape)} for {config.name}."
            )
        if not tensor.is_floating_point() and expected[name].is_floating_point():
            raise WeightsError(f"{where}: {name} is {tensor.dtype}, expected floating-point numbers.")


def _listed_values(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())
