"""CLIPA's towers: the mean of the patches without a norm before, a text tower that is not causal; open_clip's sizes."""

import pytest
import torch

from diptych import profile
from diptych.models import create_model


@pytest.fixture
def model():
    torch.manual_seed(0)
    return create_model("tiny-test-clipa").double().eval()


def test_the_pool_is_the_mean_of_the_patches_normed_afterwards(model):
    tower = model.image
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    residual = []
    handle = tower.layers[-1].register_forward_hook(lambda module, args, output: residual.append(output))
    whole = tower(images, return_tokens=True)
    handle.remove()
    patches = residual[0][:, 1:]
    expected = tower.projection(tower.ln_post(patches.mean(dim=1)))
    assert (whole.pooled - expected).abs().max() < 1e-12
    assert (whole.tokens - tower.ln_post(patches)).abs().max() < 1e-12
    assert (tower(images).pooled - expected).abs().max() < 1e-12
    assert not any(name.startswith("ln_pre") for name, _ in tower.named_parameters())


def test_every_token_attends_to_every_other(model):
    ids = torch.randint(2, 300, (2, 12))
    changed = ids.clone()
    changed[:, -1] = 7  # a causal tower's first tokens would not change
    tokens, tokens_of_changed = (model.text(item, return_tokens=True).tokens[:, 0] for item in (ids, changed))
    assert not torch.allclose(tokens, tokens_of_changed)
    assert torch.allclose(model.text(ids).pooled, model.text(ids, return_tokens=True).pooled)


def test_gradients_reach_every_parameter(model):
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    image, text, _ = model(images, torch.randint(2, 300, (2, 12)))
    (image * text).sum().backward()
    assert [name for name, item in model.named_parameters() if item.grad is None] == ["logit_scale"]


@pytest.mark.parametrize(
    ("name", "millions", "gflops"),
    [
        ("ViT-L-14-CLIPA", 414.21, 167.5), ("ViT-L-14-CLIPA-336", 414.54, 387.39), ("ViT-H-14-CLIPA", 968.24, 354.02),
        ("ViT-H-14-CLIPA-336", 968.64, 800.88), ("ViT-bigG-14-CLIPA", 2517.22, 1007.93),
        ("ViT-bigG-14-CLIPA-336", 2517.76, 2271.58),
    ],
)  # fmt: skip
def test_sizes_are_those_of_open_clips_results_table(name, millions, gflops):
    costs = profile.count(name)
    assert (costs.mparams, costs.gflops) == (millions, gflops)
