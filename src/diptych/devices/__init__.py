"""Accelerators: one per file, chosen by name; the rest of the house names none of them.

``get_device("auto")`` takes the first accelerator that answers, else the CPU. A new accelerator is one file here, or a
class of somebody else's given as ``module:Class``: it subclasses ``Device``. See ``_base.py`` for the contract.
"""

from __future__ import annotations

import torch

from diptych import log
from diptych.devices._base import PRECISIONS, Abilities, Device
from diptych.errors import DeviceError
from diptych.registry import Registry, did_you_mean

__all__ = ["DEVICES", "PRECISIONS", "Abilities", "Device", "get_device", "list_devices"]

DEVICES: Registry[type[Device]] = Registry(__name__, "device")
FALLBACK = "cpu"


def list_devices() -> list[str]:
    """The names that ``get_device`` knows, whether or not this machine has them."""
    return DEVICES.names()


def get_device(name: str | torch.device = "auto", index: int | None = None) -> Device:
    """Return the accelerator called ``name``, ready to use.

    ``name``: "auto", a known name, ``module:Class``, or any of these with an index behind, "NAME:1". ``index`` says
    which one where the name does not; the CPU ignores it. Raises DeviceError for a name that is unknown, a plug-in
    that is missing, an accelerator that is absent, an index too high; ConfigError for a ``module:Class`` that is not there.
    """
    given, in_name = _split(str(name))
    entry = _first_available() if given == "auto" else _entry(given)
    if entry.indexed:
        return entry(index if in_name is None else in_name)
    if in_name:
        raise DeviceError(f"--device {name}: there is only one {given}; write --device {given}.")
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
            # Someone installed this plug-in to use it: a silent run on the CPU would be a bad surprise.
            log.warn(reason)
    return DEVICES.get(FALLBACK)
