"""Attention on a CPU whose large products are in oneDNN: torch's own results, bit for bit, and no oneDNN inside."""

import threading

import pytest
import torch
import torch.nn.functional as F

from diptych.models import _cpu_attention
from diptych.models._layers import scaled_dot_product


@pytest.fixture(autouse=True)
def precision_is_restored():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def test_threads_that_overlap_leave_the_setting_as_it_was():
    torch.set_float32_matmul_precision("medium")
    first, second = _cpu_attention._default_products(), _cpu_attention._default_products()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)  # not the one that came last, as with two threads
    assert torch.get_float32_matmul_precision() == "highest"
    second.__exit__(None, None, None)
    assert torch.get_float32_matmul_precision() == "medium"


def test_attention_in_threads_is_right():
    torch.set_float32_matmul_precision("medium")
    query, key, value = (torch.randn(4, 4, 50, 64, generator=torch.Generator().manual_seed(n)) for n in range(3))
    expected, results = scaled_dot_product(query, key, value), []
    threads = [
        threading.Thread(target=lambda: results.extend(scaled_dot_product(query, key, value) for _ in range(20)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 80 and all(torch.equal(expected, item) for item in results)
    assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.parametrize(
    ("queries", "keys", "causal"), [(14, 14, True), (50, 50, False), (1, 50, False), (300, 300, False)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_torchs_under_highest(queries, keys, causal, dtype):
    source = torch.Generator().manual_seed(2)
    shapes = ((2, 4, queries, 64), (2, 4, keys, 64), (2, 4, keys, 64))
    inputs = [torch.randn(shape, generator=source).to(dtype).requires_grad_() for shape in shapes]
    results = {}
    for precision in ("highest", "medium"):
        torch.set_float32_matmul_precision(precision)
        mixed = scaled_dot_product(*inputs, causal=causal)
        results[precision] = [mixed, *torch.autograd.grad(mixed.float().square().sum(), inputs)]
        assert torch.get_float32_matmul_precision() == precision
    assert all(torch.equal(a, b) for a, b in zip(results["highest"], results["medium"], strict=True))
    reference = F.scaled_dot_product_attention(*(item.double() for item in inputs), is_causal=causal)
    torch.testing.assert_close(
        results["medium"][0].double(), reference, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-2
    )


def test_it_is_used_under_medium_only_and_computes_under_highest(monkeypatch):
    seen = []
    kernel = _cpu_attention._Flash.forward

    def recorded(ctx, *inputs):
        result = kernel(ctx, *inputs)
        seen.append(torch.get_float32_matmul_precision())
        return result

    monkeypatch.setattr(_cpu_attention._Flash, "forward", staticmethod(recorded))
    heads = torch.randn(1, 2, 5, 8)
    for precision, calls in (("highest", 0), ("medium", 1)):
        torch.set_float32_matmul_precision(precision)
        scaled_dot_product(heads, heads, heads)
        assert len(seen) == calls
    scaled_dot_product(heads, heads, heads, mask=torch.ones(5, 5, dtype=torch.bool))
    assert len(seen) == 1
