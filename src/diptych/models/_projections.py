"""Several linear layers of one input as one product, where that is what a device does best: an attention's q, k and v.

An accelerator starts a kernel for every product, and adds up the gradients of the shared input; joined, three products are one,
and nothing is added. The weights stay those of the layers, which adapters, tensor parallelism and checkpoints know by name:
they are put together when they are used, forward and backward, and not held. Equal to the layers one by one, to rounding. In
main memory, where products are large against their start, layers run one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as module_internals
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from diptych.models._cpu_attention import in_main_memory
from diptych.models._observed import GLOBAL_HOOKS, HOOKS, traced


class Linear(nn.Linear):
    """Without torch's own initial values: ``init_weights`` draws them, and loading has no use for any."""

    def reset_parameters(self) -> None:
        """Nothing: memory is filled by ``init_weights`` or by weights."""


def projected(x: Tensor, layers: Sequence[nn.Module]) -> Sequence[Tensor]:
    """What each layer gives of ``x`` [..., width]; on an accelerator by one product where all are plain ``Linear``."""
    if traced(x) or in_main_memory(x) or not _plain(layers):
        return [layer(x) for layer in layers]
    kind, dtype = x.device.type, layers[0].weight.dtype
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:  # which autocast leaves as it is
        x = x.to(torch.get_autocast_dtype(kind))
    elif x.dtype != dtype:
        return [layer(x) for layer in layers]  # which say that they do not fit
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
    return _Joined.apply(x, len(layers), *weights, *biases)  # type: ignore[no-any-return]


def _plain(layers: Sequence[nn.Module]) -> bool:
    """Whether nobody could notice that the layers are not called: their own type, with a bias, and no hook."""
    if any(getattr(module_internals, name, None) for name in GLOBAL_HOOKS):
        return False
    return all(
        type(layer) is Linear
        and layer.bias is not None
        and "forward" not in layer.__dict__
        and not any(layer.__dict__.get(name) for name in HOOKS)
        and not is_traceable_wrapper_subclass(
            layer.weight
        )  # quantized, or of several processes: it knows its own product
        and layer.weight.dtype == layers[0].weight.dtype
        for layer in layers
    )


class _Joined(torch.autograd.Function):
    """Views [..., own width] of one product; every step is differentiable again."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        x, count, *parameters = inputs
        weights, biases = parameters[:count], parameters[count:]
        ctx.save_for_backward(x, *weights)
        ctx.bias_type = biases[0].dtype
        product = F.linear(x, torch.cat(weights).to(x.dtype), torch.cat(biases).to(x.dtype))
        return product.split([len(weight) for weight in weights], dim=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        count, sizes = len(weights), [len(weight) for weight in weights]
        gradient = torch.cat(gradients, dim=-1)
        rows = gradient.flatten(0, -2)
        needs = ctx.needs_input_grad
        own = None
        if needs[0]:
            own = torch.matmul(gradient, torch.cat(weights).to(gradient.dtype))
        of_weights: Sequence[Tensor | None] = [None] * count
        of_biases: Sequence[Tensor | None] = [None] * count
        if any(needs[2 : 2 + count]):
            of_weights = torch.mm(rows.t(), x.flatten(0, -2)).to(weights[0].dtype).split(sizes)
        if any(needs[2 + count :]):
            of_biases = rows.sum(0).to(ctx.bias_type).split(sizes)
        return (own, None, *of_weights, *of_biases)
