"""Whose names a set of tensors has: the checkpoint format, or our own. Nothing is described and no model is built."""

from __future__ import annotations

from collections.abc import Collection

from diptych.errors import WeightsError
from diptych.tensorfiles.read import Stored
from diptych.weights._base import CHECKPOINT_FORMATS, CheckpointFormat

# The most specific names first; formats of others follow.
ORDER = ("openai", "huggingface", "paddle", "declip", "openclip")


def format_of(stored: Stored) -> CheckpointFormat | None:
    """The first format that recognizes the names, or None."""
    for name in (*ORDER, *CHECKPOINT_FORMATS.names()):
        checkpoint_format = CHECKPOINT_FORMATS.get(name)()
        if checkpoint_format.recognizes(stored):
            return checkpoint_format
    return None


def are_ours(names: Collection[str]) -> bool:
    """Whether these are Diptych's names of a whole model's parameters."""
    return "text.token_embedding.weight" in names and any(name.startswith("image.") for name in names)


def recognize(stored: Stored) -> CheckpointFormat:
    """The format whose names these are. Raises WeightsError, with some of the names, when no format has them."""
    checkpoint_format = format_of(stored)
    if checkpoint_format is not None:
        return checkpoint_format
    if are_ours(stored.tensors):
        raise WeightsError(
            f"{stored.path}: Diptych's tensors without their metadata: it does not say its architecture; say --model NAME."
        )
    some = ", ".join(sorted(stored.tensors)[:4])
    raise WeightsError(f"{stored.path}: no CLIP or SigLIP that Diptych knows; it begins with {some or 'nothing'}.")
