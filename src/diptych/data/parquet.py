"""Parquet: img2dataset's output, Hugging Face's image structs, and plain tables of paths.

The image is a column of bytes (``jpg``), of structs {bytes, path} (``image``), or of paths. A column chunk is compressed as a
whole, so a record costs its row group: groups are cached, as many as fit in 256 MB per process, and a shuffled order over groups
of tens of megabytes is slow by the format's nature. ``diptych data shard`` makes tars of it, which are not.
"""

from __future__ import annotations

import dataclasses
import glob
import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from diptych.data._base import SOURCES, LeftOut, SourceOptions
from diptych.data._columns import OWN_GROUP, OWN_KEY, image_of, seen, split_name
from diptych.data._fields import decide, known_name, split_column
from diptych.data._label_values import class_names
from diptych.data._parquet_columns import faults, is_caption, names_of, readable, reason, sample, texts
from diptych.data._roots import root_of
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
        self.name = Path(spec).name
        files = [self._opened(arrow, path) for path in self.paths]
        names = names_of(files[0], self.paths[0])
        image = options.csv_img_key or known_name(names, BYTES_KEYS)
        chosen = dataclasses.replace(options, csv_img_key=image) if image else options
        # Columns that no format reads (a picture of another kind, an embedding) are not decoded.
        rows = sample(files, self.paths, names, image)
        self._fields = decide(rows, spec, chosen)
        self._check_columns(files)
        self.root = root_of(Path(self.paths[0]), options.image_root, self._fields.paths(rows))
        self._split = split_column(names)
        # (file, row group) of each group, and where its rows end.
        self._groups = [
            (file_number, group) for file_number, file in enumerate(files) for group in range(file.num_row_groups)
        ]
        sizes = [files[file_number].metadata.row_group(group).num_rows for file_number, group in self._groups]
        self._ends = np.cumsum(sizes) if sizes else np.zeros(0, dtype=np.int64)
        self._splits, self._selected = self._split_rows(files, split, spec)
        self._leave_out_failed(files, names)
        self.classes = self._class_names(files)
        if self.classes is not None and self._fields.named:
            self._fields = self._fields.with_classes(self.classes)
        own = [name for name in (OWN_KEY, OWN_GROUP) if name in names]
        others = [name for name in names if is_caption(files[0].schema_arrow.field(name).type)]
        self._columns = list(dict.fromkeys([*self._fields.columns(), *own, *others]))
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
        with readable(path):
            return arrow.ParquetFile(path)

    def _check_columns(self, files: list[Any]) -> None:
        """Every file must have what the first one's columns were decided by. Raises SourceError."""
        for path, file in zip(self.paths, files, strict=True):
            names = names_of(file, path)
            wanted = [[column[0] for column in group] for group in (self._fields.image, self._fields.captions) if group]
            for group in [*wanted, *([[self._fields.label]] if self._fields.label else [])]:
                if not set(group) & set(names):
                    raise SourceError(
                        f"{path}: has no column {group[0]!r}, as {Path(self.paths[0]).name} has; its columns: {seen(names)}."
                    )

    def _split_rows(self, files: list[Any], split: str, spec: str) -> tuple[dict[str, int], np.ndarray | range]:
        sizes: dict[str, int] = {}
        if self._split:
            of_row, written = texts(files, self.paths, self._split)
            named = [split_name(name) for name in written]
            counts = np.bincount(of_row, minlength=len(named)).tolist()
            for name, count in sorted(zip(named, counts, strict=True)):
                if name and count:
                    sizes[name] = sizes.get(name, 0) + count
        if split and split not in sizes:
            raise SourceError(f"{spec}: no split {split!r}; splits seen: {', '.join(sizes) or 'none'}.")
        if not split:
            return sizes, range(len(self))
        return sizes, np.flatnonzero(np.isin(of_row, [number for number, name in enumerate(named) if name == split]))

    def _leave_out_failed(self, files: list[Any], names: list[str]) -> None:
        """Rows that img2dataset itself marks as failed: they were never samples. Only their column is read."""
        if "status" not in names or not {"error_message", "url", "key"} & set(names):
            return
        of_row, written = texts(files, self.paths, "status")
        if "success" not in written:  # another meaning of "status": rows without an image are bad samples
            return
        chosen = np.asarray(self._selected, dtype=np.int64)
        failed = of_row[chosen] != written.index("success")
        count = int(failed.sum())
        if not count or count == len(chosen):
            return
        first = int(chosen[failed][0])
        self._selected = chosen[~failed]
        why = f"download failed ({written[int(of_row[first])]})"
        self.left_out = (LeftOut(count, why, f"row {first}", bad=False),)

    def _class_names(self, files: list[Any]) -> tuple[str, ...] | None:
        """Names of the classes: those that Hugging Face wrote into the file, else those that the column of labels holds."""
        label = self._fields.label
        if not label:
            return None
        try:
            written = json.loads((files[0].schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
            names = written["info"]["features"][label]["names"]
        except (ValueError, KeyError, TypeError, RecursionError):
            names = None
        if isinstance(names, list) and all(isinstance(name, str) for name in names) and not self._fields.named:
            return tuple(names)
        if not self._fields.named:
            return None
        values: list[Any] = []
        for file, path in zip(files, self.paths, strict=True):
            with readable(path, f"its column {label!r} cannot be read"):
                values += file.read(columns=[label])[label].unique().to_pylist()
        return class_names(values, f"{self.name}, column {label!r}")

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
        except faults() as error:
            raise RecordError(key, f"the row cannot be read ({reason(error)})") from error
        given, captions, label, label_name = self._fields.read(values, key)
        image = bytes(given) if isinstance(given, bytes | bytearray) else image_of(given, self.root)
        own_key, own_group = values.get(OWN_KEY), values.get(OWN_GROUP)
        named = own_group if isinstance(own_group, str) else (None if isinstance(image, bytes) else given)
        key = own_key if isinstance(own_key, str) and own_key else key
        extra = {name: value for name, value in values.items() if not isinstance(value, bytes | dict)}
        if label_name is None and self.classes is not None and label is not None and 0 <= label < len(self.classes):
            label_name = self.classes[label]
        if label_name is not None:
            extra["label_name"] = label_name
        return Record(key, image, captions, label, named, extra)

    def _table(self, group: int) -> Any:
        """A row group, decoded; the least recently used leave when the budget is spent."""
        if self._process != os.getpid():
            self._cached, self._process = OrderedDict(), os.getpid()
        if group in self._cached:
            self._cached.move_to_end(group)
            return self._cached[group][0]
        file_number, number = self._groups[group]
        table = _library(self.name).ParquetFile(self.paths[file_number]).read_row_group(number, columns=self._columns)
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
