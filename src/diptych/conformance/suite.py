"""The conformance suite behind ``diptych selftest``: what an accelerator must do for this toolkit to work on it.

``run(device)`` yields one ``Row`` per check. Checks know no accelerator by name: they ask the ``Device`` what it claims and
hold it to that, against the CPU. What is not claimed is skipped, and said so. These are checks of correctness, not of speed.
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
from diptych.conformance.training import training_checks
from diptych.devices import PRECISIONS, Device

MEBI = 2**20


def run(device: Device) -> Iterator[Row]:
    """Run all checks, one after the other; a failing one does not stop the rest."""
    for check in [*_state_checks(), *map(_operator_check, operators()), *_precision_checks(), *training_checks()]:
        yield outcome(check, device)
    yield outcome(Check("processes", f"collectives, {device.backend}", collectives, required=False), device)


# --- operators --------------------------------------------------------------------------------------------------------


def _operator_check(operator: Operator) -> Check:
    return Check("operators", operator.name, partial(run_operator, operator))


def run_operator(operator: Operator, device: Device) -> str:
    """Forward and backward in fp32 on the device, against float64 on the CPU."""
    wanted, wanted_gradients = _evaluate(operator, torch.device("cpu"), torch.float64)
    found, gradients = _evaluate(operator, device.torch_device, torch.float32)
    expect(found.device == device.torch_device, f"the result is on {found.device}")
    forward = compare(found, wanted, operator.limit, "forward")
    if not gradients:
        return f"error {forward:.0e}"
    pairs = enumerate(zip(gradients, wanted_gradients, strict=True))
    backward = max(compare(one, two, operator.limit, f"gradient {number}") for number, (one, two) in pairs)
    return f"error {forward:.0e}, backward {backward:.0e}"


def _evaluate(operator: Operator, place: torch.device, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    inputs = [item.to(place, dtype) if item.is_floating_point() else item.to(place) for item in operator.inputs]
    learned = [item.requires_grad_() for item in inputs if item.is_floating_point()]
    result = operator.function(*inputs)
    if not (learned and result.requires_grad):
        return result, []
    weights = torch.linspace(-1.0, 2.0, max(1, result.numel()), dtype=torch.float64)[: result.numel()].view(
        result.shape
    )
    return result, list(torch.autograd.grad(result, learned, weights.to(dtype).to(place)))


# --- the device's own state -------------------------------------------------------------------------------------------


def _state_checks() -> list[Check]:
    return [
        Check("device", "found", found),
        Check("device", "copies", copies),
        Check("device", "pinned copies", pinned_copies),
        Check("device", "memory figures", memory_figures),
        Check("device", "random state", random_state),
        Check("device", "weights saved and loaded", saved_and_loaded),
    ]


def found(device: Device) -> str:
    """The device answers, and calculates."""
    total = float(torch.ones(3, device=device.torch_device).sum())
    expect(total == 3.0, f"1 + 1 + 1 = {total}")
    return f"{device.torch_device}, {device.count()} visible, torch {torch.__version__}"


def copies(device: Device) -> str:
    """Bytes survive the way there and back in every type that the toolkit moves."""
    types = [torch.uint8, torch.int64, torch.bool, torch.float32, torch.bfloat16, torch.float16]
    for dtype in types:
        sent = (torch.arange(24) % 7).to(dtype).view(4, 6)
        for one in (sent, sent.T):  # a view that is not contiguous, too
            expect(torch.equal(one.to(device.torch_device).cpu(), one), f"{dtype} came back changed")
    return f"{len(types)} types"


def pinned_copies(device: Device) -> str:
    """Page-locked memory, and copies from it that do not block."""
    if not device.abilities.pin_memory:
        raise NotClaimed("the device does not claim page-locked memory")
    sent = torch.arange(1000.0).pin_memory()
    there = sent.to(device.torch_device, non_blocking=True)
    device.synchronize()
    expect(torch.equal(there.cpu(), torch.arange(1000.0)), "came back changed")
    return "exact"


def memory_figures(device: Device) -> str:
    """Figures are bytes, and follow what is allocated."""
    before = device.memory()
    if not before:
        raise NotClaimed("the device tells no figures")
    expect(all(isinstance(value, int) and value >= 0 for value in before.values()), f"not bytes: {before}")
    held = torch.ones(8 * MEBI, dtype=torch.uint8, device=device.torch_device)
    during = device.memory()
    if "allocated" in before:
        grown = during["allocated"] - before["allocated"]
        expect(grown >= held.nbytes, f"8 MiB were taken, the figure grew by {grown} bytes")
        del held
        after = device.memory()["allocated"]
        expect(after < during["allocated"], "the figure did not shrink when 8 MiB were given back")
        expect(during.get("peak", grown) >= grown, f"peak {during.get('peak')} is below what was in use")
    return ", ".join(f"{name} {value / MEBI:.0f} MiB" for name, value in during.items())


def random_state(device: Device) -> str:
    """A seed and a kept state each bring the same numbers back."""

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


def saved_and_loaded(device: Device) -> str:
    """A module's weights leave through ``torch.save`` and are read on the CPU."""
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
    wanted = block.double()(x.double())
    gradient = torch.autograd.grad(wanted.square().mean(), linear.weight)[0]
    block = block.float().to(device.torch_device)
    with device.autocast(precision):
        result = block(x.to(device.torch_device))
        softmax = F.softmax(result, dim=-1)
    expect(result.dtype == PRECISIONS[precision], f"a linear layer gave {result.dtype}")
    limit = HALF_LIMIT[precision]
    error = compare(result, wanted, limit, "forward")
    compare(softmax, F.softmax(wanted, dim=-1), limit, "softmax")
    (found_gradient,) = torch.autograd.grad(result.float().square().mean(), linear.weight)
    expect(found_gradient.dtype == torch.float32, f"the gradient of an fp32 weight is {found_gradient.dtype}")
    return f"error {error:.0e}, backward {compare(found_gradient, gradient, 2 * limit, 'gradient'):.0e}"


# --- processes --------------------------------------------------------------------------------------------------------


def collectives(device: Device) -> str:
    """The collective library is there, and works with a group of one."""
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
    return "all_reduce, all_gather and broadcast in a group of one"
