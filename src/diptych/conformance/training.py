"""The part of the conformance suite that trains: gradient scaler, optimizer, clipping, and two steps of a small CLIP.

Everything runs twice, on the accelerator and on the CPU, from the same weights and the same batch, through the very step
that ``diptych train`` takes. Two steps, because a wrong first update shows in the second loss. It measures no speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.conformance.checks import HALF_LIMIT, Check, Mismatch, NotClaimed, compare, expect
from diptych.devices import PRECISIONS, PURE, Device, get_device
from diptych.distributed.process_group import World
from diptych.models import TextConfig, TwoTower, create_model, list_models, model_config, text_layout
from diptych.objectives import OBJECTIVES, create_objective
from diptych.train.optimizer import OptimizerOptions
from diptych.train.step import Step, create_step
from diptych.types import Batch

PAIRS = 6
SHAPES = ((7, 5), (5,), (1,))  # of the parameters in checks of optimizer and clipping
MAX_STEPS = 12
LOSS_LIMIT = {"fp32": 5e-3, **{name: 2 * limit for name, limit in HALF_LIMIT.items()}}
LOSS_LIMIT |= {name: LOSS_LIMIT[arithmetic] for name, arithmetic in PURE.items()}


def training_checks() -> Iterator[Check]:
    """All checks of this file, from cheap to expensive."""
    yield Check("training", "gradient scaler", gradient_scaler)
    yield Check("training", "AdamW", partial(adamw, fused=False))
    yield Check("training", "AdamW, fused", partial(adamw, fused=True))
    yield Check("training", "gradient clipping", clipping)
    for name in smallest_models():
        for precision in (*PRECISIONS, *PURE):
            yield Check(
                "training", f"two steps of {name}, {precision}", partial(two_steps, name=name, precision=precision)
            )
        yield Check("training", f"two micro-batches of {name}", partial(micro_batches, name=name))


def smallest_models() -> list[str]:
    """The smallest architecture of each image tower family."""
    configs = sorted(
        map(model_config, list_models()), key=lambda c: (c.vision.image_size, c.vision.width, c.text.width)
    )
    smallest: dict[str, str] = {}
    for config in configs:
        smallest.setdefault(config.vision.family, config.name)
    return sorted(smallest.values())


def gradient_scaler(device: Device) -> str:
    """A step with finite gradients is taken; a step with an infinite gradient is skipped, and the scale falls."""
    if not device.abilities.float16:
        raise NotClaimed("the device does not claim fp16")
    expect(not device.scaler("bf16").is_enabled(), "the scaler is on for bf16")
    weight = nn.Parameter(torch.ones(4, device=device.torch_device))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    scaler = device.scaler("fp16")
    before = scaler.get_scale()
    for gradient, expected in ((1.0, 0.5), (float("inf"), 0.5)):
        optimizer.zero_grad()
        scaler.scale((weight * gradient).sum()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        compare(weight, torch.full((4,), expected), 1e-6, f"after a gradient of {gradient}")
    expect(scaler.get_scale() < before, f"the scale stayed at {before} after an infinite gradient")
    return f"scale {before:.0f}, then {scaler.get_scale():.0f}"


def adamw(device: Device, fused: bool) -> str:
    """Three steps of AdamW, against float64 on the CPU."""
    if fused and not device.abilities.fused_adamw:
        raise NotClaimed("the device does not claim it")

    def stepped(on: torch.device, dtype: torch.dtype, fused: bool) -> list[Tensor]:
        source = torch.Generator().manual_seed(5)
        weights = [nn.Parameter(torch.randn(shape, generator=source).to(on, dtype)) for shape in SHAPES]
        optimizer = torch.optim.AdamW(
            weights, lr=1e-2, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2, fused=fused or None
        )
        for _ in range(3):
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=source).to(on, dtype)
            optimizer.step()
        return [weight.detach() for weight in weights]

    expected = stepped(torch.device("cpu"), torch.float64, False)
    return _largest_error(stepped(device.torch_device, torch.float32, fused), expected, "weights")


def clipping(device: Device) -> str:
    """The global norm of gradients of several shapes, and the gradients once clipped to a norm of 1."""

    def clipped(on: torch.device, dtype: torch.dtype) -> list[Tensor]:
        source = torch.Generator().manual_seed(6)
        weights = [nn.Parameter(torch.zeros(shape, device=on, dtype=dtype)) for shape in SHAPES]
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=source).to(on, dtype)
        norm = nn.utils.clip_grad_norm_(weights, 1.0)
        return [norm, *(weight.grad for weight in weights if weight.grad is not None)]

    expected = clipped(torch.device("cpu"), torch.float64)
    return _largest_error(clipped(device.torch_device, torch.float32), expected, "norm or gradient")


def _largest_error(actual: list[Tensor], expected: list[Tensor], what: str) -> str:
    return f"error {max(compare(a, b, 1e-5, what) for a, b in zip(actual, expected, strict=True)):.0e}"


def two_steps(device: Device, name: str, precision: str) -> str:
    """Two steps as ``diptych train`` takes them; the losses must be the CPU's, and fall."""
    ability = {"bf16": "bfloat16", "fp16": "float16"}.get(PURE.get(precision, precision))
    if ability and not getattr(device.abilities, ability):
        raise NotClaimed(f"the device does not claim {precision}")
    losses, expected = _losses(device, name, precision), _losses(get_device("cpu"), name, "fp32")
    error = _loss_error(losses, expected, LOSS_LIMIT[precision])
    expect(losses[1] < losses[0], f"the loss rose from {losses[0]:.4f} to {losses[1]:.4f}")
    return f"loss {losses[0]:.3f}, then {losses[1]:.3f}; error {error:.0e}"


def _loss_error(losses: list[float], expected: list[float], limit: float) -> float:
    return compare(torch.tensor(losses), torch.tensor(expected), limit, f"losses {losses}, expected {expected}")


def micro_batches(device: Device, name: str) -> str:
    """The step that caches features over two micro-batches, whose loss sees the whole batch, as the CPU takes it."""
    halves = [slice(0, PAIRS // 2), slice(PAIRS // 2, PAIRS)]

    def split(batch: Batch) -> list[Batch]:
        return [part_of(batch, half) for half in halves]

    losses, expected = (_losses(each, name, "fp32", split) for each in (device, get_device("cpu")))
    return f"error {_loss_error(losses, expected, LOSS_LIMIT['fp32']):.0e}"


def training_step(
    model: TwoTower,
    device: Device,
    precision: str,
    *,
    learning_rate: float,
    clip_norm: float = 0.0,
    world: World | None = None,
) -> Step:
    """The step that ``diptych train`` takes on CLIP's loss, with its AdamW; moves the model to the device."""
    objective = create_objective(OBJECTIVES.get("clip").Config(), model)
    return create_step(
        objective, OptimizerOptions(lr=learning_rate, grad_clip_norm=clip_norm), device, precision, world
    )


def _losses(
    device: Device, name: str, precision: str, split: Callable[[Batch], list[Batch]] = lambda batch: [batch]
) -> list[float]:
    state = torch.get_rng_state()
    torch.manual_seed(11)
    model = create_model(name)
    torch.set_rng_state(state)
    step = training_step(model, device, precision, learning_rate=1e-3, clip_norm=1.0)
    text = model.config.text
    batches = split(example_batch(model.config.vision.image_size, text.context_length))
    batches = [planned(batch, text, device, precision) for batch in batches]
    losses: list[float] = []
    # The scaler starts high and skips steps until its scale fits fp16's range: those do not count.
    for _ in range(MAX_STEPS):
        scale = step.scaler.get_scale()
        loss = float(step(batches).loss)
        if step.scaler.get_scale() >= scale:
            losses.append(loss)
        if len(losses) == 2:
            return losses
    raise Mismatch(f"the gradient scaler skipped {MAX_STEPS - len(losses)} of {MAX_STEPS} steps")


def example_batch(size: int, context: int) -> Batch:
    """Random images and captions of unequal lengths, padded, as ``collate`` makes them."""
    source = torch.Generator().manual_seed(12)
    images = torch.randint(0, 256, (1, PAIRS, 3, size, size), generator=source).to(torch.uint8)
    lengths = torch.tensor([[5, 9, 3, 9, 5, 4]]).clamp_max(context)
    longest = int(lengths.max())
    tokens = torch.randint(1, 49_000, (1, PAIRS, longest), generator=source)
    tokens = tokens.masked_fill(torch.arange(longest) >= lengths[..., None], 0)
    tokens.scatter_(2, lengths[..., None] - 1, 49_407)
    keys = tuple(str(number) for number in range(PAIRS))
    numbers = torch.arange(PAIRS)
    return Batch(images, tokens, lengths, keys, numbers, numbers, numbers)


def planned(batch: Batch, text: TextConfig, device: Device, precision: str) -> Batch:
    """The batch with its texts laid out as the device takes them, as loader processes do."""
    layout = text_layout(text, device.text_layout(precision))
    if layout is None:
        return batch
    padded = layout.padded(batch.tokens.shape[2])
    tokens = F.pad(batch.tokens, (0, padded - batch.tokens.shape[2]))
    return batch._replace(tokens=tokens, plans=tuple(layout.plan(lengths, padded) for lengths in batch.lengths))


def part_of(batch: Batch, rows: slice) -> Batch:
    """Some rows of a batch: a micro-batch, or a process's share."""
    return Batch(
        batch.images[:, rows], batch.tokens[:, rows], batch.lengths[:, rows], batch.keys[rows], batch.indices[rows],
        batch.seeds[rows], batch.groups[rows],
    )  # fmt: skip
