"""Repeated captions ignored: which are equal, the losses against NumPy, and the same result however a batch is divided."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.distributed import process_group
from diptych.objectives import _terms, _tiles
from diptych.objectives._repeats import _digests, _numbered, caption_classes, caption_ids
from diptych.objectives._sigmoid import sigmoid
from diptych.objectives._terms import Features, contrastive
from tests.distributed._processes import run_in_processes

from .test_objectives import gradients, make_step
from .worlds import batch_for, make_batch, own_rows, pieces_of

CLASSES = torch.tensor([0, 1, 0, 2, 1, 0, 3, 4])
IGNORING = {"clip-3": "clip", "siglip-2": "siglip"}


def unit(count, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, 6, generator=generator, dtype=dtype), dim=1).requires_grad_()


def features(count=8, dtype=torch.float64):
    return Features(unit(count, 0, dtype), unit(count, 1, dtype))


def same(classes):
    return (classes[:, None] == classes[None]).numpy()


def log_softmax(logits):
    return (
        logits
        - logits.max(1, keepdims=True)
        - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
    )


def without_repeats(image, text, scale, classes):
    """Each row's cross-entropy over its own column and those of other classes, one row at a time, in float64."""
    losses = []
    for rows, columns in ((image, text), (text, image)):
        for number, row in enumerate(rows):
            others = columns[~same(classes)[number]]
            logits = scale * np.concatenate([columns[number : number + 1], others]) @ row
            losses.append(-log_softmax(logits[None])[0, 0])
    return np.mean(losses)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=9),
    st.integers(0, 3),
    st.integers(0, 5),
)
def test_captions_are_equal_when_their_ids_up_to_the_end_are(captions, extra, pad):
    batch = make_batch(len(captions))
    width = max(map(len, captions)) + extra
    tokens = torch.tensor([[*caption, *[pad] * (width - len(caption))] for caption in captions])[None]
    lengths = torch.tensor([[len(caption) for caption in captions]])
    numbers = caption_classes(caption_ids(batch._replace(tokens=tokens, lengths=lengths))).tolist()
    for one, first in zip(captions, numbers, strict=True):
        for other, second in zip(captions, numbers, strict=True):
            assert (one == other) == (first == second)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_clip_equals_numpy(dtype, tolerance, scale):
    own = features(dtype=dtype)
    loss, _ = contrastive(own, own, torch.tensor([scale], dtype=dtype), classes=CLASSES)
    image, text = (item.detach().double().numpy() for item in own)
    assert loss.item() == pytest.approx(without_repeats(image, text, scale, CLASSES), rel=tolerance)


def test_clip_gradients_by_finite_differences():
    own, scale = features(), torch.tensor([5.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda image, text, factor: contrastive(Features(image, text), Features(image, text), factor, classes=CLASSES)[
            0
        ],
        (*own, scale),
    )


@pytest.mark.parametrize("offset", [None, 0, 4])
def test_tiles_equal_the_whole_matrix(monkeypatch, offset):
    monkeypatch.setattr(_tiles, "TILE", 17)
    monkeypatch.setattr(_tiles, "STORED", 0)
    columns, scale = features(), torch.tensor([7.0], dtype=torch.float64, requires_grad=True)
    rows = columns if offset is None else Features(*(item[offset : offset + 4] for item in columns))
    results = []
    for limit in (1 << 30, 0):
        monkeypatch.setattr(_terms, "MATRIX_LIMIT", limit)
        loss, correct = contrastive(rows, columns, scale, offset or 0, classes=CLASSES)
        results.append((loss, correct.double(), *torch.autograd.grad(loss, (*columns, scale))))
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-12)


def test_pairs_of_the_same_caption_cannot_win(monkeypatch):
    image = F.normalize(torch.eye(3) + 0.1, dim=1)
    text = image[[1, 0, 2]]  # rows 0 and 1 are nearest to each other's
    own, scale = Features(image, text), torch.ones(1)
    for limit in (1 << 30, 0):
        monkeypatch.setattr(_terms, "MATRIX_LIMIT", limit)
        shares = [float(contrastive(own, own, scale, classes=c)[1]) for c in (None, torch.tensor([0, 0, 1]))]
        assert shares == pytest.approx([1 / 3, 1])


def test_soft_targets_over_equal_texts_are_the_plain_loss():
    """Why the option leaves pairs out, and does not make positives of them (UniCL) as it could."""
    own = features()
    first = torch.tensor([int((number == CLASSES).nonzero()[0]) for number in CLASSES])
    image, text = own.image.detach(), own.text.detach()[first]
    logits = [15 * image.numpy() @ text.numpy().T, 15 * text.numpy() @ image.numpy().T]
    target = same(CLASSES) / same(CLASSES).sum(axis=1, keepdims=True)
    soft = np.mean([-(target * log_softmax(item)).sum(axis=1).mean() for item in logits])
    plain = contrastive(Features(image, text), Features(image, text), torch.tensor([15.0], dtype=torch.float64))[0]
    assert plain.item() == pytest.approx(soft, rel=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_siglip_equals_the_sum_of_binary_questions_in_numpy(dtype, tolerance):
    own, scale, bias = features(dtype=dtype), torch.tensor([9.0], dtype=dtype), torch.tensor([-3.0], dtype=dtype)
    loss, _ = sigmoid(*own, scale, bias, classes=CLASSES)
    image, text = (item.detach().double().numpy() for item in own)
    signs = 2 * np.eye(len(image)) - 1
    asked = ~same(CLASSES) | np.eye(len(image), dtype=bool)
    expected = np.log1p(np.exp(-signs * (9.0 * image @ text.T - 3.0)))[asked].sum() / len(image)
    assert loss.item() == pytest.approx(expected, rel=tolerance)


def test_distinct_captions_give_the_published_losses_to_the_bit():
    own, classes = features(dtype=torch.float32), torch.randperm(8, generator=torch.Generator().manual_seed(0))
    scale, bias = torch.tensor([14.0], requires_grad=True), torch.tensor([-10.0], requires_grad=True)
    for with_option, without in (
        (contrastive(own, own, scale, classes=classes), contrastive(own, own, scale)),
        (sigmoid(*own, scale, bias, classes=classes), sigmoid(*own, scale, bias)),
    ):
        results = [
            (loss.detach(), share, *torch.autograd.grad(loss, (*own, scale))) for loss, share in (with_option, without)
        ]
        assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_a_batch_of_one_caption_asks_for_nothing(monkeypatch, limit):
    monkeypatch.setattr(_terms, "MATRIX_LIMIT", limit)
    own, one, scale = features(), torch.zeros(8, dtype=torch.int64), torch.tensor([100.0], dtype=torch.float64)
    loss = contrastive(own, own, scale, classes=one)[0]
    assert loss.item() == 0
    assert all(not item.any() for item in torch.autograd.grad(loss, own))


def repeated(objective, seed):
    """A batch of 12 pairs in which captions of several lengths occur again, in other shares and micro-batches too."""
    batch = batch_for(objective, 12, seed=seed)
    source = torch.tensor([0, 1, 2, 0, 4, 1, 0, 7, 8, 8, 10, 2])
    return batch._replace(tokens=batch.tokens[:, source], lengths=batch.lengths[:, source])


def after_steps(name, parts=1):
    step, world = make_step(name), process_group.world_from_environment()
    losses = []
    for seed in range(2):
        result = step(pieces_of(own_rows(repeated(step.layout.objective, seed), world), parts))
        losses.append(process_group.all_reduce_mean_of({"loss": result.loss.double(), **result.metrics}))
    return losses, gradients(step)


def everyone(parts):
    return {name: after_steps(name, parts) for name in IGNORING}


@pytest.mark.parametrize("parts", [1, 2])
def test_two_processes_and_micro_batches_equal_the_whole_batch(parts):
    expected = everyone(1)
    results = [everyone(3), *run_in_processes(2, everyone, parts)]
    for name, (losses, wanted) in expected.items():
        plain = after_steps(f"{IGNORING[name]}-0")[0]
        assert abs(plain[0]["loss"] - losses[0]["loss"]) > 1e-5  # the option does something here
        for result in results:
            for one, other in zip(result[name][0], losses, strict=True):
                assert one == pytest.approx(other, rel=1e-6, abs=2e-6)
            for key, item in wanted.items():
                np.testing.assert_allclose(result[name][1][key], item, rtol=1e-5, atol=1e-9, err_msg=key)


def test_digests_tell_captions_apart_as_their_ids_do():
    source = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 3, (200, 4), generator=source)
    ids[:, 0] += 1  # no caption is empty
    expected, digests = caption_classes(ids), _digests(ids)
    assert len(expected.unique()) < 160
    for numbers in (_numbered(digests), _numbered(_digests(torch.nn.functional.pad(ids, (0, 5))))):
        assert torch.equal(numbers[:, None] == numbers, expected[:, None] == expected)
