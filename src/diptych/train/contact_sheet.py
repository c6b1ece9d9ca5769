"""A contact sheet of a run's views, ``views.png``: what the towers see of the first records, beside the whole image.

Drawn once, when a new run starts, from the very samples of its first step, by Pillow alone. One row for each record: the image,
each image view, and under them each text view and the masked tokens. It changes nothing of the run: a record that cannot be read
is passed over here, and counted where the run meets it.
"""

from __future__ import annotations

import collections
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diptych import log
from diptych.data import Loader
from diptych.errors import DataError
from diptych.files import replacing
from diptych.image import decode_pixels
from diptych.text import Tokenizer
from diptych.types import Sample, Wants

SHEET = "views.png"
ROWS = 5
CELL, GAP, LINE = 144, 10, 15  # pixels: of an image's longer side, between images, of a line of text
INK, FAINT, PAPER = (34, 34, 34), (120, 120, 120), (255, 255, 255)
LETTER = 6.4  # pixels, the mean width of a letter of the font at size 12
MOST_LINES = 3  # of one text
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class SheetRow:
    """A record: ``images`` with the whole one first, uint8 [h, w, 3] each, and (name, text) of its text views."""

    images: list[np.ndarray]
    texts: list[tuple[str, str]]


def write_contact_sheet(folder: Path, loader: Loader, wants: Wants) -> Path | None:
    """Draw ``views.png`` of the first records that the loader reads; returns its path, None where nothing can be drawn.

    Raises OutputError where it cannot be written.
    """
    rows: list[SheetRow] = []
    for request in loader.first_requests():
        try:
            record = loader.source.record(request.record)
            sample = loader.prepare(record, request.seed, request.record)
            whole = decode_pixels(record.image, record.key)
            texts = loader.prepare.texts(record, request.seed)
        except DataError:
            continue
        rows.append(_row(sample, whole, texts, wants, loader.prepare.tokenizer))
        if len(rows) == ROWS:
            break
    if not rows:
        return None
    try:
        font = ImageFont.load_default(12)
    except (ImportError, OSError):
        log.warn(f"{SHEET} was not drawn: Pillow has no FreeType here.")
        return None
    sheet = draw_sheet(rows, ["image", *numbered(wants.images)], font)
    with replacing(folder / SHEET, "sheet of views") as beside:
        sheet.save(beside, "PNG")
    return folder / SHEET


def numbered(names: Sequence[str]) -> list[str]:
    """Names of views, those that stand several times with their number: crop, strong 1, strong 2."""
    total, seen = collections.Counter(names), collections.Counter[str]()
    titles = []
    for name in names:
        seen[name] += 1
        titles.append(f"{name} {seen[name]}" if total[name] > 1 else name)
    return titles


def masked_text(ids: np.ndarray, tokenizer: Tokenizer) -> str:
    """The text of masked ids, each mask as [mask]."""
    parts: list[str] = []
    plain: list[int] = []
    for number in [*ids.tolist(), None]:
        if number is not None and number != tokenizer.mask_id:
            plain.append(number)
            continue
        text = tokenizer.decode(plain)
        parts += [text] * bool(text) + ["[mask]"] * (number is not None)
        plain = []
    return " ".join(parts)


def _row(sample: Sample, whole: np.ndarray, texts: Sequence[str], wants: Wants, tokenizer: Tokenizer) -> SheetRow:
    named = list(zip(numbered(wants.texts), texts, strict=True))
    if sample.masked is not None:
        named.insert(1, ("masked", masked_text(sample.masked.tokens, tokenizer)))
    return SheetRow([whole, *(view.transpose(1, 2, 0) for view in sample.images)], named)


def draw_sheet(rows: Sequence[SheetRow], titles: Sequence[str], font: Font) -> Image.Image:
    """The sheet as an RGB image: ``titles`` over the columns, then the rows."""
    width = GAP + max(3, len(titles)) * (CELL + GAP)
    letters = int((width - 2 * GAP) / LETTER)
    texts = [[line for name, text in row.texts for line in _lines(f"{name}: {text}", letters)] for row in rows]
    heights = [CELL + GAP + LINE * len(lines) + 2 * GAP for lines in texts]
    sheet = Image.new("RGB", (width, 2 * GAP + LINE + sum(heights)), PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        pen.text((GAP + column * (CELL + GAP), GAP), title, FAINT, font)
    top = 2 * GAP + LINE
    for row, lines, height in zip(rows, texts, heights, strict=True):
        for column, pixels in enumerate(row.images):
            sheet.paste(_cell(pixels), (GAP + column * (CELL + GAP), top))
        for number, line in enumerate(lines):
            pen.text((GAP, top + CELL + GAP // 2 + LINE * number), line, INK, font)
        top += height
    return sheet


def _cell(pixels: np.ndarray) -> Image.Image:
    """An image in its cell, its longer side as long as that; a small one keeps its pixels' edges."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    scale = CELL / max(image.size)
    small = max(image.size) <= CELL // 2
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    shown = image.resize(size, Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)
    cell = Image.new("RGB", (CELL, CELL), PAPER)
    cell.paste(shown, ((CELL - size[0]) // 2, (CELL - size[1]) // 2))
    return cell


def _lines(text: str, letters: int) -> list[str]:
    """A text in lines of about so many letters; what is too long ends in dots."""
    printable = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return textwrap.wrap(printable, letters, max_lines=MOST_LINES, placeholder=" ...")
