"""open_clip's ``utils`` under its name: tuples, chosen layers, frozen batch norm, replaced linears.

Here because programs import it. New code of Diptych does not belong here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _repeated(count: int, value: Any) -> Any:
    return value if isinstance(value, Iterable) else tuple(repeat(value, count))


def to_1tuple(x: Any) -> Any:
    """``(x,)``; an iterable stays as it is."""
    return _repeated(1, x)


def to_2tuple(x: Any) -> Any:
    """``(x, x)``; an iterable stays as it is."""
    return _repeated(2, x)


def to_3tuple(x: Any) -> Any:
    """``(x, x, x)``; an iterable stays as it is."""
    return _repeated(3, x)


def to_4tuple(x: Any) -> Any:
    """``(x, x, x, x)``; an iterable stays as it is."""
    return _repeated(4, x)


def to_ntuple(n: int, x: Any) -> Any:
    """``x`` repeated ``n`` times; an iterable stays as it is."""
    return _repeated(n, x)


def feature_take_indices(
    num_features: int, indices: int | list[int] | None = None, as_set: bool = False
) -> tuple[Any, int]:
    """The numbers of the chosen ones of ``num_features`` layers, and the largest of them.

    ``indices`` None: all; an int: the last so many; a list: those, negative ones from the end. Raises AssertionError outside of
    the range, as in open_clip.
    """
    wanted = num_features if indices is None else indices
    if isinstance(wanted, int):
        assert 0 < wanted <= num_features, f"the last {wanted} layers were asked for; there are {num_features}."
        wanted = list(range(num_features - wanted, num_features))
    chosen = [index + num_features if index < 0 else index for index in wanted]
    for index in chosen:
        assert 0 <= index < num_features, f"layer {index} was asked for; there are {num_features}."
    return (set(chosen) if as_set else chosen), max(chosen)


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics and parameters are buffers: a fixed factor and offset for each channel."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features, self.eps, self.affine = num_features, eps, True
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((num_features,), value))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)  # of the batch norm that it was
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


def freeze_batch_norm_2d(module: nn.Module, module_match: dict[str, Any] = {}, name: str = "") -> nn.Module:  # noqa: B006
    """Replace each batch norm inside of ``module`` by a frozen one, or give that for ``module`` itself.

    ``module_match`` holds the dotted names to replace; empty: all.
    """
    if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm) and (not module_match or name in module_match):
        return _frozen(module)
    for child_name, child in list(module.named_children()):
        replaced = freeze_batch_norm_2d(child, module_match, f"{name}.{child_name}" if name else child_name)
        if replaced is not child:
            module.add_module(child_name, replaced)
    return module


def _frozen(norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> FrozenBatchNorm2d:
    frozen = FrozenBatchNorm2d(norm.num_features, norm.eps)
    frozen.affine = norm.affine
    names = ["running_mean", "running_var", *(["weight", "bias"] if norm.affine else [])]
    for name in names:
        setattr(frozen, name, getattr(norm, name).detach().clone())
    return frozen


def replace_linear(
    model: nn.Module,
    linear_replacement: Callable[[int, int, bool], nn.Module],
    include_modules: list[str] = ["c_fc", "c_proj"],  # noqa: B006
    copy_weights: bool = True,
) -> nn.Module:
    """Replace the linears named in ``include_modules`` by ``linear_replacement(in, out, bias)``, with their weights."""
    for name, module in list(model.named_children()):
        if isinstance(module, nn.Linear) and name in include_modules:
            new: Any = linear_replacement(module.in_features, module.out_features, module.bias is not None)
            if copy_weights:
                new.weight.data.copy_(module.weight.data)
                if new.bias is not None:
                    new.bias.data.copy_(module.bias.data)
            model.add_module(name, new)
        else:
            replace_linear(module, linear_replacement, include_modules, copy_weights)
    return model


def convert_int8_model_to_inference_mode(model: nn.Module) -> None:
    """Prepare int8 linears (bitsandbytes) for inference, and remember the dtype that their inputs should have."""
    for module in model.modules():
        if hasattr(module, "prepare_for_eval"):
            before = module.weight.dtype
            module.prepare_for_eval()  # type: ignore[operator]
            module.int8_original_dtype = before  # type: ignore[assignment]
