"""Whole steps: rows in the order of the epoch for any ranks and micro-batches, no step over two epochs, resume anywhere."""

import itertools
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.data import Loader, LoaderOptions, Mixture, Position, build_prepare, open_source
from diptych.data._order import draw, permute
from diptych.data._steps import plan_steps
from diptych.errors import ConfigError, SourceError
from diptych.image import ViewOptions
from diptych.text import get_tokenizer
from diptych.types import Wants

from .world import COUNT, write_jsonl

SIZES = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))  # batch, micro-batches, ranks


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return open_source(write_jsonl(tmp_path_factory.mktemp("jsonl")))


def prepared(images=("crop",)):
    return build_prepare(Wants(images=images), get_tokenizer("bpe"), ViewOptions(8, scale=(0.3, 1.0)))


def planned(options, count, steps):
    """Each step's requests, all ranks and micro-batches one after the other, and the position after it."""
    plans = [itertools.islice(plan_steps(replace(options, rank=rank), count), steps) for rank in range(options.ranks)]
    joined = []
    for parts in zip(*plans, strict=True):
        assert len({part.after for part in parts}) == 1
        joined.append(([request for part in parts for rows in part.micro_batches for request in rows], parts[0].after))
    return joined


@settings(max_examples=150, deadline=None)
@given(SIZES, st.integers(0, 60), st.integers(0, 2**40), st.booleans())
def test_ranks_and_micro_batches_together_read_the_order_of_the_epoch(sizes, more, seed, pad):
    batch, micro, ranks = sizes
    size = batch * micro * ranks
    count = more + 1 if pad else size + more
    options = LoaderOptions(batch, micro, seed=seed, ranks=ranks, pad_last=pad, epochs=3)
    steps = planned(options, count, 10**6)
    assert len(steps) == 3 * options.steps_per_epoch(count)
    for epoch in range(3):
        rows = [request for requests, _ in steps for request in requests if request.epoch == epoch]
        expected = np.arange(options.steps_per_epoch(count) * size) % count
        assert [request.position for request in rows] == expected.tolist()
        assert [request.record for request in rows] == permute(expected, count, seed, epoch).tolist()
        assert [request.seed for request in rows] == [draw(seed, epoch, request.record) for request in rows]
    for requests, _ in steps:
        assert len(requests) == size
        assert len({request.epoch for request in requests}) == 1


@settings(max_examples=100, deadline=None)
@given(SIZES, st.integers(1, 40))
def test_every_micro_batch_of_a_whole_step_is_full_and_consecutive(sizes, more):
    batch, micro, ranks = sizes
    count = batch * micro * ranks + more
    for rank in range(ranks):
        options = LoaderOptions(batch, micro, rank=rank, ranks=ranks, shuffle=False, epochs=1)
        for number, step in enumerate(plan_steps(options, count)):
            assert [len(rows) for rows in step.micro_batches] == [batch] * micro
            first = (number * ranks + rank) * batch * micro
            positions = [request.position for rows in step.micro_batches for request in rows]
            assert positions == list(range(first, first + batch * micro))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 60))
def test_a_short_last_step_is_cut_like_a_whole_one_and_ends_the_epoch(batch, micro, count):
    options = LoaderOptions(batch, micro, drop_last=False, shuffle=False, epochs=2)
    steps = list(plan_steps(options, count))
    for half, epoch in ((steps[: len(steps) // 2], 0), (steps[len(steps) // 2 :], 1)):
        rows = [request for step in half for part in step.micro_batches for request in part]
        assert [(request.epoch, request.position) for request in rows] == [(epoch, n) for n in range(count)]
        assert half[-1].after == Position(epoch + 1, 0)
        assert all(0 < len(part) <= batch for step in half for part in step.micro_batches)
        assert all(len(step.micro_batches) == micro for step in half[:-1])


@settings(max_examples=150, deadline=None)
@given(SIZES, SIZES, st.integers(1, 80), st.integers(0, 9), st.sampled_from(["drop", "pad", "mixture"]))
def test_resuming_anywhere_reads_on_with_the_same_rows(before, after, more, killed_after, rule):
    """Also on another number of ranks and micro-batches, as long as the step is as large."""
    count = before[0] * before[1] * before[2] + more
    given_options = {"drop": {}, "pad": {"pad_last": True}, "mixture": {"mixture": Mixture([count], [1.0], count)}}[
        rule
    ]
    options = LoaderOptions(before[0], before[1], seed=7, ranks=before[2], **given_options)
    whole = planned(options, count, killed_after + 4)
    position = whole[killed_after - 1][1] if killed_after else Position(0, 0)
    resumed = planned(replace(options, start=position), count, 4)
    assert resumed == whole[killed_after:]
    size = options.step_size
    again = LoaderOptions(size, 1, seed=7, start=position, **given_options)
    assert planned(again, count, 4) == whole[killed_after:]
    other = replace(options, batch_size=after[0], micro_batches=after[1], ranks=after[2], start=position)
    if position.index + other.step_size <= count:  # steps of another size: still the order, from the very next row
        assert planned(other, count, 1)[0][0][0] == whole[killed_after][0][0]


def test_a_mixture_draws_a_record_twice_with_two_seeds():
    options = LoaderOptions(4, seed=3, mixture=Mixture([2], [1.0], 64), epochs=1)
    rows = [request for step in plan_steps(options, 64) for part in step.micro_batches for request in part]
    assert len({request.seed for request in rows}) == 64
    assert {request.record for request in rows} == {0, 1}


def batches_equal(one, two):
    for (mine, at), (theirs, there) in zip(one, two, strict=True):
        assert at == there
        for ours, others in zip(mine, theirs, strict=True):
            assert ours.keys == others.keys
            assert ours.epoch == others.epoch
            for name in ("images", "tokens", "lengths", "indices", "seeds", "groups"):
                assert getattr(ours, name).equal(getattr(others, name)), name


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("killed_after", [1, 2, 3, 5])
def test_resumed_batches_are_equal_bit_for_bit(source, workers, killed_after):
    options = LoaderOptions(3, 2, workers=workers, seed=5, pad_last=True)
    whole = list(itertools.islice(Loader(source, prepared(), options).steps(), 7))
    start = whole[killed_after - 1][1]
    resumed = itertools.islice(Loader(source, prepared(), replace(options, start=start)).steps(), 7 - killed_after)
    batches_equal(whole[killed_after:], list(resumed))


def test_micro_batches_are_the_batch_of_the_step_split(source):
    """Rows, pixels and seeds do not depend on how a step is split over ranks and micro-batches."""

    def rows(batch, micro, ranks):
        loaders = [
            Loader(
                source, prepared(("crop", "strong")), LoaderOptions(batch, micro, seed=2, rank=rank, ranks=ranks)
            ).steps()
            for rank in range(ranks)
        ]
        return [
            [
                (key, seed, pixels.numpy().tobytes(), int(index))
                for part in parts
                for one in part[0]
                for key, seed, pixels, index in zip(
                    one.keys, one.seeds.tolist(), one.images.transpose(0, 1), one.indices, strict=True
                )
            ]
            for parts in itertools.islice(zip(*loaders, strict=True), 3)
        ]

    whole = rows(8, 1, 1)
    assert rows(2, 4, 1) == whole
    assert rows(2, 2, 2) == whole
    assert rows(1, 2, 4) == whole
    assert rows(4, 1, 2) == whole


@pytest.mark.parametrize("micro, ranks", [(1, 1), (2, 1), (1, 2), (3, 2)])
@pytest.mark.parametrize("policy", ["skip", "replace"])
def test_a_bad_record_is_replaced_by_the_same_record_however_the_step_is_split(tmp_path, micro, ranks, policy):
    spec = write_jsonl(tmp_path)
    order = permute(np.arange(COUNT), COUNT, 5, 0)
    for position in (3, 9, 10):
        (tmp_path / "img" / f"{order[position]:02d}.png").write_bytes(b"\xff\xd8\xff\xe0 cut")

    def keys(batch, micro, ranks):
        loaders = [
            Loader(
                open_source(spec), prepared(),
                LoaderOptions(batch, micro, seed=5, rank=rank, ranks=ranks, bad_samples=policy),
            )
            for rank in range(ranks)
        ]  # fmt: skip
        parts = [next(loader.steps())[0] for loader in loaders]
        bad = [pair for loader in loaders for pair in loader.bad]
        rows = [
            (key, seed)
            for part in parts
            for one in part
            for key, seed in zip(one.keys, one.seeds.tolist(), strict=True)
        ]
        return rows, bad

    rows, bad = keys(12 // micro // ranks, micro, ranks)
    assert (rows, bad) == keys(12, 1, 1)
    names = [key.partition("#")[0].rpartition("/")[2] for key, _ in rows]
    if policy == "skip":
        expected = [int(record) for record in order[:12]]
        expected[3], expected[9], expected[10] = int(order[4]), int(order[11]), int(order[11])
        assert names == [f"{number:02d}.png" for number in expected]
    assert len({seed for _, seed in rows}) == 12  # a replacement is not drawn like the record's own turn
    assert len(bad) == (4 if policy == "skip" else 3)  # in the order the bad 9 is followed by the bad 10


def test_iterating_batches_needs_steps_of_one_batch(source):
    loader = Loader(source, prepared(), LoaderOptions(2, 3))
    with pytest.raises(ConfigError, match=r"3 micro-batches is read with Loader.steps"):
        iter(loader)
    parts, _ = next(loader.steps())
    assert [len(part.keys) for part in parts] == [2, 2, 2]
    with pytest.raises(SourceError, match=r"23 records do not fill one step of 24 pairs .*; lower --batch-size"):
        Loader(source, prepared(), LoaderOptions(4, 3, ranks=2))


def test_impossible_numbers_are_refused():
    for options, message in (
        ({"micro_batches": 0}, "--accum-freq 0"),
        ({"rank": 2, "ranks": 2}, "rank 2 of 2"),
        ({"workers": -1}, "--workers -1"),
    ):
        with pytest.raises(ConfigError, match=message):
            LoaderOptions(**{"batch_size": 4, **options})


def test_seen_truncation_and_epoch_follow_micro_batches(source):
    loader = Loader(source, prepared(), LoaderOptions(2, 3, seed=1, epochs=2))
    epochs = [{batch.epoch for batch in batches} for batches, _ in loader.steps()]
    assert epochs == [{0}] * 3 + [{1}] * 3
    assert loader.seen == 36
    assert loader.truncation == {"pairs.jsonl": (36, 0, 0)}


PROGRAM = """
import sys
from diptych.data import Loader, LoaderOptions, build_prepare, open_source
from diptych.image import ViewOptions
from diptych.text import get_tokenizer
from diptych.types import Wants
prepare = build_prepare(Wants(), get_tokenizer("bpe"), ViewOptions(8))
batches = iter(Loader(open_source(sys.argv[1]), prepare, LoaderOptions(4, workers=2)))
next(batches)
print("left")
"""


@pytest.mark.heavy
def test_a_program_that_leaves_its_iterator_open_ends(tmp_path):
    """Loader processes ignore SIGTERM, which is how Python ends its children: without care it would wait for ever."""
    command = [sys.executable, "-c", PROGRAM, write_jsonl(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "left\n", "")
