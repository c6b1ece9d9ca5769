"""The gallery: each query with its best answers, the right ones framed and marked, so that one sees what a model knows.

Draws the structure of ``gallery.json``. Pictures come only as embedded ``data:`` images; anything else is not shown.
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
LARGEST = 84  # CSS pixels of a picture in the grid: eight, the query and the missed answer stand in one row


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
    right = [place for place, hit in enumerate(hits, start=1) if hit.get("correct") is True]
    pictures = any(_embedded(hit.get("image")) for hit in hits)
    answers = "".join(_hit(hit, place) for place, hit in enumerate(hits, start=1))
    query = row.get("query")
    return (
        f'<article class="{"by-caption" if pictures else "by-picture"}"><div class="query">{_item(query, "query")}{_words(query)}'
        f'<p class="verdict">{_verdict(row, right)}</p></div>'
        f'<ol class="{"pictures" if pictures else "captions"}">{answers}</ol>{_answer(row, right)}</article>'
    )


def _words(query: Any) -> str:
    """What stands under the picture of a query that has words too."""
    both = isinstance(query, Mapping) and query.get("text") and _embedded(query.get("image"))
    return f'<p class="words">{escape(str(query["text"]))}</p>' if both else ""


def _hit(hit: Row, place: int) -> str:
    right = hit.get("correct") is True
    score = number(hit.get("score"))
    mark = '<span class="mark" title="right">✓<span class="unseen"> right</span></span>' if right else ""
    said = "" if score is None else f'<small class="score">{score:.2f}</small>'.replace("-", MINUS)
    return f'<li class="{"right" if right else "wrong"}">{_item(hit, f"answer {place}")}{mark}{said}</li>'


def _verdict(row: Row, right: Sequence[int]) -> str:
    if right:
        return f'<span class="good">✓ {"first" if right[0] == 1 else f"place {right[0]}"}</span>'
    rank = number(row.get("rank"))
    return '<span class="bad">✗ not among these</span>' + (f" place {count(rank)}" if rank else "")


def _answer(row: Row, right: Sequence[int]) -> str:
    """What should have been found, where it was not."""
    wanted = row.get("answer")
    if right or not isinstance(wanted, Mapping):
        return ""
    return f'<div class="answer"><small>looked for</small>{_item(wanted, "right answer")}</div>'


def _item(item: Any, words: str) -> str:
    """A picture or a text of the gallery as HTML; everything foreign is escaped."""
    if not isinstance(item, Mapping):
        return ""
    found = _embedded(item.get("image"))
    if found is not None:
        address, width, height = found
        scale = min(1.0, LARGEST / max(width, height))
        # An icon is drawn pixel for pixel; a browser would otherwise smooth it on a dense screen.
        kind = ' class="icon"' if max(width, height) <= 64 else ""
        return (
            f'<img{kind} src="{address}" width="{round(width * scale)}" height="{round(height * scale)}"'
            f' alt="{escape(str(item.get("text") or words))}">'
        )
    if item.get("text"):
        return f"<q>{escape(str(item['text']))}</q>"
    return '<span class="gone">picture not available</span>'


def _sizes(row: Row) -> list[int]:
    found = [_embedded(item.get("image")) for item in [row.get("query"), *_listed(row, "hits")] if item]
    return [max(width, height) for item in found if item for _, width, height in [item]]


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
    """The address with its picture's width and height, if it is an embedded picture that can be opened."""
    size = _measured(address) if isinstance(address, str) else None
    return None if size is None else (str(address), *size)


def _listed(row: Row, key: str) -> list[Row]:
    found = row.get(key)
    return [item for item in found if isinstance(item, Mapping)] if isinstance(found, list) else []
