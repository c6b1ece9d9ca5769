"""Validation through a layout: loss and parts as means over all ranks, scores of every evaluator that training runs."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from diptych.data import Loader, LoaderOptions, open_source
from diptych.data._prepare import build_prepare
from diptych.devices import get_device
from diptych.distributed import process_group
from diptych.distributed.parallel import parallelize
from diptych.errors import RecordError, SourceError
from diptych.evaluate import Encoder, open_labeled
from diptych.image import ViewOptions
from diptych.objectives import create_objective
from diptych.text import get_tokenizer
from diptych.train.config import EvaluateOptions
from diptych.train.validate import ValidationData, ValidationRequest, Validator
from diptych.types import Terms
from tests.distributed._processes import run_in_processes
from tests.evaluate.colors import COLORS, png
from tests.objectives.worlds import EXAMPLES, make_model


@pytest.fixture
def data(tmp_path):
    rows = []
    for number, name in enumerate(itertools.islice(itertools.cycle(COLORS), 12)):
        (tmp_path / f"{number}.png").write_bytes(png(name, (24 + number, 20)))
        rows.append(json.dumps({"image": f"{number}.png", "captions": [f"{name} {number}", f"number {number}"]}) + "\n")
    (tmp_path / "pairs.jsonl").write_text("".join(rows))
    for name in ("red", "blue"):
        (tmp_path / "folders" / name).mkdir(parents=True)
        (tmp_path / "folders" / name / "1.png").write_bytes(png(name))
    return str(tmp_path)


def make_validator(folder, example="clip-0", size=6, options=EvaluateOptions()):  # noqa: B008 (frozen)
    """A validator of a small model on 12 pairs and 2 labeled images; ``size`` pairs per batch and process."""
    device, world = get_device("cpu"), process_group.world_from_environment()
    chosen = EXAMPLES[example]
    objective = create_objective(
        chosen.options, make_model(chosen, vocabulary=49408)
    )  # fp64, so that ranks do not hang on rounding
    layout = parallelize(objective, device, world)
    config = objective.model.config
    tokenizer = get_tokenizer("bpe", config.text.context_length)
    view = ViewOptions(config.vision.image_size)
    source = open_source(f"{folder}/pairs.jsonl")
    prepare = build_prepare(objective.validation_wants, tokenizer, view, "first")
    loading = LoaderOptions(size, rank=world.rank, ranks=world.size, shuffle=False, epochs=1)
    encoder = Encoder(layout, tokenizer, view.eval_transform, device, 4, shared=world.size > 1, cache=False)
    labeled = open_labeled(f"{folder}/folders", templates="simple")
    return Validator(
        layout, encoder, ValidationData(source, labeled, lambda: Loader(source, prepare, loading)), options
    )


def measured(folder, size, request=ValidationRequest(True, True)):  # noqa: B008
    validator = make_validator(folder, size=size)
    validator.layout.train()
    rows = list(validator.measure(folder_of(folder), request))
    assert validator.layout.objective.training
    return rows


def folder_of(folder):
    from pathlib import Path

    out = Path(folder) / "run"
    out.mkdir(exist_ok=True)
    return out


def test_a_row_for_the_pairs_with_their_loss_and_one_for_the_labeled_images(data):
    pairs, labeled = measured(data, 6)
    assert pairs["name"] == "val" and labeled["name"] == "zeroshot"
    assert pairs["loss"] > 0 and "text_to_image_R@10" in pairs and labeled.keys() >= {"top1", "mean_per_class"}
    results = json.loads((folder_of(data) / "results.json").read_text())
    assert [entry["name"] for entry in results] == ["val", "zeroshot"] and results[0]["count"]["texts"] == 24
    assert not (folder_of(data) / "gallery.json").exists()
    measured(data, 6, ValidationRequest(True, False, last=True))
    assert json.loads((folder_of(data) / "gallery.json").read_text())[0]["title"].endswith("val")


def test_the_loss_is_the_mean_over_batches_in_evaluation_mode(data):
    validator = make_validator(data)
    validator.layout.train()
    losses = validator.losses()
    objective = validator.layout.objective.eval()
    with torch.no_grad():
        expected = [float(sum(objective("validation", batch).losses.values())) for batch, _ in validator.data.batches()]
    assert len(expected) == 2 and losses["loss"] == pytest.approx(sum(expected) / 2)


def test_parts_sum_to_the_loss_and_are_means_over_ranks(data, monkeypatch):
    validator = make_validator(data)
    plain = validator.layout.validation_terms

    def parted(batch):
        terms = plain(batch)
        (loss,) = terms.losses.values()
        return Terms({"first": loss, "second": 2 * loss}, {"accuracy": loss / 10})

    monkeypatch.setattr(validator.layout, "validation_terms", parted)
    losses = validator.losses()
    assert losses["loss"] == pytest.approx(losses["loss_first"] + losses["loss_second"])
    assert losses["accuracy"] == pytest.approx(losses["loss"] / 30)


def test_two_processes_measure_what_one_does(data):
    """The same global batches: 6 pairs, or 3 on each of two ranks."""
    alone = measured(data, 6)
    for rows in run_in_processes(2, measured, data, 3):
        for row, expected in zip(rows, alone, strict=True):
            assert row.pop("name") == expected["name"]
            assert row == {name: pytest.approx(expected[name], rel=1e-5) for name in row}


def test_options_of_the_run_are_the_evaluators_where_they_have_the_same_name(data):
    validator = make_validator(data, options=EvaluateOptions(captions_per_image=1, protocol="paired"))
    (row,) = validator.measure(folder_of(data), ValidationRequest(True, False))
    results = json.loads((folder_of(data) / "results.json").read_text())
    assert row["name"] == "val" and results[0]["count"] == {"images": 12, "texts": 12}
    assert results[0]["chance"]["image_to_text_R@1"] == pytest.approx(1 / 12)


def test_an_unreadable_image_of_a_rank_is_raised_on_all(data):
    assert run_in_processes(2, _fails, data) == ["9.png#9"] * 2


def _fails(folder):
    validator = make_validator(folder, size=3)
    (folder_of(folder).parent / "9.png").write_bytes(b"nothing")
    process_group.barrier()
    try:
        validator.losses()
    except RecordError as error:
        return error.key
    return None


def test_pairs_that_fill_no_batch_are_a_clear_line(data):
    validator = make_validator(data, size=6)
    empty = ValidationData(validator.data.pairs, None, lambda: iter(()))
    with pytest.raises(SourceError, match="do not fill a batch"):
        Validator(validator.layout, validator.encoder, empty, validator.options).losses()
