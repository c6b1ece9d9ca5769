"""How processes agree on what only some of them know, such as a signal, without waiting for a device.

Flags are sent over a group of the host's own (gloo) before a step, travel while it is computed, and take effect after it, on
every process after the same step. A flag that is raised during a step counts after the next one. A process on its own agrees with
itself at once. Not for what every process knows by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from diptych.distributed.process_group import TIMEOUT, Group, size


class Agreement:
    """Flags that count everywhere when they are raised anywhere. A collective to make, and its two methods in turn.

    ``timeout``: seconds that a process waits for the flags of the others.
    """

    def __init__(self, timeout: float = TIMEOUT) -> None:
        self._group: Group = None
        if size() > 1:
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        self._sent: tuple[Tensor, dist.Work | None] | None = None

    def send(self, flags: Sequence[bool]) -> None:
        """Send the flags as they are now, as many on every process; returns at once."""
        if size() > 1:
            raised = torch.tensor([int(flag) for flag in flags])
            self._sent = raised, dist.all_reduce(raised, op=dist.ReduceOp.MAX, group=self._group, async_op=True)

    def agreed(self, flags: Sequence[bool]) -> list[bool]:
        """The flags that any process had raised when they were sent; of a process on its own ``flags``, as they are now."""
        if self._sent is None:
            return list(flags)
        (raised, work), self._sent = self._sent, None
        if work is not None:
            work.wait()
        return [bool(flag) for flag in raised.tolist()]
