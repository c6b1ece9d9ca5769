"""How processes agree on what only some of them know, such as a signal, without waiting for each other or for a device.

The flags of a step are sent while the next one is computed, over a group of the host's own (gloo), and take effect after it: on
every process after the same step. A process on its own agrees with itself at once. Not for what every process knows by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from diptych.distributed.process_group import TIMEOUT, Group, size


class Agreement:
    """Flags that count everywhere when they are raised anywhere, one call later. A collective to make, to call and to leave.

    ``timeout``: seconds that a process waits for the flags of the others.
    """

    def __init__(self, timeout: float = TIMEOUT) -> None:
        self._group: Group = None
        if size() > 1:
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        self._sent: tuple[Tensor, dist.Work | None] | None = None

    def __call__(self, flags: Sequence[bool]) -> list[bool]:
        """Send ``flags``, as many in every call; the flags that were raised anywhere in the call before this one."""
        if size() == 1:
            return list(flags)
        before = self.settle()
        raised = torch.tensor([int(flag) for flag in flags])
        self._sent = raised, dist.all_reduce(raised, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return before or [False] * len(flags)

    def settle(self) -> list[bool]:
        """Wait for what was sent, and return it; nothing where nothing was."""
        if self._sent is None:
            return []
        (raised, work), self._sent = self._sent, None
        if work is not None:
            work.wait()
        return [bool(flag) for flag in raised.tolist()]
