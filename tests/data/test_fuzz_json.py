"""JSON as nobody should write it: the right records come out, or an error of the data names the file. Never anything else."""

import json

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from diptych.data import open_source
from diptych.errors import DataError, RecordError, SourceError
from diptych.types import Record

FUZZ = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
KEYS = st.sampled_from(
    [
        "image",
        "images",
        "annotations",
        "captions",
        "caption",
        "sentences",
        "filename",
        "filepath",
        "file_name",
        "raw",
        "id",
        "image_id",
        "split",
        "label",
        "label_name",
        "name",
        "conversations",
        "data",
        "train",
        "val",
        "a.jpg",
        "b/c.png",
    ]
)
ODD_TEXTS = ["a.jpg", "b/c.png", "train", "restval", "a dog runs", "3", "3.0", "\ud800", "a\0b", "[" * 300]
LISTS_AS_TEXT = ["['a', 'b']", "[{[1]: 2}]", "('\\d', 'x')", "[1e999]"]
NUMBERS = st.integers(-9, 9) | st.sampled_from([10**30, -(10**400), 1 << 63]) | st.floats()
LEAVES = st.none() | st.booleans() | NUMBERS | st.text(max_size=6) | st.sampled_from(ODD_TEXTS + LISTS_AS_TEXT)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=3), inner, max_size=5),
    max_leaves=14,
)
COCO = st.fixed_dictionaries(
    {
        "images": st.lists(
            st.dictionaries(st.sampled_from(["id", "file_name", "coco_url", "split"]), VALUES), max_size=3
        ),
        "annotations": st.lists(st.dictionaries(st.sampled_from(["image_id", "caption", "id"]), VALUES), max_size=3),
    }
)
LAYOUTS = VALUES | st.lists(st.dictionaries(KEYS, VALUES, max_size=5), max_size=6) | COCO


def read_all(path):
    """All records that can be read. Whatever is not an error of the data is a fault of the reader."""
    try:
        source = open_source(str(path))
    except DataError as error:
        assert "\n" not in error.line
        return None
    records = []
    for index in range(len(source)):
        try:
            records.append(source.record(index))
        except RecordError as error:
            assert "\n" not in error.line
    assert all(isinstance(record, Record) for record in records)
    assert all(isinstance(caption, str) for record in records for caption in record.captions)
    assert all(record.label is None or type(record.label) is int for record in records)
    return records


@pytest.fixture
def folder(tmp_path_factory, own_cache, said):
    return tmp_path_factory.mktemp("json")


@FUZZ
@given(value=LAYOUTS, indent=st.sampled_from([None, 1]))
@example(
    value={"images": [{"id": [1], "file_name": "a.jpg"}], "annotations": [{"image_id": [1], "caption": "a"}]},
    indent=None,
)
def test_any_value_as_a_json_file(folder, value, indent):
    path = folder / "list.json"
    path.write_text(json.dumps(value, indent=indent))
    read_all(path)


@FUZZ
@given(rows=st.lists(VALUES | st.dictionaries(KEYS, VALUES, max_size=5), min_size=1, max_size=8))
@example(rows=[{"image": "a.jpg", "caption": text} for text in LISTS_AS_TEXT])
@example(rows=[{"image": "a.jpg", "label": number} for number in (float("nan"), 2, None)])
def test_any_values_as_json_lines(folder, rows):
    path = folder / "list.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read_all(path)


SENTENCES = st.text(st.characters(exclude_categories=("Cs",)), max_size=12).map(lambda text: f"a {text} z")
PAIRS = st.lists(st.lists(SENTENCES, min_size=1, max_size=3), min_size=2, max_size=6)


def laid_out(layout, captions):
    """The same pairs in one of the layouts; names of images are 0.jpg, 1.jpg, ..."""
    rows = [{"image": f"{number}.jpg", "captions": texts} for number, texts in enumerate(captions)]
    if layout == "mapping":
        return {row["image"]: row["captions"] for row in rows}
    if layout == "coco":
        notes = [{"image_id": number, "caption": text} for number, texts in enumerate(captions) for text in texts]
        images = [{"id": number, "file_name": row["image"]} for number, row in enumerate(rows)]
        return {"annotations": notes[::-1], "info": {}, "images": images}
    if layout == "karpathy":
        texts = [[{"raw": text, "tokens": text.split()} for text in row["captions"]] for row in rows]
        return {
            "images": [{"filename": row["image"], "sentences": said} for row, said in zip(rows, texts, strict=True)]
        }
    if layout == "pairs":
        return [[row["image"], row["captions"]] for row in rows]
    return {"data": rows} if layout == "data" else rows


def pairs_of(records):
    return {(record.group, text) for record in records or () for text in record.captions}


LAYOUT = st.sampled_from(["mapping", "coco", "karpathy", "pairs", "data", "array"])


@FUZZ
@given(
    captions=PAIRS, layout=LAYOUT, indent=st.sampled_from([None, 2]), encoding=st.sampled_from(["utf-8", "utf-8-sig"])
)
def test_every_layout_gives_the_pairs_that_were_written(folder, captions, layout, indent, encoding):
    path = folder / "list.json"
    text = json.dumps(laid_out(layout, captions), indent=indent, ensure_ascii=False)
    path.write_text(text, encoding=encoding, newline="")
    assert pairs_of(read_all(path)) == {(f"{n}.jpg", text) for n, texts in enumerate(captions) for text in texts}


@FUZZ
@given(captions=PAIRS, layout=LAYOUT, cut=st.integers(0, 10_000), indent=st.sampled_from([None, 2]))
def test_half_a_file_gives_no_pair_that_was_not_written(folder, captions, layout, cut, indent):
    path = folder / "list.json"
    whole = json.dumps(laid_out(layout, captions), indent=indent).encode()
    path.write_bytes(whole[: cut % len(whole)])
    assert read_all(path) is None


@FUZZ
@given(captions=PAIRS, cut=st.integers(0, 10_000))
def test_half_a_file_of_lines_gives_the_lines_that_are_whole(folder, captions, cut):
    path = folder / "list.jsonl"
    lines = [json.dumps(row) + "\n" for row in laid_out("array", captions)]
    cut %= len("".join(lines))
    path.write_text("".join(lines)[:cut])
    ends = [len("".join(lines[: number + 1])) - 1 for number in range(len(lines))]
    whole = sum(end <= cut for end in ends)
    assert pairs_of(read_all(path)) == {(f"{n}.jpg", text) for n in range(whole) for text in captions[n]}


ADDED = [b"}", b"]", b",", b'"', b"NaN", b"\\", b"9" * 5000]


@FUZZ
@given(
    captions=PAIRS,
    layout=LAYOUT,
    ending=st.sampled_from(["json", "jsonl"]),
    edit=st.tuples(st.integers(0, 10_000), st.integers(0, 12), st.binary(max_size=3) | st.sampled_from(ADDED)),
)
def test_broken_syntax_anywhere(folder, captions, layout, ending, edit):
    path = folder / f"list.{ending}"
    value = laid_out(layout, captions)
    text = (
        json.dumps(value)
        if ending == "json"
        else "\n".join(map(json.dumps, value if isinstance(value, list) else [value]))
    )
    start, length, added = edit
    start %= len(text)
    path.write_bytes(text.encode()[:start] + added + text.encode()[start + length :])
    read_all(path)


@FUZZ
@given(
    captions=PAIRS,
    ending=st.sampled_from(["json", "jsonl"]),
    encoding=st.sampled_from(["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-7", "cp500"]),
)
def test_other_encodings_are_refused_and_never_read_by_halves(folder, captions, ending, encoding):
    path = folder / f"list.{ending}"
    rows = laid_out("array", captions)
    text = json.dumps(rows) if ending == "json" else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(text.encode(encoding))
    assert encoding == "utf-7" or read_all(path) is None


@pytest.mark.parametrize("ending", ["json", "jsonl", "ndjson"])
@pytest.mark.parametrize(
    "content", [b"", b"\n", b" ", b"\xef\xbb\xbf", b"[]", b"{}", b"[\n]\n", b"null", b"\0\0\0", b"[[", b"{" * 9999]
)
def test_files_without_a_record_are_one_clear_line(folder, ending, content):
    path = folder / f"empty.{ending}"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=f"empty.{ending}"):
        open_source(str(path))
