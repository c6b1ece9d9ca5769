"""Every form of the causal text tower equals the padded reference, values and gradients; and takes one attention call a layer."""

from __future__ import annotations

import collections
import contextlib
import inspect
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from diptych.errors import ConfigError
from diptych.models import SharedPrefixes, VarlenCausal, attention_as_elsewhere, create_model, model_config
from diptych.models import _causal as causal
from diptych.models import _observed as observed
from diptych.models import _varlen as varlen
from diptych.text import plan_buckets, plan_groups, plan_packed

CONTEXT, VOCABULARY = 77, 600
PLANS = {
    "groups": plan_groups,
    "varlen": lambda lengths, padded: plan_packed(lengths, padded, CONTEXT),
    "buckets": plan_buckets,
}
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-13}

lengths_of_texts = st.one_of(
    st.lists(st.integers(1, CONTEXT), min_size=1, max_size=7),
    st.tuples(st.integers(1, CONTEXT), st.integers(1, 5)).map(lambda pair: [pair[0]] * pair[1]),
)


def texts(lengths, padded):
    ids = torch.randint(
        1, VOCABULARY - 1, (len(lengths), padded), generator=torch.Generator().manual_seed(sum(lengths))
    )
    for row, length in zip(ids, lengths, strict=True):
        row[length - 1], row[length:] = VOCABULARY - 1, 0
    return ids


@pytest.fixture(scope="module", params=TOLERANCE, ids=str)
def tower(request):
    return build(request.param)


def build(dtype=torch.float32):
    torch.manual_seed(0)
    config = model_config("tiny-test")
    return create_model(replace(config, text=replace(config.text, vocab_size=VOCABULARY)), dtype=dtype).text


def results(tower, ids, lengths, layout="auto", **options):
    """Features and the gradients of every parameter."""
    tower.layout = layout
    tower.zero_grad()
    features = tower(ids, lengths, **options).pooled
    weights = torch.linspace(-1, 2, features.numel(), dtype=features.dtype).view(features.shape)
    (features * weights).sum().backward()
    tower.layout = "auto"
    return [features.detach(), *(item.grad.clone() for item in tower.parameters())]


def assert_equal(tower, actual, expected):
    tolerance = TOLERANCE[expected[0].dtype]
    for result, reference in zip(actual, expected, strict=True):
        assert (result - reference).abs().max() <= tolerance * max(1.0, float(reference.abs().max()))


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
@pytest.mark.parametrize("form", PLANS)
@settings(max_examples=12, deadline=None)
@given(lengths=lengths_of_texts, more=st.integers(0, 20))
def test_every_form_equals_the_padded_reference(tower, form, elsewhere, lengths, more):
    padded = min(CONTEXT, max(lengths) + more)
    ids, counts = texts(lengths, padded), torch.tensor(lengths)
    expected = results(tower, ids, counts, "padded")
    with attention_as_elsewhere() if elsewhere else contextlib.nullcontext():
        assert_equal(tower, results(tower, ids, counts, plan=PLANS[form](counts, padded)), expected)


@settings(max_examples=12, deadline=None)
@given(lengths=lengths_of_texts)
def test_an_accelerator_needs_no_plan_to_be_right(tower, lengths):
    ids, counts = texts(lengths, CONTEXT), torch.tensor(lengths)
    expected = results(tower, ids, counts, "padded")
    with attention_as_elsewhere():
        assert_equal(tower, results(tower, ids, counts), expected)
        shared = SharedPrefixes(torch.arange(len(lengths)), torch.zeros(len(lengths), dtype=torch.int64))
        assert_equal(tower, results(tower, ids, counts, prefix=shared), expected)


def test_groups_of_a_plan_are_those_of_the_tower_itself_bit_for_bit(tower):
    lengths = torch.tensor([5, 77, 5, 1, 20, 20, 5])
    ids = texts(lengths.tolist(), CONTEXT)
    own, planned = results(tower, ids, lengths), results(tower, ids, lengths, plan=plan_groups(lengths, CONTEXT))
    assert all(torch.equal(left, right) for left, right in zip(own, planned, strict=True))


@pytest.mark.parametrize("form", PLANS)
def test_a_plan_of_other_ids_is_refused(tower, form):
    lengths = torch.tensor([3, 4])
    plan = PLANS[form](lengths, 8)
    for ids in (texts([3, 4, 5], 8), texts([3, 4], 9)):
        with pytest.raises(ConfigError, match=r"a plan of texts \[2, 8\] was given with ids of shape"):
            tower(ids, torch.full((len(ids),), 3), plan=plan)


class Counted(TorchDispatchMode):
    """Operators by name."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.counts[str(function)] += 1
        return function(*arguments, **(keywords or {}))


def one_kernel(*arguments, window_size=(-1, -1)):
    """A kernel of unequal lengths as an accelerator has it: a single operator, here one that computes nothing."""
    return torch.ops.aten.erf(arguments[0])


@pytest.fixture
def counted(monkeypatch):
    """Counts of one forward call; counting itself must not choose the form that a graph takes."""
    monkeypatch.setattr(observed, "is_in_torch_dispatch_mode", lambda: False)
    monkeypatch.setattr(causal, "kernel_for", lambda query: one_kernel)

    def count(call):
        with attention_as_elsewhere(), Counted() as mode:
            call()
        return mode.counts

    return count


@pytest.mark.parametrize("form", ["varlen", "buckets"])
def test_an_accelerators_form_has_one_attention_call_per_layer_and_no_mask(counted, form):
    tower = build()
    lengths = torch.tensor([3, 7, 7, 12, 30])
    ids, plan = texts(lengths.tolist(), 32), PLANS[form](lengths, 32)
    counts = counted(lambda: tower(ids, lengths, plan=plan))
    kernel = "aten.erf.default" if form == "varlen" else "aten._scaled_dot_product_flash_attention_for_cpu.default"
    attention = {name: number for name, number in counts.items() if "attention" in name or "erf" in name}
    assert attention == {kernel: tower.config.text.layers}
    # The four projections of a block are two products, q, k and v by one; the last layer's q, of varlen, is one more.
    layers = tower.config.text.layers
    assert counts["aten.addmm.default"] == 4 * layers + (form == "varlen")
    assert not {"aten.masked_fill.Scalar", "aten.where.self", "aten.tril.default", "aten.lt.Tensor"} & set(counts)


@pytest.mark.parametrize("form", ["varlen", "buckets"])
def test_with_a_plan_no_number_is_read_back(counted, form):
    tower = build()
    lengths = torch.tensor([3, 7, 12])
    ids, plan = texts(lengths.tolist(), 16), PLANS[form](lengths, 16)
    checked = counted(lambda: tower.check_ids(ids))  # its least and largest id, in main memory only
    counts = counted(lambda: tower(ids, lengths, plan=plan))
    counts.subtract(checked)
    assert not [name for name, number in counts.items() if number and ("local_scalar" in name or "nonzero" in name)]
    assert "aten._local_scalar_dense.default" in counted(lambda: tower(ids, lengths))  # so it would be seen


@pytest.mark.parametrize("causal_attention", [False, True])
def test_the_reference_kernel_attends_within_each_sequence(causal_attention):
    query, key, value = (torch.randn(9, 2, 4, dtype=torch.float64) for _ in range(3))
    begins = torch.tensor([0, 2, 3, 9], dtype=torch.int32)
    window = {"window_size": (-1, 0)} if causal_attention else {}
    mixed = varlen.reference(query, key, value, begins, begins, 6, 6, **window)
    same = torch.tensor([0, 0, 1, 2, 2, 2, 2, 2, 2])
    allowed = same[:, None] == same
    if causal_attention:
        allowed &= torch.ones(9, 9, dtype=torch.bool).tril()
    scores = torch.einsum("qhd,khd->hqk", query, key) / 2
    expected = torch.einsum("hqk,khd->qhd", scores.masked_fill(~allowed, -torch.inf).softmax(-1), value)
    assert torch.allclose(mixed, expected, atol=1e-12)


def test_what_makes_a_kernel_causal_is_named_as_its_release_has_it():
    def before(*sequences, is_causal=False, return_aux=None):  # torch 2.10
        return sequences[0]

    assert varlen.causal_option(before) == {"is_causal": True}
    assert varlen.causal_option(varlen.reference) == {"window_size": (-1, 0)}


# --- torch's own function, on a kernel for the CPU that is registered here ---------------------------


def pairs_of_sequences(begins_q, begins_k):
    bounds = zip(begins_q.tolist(), begins_q.tolist()[1:], begins_k.tolist(), begins_k.tolist()[1:], strict=False)
    return [(slice(a, b), slice(c, d)) for a, b, c, d in bounds]


def probabilities(query, key, is_causal):
    scores = torch.einsum("qhd,khd->hqk", query, key) * query.shape[-1] ** -0.5
    if is_causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[1:], dtype=torch.bool).tril(), -torch.inf)
    return scores.softmax(-1)


def forward(query, key, value, *rest):
    begins_q, begins_k, _, _, is_causal = rest[:5]
    out = torch.empty_like(query)
    for own, other in pairs_of_sequences(begins_q, begins_k):
        out[own] = torch.einsum("hqk,khd->qhd", probabilities(query[own], key[other], is_causal), value[other])
    return out, query.new_empty(query.shape[1], len(query), dtype=torch.float32), torch.zeros(2, dtype=torch.uint64)


def backward(grad_out, query, key, value, *rest):
    # As of the real kernel, gradients of tokens outside of every sequence are whatever memory held.
    gradients = [torch.full_like(item, torch.nan) for item in (query, key, value)]
    _, _, begins_q, begins_k, _, _, is_causal = rest[:7]
    for own, other in pairs_of_sequences(begins_q, begins_k):
        weights, grad = probabilities(query[own], key[other], is_causal), grad_out[own]
        of_weights = torch.einsum("qhd,khd->hqk", grad, value[other])
        of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True)) * query.shape[-1] ** -0.5
        gradients[0][own] = torch.einsum("hqk,khd->qhd", of_scores, key[other])
        gradients[1][other] = torch.einsum("hqk,qhd->khd", of_scores, query[own])
        gradients[2][other] = torch.einsum("hqk,qhd->khd", weights, grad)
    return tuple(gradients)


@pytest.fixture(scope="module")
def torch_function():
    module = pytest.importorskip("torch.nn.attention.varlen", reason="torch has it from 2.10 on")
    if "window_size" not in inspect.signature(module._varlen_attn_backward._init_fn).parameters:
        pytest.skip("the operators behind the function have other arguments in this release")
    module._varlen_attn.register_kernel("cpu", forward)
    module._varlen_attn_backward.register_kernel("cpu", backward)
    return varlen.torch_kernel()


@pytest.mark.parametrize("lengths", [[5], [3, 77, 1, 14, 14, 2, 9], [16] * 8, list(range(1, 60))])
def test_torchs_own_function_is_called_as_it_takes_it(tower, torch_function, monkeypatch, lengths):
    ids, counts = texts(lengths, max(lengths)), torch.tensor(lengths)
    expected = results(tower, ids, counts, "padded")
    monkeypatch.setattr(causal, "kernel_for", lambda query: torch_function)
    actual = results(tower, ids, counts, plan=plan_packed(counts, max(lengths), CONTEXT))
    assert_equal(tower, actual, expected)
    assert VarlenCausal(plan_packed(counts, max(lengths), CONTEXT), torch_function).kernel is varlen.torch_kernel()
