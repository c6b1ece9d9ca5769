"""open_clip's ``push_to_hf_hub``: a model as a folder that open_clip reads, and that folder as a repository of the hub.

Uploading is the package huggingface-hub's work; it reads the address of the hub (``HF_ENDPOINT``) and the token as always.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from diptych.errors import OutputError
from diptych.files import replacing, write_text
from diptych.open_clip._errors import InvalidError
from diptych.open_clip.constants import HF_CONFIG_NAME, HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from diptych.open_clip.factory import create_model_from_pretrained, get_model_config, get_tokenizer
from diptych.open_clip.pretrained import has_hf_hub
from diptych.open_clip.tokenizer import SPECIAL, SimpleTokenizer

__all__ = ["generate_readme", "push_pretrained_to_hf_hub", "push_to_hf_hub", "save_config_for_hf", "save_for_hf"]

OPENAI_SPECIAL = dict(zip(SPECIAL, ("<|startoftext|>", "<|endoftext|>"), strict=True))


def save_config_for_hf(model: Any, config_path: str | Path, model_config: dict[str, Any] | None) -> None:
    """Write ``open_clip_config.json``: the architecture, and how images are prepared. Raises ConfigError without the first."""
    if not model_config:
        raise InvalidError(
            "model_config was not given; expected the architecture's, as get_model_config(name) gives it."
        )
    preprocess = {"mean": model.visual.image_mean, "std": model.visual.image_std}
    other = getattr(model.visual, "preprocess_cfg", {})
    preprocess |= {name: other[name] for name in ("interpolation", "resize_mode") if name in other}
    whole = {"model_cfg": model_config, "preprocess_cfg": preprocess}
    write_text(Path(config_path), json.dumps(whole, indent=2), "config")


def save_for_hf(
    model: nn.Module,
    tokenizer: Any,
    model_config: dict[str, Any],
    save_directory: str | Path,
    safe_serialization: bool | str = "both",
    skip_weights: bool = False,
) -> None:
    """Write weights, tokenizer and config to a folder: ``local-dir:FOLDER`` loads it, here and in open_clip.

    ``safe_serialization`` True writes safetensors, False what torch pickles, "both" both. CLIP's own tokenizer is written in
    transformers' files. Raises ConfigError, OutputError.
    """
    if safe_serialization not in (True, False, "both"):
        raise InvalidError(f"safe_serialization {safe_serialization!r} was given; expected True, False or 'both'.")
    folder = Path(save_directory)
    folder.mkdir(exist_ok=True, parents=True)
    if not skip_weights:
        tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        if safe_serialization:
            with replacing(folder / HF_SAFE_WEIGHTS_NAME, "weights") as path:
                save_file(tensors, path)
        if safe_serialization in (False, "both"):
            with replacing(folder / HF_WEIGHTS_NAME, "weights") as path:
                torch.save(tensors, path)
    if isinstance(tokenizer, SimpleTokenizer):
        _save_clip_tokenizer(tokenizer, folder)
    elif hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(str(folder))
    else:
        raise InvalidError(
            f"{type(tokenizer).__name__} was given as the tokenizer; expected what get_tokenizer(name) gives."
        )
    save_config_for_hf(model, folder / HF_CONFIG_NAME, model_config=model_config)


def _save_clip_tokenizer(tokenizer: SimpleTokenizer, folder: Path) -> None:
    """CLIP's vocabulary, merges and settings, under the names and the spelling that transformers has for them."""
    ids = {OPENAI_SPECIAL.get(token, token): number for token, number in tokenizer.encoder.items()}
    write_text(folder / "vocab.json", json.dumps(ids, ensure_ascii=False), "vocabulary")
    merges = "".join(f"{first} {second}\n" for first, second in tokenizer.bpe_ranks)
    write_text(folder / "merges.txt", f"#version: 0.2\n{merges}", "vocabulary")
    start, end = OPENAI_SPECIAL.values()
    special: dict[str, Any] = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    more = [tokenizer.decoder[number] for number in tokenizer.all_special_ids[2:]]
    special |= {"additional_special_tokens": more} if more else {}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": tokenizer.context_length, "do_lower_case": True}
    write_text(folder / "special_tokens_map.json", json.dumps(special, indent=2), "config")
    write_text(folder / "tokenizer_config.json", json.dumps(settings | special, indent=2), "config")


def push_to_hf_hub(
    model: nn.Module,
    tokenizer: Any,
    model_config: dict[str, Any] | None,
    repo_id: str,
    commit_message: str = "Add model",
    token: str | None = None,
    revision: str | None = None,
    private: bool = False,
    create_pr: bool = False,
    model_card: dict[str, Any] | None = None,
    safe_serialization: bool | str = "both",
) -> Any:
    """Upload a model as the repository ``repo_id``, which is created if need be; gives the hub's description of the commit.

    A README is written where there is none, from ``model_card`` (see ``generate_readme``). Raises ConfigError, OutputError.
    """
    has_hf_hub(True)
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with TemporaryDirectory() as folder:
        save_for_hf(model, tokenizer, model_config or {}, folder, safe_serialization)
        try:
            repository = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if not api.file_exists(repository, "README.md", revision=revision):
                card = generate_readme(model_card or {}, repository.rsplit("/", 1)[-1])
                (Path(folder) / "README.md").write_text(card, encoding="utf-8")
            return api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                revision=revision,
                create_pr=create_pr,
                commit_message=commit_message,
            )
        except Exception as error:  # the hub's client raises errors of several packages
            reason = " ".join(str(error).split())[:300]
            raise OutputError(f"{repo_id} could not be uploaded: {reason}; nothing is lost, try again.") from error


def push_pretrained_to_hf_hub(
    model_name: str,
    pretrained: str,
    repo_id: str,
    precision: str = "fp32",
    image_mean: tuple[float, ...] | None = None,
    image_std: tuple[float, ...] | None = None,
    image_interpolation: str | None = None,
    image_resize_mode: str | None = None,
    commit_message: str = "Add model",
    token: str | None = None,
    revision: str | None = None,
    private: bool = False,
    create_pr: bool = False,
    model_card: dict[str, Any] | None = None,
    hf_tokenizer_self: bool = False,
    **kwargs: Any,
) -> None:
    """Upload weights of a tag or file; ``kwargs`` go to ``create_model_from_pretrained``.

    ``hf_tokenizer_self`` makes the config name the repository itself as the tokenizer's.
    """
    images = {"image_mean": image_mean, "image_std": image_std, "image_interpolation": image_interpolation}
    options = {**images, "image_resize_mode": image_resize_mode, "return_transform": False, **kwargs}
    model: Any = create_model_from_pretrained(model_name, pretrained, precision=precision, **options)
    config = get_model_config(model_name)
    if not config:
        raise InvalidError(f"{model_name} has no config of an architecture by that name; give one of list_models().")
    if pretrained == "openai":
        config["quick_gelu"] = True
    if hf_tokenizer_self:
        config["text_cfg"]["hf_tokenizer_name"] = repo_id
    push_to_hf_hub(
        model,
        get_tokenizer(model_name),
        config,
        repo_id,
        commit_message,
        token=token,
        revision=revision,
        private=private,
        create_pr=create_pr,
        model_card=model_card,
    )


def generate_readme(model_card: dict[str, Any], model_name: str) -> str:
    """The text of a model card: a header for the hub, then a section for each of description, details, usage, ... given."""
    card = dict(model_card)
    details = card.get("details", {})
    lines = ["---", *_header(card, details), "---", f"# Model card for {model_name}"]
    if "description" in card:
        lines += ["", str(card["description"])]
    if "details" in card:
        lines += ["", "## Model Details", *_listed(details)]
    for name, title in (("usage", "Model Usage"), ("comparison", "Model Comparison")):
        if name in card:
            lines += ["", f"## {title}", str(card[name])]
    if "citation" in card:
        cited = card["citation"] if isinstance(card["citation"], list | tuple) else [card["citation"]]
        lines += ["", "## Citation", *(f"```bibtex\n{citation}\n```" for citation in cited)]
    return "\n".join(lines) + "\n"


def _header(card: Mapping[str, Any], details: Mapping[str, Any]) -> Iterator[str]:
    tags = card.get("tags", ("clip",))
    if tags:
        yield "tags:"
        yield from (f"- {tag}" for tag in tags)
    yield "library_name: open_clip"
    yield f"pipeline_tag: {card.get('pipeline_tag', 'zero-shot-image-classification')}"
    yield f"license: {card.get('license', 'mit')}"
    if "Dataset" in details:
        yield "datasets:"
        yield f"- {details['Dataset'].lower()}"


def _listed(details: Mapping[str, Any]) -> Iterator[str]:
    for name, value in details.items():
        if isinstance(value, list | tuple | dict):
            yield f"- **{name}:**"
            items = [f"{key}: {item}" for key, item in value.items()] if isinstance(value, dict) else value
            yield from (f"  - {item}" for item in items)
        else:
            yield f"- **{name}:** {value}"


def main(argv: Sequence[str] | None = None) -> None:
    """``python -m diptych.open_clip.push_to_hf_hub --model NAME --pretrained TAG --repo-id OWNER/NAME``."""
    parser = argparse.ArgumentParser(description="Upload weights to the Hugging Face hub")
    parser.add_argument("--model", required=True, help="an architecture of list_models()")
    parser.add_argument("--pretrained", required=True, help="a tag, or a file of weights")
    parser.add_argument("--repo-id", required=True, help="OWNER/NAME")
    parser.add_argument("--precision", default="fp32")
    for name in ("mean", "std"):
        parser.add_argument(f"--image-{name}", type=float, nargs="+", default=None)
    parser.add_argument("--image-interpolation", default=None, choices=["bicubic", "bilinear", "random"])
    parser.add_argument("--image-resize-mode", default=None, choices=["shortest", "longest", "squash"])
    parser.add_argument("--hf-tokenizer-self", action="store_true", help="name the repository as the tokenizer's")
    options = vars(parser.parse_args(argv))
    push_pretrained_to_hf_hub(options.pop("model"), options.pop("pretrained"), options.pop("repo_id"), **options)


if __name__ == "__main__":
    main()
