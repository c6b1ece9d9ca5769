"""What a conformance check is, and how it is run: the base of ``suite`` and ``training``.

A check is a function of a device that returns a short description of its result, or raises. What is checked is not known here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from diptych.devices import Device

HALF_LIMIT = {"bf16": 4e-2, "fp16": 1e-2}
"""How far mixed precision may be from float64, over the largest value."""


class Mismatch(Exception):
    """The accelerator did not do what it should; the message says what, with figures."""


class NotClaimed(Exception):
    """The accelerator does not claim to do this, or cannot be asked."""


@dataclass(frozen=True)
class Row:
    """A line of the table. ``required`` False: a failure is shown but does not fail the suite."""

    group: str
    name: str
    outcome: Literal["passed", "failed", "skipped"]
    detail: str
    seconds: float
    required: bool = True


@dataclass(frozen=True)
class Check:
    """``run(device)`` describes its result in a few words; it raises Mismatch, NotClaimed, or whatever the device raises."""

    group: str
    name: str
    run: Callable[[Device], str]
    required: bool = True


def outcome(check: Check, device: Device) -> Row:
    """Run a check and report how it went."""
    start = time.perf_counter()
    row = Row(check.group, check.name, "passed", "", 0.0, check.required)
    try:
        detail = check.run(device)
        # Errors of work still queued must appear in this row, not in a later one.
        device.synchronize()
        row = replace(row, detail=detail)
    except NotClaimed as reason:
        row = replace(row, outcome="skipped", detail=str(reason))
    except Exception as error:  # whatever a vendor's operator raises is the result
        message = " ".join(str(error).split())
        prefix = "" if isinstance(error, Mismatch) else f"{type(error).__name__}: "
        row = replace(row, outcome="failed", detail=prefix + message)
    return replace(row, seconds=time.perf_counter() - start)


def expect(true: bool, message: str) -> None:
    """Raise Mismatch unless ``true``."""
    if not true:
        raise Mismatch(message)


def compare(actual: Tensor, expected: Tensor, limit: float, what: str) -> float:
    """The largest difference over the largest expected value. Raises Mismatch above ``limit``, or for another shape."""
    expect(actual.shape == expected.shape, f"{what}: shape {list(actual.shape)}, expected {list(expected.shape)}")
    result, reference = actual.detach().cpu().double(), expected.detach().cpu().double()
    expect(bool(torch.isfinite(result).all()), f"{what}: not finite")
    if not reference.numel():
        return 0.0
    error = float((result - reference).abs().max() / reference.abs().max().clamp_min(1e-12))
    expect(error <= limit, f"{what}: error {error:.1e}, limit {limit:.0e}")
    return error
