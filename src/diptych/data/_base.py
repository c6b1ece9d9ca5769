"""The contracts of data: what a source gives, what a format's file registers, and the options all formats share.

Types only. Which format reads a file is decided in ``_open``; nothing here reads anything.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Protocol

from tyro.conf import arg

from diptych.config import Range
from diptych.registry import Registry
from diptych.types import Record

SOURCES: Registry[type[Format]] = Registry("diptych.data", "data format")
DATASET_TYPE_HELP = f"Data format: auto (by the file's name), or {', '.join(SOURCES.names())}."


@dataclass(frozen=True)
class SourceOptions:
    """How data files are read; flags keep open_clip's names."""

    dataset_type: Annotated[str, arg(help=DATASET_TYPE_HELP)] = "auto"
    csv_separator: str = ""
    """Separator of a CSV or TSV; empty detects it; \\t is a tab."""
    csv_columns: str = ""
    """Names of the columns of a CSV or TSV without a header, with commas between: filepath,title."""
    csv_img_key: str = ""
    """Column or key of image paths; empty tries filepath, image, image_path, file, ..."""
    csv_caption_key: str = ""
    """Column or key of captions; empty tries caption, title, text, ...; A,B takes both, A.B what is inside of A."""
    image_root: str = ""
    """Folder that relative image paths start from; empty takes the data file's own."""
    class_level: Annotated[int, Range(0)] = 0
    """Which level of folders names the classes: 1 those directly inside, 2 those in them; 0 lets the folder decide."""


def with_root(options: SourceOptions, image_root: str) -> SourceOptions:
    """The options with another folder of images, where one is given."""
    return replace(options, image_root=image_root) if image_root else options


@dataclass(frozen=True)
class LeftOut:
    """What opening a source left out: ``count`` rows, members or files for one ``reason``, the first of them ``example``.

    ``bad`` ones count towards --bad-samples-max; what was never meant as a sample (a hidden file, a row that its writer marked
    as failed) does not.
    """

    count: int
    reason: str
    example: str
    bad: bool = True


class Source(Protocol):
    """The contract of opened data: random access to records."""

    name: str

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of the classes that labels number; None where they are plain numbers, or there are none.

        Raises ConfigError where parts that were joined number different ones.
        """

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """What opening left out, by reason."""

    def __len__(self) -> int:
        """The number of records."""

    def record(self, index: int) -> Record:
        """Record ``index``, from 0; equal every time, in any process. Raises RecordError or SourceError."""

    def splits(self) -> dict[str, int]:
        """The named splits that the file itself has, with their sizes; empty when it has none."""


class Format(Protocol):
    """What a format's file registers: whether it reads a path, and how to open it.

    ``priority``: formats are asked in ascending order, and two of equal priority that both match are an error:
    10 what exists as such (a folder), 15 a prefix, 20 the ending of a name, 30 a guess by other parts of a name.
    ``example`` is how its data is named, for help and errors.
    """

    priority: ClassVar[int]
    example: ClassVar[str]

    @classmethod
    def matches(cls, spec: str) -> bool:
        """Whether a path or pattern is of this format, by its name or kind; nothing is read."""

    @classmethod
    def open(cls, spec: str, split: str, options: SourceOptions) -> Source:
        """Open it. Raises SourceError."""
