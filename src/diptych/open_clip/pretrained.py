"""open_clip's lists of published weights, from Diptych's catalog, and fetching them into a cache.

Facts are the catalog's (``diptych.weights.catalog``): only weights that this package has an architecture for are listed. A URL is
checked against its SHA-256 where the publisher gave one; an unfinished download never has the file's name.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import urllib.request
from functools import cache
from pathlib import Path
from typing import Any

from diptych import log
from diptych.files import replacing
from diptych.models import model_config
from diptych.open_clip._errors import MissingError, ModelError
from diptych.open_clip._releases import first_release
from diptych.open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from diptych.weights import catalog

CACHE = "~/.cache/clip"


@cache
def _listed() -> dict[str, dict[str, dict[str, Any]]]:
    """Model -> tag -> config, in the catalog's order; SigLIP's are the library's own (their image tower is timm's there)."""
    models: dict[str, dict[str, dict[str, Any]]] = {}
    for entry in catalog().values():
        config = model_config(entry.architecture)
        if config.vision.family == "siglip":
            continue
        preprocess = entry.preprocess
        url = entry.original or first_release(entry.architecture, _clean_tag(entry.tag))
        values: dict[str, Any] = {
            "url": url, "hf_hub": f"{entry.repo}/", "mean": preprocess.mean, "std": preprocess.std,
            "interpolation": preprocess.interpolation, "resize_mode": preprocess.resize_mode,
        }  # fmt: skip
        if config.activation == "quickgelu":
            values["quick_gelu"] = True
        names = {entry.model, entry.architecture}  # open_clip lists OpenAI's under both names
        for name in sorted(names):
            models.setdefault(name, {})[_clean_tag(entry.tag)] = values
    # Names with another activation stand last, as in open_clip.
    return {name: models[name] for name in sorted(models, key=lambda name: name.endswith("-quickgelu"))}


def _clean_tag(tag: str) -> str:
    return tag.lower().replace("-", "_")


def list_pretrained(as_str: bool = False) -> list[Any]:
    """Pairs of model and tag, or "model:tag"."""
    pairs = [(model, tag) for model, tags in _listed().items() for tag in tags]
    return [f"{model}:{tag}" for model, tag in pairs] if as_str else pairs


def list_pretrained_models_by_tag(tag: str) -> list[str]:
    """The models that have the tag."""
    return [model for model, tags in _listed().items() if _clean_tag(tag) in tags]


def list_pretrained_tags_by_model(model: str) -> list[str]:
    """The tags of a model; none for an unknown one."""
    return list(_listed().get(model, {}))


def is_pretrained_cfg(model: str, tag: str) -> bool:
    """Whether the model has the tag."""
    return _clean_tag(tag) in _listed().get(model, {})


def get_pretrained_cfg(model: str, tag: str) -> dict[str, Any]:
    """Where the weights are and how images are prepared for them; {} when unknown."""
    return dict(_listed().get(model, {}).get(_clean_tag(tag), {}))


def get_pretrained_url(model: str, tag: str) -> str:
    """The address of the first release; "" where it is on the hub only, or unknown."""
    return str(get_pretrained_cfg(model, tag).get("url", ""))


def _expected_sha256(url: str) -> str:
    """The beginning of the SHA-256 that the address itself says, or ""."""
    if "openaipublic" in url:
        return url.split("/")[-2]
    return Path(url).stem.rpartition("-")[2] if "mlfoundations" in url else ""


def _has_sha256(path: Path, expected: str) -> bool:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest().startswith(expected)


def download_pretrained_from_url(url: str, cache_dir: str | None = None) -> str:
    """The file at ``url`` in ``cache_dir`` (``~/.cache/clip``), fetched unless it is there and right.

    Raises ModelError when what came is not what the address says, or nothing came.
    """
    target = Path(cache_dir or CACHE).expanduser() / os.path.basename(url)
    expected = _expected_sha256(url)
    if target.is_file():
        if not expected or _has_sha256(target, expected):
            return str(target)
        log.warn(f"{target} is not the file that {url} names (its SHA-256 differs); it is fetched again.")
    elif target.exists():
        raise ModelError(f"{target} is there and no file; move it, or give another cache_dir.")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with urllib.request.urlopen(url) as source, replacing(target, "weight file") as beside:
            with Path(beside).open("wb") as output:
                shutil.copyfileobj(source, output, 1 << 20)
            if expected and not _has_sha256(Path(beside), expected):
                raise ModelError(
                    f"{url}: what came has another SHA-256 than the address says; it was not kept. Try again."
                )
    except OSError as error:
        raise ModelError(f"{url} could not be fetched ({error}); fetch it by hand into {target.parent}.") from error
    return str(target)


def has_hf_hub(necessary: bool = False) -> bool:
    """Whether the package huggingface-hub is installed; ``necessary`` raises ModelError when not."""
    there = importlib.util.find_spec("huggingface_hub") is not None
    if necessary and not there:
        raise ModelError(
            "weights of the Hugging Face hub need the package huggingface-hub: pip install 'diptych[hub]'."
        )
    return there


def _names_to_try(filename: str) -> list[str]:
    """A safetensors file first, where the name may have such a counterpart."""
    if filename == HF_WEIGHTS_NAME:
        return [HF_SAFE_WEIGHTS_NAME, filename]
    stem, ending = os.path.splitext(filename)
    return [f"{stem}.safetensors", filename] if ending in (".bin", ".pth") else [filename]


def download_pretrained_from_hf(
    model_id: str, filename: str | None = None, revision: str | None = None, cache_dir: str | None = None
) -> str:
    """The path of a file of a repository, from the hub's cache or fetched; safetensors where there are any.

    Raises MissingError when none could be had.
    """
    has_hf_hub(True)
    from huggingface_hub import hf_hub_download

    problem: Exception | None = None
    for name in _names_to_try(filename or HF_WEIGHTS_NAME):
        try:
            return str(hf_hub_download(model_id, name, revision=revision, cache_dir=cache_dir))
        except Exception as error:  # the hub's client raises errors of several packages
            problem = error
    reason = " ".join(str(problem).split())[:200]
    raise MissingError(
        f"{filename or HF_WEIGHTS_NAME} of {model_id} could not be fetched ({reason}); fetch it on another machine and give the"
        " file as `pretrained`."
    ) from problem


def download_pretrained(cfg: dict[str, Any], prefer_hf_hub: bool = True, cache_dir: str | None = None) -> str:
    """The path of the weights of a config of ``get_pretrained_cfg``; "" for an empty one."""
    if "file" in cfg:
        return str(cfg["file"])
    url, hub = cfg.get("url", ""), cfg.get("hf_hub", "")
    if url and not (hub and prefer_hf_hub and has_hf_hub()):
        return download_pretrained_from_url(url, cache_dir=cache_dir)
    if not hub:
        return ""
    model_id, filename = os.path.split(hub)
    return download_pretrained_from_hf(model_id, filename=filename or None, cache_dir=cache_dir)
