"""Retrieval on a source of captioned images: texts by image and images by text.

Records that show the same image (same ``group``) are merged, and every caption is used, unless ``captions_per_image`` says how
many of the first (5 for the COCO protocol of the CLIP papers). The features stay in the result, so that a gallery or another
protocol costs no second pass. Scores and tie rule: ``_scores``. No loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from diptych.config import Count
from diptych.errors import SourceError
from diptych.evaluate._base import EVALUATORS, Evaluator
from diptych.evaluate._decode import Records
from diptych.evaluate._encode import Encoder, Progress, counting
from diptych.evaluate._gallery import CONSIDERED, Candidates, Cell, image_cell, ranked_rows, spread, text_cell
from diptych.evaluate._intervals import intervals
from diptych.evaluate._readable import BadImages
from diptych.evaluate._result import Result
from diptych.evaluate._scores import Protocol, chance, check_protocol, outcomes, retrieval_ranks, summary
from diptych.types import Record


@dataclass(frozen=True)
class RetrievalOptions:
    """How retrieval is measured."""

    protocol: Protocol = "grouped"
    """Retrieval: any true caption of the image counts (COCO, Flickr), or row by row as open_clip does."""
    captions_per_image: Count = 0
    """Only the first so many captions of an image (5 for COCO papers); 0 takes all."""


@dataclass(frozen=True)
class CaptionedImages:
    """Distinct images with their captions: ``indices`` [N] a record of each image, ``captions`` [M], ``owner`` [M]."""

    indices: tuple[int, ...]
    captions: tuple[str, ...]
    owner: tuple[int, ...]

    @property
    def captions_of_each(self) -> list[int]:
        """The number of captions of each image [N]."""
        return torch.bincount(torch.tensor(self.owner), minlength=len(self.indices)).tolist()


@dataclass(frozen=True)
class RetrievalResult(Result):
    """Scores, and the features they came from: fp32 on the CPU, ``image_features`` [N, D], ``text_features`` [M, D]."""

    captioned: CaptionedImages = field(repr=False)
    image_features: Tensor = field(repr=False)
    text_features: Tensor = field(repr=False)

    @property
    def text_to_image(self) -> Tensor:
        """The index of each caption's image, int64 [M]."""
        return torch.tensor(self.captioned.owner)


@EVALUATORS.register("retrieval")
class Retrieval(Evaluator[Records, RetrievalOptions, RetrievalResult]):
    """Ranks all captions for each image, and all images for each caption."""

    Options = RetrievalOptions
    data = "pairs"
    training_name = "val"

    def run(
        self, encoder: Encoder, source: Records, options: RetrievalOptions, progress: Progress | None = None
    ) -> RetrievalResult:
        """Encode every distinct image and caption and rank them; metrics are those of ``retrieval_scores``.

        Raises SourceError for a source without captions, the RecordError of an image that cannot be read.
        """
        check_protocol(options.protocol)
        bad = BadImages(source, encoder)
        captioned = merge(source, options.captions_per_image, bad.record)
        broken = len(bad.known)
        if not captioned.captions:
            raise SourceError(
                f"{source.name}: {len(source)} records and no caption; retrieval needs images with captions."
            )
        advance = counting(progress, len(captioned.indices) + len(captioned.captions))
        with encoder.evaluating():
            images, rows = bad.encoded(
                lambda unreadable: encoder.images(source, captioned.indices, advance, unreadable)
            )
            total = len(captioned.indices) + broken
            lost = bad.finish(total - len(rows), total)
            captioned = of_images(captioned, rows.tolist()) if len(rows) < len(captioned.indices) else captioned
            texts = encoder.texts(captioned.captions, advance)
        owner = torch.tensor(captioned.owner, device=texts.device)
        ranked = retrieval_ranks(images, texts, owner, options.protocol)
        answers = outcomes(ranked)
        return RetrievalResult(
            name=source.name,
            metrics=summary(ranked),
            intervals=intervals(answers),
            outcomes=answers,
            chance=chance(
                len(captioned.indices), len(captioned.captions), captioned.captions_of_each, options.protocol
            ),
            count={"images": len(captioned.indices), "texts": len(captioned.captions), **lost},
            captioned=captioned,
            image_features=images.cpu(),
            text_features=texts.cpu(),
        )

    def images(self, result: RetrievalResult, source: Records, title: str | None = None) -> list[dict[str, Any]]:
        """A gallery: images ranked for captions, and captions ranked for images."""
        return gallery(result, source, title=result.name if title is None else title)


def gallery(
    result: RetrievalResult, source: Records, *, title: str = "", queries: int = 12, hits: int = 8
) -> list[dict[str, Any]]:
    """Two parts of ``gallery.json``, images retrieved by caption and captions retrieved by image.

    ``queries`` rows, half as many in the second part, since captions take more room; ``hits`` answers each. ``source`` is the
    one that was evaluated; an image that cannot be decoded any more is left out.
    """
    suffix = f" · {title}" if title else ""
    owner = result.text_to_image
    captions = result.captioned.captions

    def caption(index: int) -> Cell:
        return text_cell(captions[index])

    @cache
    def image(index: int) -> Cell:
        return image_cell(source, result.captioned.indices[index])

    texts = spread(len(owner), CONSIDERED)
    text_rows = ranked_rows(
        result.text_features[texts], _at(texts, caption), owner[texts][:, None],
        Candidates(result.image_features, image), count=queries, hits=hits,
    )  # fmt: skip
    with_text = owner.unique()
    images = with_text[spread(len(with_text), CONSIDERED)]
    image_rows = ranked_rows(
        result.image_features[images], _at(images, image), _own_texts(owner, images),
        Candidates(result.text_features, caption), count=(queries + 1) // 2, hits=hits,
    )  # fmt: skip
    return [
        {"title": f"Images retrieved by caption{suffix}", "rows": text_rows},
        {"title": f"Captions retrieved by image{suffix}", "rows": image_rows},
    ]


def _at(indices: Tensor, cell: Callable[[int], Cell]) -> Callable[[int], Cell]:
    return lambda position: cell(int(indices[position]))


def _own_texts(owner: Tensor, images: Tensor) -> Tensor:
    """Indices of the texts of each image, int64 [len(images), most], filled up with -1."""
    lists = [(owner == image).nonzero()[:, 0] for image in images]
    return torch.nn.utils.rnn.pad_sequence(lists, batch_first=True, padding_value=-1)


def merge(
    source: Records, captions_per_image: int = 0, read: Callable[[int], Record | None] | None = None
) -> CaptionedImages:
    """Read every record once and merge those of the same image, in order of first appearance.

    ``read(index)`` gives a record in place of the source, or None to leave it out.
    """
    position: dict[str, int] = {}
    indices: list[int] = []
    captions: list[list[str]] = []
    for index in range(len(source)):
        record = source.record(index) if read is None else read(index)
        if record is None:
            continue
        image = record.group if record.group is not None else record.key
        if image not in position:
            position[image] = len(indices)
            indices.append(index)
            captions.append([])
        captions[position[image]].extend(record.captions)
    pairs = [(text, owner) for owner, own in enumerate(captions) for text in own[: captions_per_image or None]]
    return CaptionedImages(tuple(indices), tuple(text for text, _ in pairs), tuple(owner for _, owner in pairs))


def of_images(captioned: CaptionedImages, rows: Sequence[int]) -> CaptionedImages:
    """The images at ``rows`` with their captions."""
    new = {row: number for number, row in enumerate(rows)}
    pairs = [
        (text, new[owner]) for text, owner in zip(captioned.captions, captioned.owner, strict=True) if owner in new
    ]
    indices = tuple(captioned.indices[row] for row in rows)
    return CaptionedImages(indices, tuple(text for text, _ in pairs), tuple(owner for _, owner in pairs))
