"""Where real photos may be: beside the repository, never in it. Tests that use them skip where they are absent."""

from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
FLICKR = DATA / "flickr8k"
needs_photos = pytest.mark.skipif(
    not FLICKR.is_dir(), reason="the folder ../shared/data/flickr8k with real photos is absent"
)


def some_photos(count: int) -> list[Path]:
    """A spread of photos of several sizes."""
    found = sorted((DATA / "imagenet-sample-1000" / "images").rglob("*.J*G")) or sorted(FLICKR.glob("images/*.jpg"))
    return found[:: max(1, len(found) // count)][:count]
