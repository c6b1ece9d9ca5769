"""JSON arrays, LAION shards, Parquet, tars, CSVs and remote files as other systems write them, and when they are damaged."""

import base64
import io
import json
import os
import tarfile
import time
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.data import Loader, LoaderOptions, SourceOptions, build_prepare, open_source
from diptych.data._line_index import Rows, rows_of
from diptych.data._tar import members_of
from diptych.errors import RecordError, SourceError
from diptych.image import ViewOptions
from diptych.text import get_tokenizer
from diptych.types import Wants

from .world import COUNT, add, caption, picture, write_images, write_jsonl, write_webdataset


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path_factory.mktemp("cache")))


def test_karpathys_own_file_has_splits_and_restval_trains(tmp_path):
    images = [
        {
            "filepath": "val2014",
            "filename": f"{n}.jpg",
            "split": part,
            "sentences": [{"raw": f"s{n} {k}"} for k in range(5)],
        }
        for n, part in enumerate(["train", "restval", "val", "test"])
    ]
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"dataset": "coco", "images": images}))
    source = open_source(str(path))
    assert source.splits() == {"test": 1, "train": 2, "val": 1}
    record = open_source(str(path), split="val").record(0)
    assert record.captions == tuple(f"s2 {k}" for k in range(5))
    assert record.image == tmp_path / "val2014" / "2.jpg"


def test_paddlemix_coco_repeats_an_image_per_caption(tmp_path):
    rows = [
        {"caption": "a dog ", "image": "val2014/1.jpg", "image_id": "coco_1"},
        {"caption": "b", "image": "val2014/1.jpg"},
    ]
    (tmp_path / "coco_karpathy_train.json").write_text(json.dumps(rows))
    source = open_source(str(tmp_path / "coco_karpathy_train.json"))
    one, two = source.record(0), source.record(1)
    assert one.captions == ("a dog ",)  # blanks at the end stay: the tokenizer takes them off
    assert one.group == two.group
    assert one.key != two.key


def test_json_files_that_hold_lines_and_those_that_hold_nothing_useful(tmp_path):
    lines = tmp_path / "val_official.json"
    lines.write_text('{"filename": "ILSVRC2012_val_1.JPEG", "label": 3, "label_name": "shark", "caption": "x"}\n')
    assert open_source(str(lines)).record(0).label == 3
    cases = {
        "[1, 2]": "expected an object",
        '[{"image": "a"': "not valid JSON",
        "[]": "holds no",
        '{"images": 3}': "neither an array",
        "": "empty",
    }
    for text, message in cases.items():
        path = tmp_path / "x.json"
        path.write_text(text)
        with pytest.raises(SourceError, match=message) as caught:
            open_source(str(path))
        assert "\n" not in caught.value.line


def test_a_leading_slash_and_windows_separators_are_mended(tmp_path):
    write_images(tmp_path, 2)
    rows = [{"image": "\\img\\00.png".lstrip("\\"), "caption": "a"}, {"image": "/img/01.png", "caption": "b"}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = open_source(str(tmp_path / "x.jsonl"))
    assert [source.record(place).image.read_bytes() for place in (0, 1)] == [picture(0), picture(1)]


def test_laion_lines_in_gb18030_and_broken_ones(tmp_path):
    good = base64.b64encode(picture(1)).decode()
    about = json.dumps({"caption_en": "二只狗"}, ensure_ascii=False)
    lines = [
        f"0\t\t{about}\t\t\t{good}\t".encode("gb18030"), b"too\tfew", b"0\t\t{}\t\t\t" + good.encode(),
        b'0\t\t{"caption_en": "x"}\t\t\t!!!', b"0\t\tnot json\t\t\t" + good.encode(),
    ]  # fmt: skip
    (tmp_path / "part-00000").write_bytes(b"\n".join(lines) + b"\n")
    source = open_source(str(tmp_path / "part-00000"))
    assert source.record(0).captions == ("二只狗",)
    assert source.record(0).image == picture(1)
    assert source.record(2).captions == ()
    for place, message in ((1, "2 columns"), (3, "not base64"), (4, "not JSON")):
        with pytest.raises(RecordError, match=message):
            source.record(place)


def test_parquet_of_paths_with_splits_and_labels(tmp_path):
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    names = write_images(tmp_path, 4)
    rows = [{"path": name, "text": [f"c{n}", "d"], "split": "ab"[n % 2], "label": n} for n, name in enumerate(names)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    source = open_source(str(tmp_path / "x.parquet"), split="b")
    assert open_source(str(tmp_path / "x.parquet")).splits() == {"a": 2, "b": 2}
    assert source.record(1).captions == ("c3", "d")
    assert source.record(1).label == 3
    assert source.record(1).image == tmp_path / "img" / "03.png"
    with pytest.raises(SourceError, match="columns seen: path"):
        open_source(str(tmp_path / "x.parquet"), options=SourceOptions(csv_img_key="jpeg"))
    (tmp_path / "y.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(SourceError, match="not a readable Parquet"):
        open_source(str(tmp_path / "y.parquet"))


NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.lists(NAMES, min_size=1, max_size=5), st.integers(0, 1500)), max_size=8),
    st.sampled_from([0, 1, 2]),
)
def test_members_are_those_that_the_standard_library_finds(tmp_path_factory, members, form):
    """Long names, odd characters, empty files, in the three ways that tars are written."""
    path = tmp_path_factory.mktemp("tar") / "x.tar"
    with tarfile.open(path, "w", format=[tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT][form]) as tar:
        for parts, size in members:
            info = tarfile.TarInfo("/".join(parts))
            info.size = size
            try:
                tar.addfile(info, io.BytesIO(bytes(size)))
            except ValueError:  # USTAR cannot hold every name
                continue
    with tarfile.open(path) as tar:
        expected = [
            (item.name, item.offset_data, item.size)
            for item in tar
            if item.isfile() and ".." not in item.name.split("/") and not item.name.startswith("/")
        ]
    found = members_of(str(path))
    assert [(name, *place) for name, place in zip(found.each_name(), found.spans.tolist(), strict=True)] == expected
    assert found.whole


def test_a_tar_is_indexed_once_and_again_when_it_changes(tmp_path, monkeypatch):
    spec = write_webdataset(tmp_path)
    assert len(open_source(spec)) == COUNT
    import diptych.data._tar as room

    monkeypatch.setattr(room, "_scanned", lambda spec: pytest.fail("was indexed again"))
    assert len(open_source(spec)) == COUNT
    monkeypatch.undo()
    with tarfile.open(tmp_path / "shard-000.tar", "w") as tar:
        add(tar, "new.png", picture(1))
        add(tar, "new.txt", b"x")
    os.utime(tmp_path / "shard-000.tar", ns=(time.time_ns(), time.time_ns()))
    assert len(open_source(spec)) == COUNT - 4 + 1


@pytest.mark.parametrize("cut", [100, 512, 700, 1500, 4000])
def test_the_readable_part_of_a_truncated_tar_is_used(tmp_path, cut, capsys):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(4):
            add(tar, f"{number}.png", picture(number))
            add(tar, f"{number}.txt", b"words")
    data = path.read_bytes()
    path.write_bytes(data[:cut])
    # A picture takes 1,024 bytes with its header, a text of five bytes stands 512 behind that.
    whole = sum(cut >= number * 2048 + 1024 + 512 + 5 for number in range(4))
    if whole:
        assert len(open_source(str(path))) == whole
        assert "truncated" in capsys.readouterr().err
    else:
        with pytest.raises(SourceError):
            open_source(str(path))


def test_an_index_is_mapped_checked_and_built_again_when_damaged(tmp_path):
    spec = write_jsonl(tmp_path)
    source = open_source(spec)
    index = source._rows.index
    assert isinstance(source._rows.bounds, np.memmap)
    damaged = index.read_bytes()[:50]
    index.unlink()  # the mapped one lives on
    index.write_bytes(damaged)
    assert open_source(spec).record(3) == source.record(3)
    calls = []
    path = tmp_path / "pairs.jsonl"
    path.write_text(path.read_text() + json.dumps({"image": "img/00.png", "captions": ["more"]}) + "\n")
    rows = rows_of(path, "jsonl", lambda path, built: calls.append(path))
    assert calls == [path]
    assert isinstance(rows, Rows)


def test_remote_lists_images_and_shards_are_read(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    local = write_webdataset(tmp_path / "tars")
    for path in (tmp_path / "tars").glob("*.tar"):
        memory.pipe(f"/tars/{path.name}", path.read_bytes())
    one, two = open_source(local), open_source("memory://tars/shard-{000..002}.tar")
    assert [two.record(place).image for place in range(COUNT)] == [one.record(place).image for place in range(COUNT)]
    assert len(open_source("memory://tars/shard-*.tar")) == COUNT
    memory.pipe("/list/00.png", picture(0))
    memory.pipe(
        "/list/pairs.jsonl", json.dumps({"image": "memory://list/00.png", "caption": caption(0)}).encode() + b"\n"
    )
    record = open_source("memory://list/pairs.jsonl").record(0)
    assert record.image == picture(0)
    for spec in ("memory://nothing.jsonl", "memory://nothing/*.tar", "nosuchscheme://x.csv"):
        with pytest.raises(SourceError) as caught:
            open_source(spec)
        assert "\n" not in caught.value.line


@pytest.mark.parametrize(
    "text", ['a,b"c\n', 'x.png,"two\nlines"\n', "x.png,nul\0byte\n", "\n\n\nx.png,blank lines\n\r\n", "x.png,end"]
)
def test_csv_rows_are_found_where_they_stand(tmp_path, text):
    path = tmp_path / "x.csv"
    path.write_text(f"filepath,title\n1.png,first\n{text}", newline="")
    source = open_source(str(path))
    assert source.record(0).captions == ("first",)
    assert len(source) == 2
    expected = {'a,b"c\n': 'b"c', 'x.png,"two\nlines"\n': "two\nlines", "x.png,nul\0byte\n": "nulbyte"}
    assert source.record(1).captions[0] == expected.get(text, text.strip().partition(",")[2])


ROW = st.tuples(
    st.text(st.sampled_from('ab",;\t \n'), min_size=1, max_size=6), st.text(st.sampled_from('xy",\t \n'), max_size=8)
)


@settings(max_examples=150, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=12), st.sampled_from([",", "\t", ";"]), st.booleans())
def test_what_the_standard_library_writes_is_read_back(tmp_path_factory, rows, mark, split):
    import csv

    path = tmp_path_factory.mktemp("csv") / "x.csv"
    with path.open("w", newline="") as file:
        table = csv.writer(file, delimiter=mark, quoting=csv.QUOTE_ALL, lineterminator="\n")
        table.writerow(["filepath", "title", *(["split"] if split else [])])
        table.writerows([*row, *(["s"] if split else [])] for row in rows)
    options = SourceOptions(csv_separator=mark)
    source = open_source(str(path), options=options)
    assert [source.record(place).captions[0] for place in range(len(source))] == [row[1] for row in rows]
    assert source.splits() == ({"s": len(rows)} if split else {})


def bomb():
    """A PNG of a few bytes that says it is 50,000 pixels square."""

    def chunk(kind, content):
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    size = (50_000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


def test_bad_samples_in_every_shape_are_one_ledger(tmp_path):
    """Zero bytes, a web page, a bomb, a missing file, an empty caption: skipped, each with its reason."""
    names = write_images(tmp_path, 20)
    (tmp_path / names[1]).write_bytes(b"")
    (tmp_path / names[2]).write_bytes(b"<!DOCTYPE html>")
    (tmp_path / names[3]).write_bytes(bomb())
    (tmp_path / names[4]).unlink()
    rows = [{"image": name, "captions": [" " if place == 5 else "words"]} for place, name in enumerate(names)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare = build_prepare(Wants(images=("eval",)), get_tokenizer("bpe"), ViewOptions(8))
    loader = Loader(
        open_source(str(tmp_path / "pairs.jsonl")), prepare, LoaderOptions(batch_size=20, bad_samples="skip", epochs=1)
    )
    assert [len(batch.keys) for batch, _ in loader] == [20]
    reasons = {key.partition("#")[0]: reason for key, reason in loader.bad}
    assert set(reasons) == set(names[1:6])
    for place, words in (
        (1, "empty (0 bytes)"),
        (2, "web page"),
        (3, "pixels"),
        (4, "no such image file"),
        (5, "caption is empty"),
    ):
        assert words in reasons[names[place]]


def test_a_pipe_is_run_once_and_a_failing_one_says_why(tmp_path):
    spec = write_webdataset(tmp_path)
    one = open_source(spec)
    command = f"cat {tmp_path}/shard-{{000..002}}.tar; echo x >> {tmp_path}/ran"
    for _ in range(2):
        two = open_source(f"pipe:{command}")
        assert [two.record(place).image for place in range(COUNT)] == [
            one.record(place).image for place in range(COUNT)
        ]
    assert (tmp_path / "ran").read_text() == "x\n" * 3
    with pytest.raises(SourceError, match=r"ended with code 3 .*no luck"):
        open_source("pipe:echo no luck >&2; exit 3")


def test_keys_that_come_twice_are_told_and_made_different(tmp_path, capsys):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("a", "b", "a"):
            add(tar, f"{name}.png", picture(1))
            add(tar, f"{name}.txt", b"words")
    source = open_source(str(tmp_path / "x.tar"))
    assert len({source.record(place).key for place in range(3)}) == 3
    assert "1 keys come twice" in capsys.readouterr().err


def test_a_key_or_group_that_means_something_else_is_not_taken_for_the_pictures_name(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for number in range(3):
            add(tar, f"{number}.png", picture(number))
            add(tar, f"{number}.json", json.dumps({"caption": "c", "group": "symbols", "key": "same"}).encode())
    records = [open_source(str(tmp_path / "x.tar")).record(number) for number in range(3)]
    assert len({record.key for record in records}) == 3 and {record.group for record in records} == {None}


def test_a_table_of_labels_needs_no_captions(tmp_path):
    (tmp_path / "a.csv").write_text("file,wnid,class_index,name\n1.png,n02,7,tench\n2.png,n01,0,cat\n")
    source = open_source(str(tmp_path / "a.csv"))
    first = source.record(0)
    assert (first.label, first.captions, first.extra) == (7, (), {"label_name": "tench"}) and source.classes is None
    (tmp_path / "b.tsv").write_text("image\tlabel\n1.png\tdog\n2.png\tcat\n3.png\tdog\n")
    named = open_source(str(tmp_path / "b.tsv"))
    assert named.classes == ("cat", "dog") and [named.record(n).label for n in range(3)] == [1, 0, 1]
    (tmp_path / "c.csv").write_text("image,title,label\n1.png,a dog,3\n")
    both = open_source(str(tmp_path / "c.csv")).record(0)
    assert (both.captions, both.label) == (("a dog",), 3)
