"""The towers against transformers' CLIPModel: random weights of several sizes, both activations, equal features."""

import pytest
import torch

from diptych.models import create_model, model_config_from_dict

END = 49407


def peer(width, layers, heads, patch, activation, embed):
    from transformers import CLIPConfig, CLIPModel

    hidden_act = {"gelu": "gelu", "quickgelu": "quick_gelu"}[activation]
    shared = {"num_hidden_layers": layers, "num_attention_heads": heads, "hidden_act": hidden_act}
    text = {"hidden_size": width, "intermediate_size": 4 * width, "vocab_size": 49408, "max_position_embeddings": 77}
    vision = {"hidden_size": 2 * width, "intermediate_size": 8 * width, "image_size": 2 * patch, "patch_size": patch}
    tokens = {"bos_token_id": 49406, "eos_token_id": END, "pad_token_id": 1}
    config = CLIPConfig(text_config=text | shared | tokens, vision_config=vision | shared, projection_dim=embed)
    return CLIPModel(config).eval()


def renamed(theirs, name):
    """Our name of a parameter of theirs."""
    pairs = [
        ("vision_model.embeddings.patch_embedding", "image.patch_embedding"),
        ("vision_model.embeddings.position_embedding.weight", "image.positional_embedding"),
        ("vision_model.embeddings.class_embedding", "image.class_embedding"),
        ("vision_model.pre_layrnorm", "image.ln_pre"),
        ("vision_model.post_layernorm", "image.ln_post"),
        ("vision_model.encoder.layers", "image.layers"),
        ("visual_projection", "image.projection"),
        ("text_model.embeddings.token_embedding", "text.token_embedding"),
        ("text_model.embeddings.position_embedding.weight", "text.positional_embedding"),
        ("text_model.final_layer_norm", "text.ln_final"),
        ("text_model.encoder.layers", "text.layers"),
        ("text_projection", "text.projection"),
        ("layer_norm", "ln_"),
        ("self_attn.out_proj", "attention.out"),
        ("self_attn.q_proj", "attention.q"),
        ("self_attn.k_proj", "attention.k"),
        ("self_attn.v_proj", "attention.v"),
        ("mlp.fc1", "mlp_in"),
        ("mlp.fc2", "mlp_out"),
    ]
    for old, new in pairs:
        name = name.replace(old, new)
    return name


@pytest.mark.parametrize("activation", ["gelu", "quickgelu"])
@pytest.mark.parametrize(("width", "layers", "heads", "patch", "embed"), [(32, 2, 2, 16, 24), (64, 3, 4, 8, 64)])
def test_features_equal(width, layers, heads, patch, embed, activation):
    torch.manual_seed(0)
    theirs = peer(width, layers, heads, patch, activation, embed)
    vision = {"image_size": 2 * patch, "patch_size": patch, "width": 2 * width, "layers": layers, "heads": heads}
    text = {"width": width, "layers": layers, "heads": heads}
    values = {"name": "x", "embed_dim": embed, "activation": activation, "vision": vision, "text": text}
    ours = create_model(model_config_from_dict(values)).eval()
    state = {renamed(theirs, name): item for name, item in theirs.state_dict().items() if "position_ids" not in name}
    state["logit_scale"] = state["logit_scale"].reshape(1)
    state |= {"image.mean": ours.image.mean, "image.std": ours.image.std}
    ours.load_state_dict(state)

    pixels = torch.randn(3, 3, 2 * patch, 2 * patch)
    ids = torch.randint(1, 49000, (4, 20))
    for row, end in enumerate((3, 19, 10, 7)):
        ids[row, end:] = END  # transformers pads with the end token, and pools at its first occurrence
    with torch.no_grad():
        image = theirs.visual_projection(theirs.vision_model(pixels).pooler_output)
        text = theirs.text_projection(theirs.text_model(ids).pooler_output)
        assert (ours.encode_image(pixels) - image).abs().max() < 1e-5
        assert (ours.encode_text(ids) - text).abs().max() < 1e-5
