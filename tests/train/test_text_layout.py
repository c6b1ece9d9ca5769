"""Texts are planned in the loader, travel with the batch, and reach every tower; shapes are few, and the config says which."""

import random

import numpy as np
import pytest
import torch

from diptych.conformance.texts import unequal_lengths
from diptych.data._collate import collate
from diptych.devices import get_device
from diptych.errors import ConfigError, DataError
from diptych.evaluate import Encoder
from diptych.models import _causal as causal
from diptych.models import attention_as_elsewhere, create_model, model_config, text_layout
from diptych.text import get_tokenizer
from diptych.train.config import read
from diptych.train.pipeline import Pipeline
from diptych.train.text_layout import with_text_layout
from diptych.train.transfer import move
from diptych.types import BucketedTexts, GroupedTexts, PackedTexts, Sample
from tests.objectives.worlds import EXAMPLES, batch_for, make_objective

from .runs import argv, losses, run

FORMS = {"groups": GroupedTexts, "varlen": PackedTexts, "buckets": BucketedTexts}
CONTEXT, VOCABULARY = 77, 600


def layout_of(form, buckets=(16, 32, 48, 77), vocabulary=VOCABULARY):
    text = model_config("tiny-test").text
    return text_layout(type(text)(text.width, text.layers, text.heads, vocab_size=vocabulary), form, buckets)


def samples(draw, count):
    """Samples of one text view, without pixels."""
    made = []
    for number in range(count):
        length = min(CONTEXT, max(3, int(draw.lognormvariate(2.6, 0.35))))
        ids = np.array([*draw.choices(range(1, VOCABULARY - 1), k=length - 1), VOCABULARY - 1])
        made.append(Sample(np.empty((1, 3, 0, 0), np.uint8), (ids,), (length,), str(number), number, 0, number))
    return made


@pytest.mark.parametrize("form", FORMS)
def test_collate_plans_each_view_and_checks_ids(form):
    given = samples(random.Random(1), 5)
    layout = layout_of(form)
    batch = collate(given, layout=layout)
    assert isinstance(batch.plans[0], FORMS[form])
    assert batch.plans[0].padded == batch.tokens.shape[2] == layout.padded(max(len(item.tokens[0]) for item in given))
    assert collate(given).plans is None
    moved = move(batch, torch.device("meta"))
    assert all(item.is_meta for item in moved.plans[0] if isinstance(item, torch.Tensor))
    with pytest.raises(DataError, match="a vocabulary of 599"):
        collate(given, layout=layout_of(form, vocabulary=VOCABULARY - 1))


@pytest.mark.parametrize("form", ["varlen", "buckets"])
def test_fifty_batches_have_few_shapes_and_one_attention_call_a_layer(form, monkeypatch):
    tower, layout, draw = create_model("tiny-test").text, layout_of(form), random.Random(2)
    calls = []

    def recorded(original):
        def call(*arguments, **options):
            calls.append(tuple(arguments[0].shape))
            return original(*arguments, **options)

        return call

    monkeypatch.setattr(causal, "scaled_dot_product", recorded(causal.scaled_dot_product))
    kernel = recorded(lambda *arguments, window_size=None: arguments[0] * 1)
    monkeypatch.setattr(causal, "kernel_for", lambda query: kernel)
    monkeypatch.setattr(causal, "causal_option", lambda kernel: {"window_size": (-1, 0)})
    layers = len(tower.layers)
    with attention_as_elsewhere(), torch.no_grad():
        for number in range(1, 51):
            batch = collate(samples(draw, 48), layout=layout)
            tower(batch.tokens[0], batch.lengths[0], plan=batch.plans[0])
            assert len(calls) == number * layers
    firsts, lasts = set(calls[::layers]), set(calls[layers - 1 :: layers])
    assert 1 < len(firsts) <= 4
    assert len(lasts) <= 4


@pytest.mark.parametrize("name", [name for name, example in EXAMPLES.items() if example.preset == "tiny-test"])
def test_every_objective_follows_the_plans_and_gives_the_same_terms(name):
    objective = make_objective(EXAMPLES[name]).train()
    batch = batch_for(objective, 6)
    expected = objective("terms", batch)[0]
    for form in FORMS:
        layout = layout_of(form)
        plans = tuple(layout.plan(lengths, batch.tokens.shape[2]) for lengths in batch.lengths)
        terms = objective("terms", batch._replace(plans=plans))[0]
        assert terms.losses.keys() == expected.losses.keys()
        for key, loss in terms.losses.items():
            assert loss.item() == pytest.approx(expected.losses[key].item(), rel=1e-10), (form, key)


def test_a_plan_reaches_the_tower_in_training(monkeypatch):
    seen = []
    original = causal.causal_plan

    def record(plan, ids):
        seen.append(plan)
        return original(plan, ids)

    monkeypatch.setattr("diptych.models.transformer.causal_plan", record)
    for name in ("clip-0", "declip-0", "distill-0"):
        objective = make_objective(EXAMPLES[name]).train()
        batch = batch_for(objective, 6)
        layout = layout_of("buckets")
        plans = tuple(layout.plan(lengths, batch.tokens.shape[2]) for lengths in batch.lengths)
        seen.clear()
        objective("features", batch._replace(plans=plans))
        texts = len(batch.tokens) + (name == "distill-0")  # and the teacher's
        assert len(seen) == texts, name
        assert {id(item) for item in seen} == {id(item) for item in plans}


@pytest.mark.heavy
@pytest.mark.parametrize("form", ["varlen", "buckets"])
def test_a_run_in_another_form_has_the_losses_of_groups_and_records_its_lengths(pairs, tmp_path, form, capsys):
    run(pairs, tmp_path / "groups", "--max-steps", "3")
    more = ["--text-layout", form, "--max-steps", "3", "--val-data", pairs]
    run(pairs, tmp_path / form, *more, "--stop-after", "2")
    assert "(chosen from the lengths of 23 captions)" in capsys.readouterr().err
    run(pairs, tmp_path / form, "--resume", "latest")
    assert "(as given)" in capsys.readouterr().err
    expected, actual = losses(tmp_path / "groups"), losses(tmp_path / form)
    assert [loss for _, loss in actual] == pytest.approx([loss for _, loss in expected], rel=1e-5)
    assert 'text_buckets = "8,77"' in (tmp_path / form / "config.toml").read_text()
    assert 'text_buckets = "auto"' in (tmp_path / "groups" / "config.toml").read_text()


def test_lengths_that_change_nothing_are_said_and_lengths_that_cannot_be_are_refused(pairs, tmp_path, capsys):
    run(pairs, tmp_path / "a", "--max-steps", "1", "--text-buckets", "16,77")
    assert "--text-buckets: no effect, since texts go by their own lengths here" in capsys.readouterr().err
    config = read(argv(pairs, tmp_path / "b", "--text-layout", "buckets"), program="diptych train")
    pipeline = Pipeline(*[None] * 9)
    siglip = model_config("tiny-test-siglip").text
    assert with_text_layout(config, pipeline, siglip, get_device("cpu"), "fp32") == (config, pipeline)
    assert "--text-layout: no effect, since this text tower computes every token" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="--text-buckets 16,32"):
        run(pairs, tmp_path / "c", "--max-steps", "1", "--text-layout", "buckets", "--text-buckets", "16,32")


@pytest.mark.parametrize("form", FORMS)
def test_an_encoder_plans_its_texts_by_the_devices_form(form, monkeypatch):
    model, device = create_model("tiny-test").eval(), get_device("cpu")
    captions = ["a dog", "a black cat on a mat", "two of them " * 9, "a dog"]
    tokenizer = get_tokenizer("bpe", CONTEXT)
    expected = model.encode_text(tokenizer(captions)).detach()
    seen = []
    original = model.text.forward.__func__

    def forward(self, tokens, *arguments, plan=None, **options):
        seen.append((type(plan), tuple(tokens.shape)))
        return original(self, tokens, *arguments, plan=plan, **options)

    monkeypatch.setattr(type(model.text), "forward", forward)
    monkeypatch.setattr(type(device), "text_layout", lambda self, precision, asked="auto": form)
    features = Encoder(model, tokenizer, None, device).texts(captions, lambda count: None)
    assert torch.allclose(features, expected, atol=1e-5)
    assert {kind for kind, _ in seen} == {FORMS[form]}
    assert all(shape[1] in (16, 32, 48, 77) for _, shape in seen) == (form != "groups")


def test_selftest_sees_a_kernel_that_reads_another_sequence(monkeypatch):
    cpu = get_device("cpu")
    monkeypatch.setattr(type(cpu), "has_varlen_attention", lambda self: True)
    claiming = get_device("cpu")
    assert "7 texts" in unequal_lengths(claiming, "bf16")
    reference = causal.kernel_for(torch.empty(0))

    def wrong(query, key, value, begins_q, begins_k, *longest, window_size=(-1, -1)):
        moved = begins_k.clone()
        moved[2] -= 1
        return reference(query, key, value, begins_q, moved if query.dtype != torch.float64 else begins_k, *longest)

    monkeypatch.setattr(causal, "kernel_for", lambda query: wrong)
    with pytest.raises(Exception, match="error"):
        unequal_lengths(claiming, "bf16")
