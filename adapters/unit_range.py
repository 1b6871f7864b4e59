"""A deployed model shown to attack libraries that know nothing but images from 0 to 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from medadv.victims import ModuleVictim


class UnitRangeModel(nn.Module):
    """The victim's model on images mapped to [0, 1] by one affine map for all voxels; it counts what it is asked.

    Args:
        victim: whose module is shown and whose passes are counted; its range has one low and one high.
        cases: number N of cases attacked at once.
        positive: logits are shifted per case so that the smallest is 1; no difference of logits and no softmax changes.

    Attributes:
        rows: how many images it has seen.
        faint: cases whose input gradient was zero at some step, ``(N,)`` bool; read off gradients of N images.
        broken: cases whose input gradient was NaN or infinite at some step.
    """

    def __init__(self, victim: ModuleVictim, cases: int, *, positive: bool = False) -> None:
        super().__init__()
        self.deployed = victim.module
        self.positive = positive
        self.rows = 0
        self.faint = torch.zeros(cases, dtype=torch.bool, device=victim.device)
        self.broken = torch.zeros_like(self.faint)
        self._victim = victim
        self.low = victim.intensity.lows[0]
        self.width = victim.intensity.highs[0] - self.low

    def unit(self, x: Tensor) -> Tensor:
        """Images in their own unit -> float32 in [0, 1]."""
        return ((x.to(torch.float64) - self.low) / self.width).clamp(0, 1).to(torch.float32)

    def forward(self, z: Tensor) -> Tensor:
        """Images ``(M, C, *S)`` in [0, 1] -> logits ``(M, K, *S)``."""
        self.rows += len(z)
        self._victim.passes.forward += 1
        watched = _Watched.apply(z, self._see) if torch.is_grad_enabled() and z.requires_grad else z
        like = next((p for p in self.deployed.parameters() if p.is_floating_point()), z)
        logits = self.deployed((watched * self.width + self.low).to(like.dtype)).as_subclass(Tensor).to(z.dtype)
        return logits - logits.detach().amin(1, keepdim=True) + 1 if self.positive else logits

    def _see(self, grad: Tensor) -> None:
        """Takes note of a gradient to the images."""
        self._victim.passes.backward += 1
        if len(grad) == len(self.faint):
            flat = grad.flatten(1)
            self.faint |= (flat == 0).all(1)
            self.broken |= ~flat.isfinite().all(1)


class _Watched(torch.autograd.Function):
    """The identity, which tells of the gradient that passes through it."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, see: Any) -> Tensor:
        ctx.see = see
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        ctx.see(grad)
        return grad, None
