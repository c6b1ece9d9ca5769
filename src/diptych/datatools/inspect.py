"""Reading every record once, in several processes: what can be used, what cannot, what is there twice.

Makes ``Seen`` facts of records and a ``Findings`` of them; nothing is changed on disk. Pictures are compared by a 64-bit
difference hash of their greys (Krawetz's dHash), which resizing and re-encoding leave nearly alone. Words for people are the
command's.
"""

from __future__ import annotations

import collections
import hashlib
import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import regex
from PIL import Image

from diptych.errors import RecordError
from diptych.image import decode_image
from diptych.text import Tokenizer

if TYPE_CHECKING:
    from diptych.data import Source

TINY = 32  # pixels on the short side; below it a picture shows nothing
CHUNK = 64
SCRIPTS = (
    "Latin",
    "Han",
    "Cyrillic",
    "Arabic",
    "Hangul",
    "Hiragana",
    "Katakana",
    "Devanagari",
    "Greek",
    "Hebrew",
    "Thai",
)
SCRIPT = regex.compile("|".join(rf"(?P<{name}>\p{{Script={name}}})" for name in SCRIPTS))


@dataclass(frozen=True)
class Seen:
    """Facts of one record. ``reason`` says why its picture cannot be read; sizes are then 0."""

    key: str
    group: str
    reason: str = ""
    width: int = 0
    height: int = 0
    content: bytes = b""
    looks: int = 0
    captions: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()
    cut: int = 0


@dataclass
class Findings:
    """What reading everything showed. Lists hold keys; ``twice`` holds groups of keys with the same content."""

    records: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    tiny: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    same_bytes: list[list[str]] = field(default_factory=list)
    repeated_captions: list[tuple[str, int]] = field(default_factory=list)
    captions: int = 0
    cut: int = 0
    scripts: collections.Counter[str] = field(default_factory=collections.Counter)
    lengths: list[int] = field(default_factory=list)
    sides: list[tuple[int, int]] = field(default_factory=list)
    hashes: dict[str, int] = field(default_factory=dict)

    @property
    def usable(self) -> int:
        """Records with a readable picture and at least one caption that is not empty."""
        return self.records - len({key for key, _ in self.unreadable} | set(self.empty))


def look_hash(picture: Image.Image) -> int:
    """64 bits: in an 8 x 9 grey thumbnail, whether each place is brighter than its neighbour."""
    small = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BILINEAR), dtype=np.int16)
    return int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), "big")


def look(source: Source, index: int, tokenizer: Tokenizer, decode: bool = True) -> Seen:
    """The facts of one record; with ``decode`` False the picture is not read."""
    try:
        record = source.record(index)
    except RecordError as error:
        return Seen(error.key, error.key, error.reason)
    group = record.group if record.group is not None else record.key
    encoded = [tokenizer.encode(text) for text in record.captions]
    lengths = tuple(len(item.ids) + item.num_truncated for item in encoded)
    told: dict[str, Any] = {
        "captions": record.captions,
        "tokens": lengths,
        "cut": sum(item.num_truncated > 0 for item in encoded),
    }
    if not decode:
        return Seen(record.key, group, **told)
    try:
        data = record.image if isinstance(record.image, bytes) else record.image.read_bytes()
        picture = decode_image(data, record.key)
    except OSError as error:
        return Seen(record.key, group, f"the image file cannot be read: {error.strerror}", **told)
    except RecordError as error:
        return Seen(record.key, group, error.reason, **told)
    digest = hashlib.blake2b(data, digest_size=16).digest()
    return Seen(record.key, group, "", picture.width, picture.height, digest, look_hash(picture), **told)


_AT_WORK: dict[str, Any] = {}


def _begin(source: Source, tokenizer: Tokenizer, decode: bool) -> None:
    _AT_WORK.update(source=source, tokenizer=tokenizer, decode=decode)


def _some(indices: range) -> list[Seen]:
    return [look(_AT_WORK["source"], index, _AT_WORK["tokenizer"], _AT_WORK["decode"]) for index in indices]


def look_at_all(source: Source, tokenizer: Tokenizer, workers: int, decode: bool = True) -> Iterator[Seen]:
    """The facts of every record, in order. ``workers`` 0 stays in this process."""
    pieces = [range(first, min(first + CHUNK, len(source))) for first in range(0, len(source), CHUNK)]
    if workers < 1 or len(pieces) < 2:
        _begin(source, tokenizer, decode)
        for piece in pieces:
            yield from _some(piece)
        return
    with multiprocessing.Pool(workers, _begin, (source, tokenizer, decode)) as pool:
        for found in pool.imap(_some, pieces):
            yield from found


def gather(seen: Iterator[Seen], tell: Callable[[int], None] = lambda _: None) -> Findings:
    """Sum the facts up; ``tell`` hears how many records are done."""
    found = Findings()
    by_content: dict[bytes, list[str]] = {}
    repeated: collections.Counter[str] = collections.Counter()
    pictures: set[str] = set()
    for one in seen:
        found.records += 1
        tell(found.records)
        if one.reason:
            found.unreadable.append((one.key, one.reason))
        elif one.content and one.group not in pictures:
            pictures.add(one.group)
            by_content.setdefault(one.content, []).append(one.group)
            found.hashes[one.group] = one.looks
            found.sides.append((one.width, one.height))
            if min(one.width, one.height) < TINY:
                found.tiny.append(one.key)
        if not any(text.strip() for text in one.captions):
            found.empty.append(one.key)
        found.captions += len(one.captions)
        found.cut += one.cut
        found.lengths += one.tokens
        for text in one.captions:
            repeated[text] += 1
            found.scripts[_script(text)] += 1
    found.same_bytes = [keys for keys in by_content.values() if len(keys) > 1]
    found.repeated_captions = [(text, count) for text, count in repeated.most_common(20) if count > 1]
    return found


def _script(text: str) -> str:
    """The script that most letters of a text belong to."""
    counts = collections.Counter(match.lastgroup for match in SCRIPT.finditer(text))
    return str(counts.most_common(1)[0][0]) if counts else "no letters"


def near(one: dict[str, int], two: dict[str, int], distance: int = 3) -> list[tuple[str, str, int]]:
    """Pairs of pictures whose hashes differ in at most ``distance`` bits (up to 3), nearest first.

    Of four bands of 16 bits one is then equal in both, so only pictures that share a band are compared.
    """
    bands: dict[tuple[int, int], list[str]] = collections.defaultdict(list)
    for key, value in one.items():
        for band in range(4):
            bands[band, value >> 16 * band & 0xFFFF].append(key)
    pairs: dict[tuple[str, str], int] = {}
    for key, value in two.items():
        for band in range(4):
            for other in bands.get((band, value >> 16 * band & 0xFFFF), ()):
                bits = (one[other] ^ value).bit_count()
                if bits <= distance and (other, key) not in pairs:
                    pairs[other, key] = bits
    return sorted(((*pair, bits) for pair, bits in pairs.items()), key=lambda item: item[2])
