"""Fetching from a hub: Hugging Face's through its own library, ModelScope's where that one cannot be reached.

``HF_ENDPOINT`` and ``HF_HUB_OFFLINE`` are read by the library itself; its cache is used. Without a network the message says
which file to fetch by hand. Nothing is executed that was fetched.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from diptych.errors import WeightsError

CONFIGS = (
    "open_clip_config.json", "config.json", "preprocessor_config.json", "processor_config.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "tokenizer.json", "vocab.json", "merges.txt",
)  # fmt: skip


def fetch(repo: str, names: Sequence[str]) -> Path:
    """The first of ``names`` that the repository holds, as a file on this machine. Raises WeightsError."""
    try:
        return _hugging_face(repo, names)
    except ImportError as error:
        raise WeightsError(
            f"fetching {repo} needs the package huggingface-hub: pip install 'diptych[hub]'; or {_by_hand(repo, names)}"
        ) from error
    except OSError as error:
        second = _model_scope(repo, names) if os.environ.get("DIPTYCH_MODELSCOPE") else None
        if second is not None:
            return second
        raise WeightsError(f"{repo} could not be fetched ({_line(error)}); {_by_hand(repo, names)}") from error


def _by_hand(repo: str, names: Sequence[str]) -> str:
    site = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    return (
        f"fetch {site}/{repo}/resolve/main/{names[0]} on another machine, put it into a folder (with the .json files "
        "beside it) and give that folder in place of the name."
    )


def _hugging_face(repo: str, names: Sequence[str]) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # its retries end in our own message
    offline: LocalEntryNotFoundError | None = None
    for name in names:
        try:
            # Once the network has failed it is not asked again: another name may still be in the cache.
            path = Path(hf_hub_download(repo, name, local_files_only=offline is not None))
        except LocalEntryNotFoundError as error:
            offline = offline or error
            continue
        except EntryNotFoundError:
            continue
        _fetch_configs(repo, offline is not None)
        if path.name.endswith(".index.json"):
            _fetch_shards(repo, path)
        return path
    if offline is not None:
        raise offline
    raise WeightsError(f"{repo}: holds none of {', '.join(names)}; is it a CLIP or SigLIP?")


def _fetch_configs(repo: str, offline: bool) -> None:
    """The small files that say what the weights are; a repository may lack any of them."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    for name in CONFIGS:
        try:
            hf_hub_download(repo, name, local_files_only=offline)
        except (EntryNotFoundError, OSError):
            continue


def _fetch_shards(repo: str, index: Path) -> None:
    from huggingface_hub import hf_hub_download

    for name in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())):
        hf_hub_download(repo, name)


def _model_scope(repo: str, names: Sequence[str]) -> Path | None:
    """The same repository on ModelScope, when DIPTYCH_MODELSCOPE is set; None when it is not there either."""
    try:
        from modelscope.hub.file_download import model_file_download
    except ImportError as error:
        raise WeightsError("DIPTYCH_MODELSCOPE is set, but the package modelscope is not installed.") from error
    for name in names:
        try:
            return Path(model_file_download(repo, name))
        # The library raises classes of several packages for "not there".
        except Exception:
            continue
    return None


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:160] if text else type(error).__name__
