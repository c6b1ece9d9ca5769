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

from diptych.errors import DataError
from diptych.image import EvalTransform, decode_image, decode_pixels
from diptych.types import Record

ImageTransform = Callable[[Image.Image], Tensor]
"""A PIL image -> uint8 [3, H, W]."""
ImageBatch = tuple[Tensor, list[tuple[int, DataError]]]
"""Images uint8 [B, 3, H, W], blank where they cannot be read, and (row, error) of those."""


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
    source: Records, indices: Sequence[int], transform: ImageTransform, batch_size: int, workers: int
) -> Iterable[ImageBatch]:
    """The images of the records at ``indices``, in order; ``workers`` processes decode them (0: the calling process)."""
    return DataLoader(
        _Images(source, indices, transform),
        batch_size=batch_size,
        num_workers=min(workers, len(indices)),
        collate_fn=partial(_stack, transform),
        generator=torch.Generator(),  # its own: an evaluation leaves the random state of a training as it is
    )


class _Images(Dataset[Tensor | DataError]):
    """The chosen images of a source; one that cannot be read is given as its error, which a worker would garble if raised."""

    def __init__(self, source: Records, indices: Sequence[int], transform: ImageTransform) -> None:
        self.source, self.indices, self.transform = source, indices, transform

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Tensor | DataError:
        try:
            record = self.source.record(self.indices[position])
            if isinstance(self.transform, EvalTransform):  # takes pixels too, which are faster to decode
                return self.transform(decode_pixels(record.image, record.key))
            return self.transform(decode_image(record.image, record.key))
        except DataError as error:
            return error


def _stack(transform: ImageTransform, images: list[Tensor | DataError]) -> ImageBatch:
    errors = [(position, image) for position, image in enumerate(images) if isinstance(image, DataError)]
    readable = next((image for image in images if isinstance(image, Tensor)), None)
    blank = torch.zeros_like(transform(Image.new("RGB", (64, 64))) if readable is None else readable)
    return torch.stack([image if isinstance(image, Tensor) else blank for image in images]), errors
