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

from diptych.distributed import process_group
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
    features = kept(path, "features", len(indices)) if keep else None
    if features is not None and unreadable is None and bool(features[:, :1].isnan().any()):
        features = None  # kept by somebody who lives with unreadable pictures: here they are errors
    missing = features is None
    if encoder.shared:  # then all must agree whether there is work to share
        missing = process_group.first_not_none(missing or None) is not None
    if features is not None and not missing:
        step(len(indices))
        return features
    features = encoder.images(source, indices, step, unreadable).cpu()
    if keep and process_group.world_from_environment().local_rank == 0:  # one for each machine
        keep_tensor(path, "features", features)
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


def kept(path: Path, name: str, count: int) -> Tensor | None:
    """The tensor [count, D] that a cache file holds, if it is whole."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(path)[name]
    except (OSError, KeyError, SafetensorError):
        return None
    return found if found.ndim == 2 and len(found) == count else None


def keep_tensor(path: Path, name: str, found: Tensor) -> None:
    """Write a cache file; one that cannot be written is no reason to lose an evaluation."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # safetensors turns a full disk into an error of its own.
    with contextlib.suppress(OutputError, SafetensorError), replacing(path, name) as beside:
        save_file({name: found.cpu().contiguous()}, beside)
