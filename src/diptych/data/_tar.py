"""A tar as random access: where each member lies, read from headers only, stored in the cache, mapped ever after.

Headers are read straight from the mapped file, which is many times as fast as a general reader; names longer than a header
(GNU's and POSIX's ways) are understood. What a truncated archive still holds is used. Members that are no plain files, or
whose names lead out of the archive, are left out. Knows no sample: which members belong together is the format's affair.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diptych.data._remote import is_remote, read_range, size_and_mark
from diptych.errors import OutputError, SourceError
from diptych.files import cache_folder, replacing

BLOCK, VERSION = 512, 3
ZEROS = bytes(BLOCK)
PLAIN, LONGER = b"0\x007", b"Lx"  # kinds of members: files; and what holds the next member's name (GNU, POSIX)
REMOTE_WINDOW = 1 << 20


class Members(NamedTuple):
    """The members of one archive: ``spans`` int64 [n, 2] offsets and sizes; names concatenated, ends in ``ends``."""

    names: bytes
    ends: np.ndarray
    spans: np.ndarray
    whole: bool
    outside: int

    def each_name(self) -> list[str]:
        """The names of all members."""
        ends = self.ends.tolist()
        bounds = list(zip([0, *ends], ends, strict=False))
        if self.names.isascii():  # slicing one text is several times as fast as decoding each
            text = self.names.decode("ascii")
            return [text[start:end] for start, end in bounds]
        return [self.names[start:end].decode("utf-8", errors="surrogateescape") for start, end in bounds]


def members_of(spec: str) -> Members:
    """The members of a tar, from its index in the cache, which is built when there is none for its size and time.

    Raises SourceError for what is no tar.
    """
    if is_remote(spec):
        size, mark = size_and_mark(spec)
        state = f"{spec} {size} {mark}"
    else:
        stat = Path(spec).stat()
        state = f"{Path(spec).resolve()} {stat.st_size} {stat.st_mtime_ns}"
    digest = hashlib.blake2b(f"{state} {VERSION}".encode("utf-8", "surrogateescape"), digest_size=10).hexdigest()
    index = cache_folder() / "index" / f"{spec.rpartition('/')[2][:60]}-{digest}.tarindex"
    if index.is_file():
        with contextlib.suppress(ValueError, KeyError, OSError):  # a damaged index is built again
            return _read(index)
    members = _scanned(spec)
    # Without room for an index the members are scanned again the next time.
    with contextlib.suppress(OutputError), replacing(index, "index") as beside:
        _write(beside, members)
    return members


def _write(path: Path, members: Members) -> None:
    metadata = {
        "members": len(members.ends),
        "names": len(members.names),
        "whole": members.whole,
        "outside": members.outside,
    }
    text = json.dumps(metadata).encode().ljust(128)
    with path.open("wb") as file:
        file.write(text + members.ends.tobytes() + members.spans.tobytes() + members.names)


def _read(index: Path) -> Members:
    with index.open("rb") as file:
        metadata = json.loads(file.read(128))
        count = int(metadata["members"])
        ends = np.frombuffer(file.read(8 * count), dtype=np.int64)
        spans = np.frombuffer(file.read(16 * count), dtype=np.int64).reshape(count, 2)
        names = file.read()
    if len(names) != metadata["names"]:
        raise ValueError("truncated")
    return Members(names, ends, spans, bool(metadata["whole"]), int(metadata["outside"]))


def _scanned(spec: str) -> Members:
    names, offsets, sizes, outside = [], [], [], 0
    state = {"whole": False}
    with _bytes_of(spec) as data:
        for name, offset, size in _headers(data, spec, state):
            if b".." in name or name[:1] == b"/":
                parts = name.split(b"/")
                if not parts[0] or b".." in parts:
                    outside += 1
                    continue
            names.append(name)
            offsets.append(offset)
            sizes.append(size)
    ends = np.cumsum(np.fromiter(map(len, names), dtype=np.int64, count=len(names)))
    spans = np.stack([np.array(offsets, dtype=np.int64), np.array(sizes, dtype=np.int64)], axis=1)
    return Members(b"".join(names), ends, spans, state["whole"], outside)


@contextlib.contextmanager
def _bytes_of(spec: str) -> Iterator[mmap.mmap | _Window]:
    if is_remote(spec):
        yield _Window(spec)
        return
    with open(spec, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


class _Window:
    """Slices of a remote file, a megabyte read ahead."""

    def __init__(self, url: str) -> None:
        self.url, self.size = url, size_and_mark(url)[0]
        self._start, self._held = 0, b""

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, part: slice) -> bytes:
        start, stop = part.start, min(part.stop, self.size)
        if start < self._start or stop > self._start + len(self._held):
            self._start = start
            self._held = read_range(self.url, start, min(self.size, max(stop, start + REMOTE_WINDOW)) - start)
        return self._held[start - self._start : stop - self._start]


def _headers(data: mmap.mmap | _Window, spec: str, state: dict[str, bool]) -> Iterator[tuple[bytes, int, int]]:
    """(name, offset, size) of every plain file that lies whole in the archive; ``state["whole"]`` says whether it ends well."""
    start, end, longer, larger, first = 0, len(data), b"", b"", True
    while start + BLOCK <= end:
        header = data[start : start + BLOCK]
        if header == ZEROS:
            state["whole"] = True
            return
        # The sum is costly; a block with a header's magic bytes is one.
        size = _size(header) if header[257:262] == b"ustar" or _adds_up(header) else -1
        if size < 0:
            if first:
                raise SourceError(f"{spec}: not a readable tar (its first header does not add up).")
            return
        first, typeflag, content = False, header[156], start + BLOCK
        start = content + (size + BLOCK - 1 & -BLOCK)
        if typeflag in LONGER:  # the next member's name, in a member of its own
            text = data[content : content + size]
            if typeflag == LONGER[0]:
                longer = text.rstrip(b"\0")
            else:
                fields = _posix(text)
                longer, larger = fields.get(b"path", longer), fields.get(b"size", b"")
            continue
        if larger.isdigit():  # a size too large for the header is in the extended one
            size, larger = int(larger), b""
            start = content + (size + BLOCK - 1 & -BLOCK)
        name, longer = longer or _name(header), b""
        if typeflag in PLAIN and content + size <= end and name[-1:] != b"/":
            yield name, content, size
    if first and end:
        raise SourceError(f"{spec}: not a readable tar (shorter than one header).")


def _size(header: bytes) -> int:
    """The size of a member's content, or -1 when it is no number."""
    field = header[124:136]
    if field[11] in b"\0 ":
        try:
            return int(field[:11], 8)  # what nearly every archive has: eleven octal digits
        except ValueError:
            pass
    try:
        return _number(field)
    except ValueError:
        return -1


def _adds_up(header: bytes) -> bool:
    """The sum of a header's bytes, its own field counted as blanks."""
    try:
        checksum = _number(header[148:156])
    except ValueError:
        return False
    return checksum == sum(header) - sum(header[148:156]) + 8 * 32


def _number(field: bytes) -> int:
    """Octal digits; or, with the first bit set, binary, for sizes beyond 8 GB. Raises ValueError."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.partition(b"\0")[0].strip()
    return int(digits, 8) if digits else 0


def _name(header: bytes) -> bytes:
    name = header[: header.find(b"\0", 0, 100)] if 0 in header[:100] else header[:100]
    if header[345] and header[257:263] == b"ustar\0":
        return header[345:500].partition(b"\0")[0] + b"/" + name
    return name


def _posix(text: bytes) -> dict[bytes, bytes]:
    """The records "LENGTH KEY=VALUE" of a POSIX extended header, as far as they are whole."""
    start, records = 0, {}
    while start < len(text):
        digits, _, _ = text[start : start + 20].partition(b" ")
        if not digits.isdigit() or not len(digits) + 1 < int(digits) <= len(text) - start:
            break
        key, equals, value = text[start + len(digits) + 1 : start + int(digits)].partition(b"=")
        if equals:
            records[key] = value.removesuffix(b"\n")  # a name may end with one of its own
        start += int(digits)
    return records
