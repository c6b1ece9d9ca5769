"""Position tables for other sizes: the numbers of the interpolations, the right table of each family, and nothing else."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from diptych.errors import WeightsError
from diptych.models import create_model, model_config
from diptych.weights._resize import grid_side, image_positions, resize_positions, text_positions


def at(config, side):
    return dataclasses.replace(config, vision=dataclasses.replace(config.vision, image_size=side))


def interpolated(grid, new, **how):
    old = round(grid.shape[0] ** 0.5)
    planes = grid.T.reshape(1, -1, old, old)
    return F.interpolate(planes, size=(new, new), align_corners=False, **how)[0].flatten(1).T


@pytest.mark.parametrize(("old", "new"), [(8, 7), (4, 9)])
def test_clips_grid_is_bicubic_with_antialiasing_after_the_class_row(old, new):
    table = torch.randn(old * old + 1, 5, generator=torch.Generator().manual_seed(0))
    for family in ("vit", "resnet"):
        resized = image_positions(table, old, new, family)
        assert torch.equal(resized[0], table[0])
        expected = interpolated(table[1:], new, mode="bicubic", antialias=True)
        assert torch.allclose(resized[1:], expected, atol=1e-6)


@pytest.mark.parametrize(("old", "new"), [(8, 7), (4, 9)])
def test_siglips_grid_is_bilinear_without_antialiasing_or_a_class_row(old, new):
    table = torch.randn(old * old, 5, generator=torch.Generator().manual_seed(0))
    resized = image_positions(table, old, new, "siglip")
    assert torch.allclose(resized, interpolated(table, new, mode="bilinear"), atol=1e-6)


def test_the_dtype_of_the_table_stays():
    table = torch.randn(17, 5, dtype=torch.bfloat16)
    assert image_positions(table, 4, 3, "vit").dtype == torch.bfloat16
    assert text_positions(table, 5).dtype == torch.bfloat16


def test_a_text_table_is_linear():
    table = torch.tensor([[0.0, 10.0], [1.0, 20.0], [2.0, 30.0], [3.0, 40.0]])
    assert text_positions(table, 2).tolist() == [[0.5, 15.0], [2.5, 35.0]]
    assert text_positions(table, 4).tolist() == table.tolist()
    assert text_positions(table, 2).is_contiguous()


@pytest.mark.parametrize(
    ("name", "side", "table", "rows"),
    [
        ("tiny-test", 64, "image.positional_embedding", 4**2 + 1),
        ("tiny-test-resnet", 96, "image.pool.positional_embedding", 3**2 + 1),
        ("tiny-test-siglip", 64, "image.positional_embedding", None),
        ("tiny-test-clipa", 64, "image.positional_embedding", 8**2 + 1),
    ],
)
def test_the_table_of_the_family_is_resized_and_nothing_else(name, side, table, rows):
    config = model_config(name)
    target = at(config, side)
    tensors = dict(create_model(config).state_dict())
    before = dict(tensors)
    resized = resize_positions(tensors, config, target)
    assert tensors == before  # the same objects: the input stays as it was
    changed = {key for key in tensors if resized[key] is not tensors[key]}
    assert changed == {table} and set(resized) == set(tensors)
    expected = create_model(target, device="meta").state_dict()[table].shape
    assert resized[table].shape == expected
    assert rows is None or len(resized[table]) == rows


def test_a_shorter_context_resizes_the_texts_table_only():
    config = model_config("tiny-test")
    target = dataclasses.replace(config, text=dataclasses.replace(config.text, context_length=16))
    tensors = dict(create_model(config).state_dict())
    resized = resize_positions(tensors, config, target)
    assert [key for key in tensors if resized[key] is not tensors[key]] == ["text.positional_embedding"]
    assert torch.equal(resized["text.positional_embedding"], text_positions(tensors["text.positional_embedding"], 16))


def test_an_image_size_of_the_same_grid_changes_nothing():
    config = model_config("ViT-SO400M-14-SigLIP-384")
    assert grid_side(config) == grid_side(at(config, 378)) == 27
    assert resize_positions({}, config, at(config, 378)) == {}


def test_the_grid_of_a_strangers_family_is_unknown():
    @dataclasses.dataclass(frozen=True)
    class Strange:
        image_size: int = 32
        family: str = "strange"

    config = dataclasses.replace(model_config("tiny-test"), vision=Strange())
    assert resize_positions({}, config, config) == {}
    with pytest.raises(WeightsError, match="positions of the family 'strange' cannot be resized"):
        resize_positions({}, config, dataclasses.replace(config, vision=Strange(64)))


@pytest.mark.parametrize("rows", [14, 18])
def test_a_table_that_is_no_grid_is_refused(rows):
    with pytest.raises(WeightsError, match=rf"a position table of {rows} rows is no square grid of side 4"):
        image_positions(torch.zeros(rows, 2), 4, 5, "vit")
