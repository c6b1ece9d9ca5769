"""Attention in main memory with its small products in torch's default library, whatever computes the large ones.

``torch.set_float32_matmul_precision("medium")`` sends fp32 products to oneDNN (see ``devices/cpu.py``), those inside torch's
attention kernel too. They are a few rows by 64 columns, and oneDNN's preparation costs more than the product: forward and
backward of 50 tokens take five times as long. Not another attention: the same kernel of torch, forward and backward, and
equal to ``F.scaled_dot_product_attention`` under "highest" bit for bit.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_elsewhere = contextvars.ContextVar("_elsewhere", default=False)


@contextlib.contextmanager
def attention_as_elsewhere() -> Iterator[None]:
    """Attention as accelerators compute it, also of tensors in main memory: for counting what it holds there, not for speed."""
    token = _elsewhere.set(True)
    try:
        yield
    finally:
        _elsewhere.reset(token)


def in_main_memory(queries: Tensor) -> bool:
    """Whether attention of ``queries`` takes the forms that suit a CPU."""
    # A graph cannot hold the question of a context; nobody counts memory inside of one.
    return queries.is_cpu and (torch.compiler.is_compiling() or not _elsewhere.get())


def small_products_are_slow(queries: Tensor) -> bool:
    """Whether attention of ``queries`` should be computed by this file."""
    if not in_main_memory(queries) or queries.dtype != torch.float32:
        return False
    return bool(_inside) or torch.get_float32_matmul_precision() == "medium"


def cpu_attention(queries: Tensor, keys: Tensor, values: Tensor, causal: bool = False) -> Tensor:
    """Softmax attention of fp32 heads [B, heads, L, d] without a mask; queries may be fewer than keys. Differentiable once."""
    if not queries.numel():  # the kernel divides by the length
        return queries * 1.0
    return _Flash.apply(queries, keys, values, causal)  # type: ignore[no-any-return]


_lock = threading.Lock()
_inside: list[str] = []  # the setting to restore, once for each thread that is in the kernel


@contextlib.contextmanager
def _default_products() -> Iterator[None]:
    """The setting belongs to the process: the first thread that comes in changes it, the last one out restores it."""
    with _lock:
        before = _inside[0] if _inside else torch.get_float32_matmul_precision()
        _inside.append(before)
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        with _lock:
            _inside.pop()
            if not _inside:
                torch.set_float32_matmul_precision(before)


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        queries, keys, values, causal = inputs
        with _default_products():
            mixed, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                queries, keys, values, 0.0, causal
            )
        ctx.save_for_backward(queries, keys, values, mixed, log_sum)
        ctx.causal = causal
        return mixed  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        with _default_products():
            gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                gradient, *ctx.saved_tensors, 0.0, ctx.causal
            )
        return (*gradients, None)
