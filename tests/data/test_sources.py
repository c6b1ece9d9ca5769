"""The contract, over every registered format: the same records, the same batches, resumable anywhere."""

import pickle

import pytest

from diptych.data import SOURCES, Loader, LoaderOptions, Position, SourceOptions, build_prepare, open_source
from diptych.image import ViewOptions
from diptych.text import get_tokenizer
from diptych.types import Wants

from .world import COUNT, FORMATS, caption

FORMAT_NAMES = SOURCES.names()


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
    return {name: write(tmp_path_factory.mktemp(name)) for name, write in FORMATS.items()}


def prepare(training=True, views=1):
    wants = Wants(images=("crop" if training else "eval",) * views)
    options = ViewOptions(8, scale=(0.5, 1.0))
    return build_prepare(wants, get_tokenizer("bpe"), options, captions="random" if training else "first")


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_every_format_is_tested_and_opens_by_itself(name, specs):
    assert name in specs, f"write the world of tests/data/world.py in the format {name!r}"
    assert len(open_source(specs[name])) == COUNT
    assert len(open_source(specs[name], options=SourceOptions(dataset_type=name))) == COUNT


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_records_are_the_same_whatever_the_format(name, specs):
    source = open_source(specs[name])
    records = [source.record(index) for index in range(COUNT)]
    assert [record.captions for record in records] == [(caption(number),) for number in range(COUNT)]
    assert len({record.key for record in records}) == COUNT
    samples = [prepare(training=False)(record, 0) for record in records]
    assert [int(sample.images[0, 1, 0, 0]) for sample in samples] == list(range(COUNT))


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_a_source_reads_on_in_another_process(name, specs):
    source = open_source(specs[name])
    source.record(0)
    again = pickle.loads(pickle.dumps(source))
    assert again.record(5) == source.record(5)


def seen(name, specs, ranks, workers, start=None, batches=9):
    """What the ranks together read, batch by batch, each global batch in rank order."""
    parts = []
    for rank in range(ranks):
        loader = Loader(
            open_source(specs[name]), prepare(),
            LoaderOptions(6 // ranks, workers=workers, seed=3, rank=rank, ranks=ranks,
            start=start or Position(0, 0))
        )  # fmt: skip
        iterator = iter(loader)
        parts.append([next(iterator) for _ in range(batches)])
    result = []
    for step in range(batches):
        pixels = [tuple(sample.flatten().tolist()) for part in parts for sample in part[step][0].images[0]]
        tokens = [tuple(row[row > 0].tolist()) for part in parts for row in part[step][0].tokens[0]]
        result.append((pixels, tokens, parts[0][step][1]))
        assert len({part[step][1] for part in parts}) == 1
    return result


@pytest.mark.heavy
@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_batches_do_not_depend_on_format_ranks_or_workers(name, specs):
    reference = seen("jsonl", specs, 1, 0)
    assert seen(name, specs, 1, 0) == reference
    assert seen(name, specs, 2, 0) == reference
    assert seen(name, specs, 3, 0, batches=4) == reference[:4]


@pytest.mark.parametrize("name", FORMAT_NAMES)
@pytest.mark.parametrize("workers", [1, 2])
def test_loader_processes_change_nothing(name, workers, specs):
    assert seen(name, specs, 1, workers) == seen("jsonl", specs, 1, 0)


@pytest.mark.parametrize("name", FORMAT_NAMES)
@pytest.mark.parametrize("killed_after", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("ranks", [1, 2])
def test_resuming_continues_with_the_very_next_batch(name, killed_after, ranks, specs):
    reference = seen("jsonl", specs, 1, 0, batches=11)
    position = reference[killed_after - 1][2]
    resumed = seen(name, specs, ranks, 0, start=position, batches=3)
    assert resumed == reference[killed_after : killed_after + 3]


def test_an_epoch_shows_every_record_once_and_epochs_differ(specs):
    source = open_source(specs["jsonl"])
    loader = Loader(source, prepare(False), LoaderOptions(batch_size=5, drop_last=False, epochs=2, seed=1))
    keys = [batch.keys for batch, _ in loader]
    assert loader.steps_per_epoch == 5
    assert [len(part) for part in keys] == [5, 5, 5, 5, 3] * 2
    first, second = ([key for part in half for key in part] for half in (keys[:5], keys[5:]))
    assert sorted(first) == sorted(second) == sorted({source.record(index).key for index in range(COUNT)})
    assert first != second
