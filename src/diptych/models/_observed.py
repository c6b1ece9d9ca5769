"""Whether somebody looks inside of a module, so that no fast path may leave anything out.

Fast paths compute less than the modules say: packed texts have no padding, the last block has only pooled tokens. That is exact,
but a hook would see other shapes, and a trace would freeze the lengths of one batch. They ask here first. Not a switch for
users; ``hooked`` walks over all modules, and is asked once for a call of a tower, not for each block.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_internals
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
OWN = ("torch.distributed", "torch.utils.module_tracker")
GLOBAL_HOOKS = tuple(f"_global{name}" for name in HOOKS)


def recorded() -> bool:
    """Whether a graph is being recorded whose sizes are not those of this call (``jit.trace``, ``torch.export``, compiling)."""
    return torch.jit.is_tracing() or torch.jit.is_scripting() or torch.compiler.is_compiling()  # the last: export too


def traced(*inputs: Tensor) -> bool:
    """Whether a graph is being recorded (``jit.trace``, ``torch.export``, ``torch.compile``, ``make_fx``, ``vmap``).

    So values of tensors must not decide about anything. True also for tensors without values, on the meta device.
    """
    if recorded() or is_in_torch_dispatch_mode() or torch._C._are_functorch_transforms_active():
        return True
    return any(tensor.is_meta for tensor in inputs)


def hooked(*modules: nn.Module | None) -> bool:
    """Whether a hook is registered on one of these modules or inside of them, or on all modules of the process.

    A ``forward`` that was put on a module itself (as accelerate's hooks do) counts too, but not one that ``torch.compile`` made.
    Hooks of torch's own sharding (FSDP2 registers some on every block) see parameters, and those of its counters see names:
    they do not count.
    """
    everywhere = (getattr(module_internals, name, None) for name in GLOBAL_HOOKS)
    if any(hooks and not _of_torch(hooks) for hooks in everywhere):
        return True
    waiting, seen = [module for module in modules if module is not None], set()
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        state = module.__dict__
        if ("forward" in state and not _compiled(state["forward"])) or any(
            state.get(name) and not _of_torch(state[name]) for name in HOOKS
        ):
            return True
        waiting.extend(child for child in state["_modules"].values() if child is not None)
    return False


def observed(tower: nn.Module, inputs: Tensor) -> bool:
    """Whether the tower's call on ``inputs`` is traced, or a hook is registered inside of it."""
    return traced(inputs) or hooked(*tower.children())


def _compiled(forward: object) -> bool:
    """Whether ``torch.compile`` made it of the module's own method."""
    return hasattr(forward, "_torchdynamo_orig_callable")


def _of_torch(hooks: dict[int, object]) -> bool:
    # Each a bound method, a function, or a functools.partial of one.
    functions = (getattr(hook, "func", hook) for hook in hooks.values())
    return all(str(getattr(function, "__module__", "")).startswith(OWN) for function in functions)
