"""A record becomes a sample: decode, transform, choose a caption, tokenise.

All chance comes from the seed that is handed in, so the same record with the same seed gives the same sample in any process.
Training draws one caption per text view and a crop per image view; evaluation takes the first caption and the fixed transform.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from diptych.data._columns import captions_of
from diptych.errors import RecordError
from diptych.image import EvalTransform, TrainTransform, decode_pixels
from diptych.text import Tokenizer
from diptych.types import Record, Sample, Wants

PRECOMPUTED_FEATURES = "diptych_features"  # where a record's ``extra`` carries features of its picture, fp32 [D]
EMPTY = np.empty((3, 0, 0), dtype=np.uint8)


@dataclass(frozen=True)
class Prepare:
    """How records become samples, decided once for a whole run; ``captions`` says which one training takes of several.

    ``weights`` draws among the texts that a record's own keys hold, e.g. (("caption", 0.3), ("blip_caption", 0.7)).
    """

    transform: TrainTransform | EvalTransform
    tokenizer: Tokenizer
    wants: Wants
    training: bool
    captions: Literal["random", "first"] = "random"
    weights: tuple[tuple[str, float], ...] = ()

    def __call__(self, record: Record, seed: int, index: int = 0) -> Sample:
        """Raises RecordError for an unreadable image or an empty caption."""
        rng = np.random.default_rng(seed)
        captions = [self._caption(record, rng) for _ in self.wants.texts]
        known = record.extra.get(PRECOMPUTED_FEATURES)
        views = [EMPTY] * len(self.wants.images) if known is not None else self._views(record, rng)
        encoded = [self.tokenizer.encode(caption) for caption in captions]
        return Sample(
            images=np.stack(views),
            tokens=tuple(item.ids for item in encoded),
            lengths=tuple(item.length for item in encoded),
            index=index,
            seed=seed,
            label=record.label,
            key=record.key,
            group=picture_id(record),
            num_truncated=sum(item.num_truncated for item in encoded),
            features=known,
            source=record.source,
        )

    def _views(self, record: Record, rng: np.random.Generator) -> list[np.ndarray]:
        """uint8 [3, H, W] of each view, from one decoding."""
        transform, pixels = self.transform, decode_pixels(record.image, record.key)
        if isinstance(transform, TrainTransform):
            return [transform(pixels, rng) for _ in self.wants.images]
        return [transform(pixels).numpy() for _ in self.wants.images]

    def _caption(self, record: Record, rng: np.random.Generator) -> str:
        if not record.captions:
            raise RecordError(record.key, "has no caption", "give it one, or leave it out")
        if self.weights and self.training:
            return self._by_weight(record, rng)
        drawn = self.training and self.captions == "random"
        chosen = record.captions[int(rng.integers(len(record.captions))) if drawn else 0]
        if not chosen.strip():
            raise RecordError(record.key, "the caption is empty", "write one, or leave the record out")
        return chosen

    def _by_weight(self, record: Record, rng: np.random.Generator) -> str:
        """One of the named texts that this record has, and that are not empty."""
        texts = [(captions_of(record.extra.get(key)), weight) for key, weight in self.weights]
        there = [(found, weight) for found, weight in texts if any(text.strip() for text in found)]
        if not there:
            named = ", ".join(key for key, _ in self.weights)
            raise RecordError(record.key, f"has none of the captions {named}", "give it one, or leave the record out")
        shares = np.array([weight for _, weight in there])
        found = [text for text in there[int(rng.choice(len(there), p=shares / shares.sum()))][0] if text.strip()]
        return found[int(rng.integers(len(found)))]


def picture_id(record: Record) -> int:
    """A stable 63-bit id of the picture: equal for records that show the same one."""
    name = record.group if record.group is not None else record.key
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") >> 1
