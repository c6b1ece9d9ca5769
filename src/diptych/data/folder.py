"""A folder of images: with a text file of the same name beside each (one caption per line), or in class folders.

    DIR/dog1.jpg + DIR/dog1.txt                 captions
    DIR/dog/1.jpg, DIR/cat/7.png, ...           labels: the index of the folder among the sorted folders' names

Reads folders at any depth. A folder with both kinds is read as captioned; images without a text are then left out.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

from diptych import log
from diptych.data._base import SOURCES, LeftOut, SourceOptions
from diptych.errors import RecordError, SourceError
from diptych.types import Record

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


@SOURCES.register("folder")
class Folder:
    """A folder as a source."""

    priority: ClassVar[int] = 10
    example: ClassVar[str] = "a folder"
    left_out: tuple[LeftOut, ...] = ()

    def __init__(self, spec: str, split: str, options: SourceOptions) -> None:
        self.root = Path(spec)
        if split:
            raise SourceError(f"{spec}: a folder has no splits; name the folder of {split!r} instead.")
        if not self.root.is_dir():
            raise SourceError(f"{spec}: no such folder.")
        name = self.root.resolve().name
        # "images" alone names nothing: the folder around it is the data set.
        self.name = f"{self.root.resolve().parent.name}/{name}" if name == "images" else name or str(self.root)
        images, texts = _walk(self.root)
        if not images:
            raise SourceError(f"{spec}: no image in this folder (looked for {', '.join(IMAGES)}).")
        captioned = [path for path in images if path.rpartition(".")[0] in texts]
        self.classes: tuple[str, ...] | None = None
        if captioned:
            if len(captioned) < len(images):
                log.warn(
                    f"{spec}: {len(images) - len(captioned)} of {len(images)} images have no .txt beside them and are left out."
                )
            self._images = captioned
        else:
            self._images = [path for path in images if "/" in path]
            self.classes = tuple(sorted({path.split("/", maxsplit=1)[0] for path in self._images}))
            if not self.classes:
                raise SourceError(
                    f"{spec}: {len(images)} images, but neither a .txt beside any of them nor class folders around them."
                )
        self._label = {name: label for label, name in enumerate(self.classes or ())}

    @classmethod
    def matches(cls, spec: str) -> bool:
        """A folder that exists."""
        return os.path.isdir(spec)

    @classmethod
    def open(cls, spec: str, split: str, options: SourceOptions) -> Folder:
        """List the folder. Raises SourceError."""
        return cls(spec, split, options)

    def __len__(self) -> int:
        return len(self._images)

    def splits(self) -> dict[str, int]:
        """None: folders are split by their names."""
        return {}

    def record(self, index: int) -> Record:
        """One image, with its captions or its label. Raises RecordError when the text cannot be read any more."""
        key = self._images[index]
        if self.classes:
            return Record(key, self.root / key, label=self._label[key.split("/", maxsplit=1)[0]])
        text = (self.root / key).with_suffix(".txt")
        try:
            lines = text.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        except OSError as error:
            raise RecordError(key, f"its text {text} cannot be read: {error.strerror}") from error
        return Record(key, self.root / key, tuple(line.strip() for line in lines if line.strip()))


def _walk(root: Path) -> tuple[list[str], set[str]]:
    """Paths of images relative to the root, sorted, and of texts without their ending; hidden files are passed over."""
    images, texts = [], set()
    for folder, inner, files in os.walk(root, followlinks=True):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        base = Path(folder).relative_to(root).as_posix()
        prefix = "" if base == "." else base + "/"
        for name in files:
            stem, dot, ending = name.rpartition(".")
            if not stem or name.startswith("."):
                continue
            if (dot + ending).lower() in IMAGES:
                images.append(prefix + name)
            elif ending.lower() == "txt":
                texts.add(prefix + stem)
    return sorted(images), texts
