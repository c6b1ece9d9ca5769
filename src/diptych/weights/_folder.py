"""Which file of a folder is its weights: a model's folder, a run, its checkpoints (files, folders), a trainer's ``checkpoint-N``.

What was chosen among several is said in one line; what cannot be chosen is an error that lists the choices. Files are not opened
here, but for the small ones that say what a folder is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from diptych.errors import WeightsError
from diptych.tensorfiles.checkpoint_folder import is_checkpoint_folder
from diptych.tensorfiles.manifest import MANIFEST
from diptych.weights._adapter import adapter_of
from diptych.weights._beside import remarks_on
from diptych.weights._config_table import read_json_list
from diptych.weights._refused import ADAPTER_CONFIG, SHARD

# The first of these names that a folder holds is opened.
SEARCH = (
    "model.safetensors", "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors.index.json",
    "open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth", "pytorch_model.bin", "pytorch_model.bin.index.json",
    "model_state.pdparams", "ckpt.pth.tar",
)  # fmt: skip
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".pdparams", ".ckpt")
NO_MODEL = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state|random_states|trainer_state|adapter)")
OTHER_FRAMEWORKS = ("tf_model.h5", "flax_model.msgpack", "*.onnx", "*.npz", "*.gguf", "*.mlpackage")
NUMBERED = (("step_*.pt", f"step_*/{MANIFEST}"), ("epoch_*.pt",))  # a run's, open_clip's
SENTENCE_MODULES = "modules.json"
HARMLESS_MODULES = ("Normalize",)
FIRST_MODULE = "0_CLIPModel"


class FolderChoice(NamedTuple):
    """The weight file, and lines to say on how it was chosen and on what lies beside it."""

    path: Path
    remarks: tuple[str, ...] = ()


def weight_file(path: Path) -> FolderChoice:
    """The weight file that a path means: itself, or a folder's. Raises WeightsError when there is none."""
    if path.is_file():
        return FolderChoice(path)
    if not path.is_dir():
        raise WeightsError(
            f"{path}: no such weight file; give a file, a folder that holds one, or a name of the catalog."
        )
    return weights_of_folder(path)


def weights_of_folder(folder: Path) -> FolderChoice:
    """The weight file of a folder. Raises WeightsError when there is none, or several of which none is the usual one."""
    if is_checkpoint_folder(folder):
        return FolderChoice(folder / MANIFEST)
    inner = _sentence_transformers(folder)
    if inner is not None:
        return weights_of_folder(inner)
    known = [folder / name for name in SEARCH if (folder / name).is_file()]
    if known:
        rest = [path.name for path in known[1:] if not path.name.startswith(known[0].name)]
        also = [f"{folder}: {known[0].name} is taken; {', '.join(rest)} beside it is not read."] if rest else []
        return FolderChoice(known[0], (*also, *remarks_on(folder)))
    newest = _newest_checkpoint(folder)
    if newest is not None:
        return newest
    if (folder / ADAPTER_CONFIG).is_file():
        return FolderChoice(adapter_of(folder))
    candidates = [
        file
        for file in sorted(folder.iterdir())
        if file.suffix in SUFFIXES and file.is_file() and not NO_MODEL.search(file.name)
    ]
    if len(candidates) == 1:
        return FolderChoice(candidates[0], remarks_on(folder))
    raise WeightsError(_why_none(folder, candidates))


def _newest_checkpoint(folder: Path) -> FolderChoice | None:
    """The last of a run's checkpoints, here or in ``checkpoints``; or of a trainer's folders ``checkpoint-N``."""
    for parent in (folder, folder / "checkpoints"):
        for patterns in NUMBERED:
            files = [file for pattern in patterns for file in parent.glob(pattern)]
            paths = _by_number([file.parent if file.name == MANIFEST else file for file in files])
            if paths:
                taken = paths[-1] / MANIFEST if paths[-1].is_dir() else paths[-1]
                return FolderChoice(taken, (_taken(folder, paths[-1], len(paths)),))
    folders = _by_number([path for path in folder.glob("checkpoint-*") if path.is_dir()])
    if not folders:
        return None
    inner = weights_of_folder(folders[-1])
    return FolderChoice(inner.path, (_taken(folder, inner.path, len(folders)), *inner.remarks))


def _taken(folder: Path, path: Path, count: int) -> str:
    which = f"the last of {count} checkpoints" if count > 1 else "a checkpoint of training"
    return f"{folder}: {path.relative_to(folder)} is taken, {which}."


def _by_number(paths: Sequence[Path]) -> list[Path]:
    """Paths whose names hold a number, ascending."""
    numbers = {path: re.search(r"(\d+)", path.name) for path in paths}
    return sorted((path for path in paths if numbers[path]), key=lambda path: int(numbers[path].group(1)))  # type: ignore[union-attr]


def _sentence_transformers(folder: Path) -> Path | None:
    """The folder of the CLIP in a folder of sentence-transformers. Raises WeightsError for modules that change its features."""
    path = folder / SENTENCE_MODULES
    if not path.is_file():
        return folder / FIRST_MODULE if (folder / FIRST_MODULE).is_dir() else None
    values = read_json_list(path)
    modules = [module for module in values if isinstance(module, dict)]
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    extra = [kind for kind in kinds[1:] if kind not in HARMLESS_MODULES]
    if extra or not modules:
        raise WeightsError(
            f"{path}: after its first module this model runs {', '.join(extra) or 'nothing'}, which Diptych does not; "
            "it reads a CLIP alone (CLIPModel)."
        )
    inner = folder / str(modules[0].get("path", ""))
    return None if inner.resolve() == folder.resolve() else inner


def _why_none(folder: Path, candidates: Sequence[Path]) -> str:
    shards = [path.name for path in candidates if SHARD.search(path.name)]
    if shards:
        return f"{folder}: shards of weights ({shards[0]} ...) without their index (*.index.json); download it too."
    if candidates:
        names = ", ".join(str(path) for path in candidates[:10])
        return f"{folder}: {len(candidates)} weight files, of which none has a usual name; give one: {names}."
    others = [path.name for pattern in OTHER_FRAMEWORKS for path in sorted(folder.glob(pattern))]
    if others:
        return f"{folder}: weights of another framework only ({', '.join(others[:4])}); give those for PyTorch."
    inner = sorted(path.parent for name in SEARCH for path in folder.glob(f"*/{name}"))
    if inner:
        return f"{folder}: no weight file; there is one in {', '.join(str(path) for path in inner[:10])}: give that folder."
    files = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
    return f"{folder}: no {SEARCH[0]} in this folder, nor any other weight file that Diptych knows; it holds {files}."
