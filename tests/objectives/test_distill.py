"""Distillation: open_clip's loss of relations, default weights, a teacher that stays as it is, teachers that do not fit."""

import importlib.util
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from diptych.distributed.layout import frozen_digests
from diptych.errors import ConfigError
from diptych.models import create_model, model_config
from diptych.objectives.clip import Clip, ClipConfig
from diptych.objectives.distill import Distill, DistillConfig, DistillFeatures

from .batch_references import FROM_BATCH
from .worlds import EXAMPLES, batch_for, make_objective, without

EXAMPLE = {"feature": EXAMPLES["distill-0"], "mapped": EXAMPLES["distill-1"], "relation": EXAMPLES["distill-3"]}


def teacher_of(**text):
    """What loads a tiny teacher whose text tower, or image size, is another."""

    def load(source, model=""):
        config = model_config("tiny-test")
        size = text.pop("image_size", None)
        if size:
            return create_model(replace(config, vision=replace(config.vision, image_size=size)))
        return create_model(replace(config, text=replace(config.text, **text)))

    return load


def random_features(teacher_width, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    student = [torch.randn(4, 32, generator=generator, dtype=torch.float64) for _ in range(2)]
    teacher = [
        torch.nn.functional.normalize(torch.randn(4, teacher_width, generator=generator, dtype=torch.float64), dim=1)
        for _ in range(2)
    ]
    return [item.to(dtype).requires_grad_() for item in student], [item.to(dtype) for item in teacher]


def test_relations_are_open_clips_distillation():
    peer = open_clip_or_skip()
    student, teacher = random_features(48)
    objective = make_objective(EXAMPLE["relation"])
    their_scale = objective.frozen()["teacher"].logit_scale.exp()
    terms = objective.compare(DistillFeatures(*student, *teacher), None)
    sum(terms.losses.values()).backward()
    others = [item.detach().clone().requires_grad_() for item in student]
    image, text = (torch.nn.functional.normalize(item, dim=1) for item in others)
    scale = objective.model.logit_scale.detach().clone().requires_grad_()
    losses = peer.loss.DistillClipLoss()(image, text, scale.exp(), *teacher, their_scale, output_dict=True)
    sum(losses.values()).backward()
    assert terms.losses["contrastive"].item() == pytest.approx(losses["contrastive_loss"].item(), abs=1e-6)
    assert terms.losses["relation"].item() == pytest.approx(losses["distill_loss"].item(), abs=1e-6)
    for own, other in zip((*student, objective.model.logit_scale), (*others, scale), strict=True):
        assert torch.allclose(own.grad, other.grad, atol=1e-6)


def open_clip_or_skip():
    if importlib.util.find_spec("open_clip") is None:
        pytest.skip("open_clip is not installed here; run with the environment of benchmarks/peers.txt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("benchmarks._peers").open_clip()


@pytest.mark.parametrize("kind", EXAMPLE)
def test_gradients_by_finite_differences(kind):
    objective = make_objective(EXAMPLE[kind])
    student, teacher = random_features(objective.frozen()["teacher"].config.embed_dim)

    def losses(image, text):
        terms = objective.compare(DistillFeatures(image, text, *teacher), None)
        return torch.stack(list(terms.losses.values()))

    assert torch.autograd.gradcheck(losses, student, atol=1e-4)


@pytest.mark.parametrize("kind", EXAMPLE)
def test_fp32_is_near_the_reference(kind):
    objective = make_objective(EXAMPLE[kind], torch.float32)
    batch = batch_for(objective)
    terms = objective("validation", batch), objective("terms", batch)[0]
    with torch.no_grad():
        image = objective.model.image(batch.images[0]).pooled.numpy()
        text = objective.model.text(batch.tokens[0], batch.lengths[0]).pooled.numpy()
    expected = FROM_BATCH["distill"](objective, batch, image, text)
    assert {key: item.item() for key, item in terms[1].losses.items()} == pytest.approx(expected, rel=1e-5)
    # Validation has no teacher, so that runs with one and without compare.
    assert {key: item.item() for key, item in terms[0].losses.items()} == pytest.approx(
        {"contrastive": expected["contrastive"]}, rel=1e-5
    )
    clip = Clip(ClipConfig(), objective.model)("validation", batch)
    assert torch.equal(clip.losses["contrastive"], terms[0].losses["contrastive"])


@pytest.mark.parametrize(("kind", "default"), [("feature", 2000.0), ("relation", 1.0)])
def test_the_weight_is_the_papers_unless_it_is_given(kind, default):
    student, teacher = random_features(48 if kind == "relation" else 32)
    values = []
    for weight in (None, 0.5, 0.0):
        objective = make_objective(without(EXAMPLE[kind], distill_weight=weight))
        assert objective.weight == (default if weight is None else weight)
        values.append(objective.compare(DistillFeatures(*student, *teacher), None).losses[kind].item())
    assert values[0] == pytest.approx(values[1] * default / 0.5) and values[0] > 0 and values[2] == 0


def test_a_student_that_equals_its_teacher_has_no_distance():
    student, _ = random_features(32)
    same = [torch.nn.functional.normalize(item.detach(), dim=1) for item in student]
    terms = make_objective(EXAMPLE["feature"]).compare(DistillFeatures(*student, *same), None)
    assert terms.losses["feature"].item() == pytest.approx(0.0, abs=1e-12)
    assert terms.metrics["teacher_cosine"].item() == pytest.approx(1.0)


def test_the_teacher_is_no_part_of_what_is_trained():
    objective = make_objective(EXAMPLE["mapped"])
    objective.train()
    teacher = objective.frozen()["teacher"]
    assert not teacher.training and not [item for item in teacher.parameters() if item.requires_grad]
    assert {name.split(".")[0] for name in objective.state_dict()} == {"model", "maps"}
    first = frozen_digests(objective.frozen())
    with torch.no_grad():
        teacher.logit_scale.add_(1)
    assert first.keys() == {"teacher"} and frozen_digests(objective.frozen()) != first


def test_only_features_of_another_width_are_mapped():
    assert [make_objective(EXAMPLE[kind]).maps is None for kind in ("feature", "mapped", "relation")] == [
        True,
        False,
        True,
    ]


def test_the_teacher_is_loaded_by_open_clips_names():
    calls = []

    def load(source, model=""):
        calls.append((source, model))
        return create_model("tiny-test")

    model = create_model("tiny-test")
    Distill(DistillConfig(distill_model="RN50", distill_pretrained="openai"), model, load)
    Distill(DistillConfig(distill_model="runs/a"), model, load)
    Distill(DistillConfig(distill_pretrained="a.pt"), model, load)
    assert calls == [("openai", "RN50"), ("runs/a", ""), ("a.pt", "")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"image_size": 64}, "takes images of 64 pixels and tiny-test of 32; .* give --force-image-size 64"),
        ({"tokenizer": "siglip"}, "tokenizer is 'siglip' and tiny-test's 'bpe'; .* the same tokenizer"),
        ({"vocab_size": 49409}, "vocab_size is 49409 and tiny-test's 49408"),
        ({"context_length": 32}, "reads 32 tokens and tiny-test 77; .* --force-context-length 32"),
    ],
)
def test_a_teacher_that_reads_something_else_is_refused(text, message):
    with pytest.raises(
        ConfigError, match=f"^--distill-model t: the teacher.* {message}".replace("teacher.* ", "teacher('s)? ")
    ):
        Distill(DistillConfig(distill_model="t"), create_model("tiny-test"), teacher_of(**text))


def test_a_teacher_that_reads_longer_captions_is_taken():
    Distill(DistillConfig(distill_model="t"), create_model("tiny-test"), teacher_of(context_length=90))


def test_vocabularies_of_their_own_are_refused():
    config = model_config("tiny-test")
    config = replace(config, text=replace(config.text, tokenizer="own", start_id=1, end_id=2))
    with pytest.raises(ConfigError, match="a vocabulary of its own"):
        Distill(DistillConfig(distill_model="t"), create_model(config), lambda name: create_model(config))


def test_no_teacher_is_one_line():
    with pytest.raises(ConfigError, match="has no teacher; give --distill-model"):
        Distill(DistillConfig(), create_model("tiny-test"), teacher_of())
    with pytest.raises(ConfigError, match="without a function that loads"):
        Distill(DistillConfig(distill_model="t"), create_model("tiny-test"))


def test_the_teacher_sees_the_students_crop_and_tokens():
    objective = make_objective(EXAMPLE["feature"])
    batch, teacher = batch_for(objective), objective.frozen()["teacher"]
    image, text = objective.encode_frozen(batch)
    np.testing.assert_allclose(image, teacher.encode_image(batch.images[0], normalize=True), atol=1e-12)
    np.testing.assert_allclose(text, teacher.encode_text(batch.tokens[0], normalize=True), atol=1e-12)


def test_stored_features_are_those_of_the_record_and_texts_stay_live():
    objective = make_objective(EXAMPLES["distill-4"])
    batch = batch_for(objective)
    table = torch.arange(64 * 48, dtype=torch.float32).reshape(64, 48) + 1
    objective.store(table)
    batch = batch._replace(indices=torch.tensor([5, 3, 63, 0, 5, 1]))
    image, text = objective.encode_frozen(batch)
    assert torch.allclose(image, torch.nn.functional.normalize(table[batch.indices].double(), dim=1))
    teacher = objective.frozen()["teacher"]
    assert torch.allclose(
        text, torch.nn.functional.normalize(teacher.text(batch.tokens[0], batch.lengths[0]).pooled, dim=1)
    )
    objective._stored = None
    with pytest.raises(ConfigError, match="call store"):
        objective.encode_frozen(batch)
