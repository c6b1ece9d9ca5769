"""Reading every record once, in several processes: what can be used, what cannot, what occurs twice.

Gives ``RecordFacts`` for each record and ``Findings`` for all; nothing is changed on disk. Images are compared by a 64-bit
difference hash of their gray levels (Krawetz's dHash), which resizing and re-encoding hardly change. Messages for people are
the command's.
"""

from __future__ import annotations

import collections
import hashlib
import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import regex
from PIL import Image

from diptych.data import Source
from diptych.errors import RecordError
from diptych.image import decode_image
from diptych.text import Tokenizer

TINY = 32  # pixels on the short side; below it an image shows nothing
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
class RecordFacts:
    """Facts of one record. ``reason`` says why its image cannot be read; sizes are then 0."""

    key: str
    group: str
    reason: str = ""
    width: int = 0
    height: int = 0
    content: bytes = b""
    image_hash: int = 0
    captions: tuple[str, ...] = ()
    tokens: tuple[int, ...] = ()
    truncated: int = 0


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
    truncated: int = 0
    scripts: collections.Counter[str] = field(default_factory=collections.Counter)
    lengths: list[int] = field(default_factory=list)
    sides: list[tuple[int, int]] = field(default_factory=list)
    hashes: dict[str, int] = field(default_factory=dict)

    @property
    def usable(self) -> int:
        """Records with a readable image and at least one caption that is not empty."""
        return self.records - len({key for key, _ in self.unreadable} | set(self.empty))


def difference_hash(image: Image.Image) -> int:
    """64 bits: in an 8 x 9 gray thumbnail, whether each pixel is brighter than its left neighbor."""
    small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BILINEAR), dtype=np.int16)
    return int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), "big")


def inspect_record(source: Source, index: int, tokenizer: Tokenizer, decode: bool = True) -> RecordFacts:
    """The facts of one record; with ``decode`` False the image is not read."""
    try:
        record = source.record(index)
    except RecordError as error:
        return RecordFacts(error.key, error.key, error.reason)
    group = record.group if record.group is not None else record.key
    encoded = [tokenizer.encode(text) for text in record.captions]
    lengths = tuple(len(item.ids) + item.num_truncated for item in encoded)
    texts: dict[str, Any] = {
        "captions": record.captions,
        "tokens": lengths,
        "truncated": sum(item.num_truncated > 0 for item in encoded),
    }
    if not decode:
        return RecordFacts(record.key, group, **texts)
    try:
        data = record.image if isinstance(record.image, bytes) else record.image.read_bytes()
        image = decode_image(data, record.key)
    except OSError as error:
        return RecordFacts(record.key, group, f"the image file cannot be read: {error.strerror}", **texts)
    except RecordError as error:
        return RecordFacts(record.key, group, error.reason, **texts)
    digest = hashlib.blake2b(data, digest_size=16).digest()
    return RecordFacts(record.key, group, "", image.width, image.height, digest, difference_hash(image), **texts)


_WORKER: dict[str, Any] = {}


def _start_worker(source: Source, tokenizer: Tokenizer, decode: bool) -> None:
    _WORKER.update(source=source, tokenizer=tokenizer, decode=decode)


def _inspect_range(indices: range) -> list[RecordFacts]:
    return [inspect_record(_WORKER["source"], index, _WORKER["tokenizer"], _WORKER["decode"]) for index in indices]


def inspect_all(source: Source, tokenizer: Tokenizer, workers: int, decode: bool = True) -> Iterator[RecordFacts]:
    """The facts of every record, in order. ``workers`` 0 stays in this process."""
    pieces = [range(first, min(first + CHUNK, len(source))) for first in range(0, len(source), CHUNK)]
    if workers < 1 or len(pieces) < 2:
        _start_worker(source, tokenizer, decode)
        for piece in pieces:
            yield from _inspect_range(piece)
        return
    with multiprocessing.Pool(workers, _start_worker, (source, tokenizer, decode)) as pool:
        for some in pool.imap(_inspect_range, pieces):
            yield from some


def summarize(records: Iterator[RecordFacts], report: Callable[[int], None] = lambda _: None) -> Findings:
    """Sum the facts up; ``report`` gets the number of records done."""
    findings = Findings()
    by_content: dict[bytes, list[str]] = {}
    repeated: collections.Counter[str] = collections.Counter()
    hashed: set[str] = set()
    for facts in records:
        findings.records += 1
        report(findings.records)
        if facts.reason:
            findings.unreadable.append((facts.key, facts.reason))
        elif facts.content and facts.group not in hashed:
            hashed.add(facts.group)
            by_content.setdefault(facts.content, []).append(facts.group)
            findings.hashes[facts.group] = facts.image_hash
            findings.sides.append((facts.width, facts.height))
            if min(facts.width, facts.height) < TINY:
                findings.tiny.append(facts.key)
        if not any(text.strip() for text in facts.captions):
            findings.empty.append(facts.key)
        findings.captions += len(facts.captions)
        findings.truncated += facts.truncated
        findings.lengths += facts.tokens
        for text in facts.captions:
            repeated[text] += 1
            findings.scripts[_script(text)] += 1
    findings.same_bytes = [keys for keys in by_content.values() if len(keys) > 1]
    findings.repeated_captions = [(text, count) for text, count in repeated.most_common(20) if count > 1]
    return findings


def _script(text: str) -> str:
    """The script that most letters of a text belong to."""
    counts = collections.Counter(match.lastgroup for match in SCRIPT.finditer(text))
    return str(counts.most_common(1)[0][0]) if counts else "no letters"


def near(first: dict[str, int], second: dict[str, int], distance: int = 3) -> list[tuple[str, str, int]]:
    """Pairs of images whose hashes differ in at most ``distance`` bits (up to 3), nearest first.

    Of four bands of 16 bits one is then equal in both, so only images that share a band are compared.
    """
    bands: dict[tuple[int, int], list[str]] = collections.defaultdict(list)
    for key, value in first.items():
        for band in range(4):
            bands[band, value >> 16 * band & 0xFFFF].append(key)
    pairs: dict[tuple[str, str], int] = {}
    for key, value in second.items():
        for band in range(4):
            for other in bands.get((band, value >> 16 * band & 0xFFFF), ()):
                bits = (first[other] ^ value).bit_count()
                if bits <= distance and (other, key) not in pairs:
                    pairs[other, key] = bits
    return sorted(((*pair, bits) for pair, bits in pairs.items()), key=lambda item: item[2])
