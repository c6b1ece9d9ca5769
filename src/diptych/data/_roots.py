"""Where the relative images of a list lie: decided once, when it is opened, by looking for some of them.

Beside the list, or under --image-root; failing that in a folder named like the list, in ``images``, in COCO's ``train2017``
beside ``annotations``. Where they are found elsewhere, one line says so; where they are nowhere, nothing changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from diptych.data._fields import say
from diptych.data._remote import is_remote

PROBED = 16  # images that are looked for
FOLDERS = (
    "images", "Images", "imgs", "image", "photos", "flickr30k-images", "flickr30k_images", "flickr30k-images/flickr30k-images",
    "Flicker8k_Dataset", "Flickr8k_Dataset",
)  # fmt: skip


def root_of(listed: Path, image_root: str, images: Iterable[str]) -> Path:
    """The folder that relative images of the file ``listed`` start from; ``images`` are some, as it writes them."""
    if image_root:
        return Path(image_root)
    plain = listed.parent
    wanted = [Path(name.replace("\\", "/")) for name in list(images)[:PROBED] if name and not is_remote(name)]
    wanted = [name for name in wanted if not name.is_absolute() or not _exists(name)]
    most = _count(plain, wanted)
    if not wanted or most == len(wanted) or any(map(_exists, wanted)):
        return plain
    best = plain
    for folder in _candidates(listed):
        if folder.is_dir() and (count := _count(folder, wanted)) > most:
            best, most = folder, count
    if best != plain:
        say(f"{listed}: its images lie in {best} (--image-root chooses another folder)")
    return best


def _candidates(listed: Path) -> Iterator[Path]:
    plain, above = listed.parent, listed.parent.parent
    stem = listed.name.partition(".")[0]
    parts = [stem, stem.rpartition("_")[2]]  # captions_train2017: train2017
    for base in (plain, above):
        yield from (base / name for name in parts)
        yield from (base / name for name in FOLDERS)
        yield from (base / "images" / name for name in parts)
    yield above


def _count(folder: Path, names: Iterable[Path]) -> int:
    return sum(_exists(folder / str(name).lstrip("/")) for name in names)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long for a name, or with a NUL inside
        return False
