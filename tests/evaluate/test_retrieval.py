"""Retrieval over a source: merging, order, workers, modes, and the messages of what can go wrong."""

from __future__ import annotations

import pytest
import torch

from diptych.errors import ConfigError, RecordError, SourceError
from diptych.evaluate import EVALUATORS, chance, retrieval_scores
from diptych.evaluate.retrieval import Retrieval, RetrievalOptions, merge
from diptych.types import Record
from tests.evaluate.colors import COLORS, Model, Source, Tokenizer, all_colors, encoder, png, record

DEFAULTS = RetrievalOptions()


def evaluate(source, model=None, options=DEFAULTS, progress=None, **encode):
    return Retrieval().run(encoder(model, **encode), source, options, progress)


def test_a_model_that_sees_is_perfect_and_one_that_is_partly_blind_is_not():
    result = evaluate(all_colors())
    assert result.metrics["r_mean"] == 1.0 and result.metrics["text_to_image_mean_rank"] == 1.0
    assert result.count == {"images": 10, "texts": 20} and result.name == "colors"
    assert result.chance == pytest.approx(chance(10, 20, 2))
    assert evaluate(all_colors(), Model(blind_to=("red", "blue"))).metrics["text_to_image_R@1"] < 1.0


def test_features_stay_in_order_though_captions_are_sorted_by_length():
    tokenizer = Tokenizer()
    result = evaluate(all_colors(4), tokenizer=tokenizer, batch_size=7)
    assert tokenizer.widths == sorted(tokenizer.widths) and len(tokenizer.widths) == 6
    names = list(COLORS)
    for text, owner, features in zip(
        result.captioned.captions, result.captioned.owner, result.text_features, strict=True
    ):
        assert names[owner] in text
        expected = torch.tensor(COLORS[names[owner]]) / 255 - 0.5
        assert torch.allclose(features, expected)
    again = retrieval_scores(result.image_features, result.text_features, result.text_to_image)
    assert again == result.metrics


def test_records_of_an_image_are_merged_and_an_image_is_encoded_once():
    rows = [record(name, f"{word} {name}", key=f"{name}{word}", group=name) for word in ("a", "one") for name in COLORS]
    model = Model()
    result = evaluate(Source(rows), model, batch_size=5)
    assert result.count == {"images": 10, "texts": 20} and result.metrics["r_mean"] == 1.0
    assert sum(count for count, _ in model.batches) == 10
    assert result.captioned.captions_of_each == [2] * 10


def test_captions_per_image_takes_the_first():
    rows = [record(name, f"{word} {name}", key=f"{name}{word}", group=name) for word in ("a", "one") for name in COLORS]
    assert merge(Source(rows)).captions[:4] == ("a red", "one red", "a green", "one green")
    assert merge(Source(rows), captions_per_image=1).captions[:2] == ("a red", "a green")
    options = RetrievalOptions(captions_per_image=3)
    assert evaluate(all_colors(4), options=options).count == {"images": 10, "texts": 30}


def test_paired_is_row_by_row():
    source = Source([record(name, *(f"{word} {name}" for word in "abcde")) for name in COLORS])
    result = evaluate(source, options=RetrievalOptions("paired"))
    assert result.metrics["text_to_image_R@1"] == pytest.approx(0.2) and result.metrics["text_to_image_R@5"] == 1.0
    assert result.chance["text_to_image_R@5"] == pytest.approx(5 / 50)


def test_worker_processes_change_nothing():
    plain, parallel = evaluate(all_colors()), evaluate(all_colors(), workers=2, batch_size=3)
    assert plain.metrics == parallel.metrics and torch.equal(plain.image_features, parallel.image_features)


def test_progress_counts_up_to_the_total():
    calls: list[tuple[int, int]] = []
    evaluate(all_colors(), batch_size=6, progress=lambda *call: calls.append(call))
    assert [done for done, _ in calls] == [6, 10, 16, 22, 28, 30] and {total for _, total in calls} == {30}


def test_the_model_is_measured_in_evaluation_mode_and_given_back_as_it_was():
    model = Model().train()
    model.frozen.eval()
    evaluate(all_colors(), model)
    assert not any(training for _, training in model.batches)
    assert model.training and not model.frozen.training


def test_half_precision_is_asked_of_the_device():
    class Linear(Model):
        def encode_image(self, images):
            return torch.nn.functional.linear(super().encode_image(images), torch.eye(3))

    result = evaluate(all_colors(), Linear(), precision="bf16")
    assert result.image_features.dtype == torch.float32
    assert not torch.equal(result.image_features, evaluate(all_colors(), Linear()).image_features)
    assert result.metrics["r_mean"] == 1.0


@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_image_is_named(workers):
    source = all_colors()
    source.records[4] = Record("broken.png", png("red")[:40], ("a red",))
    with pytest.raises(RecordError, match=r"broken\.png") as caught:
        evaluate(source, workers=workers)
    assert "\n" not in caught.value.line


def test_an_image_without_captions_only_distracts():
    result = evaluate(Source([*all_colors().records, Record("silent", png("red", (16, 16)), ())]))
    assert result.count == {"images": 11, "texts": 20}
    assert result.chance["text_to_image_R@1"] == pytest.approx(1 / 11)


def test_mistakes_are_a_clear_line():
    with pytest.raises(SourceError, match="no caption"):
        evaluate(Source([record("red"), record("blue")]))
    with pytest.raises(ConfigError, match="'pairs'"):
        evaluate(all_colors(), options=RetrievalOptions("pairs"))
    with pytest.raises(ConfigError, match="batch size 0"):
        evaluate(all_colors(), batch_size=0)


def test_the_evaluator_has_a_name_and_its_entry_fits_the_results_file():
    assert EVALUATORS.get("retrieval") is Retrieval
    entry = evaluate(all_colors()).entry("val")
    assert set(entry) == {"name", "metrics", "chance", "count", "intervals"} and entry["name"] == "val"
    assert all(isinstance(value, float) for value in entry["metrics"].values())
