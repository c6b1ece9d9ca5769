"""The contract of a layout: how somebody else's weights are recognised, described, renamed and written.

One layout per file of this folder. A layout answers four questions and holds no reader: ``recognises`` (are these its
names?), ``describe`` (which architecture, by a config beside the file or by the tensors), ``rules`` (whose tensor is
whose; the same rules serve both ways), ``write`` (a folder that the other system loads).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from diptych.errors import WeightsError
from diptych.models import ModelConfig
from diptych.tensorfiles.read import Stored
from diptych.weights._rename import Rule


@dataclass(frozen=True)
class Found:
    """An architecture as weights tell it. ``activation_known`` False: nothing says it, it is only the preset's guess.

    ``told_by`` names what said so, for messages: a file's name, or "the shapes of the tensors".
    """

    config: ModelConfig
    told_by: str
    activation_known: bool = True
    preprocess_known: bool = False


class CheckpointFormat:
    """One system's weights."""

    name: str
    about: str
    """One line for ``diptych models inspect``."""
    ignored: tuple[str, ...] = ()
    """Tensors of theirs that say nothing (fnmatch patterns)."""

    def recognises(self, stored: Stored) -> bool:
        """Whether the names are this layout's."""
        raise NotImplementedError

    def describe(self, stored: Stored) -> Found:
        """The architecture. Raises WeightsError for one that Diptych does not have."""
        raise NotImplementedError

    def rules(self, config: ModelConfig, stored: Stored | None = None) -> list[Rule]:
        """The table, for one file (some layouts have dialects), or for writing when None."""
        raise NotImplementedError

    def completed(self, tensors: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
        """Tensors that the layout leaves out because they are constants, filled in."""
        return tensors

    def write(self, folder: Path, config: ModelConfig, tensors: Mapping[str, Tensor]) -> Path:
        """Write what the other system loads into ``folder``, from our tensors; returns the weight file."""
        raise WeightsError(f"weights cannot be written as {self.name}.")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object beside a weight file; {} when there is none. Raises WeightsError for a damaged one."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: not valid JSON ({str(error).splitlines()[0][:160]}).") from error
    if not isinstance(found, dict):
        raise WeightsError(f"{path}: expected a JSON object, got {type(found).__name__}.")
    return found


def ratio(hidden: int, width: int) -> float:
    """The ``mlp_ratio`` whose product with ``width``, rounded down, is ``hidden``."""
    exact = hidden / width
    return exact if int(width * exact) == hidden else math.nextafter((hidden + 0.5) / width, math.inf)


def taken(values: dict[str, Any], key: str, default: Any) -> Any:
    """Pop ``key``; None counts as absent."""
    value = values.pop(key, default)
    return default if value is None else value


def no_others(values: Mapping[str, Any], harmless: frozenset[str], where: str) -> None:
    """Raise WeightsError when a config asks for something that Diptych's towers do not have."""
    odd = sorted(
        key for key, value in values.items() if key not in harmless and value not in (None, False, 0, 0.0, "", {}, [])
    )
    if odd:
        asked = ", ".join(f"{key} = {values[key]!r}" for key in odd[:4])
        raise WeightsError(f"{where}: describes a model that Diptych does not have: {asked}.")


def only_clip(config: ModelConfig, layout: str) -> None:
    """Raise WeightsError for a model that is not CLIP-shaped, which ``layout`` has no names for."""
    if config.vision.family == "siglip" or config.text.family != "transformer":
        raise WeightsError(
            f"{config.name} is no CLIP with a causal text tower, and the layout {layout} has no names for it; try hf or openclip."
        )
