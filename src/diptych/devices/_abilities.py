"""What accelerators differ in, as plain values: the types that they compute in, and what they can do beyond fp32.

Declarations only: ``_base`` finds out what a device can do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PURE = {"pure_bf16": "bf16"}
"""Precisions that are of the stored weights too, and the arithmetic of everything that is not stored in them."""


@dataclass(frozen=True)
class Abilities:
    """What an accelerator can do beyond fp32; ``diptych selftest`` checks each claim.

    ``bfloat16`` and ``float16``: autocast in that type · ``fused_adamw``: AdamW in one kernel · ``pin_memory``:
    page-locked host memory, from which copies overlap with computing · ``varlen_attention``: attention over packed
    sequences of unequal length in one kernel · ``deterministic``: ``set_deterministic`` makes equal runs equal bit for bit.
    """

    bfloat16: bool = False
    float16: bool = False
    fused_adamw: bool = False
    pin_memory: bool = False
    varlen_attention: bool = False
    deterministic: bool = False
