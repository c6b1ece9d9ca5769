"""Indexes of tars and rows: built once, mapped, checked, and equal to what the standard library reads."""

import io
import json
import os
import tarfile
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.data import SourceOptions, open_source
from diptych.data._line_index import Rows, rows_of
from diptych.data._tar import members_of
from diptych.errors import SourceError

from .world import COUNT, add, image_bytes, write_jsonl, write_webdataset

NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60
)
ROW = st.tuples(
    st.text(st.sampled_from('ab",;\t \n'), min_size=1, max_size=6), st.text(st.sampled_from('xy",\t \n'), max_size=8)
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path_factory.mktemp("cache")))


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
    members_read = members_of(str(path))
    assert [
        (name, *number) for name, number in zip(members_read.each_name(), members_read.spans.tolist(), strict=True)
    ] == expected
    assert members_read.whole


def test_a_tar_is_indexed_once_and_again_when_it_changes(tmp_path, monkeypatch):
    spec = write_webdataset(tmp_path)
    assert len(open_source(spec)) == COUNT
    import diptych.data._tar as tar_index

    monkeypatch.setattr(tar_index, "_scanned", lambda spec: pytest.fail("was indexed again"))
    assert len(open_source(spec)) == COUNT
    monkeypatch.undo()
    with tarfile.open(tmp_path / "shard-000.tar", "w") as tar:
        add(tar, "new.png", image_bytes(1))
        add(tar, "new.txt", b"x")
    os.utime(tmp_path / "shard-000.tar", ns=(time.time_ns(), time.time_ns()))
    assert len(open_source(spec)) == COUNT - 4 + 1


@pytest.mark.parametrize("size", [100, 512, 700, 1500, 4000])
def test_the_readable_part_of_a_truncated_tar_is_used(tmp_path, size, capsys):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(4):
            add(tar, f"{number}.png", image_bytes(number))
            add(tar, f"{number}.txt", b"words")
    data = path.read_bytes()
    path.write_bytes(data[:size])
    # An image takes 1,024 bytes with its header, a text of five bytes begins 512 behind it.
    whole = sum(size >= number * 2048 + 1024 + 512 + 5 for number in range(4))
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
    assert [source.record(number).captions[0] for number in range(len(source))] == [row[1] for row in rows]
    assert source.splits() == ({"s": len(rows)} if split else {})
