"""Groups of layers that are locked together: their order, that they cover a tower, and that open_clip counts the same."""

import pytest

from diptych.models import create_model, parameter_groups


@pytest.mark.parametrize("preset", ["tiny-test", "tiny-test-siglip", "tiny-test-resnet"])
@pytest.mark.parametrize("side", ["image", "text"])
def test_every_parameter_is_in_a_single_group(preset, side):
    tower = getattr(create_model(preset), side)
    grouped = [id(parameter) for group in parameter_groups(tower) for parameter in group]
    assert sorted(grouped) == sorted(id(parameter) for parameter in tower.parameters())


def test_unlocked_groups_grow_from_the_end_and_a_locked_tower_stays_in_evaluation_mode():
    model = create_model("tiny-test").train()
    counts = [
        sum(
            item.numel()
            for item in model.lock(image=True, unlocked_image_groups=count).image.parameters()
            if item.requires_grad
        )
        for count in range(len(parameter_groups(model.image)) + 1)
    ]
    assert counts == sorted(set(counts))
    assert counts[0] == 0
    assert counts[-1] == sum(item.numel() for item in model.image.parameters())
    assert model.lock(image=True, unlocked_image_groups=1).image.training
    assert not model.lock(image=True).image.training


@pytest.mark.parametrize("unlocked", [0, 1, 2, 3, 13])
def test_open_clip_leaves_as_many_parameters_unlocked(unlocked):
    from benchmarks._peers import open_clip

    try:
        theirs = open_clip().create_model("ViT-B-32")
    except ImportError:
        pytest.skip("open_clip is not installed")
    theirs.lock_image_tower(unlocked_groups=unlocked)
    theirs.lock_text_tower(unlocked_layers=unlocked)
    text = ("transformer.", "token_embedding", "positional_embedding", "ln_final", "text_projection")
    ours = create_model("ViT-B-32", device="meta").lock(True, True, unlocked, unlocked)
    for tower, prefixes in ((ours.image, ("visual.",)), (ours.text, text)):
        expected = [
            item.numel() for name, item in theirs.named_parameters() if name.startswith(prefixes) and item.requires_grad
        ]
        assert sum(item.numel() for item in tower.parameters() if item.requires_grad) == sum(expected)
