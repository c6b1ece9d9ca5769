"""Freezing towers in groups, from the input on (Zhai et al. 2022, "LiT"), as open_clip's ``lock`` methods count groups."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

Group = Sequence[nn.Module | nn.Parameter | None]


def lock_groups(tower: nn.Module, groups: Sequence[Group], unlocked: int) -> None:
    """Freeze every parameter of ``tower``, then unfreeze the last ``unlocked`` of ``groups``; None is left out."""
    tower.requires_grad_(False)
    unfreeze(groups, unlocked)


def unfreeze(groups: Sequence[Group], unlocked: int) -> None:
    """Unfreeze the last ``unlocked`` of ``groups``; more than there are is all of them."""
    for group in groups[max(0, len(groups) - unlocked) :] if unlocked else ():
        for part in group:
            if part is not None:
                part.requires_grad_(True)


def lock_text_tower(model: nn.Module, unlocked_layers: int = 0) -> None:
    """Freeze a text tower but for its last groups: embeddings, each block (the last with ``ln_final``), the projection.

    ``model`` is a tower, a model that holds one as ``text``, or a CLIP, whose text parts are its own attributes.
    """
    text = getattr(model, "text", model)
    names = ("token_embedding", "positional_embedding", "cls_emb", "transformer", "ln_final", "text_projection")
    parts = {name: getattr(text, name, None) for name in names}
    for part in parts.values():
        if part is not None:
            part.requires_grad_(False)
    blocks = list(getattr(parts["transformer"], "resblocks", ()))
    if not blocks:
        return
    embeddings = [parts[name] for name in names[:3]]
    groups: list[Group] = [embeddings, *([block] for block in blocks[:-1]), [blocks[-1], parts["ln_final"]]]
    if parts["text_projection"] is not None:
        groups.append([parts["text_projection"]])
    unfreeze(groups, unlocked_layers)
