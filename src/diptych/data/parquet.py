"""Parquet: img2dataset's output, Hugging Face's image structs, and plain tables of paths.

The image is a column of bytes (``jpg``), of structs {bytes, path} (``image``), or of paths. A column chunk is compressed as a
whole, so a record costs its row group: groups are cached, as many as fit in 256 MB per process, and a shuffled order over groups
of tens of megabytes is slow by the format's nature. ``diptych data shard`` makes tars of it, which are not.
"""

from __future__ import annotations

import glob
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from diptych.data._base import SOURCES, LeftOut, SourceOptions
from diptych.data._columns import CAPTION_KEYS, IMAGE_KEYS, OWN_GROUP, OWN_KEY, captions_of, image_of, label_of
from diptych.data._line_index import known_keys
from diptych.errors import RecordError, SourceError
from diptych.types import Record

BYTES_KEYS = ("jpg", "jpeg", "png", "webp", "image", "img", "bytes", "image_bytes")
BUDGET = 1 << 28  # bytes of decoded row groups that a process keeps


@SOURCES.register("parquet")
class Parquet:
    """Parquet files as a source."""

    priority: ClassVar[int] = 20
    example: ClassVar[str] = "pairs.parquet"
    classes: tuple[str, ...] | None = None
    left_out: tuple[LeftOut, ...] = ()

    def __init__(self, spec: str, split: str, options: SourceOptions) -> None:
        arrow = _library(spec)
        self.paths = sorted(glob.glob(spec)) if glob.has_magic(spec) else [spec]
        if not self.paths or not all(Path(path).is_file() for path in self.paths):
            raise SourceError(f"{spec}: no such file.")
        self.name, self.root = Path(spec).name, Path(options.image_root or Path(self.paths[0]).parent)
        files = [self._opened(arrow, path) for path in self.paths]
        names = files[0].schema_arrow.names
        self._image = options.csv_img_key or known_keys(names, BYTES_KEYS) or known_keys(names, IMAGE_KEYS)
        self._caption = options.csv_caption_key or known_keys(names, CAPTION_KEYS)
        for column, what, flag in (
            (self._image, "images", "--csv-img-key"),
            (self._caption, "captions", "--csv-caption-key"),
        ):
            if column not in names:
                raise SourceError(
                    f"{spec}: no column for {what}; columns seen: {', '.join(names)}; name it with {flag}."
                )
        self._others = [name for name in ("label", OWN_KEY, OWN_GROUP) if name in names]
        # (file, row group) of each group, and where its rows end.
        self._groups = [
            (file_number, group) for file_number, file in enumerate(files) for group in range(file.num_row_groups)
        ]
        sizes = [files[file_number].metadata.row_group(group).num_rows for file_number, group in self._groups]
        self._ends = np.cumsum(sizes) if sizes else np.zeros(0, dtype=np.int64)
        self._splits, self._selected = self._split_rows(files, names, split, spec)
        self._cached: OrderedDict[int, tuple[Any, int]] = OrderedDict()
        self._process = os.getpid()

    @classmethod
    def matches(cls, spec: str) -> bool:
        """By the ending .parquet."""
        return spec.lower().endswith(".parquet")

    @classmethod
    def open(cls, spec: str, split: str, options: SourceOptions) -> Parquet:
        """Read the footers. Raises SourceError."""
        return cls(spec, split, options)

    @staticmethod
    def _opened(arrow: Any, path: str) -> Any:
        try:
            return arrow.ParquetFile(path)
        except (OSError, ValueError) as error:
            raise SourceError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]}).") from error

    def _split_rows(
        self, files: list[Any], names: list[str], split: str, spec: str
    ) -> tuple[dict[str, int], np.ndarray | range]:
        if "split" not in names:
            if split:
                raise SourceError(f"{spec}: no split {split!r}; splits seen: none.")
            return {}, range(len(self))
        try:
            of_row = np.concatenate([file.read(columns=["split"])["split"].to_numpy() for file in files]).astype(str)
        except (OSError, ValueError, TypeError) as error:
            raise SourceError(
                f'{spec}: its column "split" cannot be read ({str(error).splitlines()[0][:160]}).'
            ) from error
        sizes = {name: int((of_row == name).sum()) for name in sorted(set(of_row.tolist())) if name}
        if split and split not in sizes:
            raise SourceError(f"{spec}: no split {split!r}; splits seen: {', '.join(sizes)}.")
        return sizes, np.flatnonzero(of_row == split) if split else range(len(of_row))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached": OrderedDict()}

    def __len__(self) -> int:
        selected = getattr(self, "_selected", None)
        return len(selected) if selected is not None else int(self._ends[-1]) if len(self._ends) else 0

    def splits(self) -> dict[str, int]:
        """Sizes of the splits that a column "split" names."""
        return self._splits

    def record(self, index: int) -> Record:
        """One row. Raises RecordError for one without an image."""
        row = int(self._selected[index])
        group = int(np.searchsorted(self._ends, row, side="right"))
        inside = row - (int(self._ends[group - 1]) if group else 0)
        key = f"{Path(self.paths[self._groups[group][0]]).name}#{row}"
        try:
            table = self._table(group)
            values = {name: table[name][inside].as_py() for name in table.column_names}
        except (OSError, ValueError, KeyError, IndexError) as error:  # pyarrow's errors are OSError and ValueError
            raise RecordError(key, f"the row cannot be read ({str(error).splitlines()[0][:120]})") from error
        given = values[self._image]
        if isinstance(given, dict):
            given = given.get("bytes") or given.get("path")
        if not given:
            raise RecordError(key, "has no image")
        image = bytes(given) if isinstance(given, bytes | bytearray) else image_of(str(given), self.root)
        own_key, own_group = values.get(OWN_KEY), values.get(OWN_GROUP)
        named = own_group if isinstance(own_group, str) else (None if isinstance(image, bytes) else str(given))
        key = own_key if isinstance(own_key, str) and own_key else key
        captions = captions_of(values[self._caption]) if self._caption else ()
        return Record(key, image, captions, label_of(values.get("label")), named, values if self._others else {})

    def _table(self, group: int) -> Any:
        """A row group, decoded; the least recently used leave when the budget is spent."""
        if self._process != os.getpid():
            self._cached, self._process = OrderedDict(), os.getpid()
        if group in self._cached:
            self._cached.move_to_end(group)
            return self._cached[group][0]
        file_number, number = self._groups[group]
        columns = [name for name in (self._image, self._caption, *self._others) if name]
        table = _library(self.name).ParquetFile(self.paths[file_number]).read_row_group(number, columns=columns)
        self._cached[group] = (table, table.nbytes)
        while len(self._cached) > 1 and sum(size for _, size in self._cached.values()) > BUDGET:
            self._cached.popitem(last=False)
        return table


def _library(spec: str) -> Any:
    try:
        import pyarrow.parquet as arrow
    except ImportError as error:
        raise SourceError(
            f"{spec}: reading Parquet needs the package pyarrow: pip install 'diptych[parquet]'"
        ) from error
    return arrow
