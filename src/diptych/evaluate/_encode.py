"""Features of many images and captions: decoding in worker processes, captions in batches of equal length.

Shared by the EVALUATORS. It knows no scores and no protocol, and does not train.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from diptych.distributed import process_group
from diptych.distributed.gather import gather_rows
from diptych.errors import ConfigError, DataError, RecordError
from diptych.image import EvalTransform, compile_kernels, decode_image, decode_pixels
from diptych.types import Record

Progress = Callable[[int, int], None]


class Records(Protocol):
    """What an evaluator asks of a source: random access to records."""

    def __len__(self) -> int:
        """The number of records."""

    def record(self, index: int) -> Record:
        """One record, still encoded."""


@dataclass(frozen=True)
class Encoder:
    """A model with all that turns pictures and captions into its features.

    ``transform`` maps a PIL image to uint8 [3, H, W]; ``device`` is a ``diptych.devices.Device``; ``workers`` processes
    decode images (0: this one). Features come back on the device, fp32, not normalised. ``shared``: the processes of the group
    encode a part each, and all get all; then all of them must make the same calls.
    """

    model: nn.Module
    tokenizer: Any
    transform: Callable[[Any], Tensor]
    device: Any
    batch_size: int = 64
    workers: int = 0
    precision: str = "fp32"
    shared: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.workers < 0:
            raise ConfigError(f"batch size {self.batch_size}, workers {self.workers}: expected at least 1 and 0.")

    def images(
        self,
        source: Records,
        indices: Sequence[int],
        step: Callable[[int], None],
        unreadable: Callable[[RecordError], None] | None = None,
    ) -> Tensor:
        """Return features [len(indices), D] of the named records' images; ``step`` hears how many were done each time.

        Raises the RecordError of the first image that cannot be decoded; or, with ``unreadable``, tells it and leaves that
        row not a number.
        """
        compile_kernels(len(indices))
        return self.together(
            len(indices), lambda mine: self._images(source, [indices[place] for place in mine], step, unreadable), step
        )

    def _images(
        self,
        source: Records,
        indices: Sequence[int],
        step: Callable[[int], None],
        unreadable: Callable[[RecordError], None] | None,
    ) -> Tensor:
        loader = DataLoader(
            _Pictures(source, indices, self.transform),
            batch_size=self.batch_size,
            num_workers=min(self.workers, len(indices)),
            collate_fn=_stack,
            generator=torch.Generator(),  # its own: an evaluation leaves the random state of a training as it is
        )
        features: list[Tensor | int] = []  # a number stands for so many pictures of which none could be read
        first: RecordError | None = None
        with self.inference():
            for images, broken in loader:
                for _, error in broken:
                    if unreadable is None:
                        raise error
                    unreadable(error)
                    first = first or error
                if images is None:
                    features.append(len(broken))
                else:
                    encoded = self.model.encode_image(images.to(self.device.torch_device)).float()  # type: ignore[operator]
                    encoded[[place for place, _ in broken]] = torch.nan
                    features.append(encoded)
                step(len(broken) if images is None else len(images))
        like = next((one for one in features if isinstance(one, Tensor)), None)
        if like is None:
            raise first or ConfigError("no picture was given to encode.")
        blank = like.new_full((1, like.shape[1]), torch.nan)
        return torch.cat([blank.expand(one, -1) if isinstance(one, int) else one for one in features])

    def texts(self, captions: Sequence[str], step: Callable[[int], None]) -> Tensor:
        """Return features [len(captions), D] in the order given; long and short captions do not meet in a batch."""
        ids = [self.tokenizer.encode(caption).ids for caption in captions]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        found = self.together(len(order), lambda mine: self._texts([ids[order[place]] for place in mine], step), step)
        return found[_inverse(torch.tensor(order)).to(found.device)]

    def _texts(self, ids: Sequence[Any], step: Callable[[int], None]) -> Tensor:
        features = []
        with self.inference():
            for begin in range(0, len(ids), self.batch_size):
                tokens, _ = self.tokenizer.pad(ids[begin : begin + self.batch_size])
                encoded = self.model.encode_text(tokens.to(self.device.torch_device))  # type: ignore[operator]
                features.append(encoded.float())
                step(len(tokens))
        return torch.cat(features)

    def together(self, count: int, encode: Callable[[range], Tensor], step: Callable[[int], None]) -> Tensor:
        """``encode`` for the places of 0 to count - 1 that are this process's, and the rows of all in order, [count, D].

        Places are dealt out like cards, so that what is sorted by length is fairly shared. A DataError of one process is
        raised in all.
        """
        size = process_group.size()
        if not self.shared or count < size:
            return encode(range(count))
        failed, features, mine = None, None, range(process_group.rank(), count, size)
        try:
            features = encode(mine)
        except DataError as error:
            failed = error
        failed = process_group.first_not_none(failed)
        if failed is not None:
            raise failed
        step(count - len(mine))
        found = gather_rows(features)  # type: ignore[arg-type]
        dealt = torch.cat([torch.arange(rank, count, size) for rank in range(size)])
        return found[_inverse(dealt).to(found.device)]

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Without gradients, in the encoder's precision; entered once for many batches, so that weights are cast once."""
        # no_grad, not inference_mode: what a tower caches here (masks, positions) must serve the next training step.
        with torch.no_grad(), self.device.autocast(self.precision):
            yield


def _inverse(order: Tensor) -> Tensor:
    """The permutation that undoes another, int64 [n]."""
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    return place


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode, and give every module back the mode that it had (a frozen part stays so)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def steps(progress: Progress | None, total: int) -> Callable[[int], None]:
    """Return a function that adds up what was done and tells ``progress(done, total)``."""
    done = 0

    def step(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    return step


class _Pictures(Dataset[Any]):
    """The chosen images of a source; an unreadable one is returned as its error, which keeps its words on the way home."""

    def __init__(self, source: Records, indices: Sequence[int], transform: Callable[[Any], Tensor]) -> None:
        self.source, self.indices, self.transform = source, indices, transform

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> Tensor | RecordError:
        record = self.source.record(self.indices[place])
        try:
            # Another transform than ours is given what the library promises it, a Pillow picture.
            decode: Any = decode_pixels if isinstance(self.transform, EvalTransform) else decode_image
            return self.transform(decode(record.image, record.key))
        except RecordError as error:
            return error


def _stack(images: list[Tensor | RecordError]) -> tuple[Tensor | None, list[tuple[int, RecordError]]]:
    """The pictures of a batch, and (place, error) of those that cannot be read; blank ones stand in their places.

    None where all cannot: raised in a loader process, an error would come home buried in a traceback.
    """
    broken = [(place, image) for place, image in enumerate(images) if isinstance(image, RecordError)]
    whole = next((image for image in images if isinstance(image, Tensor)), None)
    if whole is None:
        return None, broken
    return torch.stack([image if isinstance(image, Tensor) else torch.zeros_like(whole) for image in images]), broken
