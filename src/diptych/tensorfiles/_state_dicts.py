"""The state dicts in a checkpoint: every group of named tensors in its tree, by the path of keys that leads to it.

A module that was pickled whole is a group too: its parameters and buffers by dotted path. Which group is the model is
decided in ``diptych.weights``, which knows names. Optimizers and the like are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from diptych.tensorfiles._inert import Inert

DEEPEST = 4
MOST_NODES = 100_000  # of a tree that was crafted to have no end
NOT_WEIGHTS = (
    "optim",
    "scheduler",
    "lr_sched",
    "scaler",
    "rng",
    "random_state",
    "loops",
    "callbacks",
    "step_state",
    "args",
)


def plain(node: object) -> Mapping[object, object] | None:
    """The entries of a mapping, real or a stand-in's; None for anything else."""
    if isinstance(node, Inert):
        return node.items
    return node if isinstance(node, Mapping) else None


def state_dicts(tree: object) -> dict[str, dict[str, Tensor]]:
    """Groups of named tensors by path, e.g. "state_dict" or "model.ema"; "" is the tree itself."""
    groups: dict[str, dict[str, Tensor]] = {}
    waiting: list[tuple[str, object, int]] = [("", tree, 0)]
    seen = set[int]()
    while waiting and len(seen) < MOST_NODES:
        path, node, depth = waiting.pop(0)
        entries = plain(node)
        if entries is None or id(entries) in seen:
            continue
        seen.add(id(entries))
        if _is_module(entries):
            tensors = dict(_of_module(entries))
        else:
            tensors = {str(name): item.detach() for name, item in entries.items() if isinstance(item, Tensor)}
            waiting += [
                (f"{path}.{name}" if path else name, item, depth + 1)
                for name, item in entries.items()
                if depth < DEEPEST and isinstance(name, str) and not name.lower().startswith(NOT_WEIGHTS)
            ]
        if tensors:
            groups[path] = tensors
    return groups


def _is_module(entries: Mapping[object, object]) -> bool:
    return plain(entries.get("_parameters")) is not None and plain(entries.get("_modules")) is not None


def _of_module(root: Mapping[object, object]) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of a pickled module, each module once."""
    waiting: list[tuple[str, Mapping[object, object]]] = [("", root)]
    seen = set[int]()
    while waiting and len(seen) < MOST_NODES:
        prefix, entries = waiting.pop(0)
        if id(entries) in seen:
            continue
        seen.add(id(entries))
        for kind in ("_parameters", "_buffers"):
            for name, item in (plain(entries.get(kind)) or {}).items():
                if isinstance(item, Tensor):
                    yield f"{prefix}{name}", item.detach()
        for name, child in (plain(entries.get("_modules")) or {}).items():
            inner = plain(child)
            if inner is not None and _is_module(inner):
                waiting.append((f"{prefix}{name}.", inner))
