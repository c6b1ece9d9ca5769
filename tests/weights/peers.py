"""Models of the real transformers library, of random weights, written by its own save_pretrained."""

import torch

TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 2}


def spread(model):
    """Random numbers everywhere, so that no bias is zero and no norm is one: a forgotten tensor would show."""
    chance = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "logit" not in name:
                noise = torch.randn(parameter.shape, generator=chance)
                parameter.copy_(noise * (0.3 if parameter.ndim < 2 else parameter.shape[-1] ** -0.5))
                if "norm" in name and name.endswith("weight"):
                    parameter.add_(1)
    return model.eval()


def clip(activation="quick_gelu", wide=1, vocabulary=49408):
    from transformers import CLIPConfig, CLIPModel

    ends = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": 1}
    text = TEXT | ends | {"vocab_size": vocabulary, "hidden_act": activation, "max_position_embeddings": 77}
    vision = VISION | {"image_size": 48, "patch_size": 16, "hidden_act": activation, "hidden_size": 64 * wide}
    return spread(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=40)))


def siglip(activation="gelu_pytorch_tanh", width=64, vocabulary=32000):
    from transformers import SiglipConfig, SiglipModel

    text = TEXT | {"vocab_size": vocabulary, "max_position_embeddings": 16, "projection_size": width}
    vision = VISION | {"image_size": 48, "patch_size": 16, "hidden_size": width}
    text["hidden_act"] = vision["hidden_act"] = activation
    return spread(SiglipModel(SiglipConfig(text_config=text, vision_config=vision)))


def siglip2(width=64):
    from transformers import Siglip2Config, Siglip2Model

    text = TEXT | {"vocab_size": 256000, "max_position_embeddings": 16, "projection_size": width}
    vision = VISION | {"num_patches": 9, "patch_size": 16, "hidden_size": width}
    return spread(Siglip2Model(Siglip2Config(text_config=text, vision_config=vision)))


def pooled(output):
    return output if isinstance(output, torch.Tensor) else output.pooler_output


@torch.no_grad()
def features(model, pixels, ids):
    """Their image and text features; Siglip2 takes patches flattened in the order row, column, channel."""
    if type(model).__name__ == "Siglip2Model":
        patches = pixels.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
        mask = torch.ones(patches.shape[:2], dtype=torch.long)
        shapes = torch.tensor([[3, 3]] * len(pixels))
        image = model.get_image_features(pixel_values=patches, pixel_attention_mask=mask, spatial_shapes=shapes)
    else:
        image = model.get_image_features(pixel_values=pixels)
    return pooled(image), pooled(model.get_text_features(input_ids=ids))
