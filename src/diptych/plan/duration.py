"""How long a step takes: an estimate from a device's peak and a share of it, or from real steps on this machine's device.

Both are estimates and are labeled so: what processes send is not in them, and a measured step is of one process.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

from diptych.devices import Device
from diptych.distributed.mesh import ParallelOptions
from diptych.models import create_model, model_config
from diptych.objectives import OBJECTIVES, create_objective
from diptych.plan.request import Request
from diptych.profile import tower_flops
from diptych.train.dry_run import trial_batch
from diptych.train.optimizer import OptimizerOptions
from diptych.train.step import create_step

STEPS = 20


@dataclass(frozen=True)
class Duration:
    """``seconds`` of a step, and in a clause where they come from."""

    seconds: float
    source: str


def operations(request: Request, micro_batches: int, tensor: int) -> float:
    """Floating-point operations of one process for one of its pairs and all passes of a step, in matrix products.

    A backward pass costs two forward ones, recomputing activations one more, micro-batches another one without gradient.
    """
    model = create_model(request.model, device="meta").eval()
    context = model.config.text.context_length
    image, text = tower_flops(model)
    share = min(request.caption_tokens or context, context) / context
    if model.config.text.family != "transformer":
        share = 1.0
    first = 1 if micro_batches > 1 else 0
    again = 1 if request.grad_checkpointing else 0
    total = 0.0
    for flops, locked, split in (
        (float(image), request.lock_image, model.config.vision.family != "resnet"),
        (text * share, request.lock_text, True),
    ):
        passes = first + (1 if locked else 3 + again)
        total += flops * passes / (tensor if split else 1)
    return total


def from_peak(pairs: int, operations_each: float, peak: float, efficiency: float) -> Duration:
    """Of ``pairs`` on one device of ``peak`` operations per second, of which towers reach the share ``efficiency``."""
    return Duration(
        pairs * operations_each / (peak * efficiency),
        f"{efficiency:g} of {peak:.3g} operations per second, no exchange",
    )


def measured(request: Request, device: Device, pairs: int, of: int, micro_batches: int) -> Duration:
    """From 20 real steps of ``of`` pairs on this device, scaled to ``pairs``; the pass without gradient is added as a third."""
    entry = OBJECTIVES.get(request.objective.objective)
    config = model_config(request.model).with_needs(entry.model_needs(request.objective))
    objective = create_objective(request.objective, create_model(config))
    objective.model.lock(image=request.lock_image, text=request.lock_text)
    objective.model.checkpoint_activations(request.grad_checkpointing)
    step = create_step(
        objective,
        OptimizerOptions(lr=0.0, optimizer=request.optimizer),  # type: ignore[arg-type]
        device,
        request.precision,
        parallel=ParallelOptions(master_weights=request.master_weights),
    )
    batch = trial_batch(config, objective.wants, of, request.caption_tokens)
    batch = batch._replace(images=torch.zeros(batch.images.shape, dtype=torch.uint8))
    step([batch])
    seconds = []
    for _ in range(STEPS):
        device.synchronize()
        start = time.perf_counter()
        step([batch])
        device.synchronize()
        seconds.append(time.perf_counter() - start)
    factor = 4 / 3 if micro_batches > 1 else 1.0
    source = f"{STEPS} steps of {of} pairs in one process on {device.torch_device}, scaled; no exchange"
    return Duration(statistics.median(seconds) * pairs / of * factor, source)
