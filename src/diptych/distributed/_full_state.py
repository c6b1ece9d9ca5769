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


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, as a plain one. Differentiable."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined, no-any-return]


def like(value: Tensor, target: Tensor) -> Tensor:
    """A whole tensor laid out like ``target``; every rank gives the same value."""
    if not is_sharded(target):
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = target.device_mesh, target.placements  # type: ignore[attr-defined]
    return distribute_tensor(value.to(target.device), mesh, placements, src_data_rank=None)


def laid_out(values: Mapping[str, Any], targets: Mapping[str, Tensor]) -> dict[str, Any]:
    """Values by name laid out like the targets of their names, on their devices; what has no target stays as it is.

    A value is a whole tensor, the same on every rank, or a ``StoredTensor``, of which each rank reads its part.
    """
    stored = {
        name: torch.empty_like(targets[name], dtype=value.dtype)
        for name, value in values.items()
        if is_stored(value) and name in targets
    }
    if stored:
        from diptych.distributed.stored_tensors import read_into

        read_into([(values[name], target) for name, target in stored.items()])
    return {
        name: stored[name]
        if name in stored
        else like(value.to(targets[name].device), targets[name])
        if name in targets
        else value
        for name, value in values.items()
    }


def is_stored(value: object) -> bool:
    """Whether a value of a checkpoint is a ``StoredTensor``, to be read yet."""
    return hasattr(value, "folder")


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
    own = torch.nn.utils.get_total_norm([_exact(local(item)) for item in gradients])
    if mesh is None:
        return own
    from torch.distributed import _functional_collectives as collectives

    square = own.square()
    for number in dimensions:
        square = collectives.all_reduce(square, "sum", mesh.get_group(number))
    return square.sqrt()


def _exact(gradient: Tensor) -> Tensor:
    """A gradient whose norm has as many digits as fp32 has: of one in half precision, its norm in fp32 in its place."""
    if gradient.dtype not in (torch.bfloat16, torch.float16):
        return gradient
    return torch.linalg.vector_norm(gradient, dtype=torch.float32)


def optimizer_state(optimizer: torch.optim.Optimizer, names: Mapping[int, str], whole: bool = True) -> dict[str, Any]:
    """``{"state": {parameter: {...}}, "groups": [{"parameters": [...], ...}]}``, every tensor whole, or as it is laid out."""
    state = {
        names[id(parameter)]: {
            key: full(value) if whole and isinstance(value, Tensor) else value for key, value in own.items()
        }
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
    read = _read_moments(optimizer, names, state["state"])
    for group in optimizer.param_groups:
        on_device = bool(group.get("fused") or group.get("capturable"))
        for parameter in group["params"]:
            name = names[id(parameter)]
            values = {key: read.get(f"{name}/{key}", value) for key, value in state["state"].get(name, {}).items()}
            optimizer.state[parameter] = {
                key: restored(key, value, parameter, on_device) for key, value in values.items()
            }


def _read_moments(
    optimizer: torch.optim.Optimizer, names: Mapping[int, str], state: Mapping[str, Any]
) -> dict[str, Any]:
    """What is still to be read of an optimizer's state, by parameter and key: at once, laid out like the parameters."""
    parameters = {names[id(item)]: item.detach() for group in optimizer.param_groups for item in group["params"]}
    stored = {
        (name, key): value
        for name, values in state.items()
        if name in parameters
        for key, value in values.items()
        if is_stored(value)
    }
    values = {
        f"{name}/{key}": value if value.shape == parameters[name].shape else value.whole()
        for (name, key), value in stored.items()
    }
    targets = {f"{name}/{key}": parameters[name] for name, key in stored if is_stored(values[f"{name}/{key}"])}
    return laid_out(values, targets)


def restored(key: str, value: Any, parameter: Tensor, on_device: bool) -> Any:
    """A value of an optimizer's state for its parameter; the count of steps is on the device for fused implementations only."""
    if not isinstance(value, Tensor):
        return value
    if key == "step":
        return value.to(parameter.device, copy=True) if on_device else value.cpu().clone()
    value = value.to(parameter.dtype)  # another one where --precision or --master-weights was another
    if is_sharded(value):  # read as it is laid out, into memory of its own
        return value
    return like(value.to(parameter.device), parameter).clone()


def digest(state: Mapping[str, Tensor]) -> str:
    """A hash of names, types, shapes and bytes of tensors, 40 hex digits."""
    result = hashlib.sha256()
    for name, value in sorted(state.items()):
        result.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        result.update(full(value).detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return result.hexdigest()[:40]
