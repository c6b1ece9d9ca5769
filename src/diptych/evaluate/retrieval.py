"""Retrieval on a source of captioned images: texts by image and images by text.

Records that show one picture (same ``group``) are merged, and every caption is used, unless ``captions_per_image`` says
how many of the first (5 for the COCO protocol of the CLIP papers). The features stay in the result, so that a gallery or
another protocol costs no second pass. Scores and tie rule: ``_scores``. One process; no loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from diptych.errors import ConfigError, SourceError
from diptych.evaluate import EVALUATORS
from diptych.evaluate._encode import Encoder, Progress, Records, evaluating, steps
from diptych.evaluate._intervals import intervals
from diptych.evaluate._result import Result
from diptych.evaluate._scores import Protocol, chance, outcomes, retrieval_ranks, summary


@dataclass(frozen=True)
class Options:
    """How retrieval is measured."""

    batch_size: int = 64
    """Images, or captions, encoded at a time."""
    workers: int = 0
    """Processes that decode images; 0 decodes in this one."""
    protocol: Protocol = "grouped"
    """grouped: any own caption counts (COCO, Flickr30k). paired: row by row, as open_clip's training loop does."""
    limit: int = 0
    """Only the first so many pictures; 0 means all."""
    captions_per_image: int = 0
    """Only the first so many captions of a picture; 0 means all."""
    precision: str = "fp32"
    """fp32, bf16 or fp16 inside the towers; scores are always fp32."""
    shared: bool = False
    """The processes of the group encode a part each; all of them must ask for the same."""


@dataclass(frozen=True)
class Pictures:
    """Distinct pictures with their captions: ``indices`` [N] one record of each, ``captions`` [M], ``owner`` [M]."""

    indices: tuple[int, ...]
    captions: tuple[str, ...]
    owner: tuple[int, ...]

    @property
    def captions_of_each(self) -> list[int]:
        """The number of captions of each picture [N]."""
        return torch.bincount(torch.tensor(self.owner), minlength=len(self.indices)).tolist()


@dataclass(frozen=True)
class RetrievalResult(Result):
    """Scores, and the features they came from: fp32 on the CPU, ``image_features`` [N, D], ``text_features`` [M, D]."""

    pictures: Pictures = field(repr=False)
    image_features: Tensor = field(repr=False)
    text_features: Tensor = field(repr=False)
    protocol: Protocol = "grouped"

    @property
    def text_to_image(self) -> Tensor:
        """The index of each caption's picture, int64 [M]."""
        return torch.tensor(self.pictures.owner)


@EVALUATORS.register("retrieval")
def run(
    model: Any,
    source: Records,
    tokenizer: Any,
    transform: Any,
    device: Any,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> RetrievalResult:
    """Encode a source and score it; ``options`` are the fields of ``Options``.

    ``transform`` maps a PIL image to uint8 [3, H, W]; ``progress(done, total)`` counts pictures and captions together.
    The model's training mode is as before afterwards. Raises SourceError for a source without captions, the RecordError
    of an unreadable image, ConfigError for options that do not fit.
    """
    chosen = replace(Options(), **options)
    if chosen.protocol not in ("grouped", "paired"):
        raise ConfigError(f"protocol {chosen.protocol!r}: expected 'grouped' or 'paired'.")
    name = str(getattr(source, "name", "retrieval"))
    pictures = merge(source, chosen.limit, chosen.captions_per_image)
    if not pictures.captions:
        raise SourceError(f"{name}: {len(source)} records and no caption; retrieval needs images with captions.")
    encoder = Encoder(
        model, tokenizer, transform, device, chosen.batch_size, chosen.workers, chosen.precision, chosen.shared
    )
    step = steps(progress, len(pictures.indices) + len(pictures.captions))
    with evaluating(model):
        images = encoder.images(source, pictures.indices, step)
        texts = encoder.texts(pictures.captions, step)
    owner = torch.tensor(pictures.owner, device=texts.device)
    ranked = retrieval_ranks(images, texts, owner, chosen.protocol)
    answers = outcomes(ranked)
    return RetrievalResult(
        name=name,
        metrics=summary(ranked),
        intervals=intervals(answers),
        outcomes=answers,
        chance=expected(pictures, chosen.protocol),
        count={"images": len(pictures.indices), "texts": len(pictures.captions)},
        pictures=pictures,
        image_features=images.cpu(),
        text_features=texts.cpu(),
        protocol=chosen.protocol,
    )


def expected(pictures: Pictures, protocol: Protocol) -> Mapping[str, float]:
    """What features at random would score on these pictures."""
    return chance(len(pictures.indices), len(pictures.captions), pictures.captions_of_each, protocol)


def merge(source: Records, limit: int = 0, captions_per_image: int = 0) -> Pictures:
    """Read every record once and merge those of one picture, in order of first appearance.

    ``limit`` counts pictures; records of the chosen ones that come later in the source are still found.
    """
    place: dict[str, int] = {}
    indices: list[int] = []
    captions: list[list[str]] = []
    for index in range(len(source)):
        record = source.record(index)
        picture = record.group if record.group is not None else record.key
        if picture not in place:
            if limit and len(place) >= limit:
                continue
            place[picture] = len(indices)
            indices.append(index)
            captions.append([])
        captions[place[picture]].extend(record.captions)
    pairs = [(text, owner) for owner, own in enumerate(captions) for text in own[: captions_per_image or None]]
    return Pictures(tuple(indices), tuple(text for text, _ in pairs), tuple(owner for _, owner in pairs))
