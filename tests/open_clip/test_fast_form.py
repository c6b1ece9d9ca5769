"""The fast form of the towers equals the full one, and is not taken where somebody looks inside or changed something."""

import pytest
import torch
import torch.nn.functional as F

from diptych import open_clip
from diptych.errors import ConfigError
from diptych.open_clip import model as models
from tests.open_clip._models import CLASSES, CONFIGS, images, made, texts


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_fast_form_equals_the_full_one(kind, dtype):
    model = made(getattr(models, kind), CONFIGS["plain"]).eval().to(dtype)
    given = {"image": images().to(dtype), "text": texts()}
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    with torch.no_grad():
        fast = model(**given)
        seen = []
        handles = [module.register_forward_hook(lambda *_: seen.append(1)) for module in model.modules()]
        full = model(**given)
        for handle in handles:
            handle.remove()
        again = model(**given)
    assert seen
    for left, right, third in zip(fast, full, again, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=tolerance)
        assert torch.equal(left, third)


def shapes_seen(model, module, run):
    """The shapes of the outputs of ``module`` in ``run``."""
    shapes = []

    def note(_module, _inputs, output):
        shapes.append(tuple((output[0] if isinstance(output, tuple) else output).shape))

    handle = module.register_forward_hook(note)
    with torch.no_grad():
        run(model)
    handle.remove()
    return shapes


def test_hooks_see_full_shapes_of_every_module():
    model = made(models.CLIP, CONFIGS["plain"]).eval()
    for block in model.transformer.resblocks:
        for module in (block, block.attn, block.ln_2, block.mlp, block.mlp.c_fc):
            assert shapes_seen(model, module, lambda m: m.encode_text(texts()))[0][:2] == (3, 20)
    for block in model.visual.transformer.resblocks:
        for module in (block, block.attn, block.ln_1, block.mlp.c_proj):
            assert shapes_seen(model, module, lambda m: m.encode_image(images()))[0][:2] == (3, 17)
    assert shapes_seen(model, model.visual.ln_post, lambda m: m.encode_image(images())) == [(3, 17, 64)]
    assert shapes_seen(model, model.token_embedding, lambda m: m.encode_text(texts())) == [(3, 20, 48)]


def test_an_exchanged_mask_is_used():
    model = made(models.CLIP, CONFIGS["plain"]).eval()
    with torch.no_grad():
        causal = model.encode_text(texts())
        model.attn_mask.zero_()
        inside = model.encode_text(texts())
        model.attn_mask = None
        without = model.encode_text(texts())
    assert not torch.allclose(causal, inside, atol=1e-3)
    torch.testing.assert_close(inside, without, rtol=1e-5, atol=1e-6)


def test_a_replaced_layer_is_used():
    model = made(models.CLIP, CONFIGS["plain"]).eval()

    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    linear = Doubled(64, 256)
    linear.load_state_dict(model.visual.transformer.resblocks[-1].mlp.c_fc.state_dict())
    with torch.no_grad():
        before = model.encode_image(images())
        model.visual.transformer.resblocks[-1].mlp.c_fc = linear
        assert not torch.allclose(before, model.encode_image(images()), atol=1e-4)


def test_a_replaced_method_is_used():
    model = made(models.CLIP, CONFIGS["plain"]).eval()
    block = model.transformer.resblocks[0]
    with torch.no_grad():
        before = model.encode_text(texts())
        block.forward = lambda x, attn_mask=None: x
        assert not torch.allclose(before, model.encode_text(texts()), atol=1e-4)


def test_towers_without_projection_give_their_width():
    model = made(models.CLIP, CONFIGS["plain"]).eval()
    model.visual.proj = model.text_projection = None
    with torch.no_grad():
        assert model.encode_image(images()).shape == (3, 64)
        assert model.encode_text(texts()).shape == (3, 48)
        model.visual.output_tokens = True
        pooled, tokens = model.visual(images())
    assert pooled.shape == (3, 64) and tokens.shape == (3, 16, 64)


def test_tracing_is_right_for_other_texts():
    model = made(models.CLIP, CONFIGS["plain"]).eval()
    traced = open_clip.trace_model(model, batch_size=2)
    for ids in (texts(), texts((20, 3, 4)), texts((7,))):
        with torch.no_grad():
            torch.testing.assert_close(traced.encode_text(ids), model.encode_text(ids), rtol=0, atol=5e-6)
            torch.testing.assert_close(traced.encode_image(images(1)), model.encode_image(images(1)), rtol=0, atol=5e-6)
    assert traced.visual.image_size == model.visual.image_size


@pytest.mark.parametrize("name", ["encode_text", "encode_image"])
def test_export_is_right_for_other_batches(name):
    model = made(models.CLIP, CONFIGS["plain"]).eval()

    class Tower(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, given):
            return getattr(self.model, name)(given)

    given, other = (texts(), texts((20, 2, 4, 9, 9))) if name == "encode_text" else (images(), images(5))
    program = torch.export.export(Tower(), (given,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(other), Tower()(other), rtol=0, atol=5e-6)


def test_shorter_ids_equal_padded_ones():
    model = made(models.CLIP, CONFIGS["plain"]).eval()
    with torch.no_grad():
        short = texts((5, 9), context=9)
        torch.testing.assert_close(
            model.encode_text(short), model.encode_text(F.pad(short, (0, 11))), rtol=0, atol=1e-6
        )


def test_empty_batches_have_empty_features():
    model = made(models.CLIP, CONFIGS["plain"]).eval()
    with torch.no_grad():
        assert model.encode_text(texts()[:0]).shape == (0, 64)
        assert model.encode_image(images()[:0]).shape == (0, 64)


WRONG = [
    ("encode_image", torch.zeros(1, 3, 64, 64, dtype=torch.uint8)),
    ("encode_image", torch.zeros(3, 64, 64)),
    ("encode_image", torch.zeros(1, 3, 72, 72)),  # as many patches of 16 as 64 x 64, and a border left out
    ("encode_image", None),
    ("encode_text", torch.zeros(2, 21, dtype=torch.long)),
    ("encode_text", torch.zeros(2, 20)),
]


@pytest.mark.parametrize(("name", "given"), WRONG, ids=range(len(WRONG)))
def test_wrong_inputs_are_one_line(name, given):
    model = made(models.CLIP, CONFIGS["plain"]).eval()
    with pytest.raises(ConfigError, match=r"(was|were) given") as caught:
        getattr(model, name)(given)
    assert "\n" not in str(caught.value)


def test_images_of_another_grid_are_as_torch_takes_them():
    tower = made(models.CLIP, CONFIGS["plain"]).eval().visual
    tower.positional_embedding = torch.nn.Parameter(torch.zeros(26, 64))  # as programs that interpolate positions
    with torch.no_grad():
        assert tower(torch.zeros(1, 3, 80, 80)).shape == (1, 64)
