"""What a model costs: parameters and floating-point operations counted without running it, time and memory by running it.

``count`` works on the meta device, so it needs neither memory nor time for any size. Operations are those of matrix products,
convolutions and attention, two for each multiply-add, for one picture and one text of the full context, computed in full: the
field's convention (open_clip's profile), not what Diptych computes, which is less (see ``models``). ``measure`` runs the real
towers on a device, and says what share of that device's own matrix speed they reach.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from diptych.devices import Device
from diptych.models import ModelConfig, TwoTower, create_model
from diptych.types import Encoded

TRAINING = 3  # the backward pass costs two forward ones


@dataclass(frozen=True)
class Counts:
    """One row of the table; parameters in millions, operations in billions, to two decimals."""

    model: str
    image_size: int
    image_width: int
    text_width: int
    embed_dim: int
    mparams: float
    image_mparams: float
    text_mparams: float
    gflops: float
    image_gflops: float
    text_gflops: float

    def row(self) -> list[str]:
        """The fields as open_clip's CSV writes them."""
        return [str(value) for value in asdict(self).values()]


COLUMNS = tuple(Counts.__dataclass_fields__)


def count(name: str | ModelConfig) -> Counts:
    """Parameters and operations of an architecture, on the meta device. Raises ConfigError for an unknown name."""
    model = create_model(name, device="meta").eval()
    config = model.config
    image, text = _flops(model)
    return Counts(
        config.name, config.vision.image_size, config.vision.width, config.text.width, config.embed_dim,
        _millions(model), _millions(model.image), _millions(model.text),
        round((image + text) / 1e9, 2), round(image / 1e9, 2), round(text / 1e9, 2),
    )  # fmt: skip


def _millions(module: torch.nn.Module) -> float:
    return round(sum(item.numel() for item in module.parameters()) / 1e6, 2)


def _flops(model: TwoTower) -> tuple[int, int]:
    """Operations of the image and of the text tower for one input each, no block cut and no padding left out."""
    side, text = model.config.vision.image_size, model.config.text
    pixels = torch.zeros(1, 3, side, side, device="meta")
    ids = torch.zeros(1, text.context_length, dtype=torch.int64, device="meta")
    lengths = torch.full((1,), text.context_length, device="meta")
    image = _counted(lambda: model.image(pixels, return_tokens=True)) + _pool_left_out(model.config)
    return image, _counted(lambda: model.text(ids, lengths, return_tokens=True))


def _pool_left_out(config: ModelConfig) -> int:
    """Our ResNet's attention pool asks once; the field's counts take a query for every place of the map."""
    if config.vision.family != "resnet":
        return 0
    places, width = (config.vision.image_size // 32) ** 2, config.vision.width * 32
    return 2 * places * (width * width + width * config.embed_dim + 2 * (places + 1) * width)


def _counted(call: Callable[[], Encoded]) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        call()
    return int(counter.get_total_flops())


@dataclass(frozen=True)
class Measured:
    """Running one part: median seconds of a batch, items per second, peak memory in bytes (0: the device does not tell), and
    the share of the device's own matrix speed, in operations really needed."""

    part: str
    seconds: float
    per_second: float
    memory: int
    share_of_peak: float


def measure(
    name: str,
    device: Device,
    *,
    batch_size: int = 8,
    precision: str = "fp32",
    caption_tokens: int = 16,
    rounds: int = 5,
) -> list[Measured]:
    """Image tower, text tower and a whole training step on a device, with captions of ``caption_tokens``. Raises DeviceError."""
    place = device.torch_device
    model = create_model(name).to(place)
    config = model.config
    whole = _flops(create_model(config, device="meta").eval())
    images = torch.zeros(
        batch_size, 3, config.vision.image_size, config.vision.image_size, dtype=torch.uint8, device=place
    )
    ids, share = _captions(config, batch_size, caption_tokens)
    ids, peak = ids.to(place), matrix_speed(device, precision)
    work = {"image": float(whole[0]), "text": whole[1] * share}
    work["training step"] = TRAINING * (work["image"] + work["text"])
    steps: dict[str, Callable[[], Any]] = {
        "image": lambda: _still(lambda: model.image(images).pooled),
        "text": lambda: _still(lambda: model.text(ids).pooled),
        "training step": lambda: _step(model, images, ids),
    }
    found = []
    for part, call in steps.items():
        with device.autocast(precision):
            seconds, memory = _timed(call, device, rounds)
        speed = work[part] * batch_size / seconds
        found.append(Measured(part, seconds, batch_size / seconds, memory, speed / peak))
    return found


def _captions(config: ModelConfig, count_of: int, tokens: int) -> tuple[torch.Tensor, float]:
    """Token ids of captions of one length, and which share of the full context's work they need."""
    text = config.text
    if text.family != "transformer":
        return torch.full((count_of, text.context_length), text.pad_id), 1.0
    length = min(tokens, text.context_length)
    ids = torch.zeros(count_of, length, dtype=torch.int64)
    ids[:, 0], ids[:, -1] = text.vocab_size - 2, text.vocab_size - 1
    return ids, length / text.context_length


def _still(call: Callable[[], torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return call()


def _step(model: TwoTower, images: torch.Tensor, ids: torch.Tensor) -> None:
    """Forward, the contrastive loss, backward; no optimiser."""
    one, two, scale = model(images, ids)
    logits = scale * one.float() @ two.float().T
    target = torch.arange(len(logits), device=logits.device)
    entropy = torch.nn.functional.cross_entropy
    (entropy(logits, target) + entropy(logits.T, target)).backward()
    model.zero_grad(set_to_none=True)


def _timed(call: Callable[[], Any], device: Device, rounds: int) -> tuple[float, int]:
    """Median seconds after one round for warming up, and the device's peak memory."""
    device.reset_peak_memory()
    call()
    device.synchronize()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        device.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), device.memory().get("peak", 0)


def matrix_speed(device: Device, precision: str) -> float:
    """Operations per second of a large matrix product here and now: what the towers are held against."""
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    side = 1024 if device.torch_device.type == "cpu" else 8192
    one = torch.randn(side, side, device=device.torch_device).to(kind)
    two = torch.randn(side, side, device=device.torch_device).to(kind)
    seconds, _ = _timed(lambda: one @ two, device, 7)
    return 2 * side**3 / seconds
