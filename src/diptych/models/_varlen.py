"""Attention over sequences of unequal length that stand one after another: torch's kernel, and its reference.

``torch.nn.attention.varlen.varlen_attn`` came with torch 2.10; what makes it causal has another name since 2.11. It runs on
accelerators that say so (``Abilities.varlen_attention``), in half precision. In main memory the reference stands in, a loop over
sequences that takes the same arguments: correct, and slow. Which sequences there are is a plan's (``_causal``).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diptych.models._cpu_attention import in_main_memory
from diptych.models._layers import scaled_dot_product

Kernel = Callable[..., Tensor]
"""``varlen_attn``: query [T, heads, d], key and value [S, heads, d], where their sequences begin (int32), the longest of each."""


def kernel_for(query: Tensor) -> Kernel:
    """The kernel of the device of ``query``."""
    return reference if query.is_cpu or in_main_memory(query) else torch_kernel()


@functools.cache
def torch_kernel() -> Kernel:
    """torch's own. Raises ImportError before torch 2.10."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn  # type: ignore[return-value]  # one tensor, unless more is asked for


@functools.cache
def causal_option(kernel: Kernel) -> dict[str, Any]:
    """The argument that makes the kernel causal, by the name that its release of torch has for it."""
    return {"window_size": (-1, 0)} if "window_size" in inspect.signature(kernel).parameters else {"is_causal": True}


def reference(*arguments: Any, window_size: tuple[int, int] = (-1, -1)) -> Tensor:
    """``varlen_attn`` by one call of ordinary attention for each sequence; causal with a window of (-1, 0)."""
    query, key, value, begins_q, begins_k, _, _ = arguments
    queries = [part.transpose(0, 1)[None] for part in query.split(begins_q.diff().tolist())]
    pairs = zip(*(item.split(begins_k.diff().tolist()) for item in (key, value)), strict=True)
    mixed = [
        scaled_dot_product(own, keys.transpose(0, 1)[None], values.transpose(0, 1)[None], causal=window_size == (-1, 0))
        for own, (keys, values) in zip(queries, pairs, strict=True)
    ]
    return torch.cat([item[0].transpose(0, 1) for item in mixed])
