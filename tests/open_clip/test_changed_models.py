"""Models that programs changed after they were built give what open_clip's give: no fast form overlooks a change.

Each change is made to our model twice, once with hooks that force the full form, and to the real open_clip's where it is
installed. What is compared is features of evaluation.
"""

import copy
import io
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diptych.open_clip import model as models
from tests.open_clip._models import CONFIGS, images, made, texts


def features(model):
    with torch.no_grad():
        return [model.encode_image(images()), model.encode_text(texts())]


def blocks(model):
    return [*model.visual.transformer.resblocks, *model.transformer.resblocks]


class Halved(nn.Linear):
    def forward(self, x):
        return super().forward(x) / 2


class Wrapped(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.weight, self.bias = inner, inner.weight, inner.bias

    def forward(self, x):
        return self.inner(x) * 1.1


class Mixing(nn.Module):
    """Between tokens; what a norm may not do."""

    def forward(self, x):
        return x - x.mean(1, keepdim=True)


class MixingNorm(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x - x.mean(1, keepdim=True))


class Grown(nn.Module):
    def forward(self, weight):
        return weight * 1.2


class Attention(nn.MultiheadAttention):
    def forward(self, *given, **options):
        output, weights = super().forward(*given, **options)
        return output * 0.7, weights


def as_subclass(linear, kind):
    replaced = kind(linear.in_features, linear.out_features)
    replaced.load_state_dict(linear.state_dict())
    return replaced


def replace_linears(model, _):
    for block in blocks(model):
        block.mlp.c_fc = as_subclass(block.mlp.c_fc, Halved)
        block.mlp.c_proj = Wrapped(block.mlp.c_proj)


def replace_output_projections(model, _):
    for block in blocks(model):  # torch's attention reads their weights, and never calls them
        block.attn.out_proj = as_subclass(block.attn.out_proj, Halved)


def replace_last_norms(model, _):
    model.ln_final, model.visual.ln_post = Mixing(), Mixing()


def replace_last_norms_by_subclasses(model, _):
    model.ln_final, model.visual.ln_post = MixingNorm(48), MixingNorm(64)


def replace_attention(model, _):
    for block in blocks(model):
        block.attn.__class__ = Attention


def parametrize(model, _):
    register = nn.utils.parametrize.register_parametrization
    for block in blocks(model):
        register(block.attn, "in_proj_weight", Grown())
        register(block.mlp.c_fc, "weight", Grown())
    register(model, "positional_embedding", Grown())
    register(model.visual, "proj", Grown())


def drop_blocks(model, _):
    model.visual.transformer.resblocks = model.visual.transformer.resblocks[:2]
    model.transformer.resblocks = model.transformer.resblocks[:1]


def wrap_on_instances(model, _):
    for block in blocks(model)[1::2]:
        attention = block.attention
        block.attention = lambda *given, _own=attention, **options: _own(*given, **options) * 0.5


def wrap_on_class(kind, name, factor):
    def change(model, patch):
        modules = {
            "stack": model.transformer,
            "block": model.transformer.resblocks[0],
            "attention": nn.MultiheadAttention,
        }
        owner = modules.get(kind, kind)
        owner = owner if isinstance(owner, type) else type(owner)
        original = getattr(owner, name)

        def wrapped(self, *given, **options):
            output = original(self, *given, **options)
            if isinstance(output, tuple):
                return output[0] * factor, output[1]
            return output * (factor if isinstance(factor, float) else factor.repeat(2)[: output.shape[-1]])

        patch.setattr(owner, name, wrapped)

    return change


def exchange_mask_unseen(model, _):
    features(model)
    model.attn_mask.data.zero_()


def exchange_mask_by_numpy(model, _):
    features(model)
    model.attn_mask.numpy()[:] = 0


def write_weights_unseen(model, _):
    features(model)
    for parameter in model.parameters():
        parameter.data.mul_(1.2)
    model.transformer.resblocks[0].mlp.c_fc.weight.data = model.transformer.resblocks[0].mlp.c_fc.weight.data * 1.1


def assign_weights(model, _):
    features(model)
    model.load_state_dict({name: item * 1.1 for name, item in model.state_dict().items()}, assign=True)


def change_outputs_by_hooks(model, _):
    model.visual.transformer.resblocks[1].register_forward_hook(lambda *given: given[2] * 0.5)
    model.transformer.resblocks[1].mlp.register_forward_hook(lambda *given: given[2] * 0.5)
    model.ln_final.register_forward_pre_hook(lambda _, given: (given[0] * 2,))
    model.visual.conv1.register_forward_hook(lambda *given: given[2] * 0.5)
    model.token_embedding.register_forward_hook(lambda *given: given[2] * 0.5)


def add_key_bias(model, _):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(64, 4, batch_first=True, add_bias_kv=True)
    attention.in_proj_bias.data.normal_()
    model.visual.transformer.resblocks[0].attn = attention


CHANGES = {
    **{function.__name__: function for function in (
        replace_linears, replace_output_projections, replace_last_norms, replace_last_norms_by_subclasses, replace_attention,
        parametrize, drop_blocks, wrap_on_instances, exchange_mask_unseen, exchange_mask_by_numpy, write_weights_unseen,
        assign_weights, change_outputs_by_hooks, add_key_bias,
    )},
    "class of stacks": wrap_on_class("stack", "forward", torch.tensor([1.0, -2.0]).repeat(24)),  # norms undo one factor
    "class of blocks": wrap_on_class("block", "forward", 0.5),
    "attention of blocks": wrap_on_class("block", "attention", 0.5),
    "torch's attention": wrap_on_class("attention", "forward", 0.5),
    "torch's linear": wrap_on_class(nn.Linear, "forward", 0.5),
    "torch's sequence": wrap_on_class(nn.Sequential, "forward", 0.5),
}  # fmt: skip


def changed_features(module, change, patch, hooks=False):
    model = made(module.CLIP, CONFIGS["plain"]).eval()
    with patch.context() as inner:
        CHANGES[change](model, inner)
        for block in blocks(model) if hooks else ():
            block.register_forward_hook(lambda *given: None)
        return features(model)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_not_overlooked(change, monkeypatch):
    plain = features(made(models.CLIP, CONFIGS["plain"]).eval())
    full = changed_features(models, change, monkeypatch, hooks=True)
    for left, right in zip(full, changed_features(models, change, monkeypatch), strict=True):
        torch.testing.assert_close(right, left, rtol=1e-5, atol=1e-5)
    no_effect = change == "replace_output_projections"
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(plain, full, strict=True)) == no_effect


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_does_what_it_does_in_open_clip(peer, change, monkeypatch):
    theirs = changed_features(peer.model, change, monkeypatch)
    for left, right in zip(theirs, changed_features(models, change, monkeypatch), strict=True):
        torch.testing.assert_close(right, left, rtol=1e-5, atol=1e-5)


def saved_whole(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved_whole,
    "average": lambda model: torch.optim.swa_utils.AveragedModel(model).module,
    "compile": lambda model: torch.compile(model, backend="eager")._orig_mod,
}


@pytest.mark.parametrize("kind", ["CLIP", "CustomTextCLIP"])
@pytest.mark.parametrize("name", COPIES)
def test_a_copy_is_equal_and_its_own(name, kind):
    model = made(getattr(models, kind), CONFIGS["plain"]).eval()
    before = features(model)
    copied = COPIES[name](model)
    assert all(torch.equal(a, b) for a, b in zip(before, features(copied), strict=True))
    if name != "compile":
        with torch.no_grad():
            for parameter in copied.parameters():
                parameter.mul_(1.5)
        assert all(torch.equal(a, b) for a, b in zip(before, features(model), strict=True))
        assert not any(torch.allclose(a, b, atol=1e-3) for a, b in zip(before, features(copied), strict=True))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_functional_calls_and_transforms_see_other_parameters():
    model = made(models.CLIP, CONFIGS["plain"]).eval()
    grown = {name: parameter.detach() * 1.1 for name, parameter in model.named_parameters()}
    given = torch.func.functional_call(model, grown, (images(), texts()))
    other = copy.deepcopy(model)
    other.load_state_dict(grown, strict=False)
    with torch.no_grad():
        expected = other(images(), texts())
        mapped = torch.func.vmap(lambda image: other.encode_image(image[None], normalize=True)[0])(images())
    for left, right in zip(expected, given, strict=True):
        torch.testing.assert_close(right, left, rtol=0, atol=1e-5)
    torch.testing.assert_close(mapped, expected[0], rtol=0, atol=1e-5)


def test_threads_get_equal_features():
    # To rounding: which library computes fp32 products is a setting of the process, which attention changes for a moment.
    model = made(models.CLIP, CONFIGS["plain"]).eval()
    expected, results = features(model), {}
    threads = [threading.Thread(target=lambda n=n: results.update({n: features(model)})) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for item in results.values():
        for alone, beside in zip(expected, item, strict=True):
            torch.testing.assert_close(beside, alone, rtol=0, atol=1e-6)
    assert len(results) == 4


def test_backward_hooks_see_every_token():
    model = made(models.CLIP, CONFIGS["plain"]).eval()
    shapes = []
    for block in (model.visual.transformer.resblocks[-1], model.transformer.resblocks[-1]):
        block.register_full_backward_hook(lambda _module, _inputs, outputs: shapes.append(tuple(outputs[0].shape)))
    first, second, _ = model(images(), texts())
    F.mse_loss(first, second).backward()
    assert sorted(shapes) == [(3, 17, 64), (3, 20, 48)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_and_autocast_stay_near(dtype):
    model = made(models.CLIP, CONFIGS["plain"]).eval()
    expected = model(images(), texts())[:2]
    cast = copy.deepcopy(model).to(dtype)
    with torch.no_grad():
        for left, right in zip(expected, cast(images().to(dtype), texts())[:2], strict=True):
            torch.testing.assert_close(right.float(), left, rtol=0, atol=2e-2)
        if dtype == torch.bfloat16:
            with torch.autocast("cpu", dtype=dtype):
                automatic = model(images(), texts())[:2]
            for left, right in zip(expected, automatic, strict=True):
                torch.testing.assert_close(right.float(), left, rtol=0, atol=2e-2)
