"""Every exception that Diptych raises on purpose.

    DiptychError                  exit code 2: what was given is wrong, and the message says how to fix it
    ├── ConfigError               a flag, a recipe key, a name, a combination of options
    ├── DataError                 what was read
    │   ├── RecordError           one record: an unreadable image, an empty caption
    │   └── SourceError           a whole file or folder: missing, empty, without the named column
    ├── WeightsError              a weight file: its format, its shapes, its safety
    ├── DeviceError               an accelerator or its plug-in
    ├── DistributedError          ranks that do not agree, an impossible split
    │   └── PeerLostError         exit code 1: another process has ended, and this one cannot go on
    ├── OutputError               what was to be written: a full disk, a folder that may not be written
    ├── ServeError                a request that cannot be answered
    └── NonFiniteError            exit code 1: training came to numbers that are not finite

A message is one line: what was given, what was expected, what to do. The command line prints it without a traceback
(``--debug`` shows one). Failures of the work itself are ordinary exceptions, and end with exit code 1.
"""

from __future__ import annotations


class DiptychError(Exception):
    """The root: catch this to catch everything that a user can fix."""

    exit_code = 2
    on_every_rank = False
    """Whether all processes raise it together, so that one prints it."""

    @property
    def line(self) -> str:
        """The message on one line."""
        return " ".join(str(self).split())


class ConfigError(DiptychError):
    """A flag, a recipe key, a name or a combination of options is wrong."""


class DataError(DiptychError):
    """Data that was read is wrong."""


class RecordError(DataError):
    """One record cannot be used; ``key`` names it and ``reason`` says why in a few words."""

    def __init__(self, key: str, reason: str, advice: str = "") -> None:
        self.key, self.reason, self.advice = key, reason, advice
        super().__init__(f"{key}: {reason}" + (f"; {advice}" if advice else ""))

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        """Survive the trip from a loader's worker process."""
        return (type(self), (self.key, self.reason, self.advice))


class SourceError(DataError):
    """A whole file or folder cannot be used."""


class WeightsError(DiptychError):
    """A weight file is not what it should be, or is not safe."""


class DeviceError(DiptychError):
    """An accelerator, or the plug-in that brings it, is missing or unable."""


class DistributedError(DiptychError):
    """Processes disagree, or cannot be arranged as asked."""


class PeerLostError(DistributedError):
    """Another process of the group has ended; what it said is the cause, so this is printed only where nobody said anything."""

    exit_code = 1


class OutputError(DiptychError):
    """Something could not be written; the previous file is whole."""


class ServeError(DiptychError):
    """A request cannot be answered."""


class NonFiniteError(DiptychError):
    """Training came to a loss, gradient or weight that is not finite; the message says what was kept and what to try."""

    exit_code = 1
    on_every_rank = True
