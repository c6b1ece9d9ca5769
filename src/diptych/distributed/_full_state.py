"""Whole tensors out of possibly sharded ones, and back: what checkpoints hold does not depend on the layout.

A sharded parameter is a DTensor (FSDP2, tensor parallel); any other tensor is whole already. State of optimizers is kept by
parameter name. Functions of tensors; files are written elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diptych.errors import ConfigError


def is_sharded(tensor: object) -> bool:
    """Whether a tensor is a DTensor, of which this process holds a part."""
    return hasattr(tensor, "full_tensor")  # DTensor; importing its module costs half a second where nothing is sharded


def full(tensor: Tensor) -> Tensor:
    """The whole tensor; a collective where it is sharded."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined, no-any-return]


def like(value: Tensor, target: Tensor) -> Tensor:
    """A whole tensor laid out like ``target``; every rank gives the same value."""
    if not is_sharded(target):
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = target.device_mesh, target.placements  # type: ignore[attr-defined]
    return distribute_tensor(value.to(target.device), mesh, placements, src_data_rank=None)


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm over all gradients, a plain scalar; zero without any. A collective where they are sharded."""
    if not gradients:
        return torch.zeros(())
    # By the processes that hold other parts. DTensor's own norm reduces over two of them in an order of which torch warns.
    kinds: dict[Any, list[Tensor]] = {}
    for gradient in gradients:
        kinds.setdefault(_divided(gradient), []).append(gradient)
    parts = [_norm_of(kind, *divided) for divided, kind in kinds.items()]
    return parts[0] if len(parts) == 1 else torch.linalg.vector_norm(torch.stack(parts))


def _divided(tensor: Any) -> tuple[Any, tuple[int, ...]]:
    """The mesh that a tensor lies on, and the dimensions of it that divide the tensor; None and none where it is whole."""
    if not is_sharded(tensor):
        return None, ()
    return tensor.device_mesh, tuple(number for number, item in enumerate(tensor.placements) if not item.is_replicate())


def _norm_of(gradients: Sequence[Any], mesh: Any, dimensions: Sequence[int]) -> Tensor:
    own = torch.nn.utils.get_total_norm([item.to_local() if is_sharded(item) else item for item in gradients])
    if mesh is None:
        return own
    from torch.distributed import _functional_collectives as collectives

    square = own.square()
    for number in dimensions:
        square = collectives.all_reduce(square, "sum", mesh.get_group(number))
    return square.sqrt()


def optimizer_state(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> dict[str, Any]:
    """``{"state": {parameter: {...}}, "groups": [{"parameters": [...], ...}]}``, every tensor whole."""
    state = {
        names[id(parameter)]: {key: full(value) if isinstance(value, Tensor) else value for key, value in own.items()}
        for parameter, own in optimizer.state.items()
    }
    groups = [
        {
            "parameters": [names[id(parameter)] for parameter in group["params"]],
            **{key: value for key, value in group.items() if key != "params"},
        }
        for group in optimizer.param_groups
    ]
    return {"state": state, "groups": groups}


def load_optimizer_state(optimizer: torch.optim.Optimizer, names: Mapping[int, str], state: Mapping[str, Any]) -> None:
    """Give the optimizer the state that ``optimizer_state`` made. Raises ConfigError when it is of other parameters."""
    own = [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
    saved = [group["parameters"] for group in state["groups"]]
    if {name for group in own for name in group} != {name for group in saved for name in group}:
        changed = sorted({name for group in own for name in group} ^ {name for group in saved for name in group})
        raise ConfigError(
            f"--resume: other parameters are trained than in the checkpoint ({changed[0]} and {len(changed) - 1} more); "
            "resume with the same locks, or start from its weights with --pretrained."
        )
    for group in optimizer.param_groups:
        on_device = bool(group.get("fused") or group.get("capturable"))
        for parameter in group["params"]:
            values = state["state"].get(names[id(parameter)], {})
            optimizer.state[parameter] = {
                key: restored(key, value, parameter, on_device) for key, value in values.items()
            }


def restored(key: str, value: Any, parameter: Tensor, on_device: bool) -> Any:
    """A value of an optimizer's state for its parameter; the count of steps is on the device for fused implementations only."""
    if not isinstance(value, Tensor):
        return value
    if key == "step":
        return value.to(parameter.device, copy=True) if on_device else value.cpu().clone()
    return like(value.to(parameter.device), parameter).clone()


def digest(state: Mapping[str, Tensor]) -> str:
    """A hash of names, types, shapes and bytes of tensors, 40 hex digits."""
    result = hashlib.sha256()
    for name, value in sorted(state.items()):
        result.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        result.update(full(value).detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return result.hexdigest()[:40]
