"""The part of the conformance suite about the layout of texts: the kernel for sequences of unequal length, where there is one.

The very plan and call of the text tower, forward and backward, in the half types, against float64 on the CPU. That a device
computes its own form of texts in a step is checked by ``training``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from diptych.conformance.checks import HALF_LIMIT, Check, NotClaimed, compare, expect
from diptych.devices import PRECISIONS, Device
from diptych.models import VarlenCausal
from diptych.text import plan_packed

CONTEXT, HEADS, HEAD_WIDTH = 77, 2, 64
LENGTHS = (5, 77, 1, 14, 14, 2, 33)


def text_checks() -> Iterator[Check]:
    """A check of each half type."""
    for name in HALF_LIMIT:
        yield Check("texts", f"unequal lengths in one kernel, {name}", partial(unequal_lengths, precision=name))


def unequal_lengths(device: Device, precision: str) -> str:
    """Attention of packed texts, causal, and of their last tokens alone: results and gradients, the filling's among them."""
    if not device.abilities.varlen_attention:
        raise NotClaimed("the device does not claim such a kernel: texts are padded to a few lengths")
    if not device.computes_in(PRECISIONS[precision]):
        raise NotClaimed(f"the device does not claim {precision}")
    expected = _computed(torch.device("cpu"), torch.float64)
    actual = _computed(device.torch_device, PRECISIONS[precision])
    errors = []
    for name, result in actual.items():
        expect(bool(torch.isfinite(result).all()), f"{name}: not finite")
        errors.append(compare(result, expected[name], HALF_LIMIT[precision], name))
    return f"error {max(errors):.0e} of {len(LENGTHS)} texts, {sum(LENGTHS)} tokens"


def _computed(on: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    plan = plan_packed(torch.tensor(LENGTHS), CONTEXT, CONTEXT)
    packed = VarlenCausal(tree_map_only(Tensor, lambda item: item.to(on), plan))
    source = torch.Generator().manual_seed(21)
    shape = (len(plan.gather), HEADS * HEAD_WIDTH)
    inputs = [torch.randn(shape, generator=source).to(on, dtype).requires_grad_() for _ in range(3)]
    query, key, value = inputs
    results = {
        "all tokens": packed.attend(query, key, value, HEADS),
        "last tokens": packed.attend_pooled(packed.pooled(query), key, value, HEADS),
    }
    for name, result in list(results.items()):
        weights = torch.linspace(-1.0, 2.0, result.numel(), dtype=torch.float64).view(result.shape).to(on, dtype)
        gradients = torch.autograd.grad(result, inputs, weights, retain_graph=True)
        results.update({f"{name}, gradient {number}": item for number, item in enumerate(gradients)})
    return {name: item.detach() for name, item in results.items()}
