"""Pictures in folders and the texts beside them, what is ignored, what does not exist, and random folders."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diptych import log
from diptych.data import SourceOptions, open_source
from diptych.data._folder_walk import HEIC
from diptych.errors import ConfigError, RecordError, SourceError
from diptych.image import image_endings

from .folders import captions, put, refuses, tar

pytestmark = pytest.mark.usefixtures("own_cache")


# --- pictures and texts


def test_every_ending_of_a_picture_counts_and_others_are_named(tmp_path, said):
    names = [f"{n}{ending}" for n, ending in enumerate(sorted(image_endings()))]
    put(tmp_path, *names, *(f"{n}.txt" for n in range(len(names))), "stray.txt", "bare.png", "b.xyz")
    source = open_source(str(tmp_path))
    assert len(source) == len(names) > 20
    reasons = {item.example: item.reason for item in source.left_out}
    assert "without a text" in reasons["bare.png"] and "texts without a picture" in reasons["stray.txt"]
    assert any("1 file ignored: 1 .xyz (b.xyz)" in line for line in said)


@pytest.mark.skipif(f".{HEIC[0]}" in image_endings(), reason="pillow-heif is installed")
def test_heic_without_its_plugin_names_it(tmp_path):
    refuses(put(tmp_path / "a", "1.HEIC", "1.txt"), "pip install pillow-heif")
    source = open_source(put(tmp_path / "b", "1.heic", "1.txt", "2.png", "2.txt"))
    assert len(source) == 1 and any("pip install pillow-heif" in item.reason and item.bad for item in source.left_out)


@pytest.mark.parametrize("ending, text", [("caption", "a dog"), ("json", '{"caption": "a dog"}'), ("TXT", "a dog")])
def test_captions_beside_pictures_may_be_of_other_endings(tmp_path, ending, text):
    names = {f"{n}.{ending}": text for n in range(3)}
    source = open_source(put(tmp_path, "0.png", "1.jpg", "2.webp", *names, **names))
    assert captions(source) == [("a dog",)] * 3


def test_json_without_captions_leaves_class_folders_what_they_are(tmp_path):
    names = {f"{kind}/1.json": '{"width": 3}' for kind in ("cat", "dog")}
    assert open_source(put(tmp_path, "cat/1.png", "dog/1.png", *names, **names)).classes == ("cat", "dog")


def test_two_pictures_of_one_text_are_left_out_or_chosen(tmp_path):
    spec = put(tmp_path, "1.png", "1.webp", "1.txt", "1.k.png", "1.k.txt", **{"1.txt": "a", "1.k.txt": "b"})
    assert captions(open_source(spec)) == [("b",)]
    assert open_source(spec).left_out[0].count == 2
    assert captions(open_source(spec, options=SourceOptions(csv_img_key="png"))) == [("b",), ("a",)]


def test_texts_that_differ_in_capitals_only_are_a_bad_sample(tmp_path):
    spec = put(tmp_path, "1.png", "2.png", *(names := ["1.txt", "1.TXT", "2.txt"]), **dict.fromkeys(names, "a"))
    if len(list(tmp_path.iterdir())) < 5:
        pytest.skip("this file system knows no capitals")
    with pytest.raises(RecordError, match="two texts"):
        open_source(spec).record(0)


def test_links_in_circles_end(tmp_path):
    spec = put(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "a" / "again").symlink_to(tmp_path, target_is_directory=True)
    assert len(open_source(spec)) == 2


# --- what does not exist


def test_errors_name_what_is_near(tmp_path):
    tar(tmp_path / "shards" / "train-000.tar", "a")
    refuses(tmp_path / "shards" / "tran-000.tar", f"Did you mean {tmp_path}/shards/train-000.tar?")
    refuses(tmp_path / "shards" / "*.tgz", "no file matches", "holds train-000.tar")
    refuses(tmp_path / "shrads" / "x.tar", f"The folder {tmp_path} exists, shrads in it does not")
    refuses(tmp_path / "shards" / "{000..001}.tar", "Of .tar the folder holds train-000.tar")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    refuses(tmp_path / "a.png", "it is a picture: give the folder", "--dataset-type")
    put(tmp_path, "a.zip", "void/b.zip")
    refuses(tmp_path / "a.zip", "unpack it")
    refuses(tmp_path / "void", "no image in this folder; it holds b.zip")


# --- fuzz

stems = st.text(st.sampled_from("ab.1"), min_size=1, max_size=4).filter(lambda text: text[0] != ".")
places = st.sampled_from(["", "dog/", "cat/", "cat/manx/", "train/", "val/", "images/", "empty/"])
files = st.builds(
    "{}{}.{}".format, places, stems, st.sampled_from(["png", "JPG", "txt", "caption", "json", "xyz", "csv"])
)


@settings(max_examples=150, deadline=None)
@given(st.lists(files, min_size=1, max_size=9, unique=True), st.sampled_from(["", "metadata.jsonl", "captions.txt"]))
def test_of_any_folder_the_right_pairs_come_out_or_something_is_said(tmp_path_factory, names, listed):
    """The text of a file is its path without the ending, so a picture whose caption says another path has another's text."""
    root = tmp_path_factory.mktemp("fuzz")
    images = [name for name in names if name.endswith(("png", "JPG"))]
    texts = {name: name.rpartition(".")[0] for name in names if name not in images}
    texts = {name: json.dumps({"caption": text}) if name.endswith("json") else text for name, text in texts.items()}
    if listed == "metadata.jsonl":
        texts[listed] = "".join(json.dumps({"file_name": n, "text": n.rpartition(".")[0]}) + "\n" for n in images)
    if listed == "captions.txt":
        texts[listed] = "".join(
            f"{a},{b}\n" for a, b in [("image", "caption"), *((n, n.rpartition(".")[0]) for n in images)]
        )
    put(root, *images, *texts, **texts)
    with log.held() as lines:
        try:
            source = open_source(str(root))
        except (SourceError, ConfigError) as error:
            assert "\n" not in error.line
            lines.clear()
            return
        said, _ = " ".join(message for message, _ in lines), lines.clear()
    for index in range(len(source)):
        record = source.record(index)
        path = record.image.relative_to(root).as_posix()
        if record.captions:
            assert path.rpartition(".")[0].endswith(record.captions[0])  # in a split, texts are named from the root
        else:
            assert source.classes is None or source.classes[record.label] in path.split("/")
            assert "from folder names" in said
    used = {source.record(index).image.relative_to(root).as_posix() for index in range(len(source))}
    assert used == set(images) or said
