"""Parquet of any columns and kinds, and files that are broken: the right records come out, or an error of the data says why."""

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from diptych.data import open_source
from diptych.errors import DataError, RecordError, SourceError

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NAMES = [
    "image",
    "jpg",
    "filepath",
    "caption",
    "captions",
    "caption_0",
    "caption_1",
    "text",
    "label",
    "label_name",
    "split",
]
MORE = ["status", "url", "key", "error_message", "diptych_key", "diptych_group", "x"]
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=5) | st.sampled_from(
    ["a.jpg", "train", "success", "a dog"]
)
KINDS = {
    "string": TEXTS,
    "large_string": TEXTS,
    "binary": st.binary(max_size=4),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "uint8": st.integers(0, 255),
    "double": st.floats(),
    "bool": st.booleans(),
    "null": st.none(),
    "date": st.dates(),
    "time": st.datetimes(),
    "decimal": st.decimals(-999, 999, places=2),
    "strings": st.lists(st.none() | TEXTS, max_size=3),
    "struct": st.fixed_dictionaries({"bytes": st.none() | st.binary(max_size=3), "path": st.none() | TEXTS}),
    "structs": st.lists(st.fixed_dictionaries({"raw": st.none() | TEXTS}), max_size=2),
    "map": st.lists(st.tuples(TEXTS, TEXTS), max_size=2),
    "coded": TEXTS,
}


def kind_of(name):
    special = {
        "date": arrow.date32(),
        "time": arrow.timestamp("us"),
        "decimal": arrow.decimal128(9, 2),
        "double": arrow.float64(),
        "bool": arrow.bool_(),
        "strings": arrow.list_(arrow.string()),
        "struct": arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())]),
        "structs": arrow.list_(arrow.struct([("raw", arrow.string())])),
        "map": arrow.map_(arrow.string(), arrow.string()),
        "coded": arrow.dictionary(arrow.int32(), arrow.string()),
    }
    return special[name] if name in special else getattr(arrow, name)()


@st.composite
def tables(draw):
    count = draw(st.integers(0, 5))
    columns = {}
    for name in draw(st.lists(st.sampled_from(NAMES + MORE), min_size=1, max_size=6, unique=True)):
        kind = draw(st.sampled_from(sorted(KINDS)))
        values = [draw(st.none() | KINDS[kind]) for _ in range(count)]
        columns[name] = arrow.array(values, type=kind_of(kind), from_pandas=False)
    return arrow.table(columns)


def read_all(spec):
    """All records that can be read; None where the file is refused."""
    try:
        source = open_source(str(spec))
    except DataError as error:
        assert "\n" not in error.line
        return None
    records = []
    for index in range(len(source)):
        try:
            records.append(source.record(index))
        except RecordError as error:
            assert "\n" not in error.line
    for record in records:
        assert all(isinstance(caption, str) for caption in record.captions)
        assert record.label is None or type(record.label) is int
    return records


@pytest.fixture
def folder(tmp_path_factory, own_cache, said):
    return tmp_path_factory.mktemp("parquet")


@FUZZ
@given(table=tables(), rows=st.sampled_from([1, 2, 100]))
def test_columns_of_any_name_and_kind(folder, table, rows):
    parquet.write_table(table, folder / "x.parquet", row_group_size=rows)
    read_all(folder / "x.parquet")


@FUZZ
@given(first=tables(), second=tables())
def test_two_files_that_do_not_agree(folder, first, second):
    for name, table in (("0", first), ("1", second)):
        parquet.write_table(table, folder / f"{name}.parquet")
    read_all(folder / "[01].parquet")


def pairs(count):
    return arrow.table(
        {
            "image": [f"{number}.jpg" for number in range(count)],
            "caption": [f"the text of {number}" for number in range(count)],
            "split": ["train", "val"] * (count // 2),
        }
    )


@FUZZ
@given(
    start=st.integers(0, 10_000),
    length=st.integers(0, 40),
    added=st.binary(max_size=40),
    packed=st.sampled_from(["none", "snappy", "gzip", "zstd"]),
)
@example(start=0, length=10_000, added=b"", packed="none")
@example(start=0, length=0, added=b"PAR1", packed="none")
def test_damage_anywhere(folder, start, length, added, packed):
    parquet.write_table(pairs(6), folder / "x.parquet", compression=packed, row_group_size=3)
    whole = (folder / "x.parquet").read_bytes()
    start %= len(whole)
    (folder / "y.parquet").write_bytes(whole[:start] + added + whole[start + length :])
    read_all(folder / "y.parquet")


@FUZZ
@given(length=st.integers(0, 10_000))
def test_half_a_file_is_refused(folder, length):
    parquet.write_table(pairs(6), folder / "x.parquet", row_group_size=3)
    whole = (folder / "x.parquet").read_bytes()
    (folder / "y.parquet").write_bytes(whole[: length % len(whole)])
    with pytest.raises(SourceError, match=r"y\.parquet"):
        open_source(str(folder / "y.parquet"))


@FUZZ
@given(
    captions=st.lists(TEXTS.map(lambda text: f"a {text} z"), min_size=1, max_size=8),
    rows=st.integers(1, 9),
    coded=st.booleans(),
)
def test_what_is_written_comes_back(folder, captions, rows, coded):
    column = arrow.array(captions)
    images = [f"{number}.jpg" for number in range(len(captions))]
    table = arrow.table({"caption": column.dictionary_encode() if coded else column, "image": images})
    parquet.write_table(table, folder / "x.parquet", row_group_size=rows)
    written = list(zip(images, [(text,) for text in captions], strict=True))
    assert [(record.group, record.captions) for record in read_all(folder / "x.parquet")] == written


def test_rows_without_a_split_belong_to_none(folder):
    table = arrow.table({"image": ["a.jpg"] * 3, "caption": ["a dog"] * 3, "split": ["train", None, "Train"]})
    parquet.write_table(table, folder / "x.parquet")
    assert open_source(str(folder / "x.parquet")).splits() == {"train": 2}
    assert [record.key for record in read_all(folder / "x.parquet")] == ["x.parquet#0", "x.parquet#1", "x.parquet#2"]
    assert len(open_source(str(folder / "x.parquet"), split="train")) == 2


def test_a_file_that_lacks_the_column_of_the_others_is_named(folder):
    parquet.write_table(arrow.table({"image": ["a.jpg"], "caption": ["a dog"]}), folder / "0.parquet")
    parquet.write_table(arrow.table({"image": ["a.jpg"], "alt": ["a dog"]}), folder / "1.parquet")
    with pytest.raises(
        SourceError, match=r"1\.parquet: has no column 'caption', as 0\.parquet has; its columns: image, alt"
    ):
        open_source(str(folder / "[01].parquet"))


def test_a_value_that_python_cannot_hold_is_one_bad_record(folder):
    captions = arrow.array([b"a dog", b"\xff\xfe", b"a cat"]).view(arrow.string())
    parquet.write_table(arrow.table({"image": ["a.jpg"] * 3, "caption": captions}), folder / "x.parquet")
    assert [record.captions for record in read_all(folder / "x.parquet")] == [("a dog",), ("a cat",)]


def test_two_columns_of_one_name_are_refused(folder):
    parquet.write_table(
        arrow.Table.from_arrays([arrow.array(["a"])] * 3, ["image", "caption", "caption"]), folder / "x.parquet"
    )
    with pytest.raises(SourceError, match="two columns named 'caption'"):
        open_source(str(folder / "x.parquet"))
