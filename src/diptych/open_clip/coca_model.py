"""open_clip's ``coca_model``: the config of CoCa's text decoder; CoCa itself and its generation are refused, with a line."""

from __future__ import annotations

from diptych.open_clip._absent import CoCa, prepare_inputs_for_generation
from diptych.open_clip._multimodal import MultimodalCfg, MultimodalTransformer

__all__ = ["CoCa", "MultimodalCfg", "MultimodalTransformer", "prepare_inputs_for_generation"]
