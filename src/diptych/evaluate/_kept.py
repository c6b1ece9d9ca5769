"""Image features that are kept: pictures encoded once for all probes of the same weights.

Kept in the cache folder under a hash of the image tower's weights, the precision, and every picture's name and state (bytes, or
size and time of its file), so that other weights or changed pictures are encoded anew. It knows no scores.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diptych.distributed import world
from diptych.errors import OutputError, RecordError, SourceError
from diptych.evaluate._encode import Encoder, Records
from diptych.files import cache_folder, replacing

FORM = "features 1"


class Labelled(NamedTuple):
    """Features fp32 [N, D] on the CPU, not normalised, and labels int64 [N]."""

    features: Tensor
    labels: Tensor


def labelled_features(encoder: Encoder, source: Records, step: Callable[[int], None], keep: bool = True) -> Labelled:
    """Encode every picture of a labelled source, or find its features in the cache.

    Raises SourceError for a record without a label, the RecordError of a picture that cannot be decoded.
    """
    labels = []
    for index in range(len(source)):
        record = source.record(index)
        if record.label is None:
            raise SourceError(f"{getattr(source, 'name', 'source')}: {record.key} has no label, which a probe needs.")
        labels.append(record.label)
    features = image_features(encoder, source, range(len(labels)), step, keep=keep)
    return Labelled(features, torch.tensor(labels))


def image_features(
    encoder: Encoder,
    source: Records,
    indices: Sequence[int],
    step: Callable[[int], None],
    *,
    keep: bool = True,
    unreadable: Callable[[RecordError], None] | None = None,
) -> Tensor:
    """Features fp32 [len(indices), D] on the CPU, from the cache or computed; errors are those of ``Encoder.images``."""
    digest = hashlib.sha256(f"{FORM} {encoder.precision} {encoder.transform!r}".encode())
    add_weights(digest, getattr(encoder.model, "image", encoder.model))
    for index in indices:
        record = source.record(index)
        digest.update(f"{record.key} {_state(record.image)} ".encode("utf-8", "surrogateescape"))
    path = cache_folder() / "features" / f"{digest.hexdigest()[:40]}.safetensors"
    features = _read(path, len(indices)) if keep else None
    missing = features is None
    if encoder.shared:  # then all must agree whether there is work to share
        missing = world.first(missing or None) is not None
    if features is not None and not missing:
        step(len(indices))
        return features
    features = encoder.images(source, indices, step, unreadable).cpu()
    if keep and world.world_from_environment().local_rank == 0:  # one for each machine
        _write(path, features)
    return features


def add_weights(digest: hashlib._Hash, tower: nn.Module) -> None:
    """Add every name and byte of a module's weights and buffers to a hash."""
    for name, value in sorted(tower.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def _state(image: Path | bytes) -> str:
    if isinstance(image, bytes):
        return hashlib.blake2b(image, digest_size=16).hexdigest()
    try:
        found = image.stat()
    except OSError:
        return "gone"
    return f"{image} {found.st_size} {found.st_mtime_ns}"


def _read(path: Path, count: int) -> Tensor | None:
    import safetensors
    from safetensors.torch import load_file

    try:
        features = load_file(path)["features"]
    except (OSError, KeyError, safetensors.SafetensorError):
        return None
    return features if features.ndim == 2 and len(features) == count else None


def _write(path: Path, features: Tensor) -> None:
    from safetensors.torch import save_file

    # Without room for them the features are only computed again the next time.
    with contextlib.suppress(OutputError), replacing(path, "features") as beside:
        save_file({"features": features.contiguous()}, beside)
