"""Records to batches of images for an evaluation, decoded in worker processes.

What cannot be read comes back as its error, for the encoder to judge. It knows no model and shuffles nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diptych.devices import Device
from diptych.errors import DataError
from diptych.image import EvalTransform, decode
from diptych.types import Record

ImageTransform = Callable[[Image.Image], Tensor]
"""A PIL image -> uint8 [3, H, W]."""
Damaged = list[tuple[str, str]]
"""(key, damage) of images that are damaged and can be decoded all the same."""
ImageBatch = tuple[Tensor, list[tuple[int, DataError]], Damaged]
"""Images uint8 [B, 3, H, W], blank where they cannot be read, (row, error) of those, and the damaged ones."""
Decoded = tuple[Tensor | DataError, str, str]
"""The image or its error, the record's key, and what is damaged in it."""


class Records(Protocol):
    """What an evaluator asks of a source: random access to records."""

    @property
    def name(self) -> str:
        """The source's name, for messages and results."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes in the order of the labels, where the source has them."""

    def __len__(self) -> int:
        """The number of records."""

    def record(self, index: int) -> Record:
        """The record at an index, still encoded."""


def image_batches(
    source: Records,
    indices: Sequence[int],
    transform: ImageTransform,
    batch_size: int,
    workers: int,
    *,
    strict: bool = False,
) -> Iterable[ImageBatch]:
    """The images of the records at ``indices``, in order; ``workers`` processes decode them (0: the calling process).

    ``strict``: a damaged image is an error, though it can be decoded.
    """
    return DataLoader(
        _Images(source, indices, transform, strict),
        batch_size=batch_size,
        num_workers=min(workers, len(indices)),
        collate_fn=partial(_stack, transform),
        generator=torch.Generator(),  # its own: an evaluation leaves the random state of a training as it is
    )


class _Images(Dataset[Decoded]):
    """The chosen images of a source; one that cannot be read is given as its error, which a worker would garble if raised."""

    def __init__(self, source: Records, indices: Sequence[int], transform: ImageTransform, strict: bool) -> None:
        self.source, self.indices, self.transform, self.strict = source, indices, transform, strict

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Decoded:
        try:
            record = self.source.record(self.indices[position])
            pixels, damage = decode(record.image, record.key, strict=self.strict)
            # Ours takes pixels too, which saves a copy.
            image = pixels if isinstance(self.transform, EvalTransform) else Image.fromarray(pixels)
            return self.transform(image), record.key, damage  # type: ignore[arg-type]
        except DataError as error:
            return error, "", ""


def _stack(transform: ImageTransform, decoded: list[Decoded]) -> ImageBatch:
    images = [image for image, _, _ in decoded]
    errors = [(position, image) for position, image in enumerate(images) if isinstance(image, DataError)]
    damaged = [(key, damage) for _, key, damage in decoded if damage]
    readable = next((image for image in images if isinstance(image, Tensor)), None)
    blank = torch.zeros_like(transform(Image.new("RGB", (64, 64))) if readable is None else readable)
    return torch.stack([image if isinstance(image, Tensor) else blank for image in images]), errors, damaged


def sent(tensor: Tensor, device: Device) -> Tensor:
    """The tensor on the device, from page-locked memory where there is such: the host does not wait for the copy."""
    pinned = tensor.is_cpu and device.abilities.pin_memory
    return (tensor.pin_memory() if pinned else tensor).to(device.torch_device, non_blocking=True)
