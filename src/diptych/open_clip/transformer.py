"""open_clip's module ``transformer``: its names, from the files of this package that hold them."""

from __future__ import annotations

from diptych.open_clip._attention import (
    Attention,
    AttentionalPooler,
    CustomResidualAttentionBlock,
    ResidualAttentionBlock,
)
from diptych.open_clip._locks import lock_text_tower
from diptych.open_clip._multimodal import MultimodalTransformer
from diptych.open_clip._norms import LayerNorm, LayerNormFp32, LayerScale, PatchDropout, QuickGELU
from diptych.open_clip._stacks import CustomTransformer, Transformer
from diptych.open_clip._text import TextTransformer, text_global_pool
from diptych.open_clip._vision import VisionTransformer

__all__ = [
    "Attention",
    "AttentionalPooler",
    "CustomResidualAttentionBlock",
    "CustomTransformer",
    "LayerNorm",
    "LayerNormFp32",
    "LayerScale",
    "MultimodalTransformer",
    "PatchDropout",
    "QuickGELU",
    "ResidualAttentionBlock",
    "TextTransformer",
    "Transformer",
    "VisionTransformer",
    "lock_text_tower",
    "text_global_pool",
]
