"""What evaluators ask of a model that is laid out over processes: the part of a ``Layout`` that they use.

Evaluators do not import ``distributed.layout``, so that a model on one process needs nothing of it. No layout itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor

from diptych.distributed.process_group import Group
from diptych.models import SharedPrefixes, TextConfig
from diptych.types import TextPlan


class LaidOut(Protocol):
    """A model that is laid out over processes, as a ``diptych.distributed.layout.Layout`` is."""

    collective: bool
    """Whether each call involves all processes."""
    group: Group
    """The processes that see different pairs."""

    @property
    def architecture(self) -> str:
        """The model's whole configuration, as text."""

    @property
    def shares_prefixes(self) -> bool:
        """Whether ``encode_text`` takes a ``prefix``."""

    @property
    def takes_plans(self) -> bool:
        """Whether ``encode_text`` takes a ``plan``."""

    @property
    def text_config(self) -> TextConfig:
        """The text tower's part of the configuration."""

    def encode_image(self, images: Tensor) -> Tensor:
        """Features [B, D]."""

    def encode_text(
        self,
        tokens: Tensor,
        lengths: Tensor | None = None,
        prefix: SharedPrefixes | None = None,
        *,
        plan: TextPlan | None = None,
    ) -> Tensor:
        """Features [B, D]."""

    def evaluating(self) -> AbstractContextManager[None]:
        """Evaluation mode."""

    def full_state(self) -> Mapping[str, Tensor]:
        """Whole weights; a collective."""
