"""The optimizers by name: AdamW, LAMB, Muon, SGD; what each takes of the options, and its own defaults.

An option of another optimizer is an error. Which parameters form a group with which rate and decay is ``optimizer.py``'s to say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from diptych.config import NotNegative, Share
from diptych.devices import Device
from diptych.errors import ConfigError
from diptych.train.lamb import Lamb
from diptych.train.muon import AdjustRate, MuonWithAdamW

# AdamW's beta2 and epsilon (Radford et al. 2021, table 18); LAMB's of its paper.
ADAMW, ADAMW_OF_RESNETS, LAMB = (0.98, 1e-6), (0.999, 1e-8), (0.999, 1e-6)
BETA1 = 0.9
SGD_MOMENTUM, MUON_MOMENTUM = 0.9, 0.95

Groups = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class AlgorithmOptions:
    """Which optimizer, and its own options."""

    optimizer: Literal["adamw", "lamb", "muon", "sgd"] = "adamw"
    """AdamW, LAMB, Muon (hidden matrices; AdamW moves the rest), or SGD with Nesterov's momentum."""
    beta1: Share | None = None
    """Decay of the first moment of AdamW or LAMB; without it 0.9."""
    beta2: Share | None = None
    """Decay of the second moment; without it AdamW's 0.98, for ResNets 0.999, as in CLIP's paper; LAMB's 0.999."""
    eps: NotNegative | None = None
    """Epsilon of AdamW or LAMB; without it 1e-6, AdamW's for ResNets 1e-8, as in CLIP's paper."""
    momentum: Share | None = None
    """Momentum of SGD or Muon, in Nesterov's form; without it SGD's 0.9, Muon's 0.95. 0 gives plain SGD."""
    muon_adjust_lr: AdjustRate | None = None
    """How Muon's rate depends on a matrix's shape: match_rms_adamw (an --lr for AdamW fits too; the default), or original."""


def _adam_values(options: AlgorithmOptions, defaults: tuple[float, float]) -> dict[str, Any]:
    beta2, eps = defaults
    betas = (_given(options.beta1, BETA1), _given(options.beta2, beta2))
    return {"betas": betas, "eps": _given(options.eps, eps)}


def _given(value: float | None, default: float) -> float:
    return default if value is None else value


def _adamw_values(options: AlgorithmOptions, device: Device, resnet: bool) -> dict[str, Any]:
    values = _adam_values(options, ADAMW_OF_RESNETS if resnet else ADAMW)
    fused = device.abilities.fused_adamw
    # A step that is not taken is not counted either, which only the device knows.
    return {**values, "fused": fused or None, "capturable": not fused and device.counts_steps}


def _adamw(groups: Groups, options: AlgorithmOptions, device: Device, resnet: bool) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, **_adamw_values(options, device, resnet))


def _lamb(groups: Groups, options: AlgorithmOptions, device: Device, resnet: bool) -> torch.optim.Optimizer:
    return Lamb(groups, **_adam_values(options, LAMB), capturable=device.asynchronous)


def _muon(groups: Groups, options: AlgorithmOptions, device: Device, resnet: bool) -> torch.optim.Optimizer:
    momentum, adjust = _given(options.momentum, MUON_MOMENTUM), options.muon_adjust_lr or "match_rms_adamw"
    return MuonWithAdamW(groups, momentum, adjust, _adamw_values(options, device, resnet))


def _sgd(groups: Groups, options: AlgorithmOptions, device: Device, resnet: bool) -> torch.optim.Optimizer:
    momentum = _given(options.momentum, SGD_MOMENTUM)
    return torch.optim.SGD(groups, momentum=momentum, nesterov=momentum > 0)


@dataclass(frozen=True)
class Algorithm:
    """``create(groups, options, device, resnet)``, and the options that it reads, of those that not all have."""

    create: Callable[[Groups, AlgorithmOptions, Device, bool], torch.optim.Optimizer]
    reads: tuple[str, ...]


ADAM_OPTIONS = ("beta1", "beta2", "eps")
ALGORITHMS = {
    "adamw": Algorithm(_adamw, ADAM_OPTIONS),
    "lamb": Algorithm(_lamb, ADAM_OPTIONS),
    "muon": Algorithm(_muon, (*ADAM_OPTIONS, "momentum", "muon_adjust_lr")),
    "sgd": Algorithm(_sgd, ("momentum",)),
}


def check_algorithm(options: AlgorithmOptions) -> None:
    """Raise ConfigError for an option that the chosen optimizer does not have, and for a momentum of 1."""
    every = dict.fromkeys(name for algorithm in ALGORITHMS.values() for name in algorithm.reads)
    for name in every:
        if getattr(options, name) is not None and name not in ALGORITHMS[options.optimizer].reads:
            having = [key for key, algorithm in ALGORITHMS.items() if name in algorithm.reads]
            raise ConfigError(
                f"--{name.replace('_', '-')} is an option of --optimizer {' or '.join(having)}, not of {options.optimizer}; "
                "leave it out."
            )
    if options.momentum == 1:
        raise ConfigError("--momentum 1: gradients would add up for ever; give less than 1.")
