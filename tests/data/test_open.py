"""Which format reads a name, by declared priority; which split is taken when none was named; names in one table."""

import dataclasses
import json

import pytest

from diptych import log
from diptych.data import (
    SOURCES,
    VALIDATION_SPLITS,
    Opened,
    SourceOptions,
    check_options,
    known_data,
    open_source,
    open_split,
)
from diptych.data._open import _format_of
from diptych.errors import ConfigError, SourceError
from diptych.evaluate import open_labeled

from .world import FORMATS, image_bytes, write_images


def test_every_format_declares_a_priority_and_an_example():
    for name in SOURCES.names():
        entry = SOURCES.get(name)
        assert entry.priority in (10, 15, 20, 30), name
        assert entry.example in known_data(), name
    assert known_data().startswith("a folder, shards-{000..099}.tar, ")


@pytest.mark.parametrize(
    "name, expected",
    [("a.csv", "Csv"), ("a.TSV", "Csv"), ("a.json", "JsonArray"), ("a.jsonl", "JsonLines"), ("a.tar", "WebDataset"),
     ("laion.parquet", "Parquet"), ("laion.jsonl", "JsonLines"), ("part-00000.parquet", "Parquet"),
     ("laion-400m.tar.gz", "WebDataset"), ("part-00000.gz", "Laion"), ("laion.filelist", "Laion"), ("part-00007", "Laion")],
)  # fmt: skip
def test_an_ending_decides_before_other_parts_of_a_name(tmp_path, name, expected):
    (tmp_path / name).write_text("x")
    assert _format_of(str(tmp_path / name)).__name__ == expected


def test_a_folder_is_a_folder_whatever_it_is_called_and_a_pipe_is_a_tar(tmp_path):
    (tmp_path / "pairs.csv").mkdir()
    assert _format_of(str(tmp_path / "pairs.csv")).__name__ == "Folder"
    assert _format_of("pipe:cat pairs.csv").__name__ == "WebDataset"


def test_two_formats_of_equal_priority_that_both_match_are_an_error(tmp_path, monkeypatch):
    @SOURCES.register("commas")
    class Commas(SOURCES.get("csv")):
        example = "pairs.csv as well"

    try:
        (tmp_path / "a.csv").write_text("filepath,title\nx.png,y\n")
        with pytest.raises(
            ConfigError, match=r"the formats Commas and Csv both read this name; choose with --dataset-type"
        ):
            open_source(str(tmp_path / "a.csv"))
        assert len(open_source(str(tmp_path / "a.csv"), options=SourceOptions(dataset_type="commas"))) == 1
    finally:
        del SOURCES._entries["commas"]


def test_errors_and_help_name_every_registered_format(tmp_path, capsys):
    from diptych.config import parse

    (tmp_path / "what.xyz").write_text("x")
    with pytest.raises(SourceError, match=r"choose one with --dataset-type (.*)\.$") as caught:
        open_source(str(tmp_path / "what.xyz"))
    assert str(caught.value).rpartition(" ")[2].rstrip(".").split("|") == SOURCES.names() == sorted(FORMATS)
    with pytest.raises(SystemExit):
        parse(SourceOptions, ["--help"], program="x")
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"or {', '.join(SOURCES.names())}." in shown
    with pytest.raises(ConfigError, match=r"unknown data format 'jsonlx'. Did you mean 'jsonl'\?"):
        open_source("x", options=SourceOptions(dataset_type="jsonlx"))


def with_splits(folder, *splits):
    names = write_images(folder, 4)
    rows = [{"image": name, "caption": "a", "split": split} for name, split in zip(names, splits, strict=False)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder / "pairs.jsonl")


def test_a_split_that_was_not_named_is_chosen_and_logged(tmp_path, monkeypatch):
    messages = []
    monkeypatch.setattr(log, "info", messages.append)
    spec = with_splits(tmp_path, "train", "train", "test", "dev")
    assert len(open_split(spec, "", ("train",), SourceOptions())) == 2
    assert open_split(spec, "", VALIDATION_SPLITS, SourceOptions()).record(0).key.startswith("img/03.png")
    assert len(messages) == 2
    assert "taking the split 'dev' (1 of 4 records)" in messages[1]
    assert open_split(spec, "test", ("train",), SourceOptions()).record(0).key.startswith("img/02.png")
    assert len(messages) == 2  # what was named is no guess


def test_no_preferred_split_is_an_error_with_the_flag(tmp_path):
    spec = with_splits(tmp_path, "a", "b")
    with pytest.raises(ConfigError, match="has the splits a, b; name one with --val-split"):
        open_split(spec, "", VALIDATION_SPLITS, SourceOptions(), "--val-split")


def test_a_single_split_or_none_is_taken_whole(tmp_path):
    assert len(open_split(with_splits(tmp_path, "a", "a", "a"), "", ("train",), SourceOptions())) == 3


def test_joined_captions_need_no_common_labels(tmp_path):
    for name, classes in (("a", ["bee", "ant"]), ("b", ["car", "bus"]), ("c", ["bee", "ant"])):
        rows = [f"{name}{number}.jpg,text number {number},{label}\n" for number, label in enumerate(classes)]
        (tmp_path / f"{name}.csv").write_text("image,caption,label\n" + "".join(rows))
    joined = open_source(f"{tmp_path}/a.csv::{tmp_path}/b.csv")
    assert [joined.record(index).captions for index in (0, 3)] == [("text number 0",), ("text number 1",)]
    assert {joined.record(index).label for index in range(4)} == {None}
    with pytest.raises(ConfigError, match=r"a\.csv::b\.csv: the parts joined with :: have other classes each"):
        _ = joined.classes
    with pytest.raises(ConfigError, match="labels would collide"):
        open_labeled(f"{tmp_path}/a.csv::{tmp_path}/b.csv")
    alike = open_labeled(f"{tmp_path}/a.csv::{tmp_path}/c.csv")
    assert alike.classes == ("ant", "bee")
    assert [alike.record(index).label for index in range(4)] == [1, 0, 1, 0]


GIVEN = {
    "csv_separator": ";", "csv_columns": "filepath,title", "csv_img_key": "image", "csv_caption_key": "caption",
    "image_root": "x", "class_level": 1,
}  # fmt: skip


def test_every_option_is_used_by_some_format_and_every_format_says_which():
    fields = {field.name for field in dataclasses.fields(SourceOptions)} - {"dataset_type"}
    assert fields == set(GIVEN)
    assert {name for kind in FORMATS for name in SOURCES.get(kind).uses} == fields


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_an_option_that_the_data_cannot_use_is_an_error(tmp_path, kind):
    spec = FORMATS[kind](tmp_path)
    uses = type(open_source(spec)).uses
    for name in GIVEN.keys() - uses:
        flag = "--" + name.replace("_", "-")
        with pytest.raises(
            ConfigError, match=f"{flag} {GIVEN[name]}: of no use for .*, only for data of the format [a-z_, ]+; leave"
        ):
            open_source(spec, options=SourceOptions(**{name: GIVEN[name]}))


def test_one_source_that_uses_an_option_is_enough(tmp_path):
    FORMATS["folder"](tmp_path)
    (tmp_path / "x.csv").write_text("0.png;a dog\n")
    columns = SourceOptions(csv_columns="filepath,title", csv_separator=";")
    folder, table = (open_split(str(path), "", (), columns) for path in (tmp_path / "img", tmp_path / "x.csv"))
    check_options([Opened(folder, columns), Opened(table, columns)])
    with pytest.raises(ConfigError, match="csv-"):
        check_options([Opened(folder, columns)])
    with pytest.raises(ConfigError, match="--val-image-root y: of no use"):
        check_options([Opened(table, columns), Opened(folder, SourceOptions(image_root="y"), "--val-image-root")])


def test_the_type_of_pairs_does_not_change_what_labeled_images_are(tmp_path, said):
    for name in ("bee", "ant"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        (tmp_path / "classes" / name / "0.png").write_bytes(image_bytes(0))
    (tmp_path / "list.csv").write_text("image,label\nclasses/bee/0.png,1\n")
    (tmp_path / "list.data").write_text("image,label\nclasses/bee/0.png,1\n")
    pairs = SourceOptions(dataset_type="webdataset")
    assert open_labeled(str(tmp_path / "classes"), pairs).classes == ("ant", "bee")
    assert len(open_labeled(str(tmp_path / "list.csv"), pairs)) == 1
    assert sum("is read as what it is; --dataset-type webdataset is for pairs" in line for line in said) == 2
    assert len(open_labeled(str(tmp_path / "list.data"), SourceOptions(dataset_type="csv"))) == 1
    with pytest.raises(SourceError, match="no such file"):
        open_labeled(str(tmp_path / "none"), pairs)
    with pytest.raises(
        SourceError,
        match=r"not a readable tar .*--dataset-type webdataset was given; without it, this is read as csv\.",
    ):
        open_source(str(tmp_path / "list.csv"), options=pairs)
    assert open_labeled(str(tmp_path / "classes"), SourceOptions(dataset_type="folder")).classes == ("ant", "bee")
