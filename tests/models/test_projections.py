"""q, k and v as one product: what the layers give, their gradients twice over, and every case in which layers are called."""

import pytest
import torch
from torch import nn

from diptych.models import _projections as projections
from diptych.models import attention_as_elsewhere
from diptych.models._projections import Linear, projected

WIDTH = 6


def layers(dtype=torch.float64, sizes=(6, 6, 4)):
    made = [Linear(WIDTH, size, dtype=dtype) for size in sizes]
    generator = torch.Generator().manual_seed(1)
    for layer in made:
        for item in layer.parameters():
            nn.init.normal_(item, generator=generator)
    return made


def tokens(dtype=torch.float64, shape=(5,)):
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(2), dtype=dtype).requires_grad_()


@pytest.fixture
def joined(monkeypatch):
    """How often one product stood for several layers."""
    calls = []
    original = projections._Joined.apply

    def apply(*arguments):
        calls.append(len(arguments))
        return original(*arguments)

    monkeypatch.setattr(projections._Joined, "apply", apply)
    return calls


def with_gradients(x, made, outputs):
    total = sum((item.float() ** 2 * (number + 1)).sum() for number, item in enumerate(outputs))
    wanted = [item for item in (x, *(p for layer in made for p in layer.parameters())) if item.requires_grad]
    return [*outputs, *torch.autograd.grad(total, wanted)]


@pytest.mark.parametrize("frozen", [(), (0,), (0, 1, 2)])
@pytest.mark.parametrize("shape", [(5,), (2, 3)])
@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_one_product_gives_what_the_layers_give(joined, precision, tolerance, shape, frozen):
    made, x = layers(precision), tokens(precision, shape)
    for number in frozen:
        made[number].requires_grad_(False)
    with attention_as_elsewhere():
        actual = with_gradients(x, made, projected(x, made))
    expected = with_gradients(x, made, [layer(x) for layer in made])
    assert len(joined) == 1
    for result, reference in zip(actual, expected, strict=True):
        assert torch.allclose(result, reference, rtol=tolerance, atol=tolerance)


def test_under_autocast_it_rounds_as_the_layers_do(joined):
    made, x = layers(torch.float32), tokens(torch.float32)
    with attention_as_elsewhere(), torch.autocast("cpu", dtype=torch.bfloat16):
        actual = with_gradients(x, made, projected(x, made))
        expected = with_gradients(x, made, [layer(x) for layer in made])
    assert len(joined) == 1
    assert all(item.dtype == torch.bfloat16 for item in actual[:3])
    for result, reference in zip(actual, expected, strict=True):
        assert result.dtype == reference.dtype
        assert (result - reference).abs().max() <= 0.02 * reference.abs().max()


def test_its_gradients_have_gradients():
    made, x = layers(), tokens(shape=(2,))

    def function(x, *parameters):
        return torch.cat(list(projections._Joined.apply(x, 3, *parameters)), dim=-1)

    parameters = [layer.weight for layer in made] + [layer.bias for layer in made]
    assert torch.autograd.gradcheck(function, (x, *parameters))
    assert torch.autograd.gradgradcheck(function, (x, *parameters))


class Adapted(Linear):
    """As an adapter replaces a layer."""


def hooked(made):
    made[1].register_forward_hook(lambda module, inputs, output: output * 2)


def adapted(made):
    made[2].__class__ = Adapted


def replaced(made):
    made[0].forward = lambda x: x * 3


def without_bias(made):
    made[0].bias = None


@pytest.mark.parametrize("change", [hooked, adapted, replaced, without_bias])
def test_layers_that_somebody_changed_are_called(joined, change):
    made, x = layers(sizes=(6, 6, 6)), tokens()
    change(made)
    with attention_as_elsewhere():
        actual = projected(x, made)
    assert not joined
    assert all(torch.equal(item, layer(x)) for item, layer in zip(actual, made, strict=True))


def test_a_hook_on_all_modules_is_called(joined):
    made, seen = layers(), []
    handle = nn.modules.module.register_module_forward_pre_hook(lambda module, inputs: seen.append(module))
    try:
        with attention_as_elsewhere():
            projected(tokens(), made)
    finally:
        handle.remove()
    assert seen == made
    assert not joined


def test_in_main_memory_layers_are_called_and_other_types_are_refused_as_ever(joined):
    made, x = layers(), tokens()
    assert all(torch.equal(item, layer(x)) for item, layer in zip(projected(x, made), made, strict=True))
    with attention_as_elsewhere(), pytest.raises(RuntimeError, match="dtype"):
        projected(x.float(), made)
    assert not joined
