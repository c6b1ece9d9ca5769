"""A drop-in for open_clip: the public names of open_clip 3.3.0's inference side and losses, on top of Diptych.

    from diptych import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32", pretrained="open_clip_pytorch_model.bin")
    tokenizer = open_clip.get_tokenizer("ViT-B-32")

Models have open_clip's classes, attributes, state-dict names and outputs; the library below does not know this package. What is
not here (CoCa, timm's image towers, text towers of transformers) raises one line. ``docs/open_clip.md`` lists every public name.
"""

from __future__ import annotations

from diptych.open_clip import (
    coca_model,
    constants,
    convert,
    factory,
    hf_configs,
    hf_model,
    loss,
    model,
    modified_resnet,
    openai,
    pos_embed,
    pretrained,
    timm_model,
    tokenizer,
    transform,
    transformer,
    utils,
    version,
    zero_shot_classifier,
    zero_shot_metadata,
)
from diptych.open_clip.coca_model import CoCa
from diptych.open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from diptych.open_clip.factory import (
    add_model_config,
    create_loss,
    create_model,
    create_model_and_transforms,
    create_model_from_pretrained,
    get_model_config,
    get_tokenizer,
    list_models,
    load_checkpoint,
    load_state_dict,
)
from diptych.open_clip.loss import ClipLoss, CoCaLoss, DistillClipLoss, SigLipLoss
from diptych.open_clip.model import (
    CLIP,
    CLIPTextCfg,
    CLIPVisionCfg,
    CustomTextCLIP,
    convert_weights_to_fp16,
    convert_weights_to_lp,
    get_cast_dtype,
    get_input_dtype,
    get_model_preprocess_cfg,
    get_model_tokenize_cfg,
    set_model_preprocess_cfg,
    trace_model,
)
from diptych.open_clip.openai import list_openai_models, load_openai_model
from diptych.open_clip.pretrained import (
    download_pretrained,
    download_pretrained_from_url,
    get_pretrained_cfg,
    get_pretrained_url,
    is_pretrained_cfg,
    list_pretrained,
    list_pretrained_models_by_tag,
    list_pretrained_tags_by_model,
)
from diptych.open_clip.push_to_hf_hub import push_pretrained_to_hf_hub, push_to_hf_hub
from diptych.open_clip.tokenizer import SimpleTokenizer, decode, tokenize
from diptych.open_clip.transform import AugmentationCfg, PreprocessCfg, image_transform, image_transform_v2
from diptych.open_clip.version import __version__
from diptych.open_clip.zero_shot_classifier import build_zero_shot_classifier, build_zero_shot_classifier_legacy
from diptych.open_clip.zero_shot_metadata import (
    IMAGENET_CLASSNAMES,
    OPENAI_IMAGENET_TEMPLATES,
    SIMPLE_IMAGENET_TEMPLATES,
)

__all__ = [
    "CLIP",
    "IMAGENET_CLASSNAMES",
    "OPENAI_DATASET_MEAN",
    "OPENAI_DATASET_STD",
    "OPENAI_IMAGENET_TEMPLATES",
    "SIMPLE_IMAGENET_TEMPLATES",
    "AugmentationCfg",
    "CLIPTextCfg",
    "CLIPVisionCfg",
    "ClipLoss",
    "CoCa",
    "CoCaLoss",
    "CustomTextCLIP",
    "DistillClipLoss",
    "PreprocessCfg",
    "SigLipLoss",
    "SimpleTokenizer",
    "__version__",
    "add_model_config",
    "build_zero_shot_classifier",
    "build_zero_shot_classifier_legacy",
    "coca_model",
    "constants",
    "convert",
    "convert_weights_to_fp16",
    "convert_weights_to_lp",
    "create_loss",
    "create_model",
    "create_model_and_transforms",
    "create_model_from_pretrained",
    "decode",
    "download_pretrained",
    "download_pretrained_from_url",
    "factory",
    "get_cast_dtype",
    "get_input_dtype",
    "get_model_config",
    "get_model_preprocess_cfg",
    "get_model_tokenize_cfg",
    "get_pretrained_cfg",
    "get_pretrained_url",
    "get_tokenizer",
    "hf_configs",
    "hf_model",
    "image_transform",
    "image_transform_v2",
    "is_pretrained_cfg",
    "list_models",
    "list_openai_models",
    "list_pretrained",
    "list_pretrained_models_by_tag",
    "list_pretrained_tags_by_model",
    "load_checkpoint",
    "load_openai_model",
    "load_state_dict",
    "loss",
    "model",
    "modified_resnet",
    "openai",
    "pos_embed",
    "pretrained",
    "push_pretrained_to_hf_hub",
    "push_to_hf_hub",
    "set_model_preprocess_cfg",
    "timm_model",
    "tokenize",
    "tokenizer",
    "trace_model",
    "transform",
    "transformer",
    "utils",
    "version",
    "zero_shot_classifier",
    "zero_shot_metadata",
]
