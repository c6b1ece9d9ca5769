"""Cached image features: images are encoded once for all probes of the same weights.

A file of the cache folder is named by a hash of the image tower's weights, the precision, and every image's name and state
(bytes, or size and time of its file), so other weights or changed images are encoded from scratch. It knows no scores.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from diptych.distributed import process_group
from diptych.errors import OutputError
from diptych.evaluate._decode import Records
from diptych.evaluate._encode import Advance, Encoder, Unreadable
from diptych.evaluate._readable import BadImages, labels_of
from diptych.files import cache_folder, replacing

FORMAT = "features 2"


class Labeled(NamedTuple):
    """Features fp32 [N, D] on the CPU, not normalized, labels int64 [N], and how many bad records were left out."""

    features: Tensor
    labels: Tensor
    bad: int = 0


def labeled_features(encoder: Encoder, source: Records, advance: Advance) -> Labeled:
    """Encode every image of a labeled source, or read its features from the cache.

    Bad records are left out or raise, as the encoder says. Raises SourceError where no record has a label.
    """
    bad = BadImages(source, encoder)
    indices, labels, _ = labels_of(source, bad)

    def encode(unreadable: Unreadable | None) -> Tensor:
        return image_features(encoder, source, indices, advance, unreadable=unreadable)

    features, rows = bad.encoded(encode)
    bad.finish(len(source) - len(rows), len(source))
    return Labeled(features, labels[rows], len(source) - len(rows))


def image_features(
    encoder: Encoder,
    source: Records,
    indices: Sequence[int],
    advance: Advance,
    *,
    unreadable: Unreadable | None = None,
) -> Tensor:
    """Features fp32 [len(indices), D] on the CPU, from the cache or computed; errors are those of ``Encoder.images``."""
    if not encoder.cache:
        return encoder.images(source, indices, advance, unreadable).cpu()
    digest = hashlib.sha256(
        f"{FORMAT} {encoder.precision} {encoder.transform!r} {encoder.strict} {encoder.architecture}".encode()
    )
    add_weights(digest, encoder.tower_state("image"))
    for index in indices:
        record = source.record(index)
        digest.update(f"{record.key} {_state(record.image)} ".encode("utf-8", "surrogateescape"))
    path = cache_folder() / "features" / f"{digest.hexdigest()[:40]}.safetensors"
    features = read_tensor(path, "features", len(indices))
    if features is not None and unreadable is None and bool(features[:, :1].isnan().any()):
        features = None  # written by a caller that accepts unreadable images, which are errors to this caller
    missing = features is None
    if encoder.shared:  # then all must agree whether there is work to share
        missing = process_group.any_rank(missing, encoder.device.torch_device, encoder.group)
    if features is not None and not missing:
        advance(len(indices))
        return features
    features = encoder.images(source, indices, advance, unreadable).cpu()
    if process_group.world_from_environment().local_rank == 0:  # one file for each machine
        write_tensor(path, "features", features)
    return features


def add_weights(digest: hashlib._Hash, state: Mapping[str, Tensor]) -> None:
    """Add every name and byte of weights and buffers to a hash."""
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def _state(image: Path | bytes) -> str:
    if isinstance(image, bytes):
        return hashlib.blake2b(image, digest_size=16).hexdigest()
    try:
        status = image.stat()
    except OSError:
        return "missing"
    return f"{image} {status.st_size} {status.st_mtime_ns}"


def read_tensor(path: Path, name: str, count: int) -> Tensor | None:
    """The tensor [count, D] of a cache file; None where the file is absent, damaged, or of another length."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensor = load_file(path)[name]
    except (OSError, KeyError, SafetensorError):
        return None
    return tensor if tensor.ndim == 2 and len(tensor) == count else None


def write_tensor(path: Path, name: str, tensor: Tensor) -> None:
    """Write a cache file; one that cannot be written is no reason to lose an evaluation."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    # safetensors turns a full disk into an error of its own.
    with contextlib.suppress(OutputError, SafetensorError), replacing(path, name) as temporary:
        save_file({name: tensor.cpu().contiguous()}, temporary)
