"""Accelerators: one per file, chosen by name; no other package names any of them.

``get_device("auto")`` takes the first accelerator that is available, else the CPU. A new accelerator is one file of this folder,
or a third party's class given as ``module:Class``: it subclasses ``Device``. See ``_base.py`` for the contract.
"""

from __future__ import annotations

import torch

from diptych import log
from diptych.devices._abilities import PRECISIONS, PURE, Abilities
from diptych.devices._base import Device
from diptych.devices._matmul import Matmul
from diptych.errors import DeviceError
from diptych.registry import Registry, did_you_mean

__all__ = ["DEVICES", "PRECISIONS", "PURE", "Abilities", "Device", "Matmul", "get_device", "list_devices"]

DEVICES: Registry[type[Device]] = Registry(__name__, "device")
FALLBACK = "cpu"


def list_devices() -> list[str]:
    """The names that ``get_device`` knows, whether or not this machine has them."""
    return DEVICES.names()


def get_device(name: str | torch.device = "auto", index: int | None = None) -> Device:
    """Return the accelerator called ``name``, ready to use.

    ``name``: "auto", a known name, ``module:Class``, or any of these followed by an index, "NAME:1". ``index`` is the
    default where the name has none; the CPU ignores it. Raises DeviceError for an unknown name, a missing plug-in, an absent
    accelerator, an index too high; ConfigError for a ``module:Class`` that does not exist.
    """
    stem, own_index = _split(str(name))
    entry = _first_available() if stem == "auto" else _entry(stem)
    if entry.indexed:
        return entry(index if own_index is None else own_index)
    if own_index:
        raise DeviceError(f"--device {name}: there is only one {stem}; write --device {stem}.")
    return entry()


def _split(name: str) -> tuple[str, int | None]:
    stem, colon, last = name.rpartition(":")
    if colon and last.isdigit():
        return stem, int(last)
    if stem in list_devices():
        raise DeviceError(f"--device {name}: expected a number after the colon, as in {stem}:0.")
    return name, None


def _entry(name: str) -> type[Device]:
    if ":" not in name and name not in list_devices():
        raise DeviceError(did_you_mean(name, ["auto", *list_devices()], "device"))
    entry = DEVICES.get(name)
    if not (isinstance(entry, type) and issubclass(entry, Device)):
        raise DeviceError(f"--device {name}: expected a subclass of diptych.devices.Device, got {entry!r}.")
    return entry


def _first_available() -> type[Device]:
    for name in list_devices():
        if name == FALLBACK:
            continue
        entry = DEVICES.get(name)
        if not entry.installed():
            continue
        reason = entry.why_absent()
        if reason is None:
            return entry
        if entry.plugin:
            # The plug-in was installed to be used: a silent run on the CPU would be a bad surprise.
            log.warn(reason)
    return DEVICES.get(FALLBACK)
