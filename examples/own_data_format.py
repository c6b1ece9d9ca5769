"""Your own data format, in one file outside of Diptych: the images of a Markdown document with their alternative texts.

    python examples/own_data_format.py gallery.md --model tiny-test --epochs 1 --output runs/gallery

where ``gallery.md`` has lines such as ``![a dog on a beach](photos/dog.jpg)``. With this folder on PYTHONPATH, every command
takes it too: ``diptych train --dataset-type own_data_format:Markdown --train-data gallery.md``. A source says how many records
it has and gives any one of them, still encoded; order, epochs, ranks, resume and bad samples are the loader's.
"""

import re
import sys
from pathlib import Path

from diptych.commands import main
from diptych.data import SourceOptions
from diptych.errors import SourceError
from diptych.types import Record

IMAGE = re.compile(r"!\[([^\]]+)\]\(([^)\s]+)\)")


class Markdown:
    """Images of a Markdown file as a source."""

    priority = 20  # a format that lives in the package is recognized by the ending of a name
    example = "gallery.md"
    classes: tuple[str, ...] | None = None
    left_out = ()  # what opening had to leave out, if anything: diptych.data.LeftOut

    def __init__(self, path: Path, root: Path) -> None:
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise SourceError(f"{path}: cannot be read ({error.strerror}).") from error
        self.name = path.name
        self.root = root
        self.pairs = IMAGE.findall(text)

    @classmethod
    def matches(cls, spec: str) -> bool:
        """By the file's ending."""
        return spec.lower().endswith(".md")

    @classmethod
    def open(cls, spec: str, split: str, options: SourceOptions) -> "Markdown":
        """Open a document; relative paths start from ``--image-root``, or from its own folder. Raises SourceError."""
        if split:
            raise SourceError(f"{spec}: a Markdown document has no splits; {split!r} was asked for.")
        return cls(Path(spec), Path(options.image_root or Path(spec).parent))

    def __len__(self) -> int:
        return len(self.pairs)

    def splits(self) -> dict[str, int]:
        """None."""
        return {}

    def record(self, index: int) -> Record:
        """Record ``index``: the same one every time, in any process."""
        caption, image = self.pairs[index]
        return Record(key=f"{index}:{image}", image=self.root / image, captions=(caption,), group=image)


if __name__ == "__main__":
    flags = ["--dataset-type", "own_data_format:Markdown", "--train-data", *sys.argv[1:]]
    sys.exit(main(["train", *flags]))
