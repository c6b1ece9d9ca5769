"""The names that ``--precision`` takes, open_clip's among them. What a device makes of one is the device's."""

from __future__ import annotations

from diptych.errors import ConfigError
from diptych.registry import did_you_mean

PRECISIONS = {
    "fp32": "fp32",
    "bf16": "bf16",
    "amp_bf16": "bf16",
    "amp_bfloat16": "bf16",
    "fp16": "fp16",
    "amp": "fp16",
    "amp_fp16": "fp16",
    "pure_bf16": "pure_bf16",
}
"""Names that ``--precision`` takes, open_clip's among them, and what they mean."""


def precision_of(asked: str) -> str:
    """fp32, bf16, fp16 or pure_bf16, from a name of ours or open_clip's. Raises ConfigError."""
    if asked == "pure_fp16":
        raise ConfigError(
            "--precision pure_fp16: gradients of fp16 weights cannot be unscaled in their own type, and half of them would be 0; "
            "take pure_bf16, or fp16, which keeps fp32 weights."
        )
    if asked not in PRECISIONS:
        raise ConfigError("--precision: " + did_you_mean(asked, PRECISIONS, "precision"))
    return PRECISIONS[asked]
