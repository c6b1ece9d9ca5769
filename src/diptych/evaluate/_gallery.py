"""Drawings for a report: queries with their best answers as small images, successes and failures side by side.

Shared by the evaluators that show images; builds rows of a run's ``gallery.json``. Which queries are shown depends on the source
and the model only, never on chance. It scores nothing but the queries that it shows, and draws no page.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from diptych.errors import RecordError
from diptych.evaluate._decode import Records
from diptych.evaluate._scores import ranks, top_k
from diptych.image import decode_image

CONSIDERED = (
    512  # queries ranked for a gallery: enough to find failures of a good model, cheap beside a full evaluation
)
THUMBNAIL = 96

Cell = dict[str, str | None]
"""A query or an answer, as the report draws it: ``text``, or ``image`` as a data URI, and None for the other."""


class Candidates(NamedTuple):
    """What queries are ranked against: ``features`` [C, D], and ``cell`` draws the candidate at an index."""

    features: Tensor
    cell: Callable[[int], Cell]


def ranked_rows(
    queries: Tensor, query: Callable[[int], Cell], own: Tensor, candidates: Candidates, *, count: int, hits: int
) -> list[dict[str, Any]]:
    """Rows for at most ``count`` of the ``queries`` [Q, D]: about half with the right answer first, a quarter with it among
    the ``hits``, a quarter without it, best first.

    ``query`` draws the query at an index; ``own`` int64 [Q, K] are its right candidates, filled up with -1. A row has the
    ``rank`` of its best right answer and, where that is not among the hits, the ``answer`` itself.
    """
    scores, indices = top_k(queries, candidates.features, hits)
    normalize = torch.nn.functional.normalize
    best = ranks(normalize(queries, dim=-1), normalize(candidates.features, dim=-1), own).tolist()
    rows = []
    for index in choose(best, count, indices.shape[1]):
        right = [candidate for candidate in own[index].tolist() if candidate >= 0]
        answers = [
            {**candidates.cell(candidate), "correct": candidate in right, "score": round(score, 4)}
            for candidate, score in zip(indices[index].tolist(), scores[index].tolist(), strict=True)
        ]
        row: dict[str, Any] = {"query": query(index), "rank": best[index], "hits": answers}
        if not any(answer["correct"] for answer in answers):
            nearest = int(top_k(queries[index][None], candidates.features[right], 1)[1])
            row["answer"] = candidates.cell(right[nearest])
        rows.append(row)
    return rows


def choose(ranked: Sequence[int], count: int, hits: int) -> list[int]:
    """Pick queries by the rank of their right answer: half first, a quarter among the hits, a quarter missed; best first.

    Each sort is spread evenly over the queries; what one sort lacks, the others fill.
    """
    first = [query for query, rank in enumerate(ranked) if rank == 1]
    near = [query for query, rank in enumerate(ranked) if 1 < rank <= hits]
    missed = [query for query, rank in enumerate(ranked) if rank > hits]
    count = min(count, len(ranked))
    shares = [min(len(first), count - 2 * (count // 4)), min(len(near), count // 4), min(len(missed), count // 4)]
    for number, queries in enumerate((first, near, missed)):
        shares[number] += min(len(queries) - shares[number], count - sum(shares))
    picked = [
        queries[index]
        for queries, share in zip((first, near, missed), shares, strict=True)
        for index in spread(len(queries), share).tolist()
    ]
    return sorted(picked, key=lambda query: (ranked[query], query))


def spread(total: int, count: int) -> Tensor:
    """At most ``count`` indices spread evenly over 0..total-1, int64."""
    count = min(total, count)
    return torch.arange(count) * total // max(count, 1)


def text_cell(text: str) -> Cell:
    """A cell with a text."""
    return {"text": text, "image": None}


def image_cell(source: Records, index: int, text: str | None = None) -> Cell:
    """A cell with the image of a record; without it where the image cannot be decoded any more."""
    record = source.record(index)
    try:
        return {"text": text, "image": data_uri(decode_image(record.image, record.key), THUMBNAIL)}
    except RecordError:
        return {"text": text, "image": None}


def data_uri(image: Image.Image, thumbnail: int) -> str:
    """Return the image, at most ``thumbnail`` pixels wide and high, as a ``data:`` address.

    An image that is small already (an icon, an emoji) stays as it is, without loss; a photograph becomes a WebP, or a JPEG
    where this Pillow has no WebP.
    """
    image = image.convert("RGB")
    small = max(image.size) <= thumbnail
    if not small:
        image.thumbnail((thumbnail, thumbnail), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    if "WEBP" in _encoders():
        image.save(file, "WEBP", lossless=small, quality=80, method=4)
        subtype = "webp"
    elif small:
        image.save(file, "PNG", optimize=True)
        subtype = "png"
    else:
        image.save(file, "JPEG", quality=85)
        subtype = "jpeg"
    return f"data:image/{subtype};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


@cache
def _encoders() -> frozenset[str]:
    Image.init()
    return frozenset(Image.SAVE)
