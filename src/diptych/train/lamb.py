"""LAMB: Adam whose step is scaled, matrix by matrix, to the size of the weights, for large batches (You et al. 2020).

    m <- b1 m + (1 - b1) g        v <- b2 v + (1 - b2) g^2        (both corrected for their start at 0)
    u = m / (sqrt(v) + eps) + wd w          w <- w - lr (|w| / |u|) u

The ratio of norms is 1 where either norm is 0, and for biases, norms and scales, which the paper's own code leaves out of the
adaptation. No clipping inside, neither of gradients (--grad-clip-norm does it) nor of the ratio.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Lamb(torch.optim.Optimizer):
    """LAMB over groups with ``lr``, ``betas``, ``eps`` and ``weight_decay``; state: ``step``, ``exp_avg``, ``exp_avg_sq``.

    ``capturable``: ``step`` is on the parameter's device, and nothing is read from there.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        capturable: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "capturable": capturable})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Move every parameter that has a gradient; the value of ``closure``, which is called first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)
        return loss

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if not state:
            # On the CPU, as torch's optimizers have it, where it need not be gated on the device.
            state["step"] = torch.zeros((), device=parameter.device if group["capturable"] else "cpu")
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state["step"] += 1
        first = state["exp_avg"].lerp_(gradient, 1 - beta1)
        second = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = second.div(_correction(beta2, state["step"])).sqrt_().add_(group["eps"])
        update = first.div(_correction(beta1, state["step"])).div_(root).add_(parameter, alpha=group["weight_decay"])
        if parameter.ndim > 1:
            update.mul_(_ratio(parameter, update))
        parameter.add_(update, alpha=-group["lr"])


def _correction(beta: float, step: Tensor) -> Tensor | float:
    """1 - beta**step: a number of a count on the CPU, else a scalar on the device, as accurate in fp32."""
    if step.device.type == "cpu":
        return float(1 - beta ** int(step))
    return -torch.expm1(step * math.log(beta)) if beta else torch.ones_like(step)


def _ratio(parameter: Tensor, update: Tensor) -> Tensor:
    """|w| / |u|, a scalar on the device; 1 where one of them is 0."""
    weights, moved = torch.linalg.vector_norm(parameter), torch.linalg.vector_norm(update)
    return torch.where((weights > 0) & (moved > 0), weights / moved, torch.ones_like(weights))
