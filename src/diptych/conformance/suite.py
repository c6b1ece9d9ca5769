"""The conformance suite behind ``diptych selftest``: what an accelerator must do for this toolkit to work on it.

``run(device)`` yields a ``Row`` per check. Checks know no accelerator by name: they read what the ``Device`` claims and
compare that with the CPU. What is not claimed is reported as skipped. These are checks of correctness, not of speed.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.conformance.checks import HALF_LIMIT, Check, NotClaimed, Row, compare, expect, outcome
from diptych.conformance.operators import PRODUCTS, Operator, operators
from diptych.conformance.texts import text_checks
from diptych.conformance.training import training_checks
from diptych.devices import PRECISIONS, Device

MEBI = 2**20


def run(device: Device) -> Iterator[Row]:
    """Run all checks in turn; a failure does not stop the rest."""
    operator_checks = map(_operator_check, operators())
    for check in [*_state_checks(), *operator_checks, *_precision_checks(), *text_checks(), *training_checks()]:
        yield outcome(check, device)
    yield outcome(Check("processes", f"collectives, {device.backend}", collectives, required=False), device)


# --- operators --------------------------------------------------------------------------------------------------------


def _operator_check(operator: Operator) -> Check:
    return Check("operators", operator.name, partial(run_operator, operator))


def run_operator(operator: Operator, device: Device) -> str:
    """Forward and backward in fp32 on the device, against float64 on the CPU."""
    expected, expected_gradients = _evaluate(operator, torch.device("cpu"), torch.float64)
    actual, gradients = _evaluate(operator, device.torch_device, torch.float32)
    expect(actual.device == device.torch_device, f"the result is on {actual.device}")
    forward = compare(actual, expected, operator.limit, "forward")
    if not gradients:
        return f"error {forward:.0e}"
    pairs = enumerate(zip(gradients, expected_gradients, strict=True))
    backward = max(compare(result, reference, operator.limit, f"gradient {n}") for n, (result, reference) in pairs)
    return f"error {forward:.0e}, backward {backward:.0e}"


def _evaluate(operator: Operator, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    inputs = [value.to(device, dtype) if value.is_floating_point() else value.to(device) for value in operator.inputs]
    differentiable = [value.requires_grad_() for value in inputs if value.is_floating_point()]
    result = operator.function(*inputs)
    if not (differentiable and result.requires_grad):
        return result, []
    weights = torch.linspace(-1.0, 2.0, max(1, result.numel()), dtype=torch.float64)[: result.numel()]
    return result, list(torch.autograd.grad(result, differentiable, weights.view(result.shape).to(dtype).to(device)))


# --- the device's own state -------------------------------------------------------------------------------------------


def _state_checks() -> list[Check]:
    return [
        Check("device", "available", available),
        Check("device", "copies", copies),
        Check("device", "pinned copies", pinned_copies),
        Check("device", "memory figures", memory_figures),
        Check("device", "random state", random_state),
        Check("device", "weights saved and loaded", saved_and_loaded),
        Check("device", "equal runs are equal", deterministic),
    ]


def available(device: Device) -> str:
    """The device responds, and computes."""
    total = float(torch.ones(3, device=device.torch_device).sum())
    expect(total == 3.0, f"1 + 1 + 1 = {total}")
    return f"{device.torch_device}, {device.count()} visible, torch {torch.__version__}"


def copies(device: Device) -> str:
    """Bytes survive a copy to the device and back, in every type that the toolkit moves."""
    types = [torch.uint8, torch.int64, torch.bool, torch.float32, torch.bfloat16, torch.float16]
    for dtype in types:
        sent = (torch.arange(24) % 7).to(dtype).view(4, 6)
        for tensor in (sent, sent.T):  # a view that is not contiguous, too
            expect(torch.equal(tensor.to(device.torch_device).cpu(), tensor), f"{dtype} came back changed")
    return f"{len(types)} types"


def pinned_copies(device: Device) -> str:
    """Page-locked memory, and copies from it that do not block."""
    if not device.abilities.pin_memory:
        raise NotClaimed("the device does not claim page-locked memory")
    sent = torch.arange(1000.0).pin_memory()
    received = sent.to(device.torch_device, non_blocking=True)
    device.synchronize()
    expect(torch.equal(received.cpu(), torch.arange(1000.0)), "came back changed")
    return "exact"


def memory_figures(device: Device) -> str:
    """Figures are bytes, and follow what is allocated."""
    before = device.memory()
    if not before:
        raise NotClaimed("the device reports no figures")
    expect(all(isinstance(value, int) and value >= 0 for value in before.values()), f"not bytes: {before}")
    held = torch.ones(8 * MEBI, dtype=torch.uint8, device=device.torch_device)
    during = device.memory()
    if "allocated" in before:
        grown = during["allocated"] - before["allocated"]
        expect(grown >= held.nbytes, f"8 MiB were allocated, the figure grew by {grown} bytes")
        del held
        after = device.memory()["allocated"]
        expect(after < during["allocated"], "the figure did not shrink when 8 MiB were freed")
        expect(during.get("peak", grown) >= grown, f"peak {during.get('peak')} is below what was in use")
    return ", ".join(f"{name} {value / MEBI:.0f} MiB" for name, value in during.items())


def random_state(device: Device) -> str:
    """A seed and a saved state each reproduce the same numbers."""

    def draw() -> Tensor:
        return torch.randn(64, device=device.torch_device).cpu()

    device.seed(7)
    first, state = draw(), device.random_state()
    second = draw()
    device.set_random_state(state)
    again = draw()
    device.seed(7)
    expect(not torch.equal(first, second), "two draws are equal")
    expect(torch.equal(second, again), "a restored state gives other numbers")
    expect(torch.equal(first, draw()), "the same seed gives other numbers")
    expect(state.device.type == "cpu" and state.dtype == torch.uint8, f"the state is {state.dtype} on {state.device}")
    return f"{state.numel()} bytes"


def deterministic(device: Device) -> str:
    """In deterministic mode, the backward pass of a lookup with many repeated rows gives the same bits five times.

    Large enough that threads and kernels split the additions: where they are atomic, their order differs from run to run.
    """
    if not device.abilities.deterministic:
        raise NotClaimed("the device claims no deterministic mode")
    before = torch.are_deterministic_algorithms_enabled()
    device.set_deterministic()
    try:
        source = torch.Generator().manual_seed(8)
        table = torch.randn(16, 512, generator=source).to(device.torch_device).requires_grad_()
        rows = torch.randint(0, 16, (2000,), generator=source).to(device.torch_device)
        weights = torch.randn(2000, 512, generator=source).to(device.torch_device)
        gradients = [torch.autograd.grad((table[rows] * weights).sum(), table)[0].cpu() for _ in range(5)]
    finally:
        torch.use_deterministic_algorithms(before)
    expect(all(torch.equal(gradient, gradients[0]) for gradient in gradients), "five equal runs differ")
    return "five runs, bit for bit"


def saved_and_loaded(device: Device) -> str:
    """A module's weights are saved by ``torch.save`` and read on the CPU."""
    module = nn.Linear(4, 3).to(device.torch_device)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    read = torch.load(file, map_location="cpu", weights_only=True)
    for name, value in module.state_dict().items():
        expect(torch.equal(read[name], value.cpu()), f"{name} changed")
    return "exact"


# --- precisions -------------------------------------------------------------------------------------------------------


def _precision_checks() -> list[Check]:
    halves = [name for name in PRECISIONS if name != "fp32"]
    return [Check("precision", f"autocast, {name}", partial(autocast, precision=name)) for name in halves]


def autocast(device: Device, precision: str) -> str:
    """A block of the towers in mixed precision: products in the half type, softmax in fp32, gradients in fp32."""
    if not getattr(device.abilities, {"bf16": "bfloat16", "fp16": "float16"}[precision]):
        raise NotClaimed(f"the device does not claim {precision}")
    linear = nn.Linear(16, 32)
    block = nn.Sequential(nn.LayerNorm(16), linear, nn.GELU(), nn.Linear(32, 16))
    x = torch.linspace(-2.0, 2.0, 80).view(16, 5).T.contiguous()
    expected = block.double()(x.double())
    expected_gradient = torch.autograd.grad(expected.square().mean(), linear.weight)[0]
    block = block.float().to(device.torch_device)
    with device.autocast(precision):
        result = block(x.to(device.torch_device))
        softmax = F.softmax(result, dim=-1)
    expect(result.dtype == PRECISIONS[precision], f"a linear layer gave {result.dtype}")
    limit = HALF_LIMIT[precision]
    error = compare(result, expected, limit, "forward")
    compare(softmax, F.softmax(expected, dim=-1), limit, "softmax")
    (gradient,) = torch.autograd.grad(result.float().square().mean(), linear.weight)
    expect(gradient.dtype == torch.float32, f"the gradient of an fp32 weight is {gradient.dtype}")
    return f"error {error:.0e}, backward {compare(gradient, expected_gradient, 2 * limit, 'gradient'):.0e}"


# --- processes --------------------------------------------------------------------------------------------------------


def collectives(device: Device) -> str:
    """The collective library is available, and works in a group of one process."""
    if not (dist.is_available() and dist.is_backend_available(device.backend)):
        raise NotClaimed(f"{device.backend} is not in this build: one process only, or another --dist-backend")
    if dist.is_initialized():
        raise NotClaimed("a process group is running already")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        store = dist.FileStore(str(Path(folder) / "store"), 1)
        dist.init_process_group(device.backend, store=store, rank=0, world_size=1)
        stack.callback(dist.destroy_process_group)
        sent = torch.arange(6.0, device=device.torch_device)
        summed, gathered = sent.clone(), [torch.empty_like(sent)]
        dist.all_reduce(summed)
        dist.all_gather(gathered, sent)
        dist.broadcast(summed, src=0)
        compare(summed, sent, PRODUCTS, "all_reduce")
        compare(gathered[0], sent, 0.0, "all_gather")
    return "all_reduce, all_gather and broadcast in a group of one process"
