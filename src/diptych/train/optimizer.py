"""AdamW with open_clip's decay rule, fused where the device has it.

The rule: parameters of one dimension or none (biases, norms, scales) do not decay, and neither does the logit scale or
bias, whatever its shape; everything else decays. Not a zoo of optimisers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from diptych.config import NotNegative, Share
from diptych.devices import Device


@dataclass(frozen=True)
class OptimizerOptions:
    """How parameters move."""

    lr: NotNegative = 5e-4
    """Peak learning rate."""
    wd: NotNegative = 0.2
    """Weight decay of matrices, kernels and embeddings."""
    beta1: Share = 0.9
    """Decay of AdamW's first moment."""
    beta2: Share = 0.98
    """Decay of AdamW's second moment (open_clip: 0.98 for ViT, 0.999 for ResNet)."""
    eps: NotNegative = 1e-6
    """AdamW's epsilon (open_clip: 1e-6 for ViT, 1e-8 for ResNet)."""
    grad_clip_norm: NotNegative = 0.0
    """Clip the global gradient norm to this; 0 leaves it alone."""


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies to the parameter called ``name``."""
    return parameter.ndim > 1 and not name.endswith(("logit_scale", "logit_bias"))


def create_optimizer(module: nn.Module, options: OptimizerOptions, device: Device) -> torch.optim.AdamW:
    """AdamW over two groups, decaying and not; frozen parameters are left out."""
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for name, parameter in named if decays(name, parameter)], "weight_decay": options.wd},
        {"params": [parameter for name, parameter in named if not decays(name, parameter)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=options.lr,
        betas=(options.beta1, options.beta2),
        eps=options.eps,
        fused=device.abilities.fused_adamw or None,
    )
