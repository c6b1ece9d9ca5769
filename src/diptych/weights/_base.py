"""The contract of a checkpoint format, and the registry of all formats.

One format per file of this folder. A format answers four questions and reads no file itself: ``recognizes`` (are these its
names?), ``describe`` (which architecture, by a config beside the file or by the tensors), ``rules`` (which tensors
correspond; the same rules serve both ways), ``write`` (a folder that the other system loads).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from diptych.errors import WeightsError
from diptych.models import ModelConfig
from diptych.registry import Registry
from diptych.tensorfiles.read import Stored
from diptych.weights._rename import Rule


class UndescribedError(WeightsError):
    """Nothing beside or in the weights says their architecture; ``--model`` may."""


@dataclass(frozen=True)
class Description:
    """The architecture of stored weights. ``activation_known`` False: nothing says it, it is only the preset's guess.

    ``origin`` names what the architecture was read from, for messages: a file's name, or "the shapes of the tensors".
    ``config.logit_bias`` is None where the weights have no bias.
    """

    config: ModelConfig
    origin: str
    activation_known: bool = True
    preprocess_known: bool = False
    heads_known: bool = True


class CheckpointFormat:
    """The weights of one system."""

    name: str
    summary: str
    """One line for ``diptych models inspect``."""
    ignored: tuple[str, ...] = ()
    """Foreign tensors without information (fnmatch patterns)."""
    optional: tuple[str, ...] = ()
    """Our names of tensors that its files may leave out; they become zeros, as that system does, with a line in the log."""

    def recognizes(self, stored: Stored) -> bool:
        """Whether the tensor names are this format's."""
        raise NotImplementedError

    def describe(self, stored: Stored) -> Description:
        """The architecture. Raises WeightsError for one that Diptych does not have."""
        raise NotImplementedError

    def rules(self, config: ModelConfig, stored: Stored | None = None) -> list[Rule]:
        """The rules for one file (some formats have several naming schemes), or for writing when None."""
        raise NotImplementedError

    def write(self, folder: Path, config: ModelConfig, tensors: Mapping[str, Tensor]) -> Path:
        """Write what the other system loads into ``folder``; ``tensors`` have its names. Returns the weight file."""
        raise WeightsError(f"weights cannot be written as {self.name}.")


CHECKPOINT_FORMATS: Registry[type[CheckpointFormat]] = Registry("diptych.weights", "checkpoint format")


def require_last_end(config: ModelConfig, format_name: str) -> None:
    """Raise WeightsError for an end token that is not the last of its vocabulary, where ``format_name`` pools the largest id."""
    if config.text.end_id is not None and config.text.end_id != config.text.vocab_size - 1:
        raise WeightsError(
            f"{config.name}: its end token {config.text.end_id} is not the last of its vocabulary, which {format_name} takes it "
            "for; write it as hf or diptych."
        )


def require_clip(config: ModelConfig, format_name: str) -> None:
    """Raise WeightsError for a model that is not CLIP-shaped, which ``format_name`` has no tensor names for."""
    require_last_end(config, format_name)
    if config.vision.family == "siglip" or config.text.family != "transformer":
        raise WeightsError(
            f"{config.name} is no CLIP with a causal text tower, and the checkpoint format {format_name} has no names for it; "
            "write it as hf or openclip."
        )
