"""Random numbers that depend on (seed of the pair, layer) and on nothing else: not on rank, micro-batch, pass or device.

A counter-based generator: number ``i`` of a stream is a hash of the stream's key and ``i`` (splitmix64; Steele, Lea and Flood
2014, "Fast splittable pseudorandom number generators"), computed where the tensors are, in int64 arithmetic, which wraps around
alike on every device. Not torch's generator: that one's state depends on everything drawn before. Not for cryptography.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diptych.errors import ConfigError

PATCH_DROPOUT = 0
"""Layer numbers: every layer that draws has one of its own, since two layers with one number would draw alike."""

GOLDEN = 0x9E3779B97F4A7C15
MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
LARGEST_SEED = (1 << 63) - 1


def _signed(value: int) -> int:
    """The int64 with the lowest 64 bits of ``value``."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _shifted(x: Tensor, bits: int) -> Tensor:
    """A logical shift to the right: torch's keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mixed(x: Tensor) -> Tensor:
    """The finalizer of splitmix64: a bijection of 64-bit integers in which every input bit flips half of the output's."""
    x = (x ^ _shifted(x, 30)) * _signed(MULTIPLIERS[0])
    x = (x ^ _shifted(x, 27)) * _signed(MULTIPLIERS[1])
    return x ^ _shifted(x, 31)


def integers(seeds: Tensor, layer: int, count: int) -> Tensor:
    """``count`` uniform integers of 63 bits for each seed: int64 [B] -> int64 [B, count], on the device of ``seeds``."""
    # The layer is mixed on its own first: seed + layer would give neighboring seeds each other's streams.
    key = _mixed(_mixed(seeds.to(torch.int64)) + _signed((layer + 1) * MULTIPLIERS[0]))
    counter = torch.arange(1, count + 1, device=seeds.device, dtype=torch.int64) * _signed(GOLDEN)
    return _shifted(_mixed(key[:, None] + counter), 1)


def uniform(seeds: Tensor, layer: int, count: int) -> Tensor:
    """``count`` uniform numbers in [0, 1) for each seed: int64 [B] -> fp32 [B, count], multiples of 2**-24."""
    # 24 bits are exactly representable in fp32, so that no device rounds.
    return (integers(seeds, layer, count) >> 39).to(torch.float32) * 2.0**-24


def subset(seeds: Tensor, layer: int, count: int, size: int) -> Tensor:
    """``size`` distinct indices of 0 .. count - 1 for each seed, in random order: int64 [B] -> int64 [B, size]."""
    # By all 63 bits: with fewer, equal numbers would be common, and devices break ties differently.
    return integers(seeds, layer, count).topk(size, dim=1).indices


def seeds_of(seeds: Tensor | None, batch: int, device: torch.device) -> Tensor:
    """The seeds as they are, or where there are none, ``batch`` of them from torch's generator of the device.

    Raises ConfigError unless there is one seed for each sample.
    """
    if seeds is None:
        return torch.randint(LARGEST_SEED, (batch,), device=device)
    if tuple(seeds.shape) != (batch,):
        raise ConfigError(f"seeds of shape {list(seeds.shape)} were given; expected one for each of {batch} samples.")
    return seeds.to(device)
