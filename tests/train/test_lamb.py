"""LAMB against its formula in NumPy, and against timm's where that is installed."""

import importlib
import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from diptych.train.lamb import Lamb

SHAPES = {"matrix": (4, 3), "bias": (5,), "kernel": (2, 3, 2, 2), "scale": ()}
OPTIONS = {"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-6}


def values(seed):
    source = np.random.default_rng(seed)
    return {name: source.normal(size=shape) for name, shape in SHAPES.items()}


def reference(parameters, gradients, decay):
    """The formula of the file, step by step, in float64."""
    (beta1, beta2), rate, eps = OPTIONS["betas"], OPTIONS["lr"], OPTIONS["eps"]
    w = {name: item.copy() for name, item in parameters.items()}
    m, v = ({name: np.zeros_like(item) for name, item in w.items()} for _ in range(2))
    for count, step in enumerate(gradients, 1):
        for name, g in step.items():
            m[name] = beta1 * m[name] + (1 - beta1) * g
            v[name] = beta2 * v[name] + (1 - beta2) * g * g
            u = m[name] / (1 - beta1**count) / (np.sqrt(v[name] / (1 - beta2**count)) + eps)
            u = u + (decay * w[name] if w[name].ndim > 1 else 0.0)
            sizes = np.linalg.norm(w[name]), np.linalg.norm(u)
            ratio = sizes[0] / sizes[1] if w[name].ndim > 1 and min(sizes) > 0 else 1.0
            w[name] = w[name] - rate * ratio * u
    return w


def trained(kind, parameters, gradients, decay, dtype=torch.float64, **more):
    tensors = {name: torch.nn.Parameter(torch.tensor(item, dtype=dtype)) for name, item in parameters.items()}
    groups = [
        {"params": [item for item in tensors.values() if (item.ndim > 1) == large], "weight_decay": decay * large}
        for large in (True, False)
    ]
    optimizer = kind(groups, **OPTIONS, **more)
    for step in gradients:
        for name, item in tensors.items():
            item.grad = torch.tensor(step[name], dtype=dtype)
        optimizer.step()
    return {name: item.detach().numpy() for name, item in tensors.items()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_every_step_is_the_papers(dtype, tolerance, decay):
    parameters, gradients = values(0), [values(seed) for seed in range(1, 7)]
    expected, actual = reference(parameters, gradients, decay), trained(Lamb, parameters, gradients, decay, dtype)
    for name, item in expected.items():
        np.testing.assert_allclose(actual[name], item, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("zero", ["weights", "gradient"])
def test_a_norm_of_zero_leaves_the_rate_alone(zero):
    parameter = torch.nn.Parameter(torch.zeros(2, 2) if zero == "weights" else torch.ones(2, 2))
    optimizer = Lamb([parameter], lr=0.5)
    parameter.grad = torch.ones(2, 2) if zero == "weights" else torch.zeros(2, 2)
    optimizer.step()
    expected = torch.full((2, 2), -0.5) if zero == "weights" else torch.ones(2, 2)
    torch.testing.assert_close(parameter.detach(), expected, atol=1e-5, rtol=0)


def timms_lamb():
    """timm's class; its package imports torchvision, which an environment may have for another torch, so its file alone."""
    spec = importlib.util.find_spec("timm")
    if spec is None:
        pytest.skip("timm is not installed")
    package = types.ModuleType("timm_optim")
    package.__path__ = [str(Path(spec.origin).parent / "optim")]
    sys.modules["timm_optim"] = package
    return importlib.import_module("timm_optim.lamb").Lamb


def test_it_is_timms():
    theirs = timms_lamb()
    parameters, gradients = values(0), [values(seed) for seed in range(1, 7)]
    expected = trained(theirs, parameters, gradients, 0.3, max_grad_norm=None)
    for name, item in trained(Lamb, parameters, gradients, 0.3).items():
        np.testing.assert_allclose(item, expected[name], rtol=1e-10, atol=1e-10, err_msg=name)


def test_a_closure_is_called_with_gradients():
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = Lamb([parameter])

    def closure():
        loss = (parameter**2).sum()
        loss.backward()
        return loss

    assert float(optimizer.step(closure).detach()) == 4.0
    assert optimizer.state[parameter]["step"] == 1
