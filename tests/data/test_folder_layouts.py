"""What lies in a folder, and how it is read: lists, shards, splits, class folders; or an error that names two ways."""

import json

import pytest

from diptych.data import SourceOptions, open_source, open_split
from diptych.errors import ConfigError, SourceError

from .folders import captions, put, refuses, tar

pytestmark = pytest.mark.usefixtures("own_cache")


# --- lists


@pytest.mark.parametrize("name, where", [("metadata.jsonl", ""), ("metadata.jsonl", "images/"), ("metadata.csv", "")])
def test_a_folder_with_a_list_of_a_known_name_is_read_as_that(tmp_path, said, name, where):
    pictures = [f"{where}{n}.png" for n in range(3)]
    rows = [f'{{"file_name": "{picture}", "text": "of {picture}"}}' for picture in pictures]
    if name.endswith("csv"):
        rows = ["file_name,text", *(f"{picture},of {picture}" for picture in pictures)]
    spec = put(tmp_path, *pictures, name, **{name: "\n".join(rows)})
    source = open_source(spec)
    assert captions(source) == [(f"of {picture}",) for picture in pictures]
    assert source.record(2).image == tmp_path / pictures[2] and source.name == tmp_path.name
    assert said == [f"{spec}: reading the list {name} in it"]


def test_captions_txt_beside_a_folder_of_pictures_is_a_table(tmp_path):
    table = "image,caption\n1.png,a dog\n2.png,a cat\n"
    source = open_source(put(tmp_path, "Images/1.png", "Images/2.png", "captions.txt", **{"captions.txt": table}))
    assert captions(source) == [("a dog",), ("a cat",)]
    assert source.record(0).image == tmp_path / "Images" / "1.png"


def test_a_list_and_pictures_that_it_does_not_name_are_two_ways(tmp_path):
    row = '{"file_name": "dog/1.png", "text": "a"}'
    spec = put(tmp_path, "dog/1.png", "cat/2.png", "ant/3.png", "metadata.jsonl", **{"metadata.jsonl": row})
    refuses(spec, "it does not name (ant, cat)", f"{spec}/metadata.jsonl", "--dataset-type folder")
    assert open_source(spec, options=SourceOptions(dataset_type="folder")).classes == ("ant", "cat", "dog")


def test_several_lists_and_lists_beside_texts_are_two_ways(tmp_path):
    lists = {"metadata.csv": "file_name,text\n1.png,a\n", "captions.csv": "file_name,text\n1.png,b\n"}
    spec = put(tmp_path / "a", "1.png", *lists, **lists)
    refuses(spec, "several lists (captions.csv, metadata.csv)", f"{spec}/captions.csv or {spec}/metadata.csv")
    texts = {"1.txt": "a", "captions.txt": "image,caption\n1.png,a\n"}
    refuses(put(tmp_path / "b", "1.png", *texts, **texts), "captions.txt", "a .txt beside them")
    lists = {"a.csv": "file,text\nimg/1.png,a\n", "b.csv": "x"}
    refuses(
        put(tmp_path / "c", "img/1.png", *lists, **lists), "'img' would be the only class", "c/a.csv or ", "c/b.csv"
    )
    (tmp_path / "c" / "b.csv").unlink()
    assert captions(open_source(str(tmp_path / "c"))) == [("a",)]


# --- shards and splits


def test_a_folder_of_tars_is_its_shards_with_what_img2dataset_writes_beside(tmp_path, said):
    for number in range(2):
        tar(tmp_path / f"{number:05d}.tar", f"{number}a", f"{number}b")
        put(tmp_path, f"{number:05d}_stats.json", f"{number:05d}.parquet")
    source = open_source(str(tmp_path))
    assert captions(source) == [("0a",), ("0b",), ("1a",), ("1b",)] and source.splits() == {}
    assert said == [f"{tmp_path}: reading the 2 shards in it (00000.tar, ...)"]
    put(tmp_path, "cover.png")
    refuses(tmp_path, "2 shards (00000.tar) and 1 pictures (cover.png)", f"{tmp_path}/*.tar")


def test_shards_named_by_split_are_splits(tmp_path, said):
    tar(tmp_path / "data" / "train-0000.tar", "a", "b")
    tar(tmp_path / "data" / "validation-0000.tar", "c")
    spec = str(tmp_path)
    assert open_source(spec).splits() == {"train": 2, "validation": 1}
    said.clear()
    assert captions(open_split(spec, "", ("val", "validation"), SourceOptions())) == [("c",)]
    assert sum("taking the split 'validation' (1 of 3 records)" in line for line in said) == 1
    assert captions(open_split(spec, "train", (), SourceOptions())) == [("a",), ("b",)]
    with pytest.raises(SourceError, match=r"no split 'dev' .*train, validation"):
        open_source(spec, split="dev")


def test_folders_named_as_splits_are_no_classes(tmp_path, said):
    spec = put(tmp_path, "Train/dog/1.png", "Train/cat/1.png", "Train/ant/1.png", "val/dog/1.png", "val/cat/1.png")
    source = open_split(spec, "", ("val",), SourceOptions())
    assert len(source) == 2 and source.classes == ("ant", "cat", "dog")
    assert {source.record(index).label for index in range(2)} == {1, 2}
    assert any("val has no folder for ant" in line for line in said)
    assert open_source(spec, split="train").classes == ("ant", "cat", "dog")
    assert len(open_source(spec)) == 5
    put(tmp_path, "bee/1.png")
    refuses(spec, "named as splits (Train, val)", "folders with pictures (bee)", f"{spec}/val", "--dataset-type folder")


def test_a_single_split_is_taken_whole_and_named(tmp_path, said):
    put(tmp_path / "a", "val/dog/1.png", "val/cat/1.png")
    tar(tmp_path / "b" / "test" / "0.tar", "x", "y")
    put(tmp_path / "b", "classnames.txt", "test/nshards.txt")
    assert open_split(str(tmp_path / "a"), "", ("train",), SourceOptions()).classes == ("cat", "dog")
    assert len(open_split(str(tmp_path / "b"), "", ("train",), SourceOptions())) == 2
    assert [line.partition(": ")[2] for line in said if "only split" in line] == [
        "its only split is 'val' (2 of 2 records); it is taken whole",
        "its only split is 'test' (2 of 2 records); it is taken whole",
    ]


def test_folders_named_by_split_and_year_are_no_classes_either(tmp_path):
    spec = put(tmp_path, "train2017/1.png", "val2017/1.png", "annotations/captions_val2017.json")
    refuses(spec, "neither a .txt", f"there are lists: give {spec}/annotations/captions_val2017.json")


def test_a_split_that_cannot_be_opened_is_not_replaced_by_another(tmp_path):
    spec = put(tmp_path, "train/a/1.png", "train/b/1.png", "val/images/1.png")
    assert len(open_split(spec, "", ("train",), SourceOptions())) == 2
    with pytest.raises(SourceError, match="val: 'images' would be the only class"):
        open_split(spec, "", ("val",), SourceOptions())


def test_each_part_of_a_joined_source_has_its_own_splits(tmp_path):
    put(
        tmp_path / "a", "train/1.png", "train/1.txt", "val/2.png", "val/2.txt", **{"train/1.txt": "t", "val/2.txt": "v"}
    )
    tar(tmp_path / "x.tar", "plain")
    source = open_split(f"{tmp_path}/a :: {tmp_path}/x.tar", "", ("train",), SourceOptions())
    assert captions(source) == [("t",), ("plain",)]


def test_many_splits_are_listed_by_ten(tmp_path):
    rows = "".join(json.dumps({"image": "a.png", "caption": "a", "split": f"s{n:02d}"}) + "\n" for n in range(14))
    put(tmp_path, "x.jsonl", **{"x.jsonl": rows})
    with pytest.raises(ConfigError, match=r"s00, .*s09 and 4 more; name one with --train-split"):
        open_split(str(tmp_path / "x.jsonl"), "", ("train",), SourceOptions(), "--train-split")


# --- class folders


def test_classes_are_said_with_what_is_ignored_and_what_is_empty(tmp_path, said):
    put(
        tmp_path,
        "cat/1.png",
        "dog/1.JPG",
        "dog/x.xyz",
        "dog/y.xyz",
        "cat/notes",
        "readme.pdf",
        "boxes/a.xml",
        ".hid/1.png",
    )
    (tmp_path / "bee").mkdir()
    source = open_source(str(tmp_path))
    assert source.classes == ("bee", "cat", "dog") and len(source) == 2
    assert [source.record(index).label for index in range(2)] == [1, 2]
    assert (
        len(said) == 1 and "3 classes from folder names (bee, cat, dog), 5 files ignored: 2 .xyz (dog/x.xyz)" in said[0]
    )
    assert "without a picture: bee" in said[0] and "folders that are no class: boxes" in said[0]


def test_numbered_folders_are_sorted_as_numbers(tmp_path):
    source = open_source(put(tmp_path, *(f"{n}/1.png" for n in range(12))))
    assert source.classes == tuple(map(str, range(12)))
    assert all(source.record(index).label == int(source.record(index).key.split("/")[0]) for index in range(12))


def test_classes_two_folders_deep_have_to_be_chosen(tmp_path):
    spec = put(tmp_path, "dog/husky/1.png", "dog/pug/1.png", "cat/manx/1.png")
    refuses(spec, "--class-level 1 takes 2 classes (cat, dog)", "--class-level 2 takes 3 (cat/manx, ")
    assert open_source(spec, options=SourceOptions(class_level=1)).classes == ("cat", "dog")
    second = open_source(spec, options=SourceOptions(class_level=2))
    assert second.classes == ("manx", "husky", "pug")
    assert [second.record(index).label for index in range(3)] == [0, 1, 2]
    refuses(spec, "--class-level 3", class_level=3)


def test_a_single_class_is_an_error_or_a_warning(tmp_path, said):
    deeper = put(tmp_path / "a", "photos2/dog/1.png", "photos2/cat/1.png")
    refuses(deeper, "'photos2' would be the only class", f"give {deeper}/photos2")
    refuses(put(tmp_path / "b", "images/1.png"), "'images' would be the only class")
    assert open_source(put(tmp_path / "c", "dog/1.png")).classes == ("dog",)
    assert "only one class, 'dog'" in said[-1]


def test_pictures_outside_of_the_class_folders_are_counted(tmp_path):
    source = open_source(put(tmp_path, "loose.png", "a/1.png", "b/1.png"))
    assert [(item.count, item.example, item.bad) for item in source.left_out] == [(1, "loose.png", True)]
