"""From a file to a ready model: read, recognise, rename, check, fit, assign.

The model is built without memory and the mapped tensors become its parameters, so loading costs what has to be touched.
What the user asks for and what the weights say must agree: activation, sizes and preprocessing are compared, and a conflict
is an error. Only position tables may change size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from diptych.errors import WeightsError
from diptych.models import ModelConfig, TwoTower, list_models, model_config
from diptych.tensorfiles.read import Stored, read
from diptych.weights import CHECKPOINT_FORMATS, _native
from diptych.weights._clip_names import sizes
from diptych.weights._format import CheckpointFormat, Found
from diptych.weights._rename import check, to_ours
from diptych.weights._resize import fitted

# The first name that a folder holds is opened.
SEARCH = (
    "model.safetensors", "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors.index.json",
    "open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth", "pytorch_model.bin", "pytorch_model.bin.index.json",
    "model_state.pdparams", "ckpt.pth.tar",
)  # fmt: skip
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".pdparams")
BUFFERS = ("image.mean", "image.std")


def file_in(path: Path) -> Path:
    """The weight file that a path means: itself, or the first of a folder's. Raises WeightsError when there is none."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise WeightsError(
            f"{path}: no such weight file; give a file, a folder that holds one, or a name of the catalogue."
        )
    for name in SEARCH:
        if (path / name).is_file():
            return path / name
    # A run's folder of open_clip keeps its checkpoints one level down.
    epochs = sorted((path / "checkpoints").glob("epoch_*.pt"), key=lambda file: (len(file.name), file.name))
    if epochs:
        return epochs[-1]
    alone = [file for file in sorted(path.iterdir()) if file.suffix in SUFFIXES and file.is_file()]
    if len(alone) == 1:
        return alone[0]
    raise WeightsError(
        f"{path}: no {SEARCH[0]} in this folder, nor any other weight file known here; has the run ended? "
        "A checkpoint of training is no weight file."
    )


def recognised(stored: Stored) -> CheckpointFormat:
    """The layout whose names these are. Raises WeightsError, with some of the names, when it is nobody's."""
    for name in ("openai", "huggingface", "paddle", "declip", "openclip", *CHECKPOINT_FORMATS.names()):
        layout = CHECKPOINT_FORMATS.get(name)()
        if layout.recognises(stored):
            return layout
    if "text.token_embedding.weight" in stored.tensors and any(name.startswith("image.") for name in stored.tensors):
        raise WeightsError(
            f"{stored.path}: Diptych's tensors without their metadata: it does not say its architecture."
        )
    some = ", ".join(sorted(stored.tensors)[:4])
    raise WeightsError(f"{stored.path}: no CLIP or SigLIP that Diptych knows; it begins with {some or 'nothing'}.")


def described(stored: Stored, asked: ModelConfig | None = None) -> tuple[CheckpointFormat | None, Found]:
    """The layout (None for our own) and the architecture; ``asked`` stands in where nothing else tells the heads."""
    if "diptych" in stored.metadata:
        return None, Found(_native.config_in(stored), "its metadata", True, preprocess_known=True)
    layout = recognised(stored)
    try:
        found = layout.describe(stored)
    except WeightsError:
        if asked is None:
            raise
        return layout, Found(asked, "--model", activation_known=False)
    if asked is not None and _guessed_heads(found) and sizes(asked) == sizes(found.config):
        vision = dataclasses.replace(asked.vision, image_size=found.config.vision.image_size)
        found = dataclasses.replace(found, config=dataclasses.replace(found.config, vision=vision, text=asked.text))
    return layout, dataclasses.replace(found, config=_named(found.config))


def _guessed_heads(found: Found) -> bool:
    return found.told_by == "the shapes of the tensors"


def _named(config: ModelConfig) -> ModelConfig:
    """With the name of the preset that it equals, if there is one."""
    for name in list_models():
        preset = model_config(name)
        if (
            dataclasses.replace(config, name=name, preprocess=preset.preprocess, logit_scale=preset.logit_scale)
            == preset
        ):
            return dataclasses.replace(config, name=name)
    return config


def settled(found: Found, asked: ModelConfig | None, where: str) -> ModelConfig:
    """What is built: the weights' architecture, at the asked sizes of picture and context. Raises WeightsError on conflict."""
    config = found.config
    if asked is None:
        if not found.activation_known:
            raise WeightsError(
                f"{where}: nothing says whether these weights want GELU or QuickGELU, and a wrong guess ruins them silently; "
                f"say --model {config.name} or --model {config.name}-quickgelu."
            )
        return config
    if found.activation_known and asked.activation != config.activation:
        raise WeightsError(
            f"{where}: trained with {config.activation} (says {found.told_by}), but --model {asked.name} uses "
            f"{asked.activation}; use --model {_other(asked, config.activation)}."
        )
    if sizes(asked) != sizes(config) and not _same_but_context(asked, config):
        raise WeightsError(
            f"{where} holds a {config.name!r}, which is not the architecture of --model {asked.name!r} "
            f"({_differing(asked, config)}); use --model {config.name}."
        )
    look = config.preprocess if found.preprocess_known else asked.preprocess
    return dataclasses.replace(asked, preprocess=look, logit_bias=config.logit_bias)


def _same_but_context(asked: ModelConfig, config: ModelConfig) -> bool:
    text = dataclasses.replace(config.text, context_length=asked.text.context_length)
    return sizes(dataclasses.replace(config, text=text)) == sizes(asked)


def _other(asked: ModelConfig, activation: str) -> str:
    plain = asked.name.removesuffix("-quickgelu")
    return f"{plain}-quickgelu" if activation == "quickgelu" else plain


def _differing(asked: ModelConfig, config: ModelConfig) -> str:
    pairs = []
    for branch in ("vision", "text"):
        one, two = getattr(asked, branch), getattr(config, branch)
        for field in dataclasses.fields(two):
            mine, theirs = getattr(one, field.name, None), getattr(two, field.name)
            if mine != theirs and field.name != "image_size":
                pairs.append(f"{branch}.{field.name} is {theirs} there, {mine} asked")
    if asked.embed_dim != config.embed_dim:
        pairs.append(f"embed_dim is {config.embed_dim} there, {asked.embed_dim} asked")
    return "; ".join(pairs[:3]) or "their families differ"


def opened(
    path: Path, asked: ModelConfig | None = None, allow: Iterable[str] = (), hint: Found | None = None
) -> TwoTower:
    """The model in a file, in the file's own number format. ``hint`` is what the catalogue knows. Raises WeightsError."""
    stored = read(path)
    if hint is not None and "diptych" not in stored.metadata:
        layout: CheckpointFormat | None = recognised(stored)
        found = hint
    else:
        layout, found = described(stored, asked)
    wanted = settled(found, asked, str(path))
    tensors = stored.tensors if layout is None else _renamed(layout, stored, found.config, allow)
    if layout is None:
        _whole(path, tensors, found.config, "diptych", allow)
    return assembled(fitted(tensors, found.config, wanted), wanted, str(path))


def _renamed(layout: CheckpointFormat, stored: Stored, config: ModelConfig, allow: Iterable[str]) -> dict[str, Tensor]:
    where, rules = str(stored.path), layout.rules(config, stored)
    tensors = layout.completed(to_ours(rules, stored.tensors, where), config)
    used = {rule.theirs for rule in rules}
    extra = [name for name in stored.tensors if name not in used]
    needed = [rule.theirs for rule in rules if not set(rule.ours) <= set(tensors) and not _countable(rule.theirs)]
    check(where, layout.name, needed, extra, [*layout.ignored, *allow])
    return tensors


def _countable(name: str) -> bool:
    """Counters of batch norm, which some files leave out and nothing depends on."""
    return name.endswith("num_batches_tracked")


def _whole(path: Path, tensors: dict[str, Tensor], config: ModelConfig, kind: str, allow: Iterable[str]) -> None:
    expected = set(_skeleton(config).state_dict())
    check(str(path), kind, expected - set(tensors), set(tensors) - expected, allow)


def _skeleton(config: ModelConfig) -> TwoTower:
    with torch.device("meta"):
        return TwoTower(config)


def assembled(tensors: dict[str, Tensor], config: ModelConfig, where: str) -> TwoTower:
    """A model whose parameters are these tensors. Names that are allowed to lack get fresh values. Raises WeightsError."""
    model = _skeleton(config)
    expected = model.state_dict()
    kept = {name: tensor for name, tensor in tensors.items() if name in expected and name not in BUFFERS}
    for name, tensor in kept.items():
        if expected[name].shape != tensor.shape:
            raise WeightsError(
                f"{where}: {name} has shape {list(tensor.shape)}, expected {list(expected[name].shape)} for {config.name}."
            )
        if not tensor.is_floating_point() and expected[name].is_floating_point():
            raise WeightsError(f"{where}: {name} is {tensor.dtype}, expected floating-point numbers.")
    lacking = [name for name in expected if name not in kept]
    if any(not _countable(name) and name not in BUFFERS for name in lacking):
        fresh = _skeleton(config).to_empty(device="cpu").init_weights().state_dict()
        kept.update({name: fresh[name] for name in lacking})
    dtype = next(tensor.dtype for tensor in kept.values() if tensor.is_floating_point())
    look = config.preprocess
    # The buffers are ours: preprocessing is part of what was described, not of anybody's tensors.
    kept["image.mean"] = torch.tensor(look.mean, dtype=dtype if dtype == torch.float64 else torch.float32).view(3, 1, 1)
    kept["image.std"] = torch.tensor(look.std, dtype=kept["image.mean"].dtype).view(3, 1, 1)
    for name in lacking:
        if _countable(name):
            kept[name] = torch.zeros((), dtype=torch.int64)
    model.load_state_dict(kept, assign=True)
    return model.requires_grad_(True)
