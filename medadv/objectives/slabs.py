"""Sums over the voxels of large volumes with the memory of one slab of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from medadv.objectives.base import Objective

Sums = Callable[[Tensor, Tensor, Tensor], Tensor]
LARGE, SLAB = 2**20, 2**18  # logits of a case


class SummedObjective(Objective):
    """An objective that is a function of sums over the voxels, so that a slab of them is enough at a time."""

    def __call__(self, output: Tensor, target: Tensor, *, valid: Tensor, progress: float = 0.0) -> Tensor:
        return self.of_sums(summed_in_slabs(self.sums, output, target, valid), valid)

    @abstractmethod
    def sums(self, output: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """What it needs of the voxels given, summed over them, ``(N, M)``."""

    @abstractmethod
    def of_sums(self, sums: Tensor, valid: Tensor) -> Tensor:
        """The objective ``(N,)`` of the sums over all voxels."""


def summed_in_slabs(sums: Sums, output: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Sums over voxels, differentiable in the logits, that never hold more than one slab's intermediate results.

    Probabilities, their products and their gradients are each as large as the logits, and a loss needs many of them.
    A slab is as many slices along the first axis as hold :data:`SLAB` logits of a case; its intermediate results are
    computed a second time for the gradient, which makes a loss take half as long again. So cases of up to
    :data:`LARGE` logits are one slab, which autograd sees as it is.

    Args:
        sums: logits, target and valid of a slab -> sums over its voxels per case, ``(N, ...)``.
        output: logits ``(N, C, *S)``.
        target: canonical reference.
        valid: where it counts, like ``target``.

    Example:
        >>> import torch
        >>> logits = torch.zeros(1, 2, 99, 99, 99, requires_grad=True)
        >>> target = torch.ones(1, 99, 99, 99, dtype=torch.int64)
        >>> summed_in_slabs(lambda z, t, v: (z.sigmoid() * v).flatten(1).sum(1), logits, target, target > 0)
        tensor([970299.], grad_fn=<_InSlabsBackward>)
    """
    if output[0].numel() <= LARGE or output.ndim == 2:
        return sums(output, target, valid)
    slices = max(1, SLAB // output[0, :, 0].numel())
    return _InSlabs.apply(output, target, valid, sums, slices)  # type: ignore[no-any-return]


class _InSlabs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, target: Tensor, valid: Tensor, sums: Sums, slices: int) -> Tensor:
        ctx.save_for_backward(output, target, valid)
        ctx.sums, ctx.slices = sums, slices
        return torch.stack([sums(*slab) for slab in _slabs(slices, output, target, valid)]).sum(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        output, target, valid = ctx.saved_tensors
        found = torch.empty_like(output)
        for (z, *reference), place in zip(
            _slabs(ctx.slices, output, target, valid), found.split(ctx.slices, 2), strict=True
        ):
            leaf = z.detach().requires_grad_()
            with torch.enable_grad():
                total = ctx.sums(leaf, *reference)
            place.copy_(torch.autograd.grad(total, leaf, grad)[0])
        return found, None, None, None, None


def _slabs(slices: int, output: Tensor, target: Tensor, valid: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    axis = target.ndim - output.ndim + 2  # a reference of exclusive classes has no axis for them
    return list(zip(output.split(slices, 2), target.split(slices, axis), valid.split(slices, axis), strict=True))
