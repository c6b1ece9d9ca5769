"""What every evaluator of the registry promises, whatever it measures: a new one is tested by being there."""

import dataclasses
import json
import typing

import pytest
import torch

from diptych.evaluate import EVALUATORS, DataKind, LabeledImages, ProbeData, Result, evaluators, options_from
from tests.evaluate.colors import COLORS, Model, Source, all_colors, encoder, record

each_evaluator = pytest.mark.parametrize("name", EVALUATORS.names())


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))


def class_folder(each):
    names = tuple(COLORS)
    records = [record(name, key=f"{name}{i}", label=number) for number, name in enumerate(names) for i in range(each)]
    return Source(records, f"folder of {each}", names)


def data_of(kind):
    """A small set of a kind on which the model of colors is right everywhere."""
    if kind == "pairs":
        return all_colors()
    if kind == "labeled":
        return LabeledImages(class_folder(2), templates="simple")
    return ProbeData(class_folder(4), class_folder(2))


def measure(name, model=None, progress=None):
    evaluator = EVALUATORS.get(name)
    data = data_of(evaluator.data)
    return evaluator(), data, evaluator().run(encoder(model), data, evaluator.Options(), progress)


@each_evaluator
def test_options_are_a_frozen_dataclass_with_defaults_and_documented(name):
    options = EVALUATORS.get(name).Options
    assert dataclasses.is_dataclass(options)
    assert options.__doc__
    for item in dataclasses.fields(options):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(options(), item.name, None)


@each_evaluator
def test_the_kind_of_data_is_known(name):
    assert EVALUATORS.get(name).data in typing.get_args(DataKind)
    assert name in evaluators()


@each_evaluator
def test_options_are_taken_from_others_by_name(name):
    evaluator = EVALUATORS.get(name)

    @dataclasses.dataclass(frozen=True)
    class Other(evaluator.Options):
        """All options of the evaluator and one more."""

        unrelated_number: int = 3

    assert options_from(evaluator, Other()) == evaluator.Options()


@each_evaluator
def test_a_model_that_sees_everything_is_right_everywhere(name):
    _, _, result = measure(name)
    assert isinstance(result, Result)
    shares = {metric: value for metric, value in result.metrics.items() if "rank" not in metric}
    assert shares
    assert set(shares.values()) == {1.0}
    assert all(count > 0 for count in result.count.values())
    assert min(result.chance[metric] for metric in shares) < 1.0


@each_evaluator
def test_a_blind_model_is_worse_and_equal_runs_are_equal(name):
    _, _, result = measure(name, Model(blind_to=("red", "blue", "pink", "cyan")))
    _, _, again = measure(name, Model(blind_to=("red", "blue", "pink", "cyan")))
    assert result.entry() == again.entry()
    if EVALUATORS.get(name).data != "probe":  # probes never read a class's name
        assert min(result.metrics.values()) < 1.0


@each_evaluator
def test_what_is_reported_is_plain_json(name):
    evaluator, data, result = measure(name)
    entry = json.loads(json.dumps(result.entry("another")))
    assert entry["name"] == "another"
    assert {"metrics", "chance", "count", "intervals"} <= entry.keys()
    assert json.loads(json.dumps(evaluator.images(result, data))) is not None
    for row in evaluator.predictions(result, data):
        assert json.loads(json.dumps(row))


@each_evaluator
def test_every_module_gets_its_mode_back_and_is_measured_in_evaluation_mode(name):
    model = Model()  # in training mode, but for its frozen part
    measure(name, model)
    assert model.training
    assert not model.frozen.training
    assert model.batches
    assert not any(training for _, training in model.batches)


@each_evaluator
def test_progress_reaches_the_total(name):
    seen = []
    measure(name, progress=lambda done, total: seen.append((done, total)))
    assert seen
    assert all(0 <= done <= total for done, total in seen)
    assert seen[-1][0] == seen[-1][1]


@each_evaluator
def test_nothing_is_recorded_for_gradients(name):
    _, _, result = measure(name)
    for item in vars(result).values():
        assert not (isinstance(item, torch.Tensor) and item.requires_grad)


def test_data_of_every_kind_is_tested():
    assert {evaluator.data for evaluator in evaluators().values()} == set(typing.get_args(DataKind))
