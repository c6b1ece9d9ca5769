"""The gallery: each query with its best answers, the right ones framed and marked, so that one sees what a model knows.

Draws the structure of ``gallery.json``. Images come only as embedded ``data:`` images; anything else is not shown.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from html import escape
from typing import Any

from PIL import Image, UnidentifiedImageError

from diptych.report.read import Row, RunFiles, number
from diptych.report.scale import MINUS, count

EMBEDDED = re.compile(r"data:image/(?:png|jpeg|webp|gif);base64,([A-Za-z0-9+/]+={0,2})")
LARGEST = 84  # CSS pixels of an image in the grid: eight, the query and the missed answer stand in one row


def galleries(run: RunFiles) -> str:
    """All parts of the gallery; empty where there is none."""
    return "".join(_part(part) for part in run.gallery if _listed(part, "rows"))


def _part(part: Row) -> str:
    rows = _listed(part, "rows")
    cell = max([size for row in rows for size in _sizes(row)], default=LARGEST)
    body = "".join(_row(row) for row in rows)
    return (
        f'<section class="gallery" style="--cell:{min(cell, LARGEST)}px"><h3>{escape(str(part.get("title", "")))}</h3>'
        f"{body}</section>"
    )


def _row(row: Row) -> str:
    hits = _listed(row, "hits")
    ranks = [rank for rank, hit in enumerate(hits, start=1) if hit.get("correct") is True]
    with_images = any(_embedded(hit.get("image")) for hit in hits)
    answers = "".join(_hit(hit, rank) for rank, hit in enumerate(hits, start=1))
    query, layout = row.get("query"), "by-caption" if with_images else "by-image"
    return (
        f'<article class="{layout}"><div class="query">{_item(query, "query")}{_caption(query)}'
        f'<p class="verdict">{_verdict(row, ranks)}</p></div>'
        f'<ol class="{"images" if with_images else "captions"}">{answers}</ol>{_answer(row, ranks)}</article>'
    )


def _caption(query: Any) -> str:
    """The text under the image of a query that has both."""
    both = isinstance(query, Mapping) and query.get("text") and _embedded(query.get("image"))
    return f'<p class="caption">{escape(str(query["text"]))}</p>' if both else ""


def _hit(hit: Row, rank: int) -> str:
    right = hit.get("correct") is True
    score = number(hit.get("score"))
    mark = '<span class="mark" title="right">✓<span class="unseen"> right</span></span>' if right else ""
    shown = "" if score is None else f'<small class="score">{score:.2f}</small>'.replace("-", MINUS)
    return f'<li class="{"right" if right else "wrong"}">{_item(hit, f"answer {rank}")}{mark}{shown}</li>'


def _verdict(row: Row, ranks: Sequence[int]) -> str:
    if ranks:
        return f'<span class="good">✓ {"first" if ranks[0] == 1 else f"rank {ranks[0]}"}</span>'
    rank = number(row.get("rank"))
    return '<span class="bad">✗ not among these</span>' + (f" rank {count(rank)}" if rank else "")


def _answer(row: Row, ranks: Sequence[int]) -> str:
    """The right answer, where it is not among the hits."""
    wanted = row.get("answer")
    if ranks or not isinstance(wanted, Mapping):
        return ""
    return f'<div class="answer"><small>expected</small>{_item(wanted, "right answer")}</div>'


def _item(item: Any, description: str) -> str:
    """An image or a text of the gallery as HTML; everything foreign is escaped."""
    if not isinstance(item, Mapping):
        return ""
    embedded = _embedded(item.get("image"))
    if embedded is not None:
        address, width, height = embedded
        scale = min(1.0, LARGEST / max(width, height))
        # An icon is drawn pixel for pixel; a browser would otherwise smooth it on a dense screen.
        kind = ' class="icon"' if max(width, height) <= 64 else ""
        return (
            f'<img{kind} src="{address}" width="{round(width * scale)}" height="{round(height * scale)}"'
            f' alt="{escape(str(item.get("text") or description))}">'
        )
    if item.get("text"):
        return f"<q>{escape(str(item['text']))}</q>"
    return '<span class="gone">image not available</span>'


def _sizes(row: Row) -> list[int]:
    embedded = [_embedded(item.get("image")) for item in [row.get("query"), *_listed(row, "hits")] if item]
    return [max(width, height) for item in embedded if item for _, width, height in [item]]


@lru_cache(maxsize=4096)
def _measured(address: str) -> tuple[int, int] | None:
    match = EMBEDDED.fullmatch(address)
    if match is None:
        return None
    try:
        with Image.open(io.BytesIO(base64.b64decode(match[1], validate=True))) as image:
            return image.size
    except (binascii.Error, UnidentifiedImageError, OSError, Image.DecompressionBombError):
        return None


def _embedded(address: Any) -> tuple[str, int, int] | None:
    """The address with its image's width and height, if it is an embedded image that can be opened."""
    size = _measured(address) if isinstance(address, str) else None
    return None if size is None else (str(address), *size)


def _listed(row: Row, key: str) -> list[Row]:
    items = row.get(key)
    return [item for item in items if isinstance(item, Mapping)] if isinstance(items, list) else []
