"""JSON arrays, LAION shards, Parquet, tars, CSVs and remote files as other systems write them, and when they are damaged."""

import base64
import json
import tarfile
import zlib

import pytest

from diptych.data import Loader, LoaderOptions, SourceOptions, build_prepare, open_source
from diptych.errors import RecordError, SourceError
from diptych.image import ViewOptions
from diptych.text import get_tokenizer
from diptych.types import Wants

from .world import COUNT, add, caption, image_bytes, write_images, write_webdataset


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


def test_a_leading_slash_and_windows_separators_are_fixed(tmp_path):
    write_images(tmp_path, 2)
    rows = [{"image": "\\img\\00.png".lstrip("\\"), "caption": "a"}, {"image": "/img/01.png", "caption": "b"}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = open_source(str(tmp_path / "x.jsonl"))
    assert [source.record(index).image.read_bytes() for index in (0, 1)] == [image_bytes(0), image_bytes(1)]


def test_laion_lines_in_gb18030_and_broken_ones(tmp_path):
    good = base64.b64encode(image_bytes(1)).decode()
    metadata = json.dumps({"caption_en": "二只狗"}, ensure_ascii=False)
    lines = [
        f"0\t\t{metadata}\t\t\t{good}\t".encode("gb18030"), b"too\tfew", b"0\t\t{}\t\t\t" + good.encode(),
        b'0\t\t{"caption_en": "x"}\t\t\t!!!', b"0\t\tnot json\t\t\t" + good.encode(),
    ]  # fmt: skip
    (tmp_path / "part-00000").write_bytes(b"\n".join(lines) + b"\n")
    source = open_source(str(tmp_path / "part-00000"))
    assert source.record(0).captions == ("二只狗",)
    assert source.record(0).image == image_bytes(1)
    assert source.record(2).captions == ()
    for index, message in ((1, "2 columns"), (3, "not base64"), (4, "not JSON")):
        with pytest.raises(RecordError, match=message):
            source.record(index)


def test_laion_captions_of_other_shapes_are_bad_samples_and_a_flag_chooses_the_key(tmp_path):
    good = base64.b64encode(image_bytes(1)).decode()
    values = ['{"caption_en": {"en": "x"}, "zh": "y"}', "[1]", '{"caption_en": ["a", "b"]}']
    (tmp_path / "part-00000").write_text("".join(f"0\t\t{value}\t\t\t{good}\n" for value in values))
    source = open_source(str(tmp_path / "part-00000"))
    assert source.record(2).captions == ("a", "b") and source.record(2).extra == {"caption_en": ["a", "b"]}
    for index, message in ((0, "'caption_en' is dict"), (1, "is list where an object")):
        with pytest.raises(RecordError, match=message):
            source.record(index)
    asked = open_source(str(tmp_path / "part-00000"), options=SourceOptions(csv_caption_key="zh"))
    assert [asked.record(index).captions for index in (0, 2)] == [("y",), ()]


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


def test_remote_lists_images_and_shards_are_read(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    local = write_webdataset(tmp_path / "tars")
    for path in (tmp_path / "tars").glob("*.tar"):
        memory.pipe(f"/tars/{path.name}", path.read_bytes())
    one, two = open_source(local), open_source("memory://tars/shard-{000..002}.tar")
    assert [two.record(index).image for index in range(COUNT)] == [one.record(index).image for index in range(COUNT)]
    assert len(open_source("memory://tars/shard-*.tar")) == COUNT
    memory.pipe("/list/00.png", image_bytes(0))
    memory.pipe(
        "/list/pairs.jsonl", json.dumps({"image": "memory://list/00.png", "caption": caption(0)}).encode() + b"\n"
    )
    record = open_source("memory://list/pairs.jsonl").record(0)
    assert record.image == image_bytes(0)
    for spec in ("memory://nothing.jsonl", "memory://nothing/*.tar", "nosuchscheme://x.csv"):
        with pytest.raises(SourceError) as caught:
            open_source(spec)
        assert "\n" not in caught.value.line


def bomb():
    """A PNG of a few bytes that says it is 50,000 pixels square."""

    def chunk(kind, content):
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    size = (50_000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


def test_bad_samples_in_every_shape_are_one_list(tmp_path):
    """Zero bytes, a web page, a bomb, a missing file, an empty caption: skipped, each with its reason."""
    names = write_images(tmp_path, 20)
    (tmp_path / names[1]).write_bytes(b"")
    (tmp_path / names[2]).write_bytes(b"<!DOCTYPE html>")
    (tmp_path / names[3]).write_bytes(bomb())
    (tmp_path / names[4]).unlink()
    rows = [{"image": name, "captions": [" " if index == 5 else "words"]} for index, name in enumerate(names)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare = build_prepare(Wants(images=("eval",)), get_tokenizer("bpe"), ViewOptions(8))
    loader = Loader(
        open_source(str(tmp_path / "pairs.jsonl")), prepare, LoaderOptions(batch_size=20, bad_samples="skip", epochs=1)
    )
    assert [len(batch.keys) for batch, _ in loader] == [20]
    reasons = {key.partition("#")[0]: reason for key, reason in loader.bad}
    assert set(reasons) == set(names[1:6])
    for index, message in (
        (1, "empty (0 bytes)"),
        (2, "web page"),
        (3, "pixels"),
        (4, "no such image file"),
        (5, "caption is empty"),
    ):
        assert message in reasons[names[index]]


def test_a_pipe_is_run_once_and_a_failing_one_says_why(tmp_path):
    spec = write_webdataset(tmp_path)
    one = open_source(spec)
    command = f"cat {tmp_path}/shard-{{000..002}}.tar; echo x >> {tmp_path}/ran"
    for _ in range(2):
        two = open_source(f"pipe:{command}")
        assert [two.record(index).image for index in range(COUNT)] == [
            one.record(index).image for index in range(COUNT)
        ]
    assert (tmp_path / "ran").read_text() == "x\n" * 3
    with pytest.raises(SourceError, match=r"ended with code 3 .*no luck"):
        open_source("pipe:echo no luck >&2; exit 3")


def test_keys_that_come_twice_are_reported_and_made_different(tmp_path, capsys):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("a", "b", "a"):
            add(tar, f"{name}.png", image_bytes(1))
            add(tar, f"{name}.txt", b"words")
    source = open_source(str(tmp_path / "x.tar"))
    assert len({source.record(index).key for index in range(3)}) == 3
    assert "1 keys come twice" in capsys.readouterr().err


def test_a_key_or_group_that_means_something_else_is_not_taken_for_the_images_name(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for number in range(3):
            add(tar, f"{number}.png", image_bytes(number))
            add(tar, f"{number}.json", json.dumps({"caption": "c", "group": "symbols", "key": "same"}).encode())
    records = [open_source(str(tmp_path / "x.tar")).record(number) for number in range(3)]
    assert len({record.key for record in records}) == 3 and {record.group for record in records} == {None}


def test_a_table_of_labels_needs_no_captions(tmp_path):
    (tmp_path / "a.csv").write_text("file,wnid,class_index,name\n1.png,n02,7,tench\n2.png,n01,0,cat\n")
    source = open_source(str(tmp_path / "a.csv"))
    first = source.record(0)
    assert (first.label, first.captions, first.extra["label_name"]) == (7, (), "tench") and source.classes is None
    (tmp_path / "b.tsv").write_text("image\tlabel\n1.png\tdog\n2.png\tcat\n3.png\tdog\n")
    named = open_source(str(tmp_path / "b.tsv"))
    assert named.classes == ("cat", "dog") and [named.record(n).label for n in range(3)] == [1, 0, 1]
    (tmp_path / "c.csv").write_text("image,title,label\n1.png,a dog,3\n")
    both = open_source(str(tmp_path / "c.csv")).record(0)
    assert (both.captions, both.label) == (("a dog",), 3)
