"""One call of every module class of open_clip, and of every function on models and state dicts; see ``_calls``. No tests."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.open_clip._models import CONFIGS, TEXT, VISION, images, texts

SMALL = CONFIGS["plain"]


def seeded(kind: Callable[..., Any], *arguments: Any, seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    return kind(*copy.deepcopy(arguments), **copy.deepcopy(options))


def small(package: Any, seed: int = 0) -> nn.Module:
    return seeded(package.model.CLIP, seed=seed, **SMALL).eval()  # type: ignore[no-any-return]


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ran(module: nn.Module, *inputs: Any, **options: Any) -> list[Any]:
    """State, training mode, outputs of evaluation, and the gradient of every parameter.

    Parameters that hold no drawn values (torch.empty, which open_clip leaves in some classes) are filled first.
    """
    training, state = module.training, {name: item.clone() for name, item in module.state_dict().items()}
    module.eval()
    with torch.no_grad():
        output = module(*inputs, **options)
    tensors = [item for item in (output if isinstance(output, tuple) else (output,)) if isinstance(item, Tensor)]
    module.double()  # sums of many products: in fp32 their order would count
    again = module(*(item.double() if item.is_floating_point() else item for item in inputs), **options)
    sum(item.sum() for item in (again if isinstance(again, tuple) else (again,))).backward()
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    return [state, training, tensors, gradients]


def filled(module: nn.Module) -> nn.Module:
    """Without the memory that torch.empty found."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    return module


def model_ran(kind: Callable[..., nn.Module]) -> list[Any]:
    model = seeded(kind, **CONFIGS["bias"]).eval()
    return [dict(model.state_dict()), model(images(), texts()), [name for name, _ in model.named_modules()]]


def hidden(**fields: Any) -> Any:
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    return BaseModelOutputWithPooling(last_hidden_state=noise(2, 4, 6), **fields)


def pooled(call: Callable[..., nn.Module], **fields: Any) -> Tensor:
    return call()(hidden(**fields), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]))  # type: ignore[no-any-return]


def loss_values(loss: nn.Module, *extra: Any) -> list[Any]:
    first, second = (F.normalize(noise(5, 8, seed=seed), dim=-1).requires_grad_() for seed in (1, 2))
    given = loss(first, second, torch.tensor(9.0), *extra, output_dict=True)
    sum(given.values()).backward()
    return [given, first.grad, second.grad]


def dtypes(call: Callable[..., Any], package: Any) -> list[Any]:
    models = []
    for options in ((), (torch.bfloat16,)):
        model = small(package)
        models += [call(model, *options), {name: item.dtype for name, item in model.state_dict().items()}]
    return models


def changed(call: Callable[..., Any], package: Any, state: dict[str, Tensor]) -> list[Any]:
    return [call(state, small(package)), state]


def from_openai(call: Callable[..., Any], package: Any) -> Any:
    text = {"context_length": 20, "vocab_size": 500, "width": 64, "heads": 1, "layers": 2}
    model = seeded(package.model.CLIP, 64, {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16}, text)
    state = {**model.half().state_dict(), "context_length": torch.tensor(20), "vocab_size": torch.tensor(500)}
    made = call(state)
    return [
        sorted(state),
        made.training,
        dict(made.state_dict()),
        made.float()(images().float(), texts()) if made.visual.float() else None,
    ]


def locked(call: Callable[..., Any], package: Any) -> list[list[str]]:
    names = []
    for count in (0, 1, 3, 99):
        model = small(package)
        call(model, unlocked_layers=count)
        names.append([name for name, parameter in model.named_parameters() if parameter.requires_grad])
    return names


def batch_norm_frozen(call: Callable[..., Any]) -> list[Any]:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))
    torch.nn.init.constant_(module[0].weight, 0.3)
    frozen = call(module, {"1": True})
    names = [type(item).__name__ for item in frozen.modules()]
    alone = call(nn.BatchNorm2d(3))
    return [names, sorted(frozen.state_dict()), type(alone).__name__, alone(images())]


def linears_replaced(call: Callable[..., Any], package: Any) -> list[Any]:
    class Halved(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / 2

    model = call(small(package), Halved)
    return [type(item).__name__ for item in model.modules() if isinstance(item, nn.Linear)] + [model(images(), texts())]


def int8_ready(call: Callable[..., Any]) -> list[Any]:
    class Int8(nn.Linear):
        def prepare_for_eval(self) -> None:
            self.half()

    module = nn.Sequential(Int8(2, 2), nn.Linear(2, 2))
    call(module)
    return [module[0].int8_original_dtype, module[0].weight.dtype, hasattr(module[1], "int8_original_dtype")]


def tables_resized(call: Callable[..., Any]) -> Tensor:
    model = SimpleNamespace(patch_embed=SimpleNamespace(num_patches=9), pos_embed=torch.zeros(1, 10, 6))
    state = {"pos_embed": noise(1, 17, 6)}
    call(model, state)
    return state["pos_embed"]


def tower_configs(call: Callable[..., Any]) -> list[Any]:
    return [call(), call(width=3), [(item.name, item.default) for item in inspect.signature(call).parameters.values()]]


def traced(call: Callable[..., Any], package: Any) -> list[Any]:
    whole = small(package).train()
    whole.visual.image_size = 64  # open_clip's own tuple makes its function fail
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # and so does torch's second run, which takes this path
    try:
        model = call(whole, batch_size=2)
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    return [
        model(images(2), texts((5, 20)).int()),
        model.encode_image(images(2)),
        model.encode_text(texts((4, 9)).int()),
    ]


def preprocess_set(call: Callable[..., Any], package: Any) -> list[Any]:
    model = small(package)
    call(model, {"mean": (1, 2, 3), "std": (4, 5, 6), "size": 7})
    return [
        model.visual.image_mean,
        model.visual.image_std,
        model.visual.preprocess_cfg,
        package.get_model_preprocess_cfg(model),
    ]


def scales(call: Callable[..., Any]) -> list[Any]:
    return [ran(call(6, 0.3), noise(2, 6)), call(3).gamma, call(6, 1.0, inplace=True).inplace]


def text_state(rows: int) -> dict[str, Tensor]:
    return {"positional_embedding": noise(rows, TEXT["width"])}


WIDE = {"width": 64, "layers": 2, "heads": 4}
GRID = np.arange(8.0).reshape(2, 1, 2, 2)

MODEL_CALLS: dict[str, Callable[[Any, Any, Any], Any]] = {
    # Models and their configs.
    "CLIP": lambda f, p, w: model_ran(f),
    "CustomTextCLIP": lambda f, p, w: model_ran(f),
    "CLIPTextCfg": lambda f, p, w: tower_configs(f),
    "CLIPVisionCfg": lambda f, p, w: tower_configs(f),
    "MultimodalCfg": lambda f, p, w: tower_configs(f),
    "VisionTransformer": lambda f, p, w: [
        ran(seeded(f, 64, 16, 64, 2, 4, 4.0, output_dim=32, output_tokens=tokens, pool_type=pool), images())
        for tokens, pool in ((False, "tok"), (True, "avg"))
    ],
    "TextTransformer": lambda f, p, w: [
        ran(seeded(f, 20, 500, 48, 4, 2, output_dim=32, **options), texts())
        for options in ({}, {"pool_type": "last", "no_causal_mask": True, "output_tokens": True}, {"embed_cls": True})
    ],
    "Transformer": lambda f, p, w: [
        ran(seeded(f, **WIDE), noise(2, 5, 64)), ran(seeded(f, **WIDE, batch_first=False), noise(2, 5, 64)),
        seeded(f, **WIDE).forward_intermediates(noise(2, 5, 64), indices=[0]),
    ],
    "CustomTransformer": lambda f, p, w: ran(seeded(f, **WIDE), noise(2, 5, 64)),
    "MultimodalTransformer": lambda f, p, w: (
        ran(filled(seeded(f, **WIDE, context_length=9, output_dim=16)), noise(2, 7, 64), noise(2, 5, 64))
    ),
    "ResidualAttentionBlock": lambda f, p, w: [
        ran(seeded(f, 64, 4, ls_init_value=0.2), noise(2, 5, 64)),
        ran(seeded(f, 64, 4, is_cross_attention=True), noise(2, 5, 64), noise(2, 3, 64, seed=2), noise(2, 3, 64, seed=2)),
    ],
    "CustomResidualAttentionBlock": lambda f, p, w: (
        ran(seeded(f, 64, 4, scale_heads=True, scale_fc=True, scale_attn=True), noise(2, 5, 64))
    ),
    "Attention": lambda f, p, w: [
        ran(seeded(f, 32, 4, **options), noise(2, 5, 32))
        for options in ({}, {"scale_heads": True, "qkv_bias": False}, {"qk_norm": True, "inner_norm": True})
    ],
    "AttentionalPooler": lambda f, p, w: ran(seeded(f, 32, 48, n_head=4, n_queries=3), noise(2, 5, 48)),
    "LayerNorm": lambda f, p, w: [ran(f(6), noise(2, 6)), f(6)(noise(2, 6).double().float()).dtype],
    "LayerNormFp32": lambda f, p, w: [ran(f(6), noise(2, 6)), f(6)(noise(2, 6).bfloat16())],
    "LayerScale": lambda f, p, w: scales(f),
    "QuickGELU": lambda f, p, w: f()(noise(9)),
    "PatchDropout": lambda f, p, w: [
        seeded(lambda: f(0.5)(noise(3, 9, 4))), seeded(lambda: f(0.5, False)(noise(3, 9, 4))), f(0.5).eval()(noise(3, 9, 4)),
    ],
    "ModifiedResNet": lambda f, p, w: ran(seeded(f, [1, 2, 1, 1], 32, 8, 64, 16), images()),
    "Bottleneck": lambda f, p, w: ran(seeded(f, 16, 8, stride=2), noise(2, 16, 8, 8)),
    "AttentionPool2d": lambda f, p, w: ran(seeded(f, 4, 32, 4, 16), noise(2, 32, 4, 4)),
    # Losses, in one process.
    "ClipLoss": lambda f, p, w: [loss_values(f()), loss_values(f(cache_labels=True))],
    "SigLipLoss": lambda f, p, w: loss_values(f(), torch.tensor(-2.0)),
    "DistillClipLoss": lambda f, p, w: loss_values(f(), noise(5, 8, seed=4), noise(5, 8, seed=5), torch.tensor(3.0)),
    # Poolers of text towers of transformers.
    "MeanPooler": lambda f, p, w: pooled(f),
    "MaxPooler": lambda f, p, w: f()(hidden(), torch.zeros(2, 4, dtype=torch.bool)),
    "ClsPooler": lambda f, p, w: [
        pooled(f), pooled(f, pooler_output=noise(2, 6, seed=9)), pooled(lambda: f(False), pooler_output=noise(2, 6)),
    ],
    "ClsLastHiddenStatePooler": lambda f, p, w: pooled(f, pooler_output=noise(2, 6)),
    "register_pooler": lambda f, p, w: f(type("OwnPooler", (), {})).__name__,
    # Functions on models.
    "convert_weights_to_lp": lambda f, p, w: dtypes(f, p),
    "convert_weights_to_fp16": lambda f, p, w: dtypes(f, p),
    "get_cast_dtype": lambda f, p, w: [f(name) for name in ("fp32", "fp16", "bf16", "amp", "pure_bf16")],
    "get_input_dtype": lambda f, p, w: [f(name) for name in ("fp32", "fp16", "bf16", "amp", "pure_bf16", "pure_fp16")],
    "get_model_preprocess_cfg": lambda f, p, w: [f(small(p)), f(small(p).visual)],
    "set_model_preprocess_cfg": lambda f, p, w: preprocess_set(f, p),
    "get_model_tokenize_cfg": lambda f, p, w: [f(small(p)), f(seeded(p.model.CustomTextCLIP, **SMALL))],
    "trace_model": lambda f, p, w: traced(f, p),
    "lock_text_tower": lambda f, p, w: locked(f, p),
    "build_model_from_openai_state_dict": lambda f, p, w: from_openai(f, p),
    "convert_to_custom_text_state_dict": lambda f, p, w: [f(dict(small(p).state_dict())), f({"visual.x": 1, "ln_final.y": 2})],
    "convert_state_dict": lambda f, p, w: f(small(p), {"visual.x": 1}),
    "convert_mobile_clip_state_dict": lambda f, p, w: f(small(p), {}),
    "resize_pos_embed": lambda f, p, w: changed(f, p, {"visual.positional_embedding": noise(50, VISION["width"])}),
    "resize_text_pos_embed": lambda f, p, w: changed(f, p, text_state(33)) + changed(f, p, text_state(20)),
    "text_global_pool": lambda f, p, w: [
        f(noise(3, 20, 4), texts(), kind, 499) for kind in ("first", "last", "argmax", "eos", "none")
    ],
    # Positions, and helpers.
    "interpolate_pos_embed": lambda f, p, w: tables_resized(f),
    "get_1d_sincos_pos_embed_from_grid": lambda f, p, w: f(8, np.arange(5.0)),
    "get_2d_sincos_pos_embed_from_grid": lambda f, p, w: f(8, GRID),
    "get_2d_sincos_pos_embed": lambda f, p, w: [f(8, 3), f(8, 3, cls_token=True)],
    "freeze_batch_norm_2d": lambda f, p, w: batch_norm_frozen(f),
    "replace_linear": lambda f, p, w: linears_replaced(f, p),
    "convert_int8_model_to_inference_mode": lambda f, p, w: int8_ready(f),
    "feature_take_indices": lambda f, p, w: [f(6), f(6, 2), f(6, [0, -1]), f(6, [1, 3], as_set=True)],
    **{f"to_{n}tuple": lambda f, p, w: [f(3), f((1, 2)), f([4])] for n in (1, 2, 3, 4)},
    "to_ntuple": lambda f, p, w: [f(3, 5), f(2, (1,))],
}  # fmt: skip
