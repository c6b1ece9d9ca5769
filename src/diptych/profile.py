"""What a model costs: parameters and floating-point operations counted without running it, time and memory by running it.

``count`` works on the meta device, so it needs neither memory nor time for any size. Operations are those of matrix products,
convolutions and attention, two for each multiply-add, for one image and one text of the full context, computed in full: the
field's convention (open_clip's profile), not what Diptych computes, which is less (see ``models``). ``measure`` runs the real
towers on a device, and reports what share of that device's own matrix speed they reach.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from diptych.devices import PRECISIONS, Device
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
    image, text = tower_flops(model)
    return Counts(
        config.name, config.vision.image_size, config.vision.width, config.text.width, config.embed_dim,
        _millions(model), _millions(model.image), _millions(model.text),
        round((image + text) / 1e9, 2), round(image / 1e9, 2), round(text / 1e9, 2),
    )  # fmt: skip


def _millions(module: torch.nn.Module) -> float:
    return round(sum(parameter.numel() for parameter in module.parameters()) / 1e6, 2)


def tower_flops(model: TwoTower) -> tuple[int, int]:
    """Operations of the image and of the text tower for one input each, in full; of a model on the meta device, in evaluation."""
    side, text = model.config.vision.image_size, model.config.text
    pixels = torch.zeros(1, 3, side, side, device="meta")
    ids = torch.zeros(1, text.context_length, dtype=torch.int64, device="meta")
    lengths = torch.full((1,), text.context_length, device="meta")
    image = _counted(lambda: model.image(pixels, return_tokens=True)) + _pool_remainder(model.config)
    return image, _counted(lambda: model.text(ids, lengths, return_tokens=True))


def _pool_remainder(config: ModelConfig) -> int:
    """Our ResNet's attention pool computes one query; the field's counts have a query for every position of the map."""
    if config.vision.family != "resnet":
        return 0
    positions, width = (config.vision.image_size // 32) ** 2, config.vision.width * 32
    return 2 * positions * (width * width + width * config.embed_dim + 2 * (positions + 1) * width)


def _counted(call: Callable[[], Encoded]) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        call()
    return int(counter.get_total_flops())


@dataclass(frozen=True)
class Measured:
    """Running one part: median seconds of a batch, items per second, peak memory in bytes (0: the device does not report it),
    and the share of the device's own matrix speed, in operations really needed."""

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
    model = create_model(name).to(device.torch_device)
    config = model.config
    size = config.vision.image_size
    image_flops, text_flops = tower_flops(create_model(config, device="meta").eval())
    images = torch.zeros(batch_size, 3, size, size, dtype=torch.uint8, device=device.torch_device)
    ids, share = _captions(config, batch_size, caption_tokens)
    ids, peak = ids.to(device.torch_device), matrix_speed(device, precision)
    flops = {"image": float(image_flops), "text": text_flops * share}
    flops["training step"] = TRAINING * (flops["image"] + flops["text"])
    calls: dict[str, Callable[[], object]] = {
        "image": lambda: _without_gradient(lambda: model.image(images).pooled),
        "text": lambda: _without_gradient(lambda: model.text(ids).pooled),
        "training step": lambda: _step(model, images, ids),
    }
    rows = []
    for part, call in calls.items():
        with device.autocast(precision):
            seconds, memory = _timed(call, device, rounds)
        speed = flops[part] * batch_size / seconds
        rows.append(Measured(part, seconds, batch_size / seconds, memory, speed / peak))
    return rows


def _captions(config: ModelConfig, batch_size: int, tokens: int) -> tuple[torch.Tensor, float]:
    """Token ids of captions of equal length, and which share of the full context's operations they need."""
    text = config.text
    if text.family != "transformer":
        return torch.full((batch_size, text.context_length), text.pad_id), 1.0
    length = min(tokens, text.context_length)
    ids = torch.zeros(batch_size, length, dtype=torch.int64)
    ids[:, 0], ids[:, -1] = text.vocab_size - 2, text.vocab_size - 1
    return ids, length / text.context_length


def _without_gradient(call: Callable[[], torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return call()


def _step(model: TwoTower, images: torch.Tensor, ids: torch.Tensor) -> None:
    """Forward, CLIP's loss, backward; no optimizer, so that what is measured is the model."""
    image, text, scale = model(images, ids)
    logits = scale * image.float() @ text.float().T
    target = torch.arange(len(logits), device=logits.device)
    entropy = torch.nn.functional.cross_entropy
    (entropy(logits, target) + entropy(logits.T, target)).backward()
    model.zero_grad(set_to_none=True)


def _timed(call: Callable[[], object], device: Device, rounds: int) -> tuple[float, int]:
    """Median seconds after one round of warm-up, and the device's peak memory."""
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
    """Operations per second of a large linear layer, measured when called: what the towers are compared with."""
    side = 1024 if device.torch_device.type == "cpu" else 8192
    inputs, weight = (torch.randn(side, side, device=device.torch_device).to(PRECISIONS[precision]) for _ in range(2))
    seconds, _ = _timed(lambda: torch.nn.functional.linear(inputs, weight), device, 7)
    return 2 * side**3 / seconds
