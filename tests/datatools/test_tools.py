"""Checking, sharding, splitting: what is wrong is reported, what is written reads back equal, what was stopped goes on."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from diptych.commands import main
from diptych.data import Loader, LoaderOptions, build_prepare, open_source
from diptych.datatools.inspect import difference_hash, inspect_all, near, summarize
from diptych.datatools.shards import ShardOptions, write_shards
from diptych.datatools.split import split
from diptych.errors import ConfigError, OutputError
from diptych.image import ViewOptions
from diptych.text import get_tokenizer
from diptych.types import Wants
from tests.data.world import COUNT, write_folder, write_images, write_jsonl
from tests.photos import FLICKR, needs_photos, some_photos


def noise(seed, size=(80, 60)):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def messy(folder):
    """Eight images with one of each thing that goes wrong."""
    (folder / "img").mkdir()
    rows = []
    for number in range(8):
        noise(number).save(folder / "img" / f"{number}.png")
        rows.append({"image": f"img/{number}.png", "captions": [f"image {number}", "the same words"]})
    (folder / "img" / "1.png").write_bytes(b"<html>404</html>")
    (folder / "img" / "2.png").write_bytes((folder / "img" / "3.png").read_bytes())
    noise(4, (20, 90)).save(folder / "img" / "4.png")
    rows[5]["captions"] = [" "]
    rows[6]["captions"] = ["word " * 100]
    rows[7]["captions"] = ["東京の写真"]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "pairs.jsonl")


@pytest.mark.parametrize("workers", [0, 2])
def test_check_finds_what_is_wrong(tmp_path, workers):
    source = open_source(messy(tmp_path))
    findings = summarize(inspect_all(source, get_tokenizer("bpe"), workers))
    assert [key for key, _ in findings.unreadable] == ["img/1.png#1"]
    assert "web page" in findings.unreadable[0][1]
    assert findings.same_bytes == [["img/2.png", "img/3.png"]]
    assert findings.tiny == ["img/4.png#4"]
    assert findings.empty == ["img/5.png#5"]
    assert (findings.records, findings.usable, findings.truncated) == (8, 6, 1)
    assert findings.repeated_captions == [("the same words", 5)]
    assert findings.scripts["Han"] == 1
    assert max(findings.lengths) == 102


def test_check_says_it_in_plain_words(tmp_path, capsys):
    assert main(["data", "check", messy(tmp_path), "--workers", "0"]) == 0
    words = capsys.readouterr().out
    for expected in ("8 records", "6 usable", "cannot be read:", "img/1.png#1: not an image", "img/2.png = img/3.png", "are tiny",
                     "have no caption", "the same words' 5 times", "Han 1"):  # fmt: skip
        assert expected in words, expected
    assert main(["data", "check", str(tmp_path / "pairs.jsonl"), "--json", "--workers", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["usable"] == 6


@needs_photos
def test_the_hash_of_an_image_survives_resizing_and_jpeg_and_separates_photos():
    hashes, again = {}, {}
    for path in some_photos(60):
        image = Image.open(path).convert("RGB")
        hashes[path.name] = difference_hash(image)
        buffer = io.BytesIO()
        image.resize((image.width * 2 // 3, image.height * 2 // 3)).save(buffer, "JPEG", quality=60)
        again[path.name] = difference_hash(Image.open(buffer))
    findings = {(one, two) for one, two, _ in near(hashes, again)}
    assert len([name for name in hashes if (name, name) in findings]) >= 0.9 * len(hashes)
    assert not [pair for pair in findings if pair[0] != pair[1]]


def test_near_images_are_listed_exactly():
    rng = np.random.default_rng(0)
    one = {str(number): int(rng.integers(2**63)) for number in range(300)}
    two = {f"{key}'": value ^ (1 << int(rng.integers(64))) ^ (1 << int(rng.integers(64))) for key, value in one.items()}
    plain = {(a, b, (x ^ y).bit_count()) for a, x in one.items() for b, y in two.items() if (x ^ y).bit_count() <= 3}
    assert set(near(one, two)) == plain
    assert len(plain) >= 300


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("workers", [0, 2])
def test_shards_read_back_as_their_source(tmp_path, kind, workers):
    source = open_source(write_jsonl(tmp_path))
    done = write_shards(source, tmp_path / "out", ShardOptions(5, kind), workers)
    assert [one.samples for one in done] == [5, 5, 5, 5, 3]
    again = open_source(str(tmp_path / "out" / f"*.{kind}"))
    prepare = build_prepare(Wants(images=("eval",)), get_tokenizer("bpe"), ViewOptions(8))

    def batches(one):
        return [(batch.keys, batch.images.tolist(), batch.tokens.tolist(), batch.groups.tolist())
                for batch, _ in Loader(one, prepare, LoaderOptions(batch_size=4, epochs=2, seed=9))]  # fmt: skip

    assert batches(again) == batches(source)
    assert json.loads((tmp_path / "out" / "sizes.json").read_text())[f"00004.{kind}"] == 3


def test_sharding_goes_on_where_it_was_stopped_and_never_mixes(tmp_path):
    source = open_source(write_jsonl(tmp_path))
    write_shards(source, tmp_path / "whole", ShardOptions(4, shuffle=True))

    class Stop(Exception):
        pass

    def after_two(done):
        if done >= 8:
            raise Stop

    with pytest.raises(Stop):
        write_shards(source, tmp_path / "out", ShardOptions(4, shuffle=True), 0, after_two)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    assert len(before) == 2
    write_shards(source, tmp_path / "out", ShardOptions(4, shuffle=True), 2)
    for path in sorted((tmp_path / "whole").glob("*.tar")):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == time for name, time in before.items())
    with pytest.raises(OutputError, match="other options"):
        write_shards(source, tmp_path / "out", ShardOptions(5))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").write_text("x")
    with pytest.raises(OutputError, match="already holds files that are not shards"):
        write_shards(source, tmp_path / "mine", ShardOptions(5))


def test_shards_resize_leave_out_the_bad_and_open_in_tarfile(tmp_path):
    spec = messy(tmp_path)
    done = write_shards(open_source(spec), tmp_path / "out", ShardOptions(100, resize=30))
    assert [key for key, _ in done[0].left_out] == ["img/1.png#1"]
    with tarfile.open(tmp_path / "out" / "00000.tar") as tar:
        names = tar.getnames()
        assert len(names) == 7 * 3
        image = Image.open(tar.extractfile("000000000.jpg"))
        assert min(image.size) == 30
        small = Image.open(tar.extractfile("000000004.png"))  # small enough: unchanged, byte for byte
        assert small.size == (20, 90)
    assert json.loads((tmp_path / "out" / "left_out.jsonl").read_text())["key"] == "img/1.png#1"


def token_file(folder, photos=6):
    write_images(folder, photos)
    (folder / "img").rename(folder / "flickr30k-images")
    lines = [
        f'{photo:02d}.png#{number}\ta "quoted, caption {photo} {number}\n'
        for photo in range(photos)
        for number in range(5)
    ]
    (folder / "results.token").write_text("".join(lines))
    return str(folder / "results.token")


def test_the_rule_of_source_000_takes_the_last_rows(tmp_path, capsys):
    spec = token_file(tmp_path)
    assert main(["data", "split", spec, str(tmp_path / "out"), "--rule", "last:10", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == {"test": 10, "train": 20}
    again = open_source(str(tmp_path / "out" / "results_test.csv"))
    assert len(again) == 10
    assert again.record(0).captions == ('a "quoted, caption 4 0',)
    assert again.record(0).image == tmp_path / "flickr30k-images" / "04.png"
    assert (tmp_path / "out" / "results_test.csv").read_text().startswith("img_key,caption_key\n")


def test_karpathys_rule_takes_his_list_and_random_never_parts_a_picture(tmp_path):
    source = open_source(token_file(tmp_path))
    listed = [
        {"filename": f"{n:02d}.png", "split": part}
        for n, part in enumerate(["train", "restval", "val", "test", "train"])
    ]
    (tmp_path / "dataset.json").write_text(json.dumps({"images": listed}))
    parts = split(source, f"karpathy:{tmp_path / 'dataset.json'}")
    assert {part: len(rows) for part, rows in parts.items()} == {"train": 15, "val": 5, "test": 5}
    parts = split(source, "random:0.5", seed=3)
    sides = [{image for image, _ in rows} for rows in parts.values()]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 6
    for rule in ("last:x", "last:99", "random:2", "karpathy:none.json", "half"):
        with pytest.raises(ConfigError, match="--rule"):
            split(source, rule)


def test_stats_index_and_bench_answer(tmp_path, capsys):
    spec = write_jsonl(tmp_path)
    assert main(["data", "stats", spec, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["records"] == COUNT
    assert main(["data", "index", spec]) == 0
    assert "23 records" in capsys.readouterr().out
    assert main(["data", "shard", spec]) == 2
    assert "folder to write to is missing" in capsys.readouterr().err


@needs_photos
@pytest.mark.slow
def test_bench_says_what_bounds_and_how_many_workers(capsys):
    assert main(["data", "bench", str(FLICKR / "captions.jsonl"), "--workers", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["loader"]) == {"0", "1", "2"}
    assert result["bound_by"] in result["per_second"]


def test_options_serve_both_sides_of_a_comparison_or_are_refused(tmp_path, capsys):
    folder = write_folder(tmp_path)
    (tmp_path / "x.csv").write_text("img/00.png;a dog\nimg/01.png;a cat\n")
    flags = ["--csv-columns", "filepath,title", "--workers", "0", "--json"]
    for pair in ([str(tmp_path / "x.csv"), "--against", folder], [folder, "--against", str(tmp_path / "x.csv")]):
        assert main(["data", "check", *pair, *flags]) == 0
        assert len(json.loads(capsys.readouterr().out)["in_both"]) >= 2
    assert main(["data", "check", folder, "--against", folder, *flags]) == 2
    assert "--csv-columns filepath,title: of no use for img," in capsys.readouterr().err
    assert main(["data", "stats", folder, "--against", folder]) == 2
    assert "only data check compares" in capsys.readouterr().err
