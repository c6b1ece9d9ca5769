"""open_clip's two model classes: ``CLIP``, whose text parts are the model's own, and ``CustomTextCLIP`` with a ``text`` tower.

Both have open_clip's state-dict names. Their towers take the fast form where nobody looks inside (``_fast``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.open_clip._configs import CLIPTextCfg, CLIPVisionCfg, text_tower, vision_tower
from diptych.open_clip._locks import lock_text_tower
from diptych.open_clip._text import check_ids, pooled_if_packed, project_text, text_global_pool

INITIAL_SCALE = math.log(1 / 0.07)


class _TwoTowers(nn.Module):
    """What both classes share: scale and bias, features, logits, the forms of the output."""

    visual: Any
    logit_scale: nn.Parameter
    logit_bias: nn.Parameter | None
    output_dict: bool

    def _make_scale(self, scale: float, bias: float | None, nonscalar: bool) -> None:
        shape = [1] if nonscalar else []
        self.logit_scale = nn.Parameter(torch.ones(shape) * scale)
        self.logit_bias = None if bias is None else nn.Parameter(torch.ones(shape) * bias)

    def lock_image_tower(self, unlocked_groups: int = 0, freeze_bn_stats: bool = False) -> None:
        """Freeze the image tower but for its last groups (Zhai et al. 2022, "LiT")."""
        self.visual.lock(unlocked_groups=unlocked_groups, freeze_bn_stats=freeze_bn_stats)

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """Normalized images [B, 3, H, W] -> features [B, D]."""
        features: Tensor = self.visual(image)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Ids int64 [B, L] -> features [B, D]."""
        raise NotImplementedError

    def _text_intermediates(self, text: Tensor, options: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    def get_logits(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled cosine similarities, [images, texts] and their transpose."""
        logits = self._logits(self.encode_image(image, normalize=True), self.encode_text(text, normalize=True))
        return logits, logits.T

    def _logits(self, images: Tensor, texts: Tensor) -> Tensor:
        logits = self.logit_scale.exp() * images @ texts.T
        return logits if self.logit_bias is None else logits + self.logit_bias

    def _scale_and_bias(self) -> dict[str, Tensor]:
        bias = {} if self.logit_bias is None else {"logit_bias": self.logit_bias}
        return {"logit_scale": self.logit_scale.exp(), **bias}

    def forward_intermediates(
        self,
        image: Tensor | None = None,
        text: Tensor | None = None,
        image_indices: int | list[int] | None = None,
        text_indices: int | list[int] | None = None,
        stop_early: bool = False,
        normalize: bool = True,
        normalize_intermediates: bool = False,
        intermediates_only: bool = False,
        image_output_fmt: str = "NCHW",
        image_output_extra_tokens: bool = False,
        text_output_fmt: str = "NLC",
        text_output_extra_tokens: bool = False,
        output_logits: bool = False,
        output_logit_scale_bias: bool = False,
    ) -> dict[str, Any]:
        """The outputs of chosen blocks of both towers, and what is made of them.

        See the towers' own method. ``output_logits`` adds ``image_logits`` and ``text_logits``, ``output_logit_scale_bias`` the
        scale and the bias; ``intermediates_only`` leaves out features and logits.
        """
        shared = {
            "stop_early": stop_early, "normalize_intermediates": normalize_intermediates,
            "intermediates_only": intermediates_only,
        }  # fmt: skip
        output: dict[str, Any] = {}
        if image is not None:
            formats = {"output_fmt": image_output_fmt, "output_extra_tokens": image_output_extra_tokens}
            output |= self.visual.forward_intermediates(image, indices=image_indices, **shared, **formats)
        if text is not None:
            formats = {"output_fmt": text_output_fmt, "output_extra_tokens": text_output_extra_tokens}
            output |= self._text_intermediates(text, {"indices": text_indices, **shared, **formats})
        for name in ("image_features", "text_features"):
            if normalize and name in output:
                output[name] = F.normalize(output[name], dim=-1)
        if output_logits and not intermediates_only:
            assert image is not None and text is not None, "output_logits needs images and texts."
            logits = self._logits(output["image_features"], output["text_features"])
            output |= {"image_logits": logits, "text_logits": logits.T}
        return output | (self._scale_and_bias() if output_logit_scale_bias else {})

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> Any:
        """Unit features of images and texts (None for what was not given), the scale, and the bias where there is one.

        A tuple; with ``output_dict`` a dict with ``image_features``, ``text_features``, ``logit_scale``, ``logit_bias``.
        """
        images = None if image is None else self.encode_image(image, normalize=True)
        texts = None if text is None else self.encode_text(text, normalize=True)
        if self.output_dict:
            return {"image_features": images, "text_features": texts, **self._scale_and_bias()}
        return (images, texts, *self._scale_and_bias().values())


class CLIP(_TwoTowers):
    """An image tower ``visual`` and a text tower whose parts are the model's own attributes, as OpenAI's CLIP has it."""

    def __init__(
        self,
        embed_dim: int,
        vision_cfg: CLIPVisionCfg | Mapping[str, Any],
        text_cfg: CLIPTextCfg | Mapping[str, Any],
        quick_gelu: bool = False,
        init_logit_scale: float = INITIAL_SCALE,
        init_logit_bias: float | None = None,
        nonscalar_logit_scale: bool = False,
        cast_dtype: torch.dtype | None = None,
        output_dict: bool = False,
    ) -> None:
        super().__init__()
        self.output_dict = output_dict
        self.visual = vision_tower(embed_dim, vision_cfg, quick_gelu, cast_dtype)
        text = text_tower(embed_dim, text_cfg, quick_gelu, cast_dtype)
        self.transformer = text.transformer
        self.context_length, self.vocab_size = text.context_length, text.vocab_size
        self.token_embedding = text.token_embedding
        self.positional_embedding = text.positional_embedding
        self.ln_final = text.ln_final
        self.text_projection = text.text_projection
        self.text_pool_type, self.text_eos_id = text.pool_type, text.eos_id
        self.register_buffer("attn_mask", text.attn_mask, persistent=False)
        self._make_scale(init_logit_scale, init_logit_bias, nonscalar_logit_scale)

    def lock_text_tower(self, unlocked_layers: int = 0, freeze_layer_norm: bool = True) -> None:
        """Freeze the text tower but for its last groups; norms are weights like others, so the flag must be True."""
        assert freeze_layer_norm, "freeze_layer_norm=False is not supported: norms are locked with their layers."
        lock_text_tower(self, unlocked_layers)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations of both towers in the backward pass."""
        self.visual.set_grad_checkpointing(enable)
        self.transformer.grad_checkpointing = enable

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names that timm's optimizers exclude beside vectors."""
        return {"positional_embedding", *_prefixed(self.visual, "visual.")}

    def _text_embeds(self, text: Tensor) -> tuple[Tensor, Tensor | None]:
        positions: Any = self.positional_embedding
        check_ids(text, positions.shape[0])
        dtype, length = self.transformer.get_cast_dtype(), text.shape[1]
        x = self.token_embedding(text).to(dtype) + positions[:length].to(dtype)
        mask: Any = self.attn_mask
        return x, None if mask is None else mask[:length, :length]

    def _text_pooled(self, x: Tensor, text: Tensor) -> Tensor:
        pooled = text_global_pool(self.ln_final(x), text, self.text_pool_type, getattr(self, "text_eos_id", None))
        return project_text(pooled, self.text_projection)

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Ids int64 [B, L] -> features [B, D]."""
        pooled = pooled_if_packed(self, text, self.text_pool_type, getattr(self, "text_eos_id", None))
        if pooled is None:
            x, mask = self._text_embeds(text)
            features = self._text_pooled(self.transformer(x, attn_mask=mask), text)
        else:
            features = project_text(pooled, self.text_projection)
        return F.normalize(features, dim=-1) if normalize else features

    def _text_intermediates(self, text: Tensor, options: dict[str, Any]) -> dict[str, Any]:
        # As in open_clip, the format of texts and their extra tokens mean nothing here: there is one format, and no class token.
        x, mask = self._text_embeds(text)
        early = options["stop_early"] and options["intermediates_only"]
        x, states = self.transformer.forward_intermediates(
            x, attn_mask=mask, indices=options["indices"], stop_early=early
        )
        if options["normalize_intermediates"]:
            states = [self.ln_final(state) for state in states]
        features = {} if options["intermediates_only"] else {"text_features": self._text_pooled(x, text)}
        return {"text_intermediates": states, **features}


class CustomTextCLIP(_TwoTowers):
    """An image tower ``visual`` and a text tower ``text``."""

    def __init__(
        self,
        embed_dim: int,
        vision_cfg: CLIPVisionCfg | Mapping[str, Any],
        text_cfg: CLIPTextCfg | Mapping[str, Any],
        quick_gelu: bool = False,
        init_logit_scale: float = INITIAL_SCALE,
        init_logit_bias: float | None = None,
        nonscalar_logit_scale: bool = False,
        cast_dtype: torch.dtype | None = None,
        output_dict: bool = False,
    ) -> None:
        super().__init__()
        self.output_dict = output_dict
        self.visual = vision_tower(embed_dim, vision_cfg, quick_gelu, cast_dtype)
        self.text = text_tower(embed_dim, text_cfg, quick_gelu, cast_dtype)
        self.context_length, self.vocab_size = self.text.context_length, self.text.vocab_size
        self._make_scale(init_logit_scale, init_logit_bias, nonscalar_logit_scale)

    def lock_text_tower(self, unlocked_layers: int = 0, freeze_layer_norm: bool = True) -> None:
        """Freeze the text tower but for its last groups."""
        self.text.lock(unlocked_layers, freeze_layer_norm)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations of both towers in the backward pass."""
        self.visual.set_grad_checkpointing(enable)
        self.text.set_grad_checkpointing(enable)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names that timm's optimizers exclude beside vectors."""
        return _prefixed(self.visual, "visual.") | _prefixed(self.text, "text.")

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Ids int64 [B, L] -> features [B, D]."""
        features: Tensor = self.text(text)
        return F.normalize(features, dim=-1) if normalize else features

    def _text_intermediates(self, text: Tensor, options: dict[str, Any]) -> dict[str, Any]:
        return self.text.forward_intermediates(text, **options)


def _prefixed(tower: Any, prefix: str) -> set[str]:
    names: Any = tower.no_weight_decay() if hasattr(tower, "no_weight_decay") else ()
    return {prefix + name for name in names}
