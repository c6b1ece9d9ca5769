"""The emoji set that ships: small, whole, split as promised, and free to ship."""

import collections
import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

import diptych
from diptych.data import open_source
from diptych.evaluate.retrieval import merge

FOLDER = Path(diptych.__file__).parent / "assets" / "emoji"
MANIFEST = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def samples():
    """(split, style, picture bytes, description) of every sample."""
    found = []
    for shard in MANIFEST["shards"]:
        with tarfile.open(FOLDER / shard["file"]) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        for name, data in members.items():
            if name.endswith(".webp"):
                about = json.loads(members[name.replace(".webp", ".json")])
                found.append((shard["split"], shard["style"], data, about))
    return found


def test_the_whole_is_small_and_every_shard_is_the_one_that_was_built():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 12 * 2**20
    for shard in MANIFEST["shards"]:
        assert hashlib.sha256((FOLDER / shard["file"]).read_bytes()).hexdigest() == shard["sha256"]
    assert {path.name for path in FOLDER.glob("*.tar.gz")} == {shard["file"] for shard in MANIFEST["shards"]}


def test_pictures_are_64_pixels_of_rgb_and_captions_are_several(samples):
    assert len(samples) == sum(shard["samples"] for shard in MANIFEST["shards"])
    for _, _, data, about in samples:
        with Image.open(io.BytesIO(data)) as picture:
            assert (picture.size, picture.mode) == ((64, 64), "RGB")
        assert about["captions"][0] == about["name"]
        assert len(about["captions"]) >= 2
        assert len(set(about["captions"])) == len(about["captions"])
        assert all(text.strip() == text and text for text in about["captions"])


def test_the_splits_are_what_they_say(samples):
    codes, styles = collections.defaultdict(set), collections.defaultdict(set)
    for split, style, _, about in samples:
        codes[split].add(about["codepoint"])
        styles[split].add(style)
    assert not codes["train"] & codes["held_out_names"]
    assert codes["unseen_style"] <= codes["train"]
    assert styles["unseen_style"] == {"openmoji"}
    assert "openmoji" not in styles["train"]
    assert len(codes["unseen_style"]) > 1500
    assert len(codes["held_out_names"]) > 100


@pytest.mark.parametrize("split", ["unseen_style", "held_out_names"])
def test_a_test_split_has_one_picture_per_name(samples, split):
    names = [about["name"] for which, _, _, about in samples if which == split]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("split", ["unseen_style", "held_out_names"])
def test_the_demo_is_measured_on_every_picture_of_a_split(split):
    """Each emoji's JSON names its category ("group": "symbols"): pictures must not be merged by it."""
    source = open_source(str(FOLDER / f"{split}-*.tar.gz"))
    pictures = merge(source, captions_per_image=1)
    expected = sum(shard["samples"] for shard in MANIFEST["shards"] if shard["split"] == split)
    assert len(pictures.indices) == len(pictures.captions) == expected > 100


def test_captions_do_not_give_the_style_away(samples):
    words = {"noto", "twemoji", "fluent", "openmoji", "emojitwo", "emojione"}
    assert not [about for *_, about in samples if words & set(" ".join(about["captions"]).split())]


def test_pictures_are_not_blank(samples):
    for _, style, data, about in samples[::7]:
        with Image.open(io.BytesIO(data)) as picture:
            darkest = min(low for low, _ in picture.getextrema())
        assert darkest < 235, (style, about["name"])


def test_every_source_is_credited_and_its_licence_is_here():
    credits = (FOLDER / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for source in MANIFEST["sources"]:
        assert source["name"] in credits
        assert (FOLDER / "LICENSES" / f"{source['licence']}.txt").stat().st_size > 900
