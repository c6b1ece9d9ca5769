"""The models beside open_clip's own: initial values, names, features, intermediates, gradients; and where nobody may notice.

Differential tests need the real package (``peer``); the others hold the fast form against the full one.
"""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F

from diptych.errors import ConfigError
from diptych.open_clip import model as models
from diptych.open_clip import model as open_clip

TEXT = {"context_length": 20, "vocab_size": 500, "width": 48, "heads": 4, "layers": 3}
VISION = {"image_size": 64, "layers": 3, "width": 64, "patch_size": 16, "head_width": 16}
RESNET = {"image_size": 64, "layers": [1, 2, 1, 1], "width": 16, "head_width": 16}


def config(vision=(), text=(), base=VISION, **top):
    return {"embed_dim": 64, "vision_cfg": {**base, **dict(vision)}, "text_cfg": {**TEXT, **dict(text)}, **top}


CONFIGS = {
    "plain": config(),
    "quick": config(quick_gelu=True),
    "layer_scale": config({"ls_init_value": 0.1}, {"ls_init_value": 0.1}),
    "clipa": config(
        {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
        {"no_causal_mask": True, "pool_type": "last"},
    ),
    "mean": config({"pool_type": "avg"}, {"pool_type": "first"}),
    "attention_pool": config({"attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 6}),
    "custom": config(
        {"qk_norm": True, "scale_attn": True, "scale_attn_inner": True},
        {"scaled_cosine_attn": False, "scale_heads": True, "scale_fc": True},
    ),
    "sincos": config({"pos_embed_type": "sin_cos_2d"}),
    "bias": config((), {"norm_kwargs": {"eps": 1e-6}}, init_logit_bias=-10.0),
    "vector_scale": config(nonscalar_logit_scale=True, init_logit_scale=1.5),
    "resnet": config(base=RESNET),
    "eos": config((), {"pool_type": "eos", "eos_id": 499}),
    "no_projection": config((), {"proj_type": "none", "width": 64}),
    "projection_bias": config((), {"proj_bias": True}),
}
CLASSES = ("CLIP", "CustomTextCLIP")


def made(kind, values, seed=0):
    torch.manual_seed(seed)
    return kind(**copy.deepcopy(values))


def images(count=3, side=64):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def texts(lengths=(5, 20, 9), context=20, end=499):
    ids = torch.zeros(len(lengths), context, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(1, end, (length,), generator=torch.Generator().manual_seed(row))
        ids[row, length - 1] = end
    return ids


@pytest.fixture(params=itertools.product(CONFIGS, CLASSES), ids="-".join)
def pair(request, peer):
    """Their model and ours, made with one seed."""
    name, kind = request.param
    return made(getattr(peer.model, kind), CONFIGS[name]), made(getattr(models, kind), CONFIGS[name])


def test_equal_seeds_give_equal_parameters_in_equal_order(pair):
    theirs, ours = (model.state_dict() for model in pair)
    assert list(theirs) == list(ours)
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_state_dicts_load_both_ways(pair):
    theirs, ours = pair
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.01)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    assert all(torch.equal(item, theirs.state_dict()[name]) for name, item in ours.state_dict().items())


def test_features_are_equal(pair):
    theirs, ours = (model.eval() for model in pair)
    with torch.no_grad():
        for name, given in (("encode_image", images()), ("encode_text", texts())):
            expected, actual = getattr(theirs, name)(given, normalize=True), getattr(ours, name)(given, normalize=True)
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


def test_outputs_have_the_same_form_and_values(pair):
    theirs, ours = (model.eval() for model in pair)
    with torch.no_grad():
        for arguments in ({"image": images(), "text": texts()}, {"image": images()}, {"text": texts()}):
            for as_dict in (False, True):
                theirs.output_dict = ours.output_dict = as_dict
                expected, actual = theirs(**arguments), ours(**arguments)
                if as_dict:
                    assert list(expected) == list(actual)
                    expected, actual = expected.values(), actual.values()
                for left, right in zip(expected, actual, strict=True):
                    torch.testing.assert_close(right, left, rtol=1e-6, atol=1e-6)
        for left, right in zip(theirs.get_logits(images(), texts()), ours.get_logits(images(), texts()), strict=True):
            torch.testing.assert_close(right, left, rtol=1e-5, atol=1e-5)


INTERMEDIATES = [
    {},
    {
        "image_indices": 2, "text_indices": [0, -1], "normalize_intermediates": True, "image_output_extra_tokens": True,
        "output_logits": True, "output_logit_scale_bias": True,
    },
    {"image_indices": [0], "text_indices": [0], "stop_early": True, "intermediates_only": True},
    {"normalize": False, "text_indices": 1},
]  # fmt: skip


@pytest.mark.parametrize("options", INTERMEDIATES, ids=range(len(INTERMEDIATES)))
def test_intermediates_are_equal(pair, options):
    theirs, ours = (model.eval() for model in pair)
    with torch.no_grad():
        try:
            expected = theirs.forward_intermediates(images(), texts(), **options)
        except RuntimeError as error:  # the norm after an attention pool has another width
            pytest.skip(f"open_clip itself fails: {str(error).splitlines()[0][:80]}")
        actual = ours.forward_intermediates(images(), texts(), **options)
    assert list(expected) == list(actual)
    for name, value in expected.items():
        lists = (value, actual[name]) if isinstance(value, list) else ([value], [actual[name]])
        for left, right in zip(*lists, strict=True):
            torch.testing.assert_close(right, left, rtol=1e-5, atol=1e-5)


def gradients(model):
    """Of every parameter, None where there is none."""
    model.train()
    unit_images, unit_texts, scale, *_ = model(images().double(), texts())
    loss = (unit_images @ unit_texts.T * scale).pow(2).mean()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return dict(zip(trained, torch.autograd.grad(loss, [*trained.values()], allow_unused=True), strict=True))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_equal_in_float64(pair, checkpointing):
    for model in pair:
        model.double().set_grad_checkpointing(checkpointing)
        for module in model.modules():
            if isinstance(getattr(module, "bn3", None), torch.nn.BatchNorm2d):
                torch.nn.init.constant_(module.bn3.weight, 0.7)  # zero would hide the branch
    actual = gradients(pair[1])
    try:
        expected = gradients(pair[0])
    except TypeError as error:  # its custom blocks do not take the arguments that its checkpointing passes
        pytest.skip(f"open_clip itself fails: {str(error)[:80]}")
    for name, gradient in expected.items():
        assert (gradient is None) == (actual[name] is None), name
        if gradient is not None:
            torch.testing.assert_close(actual[name], gradient, rtol=1e-7, atol=1e-9)


# Without the real package: the fast form, and where it must not be taken.


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


@pytest.mark.parametrize("given", [torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.zeros(2, 21, dtype=torch.long)])
def test_wrong_inputs_are_one_line(given):
    model = made(models.CLIP, CONFIGS["plain"]).eval()
    with pytest.raises(ConfigError, match="were given"):
        (model.encode_image if given.ndim == 4 else model.encode_text)(given)


@pytest.mark.parametrize("unlocked", [0, 1, 2, 99])
@pytest.mark.parametrize("kind", CLASSES)
def test_locks_leave_open_what_open_clip_does(peer, kind, unlocked):
    open_names = []
    for package in (peer.model, models):
        model = made(getattr(package, kind), CONFIGS["plain"])
        model.lock_image_tower(unlocked_groups=unlocked)
        model.lock_text_tower(unlocked_layers=unlocked)
        open_names.append([name for name, parameter in model.named_parameters() if parameter.requires_grad])
    assert open_names[0] == open_names[1]


def test_decay_names_are_open_clips(peer):
    for kind, name in itertools.product(CLASSES, ("plain", "resnet")):
        theirs, ours = (made(getattr(package, kind), CONFIGS[name]) for package in (peer.model, models))
        assert theirs.no_weight_decay() == ours.no_weight_decay()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_low_precision_casts_what_open_clip_casts(peer, precision):
    dtypes = []
    for package in (peer.model, models):
        model = made(package.CLIP, {**CONFIGS["plain"], "cast_dtype": package.get_cast_dtype(precision)})
        package.convert_weights_to_lp(model, dtype=package.get_cast_dtype(precision))
        dtypes.append({name: item.dtype for name, item in model.state_dict().items()})
    assert dtypes[0] == dtypes[1]
