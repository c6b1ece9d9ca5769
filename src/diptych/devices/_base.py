"""The contract of an accelerator: everything the other packages may ask of it, through PyTorch's device-neutral functions.

``torch.get_device_module(name)``, ``torch.amp`` and ``torch.accelerator`` work for every accelerator that follows PyTorch's
conventions, built in or from a vendor's plug-in. An entry of this folder subclasses ``Device`` and overrides only what is
special to it. This is not a list of device speeds, and it moves no tensors: that is ``tensor.to(device)``.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from diptych import log
from diptych.devices import _queued
from diptych.devices._abilities import PRECISIONS, PURE, Abilities
from diptych.devices._matmul import MATMUL_OPTIONS, Matmul
from diptych.errors import ConfigError, DeviceError
from diptych.registry import did_you_mean
from diptych.types import TextForm


class Device:
    """One accelerator of this machine, made by ``get_device``.

    A subclass sets ``name`` (PyTorch's device type), and where they differ from the values below ``backend`` (the
    collective library), ``plugin`` (the module whose import brings the device), ``package`` (what pip installs),
    ``fused_adamw`` and ``deterministic``; it overrides a method where the device departs from PyTorch's conventions.
    """

    name: ClassVar[str]
    backend: ClassVar[str] = "gloo"
    plugin: ClassVar[str] = ""
    package: ClassVar[str] = ""
    fused_adamw: ClassVar[bool] = False
    deterministic: ClassVar[bool] = False
    """Whether the device has deterministic algorithms for everything that training does: a claim, checked by selftest."""
    asynchronous: ClassVar[bool] = True
    """Whether work is queued, so that reading a value waits for all work before it; False where a read costs nothing."""
    indexed: ClassVar[bool] = True
    """False where a machine always has exactly one, such as the CPU."""

    torch_device: torch.device

    def __init__(self, index: int | None = None) -> None:
        """Device number ``index``; without it the process's current one.

        Raises DeviceError, in one line, when the accelerator is absent or has no such index.
        """
        reason = self.why_absent()
        if reason:
            raise DeviceError(reason)
        self.select(self._current() if index is None else index)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.torch_device})"

    # --- presence -----------------------------------------------------------------------------------------------------

    @classmethod
    def installed(cls) -> bool:
        """Whether the plug-in is installed; does not import it."""
        return not cls.plugin or importlib.util.find_spec(cls.plugin) is not None

    @classmethod
    def load_plugin(cls) -> None:
        """Import the plug-in. Raises DeviceError, naming the package, when it is missing or does not load."""
        if not cls.plugin:
            return
        package = cls.package or cls.plugin
        if not cls.installed():
            raise DeviceError(
                f"--device {cls.name} needs the package {package}, which is not installed here; "
                f"install the build of {package} that matches torch {torch.__version__}, or choose another --device."
            )
        try:
            importlib.import_module(cls.plugin)
        except (ImportError, OSError, RuntimeError) as error:
            raise DeviceError(
                f"--device {cls.name}: the package {package} is installed but does not load ({error}); "
                "check the vendor's driver and that its environment script was sourced."
            ) from error

    @classmethod
    def count(cls) -> int:
        """How many this process may use; 0 without the hardware. The plug-in must be loaded."""
        module = getattr(torch, cls.name, None)
        if module is None or not module.is_available():
            return 0
        return int(module.device_count())

    @classmethod
    def why_absent(cls) -> str | None:
        """Why the accelerator cannot be used, on one line with advice; None when it can."""
        try:
            cls.load_plugin()
        except DeviceError as error:
            return error.line
        if cls.count() > 0:
            return None
        return (
            f"--device {cls.name}: torch {torch.__version__} sees no {cls.name} accelerator on this machine; "
            "check the driver and the build of torch, or choose --device cpu."
        )

    def select(self, index: int) -> None:
        """Make number ``index`` this object's device, and the process's current one. Raises DeviceError."""
        count = self.count()
        if not 0 <= index < count:
            raise DeviceError(
                f"--device {self.name}:{index}: this process sees {count} of them; "
                f"choose {self.name}:0" + (f" to {self.name}:{count - 1}." if count > 1 else ".")
            )
        self.torch_device = torch.device(self.name, index)
        if hasattr(self.module, "set_device"):
            self.module.set_device(index)

    def _current(self) -> int:
        # A program that calls the library may have chosen before us. torch.cpu returns a string, mps has no such function.
        number = getattr(self.module, "current_device", lambda: 0)()
        return number if isinstance(number, int) else 0

    @property
    def module(self) -> ModuleType:
        """PyTorch's module of this device type, such as ``torch.cpu``."""
        return torch.get_device_module(self.name)

    # --- arithmetic ---------------------------------------------------------------------------------------------------

    @functools.cached_property
    def abilities(self) -> Abilities:
        """What this accelerator can do."""
        return Abilities(
            bfloat16=self.computes_in(torch.bfloat16),
            float16=self.computes_in(torch.float16),
            fused_adamw=self.fused_adamw,
            pin_memory=self.pins_memory(),
            varlen_attention=self.has_varlen_attention(),
            deterministic=self.deterministic,
        )

    def computes_in(self, dtype: torch.dtype) -> bool:
        """Whether autocast to ``dtype`` works: asked of the device module, by the convention for plug-ins."""
        supported = getattr(self.module, "get_amp_supported_dtype", None)
        if supported is not None:
            return dtype in supported()
        if dtype is torch.bfloat16:
            return bool(getattr(self.module, "is_bf16_supported", lambda: False)())
        return dtype is torch.float16

    def pins_memory(self) -> bool:
        """Whether host memory can be page-locked for this device: tried once."""
        try:
            return torch.empty(1).pin_memory().is_pinned()
        except (RuntimeError, NotImplementedError):
            return False

    def has_varlen_attention(self) -> bool:
        """Whether ``torch.nn.attention.varlen`` runs here."""
        return False

    def text_layout(self, precision: str, asked: TextForm | Literal["auto"] = "auto") -> TextForm:
        """The form of texts in a precision: one kernel for unequal lengths where the device has it, else a few padded lengths.

        Raises DeviceError where the form that is asked for cannot be computed here.
        """
        able = self.abilities.varlen_attention and precision != "fp32"
        if asked == "varlen" and not able:
            lacking = "computes in half precision only" if self.abilities.varlen_attention else "is not there"
            raise DeviceError(
                f"--text-layout varlen: on {self.torch_device} the kernel for sequences of unequal length {lacking}; choose "
                f"{'--precision bf16 or ' if self.abilities.varlen_attention else ''}--text-layout buckets."
            )
        if asked != "auto":
            return asked
        return "varlen" if able else "buckets"

    def copy_stream(self) -> torch.Stream | None:
        """A new stream for copies to the device beside its work; None where that is not possible, or nothing would be gained."""
        return _queued.copy_stream(self.torch_device) if self.asynchronous and self.abilities.pin_memory else None

    @functools.cached_property
    def counts_steps(self) -> bool:
        """Whether AdamW can keep its count of steps on the device, in a form without a kernel of its own: tried once."""
        return self.asynchronous and _queued.counts_steps(self.torch_device)

    def default_precision(self) -> str:
        """The precision that ``--precision auto`` means: bf16, else fp16, else fp32."""
        return "bf16" if self.abilities.bfloat16 else "fp16" if self.abilities.float16 else "fp32"

    def autocast(self, precision: str) -> contextlib.AbstractContextManager[object]:
        """Context in which towers compute in ``precision`` ("fp32" changes nothing). Raises DeviceError, ConfigError.

        "pure_bf16" is as "bf16", for the heads of objectives: towers whose weights are stored so compute without autocast.
        """
        arithmetic = PURE.get(precision, precision)
        if arithmetic not in PRECISIONS:
            raise ConfigError(did_you_mean(precision, (*PRECISIONS, *PURE), "precision"))
        if arithmetic == "fp32":
            return contextlib.nullcontext()
        if not getattr(self.abilities, {"bf16": "bfloat16", "fp16": "float16"}[arithmetic]):
            raise DeviceError(
                f"--precision {precision}: {self.torch_device} does not compute in it; "
                f"choose --precision {self.default_precision()}."
            )
        return torch.amp.autocast(self.name, dtype=PRECISIONS[arithmetic])

    def scaler(self, precision: str) -> torch.amp.GradScaler:
        """A gradient scaler, which does something for fp16 only: its range is too narrow for small gradients."""
        return torch.amp.GradScaler(self.name, enabled=precision == "fp16")

    # --- state --------------------------------------------------------------------------------------------------------

    def synchronize(self) -> None:
        """Wait until all work given to the accelerator is done."""
        own: Callable[[], None] | None = getattr(self.module, "synchronize", None)
        (own or torch.accelerator.synchronize)()

    def memory(self) -> dict[str, int]:
        """Bytes: ``allocated`` to tensors, its ``peak``, ``reserved`` by the allocator, ``free`` and ``total`` of the device.

        A figure that the device does not report is left out.
        """
        names = {"allocated": "memory_allocated", "peak": "max_memory_allocated", "reserved": "memory_reserved"}
        figures = {key: self._figure(name) for key, name in names.items()}
        free_total = self._figure("mem_get_info") or self._figure("get_memory_info")
        if free_total is not None:
            figures["free"], figures["total"] = free_total
        return {key: int(value) for key, value in figures.items() if value is not None}

    def reset_peak_memory(self) -> None:
        """Restart the count of ``peak``, where the device can."""
        self._figure("reset_peak_memory_stats")

    def _figure(self, function: str) -> Any:
        # The device's own module first; the neutral functions came with torch 2.9, and plug-ins may leave them out.
        for module in (self.module, torch.accelerator):
            own = getattr(module, function, None)
            if own is not None:
                try:
                    return own(self.torch_device.index)
                except (RuntimeError, NotImplementedError):
                    continue
        return None

    def prepare_process(self, matmul: str = "auto") -> Matmul:
        """Set this process up for long work on the device; call it once, before the model is built.

        ``matmul`` ("auto", "exact", "fast", or a recorded "default") chooses how fp32 products are computed, where the device
        offers a choice; it is returned, for the run's config and checkpoints. Others compute as PyTorch is set: "default".
        Raises ConfigError for an unknown option, and for "fast" where it would lose accuracy.
        """
        if matmul not in MATMUL_OPTIONS:
            raise ConfigError(did_you_mean(matmul, MATMUL_OPTIONS[:3], "matmul"))
        if matmul in ("exact", "fast"):
            log.info(
                f"--matmul {matmul} chooses between fp32 products of the CPU or of cuda; on {self.name} it changes nothing."
            )
        return "default"

    def set_deterministic(self) -> None:
        """Make equal runs equal bit for bit, for the rest of this process; call it before the device has computed anything.

        An operator without a deterministic algorithm then raises RuntimeError when it runs. Raises ConfigError where the
        device has no such mode.
        """
        if not self.deterministic:
            raise ConfigError(
                f"--deterministic: equal runs on {self.name} are not known to be equal, with any setting; "
                "leave the flag out, or choose --device cpu."
            )
        torch.use_deterministic_algorithms(True)
        # Filling new tensors finds reads of uninitialized memory, costs time, and changes no result of a correct program.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

    def seed(self, number: int) -> None:
        """Seed the accelerator's random numbers; ``torch.manual_seed`` seeds the CPU's."""
        seed = getattr(self.module, "manual_seed_all", None) or getattr(self.module, "manual_seed", None)
        (seed or torch.manual_seed)(number)

    def random_state(self) -> Tensor:
        """The state of the accelerator's random numbers, a uint8 tensor on the CPU."""
        return self.module.get_rng_state(self.torch_device).cpu()

    def set_random_state(self, state: Tensor) -> None:
        """Restore what ``random_state`` returned."""
        self.module.set_rng_state(state, self.torch_device)
