"""The file of a run's token maps: two linear layers that take tokens of both towers to a common width, as FILIP trains them.

They are the objective's and no part of a CLIP model, so that they lie beside its weights, in ``token_maps.safetensors``, which
says by a hash which towers they were trained with. No scores here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from diptych.errors import ConfigError
from diptych.evaluate._cache import add_weights
from diptych.files import StrPath, replacing
from diptych.tensorfiles.read import read

TOKEN_MAPS_FILE = "token_maps.safetensors"
NAMES = ("image.weight", "image.bias", "text.weight", "text.bias")


class TokenMaps(NamedTuple):
    """Weights [E, W], [E, V] and biases [E] of the maps of image tokens (W wide) and of text tokens (V wide)."""

    image_weight: Tensor
    image_bias: Tensor
    text_weight: Tensor
    text_bias: Tensor


def towers_digest(state: Mapping[str, Tensor]) -> str:
    """A hash of both towers' weights in a model's state dict."""
    digest = hashlib.sha256()
    add_weights(digest, {name: value for name, value in state.items() if name.startswith(("image.", "text."))})
    return digest.hexdigest()


def write_token_maps(path: StrPath, maps: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Write the maps (``NAMES``) of the model whose weights are ``state``: beside ``path``, then renamed. Raises OutputError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    metadata = {"towers": towers_digest(state)}
    with replacing(Path(path).expanduser(), "token maps") as beside:
        try:
            tensors = {name: maps[name].detach().cpu().contiguous() for name in NAMES}
            save_file(tensors, beside, metadata={"diptych token maps": json.dumps(metadata)})
        except SafetensorError as error:
            raise OSError(None, str(error)) from error


def read_token_maps(path: StrPath, state: Mapping[str, Tensor]) -> TokenMaps:
    """The maps of a file, or of a run's folder, for the model whose weights are ``state``.

    Raises ConfigError for what is no such file, and for maps that were trained with other towers; WeightsError for what is
    damaged.
    """
    file = Path(path).expanduser()
    file = file / TOKEN_MAPS_FILE if file.is_dir() else file
    if not file.is_file():
        raise ConfigError(
            f"--token-maps {path}: no such file; a run of --objective filip or defilip writes {TOKEN_MAPS_FILE}."
        )
    stored = read(file)
    try:
        digest = json.loads(stored.metadata["diptych token maps"])["towers"]
        maps = TokenMaps(*(stored.tensors[name].float() for name in NAMES))
        fits = [item.ndim for item in maps] == [2, 1, 2, 1] and len({len(item) for item in maps}) == 1
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"--token-maps {file}: holds no token maps; expected {TOKEN_MAPS_FILE} of a filip run."
        ) from error
    if not fits:
        raise ConfigError(f"--token-maps {file}: shapes {[tuple(item.shape) for item in maps]} are no two linear maps.")
    if digest != towers_digest(state):
        raise ConfigError(
            f"--token-maps {file}: trained with other towers than these weights; give the weights of the same run."
        )
    return maps
