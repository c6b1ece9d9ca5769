"""What may change between the sittings of a run, and what may not: refused in one line, or said in one line.

The table is in docs/runs.md. Architecture, objective and frozen companions are compared where the folder is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diptych import log
from diptych.errors import ConfigError

# What decides which record comes when: a changed value would show some records twice in an epoch, and others never.
ORDER_OPTIONS = ("seed", "dataset_resampled", "train_data_upsampling_factors")
# What cannot change a result, or belongs to a sitting and not to the run.
FREE_BRANCHES = ("output", "evaluate")
FREE_OPTIONS = (
    "workers", "device", "dist_backend", "dist_timeout", "matmul", "text_layout", "text_buckets", "bad_samples_max",
)  # fmt: skip


def check_resumed(path: Path, state: Mapping[str, Any], config: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Compare a checkpoint with the run that continues it; ``config`` as plain values, ``data`` as ``data_identity`` gives it.

    Raises ConfigError for what may not change; says in one line what does.
    """
    saved, now = _flat(state["config"]), _flat(config)
    for option in ORDER_OPTIONS:
        _refuse(path, option, saved, now)
    if now["data.dataset_resampled"]:
        _refuse(path, "train_num_samples", saved, now)
    if "all" in (saved.get("data.captions"), now["data.captions"]):
        _refuse(path, "captions", saved, now)
    _check_optimizer(path, str(saved.get("optimizer.optimizer", "adamw")), str(now["optimizer.optimizer"]))
    _check_data(path, state.get("data"), data)
    _check_length(path, state.get("data"), data, now)
    changed = [
        _change(key, saved[key], now[key]) for key in now if key in saved and _counts(key) and saved[key] != now[key]
    ]
    was = (state.get("data") or {}).get("processes", data["processes"])
    if was != data["processes"]:
        changed.append(f"processes {was} -> {data['processes']}")
    log.info(f"resuming {path} at step {state['step']}" + (f", with changes: {'; '.join(changed)}" if changed else ""))


def _check_data(path: Path, saved: Mapping[str, Any] | None, now: Mapping[str, Any]) -> None:
    if saved is None:
        log.warn(f"{path}: does not say on which data it was trained; that it is the same cannot be checked.")
        return
    if saved["order"] != now["order"]:
        raise ConfigError(
            f"--resume {path}: its data was ordered by edition {saved['order']} of the order, this version has {now['order']}; "
            f"resume with the version that began it, or {_new_run(path)}."
        )
    if saved["records"] != now["records"]:
        what = f"{saved['records']:,} records then, {now['records']:,} now"
    elif saved["digest"] != now["digest"]:
        what = f"{now['records']:,} records as before, but others, or in another order"
    else:
        return
    raise ConfigError(
        f"--resume {path}: the training data is not that of the run ({what}); give it back, or {_new_run(path)}."
    )


def _check_optimizer(path: Path, saved: str, now: str) -> None:
    if saved != now:
        raise ConfigError(
            f"--resume {path}: it was trained with --optimizer {saved}, whose state {now} cannot use; "
            f"leave it as it was, or {_new_run(path)}."
        )


def _check_length(
    path: Path, saved: Mapping[str, Any] | None, data: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
    """Steps of another size make another length of a run that counts epochs: its schedule and its end would be wrong."""
    was = (saved or data)["step_size"]
    if was != data["step_size"] and not config["schedule.max_steps"]:
        raise ConfigError(
            f"--resume {path}: a step of {was} pairs would have {data['step_size']}, so --epochs would be of another length: "
            "keep the product of --batch-size, --accum-freq and processes, or give the run's length by --max-steps."
        )


def _refuse(path: Path, option: str, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    key = f"data.{option}"
    if key in saved and saved[key] != now[key]:
        raise ConfigError(
            f"--resume {path}: {_change(key, saved[key], now[key])} would change the order of the data in the middle of the run; "
            f"leave it as it was, or {_new_run(path)}."
        )


def _new_run(path: Path) -> str:
    return f"start a new run with --pretrained {path}"


def _counts(key: str) -> bool:
    return key.partition(".")[0] not in FREE_BRANCHES and key.rpartition(".")[2] not in FREE_OPTIONS


def _change(key: str, before: Any, after: Any) -> str:
    def shown(value: Any) -> str:
        return str(value) if value not in ("", None) else "(none)"

    return f"--{key.rpartition('.')[2].replace('_', '-')} {shown(before)} -> {shown(after)}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted keys; tuples as lists, as a file holds them."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
