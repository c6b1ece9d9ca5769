"""Features of many images and captions: decoding in worker processes, captions in batches of equal length.

Shared by the evaluators. It knows no scores and no protocol, and does not train.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from diptych import log
from diptych.devices import Device
from diptych.distributed import process_group
from diptych.distributed.gather import gather
from diptych.distributed.process_group import Group
from diptych.errors import ConfigError, DataError, RecordError
from diptych.evaluate._decode import Damaged, ImageTransform, Records, image_batches, sent
from diptych.evaluate._laid_out import LaidOut
from diptych.image import compile_kernels
from diptych.models import SharedPrefixes, TwoTower, text_layout
from diptych.text import TextLayout, Tokenizer, texts_of

Progress = Callable[[int, int], None]
"""``progress(done, total)``."""
Advance = Callable[[int], None]
"""``advance(count)``: so many more are done."""
Unreadable = Callable[[RecordError], None]


@dataclass(frozen=True)
class Encoder:
    """A model with all that turns images and captions into its features.

    ``model`` is a TwoTower or a Layout. ``transform`` maps a PIL image to uint8 [3, H, W]; ``workers`` processes decode images
    (0: the calling process). Features are on the device, fp32, not normalized. ``cache``: image features and classifiers of the
    same weights are read from the cache folder, and written there.

    ``shared``: the processes of the group encode a part each, and all get all. Then every process must make the same calls,
    and makes the same number of forward calls with as many rows, padded where there is nothing left to encode: a sharded
    model needs that. What one process cannot read raises the same error in all.

    ``text_layout``: how texts are laid out; None takes the form of the device.

    ``bad_samples``: what evaluators do with an image that cannot be read (``_readable``); ``strict``: a damaged one cannot.
    """

    model: TwoTower | LaidOut
    tokenizer: Tokenizer
    transform: ImageTransform
    device: Device
    batch_size: int = 64
    workers: int = 0
    precision: str = "fp32"
    shared: bool = False
    cache: bool = True
    bad_samples: Literal["raise", "skip"] = "raise"
    bad_limit: float = 0.05
    strict: bool = False
    text_layout: TextLayout | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.workers < 0:
            raise ConfigError(f"batch size {self.batch_size}, workers {self.workers}: expected at least 1 and 0.")
        laid_out = None if isinstance(self.model, nn.Module) else self.model
        if laid_out is not None and laid_out.collective and process_group.size(self.group) > 1 and not self.shared:
            raise ConfigError("this model is sharded over processes, which must encode together: give shared=True.")

    @property
    def group(self) -> Group:
        """The processes that share the work; None for all."""
        return None if isinstance(self.model, nn.Module) else self.model.group

    @property
    def architecture(self) -> str:
        """The model's whole configuration, as text: equal weights compute other features under another activation."""
        if isinstance(self.model, nn.Module):
            return repr(self.model.config) if isinstance(self.model, TwoTower) else type(self.model).__qualname__
        return self.model.architecture

    def images(
        self, source: Records, indices: Sequence[int], advance: Advance, unreadable: Unreadable | None = None
    ) -> Tensor:
        """Return features [len(indices), D] of the records' images.

        Raises the error of the first image that cannot be read. With ``unreadable``, each RecordError is passed to it in every
        process that meets it, and that row is not a number; the error is raised only where no image at all can be read.
        """
        if not indices:
            raise ConfigError("no image to encode.")
        compile_kernels(len(indices))
        first: list[RecordError] = []

        def report(error: RecordError) -> None:
            first.append(error)
            if unreadable is not None:
                unreadable(error)

        def encode(positions: Sequence[int], advance: Advance) -> Tensor:
            chosen = [indices[position] for position in positions]
            return self._images(source, chosen, advance, None if unreadable is None else report)

        features = self.together(len(indices), encode, advance)
        if unreadable is not None and bool(features[:, 0].isnan().all()):
            error = first[0] if first else None
            error = process_group.first_not_none(error, self.group) if self.shared else error
            if error is not None:
                raise error
        return features

    def _images(
        self, source: Records, indices: Sequence[int], advance: Advance, unreadable: Unreadable | None
    ) -> Tensor:
        features: list[Tensor] = []
        damaged_images: Damaged = []
        batches = image_batches(source, indices, self.transform, self.batch_size, self.workers, strict=self.strict)
        with self.inference():
            for images, errors, damaged in batches:
                damaged_images += damaged
                fatal = (error for _, error in errors if unreadable is None or not isinstance(error, RecordError))
                self._agree(next(fatal, None))
                for _, error in errors:
                    if unreadable is not None and isinstance(error, RecordError):
                        unreadable(error)
                rows = _filled(images, min(self.batch_size, len(indices)))
                encoded = self.model.encode_image(sent(rows, self.device))[: len(images)].float()
                if errors:
                    encoded[[position for position, _ in errors]] = torch.nan
                features.append(encoded)
                advance(len(images))
        if damaged_images:
            key, damage = damaged_images[0]
            log.warn(
                f"{source.name}: {len(damaged_images)} of {len(indices)} images have damaged data and are used all the same "
                f"(first {key}: {damage}); --bad-samples-strict leaves them out"
            )
        return torch.cat(features)

    def texts(self, captions: Sequence[str], advance: Advance) -> Tensor:
        """Return features [len(captions), D] in the order given; long and short captions do not meet in a batch.

        Captions of equal ids are encoded once: they tie to the last bit, whatever kernels do with the rest of a batch.

        Raises ConfigError where there is none, and for what is no text.
        """
        captions = texts_of(captions)
        if not captions:
            raise ConfigError("no caption to encode.")
        every = [self.tokenizer.encode(caption) for caption in captions]
        names = [(item.ids.tobytes(), item.length) for item in every]
        distinct = dict(zip(names, every, strict=True))
        encoded = list(distinct.values())
        order = sorted(range(len(encoded)), key=lambda index: len(encoded[index].ids))
        if len(encoded) < len(every):
            advance(len(every) - len(encoded))

        def encode(positions: Sequence[int], advance: Advance) -> Tensor:
            chosen = [encoded[order[position]] for position in positions]
            return self._texts([item.ids for item in chosen], [item.length for item in chosen], advance)

        features = self.together(len(order), encode, advance)
        original = torch.tensor(order).argsort()
        numbers = {name: number for number, name in enumerate(distinct)}
        return features[original[[numbers[name] for name in names]].to(features.device)]

    def _texts(self, ids: Sequence[np.ndarray], lengths: Sequence[int], advance: Advance) -> Tensor:
        features = []
        with self.inference():
            for begin in range(0, len(ids), self.batch_size):
                batch = slice(begin, begin + self.batch_size)
                features.append(self.encode_text(*self.tokenizer.pad(ids[batch], lengths[batch])))
                advance(len(features[-1]))
        return torch.cat(features)

    def encode_text(self, tokens: Tensor, lengths: Tensor, prefix: SharedPrefixes | None = None) -> Tensor:
        """Features fp32 [B, D] of ids [B, L] and their lengths [B], in main memory; within ``inference``.

        ``prefix``, in main memory too, is used where the towers are there; elsewhere each text is computed whole.
        """
        device = self.device.torch_device
        if prefix is not None and device == tokens.device:
            return self.model.encode_text(tokens, lengths=lengths, prefix=prefix).float()
        planned = {}
        layout = self._layout
        if layout is not None:
            padded = layout.padded(tokens.shape[1])
            tokens = F.pad(tokens, (0, padded - tokens.shape[1]), value=self.tokenizer.pad_id)
            plan = layout.plan(lengths, padded)
            planned["plan"] = tree_map_only(Tensor, lambda item: sent(item, self.device), plan)
        tokens, lengths = (sent(item, self.device) for item in (tokens, lengths))
        return self.model.encode_text(tokens, lengths=lengths, **planned).float()

    @functools.cached_property
    def _layout(self) -> TextLayout | None:
        """How texts are laid out; None where the model takes no plan."""
        if not getattr(self.model, "takes_plans", False):  # other modules that encode stand in for a model
            return None
        return self.text_layout or text_layout(self.model.text_config, self.device.text_layout(self.precision))

    def together(
        self, count: int, encode: Callable[[Sequence[int], Advance], Tensor], advance: Advance, units: int = 1
    ) -> Tensor:
        """Rows [count, D] of positions 0 to count - 1, of which ``encode(positions, advance)`` computes this process's.

        Positions are dealt out in turn, so that what is sorted by length is fairly shared. Every process gets as many: the
        last position fills up, and its extra rows are dropped. ``units`` is how much a position advances.
        """
        ranks = process_group.size(self.group) if self.shared else 1
        if ranks == 1:
            return encode(range(count), advance)
        own = range(process_group.rank(self.group), count, ranks)
        each = -(-count // ranks)
        filled = [*own, *[count - 1] * (each - len(own))]
        rows = gather(encode(filled, _at_most(len(own) * units, advance)), self.group)
        advance((count - len(own)) * units)
        position = torch.arange(count, device=rows.device)
        return rows[position % ranks * each + position // ranks]

    def _agree(self, error: DataError | None) -> None:
        """Raise the error, in every process where the work is shared: a process that went on alone would wait for ever."""
        if self.shared and process_group.any_rank(error is not None, self.device.torch_device, self.group):
            error = process_group.first_not_none(error, self.group)
        if error is not None:
            raise error

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Without gradients, in the encoder's precision; entered once for many batches, so that weights are cast once."""
        # no_grad, not inference_mode: what a tower caches now (masks, positions) must serve the next training step.
        with torch.no_grad(), self.device.autocast(self.precision):
            yield

    def evaluating(self) -> AbstractContextManager[None]:
        """Context in which the model is in evaluation mode; every module gets back the mode that it had."""
        return _evaluating(self.model) if isinstance(self.model, nn.Module) else self.model.evaluating()

    def tower_state(self, tower: Literal["image", "text"]) -> Mapping[str, Tensor]:
        """Names and whole weights of a tower. A collective where the model is laid out over processes."""
        if isinstance(self.model, TwoTower):
            return self.model.get_submodule(tower).state_dict()
        prefix = f"model.{tower}."
        state = self.model.full_state()
        return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _filled(images: Tensor, size: int) -> Tensor:
    """``size`` images, the last one again and again: a product of fewer rows may round otherwise, and equal images not tie."""
    return (
        torch.cat([images, images[-1:].expand(size - len(images), *images.shape[1:])]) if len(images) < size else images
    )


def _at_most(limit: int, advance: Advance) -> Advance:
    """An ``advance`` that passes on no more than ``limit`` in all: padding is no progress."""
    left = limit

    def capped(count: int) -> None:
        nonlocal left
        count = min(count, left)
        left -= count
        advance(count)

    return capped


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def counting(progress: Progress | None, total: int) -> Advance:
    """Return a function that adds up what was done and calls ``progress(done, total)``."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    return advance
