"""open_clip's ``timm_model``: image towers of timm, which are refused, with a line."""

from __future__ import annotations

from diptych.open_clip._absent import TimmModel
from diptych.open_clip.utils import freeze_batch_norm_2d

__all__ = ["TimmModel", "freeze_batch_norm_2d"]
