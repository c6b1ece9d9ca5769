"""Labeled images for classification: class names and prompts that lie beside them, and pairs of sets for probes.

Folders are read as PaddleMIX lays them out. It opens sources and resolves texts; it encodes and scores nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from diptych import log
from diptych.data import VALIDATION_SPLITS, Source, SourceOptions, open_split, own_type
from diptych.evaluate._class_names import joined_names
from diptych.evaluate._decode import Records
from diptych.evaluate._prompts import load_templates
from diptych.files import StrPath
from diptych.types import Record

Texts = StrPath | Sequence[str] | None


class ClassFolder(NamedTuple):
    """A folder for classification: ``images`` to open as a source, and the texts beside them, None where there are none."""

    images: str
    labels: str | None = None
    templates: str | None = None


LABEL_FILES = ("labels.txt", "classnames.txt")  # PaddleMIX, CLIP_benchmark
TEMPLATE_FILES = ("templates.txt", "zeroshot_classification_templates.txt")


def class_folder(spec: StrPath) -> ClassFolder:
    """Find ``images/`` and lists of names and prompts in a folder, as PaddleMIX and CLIP_benchmark have them.

    Shards (``root/test/{0..3}.tar``, or the folder ``root/test``) find them in their folder and the one around it.
    """
    root, spec = Path(spec), os.fspath(spec)
    if root.is_dir():
        around = [root, root.parent] if any(root.glob("*.tar")) else [root]
    else:
        around = [root.parent, root.parent.parent] if ".tar" in root.name else []
    labels, templates = (_first_file(around, names) for names in (LABEL_FILES, TEMPLATE_FILES))
    has_images = (root / "images").is_dir() and bool(labels or templates)
    return ClassFolder(str(root / "images") if has_images else spec, labels, templates)


def _first_file(folders: Sequence[Path], names: Sequence[str]) -> str | None:
    paths = (folder / name for folder in folders for name in names)
    return next((str(path) for path in paths if path.is_file()), None)


@dataclass(frozen=True)
class LabeledImages:
    """A labeled source, with the class names and prompts that belong to it (None: the evaluator's own).

    ``labels`` and ``templates`` are what ``class_names`` and ``load_templates`` take.
    """

    source: Source
    labels: Texts = None
    templates: Texts = None

    @property
    def name(self) -> str:
        """The source's."""
        return self.source.name

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The source's."""
        return self.source.classes

    def __len__(self) -> int:
        return len(self.source)

    def record(self, index: int) -> Record:
        """The source's."""
        return self.source.record(index)


def open_labeled(
    spec: StrPath,
    options: SourceOptions | None = None,
    *,
    labels: StrPath = "",
    templates: StrPath = "",
    preferred: tuple[str, ...] = VALIDATION_SPLITS,
) -> LabeledImages:
    """Open class folders, a list with labels, or a folder with ``images/``; ``labels`` and ``templates`` win over files there.

    Of a source with several splits the first of ``preferred`` is taken.
    Raises SourceError for what cannot be opened, ConfigError for texts that cannot be read or do not fit.
    """
    spec = os.fspath(spec)
    folder = class_folder(spec)
    chosen = own_type(folder.images, options or SourceOptions())
    source = open_split(folder.images, "", preferred, chosen, "the path of its folder or file")
    opened = LabeledImages(source, labels or folder.labels, templates or folder.templates)
    beside = [path for path, given in ((folder.labels, labels), (folder.templates, templates)) if path and not given]
    if beside:
        log.info(f"{spec}: class names and prompts beside it are used: {', '.join(beside)}")
    if opened.templates:
        load_templates(opened.templates)
    classes = source.classes  # raises for parts whose labels collide
    if opened.labels:
        with log.held() as lines:  # whether they fit; the evaluation says the rest
            joined_names(classes, opened.labels, source.name)
            lines.clear()
    return opened


class ProbeData(NamedTuple):
    """Labeled images: a probe is fitted on ``train`` and measured on ``test``; both number the same classes alike."""

    train: Records
    test: Records

    @property
    def name(self) -> str:
        """The test set's."""
        return self.test.name
