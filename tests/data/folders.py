"""Small folders and shards for the tests of layouts, and what an opened one says. No test stands here."""

import tarfile

import pytest

from diptych.data import SourceOptions, open_source
from diptych.errors import ConfigError, SourceError

from .world import add, image_bytes


def put(root, *names, **texts):
    """Write files: pictures, or what ``texts`` says of them."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(texts[name].encode() if name in texts else image_bytes(number))
    return str(root)


def tar(path, *keys):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for key in keys:
            add(archive, f"{key}.png", image_bytes(1))
            add(archive, f"{key}.txt", key.encode())


def captions(source):
    return [source.record(index).captions for index in range(len(source))]


def refuses(spec, *parts, **options):
    with pytest.raises((SourceError, ConfigError)) as caught:
        open_source(str(spec), options=SourceOptions(**options))
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)
