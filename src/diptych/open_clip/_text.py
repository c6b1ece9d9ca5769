"""CLIP's text transformer under open_clip's class, attribute and parameter names.

Takes token ids [B, L] of any length up to the context; open_clip's takes the full context only. Tokens, intermediates, hooks and
traces take the full form; plain calls of causal towers that pool an end token take the packed one (``_fast``), which is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from diptych.errors import ConfigError
from diptych.open_clip._fast import each_token_alone, intact, packed_text
from diptych.open_clip._locks import lock_text_tower
from diptych.open_clip._norms import LayerNorm
from diptych.open_clip._stacks import Transformer

POOLS = ("first", "last", "argmax", "eos", "none")


def text_global_pool(
    x: Tensor, text: Tensor | None = None, pool_type: str = "argmax", eos_token_id: int | None = None
) -> Tensor:
    """The pooled token of each text, [B, L, width] -> [B, width]; other names than first, last, argmax and eos pool nothing."""
    if pool_type in ("first", "last"):
        return x[:, 0] if pool_type == "first" else x[:, -1]
    if pool_type not in ("argmax", "eos"):
        return x
    assert text is not None, f"pool_type {pool_type!r} needs the token ids."
    return x[torch.arange(x.shape[0], device=x.device), end_positions(text, pool_type, eos_token_id)]


def end_positions(text: Tensor, pool_type: str, eos_id: int | None) -> Tensor:
    """Where the pooled end token of each text [B, L] stands, int64 [B]: the largest id, or the first ``eos_id``."""
    if pool_type == "argmax":
        return text.argmax(dim=-1)
    assert eos_id is not None, "pool_type 'eos' needs the id of the end token."
    return (text == eos_id).int().argmax(dim=-1)


def causal_mask(length: int) -> Tensor:
    """Additive [length, length]: minus infinity above the diagonal."""
    return torch.full((length, length), float("-inf")).triu_(1)


def check_ids(text: Tensor, context: int) -> None:
    """Raise ConfigError unless ``text`` is [B, at most ``context``]."""
    if text.ndim != 2 or text.shape[1] > context or text.is_floating_point():
        kind = f"{text.dtype} " if text.is_floating_point() else ""
        raise ConfigError(
            f"{kind}token ids of shape {list(text.shape)} were given; expected whole numbers [texts, at most {context}]."
        )


class TextTransformer(nn.Module):
    """Ids -> blocks -> norm -> the pooled token -> projection; ``embed_cls`` appends a class token, as CoCa does."""

    def __init__(
        self,
        context_length: int = 77,
        vocab_size: int = 49408,
        width: int = 512,
        heads: int = 8,
        layers: int = 12,
        mlp_ratio: float = 4.0,
        ls_init_value: float | None = None,
        output_dim: int | None = 512,
        embed_cls: bool = False,
        no_causal_mask: bool = False,
        use_pad_mask: bool = False,
        correct_cls_mask: bool = False,
        pad_id: int = 0,
        eos_id: int = 2,
        pool_type: str = "argmax",
        proj_type: str = "linear",
        proj_bias: bool = False,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        norm_layer: Callable[[int], nn.Module] = LayerNorm,
        output_tokens: bool = False,
        block_type: str | None = None,
        qk_norm: bool = False,
        scaled_cosine_attn: bool = False,
        scale_heads: bool = False,
        scale_attn_inner: bool = False,
        scale_attn: bool = False,
        scale_fc: bool = False,
    ) -> None:
        super().__init__()
        if pool_type not in POOLS:
            raise ValueError(f"pool_type {pool_type!r} was given; expected one of {', '.join(POOLS)}.")
        self.output_tokens, self.pool_type = output_tokens, pool_type
        self.context_length, self.num_pos = context_length, context_length + embed_cls
        self.vocab_size, self.width, self.output_dim, self.heads = vocab_size, width, output_dim, heads
        self.pad_id, self.eos_id = pad_id, eos_id
        self.use_pad_mask, self.correct_cls_mask = use_pad_mask and no_causal_mask, correct_cls_mask
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.cls_emb = nn.Parameter(torch.empty(width)) if embed_cls else None
        self.positional_embedding = nn.Parameter(torch.empty(self.num_pos, width))
        self.transformer = Transformer(
            width, layers, heads, mlp_ratio, ls_init_value=ls_init_value, act_layer=act_layer, norm_layer=norm_layer,
            block_type=block_type, qk_norm=qk_norm, scaled_cosine_attn=scaled_cosine_attn, scale_heads=scale_heads,
            scale_attn_inner=scale_attn_inner, scale_attn=scale_attn, scale_fc=scale_fc,
        )  # fmt: skip
        self.ln_final = norm_layer(width)
        self.attn_mask: Tensor | None
        if no_causal_mask:
            self.attn_mask = None
        else:
            self.register_buffer("attn_mask", self.build_causal_mask(), persistent=False)
        self.text_projection: nn.Linear | nn.Parameter | None = None
        if proj_type != "none" and output_dim:
            plain = nn.Parameter(torch.empty(width, output_dim)) if not proj_bias else None
            self.text_projection = nn.Linear(width, output_dim) if plain is None else plain
        self.init_parameters()

    @torch.no_grad()
    def init_parameters(self) -> None:
        """CLIP's scheme: residual branches shrink with the depth of the tower."""
        width, layers = self.transformer.width, self.transformer.layers
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        if self.cls_emb is not None:
            nn.init.normal_(self.cls_emb, std=0.01)
        branch = width**-0.5 * (2 * layers) ** -0.5
        blocks: list[Any] = list(self.transformer.resblocks)
        for block in blocks:
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=branch)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=branch)
        if isinstance(self.text_projection, nn.Linear):
            nn.init.normal_(self.text_projection.weight, std=width**-0.5)
            nn.init.zeros_(self.text_projection.bias)
        elif self.text_projection is not None:
            nn.init.normal_(self.text_projection, std=width**-0.5)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations of blocks in the backward pass."""
        self.transformer.grad_checkpointing = enable

    def lock(self, unlocked_layers: int = 0, freeze_layer_norm: bool = True) -> None:
        """Freeze all but the last groups; see ``lock_text_tower``. Norms are weights like others, so the flag must be True."""
        assert freeze_layer_norm, "freeze_layer_norm=False is not supported: norms are locked with their layers."
        lock_text_tower(self, unlocked_layers)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names that timm's optimizers exclude beside vectors."""
        return {"positional_embedding", *(["cls_emb"] if self.cls_emb is not None else [])}

    def build_causal_mask(self) -> Tensor:
        """Additive [positions, positions]."""
        return causal_mask(self.num_pos)

    def _padding_mask(self, text: Tensor, dtype: torch.dtype) -> Tensor:
        """Additive [B * heads, Q, K] that hides padding; the class token stays visible (in front, in CoCa's weights)."""
        visible = text != self.pad_id
        if self.cls_emb is not None:
            always = visible.new_ones(visible.shape[0], 1)
            visible = torch.cat([visible, always] if self.correct_cls_mask else [always, visible], dim=1)
        hidden = ~visible[:, None].expand(-1, visible.shape[1], -1)
        return torch.zeros_like(hidden, dtype=dtype).masked_fill(hidden, float("-inf")).repeat_interleave(self.heads, 0)

    def _embeds(self, text: Tensor) -> tuple[Tensor, Tensor | None]:
        check_ids(text, self.context_length)
        dtype = self.transformer.get_cast_dtype()
        x = self.token_embedding(text).to(dtype)
        if self.cls_emb is not None:
            x = torch.cat([x, self.cls_emb.expand(x.shape[0], 1, -1)], dim=1)
        length = x.shape[1]
        mask = None if self.attn_mask is None else self.attn_mask[:length, :length]
        if self.use_pad_mask or self.cls_emb is not None:
            padding = self._padding_mask(text, x.dtype)
            mask = padding if mask is None else mask + padding
        return x + self.positional_embedding[:length].to(dtype), mask

    def _pooled(self, x: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        if self.cls_emb is not None:
            return self.ln_final(x[:, -1]), x[:, :-1]
        x = self.ln_final(x)
        return text_global_pool(x, text, self.pool_type, self.eos_id), x

    def _projected(self, pooled: Tensor) -> Tensor:
        return project_text(pooled, self.text_projection)

    def forward_intermediates(
        self,
        text: Tensor,
        indices: int | list[int] | None = None,
        stop_early: bool = False,
        normalize_intermediates: bool = False,
        intermediates_only: bool = False,
        output_fmt: str = "NCHW",
        output_extra_tokens: bool = False,
    ) -> dict[str, Tensor | list[Tensor]]:
        """``text_intermediates`` [B, L, width] of the chosen blocks, and ``text_features`` unless ``intermediates_only``.

        ``output_fmt`` must be "NLC" (open_clip's default is not). ``output_extra_tokens`` adds the class tokens, if there are
        any, as ``text_intermediates_suffix``.
        """
        assert output_fmt == "NLC", f"output_fmt {output_fmt!r} was given; texts are 'NLC'."
        x, mask = self._embeds(text)
        x, states = self.transformer.forward_intermediates(x, attn_mask=mask, indices=indices, stop_early=stop_early)
        if normalize_intermediates:
            states = [self.ln_final(state) for state in states]
        output: dict[str, Tensor | list[Tensor]] = {}
        if self.cls_emb is not None:
            if output_extra_tokens:
                output["text_intermediates_suffix"] = [state[:, -1:] for state in states]
            states = [state[:, :-1] for state in states]
        output["text_intermediates"] = states
        if not intermediates_only:
            output["text_features"] = self._projected(self._pooled(x, text)[0])
        return output

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what comes after the last of ``indices``: blocks, and with the flags the last norm and the projection."""
        chosen = self.transformer.prune_intermediate_layers(indices)
        if prune_norm:
            self.ln_final = nn.Identity()
        if prune_head:
            self.text_projection = None
        return chosen

    def forward(self, text: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Ids int64 [B, L] -> features [B, D]; with ``output_tokens`` also the tokens [B, L, width] after the last norm."""
        if not self.output_tokens and self.cls_emb is None:
            pooled = pooled_if_packed(self, text, self.pool_type, self.eos_id)
            if pooled is not None:
                return self._projected(pooled)
        x, mask = self._embeds(text)
        pooled, tokens = self._pooled(self.transformer(x, attn_mask=mask), text)
        pooled = self._projected(pooled)
        return (pooled, tokens) if self.output_tokens else pooled


def project_text(pooled: Tensor, projection: nn.Linear | nn.Parameter | None) -> Tensor:
    """[B, width] -> [B, D]; None leaves it as it is."""
    if projection is None:
        return pooled
    return projection(pooled) if isinstance(projection, nn.Module) else pooled @ projection  # type: ignore[no-any-return]


def pooled_if_packed(holder: Any, text: Tensor, pool_type: str, eos_id: int | None) -> Tensor | None:
    """The normed pooled state [B, width] by the packed form, or None where the full form must run.

    ``holder``, a text tower or a CLIP, has ``token_embedding``, ``positional_embedding``, ``transformer``, ``ln_final`` and
    ``attn_mask``.
    """
    embedding, norm, positions = holder.token_embedding, holder.ln_final, holder.positional_embedding
    if pool_type not in ("argmax", "eos") or type(embedding) is not nn.Embedding or text.ndim != 2 or not text.numel():
        return None
    if "forward" in embedding.__dict__ or not each_token_alone(norm):
        return None
    if text.shape[1] > positions.shape[0] or text.is_floating_point():  # which the full form says
        return None
    if not intact(holder.transformer, embedding, norm, inputs=text) or not _is_causal(holder.attn_mask):
        return None
    ends = end_positions(text, pool_type, eos_id)
    return norm(packed_text(holder.transformer, embedding, positions, text, ends))  # type: ignore[no-any-return]


def _is_causal(mask: Tensor | None) -> bool:
    """Whether nobody exchanged the mask, or wrote into it.

    On the CPU its values are compared each time: through ``mask.data`` or numpy they change without torch counting it. Elsewhere
    that would wait for the device, so there they are compared once for each version.
    """
    if mask is None or mask.ndim != 2 or mask.shape[0] != mask.shape[1]:
        return False
    if mask.device.type == "cpu":
        return torch.equal(mask.float(), _causal_on_cpu(mask.shape[0]))
    # Tensors of inference mode are not counted, and cannot be changed.
    version = -1 if mask.is_inference() else mask._version
    known: tuple[int, bool] | None = getattr(mask, "_causal_at_version", None)
    if known is None or known[0] != version:
        known = (version, torch.equal(mask.float().cpu(), _causal_on_cpu(mask.shape[0])))
        mask._causal_at_version = known  # type: ignore[attr-defined]
    return known[1]


@lru_cache(maxsize=16)
def _causal_on_cpu(length: int) -> Tensor:
    with torch.device("cpu"):
        return causal_mask(length)
