"""open_clip's ``hf_configs``: what text towers of transformers call their sizes and parts, by the type of their config.

A table of facts for programs that read it. Diptych has no such towers.
"""

from __future__ import annotations

from typing import Any


def _names(
    width: str, heads: str, layers: str, context: str = "max_position_embeddings", **parts: str
) -> dict[str, str]:
    sizes = {"context_length": context, "vocab_size": "vocab_size", "width": width, "heads": heads, "layers": layers}
    return {**sizes, **{name: value for name, value in parts.items() if value}}


def _bert(**parts: str) -> dict[str, str]:
    return _names("hidden_size", "num_attention_heads", "num_hidden_layers", **parts)


arch_dict: dict[str, dict[str, Any]] = {
    "roberta": {
        "config_names": _bert(layer_attr="layer", token_embeddings_attr="embeddings"),
        "pooler": "mean_pooler",
    },
    "xlm-roberta": {
        "config_names": _bert(layer_attr="layer", token_embeddings_attr="embeddings"),
        "pooler": "mean_pooler",
    },
    "mt5": {
        # Positions are relative: there is no longest text.
        "config_names": _names(
            "d_model", "num_heads", "num_layers", "", layer_attr="block", token_embeddings_attr="embed_tokens"
        ),
        "pooler": "mean_pooler",
    },
    "bert": {"config_names": _bert(), "pooler": "cls_pooler"},
    "m2m_100": {
        "config_names": _names("d_model", "encoder_attention_heads", "encoder_layers"),
        "pooler": "cls_pooler",
    },
}
