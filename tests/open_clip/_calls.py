"""One call of every callable name of open_clip, for the package and the real one alike; no tests, and no expectations.

``CALLS[name](f, p, w)`` calls ``f``, which is ``name`` of some module of the package ``p``, with what is in the world ``w``.
Calls of modules and models are in ``_calls_models``.
"""

from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from tests.open_clip._calls_models import MODEL_CALLS, SMALL, seeded, small

NAME = "small-for-calls"
CARD = {"license": "mit", "description": "Small.", "details": {"Dataset": "LAION-2B"}, "citation": "@a{}"}
TEXTS = ["a photo of a cat", "two Dogs &amp; a   bird, it's 3 o'clock"]
LONG = ["one two three four five six seven eight nine ten eleven twelve", "cat"]


@dataclass
class World:
    """Files that both packages are called with; ``folder`` is free to write in, another for each package."""

    folder: Path
    config: Path
    weights: Path
    tokenizer: str
    uploaded: dict[str, Any]


def world_in(folder: Path, package: Any, tokenizer: str, uploaded: dict[str, Any]) -> World:
    """Write the files, equal for both, and add the small architecture to ``package``, with CLIP's tokenizer and another."""
    (folder / "local").mkdir(parents=True)
    config, weights = folder / f"{NAME}.json", folder / "weights.safetensors"
    config.write_text(json.dumps(SMALL))
    other = {**SMALL, "text_cfg": {**SMALL["text_cfg"], "hf_tokenizer_name": tokenizer}}
    (folder / f"{NAME}-hf.json").write_text(json.dumps(other))
    for path in (config, folder / f"{NAME}-hf.json"):
        package.add_model_config(path)
    state = seeded(package.model.CLIP, **SMALL).state_dict()
    for path in (weights, folder / "local" / "open_clip_model.safetensors"):
        save_file(dict(state), path)
    images = {"mean": [0.5] * 3, "std": [0.2] * 3}
    (folder / "local" / "open_clip_config.json").write_text(json.dumps({"model_cfg": SMALL, "preprocess_cfg": images}))
    uploaded.clear()
    return World(folder, config, weights, tokenizer, uploaded)


def picture(width: int = 90, height: int = 70) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width * 2, height * 2), Image.Resampling.BICUBIC)


def loss_arguments(**changes: Any) -> argparse.Namespace:
    """What open_clip's trainer passes."""
    values = {
        "distill": False, "model": "ViT-B-32", "siglip": False, "rank": 0, "world_size": 1, "local_loss": False,
        "gather_with_grad": True, "horovod": False, "loss_dist_impl": None,
    }  # fmt: skip
    return argparse.Namespace(**{**values, **changes})


def losses(loss: nn.Module, *extra: Any) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    images, texts = (nn.functional.normalize(torch.randn(5, 8, generator=generator), dim=-1) for _ in range(2))
    return [*loss(images, texts, torch.tensor(9.0), *extra, output_dict=True).values()]


def transformed(call: Callable[..., Any], **options: Any) -> list[Any]:
    transform = call(40, **options)
    torch.manual_seed(0)
    return [transform(picture()), [type(step).__name__ for step in transform.transforms]]


def masked(call: Callable[..., Any]) -> list[Any]:
    import random

    torch.manual_seed(0)
    random.seed(0)
    return [
        call(
            LONG,
            context_length=6,
            sot_token_id=1,
            eot_token_id=2,
            encode_fn=lambda text: [*range(3, 3 + len(text.split()))],
        )
    ]


def outputs(model: nn.Module) -> list[Any]:
    """State and features of a model that knows images of its own size and ids below 500."""
    side: Any = model.visual.image_size
    images = torch.randn(2, 3, *side, generator=torch.Generator().manual_seed(1)).to(model.visual.conv1.weight.dtype)
    ids = torch.randint(1, 499, (2, model.context_length), generator=torch.Generator().manual_seed(2))
    training = model.training
    with torch.no_grad():
        return [dict(model.state_dict()), training, model.eval()(images, ids), vars(model.visual).get("preprocess_cfg")]


def created(call: Callable[..., Any], world: World) -> Any:
    """From a file, from a folder, in a lower precision; with the pixels of the transforms where there are some."""
    name = call.__name__
    images = {} if name == "create_model" else {"image_mean": (0.5, 0.4, 0.3)}
    extra = {} if name == "create_model_from_pretrained" else {"output_dict": True}
    results = []
    for arguments, options in (
        ((NAME, str(world.weights)), images),
        ((f"local-dir:{world.folder / 'local'}",), extra),
        ((NAME, world.weights, *(() if "from" in name else (True,)), "bf16"), {}),
    ):
        given = call(*arguments, **options)
        model, *transforms = given if isinstance(given, tuple) else (given,)
        results += [outputs(model), [transform(picture()) for transform in transforms[-1:]]]
    return results


def archive(package: Any, world: World) -> str:
    """A file as OpenAI's, in half precision."""
    path = world.folder / "openai.pt"
    text = {"context_length": 20, "vocab_size": 500, "width": 64, "heads": 1, "layers": 2}
    vision = {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16}
    model = seeded(package.model.CLIP, 64, vision, text, quick_gelu=True)
    torch.save({name: item.half() for name, item in model.state_dict().items()}, path)
    return str(path)


def saved(call: Callable[..., Any], package: Any, world: World) -> list[Any]:
    """What is in the folder that was written."""
    call(prepared(package), package.tokenizer.HFTokenizer(world.tokenizer), SMALL, world.folder / "saved")
    return contents(world.folder / "saved")


def contents(folder: Path) -> list[Any]:
    """Of each file its name, and values or text: not bytes of archives, which hold paths and dates."""
    results: list[Any] = []
    for path in sorted(folder.iterdir()):
        value: Any = path.stat().st_size
        if path.suffix == ".json":
            value = json.loads(path.read_text())
        elif path.suffix == ".md":
            value = path.read_text()
        elif path.suffix in (".safetensors", ".bin"):
            value = load_file(path) if path.suffix == ".safetensors" else dict(torch.load(path, weights_only=True))
        results.append([path.name, value])
    return results


def uploaded(world: World, call: Callable[..., Any], *arguments: Any, **options: Any) -> dict[str, Any]:
    call(*arguments, **options)
    return dict(world.uploaded)


def config_saved(call: Callable[..., Any], package: Any, world: World) -> Any:
    call(prepared(package), world.folder / "config.json", SMALL)
    return json.loads((world.folder / "config.json").read_text())


def prepared(package: Any) -> nn.Module:
    model = small(package)
    package.set_model_preprocess_cfg(
        model, {"size": 64, "mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0), "interpolation": "bicubic"}
    )
    return model


def classified(call: Callable[..., Any], package: Any) -> torch.Tensor:
    tokens = package.SimpleTokenizer(context_length=20)
    templates = [lambda c: f"a {c}.", lambda c: f"the small {c}"]
    return call(small(package), lambda texts: tokens(texts) % 499, ["cat", "big dog", "bird"], templates)


def ids_of(tokenizer: Any) -> list[Any]:
    return [tokenizer(TEXTS), tokenizer(LONG, 6), tokenizer("one text")]


def simple(call: Callable[..., Any]) -> list[Any]:
    first, second = call(), call(additional_special_tokens=["<|own|>"], clean="canonicalize", context_length=9)
    again = pickle.loads(pickle.dumps(first.encode("it's a <start_of_text> cat")))
    names = ("vocab_size", "all_special_ids", "sot_token_id", "eot_token_id", "context_length")
    attributes = [[getattr(tokenizer, name) for name in names] for tokenizer in (first, second)]
    return [
        ids_of(first),
        ids_of(second),
        again,
        first.decode([320, 2368, 49407]),
        attributes,
        first.bpe("photos"),
        first.encoder,
    ]


CALLS: dict[str, Callable[[Any, Any, World], Any]] = {
    **MODEL_CALLS,
    # Configs, weights, creation.
    "add_model_config": lambda f, p, w: (f(w.config), p.get_model_config(NAME), NAME in p.list_models())[1:],
    "get_model_config": lambda f, p, w: [
        f(name) for name in (NAME, "ViT-B-32", "ViT-L-14-336-quickgelu", "none", f"local-dir:{w.folder / 'local'}")
    ],
    "parse_model_name": lambda f, p, w: [f(name) for name in ("ViT-B-32", "hf-hub:a/b", "local-dir:/x")],
    "list_models": lambda f, p, w: f(),
    "list_openai_models": lambda f, p, w: f(),
    "list_pretrained": lambda f, p, w: [f(), f(as_str=True)],
    "list_pretrained_models_by_tag": lambda f, p, w: [f("laion2b_s34b_b79k"), f("none")],
    "list_pretrained_tags_by_model": lambda f, p, w: [f("ViT-B-32"), f("ViT-H-14"), f("none")],
    "is_pretrained_cfg": lambda f, p, w: [f("ViT-B-32", tag) for tag in ("openai", "laion2b-s34b-b79k", "none")],
    "get_pretrained_cfg": lambda f, p, w: [f("ViT-B-32", "openai"), f("ViT-B-32", "none")],
    "get_pretrained_url": lambda f, p, w: [f("ViT-B-32", "openai"), f("ViT-B-32", "laion400m_e32"), f("a", "b")],
    "has_hf_hub": lambda f, p, w: [f(), f(necessary=True)],
    "download_pretrained": lambda f, p, w: [
        Path(f({"url": w.weights.as_uri()}, cache_dir=str(w.folder / "cache"))).read_bytes(),
        Path(f({"hf_hub": "owner/name/"})).name, f({}),
    ],
    "download_pretrained_from_url": lambda f, p, w: Path(f(w.weights.as_uri(), str(w.folder / "cache"))).read_bytes(),
    "download_pretrained_from_hf": lambda f, p, w: [
        Path(f("owner/name")).name, Path(f("owner/name", "open_clip_config.json", None, None)).name,
    ],
    "create_model": lambda f, p, w: created(f, w),
    "create_model_and_transforms": lambda f, p, w: created(f, w),
    "create_model_from_pretrained": lambda f, p, w: created(f, w),
    "load_openai_model": lambda f, p, w: [outputs(f(archive(p, w), precision, "cpu")) for precision in ("fp32", None)],
    "load_state_dict": lambda f, p, w: f(str(w.weights)),
    "load_checkpoint": lambda f, p, w: [list(vars(f(model := small(p, 7), str(w.weights)))), model],
    "get_tokenizer": lambda f, p, w: [ids_of(f(NAME)), ids_of(f("ViT-B-32", context_length=12)), ids_of(f())],
    "create_loss": lambda f, p, w: [losses(f(loss_arguments())), losses(f(loss_arguments(siglip=True)), torch.tensor(-3.0))],
    # Files for the hub.
    "push_to_hf_hub": lambda f, p, w: (
        uploaded(w, f, prepared(p), p.tokenizer.HFTokenizer(w.tokenizer), SMALL, "someone/x", "Add", "hf_secret")
    ),
    "push_pretrained_to_hf_hub": lambda f, p, w: (
        uploaded(w, f, f"{NAME}-hf", str(w.weights), "someone/x", image_mean=(0.1, 0.2, 0.3), model_card=dict(CARD))
    ),
    "save_for_hf": lambda f, p, w: saved(f, p, w),
    "save_config_for_hf": config_saved,
    "generate_readme": lambda f, p, w: [f(dict(CARD), "small"), f({}, "small")],
    # Tokens.
    "SimpleTokenizer": lambda f, p, w: simple(f),
    "HFTokenizer": lambda f, p, w: ids_of(f(w.tokenizer, context_length=12)),
    "SigLipTokenizer": lambda f, p, w: f("no-such-vocabulary"),
    "tokenize": lambda f, p, w: [f(TEXTS), f("one", 12), f([*LONG], context_length=5)],
    "decode": lambda f, p, w: f(torch.tensor([49406, 320, 2368, 49407])),
    "basic_clean": lambda f, p, w: f(" caf\u00c3\u00a9 &amp;lt; x "),
    "whitespace_clean": lambda f, p, w: f("  a \n\t b  "),
    "canonicalize_text": lambda f, p, w: [f("A_b, C's {}!"), f("A, {} B!", keep_punctuation_exact_string="{}")],
    "bytes_to_unicode": lambda f, p, w: [f(), list(f().values())],
    "default_bpe": lambda f, p, w: Path(f()).is_file(),
    "get_pairs": lambda f, p, w: f(("a", "b", "c", "a", "b")),
    "get_clean_fn": lambda f, p, w: [f(name)("  A b's &amp; C ") for name in ("lower", "whitespace", "canonicalize")],
    "get_reduction_mask_fn": lambda f, p, w: [masked(f(name)) for name in ("simple", "random", "shuffle")],
    "random_mask_tokenize": lambda f, p, w: [masked(f), masked(lambda *a, **k: f(*a, **k, shuffle=True))],
    "simple_mask_tokenize": lambda f, p, w: masked(f),
    "syntax_mask_tokenize": lambda f, p, w: masked(f),
    # Images.
    "AugmentationCfg": lambda f, p, w: [f(), f((0.5, 1.0), use_timm=True)],
    "PreprocessCfg": lambda f, p, w: [f(), f(64).input_size, f((3, 4)).input_size, f().num_channels],
    "merge_preprocess_dict": lambda f, p, w: f({"size": 1, "mean": (1,)}, {"mean": None, "std": (2,), "other": 1}),
    "merge_preprocess_kwargs": lambda f, p, w: f(p.transform.PreprocessCfg(), size=3, mean=None),
    "image_transform": lambda f, p, w: [
        transformed(f, is_train=False), transformed(f, is_train=False, resize_mode="longest", fill_color=9),
        transformed(f, is_train=False, resize_mode="squash", interpolation="bilinear"),
        transformed(f, is_train=True, aug_cfg={"scale": (0.5, 1.0)}),
    ],
    "image_transform_v2": lambda f, p, w: f(p.transform.PreprocessCfg(48, mean=(0.5,) * 3), is_train=False)(picture()),
    "CenterCropOrPad": lambda f, p, w: f((200, 100), fill=3)(picture()),
    "center_crop_or_pad": lambda f, p, w: [f(picture(), [100, 200], 7), f(torch.ones(3, 8, 9), [4, 12])],
    "MaybeConvertMode": lambda f, p, w: [f()(picture().convert("L")), f()(torch.ones(1)), repr(f())],
    "MaybeToTensor": lambda f, p, w: [f()(picture()), f()(torch.ones(1)), repr(f())],
    "ResizeKeepRatio": lambda f, p, w: [f(40)(picture()), f(40, longest=1)(picture()), f((30, 50), longest=0.5)(picture())],
    "color_jitter": lambda f, p, w: [seeded(lambda: f(0.4, 0.3, 0.2, 0.1, p=1.0))(picture()).size, f(0.4, p=0.0)(picture())],
    "gray_scale": lambda f, p, w: [f(1.0)(picture()), f(0.0)(picture())],
    # Zero-shot.
    "batched": lambda f, p, w: list(f(range(7), 3)),
    "build_zero_shot_classifier": lambda f, p, w: classified(f, p),
    "build_zero_shot_classifier_legacy": lambda f, p, w: classified(f, p),
}  # fmt: skip
