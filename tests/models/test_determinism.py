"""Equal runs are equal: forward and backward of every tower, repeated on several threads, bit for bit.

Not about seeds: the weights and the inputs are the same, so what differs would be the order in which threads add. Sizes
are above torch's grain (32,768 elements), below which it does not split the work and every order is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from diptych.models import SharedPrefixes, TwoTower, create_model, model_config

REPETITIONS = 5
BATCH = 12


@pytest.fixture(autouse=True, params=[2, 4], ids=lambda count: f"{count}-threads")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Several threads in this test only: the others run on a single thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def build(preset: str, vision: dict[str, object] | None = None, text: dict[str, object] | None = None) -> TwoTower:
    """A model in training mode with a tower of 512 channels, so that a row of positions times captions passes the grain."""
    torch.manual_seed(0)
    config = model_config(preset)
    config = replace(config, vision=replace(config.vision, **(vision or {})), text=replace(config.text, **(text or {})))
    return create_model(config).train()


def captions(model: TwoTower, shared: int = 0) -> tuple[Tensor, Tensor]:
    """Ids [B, L] of different lengths and those lengths; all begin with the same ``shared`` ids."""
    generator = torch.Generator().manual_seed(2)
    width, vocab = min(20, model.config.text.context_length), model.config.text.vocab_size
    lengths = torch.randint(shared + 2, width + 1, (BATCH,), generator=generator)
    ids = torch.randint(1, vocab - 1, (BATCH, width), generator=generator)
    ids[:, :shared] = ids[0, :shared]
    ids[torch.arange(BATCH), lengths - 1] = vocab - 1
    return ids.where(torch.arange(width) < lengths[:, None], 0), lengths


def images(model: TwoTower) -> Tensor:
    side = model.config.vision.image_size
    return torch.randint(0, 256, (BATCH, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


VIT = {"image_size": 64, "patch_size": 8, "width": 512, "heads": 8}
RESNET = {"image_size": 64, "width": 32, "heads": 16}
TEXT = {"width": 512, "heads": 8, "vocab_size": 2000}
SEEDS = torch.arange(BATCH) * 7919


def vit(model: TwoTower) -> Tensor:
    return model.image(images(model)).pooled


def vit_tokens(model: TwoTower) -> Tensor:
    encoded = model.image(images(model), return_tokens=True)
    return model.image.project_tokens(encoded.tokens).mean(dim=1) + encoded.pooled


def vit_dropout(model: TwoTower) -> Tensor:
    model.image.patch_dropout = 0.5
    return model.image(images(model), seeds=SEEDS).pooled


def checkpointed(encode: Callable[[TwoTower], Tensor]) -> Callable[[TwoTower], Tensor]:
    def run(model: TwoTower) -> Tensor:
        model.checkpoint_activations()
        return encode(model)

    return run


def packed(model: TwoTower) -> Tensor:
    return model.text(*captions(model)).pooled


def padded(model: TwoTower) -> Tensor:
    model.text.attention = "padded"
    return model.text(*captions(model)).pooled


def text_tokens(model: TwoTower) -> Tensor:
    encoded = model.text(*captions(model), return_tokens=True)
    return model.text.project_tokens(encoded.tokens).mean(dim=1) + encoded.pooled


def prefixed(model: TwoTower) -> Tensor:
    group = torch.arange(BATCH) // (BATCH - 1)  # all texts but the last share a long prefix
    prefix = SharedPrefixes(group, torch.full((BATCH,), 12))
    return model.text(*captions(model, shared=12), prefix=prefix).pooled


def siglip() -> TwoTower:
    """SigLIP's embedding is as wide as its tower."""
    torch.manual_seed(0)
    config = model_config("tiny-test-siglip")
    return create_model(replace(config, embed_dim=512, vision=replace(config.vision, **VIT))).train()


CASES: dict[str, tuple[Callable[[TwoTower], Tensor], Callable[[], TwoTower]]] = {
    "vit": (vit, lambda: build("tiny-test", vision=VIT)),
    "vit, tokens": (vit_tokens, lambda: build("tiny-test", vision=VIT)),
    "vit, patch dropout": (vit_dropout, lambda: build("tiny-test", vision=VIT)),
    "vit, checkpointed": (checkpointed(vit_dropout), lambda: build("tiny-test", vision=VIT)),
    "vit, mean of patches": (vit, lambda: build("tiny-test-clipa", vision=VIT)),
    "siglip": (vit, siglip),
    "resnet": (vit, lambda: build("tiny-test-resnet", vision=RESNET)),
    "resnet, checkpointed": (checkpointed(vit), lambda: build("tiny-test-resnet", vision=RESNET)),
    "text, packed": (packed, lambda: build("tiny-test", text=TEXT)),
    "text, checkpointed": (checkpointed(packed), lambda: build("tiny-test", text=TEXT)),
    "text, padded": (padded, lambda: build("tiny-test", text=TEXT)),
    "text, tokens": (text_tokens, lambda: build("tiny-test", text=TEXT)),
    "text, shared prefix": (prefixed, lambda: build("tiny-test", text=TEXT)),
    "text, bidirectional": (packed, lambda: build("tiny-test-siglip", text=TEXT)),
}


def gradients(model: nn.Module, encode: Callable[[TwoTower], Tensor]) -> dict[str, Tensor]:
    """Gradients of every parameter that the case reaches, and the features."""
    model.zero_grad()
    features = encode(model)
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(3))
    (features * weights).sum().backward()
    reached = {name: item.grad.clone() for name, item in model.named_parameters() if item.grad is not None}
    return reached | {"features": features.detach()}


# Those in which indexing the table of positions differed, in 9 to 12 of 12 repetitions, before it became F.embedding.
QUICK = ("text, packed", "text, shared prefix")


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CASES]
)
def test_repeating_forward_and_backward_gives_the_same_bits(case: str) -> None:
    encode, make = CASES[case]
    model = make()
    first = gradients(model, encode)
    assert max(item.numel() for item in first.values()) > 32_768
    for _ in range(REPETITIONS - 1):
        again = gradients(model, encode)
        assert not [name for name, item in first.items() if not torch.equal(item, again[name])]
