"""What losses hold by formula against the profiler's record of the allocator; the bars of the largest batch by the system's."""

import importlib.util
from pathlib import Path

import pytest
import torch

from diptych.objectives._sigmoid import sigmoid
from diptych.objectives._terms import Features, contrastive
from diptych.train.loss_memory import contrastive_memory, sigmoid_memory

from .test_dry_run import TOLERANCE, peak_of

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "memory.py"


def features(count, width):
    return torch.nn.functional.normalize(torch.randn(count, width), dim=-1).requires_grad_()


def held(loss, *inputs):
    """Most bytes at once of a loss and its gradients, with its inputs."""

    def passes():
        for item in inputs:
            item.grad = None
        loss().backward()

    return peak_of(passes) + sum(item.numel() * item.element_size() for item in inputs)


@pytest.mark.parametrize(
    ("pairs", "width"), [(512, 64), (1024, 256), (2048, 64), pytest.param(9000, 16, marks=pytest.mark.slow)]
)
def test_the_contrastive_loss_of_one_process(pairs, width):
    image, text, scale = features(pairs, width), features(pairs, width), torch.tensor([20.0], requires_grad=True)
    rows = Features(image, text)
    real = held(lambda: contrastive(rows, rows, scale)[0], image, text)
    assert contrastive_memory(pairs, 1, width).total == pytest.approx(real, rel=TOLERANCE)


@pytest.mark.parametrize(("pairs", "processes"), [(256, 8), (512, 32), pytest.param(512, 300, marks=pytest.mark.slow)])
def test_logits_of_some_rows_of_many(pairs, processes):
    width = 8  # so that logits are nearly all there is
    everything = Features(features(pairs * processes, width), features(pairs * processes, width))
    rows = Features(*(item[:pairs].detach().requires_grad_() for item in everything))
    scale = torch.tensor([20.0], requires_grad=True)
    real = held(lambda: contrastive(rows, everything, scale)[0], *rows, *everything)
    assert contrastive_memory(pairs, processes, width).total == pytest.approx(real, rel=TOLERANCE)


@pytest.mark.parametrize(("pairs", "width"), [(512, 64), (4096, 256), pytest.param(9000, 64, marks=pytest.mark.slow)])
def test_the_sigmoid_loss_of_one_process(pairs, width):
    image, text = features(pairs, width), features(pairs, width)
    scale, bias = torch.tensor([20.0], requires_grad=True), torch.tensor([-10.0], requires_grad=True)
    real = held(lambda: sigmoid(image, text, scale, bias)[0], image, text)
    assert sigmoid_memory(pairs, 1, width).total == pytest.approx(real, rel=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["contrastive", "sigmoid"])
def test_65536_pairs_take_less_than_a_gigabyte_inputs_included(name):
    spec = importlib.util.spec_from_file_location("memory_benchmark", BENCHMARK)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    result = benchmark.measured_loss(name)
    assert (result["pairs"], result["width"]) == (65_536, 512)
    assert 5 * 10**8 < result["bytes"] < 10**9, result
