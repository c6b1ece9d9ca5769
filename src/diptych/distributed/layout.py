"""How one training objective is laid out over processes, and every verb that depends on it.

``parallel.parallelize`` moves an objective to its device and returns a ``Layout``. The training step, saving, validation and
the encoder of evaluations use the layout and nothing behind it, so that another layout (sharded, tensor parallel) is a
subclass of ``Layout``. All calls of the objective go through the wrapped module's own ``forward``, because hooks run there.
Models and objectives contain no parallelism; what they offer is ``blocks()``, ``linears()``, modules, and forward calls.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from diptych.devices import Device
from diptych.distributed import _full_state
from diptych.distributed.master_weights import MasterWeights, StoredWeights
from diptych.distributed.process_group import Group, World, rank, size
from diptych.errors import ConfigError
from diptych.types import Batch, Pairs, Terms


class Layout:
    """An objective on one process, or replicated on many (DistributedDataParallel); the contract of all layouts.

    ``objective`` is a ``diptych.objectives.Objective``, a type of the layer above. ``group`` holds the processes that see
    different pairs: collectives of losses and metrics run over it. ``collective``: each encode call involves all processes, so
    that each must make the same number of them. ``stored`` says in which type the towers' weights are held; with fp32 copies of
    them, the copies are what is trained and saved.
    """

    collective = False

    def __init__(
        self,
        objective: Any,
        device: Device,
        world: World,
        stored: StoredWeights = StoredWeights(),  # noqa: B008
    ) -> None:
        self.device, self.world = device, world
        self.group: Group = None
        self.objective = objective.to(device.torch_device)
        for companion in self.objective.frozen().values():
            companion.to(device.torch_device)
        exact = stored.cast(self.objective)
        self.wrapped = self.wrap(objective)
        self.masters = MasterWeights(dict(self.objective.named_parameters()), exact)
        self.objective.group = self.group

    def wrap(self, objective: nn.Module) -> nn.Module:
        """The module that is called in place of the objective."""
        if self.world.size == 1:
            return objective
        index = self.device.torch_device.index
        # Each forward sends rank 0's buffers to all; a queue of 65,536 features would be 134 MB in every step.
        ignored = list(self.objective.equal_buffers)
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(objective, ignored)
        return DistributedDataParallel(
            objective, device_ids=None if index is None else [index], gradient_as_bucket_view=True
        )

    @property
    def data_world(self) -> World:
        """This process among those that see different pairs, for loaders."""
        return World(self.rank, self.size, self.world.local_rank)

    @property
    def rank(self) -> int:
        """This process's number among those that see different pairs."""
        return rank(self.group)

    @property
    def size(self) -> int:
        """How many processes see different pairs."""
        return size(self.group)

    # --- training ---------------------------------------------------------------------------------------------------------

    def terms(self, batch: Batch) -> tuple[Terms, Any]:
        """Terms of a whole batch with their graph, and its features, detached."""
        return self.wrapped("terms", batch)  # type: ignore[no-any-return]

    def features(self, batch: Batch) -> tuple[Any, Any]:
        """Features of a micro-batch, and what ``encode_frozen`` gave; the first of two passes, called without gradient."""
        return self.wrapped("features", batch)  # type: ignore[no-any-return]

    def compare(self, features: Any, pairs: Pairs) -> Terms:
        """Terms of features that were encoded in micro-batches, with the graph from features and heads to the losses."""
        return self.wrapped("compare", features, pairs)  # type: ignore[no-any-return]

    def cached(self, batch: Batch, frozen: Any, gradients: Sequence[Tensor | None]) -> Tensor:
        """A scalar whose gradient is that of the micro-batch's features, given ``gradients`` of each; the second pass."""
        return self.wrapped("cached_grads", batch, frozen, gradients)  # type: ignore[no-any-return]

    def accumulating(self) -> contextlib.AbstractContextManager[Any]:
        """Context of every backward pass of a step but the last: gradients stay on this process."""
        if isinstance(self.wrapped, DistributedDataParallel):
            return self.wrapped.no_sync()
        return contextlib.nullcontext()

    def complete_gradients(self) -> None:
        """What gradients lack after the last backward pass of a step, where a scheme averages only some of them."""
        self.masters.take_gradients()

    def after_step(self, features: Any, pairs: Pairs, taken: Tensor | None = None) -> None:
        """What follows each optimizer step: rounding, the objective's ``after_step``, then the range of the scale.

        With ``taken``, a bool scalar on the device, nothing of it stays where that is False.
        """
        self.round_weights()  # of copies that did not move: the same weights again
        moved = self._moved_after_step() if taken is not None else []
        with torch.no_grad():
            before = [item.clone() for item in moved]
            self.objective.after_step(features, pairs)
            if self.objective.scale_range is not None:
                self.objective.model.logit_scale.clamp_(*self.objective.scale_range)
            for item, value in zip(moved, before, strict=True):
                item.copy_(torch.where(taken, item, value))  # type: ignore[arg-type]

    def _moved_after_step(self) -> list[Tensor]:
        """What ``after_step`` may change: the objective's own buffers, and parameters of one element, such as scales."""
        buffers = [item for name, item in self.objective.named_buffers() if not name.startswith("model.")]
        return [*buffers, *(item for item in self.objective.parameters() if item.numel() == 1)]

    def train(self) -> None:
        """Training mode."""
        self.wrapped.train()

    # --- parameters and their state ---------------------------------------------------------------------------------------

    def trainable(self) -> Iterator[tuple[str, Any]]:
        """Names (of the objective) and parameters that the optimizer moves: fp32 copies where weights are stored in less."""
        return (
            (name, self.masters.of(name, item))
            for name, item in self.objective.named_parameters()
            if item.requires_grad
        )

    def round_weights(self) -> None:
        """Round the weights to their fp32 copies, which were changed; nothing where there are none."""
        self.masters.round()

    def gradient_norm(self) -> Tensor:
        """The global norm of the gradients, equal on every process: of the unscaled ones after ``scaler.unscale_``."""
        return _full_state.total_norm(self._gradients())

    def clip_gradients(self, max_norm: float, norm: Tensor) -> None:
        """Scale the gradients, whose global norm is ``norm``, to one of at most ``max_norm``."""
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for gradient in self._gradients():
            gradient.mul_(factor.to(gradient.dtype))

    def not_finite(self) -> list[str]:
        """Names of the parameters whose gradients are not finite everywhere. A collective: every rank calls it."""
        trained = ((name, item.grad) for name, item in self.trainable() if item.grad is not None)
        return [name for name, gradient in trained if not bool(_full_state.full(gradient).isfinite().all())]

    def gradient_marks(self) -> Tensor:
        """A number for each trained parameter with a gradient, on the device: finite where all that this process holds of it is.

        In the order of ``marked``.
        """
        return torch.stack(list(torch._foreach_norm([_full_state.local(item) for item in self._gradients()])))

    def marked(self) -> list[str]:
        """Names of the trained parameters that have a gradient."""
        return [name for name, item in self.trainable() if item.grad is not None]

    def _gradients(self) -> list[Tensor]:
        return [item.grad for _, item in self.trainable() if item.grad is not None]

    def full_state(self) -> dict[str, Tensor]:
        """Every parameter, its fp32 copy if it has one, and buffer of the objective, whole. A collective: every rank calls it."""
        return {name: _full_state.full(item) for name, item in self.own_state().items()}

    def own_state(self) -> dict[str, Tensor]:
        """As ``full_state``, but sharded tensors as they are: what this process holds. No collective."""
        return {name: self.masters.of(name, item).detach() for name, item in self.objective.state_dict().items()}

    def local(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What this process holds of tensors, as plain ones. No collective."""
        return {name: _full_state.local(item) for name, item in tensors.items()}

    def model_state(self) -> dict[str, Tensor]:
        """The part of ``full_state`` that is the model's, by the model's own names. A collective."""
        state = self.objective.model.state_dict()
        return {name: _full_state.full(self.masters.of(f"model.{name}", item).detach()) for name, item in state.items()}

    def load_full_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what ``full_state`` gave, under any layout. A collective. Raises RuntimeError for other names or shapes."""
        values = _full_state.laid_out(state, self.objective.state_dict())
        self.objective.load_state_dict(values)
        self.masters.load(values)

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors that are laid out like parameters, whole. A collective."""
        return {name: _full_state.full(item) for name, item in tensors.items()}

    def laid_out(self, values: Mapping[str, Any], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors laid out like the targets of their names. A collective. Raises ConfigError for other names."""
        if values.keys() != targets.keys():
            names = sorted(values.keys() ^ targets.keys())
            raise ConfigError(
                f"--resume: an average of other weights than in the checkpoint ({names[0]} and {len(names) - 1} more); "
                "resume with the same locks, or start from its weights with --pretrained."
            )
        return _full_state.laid_out(values, targets)

    def optimizer_state(self, optimizer: torch.optim.Optimizer, whole: bool = True) -> dict[str, Any]:
        """The optimizer's state by parameter name, whole, which is a collective; or as it is laid out."""
        return _full_state.optimizer_state(optimizer, self._names(), whole)

    def load_optimizer_state(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
        """Take back what ``optimizer_state`` gave, under any layout. Raises ConfigError when the parameters differ."""
        _full_state.load_optimizer_state(optimizer, self._names(), state)

    def _names(self) -> dict[int, str]:
        return {id(item): name for name, item in (*self.objective.named_parameters(), *self.masters.items())}

    # --- evaluation -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode for the whole objective; every module gets its mode back."""
        modes = [(module, module.training) for module in self.wrapped.modules()]
        self.wrapped.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training

    def validation_terms(self, batch: Batch) -> Terms:
        """Terms of a batch that was made as ``validation_wants`` asks."""
        return self._infer("validation", batch)  # type: ignore[no-any-return]

    def encode_image(self, images: Tensor) -> Tensor:
        """Features [B, D] of images [B, 3, H, W], not normalized."""
        return self._infer("image", images)  # type: ignore[no-any-return]

    def encode_text(
        self, tokens: Tensor, lengths: Tensor | None = None, prefix: Any = None, *, plan: Any = None
    ) -> Tensor:
        """Features [B, D] of ids [B, L], not normalized; ``lengths`` [B], ``prefix``, ``plan`` as in ``TextTower.forward``."""
        return self._infer("text", tokens, lengths, prefix, plan)  # type: ignore[no-any-return]

    @property
    def architecture(self) -> str:
        """The model's whole configuration, as text."""
        return repr(self.objective.model.config)

    @property
    def shares_prefixes(self) -> bool:
        """Whether ``encode_text`` takes a ``prefix``."""
        return bool(self.objective.model.text.shares_prefixes)

    @property
    def takes_plans(self) -> bool:
        """Whether ``encode_text`` takes a ``plan``."""
        return bool(self.objective.model.takes_plans)

    @property
    def text_config(self) -> Any:
        """The text tower's part of the model's configuration."""
        return self.objective.model.text_config

    def _infer(self, *call: Any) -> Any:
        # DistributedDataParallel would broadcast buffers here, which makes each call a collective; replicas need no hooks.
        return self.objective(*call)


def local_of(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, as a plain one."""
    return _full_state.local(tensor)


def is_sharded(tensor: object) -> bool:
    """Whether this process holds a part of the tensor only."""
    return _full_state.is_sharded(tensor)


def frozen_digests(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """A hash of each module's weights and buffers, by which a resumed run knows that its companions are the same."""
    return {name: _full_state.digest(module.state_dict()) for name, module in modules.items()}
