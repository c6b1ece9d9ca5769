"""The contract of every evaluator: what a class of the folder must give, so that commands and training can run it unnamed."""

from __future__ import annotations

import dataclasses
import json
import math
import typing

import pytest

from diptych.evaluate import EVALUATORS, DataKind, Evaluator, ProbeData, Result, evaluators, options_from
from tests.evaluate.colors import COLORS, Model, Source, encoder, record

ALL = EVALUATORS.names()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))


def data_for(kind):
    """A source of each kind that a model which sees colors handles without a mistake."""
    labeled = Source(
        [record(name, f"a {name}", key=f"{name}{i}", label=label) for label, name in enumerate(COLORS) for i in (0, 1)],
        classes=list(COLORS),
    )
    pairs = Source([record(name, f"a {name}", f"very {name}") for name in COLORS])
    return {"pairs": pairs, "labeled": labeled, "probe": ProbeData(labeled, labeled)}[kind]


def measured(name, model=None, progress=None):
    evaluator = EVALUATORS.get(name)()
    source = data_for(evaluator.data)
    return evaluator, source, evaluator.run(encoder(model, batch_size=7), source, evaluator.Options(), progress)


@pytest.mark.parametrize("name", ALL)
def test_it_declares_its_data_and_options_that_have_defaults(name):
    evaluator = EVALUATORS.get(name)
    assert issubclass(evaluator, Evaluator) and evaluator.data in typing.get_args(DataKind)
    options = evaluator.Options()
    assert dataclasses.is_dataclass(options) and evaluator.Options.__dataclass_params__.frozen
    assert options_from(evaluator, options) == options


@pytest.mark.parametrize("name", ALL)
def test_its_result_is_an_entry_of_the_results_file(name):
    calls = []
    _, source, result = measured(name, progress=lambda *call: calls.append(call))
    assert isinstance(result, Result) and result.name == source.name == "colors"
    assert result.metrics and result.chance.keys() <= result.metrics.keys()
    shares = [value for metric, value in result.metrics.items() if not metric.endswith("_rank")]
    assert shares and all(value == 1.0 for value in shares)
    assert all(0 < result.chance[metric] <= 1 for metric in result.chance if not metric.endswith("_rank"))
    assert all(low <= result.metrics[metric] <= high for metric, (low, high) in result.intervals.items())
    assert set(result.outcomes) <= set(result.metrics) and result.count["images"] > 0
    entry = result.entry("other")
    assert {"name", "metrics", "chance", "count", "intervals"} <= set(entry) and entry["name"] == "other"
    assert json.loads(json.dumps(entry)) == entry
    assert calls[-1][0] == calls[-1][1] and calls == sorted(calls)


@pytest.mark.parametrize("name", ALL)
def test_what_it_shows_and_predicts_is_plain_json(name):
    evaluator, source, result = measured(name, Model(blind_to=("blue", "pink")))
    drawings = evaluator.images(result, source, "title")
    assert json.loads(json.dumps(drawings)) == drawings
    assert all(part["title"].endswith("title") and part["rows"] for part in drawings)
    lines = list(evaluator.predictions(result, source))
    assert json.loads(json.dumps(lines)) == lines and len(lines) in (0, result.count["images"])


@pytest.mark.parametrize("name", ALL)
def test_a_blind_model_scores_less_and_no_number_is_lost(name):
    _, _, result = measured(name, Model(blind_to=tuple(COLORS)))
    assert all(math.isfinite(value) for value in result.metrics.values())
    if EVALUATORS.get(name).data != "probe":  # texts say nothing; images are seen as before
        assert min(result.metrics.values()) < 0.5


@pytest.mark.parametrize("name", ALL)
def test_the_model_gets_back_the_mode_of_every_module(name):
    model = Model().train()
    model.frozen.eval()
    measured(name, model)
    assert model.batches and not any(training for _, training in model.batches)
    assert model.training and not model.frozen.training


def test_results_are_in_the_order_of_the_data_and_names_are_apart():
    entries = list(evaluators().values())
    kinds = [entry.data for entry in entries]
    assert kinds == sorted(kinds, key=typing.get_args(DataKind).index)
    assert len({(entry.data, entry.title) for entry in entries}) == len(entries)
    training = [entry.training_name for entry in entries if entry.training_name]
    assert len(set(training)) == len(training) and not any(
        entry.training_name for entry in entries if entry.data == "probe"
    )
