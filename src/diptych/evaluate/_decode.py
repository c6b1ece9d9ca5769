"""Records to batches of images for an evaluation, decoded in worker processes.

What cannot be read comes back as its error, for the encoder to judge. It knows no model and shuffles nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diptych.errors import DataError
from diptych.image import EvalTransform, decode_image, decode_pixels
from diptych.types import Record

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
    source: Records, indices: Sequence[int], transform: Callable[[Any], Tensor], batch_size: int, workers: int
) -> Iterable[ImageBatch]:
    """The images of the records at ``indices``, in order; ``workers`` processes decode them (0: this one)."""
    return DataLoader(
        _Images(source, indices, transform),
        batch_size=batch_size,
        num_workers=min(workers, len(indices)),
        collate_fn=partial(_stack, transform),
        generator=torch.Generator(),  # its own: an evaluation leaves the random state of a training as it is
    )


class _Images(Dataset[Tensor | DataError]):
    """The chosen images of a source; one that cannot be read is returned as its error, which a worker process would garble."""

    def __init__(self, source: Records, indices: Sequence[int], transform: Callable[[Any], Tensor]) -> None:
        self.source, self.indices, self.transform = source, indices, transform

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Tensor | DataError:
        try:
            record = self.source.record(self.indices[position])
            # Another transform than ours is given what the library promises it, a Pillow image.
            decode: Callable[..., Any] = decode_pixels if isinstance(self.transform, EvalTransform) else decode_image
            return self.transform(decode(record.image, record.key))
        except DataError as error:
            return error


def _stack(transform: Callable[[Any], Tensor], images: list[Tensor | DataError]) -> ImageBatch:
    errors = [(position, image) for position, image in enumerate(images) if isinstance(image, DataError)]
    readable = next((image for image in images if isinstance(image, Tensor)), None)
    blank = torch.zeros_like(transform(Image.new("RGB", (64, 64))) if readable is None else readable)
    return torch.stack([image if isinstance(image, Tensor) else blank for image in images]), errors
