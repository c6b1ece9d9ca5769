"""Each format with what people really write, and one line for what cannot be read."""

import gzip
import json
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.data import SourceOptions, open_source
from diptych.data.webdataset import braces
from diptych.errors import DataError, RecordError, SourceError

from .world import (
    COUNT,
    add,
    caption,
    image_bytes,
    write_csv,
    write_folder,
    write_images,
    write_jsonl,
    write_webdataset,
)


def refuses(spec, expected, **options):
    with pytest.raises(DataError, match=expected) as caught:
        source = open_source(str(spec), options=SourceOptions(**options))
        for index in range(len(source)):
            source.record(index)
    assert "\n" not in str(caught.value)


def test_what_is_missing_empty_or_unknown_is_one_line(tmp_path):
    refuses(tmp_path / "none.jsonl", "no such file")
    refuses(tmp_path / "none.tar", "no such file")
    refuses(tmp_path / "none", "no such file or folder")
    (tmp_path / "empty.csv").write_text("")
    refuses(tmp_path / "empty.csv", "empty")
    (tmp_path / "what.xyz").write_text("x")
    refuses(tmp_path / "what.xyz", "--dataset-type csv|folder|jsonl|webdataset")
    (tmp_path / "void").mkdir()
    refuses(tmp_path / "void", "no image in this folder")
    refuses("", "no data was named")


def test_sources_join_and_keep_keys_apart(tmp_path):
    spec = write_jsonl(tmp_path / "a") + "::" + write_csv(tmp_path / "b")
    source = open_source(spec)
    assert len(source) == 2 * COUNT
    assert source.record(COUNT).captions == (caption(0),)
    assert len({source.record(index).key for index in range(len(source))}) == 2 * COUNT


# --- JSON Lines


def test_jsonl_takes_one_caption_or_several_blank_lines_and_windows_paths(tmp_path):
    write_images(tmp_path)
    lines = [
        '{"image": "img\\\\00.png", "caption": "one"}',
        "",
        '{"image": "img/01.png", "caption": ["a", "b"], "label": 4}',
        "\r",
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    source = open_source(str(tmp_path / "x.jsonl"))
    assert [source.record(index).captions for index in range(2)] == [("one",), ("a", "b")]
    assert source.record(0).image == tmp_path / "img/00.png"
    assert source.record(1).label == 4


def test_jsonl_splits_are_counted_and_chosen(tmp_path):
    rows = [
        {"image": f"{number}.jpg", "caption": "x", "split": "val" if number % 3 == 0 else "train"}
        for number in range(9)
    ]
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert open_source(str(path)).splits() == {"train": 6, "val": 3}
    assert [open_source(str(path), split="val").record(index).key for index in range(3)] == [
        "0.jpg#0",
        "3.jpg#3",
        "6.jpg#6",
    ]
    with pytest.raises(SourceError, match=r"no split 'test'; splits seen: train \(6\), val \(3\)"):
        open_source(str(path), split="test")


def test_jsonl_errors_name_the_line(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"image": "a.jpg", "caption": "x"}\n\n{"image": \n')
    refuses(path, "line 3: not valid JSON")
    path.write_text('{"image": "a.jpg", "caption": "x"}\n[1, 2]\n')
    refuses(path, "line 2: expected an object")
    path.write_text('{"image": "a.jpg", "caption": "x"}\n{"caption": "x"}\n')
    refuses(path, "line 2: has no image")
    path.write_text('{"photo": "a.jpg", "caption": "x"}\n')
    refuses(path, "no column for images; columns seen: photo, caption; name it with --csv-img-key")


# --- CSV


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
def test_csv_finds_separator_and_columns(tmp_path, separator):
    path = tmp_path / "x.csv"
    rows = [
        ["id", "caption", "image_path"],
        ["1", "a dog runs", "a.jpg"],
        ["2", '"quoted, with ; and | and\ttab"', "b.jpg"],
    ]
    path.write_text("\r\n".join(separator.join(row) for row in rows), encoding="utf-8-sig", newline="")
    source = open_source(str(path))
    assert source.record(0).captions == ("a dog runs",)
    assert source.record(1).captions == ("quoted, with ; and | and\ttab",)
    assert source.record(1).image == tmp_path / "b.jpg"


def test_csv_honours_open_clips_flags(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_text("filepath\ttitle\tmine\tours\na.jpg\tx\tb.jpg\ty\n")
    chosen = SourceOptions(csv_separator="\\t", csv_img_key="mine", csv_caption_key="ours", image_root="root")
    record = open_source(str(path), options=chosen).record(0)
    assert (str(record.image), record.captions) == ("root/b.jpg", ("y",))
    refuses(path, "no column 'nope' .--csv-img-key.; columns seen: filepath, title, mine, ours", csv_img_key="nope")


def test_csv_without_a_known_column_prints_those_it_saw(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("URL,TEXT,n\nhttp,a,1\n")
    refuses(path, "no column for images; columns seen: URL, TEXT, n; name it with --csv-img-key")


def test_csv_keeps_line_breaks_in_quotes_and_survives_stray_quotes(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text('filepath,title\na.jpg,"two\nlines"\nb.jpg,plain\n')
    source = open_source(str(path))
    assert [source.record(index).captions[0] for index in range(2)] == ["two\nlines", "plain"]
    path = tmp_path / "y.tsv"
    path.write_text('filepath\ttitle\na.jpg\t"swallows the rest\nb.jpg\tplain\nc.jpg\talso "fine"\n')
    source = open_source(str(path))
    assert [source.record(index).captions[0] for index in range(len(source))] == [
        '"swallows the rest',
        "plain",
        'also "fine"',
    ]


def test_csv_rows_of_one_image_are_one_picture(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("filepath,title\na.jpg,x\na.jpg,y\nb.jpg,z\n")
    source = open_source(str(path))
    records = [source.record(index) for index in range(3)]
    assert [record.group for record in records] == ["a.jpg", "a.jpg", "b.jpg"]
    assert len({record.key for record in records}) == 3


def test_csv_errors_name_the_row(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("filepath,title\na.jpg,x\nb.jpg,too,many\n")
    refuses(path, "line 3: 3 fields where the header has 2")
    path.write_text("filepath,title\n")
    refuses(path, "a header at most and no row")
    path.write_bytes("filepath,title\na.jpg,caf\xe9\n".encode("latin-1"))
    refuses(path, "not UTF-8")


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_as_a_table_are_read_or_refused_in_one_line(tmp_path_factory, data):
    for name in ("x.csv", "x.jsonl"):
        path = tmp_path_factory.getbasetemp() / name
        path.write_bytes(data)
        try:
            source = open_source(str(path))
            source.record(0)
        except DataError as error:
            assert "\n" not in str(error)


# --- WebDataset


def test_braces_expand():
    assert list(braces("a{00..02}b{x,y}")) == ["a00bx", "a00by", "a01bx", "a01by", "a02bx", "a02by"]
    assert list(braces("{8..11}")) == ["8", "9", "10", "11"]
    assert list(braces("plain.tar")) == ["plain.tar"]


def test_webdataset_reads_patterns_json_labels_and_folders(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "deep/a.b.jpg", image_bytes(1))
        add(tar, "deep/a.b.json", json.dumps({"captions": ["one", "two"], "label": 7}).encode())
        add(tar, "b.png", image_bytes(2))
        add(tar, "b.txt", b" text ")
        add(tar, "b.cls", b"3")
        add(tar, "lonely.png", image_bytes(3))
    source = open_source(str(tmp_path / "*.tar"))
    assert len(source) == 2
    assert (source.record(0).captions, source.record(0).label) == (("one", "two"), 7)
    assert (source.record(1).captions, source.record(1).label) == (("text",), 3)
    assert source.record(1).image == image_bytes(2)
    refuses(tmp_path / "n*.tar", "no file matches")


def test_a_gzipped_shard_is_unpacked_once(tmp_path, monkeypatch):
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    write_webdataset(tmp_path)
    packed = tmp_path / "x.tar.gz"
    packed.write_bytes(gzip.compress((tmp_path / "shard-001.tar").read_bytes()))
    assert open_source(str(packed)).record(0).captions == (caption(4),)
    before = [path.stat().st_mtime_ns for path in (tmp_path / "cache" / "unpacked").iterdir()]
    open_source(str(packed))
    assert [path.stat().st_mtime_ns for path in (tmp_path / "cache" / "unpacked").iterdir()] == before
    packed.write_bytes(packed.read_bytes()[:-30])
    refuses(packed, "not a whole gzip")
    packed.write_bytes(b"no gzip at all")
    refuses(packed, "not a whole gzip")
    assert len(list((tmp_path / "cache" / "unpacked").iterdir())) == 1


def test_the_readable_part_of_a_truncated_tar_is_used(tmp_path, capsys):
    write_webdataset(tmp_path)
    path = tmp_path / "shard-001.tar"
    data = path.read_bytes()
    for share in (0.2, 0.35, 0.5):
        path.write_bytes(data[: int(len(data) * share)])
        source = open_source(str(path))
        assert 0 < len(source) < 11
        assert all(source.record(index).captions == (caption(4 + index),) for index in range(len(source)))
        assert "truncated" in capsys.readouterr().err


def test_members_that_point_outside_are_left_out(tmp_path, capsys):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("../evil", "/abs", "fine"):
            add(tar, f"{name}.png", image_bytes(1))
            add(tar, f"{name}.txt", b"x")
    assert len(open_source(str(tmp_path / "x.tar"))) == 1
    assert "point outside" in capsys.readouterr().err


def test_what_is_no_tar_is_one_line(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"not a tar at all" * 100)
    refuses(tmp_path / "x.tar", "not a readable tar")
    with tarfile.open(tmp_path / "void.tar", "w"):
        pass
    refuses(tmp_path / "void.tar", "no record that can be used")


# --- folders


def test_class_folders_give_labels_in_sorted_order(tmp_path):
    for label, name in enumerate(("zebra", "cat")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(image_bytes(label))
    source = open_source(str(tmp_path))
    assert source.classes == ("cat", "zebra")
    assert [(source.record(index).label, source.record(index).key) for index in range(2)] == [
        (0, "cat/1.png"),
        (1, "zebra/1.png"),
    ]


def test_captions_beside_images_may_be_several_and_strays_are_told(tmp_path, capsys):
    spec = write_folder(tmp_path)
    (tmp_path / "img" / "00.txt").write_text("one\n\n two \n")
    (tmp_path / "img" / "stray.png").write_bytes(image_bytes(1))
    source = open_source(spec)
    assert source.record(0).captions == ("one", "two")
    assert "1 x pictures without a text of the same name" in capsys.readouterr().err
    (tmp_path / "img" / "03.txt").unlink()
    with pytest.raises(RecordError, match="cannot be read"):
        source.record(3)


def test_loose_images_without_texts_say_what_is_missing(tmp_path):
    (tmp_path / "a.png").write_bytes(image_bytes(1))
    refuses(tmp_path, "neither a .txt beside any of them nor class folders")
