"""How much memory encoding a micro-batch takes, counted on tensors without memory: the real passes, forward and backward.

torch's fake tensors have shapes and no values, so that any model and any batch are counted in seconds. What is counted is what
tensors hold at the worst moment, parameters, their gradients and the batch apart. Not what kernels use inside, nor what an
allocator rounds up. Captions have real lengths, so that the passes take the very forms that a run takes.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

from diptych.models import ModelConfig, attention_as_elsewhere
from diptych.objectives import Objective, differentiable
from diptych.types import IGNORED, Batch, MaskedTokens, Wants


@dataclass(frozen=True)
class Footprint:
    """``activations``: most bytes held at once beside parameters, whole gradients and the batch. ``batch``: bytes of the batch.

    ``features``: bytes that ``encode`` returns. ``ready``: the names of the trained parameters as their gradients become ready.
    """

    activations: int
    batch: int
    features: int
    ready: tuple[str, ...]


class _Counted(FakeTensorMode):
    """Fake tensors whose storages are added up while they live. Never entered: towers would take a graph's forms."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.now = self.peak = 0
        self._storages: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        for item in tree_leaves(result):
            if isinstance(item, FakeTensor):
                self._add(item.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._storages:
            self._storages[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.now -= self._storages.pop(key, 0)

    def like(self, tensor: Tensor) -> Tensor:
        """A fake tensor in main memory with the shape, strides and type of another."""
        with self:
            fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
        return fake.requires_grad_(tensor.requires_grad)


def dry_run(
    objective: Objective,
    batch: Batch,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    *,
    elsewhere: bool = False,
    between: Callable[[], None] | None = None,
) -> Footprint:
    """Count one forward and backward pass of ``encode`` in training mode; the objective may be on the meta device.

    ``batch``: what ``trial_batch`` makes. ``autocast`` makes the context of the towers. ``elsewhere``: attention as accelerators
    compute it, where the CPU takes another form of it. ``between`` is called after the forward pass. Changes nothing of the
    objective, not its gradients either.
    """
    mode = _Counted()
    named = {**dict(objective.named_parameters()), **dict(objective.named_buffers())}
    state = {name: mode.like(item) for name, item in named.items()}
    ready: list[str] = []
    for name, item in state.items():
        if item.requires_grad:
            item.grad = mode.like(
                item.detach()
            )  # from the second micro-batch on, or as a bucket, it is there all the time
            item.register_post_accumulate_grad_hook(lambda _, name=name: ready.append(name))
    states = mode.now
    images = mode.like(batch.images)
    before = mode.peak = mode.now
    size = 0

    def passes(batch: Batch) -> None:
        nonlocal size
        with autocast():
            features = objective("features", batch)[0]
        outputs = [item for item in features if differentiable(item)]
        size = sum(item.numel() * item.element_size() for item in outputs)
        if between is not None:
            between()
        outputs = [item for item in outputs if item.requires_grad]
        torch.autograd.backward(outputs, [mode.like(item.detach()) for item in outputs])

    with attention_as_elsewhere() if elsewhere else contextlib.nullcontext():
        inside = {f"objective.{name}": item for name, item in state.items()}
        torch.func.functional_call(_Passes(objective, passes), inside, (batch._replace(images=images),))
    return Footprint(mode.peak - before, before - states, size, tuple(ready))


class _Passes(nn.Module):
    """Both passes in one call, so that what is computed again in the backward pass finds the tensors without memory too."""

    def __init__(self, objective: Objective, passes: Callable[[Batch], None]) -> None:
        super().__init__()
        self.objective, self.passes = objective, passes

    def forward(self, batch: Batch) -> None:
        self.passes(batch)


def trial_batch(config: ModelConfig, wants: Wants, pairs: int, tokens: int = 0) -> Batch:
    """A batch of ``pairs`` of the shapes that a run has, captions of ``tokens`` ids each, both ends included (0: the context).

    Images are on the meta device. An objective that masks gets masked tokens in every caption, one in seven.
    """
    text, size = config.text, config.vision.image_size
    length = min(tokens or text.context_length, text.context_length)
    ids = torch.ones(len(wants.texts), pairs, length, dtype=torch.int64)
    ids[:, :, -1] = text.end_id if text.end_id is not None else text.vocab_size - 1
    rows = torch.arange(pairs)
    images = torch.empty(len(wants.images), pairs, 3, size, size, dtype=torch.uint8, device="meta")
    batch = Batch(
        images, ids, torch.full((len(wants.texts), pairs), length), tuple(map(str, range(pairs))), rows, rows, rows
    )
    if not wants.masked:
        return batch
    targets = torch.full_like(ids[0], IGNORED)
    targets[:, ::7] = 1
    return batch._replace(masked=MaskedTokens(ids[0], targets))
