"""Activation checkpointing computes a block twice and changes nothing: gradients, features, running statistics."""

import pytest
import torch

from diptych.models import create_model


@pytest.mark.parametrize("preset", ["tiny-test", "tiny-test-resnet"])
def test_checkpointing_changes_nothing(preset):
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = create_model(preset).train()
        model.image.checkpointing = checkpointing
        size = model.config.vision.image_size
        images = torch.randint(
            0, 256, (4, 3, size, size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
        )
        for _ in range(2):
            model.image(images).pooled.square().sum().backward()
        state = {name: item.clone() for name, item in model.state_dict().items()}
        results.append((state, {name: item.grad for name, item in model.image.named_parameters()}))
    for name, item in results[0][0].items():
        assert torch.equal(item, results[1][0][name]), name
    for name, item in results[0][1].items():
        assert torch.allclose(item, results[1][1][name], atol=1e-6), name
