"""The parts of a transformer against their formulas, written out with plain matrix products in float64."""

import math

import pytest
import torch
from torch.nn import functional

from diptych.models._layers import (
    ACTIVATIONS,
    Attention,
    Block,
    attention,
    join_heads,
    rows,
    run_blocks,
    scaled_dot_product,
    split_heads,
)
from diptych.models._packing import FullAttention, LastTokenPool, PaddedCausal

BATCH, LENGTH, WIDTH, HEADS, HIDDEN = 3, 5, 12, 4, 20


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def formula(query, key, value, heads, allowed=None):
    """softmax(q k^T / sqrt(d)) v, head by head, token by token."""
    size = query.shape[-1] // heads
    result = torch.zeros_like(query)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = query[..., part] @ key[..., part].transpose(1, 2) / math.sqrt(size)
        if allowed is not None:
            scores = scores.masked_fill(~allowed, -math.inf)
        result[..., part] = scores.softmax(-1) @ value[..., part]
    return result


def filled(module, seed=0):
    """The module in float64 with random parameters of a size that makes every term count."""
    module = module.double()
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(0.5 * random(*parameter.shape, seed=seed + number))
    return module


def test_heads_are_consecutive_slices_of_the_width():
    tokens = random(BATCH, LENGTH, WIDTH)
    split = split_heads(tokens, HEADS)
    assert split.shape == (BATCH, HEADS, LENGTH, WIDTH // HEADS)
    assert torch.equal(split[1, 2, 3], tokens[1, 3, 6:9])
    assert torch.equal(join_heads(split), tokens)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_its_formula(causal):
    query, key, value = (random(BATCH, LENGTH, WIDTH, seed=seed) for seed in range(3))
    allowed = torch.ones(LENGTH, LENGTH).tril().bool() if causal else None
    expected = formula(query, key, value, HEADS, allowed)
    assert torch.allclose(attention(query, key, value, HEADS, causal=causal), expected, atol=1e-12)


def test_attention_takes_fewer_queries_than_keys():
    query, key, value = (
        random(BATCH, 1, WIDTH),
        random(BATCH, LENGTH, WIDTH, seed=1),
        random(BATCH, LENGTH, WIDTH, seed=2),
    )
    assert torch.allclose(attention(query, key, value, HEADS), formula(query, key, value, HEADS), atol=1e-12)


def test_a_mask_is_true_where_a_query_attends():
    split = [split_heads(random(BATCH, LENGTH, WIDTH, seed=seed), HEADS) for seed in range(3)]
    mask = torch.arange(LENGTH)[None, :] < torch.tensor([1, 3, 5])[:, None]
    expected = formula(*(join_heads(part) for part in split), HEADS, mask[:, None, :].expand(-1, LENGTH, -1))
    assert torch.allclose(join_heads(scaled_dot_product(*split, mask[:, None, None])), expected, atol=1e-12)
    causal = formula(*(join_heads(part) for part in split), HEADS, torch.ones(LENGTH, LENGTH).tril().bool())
    assert torch.allclose(join_heads(scaled_dot_product(*split, causal=True)), causal, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_fp32_and_rounded_once(dtype):
    parts = [split_heads(random(BATCH, 40, WIDTH, seed=seed), HEADS).to(dtype) for seed in range(3)]
    mask = (torch.arange(40) < 33)[None]
    for arguments in ({}, {"causal": True}, {"mask": mask}):
        result = scaled_dot_product(*parts, **arguments)
        assert result.dtype == dtype
        assert torch.equal(result, scaled_dot_product(*(part.float() for part in parts), **arguments).to(dtype))
    expected = scaled_dot_product(*parts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(scaled_dot_product(*parts), expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gelu", lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))),
        ("quickgelu", lambda x: x / (1 + torch.exp(-1.702 * x))),
        ("gelu_tanh", lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
    ],
)
def test_activations_are_their_formulas(name, expected):
    x = torch.linspace(-6, 6, 101, dtype=torch.float64)
    assert torch.allclose(ACTIVATIONS[name]()(x), expected(x), atol=1e-12)


def block_formula(block, x, attended):
    """Pre-norm residual block; ``attended`` gives the tokens' attention from q, k and v."""

    def norm(layer, value):
        centered = value - value.mean(-1, keepdim=True)
        deviation = (centered.pow(2).mean(-1, keepdim=True) + layer.eps).sqrt()
        return centered / deviation * layer.weight + layer.bias

    def linear(layer, value):
        return value @ layer.weight.T + layer.bias

    scales = (1.0, 1.0) if block.layer_scale is None else (block.scale_1, block.scale_2)
    normed, parts = norm(block.ln_1, x), block.attention
    x = x + scales[0] * linear(parts.out, attended(*(linear(layer, normed) for layer in (parts.q, parts.k, parts.v))))
    hidden = functional.gelu(linear(block.mlp_in, norm(block.ln_2, x)))
    return x + scales[1] * linear(block.mlp_out, hidden)


@pytest.mark.parametrize("layer_scale", [None, 0.1])
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_a_block_is_its_formula(layer_scale, eps):
    block = filled(Block(WIDTH, HEADS, HIDDEN, "gelu", eps=eps, layer_scale=layer_scale))
    assert block.ln_1.eps == block.ln_2.eps == eps
    x = random(BATCH, LENGTH, WIDTH, seed=50)
    expected = block_formula(block, x, lambda q, k, v: formula(q, k, v, HEADS))
    assert torch.allclose(block(x, FullAttention()), expected, atol=1e-10)


@pytest.mark.parametrize(
    ("plan", "index"),
    [
        (FullAttention(), torch.tensor([0, 0, 0])),
        (LastTokenPool(), torch.tensor([4, 4, 4])),
        (PaddedCausal(torch.tensor([5, 2, 3])), torch.tensor([4, 1, 2])),
    ],
)
def test_the_pooled_token_alone_equals_its_row_of_all_tokens(plan, index):
    blocks = [filled(Block(WIDTH, HEADS, HIDDEN, "quickgelu"), seed=20 * number) for number in range(3)]
    x = random(BATCH, LENGTH, WIDTH, seed=7)
    whole = run_blocks(blocks, x, plan)
    expected = x
    for block in blocks:
        expected = block(expected, plan)
    assert torch.equal(whole, expected)
    pooled = run_blocks(blocks, x, plan, only_pooled=True)
    assert torch.allclose(pooled, whole[torch.arange(BATCH), index], atol=1e-12)
    assert pooled.shape == (BATCH, WIDTH)


@pytest.mark.parametrize("only_pooled", [False, True])
def test_checkpointing_changes_neither_results_nor_gradients(only_pooled):
    blocks = torch.nn.ModuleList(filled(Block(WIDTH, HEADS, HIDDEN, "gelu"), seed=20 * number) for number in range(2))
    calls = []
    blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    results = []
    for checkpointing in (False, True):
        blocks.zero_grad()
        x = random(BATCH, LENGTH, WIDTH, seed=7).requires_grad_()
        y = run_blocks(blocks, x, FullAttention(), only_pooled=only_pooled, checkpointing=checkpointing)
        y.sum().backward()
        results.append([y, x.grad, *(parameter.grad.clone() for parameter in blocks.parameters())])
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))
    assert len(calls) == 3  # once plainly, twice where it is recomputed


def test_checkpointing_is_off_by_default_and_needs_no_gradient_of_its_input():
    block = filled(Block(WIDTH, HEADS, HIDDEN, "gelu"))
    calls = []
    block.register_forward_pre_hook(lambda *_: calls.append(1))
    x = random(BATCH, LENGTH, WIDTH, seed=7)
    run_blocks([block], x, FullAttention()).sum().backward()
    assert len(calls) == 1
    expected = [parameter.grad.clone() for parameter in block.parameters()]
    block.zero_grad()
    run_blocks([block], x, FullAttention(), checkpointing=True).sum().backward()
    assert all(torch.equal(a, b.grad) for a, b in zip(expected, block.parameters(), strict=True))


def test_an_attention_layer_has_four_linears_with_biases():
    layer = Attention(WIDTH, HEADS)
    for linear in (layer.q, layer.k, layer.v, layer.out):
        assert linear.weight.shape == (WIDTH, WIDTH)
        assert linear.bias.shape == (WIDTH,)
    block = Block(WIDTH, HEADS, HIDDEN, "gelu")
    assert block.mlp_in.weight.shape == (HIDDEN, WIDTH)
    assert block.mlp_out.weight.shape == (WIDTH, HIDDEN)
    assert block.ln_1.eps == block.ln_2.eps == 1e-5
    assert not hasattr(block, "scale_1")


@pytest.mark.parametrize("shape", [(6, 4), (6, 2, 3)])
def test_rows_are_those_of_indexing_and_so_are_their_gradients(shape):
    table = random(*shape).requires_grad_()
    indices = torch.tensor([5, 0, 0, 3, 5, 5])
    weight = random(6, *shape[1:], seed=3)
    assert torch.equal(rows(table, indices), table[indices])
    (gradient,) = torch.autograd.grad((rows(table, indices) * weight).sum(), table)
    (expected,) = torch.autograd.grad((table[indices] * weight).sum(), table)
    assert torch.allclose(gradient, expected, atol=1e-14)
