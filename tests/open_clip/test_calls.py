"""Every callable name of open_clip 3.3.0 is called once in both packages, and the results are compared; values are too.

Where ours differs on purpose, ``DIFFERENT`` says why, and what is compared in place of equality.
"""

import dataclasses
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.errors import ConfigError
from diptych.open_clip._absent import INSTEAD
from tests.distributed._processes import run_in_processes
from tests.open_clip import _calls, _calls_processes

TABLE = json.loads((Path(__file__).parent / "names.json").read_text())["names"]
NAMES = [(module, name, entry["kind"]) for module, names in TABLE.items() for name, entry in names.items()]
PRESENT = [(module, name) for module, name, kind in NAMES if kind != "value" and name not in INSTEAD]
HERE = [(module, name) for module, name in PRESENT if name not in _calls_processes.CALLS]


def difference(theirs, ours, at="result"):
    """Where two results first differ, or None."""
    if isinstance(theirs, torch.Tensor):
        if not isinstance(ours, torch.Tensor) or theirs.dtype != ours.dtype or theirs.shape != ours.shape:
            return f"{at}: {theirs.dtype} {list(theirs.shape)}, not {getattr(ours, 'dtype', ours)}"
        if not theirs.is_floating_point():
            return None if torch.equal(theirs, ours) else f"{at}: other numbers"
        tolerance = 2e-6 if torch.finfo(theirs.dtype).bits > 16 else 1e-2
        close = torch.allclose(theirs.double(), ours.double(), rtol=tolerance, atol=tolerance, equal_nan=True)
        return None if close else f"{at}: off by {(theirs.double() - ours.double()).abs().max():.2e}"
    if isinstance(theirs, np.ndarray):
        return None if np.allclose(theirs, ours) and theirs.dtype == ours.dtype else f"{at}: other arrays"
    if isinstance(theirs, Image.Image):
        return None if theirs.size == ours.size and theirs.tobytes() == ours.tobytes() else f"{at}: other pixels"
    if isinstance(theirs, torch.nn.Module):
        return difference(dict(theirs.state_dict()), dict(ours.state_dict()), at)
    if dataclasses.is_dataclass(theirs):
        return difference(vars(theirs), vars(ours), at)
    if isinstance(theirs, dict):
        if list(theirs) != list(ours):
            return f"{at}: keys {list(theirs)}, not {list(ours)}"
        return next(filter(None, (difference(theirs[key], ours[key], f"{at}[{key!r}]") for key in theirs)), None)
    if isinstance(theirs, list | tuple):
        if type(theirs) is not type(ours) or len(theirs) != len(ours):
            return f"{at}: {str(theirs)[:200]}, not {str(ours)[:200]}"
        pairs = enumerate(zip(theirs, ours, strict=True))
        return next(filter(None, (difference(*pair, f"{at}[{number}]") for number, pair in pairs)), None)
    return None if theirs == ours else f"{at}: {str(theirs)[:300]}, not {str(ours)[:300]}"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A folder with a small tokenizer of transformers."""
    from tests.open_clip.test_hf_tokenizers import write_tokenizer

    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def hub(monkeypatch, peer):
    """The hub's client answers with paths and notes what is uploaded: both packages call it. Real uploads have their own test."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    uploads = {}

    def download(repo_id, filename, revision=None, cache_dir=None, **_):
        if filename.endswith("safetensors"):
            raise huggingface_hub.errors.LocalEntryNotFoundError("not here")
        return f"/{repo_id}/{revision}/{filename}"

    def absent(*_, **__):
        raise huggingface_hub.errors.EntryNotFoundError("no such file")

    def upload(*_, repo_id, folder_path, commit_message, revision=None, create_pr=False, **__):
        files = _calls.contents(Path(folder_path))
        uploads.update(repo=repo_id, message=commit_message, revision=revision, pr=create_pr, files=files)

    def create(*arguments, private=False, exist_ok=False, **_):
        uploads.update(private=private, exist_ok=exist_ok)
        return huggingface_hub.RepoUrl("https://huggingface.co/someone/x")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(peer.pretrained, "hf_hub_download", download)
    theirs = {
        # The first left this client's package, so that open_clip's own import of all of them fails.
        "repo_type_and_id_from_hf_id": lambda _: ("model", "someone", "x"), "hf_hub_url": lambda **_: "",
        "EntryNotFoundError": huggingface_hub.errors.EntryNotFoundError, "_has_hf_hub": True, "create_repo": create,
        "upload_folder": upload, "list_repo_files": absent, "get_hf_file_metadata": absent,
    }  # fmt: skip
    for name, function in theirs.items():
        monkeypatch.setitem(peer.push_to_hf_hub.__globals__, name, function)
    for name, function in {
        "create_repo": create,
        "upload_folder": upload,
        "file_exists": lambda *_, **__: False,
    }.items():
        monkeypatch.setattr(huggingface_hub.HfApi, name, function)
    return uploads


def outcome(package, module, name, world):
    """The result of the call, or the class of its error."""
    holder = importlib.import_module(f"{package.__name__}.{module}") if module else package
    call = getattr(holder, name)
    try:
        return _calls.CALLS[name](call, package, world)
    except Exception as error:  # compared by its class
        return error


def disagreement(theirs, ours):
    """What differs, shortly; an error of open_clip's must be one of its class here."""
    if isinstance(theirs, Exception) or isinstance(ours, Exception):
        return None if isinstance(ours, type(theirs)) else f"{theirs!r:.300}, not {ours!r:.300}"
    return difference(theirs, ours)


def own(theirs, ours):
    """Of theirs and nothing else, but for our own architectures; those of one model in their order."""
    ours = [
        name for name in ours if name not in ("emoji-64", "flickr-small", "ViT-Mini-8-64") and "tiny-test" not in name
    ]
    unknown = [item for item in ours if item not in theirs]
    return f"{unknown} are not open_clip's" if unknown else None


def nested(compare):
    return lambda theirs, ours: next(filter(None, map(compare, theirs, ours)), None)


DIFFERENT = {
    "list_models": ("CoCa, timm's towers and transformers' are not here; Diptych's own are", own),
    "list_pretrained": (
        "only weights of an architecture that is here, with a repository known, are listed",
        nested(own),
    ),
    "list_pretrained_tags_by_model": ("DataComp's and CommonPool's small pools are not in the catalog", nested(own)),
    "SigLipTokenizer": (
        "a release of transformers that cannot open the vocabulary: a traceback there, a line here",
        lambda theirs, ours: None if isinstance(ours, ConfigError) and isinstance(theirs, Exception) else repr(ours),
    ),
    "convert_mobile_clip_state_dict": (
        "refused: the towers are timm's",
        lambda theirs, ours: None if isinstance(ours, ConfigError) and isinstance(theirs, Exception) else repr(ours),
    ),
    "MaxPooler": (
        "open_clip's hides the tokens and leaves the padding, by a slip: with no token visible it gives all their maximum",
        lambda theirs, ours: None if torch.isfinite(theirs).all() and torch.isinf(ours).all() else "other values",
    ),
}


def test_the_table_calls_every_callable_name():
    assert {name for _, name in PRESENT} == {*_calls.CALLS, *_calls_processes.CALLS}
    assert set(DIFFERENT) <= set(_calls.CALLS)


def spelled(value):
    """Templates, which are functions, as texts."""
    return [item("cat") if callable(item) else item for item in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("module", [name for name in TABLE if name])
def test_values_are_open_clips(peer, module):
    theirs, ours = (importlib.import_module(f"{package}.{module}") for package in ("open_clip", "diptych.open_clip"))
    names = [name for name, entry in TABLE[module].items() if entry["kind"] == "value"]
    problems = [difference(spelled(getattr(theirs, name)), spelled(getattr(ours, name)), name) for name in names]
    assert not any(problems), problems


@pytest.mark.filterwarnings("ignore")
def test_in_processes_calls_give_what_open_clips_give(peer):
    ranks = run_in_processes(_calls_processes.SIZE, _calls_processes.both)
    for theirs, ours in ranks:
        assert difference(theirs, ours) is None
        assert set(theirs) == set(_calls_processes.CALLS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("module", "name"), HERE, ids=[f"{module}.{name}" for module, name in HERE])
def test_a_call_gives_what_open_clips_gives(peer, tmp_path, tokenizer, hub, module, name):
    from diptych import open_clip

    results = []
    for package in (peer, open_clip):
        world = _calls.world_in(tmp_path / package.__name__.replace(".", "-"), package, tokenizer, hub)
        results.append(outcome(package, module, name, world))
    problem = DIFFERENT[name][1](*results) if name in DIFFERENT else disagreement(*results)
    assert problem is None, problem
