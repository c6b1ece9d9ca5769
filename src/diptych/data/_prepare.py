"""A record becomes a sample: decode, make the image views, choose captions, make the text views, tokenize.

All randomness comes from the sample's seed. Each view draws from a stream of its own, made of (seed, modality, name of the view,
its number among views of that name): a name that stands twice gives two different views, and asking for one view more changes
none of the others. The caption that the first view "caption" gets is a function of the seed alone, so the views that are made of
it ("augmented") or of any other ("another") compute it again.
"""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np

from diptych.data._choice import CaptionChoice
from diptych.data._order import draw
from diptych.errors import ConfigError
from diptych.image import VIEWS as IMAGE_VIEWS
from diptych.image import ImageView, ViewOptions, decode
from diptych.registry import did_you_mean
from diptych.text import VIEWS as TEXT_VIEWS
from diptych.text import TextView, TextViewOptions, Tokenized, Tokenizer, mask_tokens
from diptych.types import MaskedSample, Record, Sample, Wants

PRECOMPUTED_FEATURES = "diptych_features"  # where a record's ``extra`` carries features of its image, fp32 [D]
Recipe = TypeVar("Recipe")


def _id_of(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True)
class Stream:
    """A stream of randomness: of equal samples and streams equal, of different ones independent."""

    number: int

    @classmethod
    def of(cls, modality: str, name: str, number: int) -> Stream:
        """The stream of the ``number``-th view of a name; ``modality`` is image, text or mask."""
        return cls(_id_of(f"{modality}/{name}/{number}"))

    def generator(self, seed: int) -> np.random.Generator:
        """The generator of a sample, by its seed."""
        return np.random.default_rng(draw(seed, self.number))


FIRST_CAPTION = Stream.of("text", "caption", 0)
"""What the first view "caption" draws its caption from."""


@dataclass(frozen=True)
class Prepare:
    """How records become samples, decided once for a whole run; ``build_prepare`` makes it of what an objective wants.

    ``image_views`` and ``text_views`` with the stream that each draws from; ``choice`` of a record's captions; ``mask`` the
    stream of masked tokens, where they are wanted; the tokenizer then has a mask token. ``strict``: an image whose data is
    damaged is an error, though it can be decoded.
    """

    image_views: tuple[tuple[ImageView, Stream], ...]
    text_views: tuple[tuple[TextView, Stream], ...]
    tokenizer: Tokenizer
    choice: CaptionChoice = field(default_factory=CaptionChoice)
    mask: Stream | None = None
    strict: bool = False

    def __call__(self, record: Record, seed: int, index: int = 0) -> Sample:
        """Raises RecordError for an unreadable image or an empty caption."""
        texts = self.texts(record, seed)
        encoded = [self.tokenizer.encode(text) for text in texts]
        features = record.extra.get(PRECOMPUTED_FEATURES)
        images, damage = np.empty((len(self.image_views), 3, 0, 0), np.uint8), ""
        if features is None and self.image_views:
            images, damage = self._images(record, seed)
        return Sample(
            images=images,
            tokens=tuple(item.ids for item in encoded),
            lengths=tuple(item.length for item in encoded),
            index=index,
            seed=seed,
            label=record.label,
            key=record.key,
            group=image_id(record),
            masked=self._masked(encoded, seed),
            num_truncated=sum(item.num_truncated for item in encoded),
            features=features,
            source=record.source,
            damage=damage,
        )

    def _images(self, record: Record, seed: int) -> tuple[np.ndarray, str]:
        """All views, uint8 [V, 3, H, W], from a single decoding, and what is damaged in the image."""
        pixels, damage = decode(record.image, record.key, strict=self.strict)
        return np.stack([view(pixels, stream.generator(seed)) for view, stream in self.image_views]), damage

    def texts(self, record: Record, seed: int) -> list[str]:
        """The text of each text view. Raises RecordError where the record has no such caption."""
        return [self._text(record, view, stream, seed) for view, stream in self.text_views]

    def _text(self, record: Record, view: TextView, stream: Stream, seed: int) -> str:
        rng = stream.generator(seed)
        if view.caption == "own":
            return view(self.choice(record, rng), rng)
        chosen = self.choice(record, FIRST_CAPTION.generator(seed))
        return view(self.choice.another(record, chosen, rng) if view.caption == "another" else chosen, rng)

    def _masked(self, texts: list[Tokenized], seed: int) -> MaskedSample | None:
        """The first text view with tokens masked, where they are wanted."""
        if self.mask is None:
            return None
        return mask_tokens(texts[0].ids, texts[0].length, self.tokenizer, self.mask.generator(seed))


def build_prepare(
    wants: Wants,
    tokenizer: Tokenizer,
    options: ViewOptions,
    captions: Literal["random", "first"] = "random",
    weights: tuple[tuple[str, float], ...] = (),
    *,
    strict: bool = False,
    texts: TextViewOptions | None = None,
) -> Prepare:
    """The preparation that gives what an objective wants: image views by ``options``, text views by ``texts``.

    ``weights`` draws among the texts that a record's own keys hold, e.g. (("caption", 0.3), ("blip_caption", 0.7)).
    Raises ConfigError for a view of no known name, for masked tokens of a tokenizer that has no mask token, and for another
    caption where only the first is used.
    """
    if wants.masked and not wants.texts:
        raise ConfigError("masked tokens are those of the first text view, and no text view is wanted.")
    if wants.masked and tokenizer.mask_id is None:
        raise ConfigError(
            f"the objective masks tokens, and the tokenizer {tokenizer.name!r} has no mask token; choose a model with one."
        )
    images = [(recipe(options), stream) for recipe, stream in _named(wants.images, IMAGE_VIEWS, "image")]
    texts = texts or TextViewOptions()
    text_views = [(recipe(texts), stream) for recipe, stream in _named(wants.texts, TEXT_VIEWS, "text")]
    if captions == "first" and any(view.caption == "another" for view, _ in text_views):
        raise ConfigError(
            "--captions first trains on one caption of an image, and the objective wants another of them too; leave it out."
        )
    mask = Stream.of("mask", "tokens", 0) if wants.masked else None
    choice = CaptionChoice(captions, weights, texts.bad_captions)
    return Prepare(tuple(images), tuple(text_views), tokenizer, choice, mask, strict)


def _named(names: Sequence[str], table: Mapping[str, Recipe], modality: str) -> list[tuple[Recipe, Stream]]:
    """The recipe of each name, and the stream that its view draws from. Raises ConfigError for an unknown name."""
    count: collections.Counter[str] = collections.Counter()
    views = []
    for name in names:
        if name not in table:
            raise ConfigError(did_you_mean(name, table, f"{modality} view"))
        views.append((table[name], Stream.of(modality, name, count[name])))
        count[name] += 1
    return views


def image_id(record: Record) -> int:
    """A stable 63-bit id of the image: equal for records that show the same image."""
    return _id_of(record.group if record.group is not None else record.key)
