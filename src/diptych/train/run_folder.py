"""A run's folder: what is in it, how a run starts in it, and how one is continued.

    DIR/config.toml         the resolved options          DIR/checkpoints/step_00001200.pt, or a folder step_00001200
    DIR/metrics.jsonl       one row per logged step       DIR/model.safetensors    the final weights
    DIR/results.json        the last evaluation           DIR/report.html          to look at

A run that stands in the folder is never written over: it is continued with --resume, or another folder is chosen.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych import config as options
from diptych import log, weights
from diptych.distributed import checkpoint, process_group
from diptych.errors import ConfigError
from diptych.files import write_text
from diptych.models import model_config_from_dict
from diptych.tensorfiles.checkpoint_folder import is_checkpoint_folder
from diptych.tensorfiles.manifest import MANIFEST
from diptych.train.config import NEWEST, OutputOptions, TrainConfig, build
from diptych.train.resume import check_resumed

PARTS = ("step", "position", "weights", "step_state", "random_state", "companions", "architecture", "config")


@dataclass(frozen=True)
class Run:
    """The folder of one run, and the checkpoint that it continues from (None for a new one)."""

    folder: Path
    state: dict[str, Any] | None

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.folder / "checkpoints"

    @property
    def first_step(self) -> int:
        """Steps already taken."""
        return int(self.state["step"]) if self.state else 0


def folder_of(config: TrainConfig) -> Path:
    """Where the run lives: --output, or a name under --logs."""
    out = config.output
    if out.output:
        return Path(out.output)
    if out.resume and out.resume not in NEWEST:
        return Path(out.resume).parent.parent
    stamp = datetime.datetime.now().strftime("%Y_%m_%d-%H_%M_%S")
    model = config.model.model or Path(config.model.pretrained).stem or weights.DEFAULT_MODEL
    return Path(out.logs) / (out.name or f"{stamp}-{re.sub(r'[^A-Za-z0-9._-]+', '-', model)}")


@dataclass(frozen=True)
class Identity:
    """What a checkpoint says about its run beside weights: a resumed run is compared with it.

    ``model`` is the architecture as plain values, ``companions`` hashes by name, ``data`` the fingerprint of the training data,
    with the edition of its order and the number of processes.
    """

    model: dict[str, Any]
    companions: Mapping[str, str]
    data: Mapping[str, Any]


def open_run(config: TrainConfig, identity: Identity) -> Run:
    """Make or continue the run's folder.

    Raises ConfigError when the folder holds another run, and when what may not change in a resumed run differs, WeightsError
    when its checkpoints are damaged.
    """
    folder = Path(process_group.broadcast_object(str(folder_of(config))))
    resumed = _to_resume(config.output, folder) if config.output.resume else None
    state = None
    if resumed is not None:
        path, state = resumed
        # Read as configs, so that what a later version added takes its default.
        _same(path, "model", model_config_from_dict(state["architecture"], str(path)).to_dict(), identity.model)
        saved = build(state["config"], str(path)).objective
        _same(path, "objective", options.to_dict(saved), options.to_dict(config.objective))
        _same(path, "frozen companion", state.get("companions", {}), dict(identity.companions))
        check_resumed(path, state, options.to_dict(config), identity.data)
        if process_group.world_from_environment().main:
            for aside in checkpoint.set_aside(folder / "checkpoints", int(state["step"])):
                log.warn(f"a checkpoint of a later step is set aside: {aside}")
    elif process_group.broadcast_object(_holds_a_run(folder)):
        raise ConfigError(
            f"{folder} already holds a run; continue it with --resume latest, or choose another --output."
        )
    if process_group.world_from_environment().main:
        write_text(folder / "config.toml", options.to_toml(_saved(config, folder)), "config")
    return Run(folder, state)


def _to_resume(output: OutputOptions, folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint that ``--resume`` means and its state; None where ``latest`` finds a folder without any: a new run."""
    if output.resume not in NEWEST:
        path = Path(output.resume)
        if not path.is_file() and not path.is_dir():
            raise ConfigError(f"--resume {path}: no such checkpoint file or folder; give the path of one, or latest.")
        if path.is_dir() and not is_checkpoint_folder(path):
            raise ConfigError(
                f"--resume {path}: this folder is no checkpoint (it has no {MANIFEST}); give one of a run's folder checkpoints, "
                "or --output with --resume latest."
            )
        return path, checkpoint.load(path, PARTS)
    if not (output.output or output.name):
        raise ConfigError(f"--resume {output.resume}: in which folder? Give --output, or --name.")
    resumed = checkpoint.newest(folder / "checkpoints", PARTS)
    if resumed is None:
        if (folder / "model.safetensors").exists():
            raise ConfigError(
                f"--resume {output.resume}: {folder} holds weights but no checkpoint; start a new run with --pretrained."
            )
        log.info(f"--resume {output.resume}: no checkpoint in {folder / 'checkpoints'} yet; starting a new run")
    return resumed


def _holds_a_run(folder: Path) -> bool:
    return bool(checkpoint.steps(folder / "checkpoints")) or (folder / "model.safetensors").exists()


def _same(path: Path, what: str, saved: dict[str, Any], asked: dict[str, Any]) -> None:
    changed = sorted(key for key in {*saved, *asked} if _plain(saved.get(key)) != _plain(asked.get(key)))
    if changed:
        key = changed[0]
        raise ConfigError(
            f"--resume {path}: the {what} changed ({key}: {saved.get(key)!r} in the checkpoint, {asked.get(key)!r} now); "
            "resume with the same one, or start a new run with --pretrained."
        )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    return list(value) if isinstance(value, tuple) else value


def _saved(config: TrainConfig, folder: Path) -> dict[str, Any]:
    """The config as saved: without what belongs to one sitting only."""
    values = options.to_dict(config)
    fresh = OutputOptions()
    values["output"] |= {"output": str(folder), "resume": fresh.resume, "stop_after": fresh.stop_after}
    return values
