"""The contract of objectives: what a loss asks of the model and the data, and the two halves that it is computed in.

    encode(batch)            -> features      per pair; may run in micro-batches
    compare(features, pairs) -> Terms         sees the whole batch; gathers, and holds heads that look across pairs

Cut there, feature-cached accumulation (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited
Setup") equals the whole batch, tiled losses are possible, and evaluation needs no loss. An objective is the root module that is
laid out and trained: it holds the model and its own heads. It knows no data source, optimizer or parallel scheme.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from diptych.distributed.process_group import Group
from diptych.errors import ConfigError
from diptych.models import ModelNeeds, TwoTower
from diptych.objectives._parts import differentiable, pairs_of, text_of, view_seeds
from diptych.objectives._unused import unreached, zero_of
from diptych.types import Batch, Encoded, Pairs, Terms, Wants

LoadModel = Callable[..., TwoTower]
"""Loads a companion's model by name or path; ``diptych.weights.load``, handed in, since objectives know no files."""


@dataclass(frozen=True)
class ObjectiveOptions:
    """The choice of an objective; each objective's own Config adds its options here."""

    objective: str = "clip"
    """What is optimized: the name of an objective, or module:Class."""


class Example(NamedTuple):
    """A configuration that the contract tests run: options, and the preset of a small model."""

    options: ObjectiveOptions
    preset: str


class RunFacts(NamedTuple):
    """What an objective may know of a run: how many ``records`` the training data has, over how many ``epochs`` of it the run
    goes (a part of one too), whether records are ``resampled``, drawn with replacement, and how many ``pairs`` of a step each
    of the ``processes`` has (of all its micro-batches).
    """

    records: int
    epochs: float
    resampled: bool = False
    pairs: int = 0
    processes: int = 1


class Objective(nn.Module):
    """The contract. A subclass gives ``Config``, ``wants``, ``encode``, ``compare`` and ``examples``.

    ``Features``, the NamedTuple that ``encode`` returns, holds tensors whose first dimension is B (floating point ones carry
    gradients; integers and masks are passed on), and None. Further dimensions may be padded to a micro-batch's own longest: over
    micro-batches they are padded with zeros to the longest of all, so a mask must say what is real.
    """

    Config: ClassVar[type[ObjectiveOptions]] = ObjectiveOptions

    wants: Wants = Wants()
    """What training asks of the data; an objective whose options decide it sets it on itself when it is built."""

    min_pairs: ClassVar[int] = 2
    """How many pairs a step must compare for the loss to say anything; 1 where it needs no other pair."""

    validation_wants: ClassVar[Wants] = Wants(images=("eval",))
    """What ``validation_terms`` asks of the data."""

    scale_range: tuple[float, float] | None = (0.0, math.log(100.0))
    """Least and most of the logarithm of the logit scale, after every step; None leaves it free. CLIP's by default."""

    equal_buffers: tuple[str, ...] = ()
    """Names of large buffers that every process moves alike (queues, estimates), so that no layout sends them around."""

    cacheable: ClassVar[bool] = True
    """Whether the image tower's pooled feature is all that it needs of an image, so that --cache-features may compute it once."""

    group: Group = None
    """The processes that see different pairs, over which features are gathered; set by the layout."""

    def __init__(self, config: Any, model: TwoTower, load: LoadModel | None = None) -> None:
        super().__init__()
        self.config = config
        self.model = model
        self.load = load
        self._companions: dict[str, nn.Module] = {}  # in a plain dict: no parameters or state of the objective

    # --- before anything is built ---------------------------------------------------------------------------------------------

    @classmethod
    def model_needs(cls, options: Any) -> ModelNeeds:
        """What the loss needs of the model, asked before weights are created: a bias, another initial scale."""
        return ModelNeeds()

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """Configurations that the contract tests run, with models that take under a second."""
        raise NotImplementedError

    def begin_run(self, facts: RunFacts) -> None:
        """Called once, before the layout and before a checkpoint is read: make buffers as large as the data, or refuse the run.

        Raises ConfigError for a run that the loss cannot be computed in.
        """

    def stored_companion(self) -> TwoTower | None:
        """The companion whose image features of all records are computed once, before the first step; None for none."""
        return None

    def store(self, features: Tensor) -> None:
        """Take what ``stored_companion`` gave of each record's image, fp32 [records, E] on the CPU, as in evaluation.

        Rows of images that cannot be read are not numbers; such records are never trained on.
        """
        raise NotImplementedError

    # --- the two halves -------------------------------------------------------------------------------------------------------

    def encode(self, batch: Batch, frozen: Any = None) -> Any:
        """Features of the batch's pairs, pair by pair: no pair may look at another. ``frozen``: what ``encode_frozen`` gave."""
        raise NotImplementedError

    def compare(self, features: Any, pairs: Pairs) -> Terms:
        """Terms of the whole batch, over all processes of ``group``. The same input in a plain step and over micro-batches."""
        raise NotImplementedError

    def on_host(self, batch: Batch) -> Batch:
        """The batch of a training step before it is copied to the device, with what only the host's memory holds of its pairs."""
        return batch

    def encode_frozen(self, batch: Batch) -> Any:
        """What ``encode`` needs that has no gradient, such as a teacher's features; computed once a step, in its first pass."""
        return None

    def compare_parameters(self) -> list[nn.Parameter]:
        """Trained parameters that ``compare`` uses, as opposed to ``encode``: scale, bias, heads that see the whole batch."""
        scale, bias = self.model.logit_scale, self.model.logit_bias
        return [item for item in (scale, bias) if item is not None and item.requires_grad]

    def after_step(self, features: Any, pairs: Pairs) -> None:
        """Change state that moves once a step (queues, running estimates), in training only; no gradient.

        ``features`` are those of the step's pairs of this process, detached; state lives in buffers, which checkpoints hold.
        """

    def validation_terms(self, batch: Batch) -> Terms:
        """Terms of a batch made as ``validation_wants`` asks, in evaluation mode; changes no state."""
        return self.compare(self.encode(batch, self.encode_frozen(batch)), pairs_of([batch]))

    def token_maps(self) -> str:
        """Name of the submodule of two linear layers (``image``, ``text``) that tokens are compared by; empty: there is none.

        A run writes them beside its weights, so that ``diptych evaluate --token-maps`` can score by tokens.
        """
        return ""

    # --- frozen companions ----------------------------------------------------------------------------------------------------

    def add_companion(self, name: str, module: nn.Module) -> nn.Module:
        """Declare a frozen module, such as a teacher: never trained, always in evaluation mode, not in the weights.

        The layout places it; a checkpoint holds its hash, so that a resumed run knows whether it is the same.
        """
        self._companions[name] = module.requires_grad_(False).eval()
        return module

    def frozen(self) -> dict[str, nn.Module]:
        """The frozen companions by name."""
        return dict(self._companions)

    # --- views of a batch -----------------------------------------------------------------------------------------------------

    def encode_images(self, batch: Batch, view: int = 0, return_tokens: bool = False) -> Encoded:
        """What the image tower gives of one image view; precomputed features where the batch carries them."""
        if batch.image_features is not None:
            if return_tokens or view:
                raise ConfigError("--cache-features keeps the pooled feature of one view; this objective needs more.")
            return Encoded(batch.image_features, batch.image_features)
        return self.model.image(batch.images[view], return_tokens=return_tokens, seeds=view_seeds(batch, view))

    def encode_texts(self, batch: Batch, view: int = 0, return_tokens: bool = False) -> Encoded:
        """What the text tower gives of one text view."""
        return text_of(self.model.text, batch, view, return_tokens=return_tokens)

    # --- calls ----------------------------------------------------------------------------------------------------------------

    def forward(self, call: str, *arguments: Any) -> Any:
        """Every call that computes with parameters goes through here, because hooks of sharding run on ``forward``.

        ``call`` is a key of ``_CALLS``; ``distributed.layout.Layout`` has a method for each.
        """
        return _CALLS[call](self, *arguments)

    def _terms(self, batch: Batch) -> tuple[Terms, Any]:
        features = self.encode(batch, self._frozen(batch))
        terms = self._compared(features, pairs_of([batch]))
        return self._touched(terms), _mapped(features, torch.Tensor.detach)

    def _compared(self, features: Any, pairs: Pairs) -> Terms:
        # Copied: a metric that is a parameter (a bias) would be freed memory once a sharded parameter is sharded again.
        terms = self.compare(features, pairs)
        return terms._replace(metrics={name: item.detach().clone() for name, item in terms.metrics.items()})

    def _features(self, batch: Batch) -> tuple[Any, Any]:
        frozen = self._frozen(batch)
        return self.encode(batch, frozen), frozen

    def _frozen(self, batch: Batch) -> Any:
        with torch.no_grad():
            return self.encode_frozen(batch)

    def _cached_grads(self, batch: Batch, frozen: Any, gradients: Sequence[Tensor | None]) -> Tensor:
        features = [item for item in self.encode(batch, frozen) if differentiable(item)]
        # d/dx of sum(x * g) is g: the backward pass of this sum gives every feature its cached gradient.
        sums = [(item * own).sum() for item, own in zip(features, gradients, strict=True) if own is not None]
        # The last of these passes is the one in which replicas join the gradients of what ``compare`` uses too.
        return torch.stack([*sums, zero_of(self.compare_parameters()).to(features[0])]).sum()

    def _touched(self, terms: Terms) -> Terms:
        """The terms, with a zero gradient for what ``compare`` was to use and did not, such as a head without any input."""
        unused = unreached(list(terms.losses.values()), self.compare_parameters())
        if not unused:
            return terms
        name, first = next(iter(terms.losses.items()))
        return terms._replace(losses={**terms.losses, name: first + zero_of(unused).to(first)})


def _encode_image(objective: Objective, images: Tensor) -> Tensor:
    return objective.model.encode_image(images)


def _encode_text(objective: Objective, tokens: Tensor, lengths: Tensor | None, prefix: Any, plan: Any = None) -> Tensor:
    return objective.model.encode_text(tokens, lengths=lengths, prefix=prefix, plan=plan)


_CALLS: dict[str, Callable[..., Any]] = {
    "terms": Objective._terms,
    "features": Objective._features,
    "compare": Objective._compared,
    "cached_grads": Objective._cached_grads,
    "validation": lambda objective, batch: objective.validation_terms(batch),
    "image": _encode_image,
    "text": _encode_text,
}


def _mapped(features: Any, function: Callable[[Tensor], Tensor]) -> Any:
    return type(features)(*(None if item is None else function(item) for item in features))
