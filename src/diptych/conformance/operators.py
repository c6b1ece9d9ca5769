"""Every operator that the models, the loss and the scores use, with inputs that reveal faults: data for ``selftest``.

Each case is a function of tensors. Its reference is the same function on the CPU in float64; forward and backward must
agree to ``limit`` times the largest value. A limit is not a claim of accuracy: accelerators may compute sums of fp32 products
in shorter formats (10 bits of mantissa) by default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

EXACT = 0.0
ELEMENTWISE = 1e-4
PRODUCTS = 4e-3


@dataclass(frozen=True)
class Operator:
    """A case: ``function`` of ``inputs``. Floating-point inputs get a gradient, integers and bools do not."""

    name: str
    function: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    limit: float = ELEMENTWISE


def operators() -> Iterator[Operator]:
    """All cases, with the same values each time."""
    source = torch.Generator().manual_seed(20_231)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source)

    def below(limit: int, *shape: int) -> Tensor:
        return torch.randint(0, limit, shape, generator=source)

    yield from _products(normal)
    yield from _norms_and_activations(normal)
    yield from _pixels(normal, below)
    yield from _selection(normal, below)
    yield from _losses(normal, below)


def _products(normal: Callable[..., Tensor]) -> Iterator[Operator]:
    heads = (normal(2, 3, 7, 8), normal(2, 3, 7, 8), normal(2, 3, 7, 8))
    mask = torch.arange(7) < torch.tensor([7, 4])[:, None]
    yield Operator("linear", F.linear, (normal(5, 16), normal(12, 16), normal(12)), PRODUCTS)
    yield Operator("matmul", torch.matmul, (normal(6, 16), normal(16, 10)), PRODUCTS)
    yield Operator("matmul, batched", torch.matmul, (normal(3, 6, 16), normal(3, 16, 10)), PRODUCTS)
    yield Operator(
        "conv2d, patches",
        lambda x, w: F.conv2d(x, w, stride=4).flatten(2),
        (normal(2, 3, 16, 16), normal(8, 3, 4, 4)),
        PRODUCTS,
    )
    yield Operator(
        "conv2d, padded", lambda x, w: F.conv2d(x, w, padding=1), (normal(2, 4, 9, 9), normal(6, 4, 3, 3)), PRODUCTS
    )
    yield Operator(
        "conv2d, strided",
        lambda x, w: F.conv2d(x, w, stride=2, padding=1),
        (normal(2, 3, 9, 9), normal(6, 3, 3, 3)),
        PRODUCTS,
    )
    yield Operator("attention", F.scaled_dot_product_attention, heads, PRODUCTS)
    yield Operator(
        "attention, causal", lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), heads, PRODUCTS
    )
    yield Operator(
        "attention, masked",
        lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m),
        (*heads, mask[:, None, None]),
        PRODUCTS,
    )
    yield Operator(
        "attention, single query",
        F.scaled_dot_product_attention,
        (heads[0][:, :, :1].contiguous(), *heads[1:]),
        PRODUCTS,
    )


def _norms_and_activations(normal: Callable[..., Tensor]) -> Iterator[Operator]:
    def batch_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        mean, variance = torch.zeros_like(weight).detach(), torch.ones_like(weight).detach()
        trained = F.batch_norm(x, mean, variance, weight, bias, training=True)
        # The running statistics are part of the result: used at once, as evaluation does.
        return trained + F.batch_norm(x, mean, variance, weight, bias, training=False)

    yield Operator(
        "layer norm", lambda x, w, b: F.layer_norm(x, (16,), w, b), (3 + 2 * normal(2, 5, 16), normal(16), normal(16))
    )
    yield Operator("batch norm", batch_norm, (1 + normal(4, 6, 5, 5), normal(6), normal(6)))
    yield Operator("gelu", F.gelu, (3 * normal(4, 33),))
    yield Operator("quick gelu", lambda x: x * torch.sigmoid(1.702 * x), (3 * normal(4, 33),))
    yield Operator("relu", torch.relu, (normal(4, 33),))
    yield Operator("softmax", lambda x: F.softmax(x, dim=-1), (5 * normal(4, 33),))
    yield Operator("log softmax", lambda x: F.log_softmax(x, dim=-1), (5 * normal(4, 33),))
    yield Operator("exp", torch.exp, (normal(17),))
    yield Operator("clamp", lambda x: x.clamp(0.0, 1.0), (2 * normal(33),))
    yield Operator("normalize", lambda x: F.normalize(x, dim=-1), (normal(5, 32),))
    yield Operator("mean and sum", lambda x: x.mean(dim=(1, 2)) + x.sum(dim=(1, 2)), (normal(3, 5, 7),))


def _pixels(normal: Callable[..., Tensor], below: Callable[..., Tensor]) -> Iterator[Operator]:
    mean, deviation = normal(3, 1, 1).abs(), 0.2 + normal(3, 1, 1).abs()
    yield Operator(
        "uint8 to normalized",
        lambda x, m, s: (x.to(m.dtype) / 255 - m) / s,
        (below(256, 2, 3, 8, 8).to(torch.uint8), mean, deviation),
    )
    yield Operator("average pooling", lambda x: F.avg_pool2d(x, 2), (normal(2, 4, 8, 8),))
    yield Operator(
        "bicubic resize",
        lambda x: F.interpolate(x, size=(10, 7), mode="bicubic", align_corners=False),
        (normal(1, 4, 6, 6),),
    )


def _selection(normal: Callable[..., Tensor], below: Callable[..., Tensor]) -> Iterator[Operator]:
    rows, columns = below(9, 6), below(9, 4, 2)
    shuffled = torch.argsort(normal(40))
    yield Operator("embedding", F.embedding, (below(20, 3, 5), normal(20, 8)))
    yield Operator("index_select", lambda x, i: x.index_select(0, i), (normal(9, 5), rows))
    yield Operator("index by two tensors", lambda x, i: x[torch.arange(6, device=i.device), i], (normal(6, 9, 4), rows))
    yield Operator("gather", lambda x, i: x.gather(1, i), (normal(4, 9), columns))
    yield Operator("cat and split", lambda x, y: torch.cat([*x.split([2, 3]), y], dim=0), (normal(5, 4), normal(2, 4)))
    yield Operator("stack", lambda x, y: torch.stack([x, y]).sum(dim=0), (normal(3), normal(3)))
    yield Operator("transpose and flatten", lambda x: x.transpose(1, 2).flatten(2).contiguous(), (normal(2, 3, 4, 5),))
    yield Operator("argmax", lambda x: x.argmax(dim=1), (normal(6, 11),), EXACT)
    yield Operator("argsort", lambda x: torch.argsort(x, stable=True), (shuffled // 4,), EXACT)
    yield Operator("sort", lambda x: x.sort(dim=1, descending=True).values, (normal(4, 19),))
    yield Operator("topk", lambda x: x.topk(5, dim=1).indices, (shuffled.float().view(4, 10),), EXACT)
    yield Operator("cumsum", lambda x: x.cumsum(dim=0), (below(9, 12),), EXACT)
    yield Operator("compare and count", lambda x, y: (x > y).sum(dim=1), (normal(5, 9), normal(5, 1)), EXACT)
    yield Operator("where", lambda c, x: torch.where(c, x, torch.zeros_like(x)), (normal(5, 9) > 0, normal(5, 9)))
    yield Operator("masked fill", lambda x, c: x.masked_fill(c, -2.0), (normal(5, 9), normal(5, 9) > 0))
    yield Operator("repeat_interleave", lambda x, n: torch.repeat_interleave(x, n, dim=0), (normal(4, 3), below(4, 4)))


def _losses(normal: Callable[..., Tensor], below: Callable[..., Tensor]) -> Iterator[Operator]:
    def contrastive(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        logits = scale.exp() * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
        target = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    yield Operator("cross entropy", F.cross_entropy, (5 * normal(6, 11), below(11, 6)))
    yield Operator("log sigmoid", F.logsigmoid, (5 * normal(6, 11),))
    yield Operator("contrastive loss", contrastive, (normal(8, 16), normal(8, 16), torch.tensor([2.66])), PRODUCTS)
