"""Token-wise late interaction equals the plain form, gradients included, at every tile size and number of processes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diptych.distributed.gather import rank_offset
from diptych.distributed.process_group import size
from diptych.objectives import _dense
from diptych.objectives._dense import DenseTokens, TokenMaps, dense_contrastive, selected, token_features, whole_context
from diptych.types import Encoded
from tests.distributed._processes import run_in_processes

WIDTH = 8


def raw_tokens(pairs, patches, longest, seed=0):
    """Image and text tokens before normalization, and lengths; the second caption has no token at all."""
    generator = torch.Generator().manual_seed(seed)
    image, text = (
        torch.randn(pairs, count, WIDTH, generator=generator, dtype=torch.float64) for count in (patches, longest)
    )
    lengths = torch.randint(1, longest + 1, (pairs,), generator=generator)
    lengths[1] = 0
    return image, text, torch.arange(longest) < lengths[:, None]


def unit_tokens(image, text, real):
    return DenseTokens(F.normalize(image, dim=-1), F.normalize(text, dim=-1), real)


def plain_sides(tokens, top_k, compat=False):
    """Both [B, B] matrices before the scale, pair by pair, token by token."""
    pairs = range(len(tokens.real))
    words = [torch.nonzero(row | compat)[:, 0] for row in tokens.real]
    best_images, best_words = [], []
    for number in pairs:
        similarity = tokens.image[number] @ tokens.text[number][words[number]].T
        order = similarity.sum(dim=1).argsort(descending=True, stable=True)  # of equal sums the first
        best_images.append(tokens.image[number][order[:top_k]])
        own = similarity.sum(dim=0).argsort(descending=True, stable=True)[:top_k]
        best_words.append(tokens.text[number][words[number][own]])

    def mean_of_best(some, others):
        return (some @ others.T).amax(dim=1).mean() if len(some) and len(others) else tokens.image.new_zeros(())

    image = torch.stack([torch.stack([mean_of_best(tokens.image[i], best_words[j]) for j in pairs]) for i in pairs])
    text = torch.stack(
        [torch.stack([mean_of_best(tokens.text[i][words[i]], best_images[j]) for j in pairs]) for i in pairs]
    )
    return image, text


def plain(tokens, log_scale, top_k, compat=False):
    own = torch.arange(len(tokens.real))
    losses = [F.cross_entropy(log_scale.exp() * side, own) for side in plain_sides(tokens, top_k, compat)]
    return (losses[0] + losses[1]) / 2


def with_gradients(function, inputs, real):
    image, text, log_scale = (item.clone().requires_grad_() for item in inputs)
    loss = function(unit_tokens(image, text, real), log_scale)
    return loss.detach(), *torch.autograd.grad(loss, (image, text, log_scale))


CASES = {
    "all tokens": (5, 7, 9, 9, False),
    "selected": (5, 7, 9, 3, False),
    "fewer tokens than selected": (6, 4, 5, 16, False),
    "one selected": (4, 6, 6, 1, False),
    "padding counts": (5, 20, 25, 16, True),
}


@pytest.mark.parametrize("tile", [1, 40, 1 << 18])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_equal_the_plain_form(case, tile, monkeypatch):
    pairs, patches, longest, top_k, compat = CASES[case]
    monkeypatch.setattr(_dense, "CPU_TILE", tile)
    image, text, real = raw_tokens(pairs, patches, longest)
    log_scale = torch.tensor([2.0], dtype=torch.float64)
    actual = with_gradients(
        lambda tokens, scale: dense_contrastive(tokens, scale, None, top_k, compat)[0], (image, text, log_scale), real
    )
    expected = with_gradients(lambda tokens, scale: plain(tokens, scale, top_k, compat), (image, text, log_scale), real)
    for own, wanted in zip(actual, expected, strict=True):
        assert torch.allclose(own, wanted, rtol=1e-10, atol=1e-12)
    single = with_gradients(
        lambda tokens, scale: dense_contrastive(tokens, scale, None, top_k, compat)[0],
        [item.float() for item in (image, text, log_scale)], real,
    )  # fmt: skip
    for own, wanted in zip(single, expected, strict=True):
        assert torch.allclose(own.double(), wanted, rtol=1e-4, atol=1e-5)


def test_the_gradient_is_that_of_finite_differences():
    image, text, real = raw_tokens(3, 4, 5)
    log_scale = torch.tensor([1.0], dtype=torch.float64)

    def loss(image, text, log_scale):
        return dense_contrastive(unit_tokens(image, text, real), log_scale, None, 3)[0]

    assert torch.autograd.gradcheck(loss, [item.requires_grad_() for item in (image, text, log_scale)])


def test_padding_is_neither_selected_nor_averaged():
    image, text, real = raw_tokens(5, 7, 9)
    tokens, log_scale = unit_tokens(image, text, real), torch.tensor([1.5], dtype=torch.float64)
    before = dense_contrastive(tokens, log_scale, None, 4)[0]
    noisy = torch.where(real[..., None], tokens.text, F.normalize(torch.randn_like(tokens.text), dim=-1))
    assert torch.equal(dense_contrastive(tokens._replace(text=noisy), log_scale, None, 4)[0], before)
    wider = DenseTokens(tokens.image, F.pad(tokens.text, (0, 0, 0, 3)), F.pad(real, (0, 3)))
    assert torch.allclose(dense_contrastive(wider, log_scale, None, 4)[0], before, rtol=1e-12)
    assert not torch.allclose(dense_contrastive(tokens, log_scale, None, 4, compat=True)[0], before)


def test_a_short_caption_repeats_its_best_word_and_an_empty_one_is_zero():
    tokens = unit_tokens(*raw_tokens(4, 6, 5))
    lengths = tokens.real.sum(dim=1)
    _, words = selected(tokens, 16)
    assert words.shape == (4, 16, WIDTH)
    for number, length in enumerate(lengths.tolist()):
        if not length:
            assert torch.equal(words[number], torch.zeros_like(words[number]))
            continue
        assert torch.equal(words[number, length:], words[number, :1].expand(16 - length, -1))
        own = {tuple(row) for row in tokens.text[number, :length].tolist()}
        assert {tuple(row) for row in words[number].tolist()} == own


def test_a_batch_of_nothing_but_padding_has_the_loss_of_chance_and_no_gradient():
    image, text, real = raw_tokens(3, 4, 5)
    image, text = image.requires_grad_(), text.requires_grad_()
    log_scale = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    loss, metrics = dense_contrastive(unit_tokens(image, text, torch.zeros_like(real)), log_scale, None)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(np.log(3))
    assert not image.grad.any() and not text.grad.any() and not log_scale.grad.any()
    assert metrics.keys() == {"logit_scale_dense", "dense_accuracy"}


def test_half_precision_is_compared_in_fp32():
    tokens = unit_tokens(*(item.float() if item.is_floating_point() else item for item in raw_tokens(4, 6, 5)))
    with torch.autocast("cpu", torch.bfloat16):
        inside = dense_contrastive(tokens, torch.tensor([3.0]), None)[0]
    assert torch.equal(inside, dense_contrastive(tokens, torch.tensor([3.0]), None)[0])


PAIRS = 6


def in_process(top_k):
    """This process's share, its captions padded to its own longest; gradients of its rows."""
    image, text, real = raw_tokens(PAIRS, 7, 9)
    share = PAIRS // size()
    rows = slice(rank_offset(share), rank_offset(share) + share)
    longest = int(real[rows].sum(dim=1).max())
    inputs = image[rows], text[rows, :longest], torch.tensor([2.0], dtype=torch.float64)
    results = with_gradients(
        lambda tokens, scale: dense_contrastive(tokens, scale, None, top_k)[0], inputs, real[rows, :longest]
    )
    return [item.numpy() for item in results]


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_equal_one(processes):
    expected = in_process(16)
    results = run_in_processes(processes, in_process, 16)
    share = PAIRS // processes
    assert np.mean([result[0] for result in results]) == pytest.approx(float(expected[0]), rel=1e-12)
    assert np.mean([result[3] for result in results]) == pytest.approx(float(expected[3][0]), rel=1e-10)
    for number, result in enumerate(results):
        rows = slice(number * share, (number + 1) * share)
        longest = result[2].shape[1]
        # Parameters' gradients are averaged over processes, so each carries its number of processes times the mean's.
        np.testing.assert_allclose(result[1] / processes, expected[1][rows], atol=1e-12)
        np.testing.assert_allclose(result[2] / processes, expected[2][rows, :longest], atol=1e-12)


def test_the_maps_are_linear_layers_with_bias_and_tokens_have_unit_length():
    maps = TokenMaps(5, 7, 16)
    image = Encoded(torch.zeros(2, 4), torch.zeros(2, 4), torch.randn(2, 3, 5), torch.ones(2, 3, dtype=torch.bool))
    text = Encoded(
        torch.zeros(2, 4), torch.zeros(2, 4), torch.randn(2, 6, 7), torch.arange(6) < torch.tensor([[2], [6]])
    )
    tokens = token_features(maps, image, text)
    assert tokens.image.shape == (2, 3, 16) and tokens.text.shape == (2, 6, 16) and torch.equal(tokens.real, text.mask)
    expected = F.normalize(image.tokens @ maps.image.weight.T + maps.image.bias, dim=-1)
    assert torch.allclose(tokens.image, expected, atol=1e-6)
    assert torch.allclose(tokens.text.norm(dim=-1), torch.ones(2, 6), atol=1e-6)
    assert TokenMaps(5, 7).text.out_features == 256


def test_the_whole_context_is_padded_with_the_padding_id():
    padded = whole_context(torch.tensor([[3, 4]]), 5, 1)
    assert padded.tolist() == [[3, 4, 1, 1, 1]]


@pytest.mark.parametrize("tile", [1 << 18, 30])
def test_padding_that_is_computed_and_left_out_changes_nothing(tile, monkeypatch):
    """The form of accelerators, where nothing says on the host how long captions are; one caption has no real token."""
    monkeypatch.setattr(_dense, "CPU_TILE", tile)
    source = torch.Generator().manual_seed(4)
    text, columns = torch.randn(5, 4, 3, generator=source).double(), torch.randn(6, 2, 3, generator=source).double()
    real = torch.arange(4) < torch.tensor([4, 2, 0, 1, 3])[:, None]
    weights, results = torch.randn(5, 6, generator=source).double(), []
    for rows, layout in (
        (lambda item: item[real], (None, None)),
        (lambda item: item.flatten(0, 1), (4, real.flatten())),
    ):
        own, others = text.clone().requires_grad_(), columns.clone().requires_grad_()
        means = _dense._LateInteraction.apply(rows(own), real.sum(dim=1), others, layout)
        (means * weights).sum().backward()
        results.append((means.detach(), own.grad, others.grad))
    for packed, padded in zip(*results, strict=True):
        assert torch.allclose(packed, padded, rtol=0, atol=1e-14)
