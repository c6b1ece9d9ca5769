"""Lists as people have them: the right pairs come out, or something is said."""

import csv
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.data import SourceOptions, open_source
from diptych.errors import DataError, RecordError, SourceError


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path_factory.mktemp("cache")))


def opened(path, text, **options):
    path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
    return open_source(str(path), options=SourceOptions(**options))


def captions(source):
    return [source.record(index).captions for index in range(len(source))]


def lines(rows):
    return "\n".join(map(json.dumps, rows))


@pytest.mark.parametrize("names", [("File Name", "Caption"), ("IMAGE_PATH", "TEXT"), ("image-file", "Description")])
def test_names_are_compared_without_capitals_blanks_and_underscores(tmp_path, names):
    table = opened(tmp_path / "x.csv", f"{names[0]},{names[1]}\na.jpg,one\n")
    listed = opened(tmp_path / "x.jsonl", lines([dict(zip(names, ("a.jpg", "one"), strict=True))]))
    assert captions(table) == captions(listed) == [("one",)]
    assert table.record(0).group == listed.record(0).group == "a.jpg"


def test_the_first_row_does_not_decide(tmp_path):
    rows = [{"image": "a.jpg", "id": 1}, {"image": "b.jpg", "text": "two"}, {"image": "c.jpg", "caption": "three"}]
    assert captions(opened(tmp_path / "x.jsonl", lines(rows))) == [(), ("two",), ("three",)]


def test_numbered_columns_are_all_the_captions_and_stay_for_weights(tmp_path):
    source = opened(tmp_path / "x.csv", "file_name,caption_1,caption_0\na.jpg,second,first\n")
    assert captions(source) == [("first", "second")]
    assert source.record(0).extra["caption_1"] == "second"
    source = opened(tmp_path / "y.csv", "image,mine,ours\na.jpg,x,y\n", csv_caption_key="ours,mine")
    assert captions(source) == [("y", "x")]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"en": "a dog", "fr": "un chien"}, "--csv-caption-key caption.en"),
        (["a", "brown", "dog", "runs"], "list of words"),
        (7, "the int 7"),
    ],
)
def test_what_is_no_caption_is_refused(tmp_path, value, message):
    rows = [{"image": f"{number}.jpg", "caption": value} for number in range(9)]
    with pytest.raises(DataError, match=message):
        captions(opened(tmp_path / "x.jsonl", lines(rows)))


def test_objects_with_a_text_are_captions(tmp_path):
    rows = [{"image": f"{n}.jpg", "captions": [{"caption": "a dog", "id": 1}, {"caption": "one"}]} for n in range(9)]
    assert captions(opened(tmp_path / "x.jsonl", lines(rows))) == [("a dog", "one")] * 9


def test_a_flag_reaches_into_an_object(tmp_path):
    rows = [{"image": "a.jpg", "caption": {"en": "a dog", "fr": "un chien"}}]
    assert captions(opened(tmp_path / "x.jsonl", lines(rows), csv_caption_key="caption.fr")) == [("un chien",)]


def test_a_list_written_as_text_is_a_list(tmp_path):
    source = opened(tmp_path / "x.csv", 'image\tcaption\na.jpg\t[\'a dog\', "it\'s"]\nb.jpg\t["one"]\n')
    assert captions(source) == [("a dog", "it's"), ("one",)]


def test_only_the_split_of_the_object_itself_counts(tmp_path):
    rows = [{"meta": {"split": "x"}, "image": "a.jpg", "caption": "one", "Split": "Train"}] * 3
    rows += [{"image": "b.jpg", "caption": 'says "split": "y"', "split": "val", "meta": {"split": "z"}}]
    assert opened(tmp_path / "x.jsonl", lines(rows)).splits() == {"train": 3, "val": 1}


def test_labels_that_look_like_numbers_are_numbers(tmp_path):
    source = opened(tmp_path / "x.csv", "image,class\na.jpg,10.0\nb.jpg, 2\nc.jpg,3\n")
    assert [source.record(index).label for index in range(3)] == [10, 2, 3]
    assert source.classes is None
    named = opened(tmp_path / "x.jsonl", lines([{"image": f"{name}.jpg", "label": name} for name in ("dog", "cat")]))
    assert (named.classes, named.record(0).label) == (("cat", "dog"), 1)
    with pytest.raises(SourceError, match=r"numbers .* and names"):
        opened(tmp_path / "y.csv", "image,class\na.jpg,3\nb.jpg,dog\n")
    with pytest.raises(SourceError, match="is named both"):
        opened(tmp_path / "z.csv", "image,class,class_name\na.jpg,3,dog\nb.jpg,3,cat\n")


def test_an_odd_row_is_a_bad_sample_with_its_line(tmp_path):
    source = opened(
        tmp_path / "x.csv", 'image,caption\na.jpg,"two\nlines"\nb.jpg,one, two\nc.jpg,"5 feet\nd.jpg,it is 5"\n'
    )
    assert source.record(0).captions == ("two\nlines",)
    with pytest.raises(RecordError, match="line 4: 3 fields where the header has 2; quote the field"):
        source.record(1)
    assert captions_from(source, 2) == [('"5 feet',), ('it is 5"',)]


def captions_from(source, first):
    return [source.record(index).captions for index in range(first, len(source))]


def test_a_table_without_a_header_asks_for_names(tmp_path):
    text = "a dog, it seems\ta.jpg\na cat\tb.jpg\n"
    with pytest.raises(SourceError, match=r"no header.*--csv-columns title,filepath"):
        opened(tmp_path / "x.tsv", text)
    assert captions(opened(tmp_path / "x.tsv", text, csv_columns="title,filepath")) == [
        ("a dog, it seems",),
        ("a cat",),
    ]
    with pytest.raises(SourceError, match="names 1 columns, and the first row has 2"):
        opened(tmp_path / "x.tsv", text, csv_columns="title")


def test_other_encodings_name_what_converts_them(tmp_path):
    for encoding in ("utf-16", "cp1252"):
        path = tmp_path / f"{encoding}.csv"
        path.write_text("image,caption\na.jpg,caf\xe9\n", encoding=encoding)
        with pytest.raises(SourceError, match="iconv -f"):
            open_source(str(path))


PAIRS = {"a.jpg": ["one", "two"], "b.jpg": ["three", "four"]}


@pytest.mark.parametrize(
    "value",
    [
        PAIRS,
        {"annotations": [{"image_id": n, "caption": c} for n, texts in enumerate(PAIRS.values()) for c in texts],
         "images": [{"id": n, "file_name": name} for n, name in enumerate(PAIRS)]},
        {"data": [{"image": name, "captions": texts} for name, texts in PAIRS.items()], "version": 1},
        [[name, texts] for name, texts in PAIRS.items()],
        {"0": {"image": "a.jpg", "captions": PAIRS["a.jpg"]}, "1": {"image": "b.jpg", "captions": PAIRS["b.jpg"]}},
        [{"image": name, "sentences": [{"raw": text} for text in texts]} for name, texts in PAIRS.items()],
    ],
)  # fmt: skip
def test_layouts_of_json_give_the_same_pairs(tmp_path, value):
    for indent in (None, 2):
        source = opened(tmp_path / f"{indent}.json", json.dumps(value, indent=indent))
        assert captions(source) == [tuple(texts) for texts in PAIRS.values()]
        assert [source.record(index).group for index in range(2)] == list(PAIRS)


def test_conversations_objects_over_lines_and_lists_of_splits(tmp_path):
    turns = [{"from": "human", "value": "<image>\nSay"}, {"from": "gpt", "value": "<image> a dog"}]
    assert captions(opened(tmp_path / "c.json", [{"image": "a.jpg", "conversations": turns}])) == [("a dog",)]
    rows = [{"image": name, "caption": texts[0]} for name, texts in PAIRS.items()]
    pretty = "\n".join(json.dumps(row, indent=1) for row in rows)
    assert captions(opened(tmp_path / "p.jsonl", pretty)) == [("one",), ("three",)]
    assert opened(tmp_path / "s.json", {"train": rows, "val": rows[:1]}).splits() == {"train": 2, "val": 1}
    with pytest.raises(SourceError, match=r"several lists .mine, ours."):
        opened(tmp_path / "t.json", {"mine": rows, "ours": rows})
    with pytest.raises(RecordError, match=r"b\.json, item 1: expected an object"):
        opened(tmp_path / "b.json", [rows[0], 5]).record(1)


def test_images_are_found_in_the_usual_folders_and_texts_by_their_first_row(tmp_path, capsys):
    (tmp_path / "Images").mkdir()
    (tmp_path / "Images" / "a.jpg").write_bytes(b"x")
    source = opened(tmp_path / "captions.txt", "image,caption\na.jpg,one\n")
    assert source.record(0).image == tmp_path / "Images" / "a.jpg"
    assert "its images lie in" in capsys.readouterr().err
    assert opened(tmp_path / "Flickr8k.token.txt", "a.jpg#0\tone\n").record(0).image == tmp_path / "Images" / "a.jpg"


def test_parquet_of_labels_and_of_failed_downloads(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    names = json.dumps({"info": {"features": {"label": {"names": ["bee", "ant"], "_type": "ClassLabel"}}}})
    table = arrow.table({"img": [{"bytes": b"x", "path": None}] * 3, "label": [1, 0, 1]})
    parquet.write_table(table.replace_schema_metadata({"huggingface": names}), tmp_path / "l.parquet")
    source = open_source(str(tmp_path / "l.parquet"))
    assert (source.classes, source.record(0).label, source.record(0).extra["label_name"]) == (("bee", "ant"), 1, "ant")
    status = ["success", "failed_to_download", "success"]
    rows = {"jpg": [b"x", None, b"y"], "caption": ["one", "no", "two"], "url": ["u"] * 3, "status": status}
    parquet.write_table(arrow.table(rows), tmp_path / "f.parquet")
    source = open_source(str(tmp_path / "f.parquet"))
    assert captions(source) == [("one",), ("two",)]
    assert [(item.count, item.bad) for item in source.left_out] == [(1, False)]


TEXT = st.text(
    st.characters(codec="utf-8", exclude_characters="\0\r", exclude_categories=("Cs",)), min_size=1, max_size=20
)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(TEXT, min_size=1, max_size=8),
    st.sampled_from(",;\t|"),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_what_is_written_comes_back_or_is_refused(tmp_path_factory, texts, mark, quoting):
    path = tmp_path_factory.mktemp("fuzz") / "x.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter=mark, quoting=quoting, lineterminator="\n")
        table.writerow(["image", "caption"])
        table.writerows([f"{number}.jpg", text] for number, text in enumerate(texts))
    source = open_source(str(path), options=SourceOptions(csv_separator=mark))
    assert len(source) == len(texts)
    for index, text in enumerate(texts):
        record = source.record(index)
        assert record.group == f"{index}.jpg"
        assert record.captions[0].strip(" ") == text.strip(" ")


def test_a_label_that_pandas_left_out_is_none_of_the_numbers(tmp_path):
    rows = [{"image": f"{number}.jpg", "label": number, "caption": "one two"} for number in range(3)]
    rows[1]["label"] = float("nan")
    source = opened(tmp_path / "x.jsonl", lines(rows))
    assert source.classes is None
    assert [source.record(index).label for index in range(3)] == [0, None, 2]
    with pytest.raises(RecordError, match="has no label under 'label'"):
        opened(tmp_path / "y.jsonl", lines([{**row, "caption": None} for row in rows])).record(1)


def test_a_column_of_captions_that_is_called_label_needs_no_remark(tmp_path, said):
    rows = "".join(f"{number}.jpg,text number {number}\n" for number in range(30))
    source = opened(tmp_path / "x.csv", f"img_path,label\n{rows}", csv_img_key="img_path", csv_caption_key="label")
    assert (source.record(3).captions, source.record(3).label, said) == (("text number 3",), None, [])


def test_a_name_that_stands_twice_loses_no_record(tmp_path):
    source = opened(tmp_path / "m.json", '{"a.jpg": "one dog", "a.jpg": ["a cat", "two cats"], "b.jpg": "no dog"}')
    assert captions(source) == [("one dog",), ("a cat", "two cats"), ("no dog",)]
    assert captions(opened(tmp_path / "s.json", '{"a.jpg": ["one dog", "two dogs"]}')) == [("one dog", "two dogs")]
    row = '{"image": "a.jpg", "caption": "one dog"}'
    with pytest.raises(SourceError, match="its list 'data' stands there twice"):
        opened(tmp_path / "t.json", f'{{"data": [{row}], "data": [{row}]}}')
    with pytest.raises(SourceError, match=r"c\.json, line 1: not valid JSON \(expected a name in quotes and a colon"):
        opened(tmp_path / "c.json", '{"a.jpg" "one dog"}')
    with pytest.raises(SourceError, match=r"e\.json, line 2: not valid JSON \('\[\]' after the end of the array\)"):
        opened(tmp_path / "e.json", f"[{row}]\n[]")
    with pytest.raises(SourceError, match=r"x\.json: begins with"):
        opened(tmp_path / "x.json", 'callback({"a.jpg": "one dog"})')
