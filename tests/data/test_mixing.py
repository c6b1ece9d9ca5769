"""Last batches, mixtures, captions and bad samples: the same on every rank, in every process, after every resume."""

import collections
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.data import CaptionPerRecord, Loader, LoaderOptions, Mixture, Position, build_prepare, open_source
from diptych.data._order import permute
from diptych.errors import ConfigError, RecordError, SourceError
from diptych.image import ViewOptions
from diptych.text import get_tokenizer
from diptych.types import Wants

from .world import COUNT, FORMATS, write_images, write_jsonl

EVAL = Wants(images=("eval",))
PREPARE = build_prepare(EVAL, get_tokenizer("bpe"), ViewOptions(8))


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
    return {name: write(tmp_path_factory.mktemp(name)) for name, write in FORMATS.items()}


def stream(spec, batch, ranks, start, steps, workers=0, **options):
    """The keys that all ranks together see, in global order, and the last position."""
    loaders = [
        Loader(open_source(spec), PREPARE, LoaderOptions(batch_size=batch // ranks, rank=rank, ranks=ranks, seed=5, start=start,
               workers=workers, **options))
        for rank in range(ranks)
    ]  # fmt: skip
    parts = [[step for step, _ in zip(iter(loader), range(steps), strict=False)] for loader in loaders]
    keys = [
        key.partition("#")[0].rpartition("/")[2]
        for step in range(steps)
        for part in parts
        for key in part[step][0].keys
    ]
    positions = {part[-1][1] for part in parts}
    assert len(positions) == 1
    return keys, positions.pop()


@pytest.mark.heavy
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_killed_anywhere_and_resumed_on_other_ranks_nothing_changes(specs, data):
    """Formats x ranks x kill points x rules for the last batch, also 8 ranks -> 6."""
    spec = specs[data.draw(st.sampled_from(sorted(specs)))]
    mixed = data.draw(st.booleans())
    options = {"mixture": Mixture([COUNT], [1.0], 31)} if mixed else {"pad_last": data.draw(st.booleans())}
    batch, first, second = data.draw(
        st.sampled_from([(12, 1, 3), (12, 4, 6), (24, 8, 6), (6, 2, 1), (6, 3, 2), (24, 6, 8)])
    )
    if batch > COUNT and not options.get("pad_last") and not mixed:
        options["pad_last"] = True
    before, after = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
    whole, _ = stream(spec, batch, first, Position(0, 0), before + after, **options)
    head, position = stream(spec, batch, first, Position(0, 0), before, **options)
    tail, _ = stream(spec, batch, second, position, after, **options)
    assert head + tail == whole


@pytest.mark.heavy
@pytest.mark.parametrize("workers", [1, 2])
def test_loader_processes_change_neither_padding_nor_mixtures(workers, specs):
    for options in ({"pad_last": True}, {"mixture": Mixture([COUNT], [1.0], 31)}):
        one = stream(specs["webdataset"], 6, 2, Position(0, 0), 7, **options)
        assert stream(specs["webdataset"], 6, 2, Position(0, 0), 7, workers=workers, **options) == one


def test_a_padded_epoch_shows_every_record_and_fills_up_from_its_beginning(specs):
    loader = Loader(open_source(specs["jsonl"]), PREPARE, LoaderOptions(batch_size=5, pad_last=True, seed=1))
    assert loader.steps_per_epoch == 5
    steps = [(batch, position) for (batch, position), _ in zip(iter(loader), range(5), strict=False)]
    keys = [key for batch, _ in steps for key in batch.keys]
    assert len(keys) == 25
    assert len(set(keys)) == COUNT
    assert keys[23:] == keys[:2]
    assert steps[-1][1] == Position(1, 0)


def test_a_mixture_draws_in_proportion_and_never_looks_at_the_rank():
    mixture = Mixture([100, 300], [3.0, 1.0], 40_000)
    records = mixture.records(np.arange(40_000), 7, 0)
    share = float((records < 100).mean())
    assert share == pytest.approx(0.5, abs=0.01)
    counts = np.bincount(records, minlength=400)
    assert counts[:100].min() > 130  # 200 expected of each
    assert counts[100:].min() > 35  # 67 expected of each
    assert np.array_equal(records[1000:1010], mixture.records(np.arange(1000, 1010), 7, 0))
    assert not np.array_equal(records, mixture.records(np.arange(40_000), 7, 1))
    for factors in ([1.0], [-1.0, 1.0], [0.0, 0.0]):
        with pytest.raises(ConfigError, match="upsampling-factors"):
            Mixture([100, 300], factors)


def captioned(folder):
    write_images(folder, 6)
    rows = [
        {"image": f"img/{number:02d}.png", "captions": [f"c{number} {n}" for n in range(number % 3)]}
        for number in range(6)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "pairs.jsonl")


def test_every_caption_is_a_record_and_knows_its_picture(tmp_path):
    source = CaptionPerRecord(open_source(captioned(tmp_path)))
    records = [source.record(index) for index in range(len(source))]
    assert [record.captions[0] for record in records] == ["c1 0", "c2 0", "c2 1", "c4 0", "c5 0", "c5 1"]
    assert len({record.key for record in records}) == 6
    assert records[1].group == records[2].group != records[0].group


def test_captions_are_drawn_by_weight_over_keys(tmp_path):
    write_images(tmp_path, 1)
    row = {"image": "img/00.png", "caption": "one", "blip": "two", "empty": ""}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    record = open_source(str(tmp_path / "pairs.jsonl")).record(0)
    weights = (("caption", 1.0), ("blip", 3.0), ("empty", 9.0), ("absent", 9.0))
    prepare = build_prepare(EVAL, get_tokenizer("bpe"), ViewOptions(8), weights=weights)
    tokenizer = get_tokenizer("bpe")
    counts = collections.Counter(tokenizer.decode(prepare(record, seed).tokens[0]) for seed in range(400))
    assert counts["two"] == pytest.approx(300, abs=40)
    assert counts["one"] + counts["two"] == 400
    with pytest.raises(RecordError, match="none of the captions x"):
        build_prepare(EVAL, tokenizer, ViewOptions(8), weights=(("x", 1.0),))(record, 0)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_next_record_stands_in_for_a_bad_one_whoever_meets_it(tmp_path, ranks, workers):
    spec = write_jsonl(tmp_path)
    order = permute(np.arange(COUNT), COUNT, 5, 0)
    for number in (3, 9, 10):
        (tmp_path / "img" / f"{order[number]:02d}.png").write_bytes(b"\xff\xd8\xff\xe0 cut")
    keys, _ = stream(spec, 6, ranks, Position(0, 0), 3, workers=workers, bad_samples="skip")
    expected = [int(one) for one in order[:18]]
    expected[3], expected[9], expected[10] = int(order[4]), int(order[11]), int(order[11])
    assert keys == [f"{number:02d}.png" for number in expected]


def test_above_the_limit_the_run_stops_and_names_the_worst_reasons(tmp_path):
    spec = write_jsonl(tmp_path)
    for number in range(0, COUNT, 4):
        (tmp_path / "img" / f"{number:02d}.png").write_bytes(b"<html>not found</html>")
    loader = Loader(open_source(spec), PREPARE, LoaderOptions(batch_size=10, bad_samples="skip", bad_limit=0.1))
    with pytest.raises(SourceError, match=r"more than --bad-samples-max 10\.00%: .*not an image") as caught:
        for _, _ in zip(loader, range(50), strict=False):
            pass
    assert "\n" not in caught.value.line
    assert loader.seen >= 100  # not for the first few


def test_joined_sources_with_equal_names_hold_different_pictures(tmp_path):
    """Two data sets that both have an img/0.png: neither their groups nor their keys may meet."""
    specs = [write_jsonl(tmp_path / name) for name in ("a", "b")]
    source = open_source("::".join(specs))
    records = [source.record(index) for index in range(len(source))]
    assert len({record.key for record in records}) == len(source)
    assert len({record.group or record.key for record in records}) == len(source)
