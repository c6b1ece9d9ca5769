"""The part of the conformance suite that trains: gradient scaler, optimiser, clipping, and two steps of a small CLIP.

Everything runs twice, on the accelerator and on the CPU, from the same weights and the same batch, through the very step
that ``diptych train`` takes. Two steps, because a wrong first update shows in the second loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from diptych.conformance.checks import HALF_LIMIT, Check, Mismatch, NotClaimed, compare, expect
from diptych.devices import PRECISIONS, Device, get_device
from diptych.types import Batch

PAIRS = 6
MOST_STEPS = 12
LOSS_LIMIT = {"fp32": 5e-3, **{name: 2 * limit for name, limit in HALF_LIMIT.items()}}


def training_checks() -> Iterator[Check]:
    """All checks of this file, the cheapest first."""
    yield Check("training", "gradient scaler", gradient_scaler)
    yield Check("training", "AdamW", partial(adamw, fused=False))
    yield Check("training", "AdamW, fused", partial(adamw, fused=True))
    yield Check("training", "gradient clipping", clipping)
    for name in smallest_models():
        for precision in PRECISIONS:
            yield Check(
                "training", f"two steps of {name}, {precision}", partial(two_steps, name=name, precision=precision)
            )
        yield Check("training", f"two micro-batches of {name}", partial(micro_batches, name=name))


def smallest_models() -> list[str]:
    """The smallest architecture of each image tower family."""
    from diptych.models import list_models, model_config

    configs = sorted(
        map(model_config, list_models()), key=lambda one: (one.vision.image_size, one.vision.width, one.text.width)
    )
    smallest: dict[str, str] = {}
    for config in configs:
        smallest.setdefault(config.vision.family, config.name)
    return sorted(smallest.values())


def gradient_scaler(device: Device) -> str:
    """A step with finite gradients is taken; one with an infinite gradient is left out, and the scale falls."""
    if not device.abilities.float16:
        raise NotClaimed("the device does not claim fp16")
    expect(not device.scaler("bf16").is_enabled(), "the scaler is on for bf16")
    weight = nn.Parameter(torch.ones(4, device=device.torch_device))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    scaler = device.scaler("fp16")
    before = scaler.get_scale()
    for gradient, wanted in ((1.0, 0.5), (float("inf"), 0.5)):
        optimizer.zero_grad()
        scaler.scale((weight * gradient).sum()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        compare(weight, torch.full((4,), wanted), 1e-6, f"after a gradient of {gradient}")
    expect(scaler.get_scale() < before, f"the scale stayed at {before} after an infinite gradient")
    return f"scale {before:.0f}, then {scaler.get_scale():.0f}"


def adamw(device: Device, fused: bool) -> str:
    """Three steps of AdamW, against float64 on the CPU."""
    if fused and not device.abilities.fused_adamw:
        raise NotClaimed("the device does not claim it")

    def stepped(place: torch.device, dtype: torch.dtype, kernel: bool) -> list[Tensor]:
        source = torch.Generator().manual_seed(5)
        weights = [
            nn.Parameter(torch.randn(shape, generator=source).to(place, dtype)) for shape in ((7, 5), (5,), (1,))
        ]
        optimizer = torch.optim.AdamW(
            weights, lr=1e-2, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2, fused=kernel or None
        )
        for _ in range(3):
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=source).to(place, dtype)
            optimizer.step()
        return [weight.detach() for weight in weights]

    wanted = stepped(torch.device("cpu"), torch.float64, False)
    found = stepped(device.torch_device, torch.float32, fused)
    return f"error {max(compare(one, two, 1e-5, 'weights') for one, two in zip(found, wanted, strict=True)):.0e}"


def clipping(device: Device) -> str:
    """The global norm of gradients of several shapes, and the gradients after it was brought down to 1."""

    def clipped(place: torch.device, dtype: torch.dtype) -> list[Tensor]:
        source = torch.Generator().manual_seed(6)
        weights = [nn.Parameter(torch.zeros(shape, device=place, dtype=dtype)) for shape in ((7, 5), (5,), (1,))]
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=source).to(place, dtype)
        norm = nn.utils.clip_grad_norm_(weights, 1.0)
        return [norm, *(weight.grad for weight in weights if weight.grad is not None)]

    wanted, found = clipped(torch.device("cpu"), torch.float64), clipped(device.torch_device, torch.float32)
    return (
        f"error {max(compare(one, two, 1e-5, 'norm or gradient') for one, two in zip(found, wanted, strict=True)):.0e}"
    )


def two_steps(device: Device, name: str, precision: str) -> str:
    """Two steps as ``diptych train`` takes them; the losses must be the CPU's, and fall."""
    ability = {"bf16": "bfloat16", "fp16": "float16"}.get(precision)
    if ability and not getattr(device.abilities, ability):
        raise NotClaimed(f"the device does not claim {precision}")
    found, wanted = _losses(device, name, precision), _losses(get_device("cpu"), name, "fp32")
    error = compare(
        torch.tensor(found), torch.tensor(wanted), LOSS_LIMIT[precision], f"losses {found}, expected {wanted}"
    )
    expect(found[1] < found[0], f"the loss rose from {found[0]:.4f} to {found[1]:.4f}")
    return f"loss {found[0]:.3f}, then {found[1]:.3f}; error {error:.0e}"


def micro_batches(device: Device, name: str) -> str:
    """The step that caches features over two micro-batches, whose loss sees the whole batch, as the CPU takes it."""
    halves = [slice(0, PAIRS // 2), slice(PAIRS // 2, PAIRS)]

    def cut(batch: Batch) -> list[Batch]:
        return [part_of(batch, half) for half in halves]

    found, wanted = (_losses(place, name, "fp32", cut) for place in (device, get_device("cpu")))
    error = compare(torch.tensor(found), torch.tensor(wanted), LOSS_LIMIT["fp32"], f"losses {found}, expected {wanted}")
    return f"error {error:.0e}"


def _losses(
    device: Device, name: str, precision: str, cut: Callable[[Batch], list[Batch]] = lambda batch: [batch]
) -> list[float]:
    from diptych.models import create_model
    from diptych.objectives import OBJECTIVES, create_objective
    from diptych.train.optimizer import OptimizerOptions, create_optimizer
    from diptych.train.step import Step

    kept = torch.get_rng_state()
    torch.manual_seed(11)
    model = create_model(name)
    torch.set_rng_state(kept)
    objective = create_objective(OBJECTIVES.get("clip").Config(), model).to(device.torch_device).train()
    optimizer = create_optimizer(objective, OptimizerOptions(lr=1e-3), device)
    step = Step(objective, optimizer, device, precision, clip_norm=1.0)
    batch = example_batch(model.config.vision.image_size, model.config.text.context_length)
    losses: list[float] = []
    # The scaler starts high and leaves out steps until its scale fits fp16's range: those do not count.
    for _ in range(MOST_STEPS):
        scale = step.scaler.get_scale()
        loss = float(step(cut(batch)).loss)
        if step.scaler.get_scale() >= scale:
            losses.append(loss)
        if len(losses) == 2:
            return losses
    raise Mismatch(f"the gradient scaler left out {MOST_STEPS - len(losses)} of {MOST_STEPS} steps")


def example_batch(size: int, context: int) -> Batch:
    """Random pictures and captions of unequal lengths, padded, as ``collate`` makes them."""
    source = torch.Generator().manual_seed(12)
    images = torch.randint(0, 256, (1, PAIRS, 3, size, size), generator=source).to(torch.uint8)
    lengths = torch.tensor([[5, 9, 3, 9, 5, 4]]).clamp_max(context)
    longest = int(lengths.max())
    tokens = torch.randint(1, 49_000, (1, PAIRS, longest), generator=source)
    tokens = tokens.masked_fill(torch.arange(longest) >= lengths[..., None], 0)
    tokens.scatter_(2, lengths[..., None] - 1, 49_407)
    keys = tuple(str(number) for number in range(PAIRS))
    rows = torch.arange(PAIRS)
    return Batch(images, tokens, lengths, keys, rows, rows, rows)


def part_of(batch: Batch, rows: slice) -> Batch:
    """Some rows of a batch: a micro-batch, or a process's share."""
    return Batch(
        batch.images[:, rows], batch.tokens[:, rows], batch.lengths[:, rows], batch.keys[rows], batch.indices[rows],
        batch.seeds[rows], batch.groups[rows],
    )  # fmt: skip
