"""What every threat shares: the set of images an attacker may show, searched by a parameter; random draws per case."""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

SomeThreat = TypeVar("SomeThreat", bound="Threat")


class CaseRandom:
    """Random draws that depend on (seed, case id, restart) alone, so that batching never changes them.

    Args:
        seed: the attack's seed.
        ids: one id per case.
        restart: number of the restart.
    """

    def __init__(self, seed: int, ids: Sequence[object], restart: int = 0) -> None:
        self.generators = []
        for case in ids:
            digest = hashlib.blake2b(f"{seed}/{case}/{restart}".encode(), digest_size=7).digest()
            self.generators.append(torch.Generator().manual_seed(int.from_bytes(digest, "big")))

    def uniform(self, like: Tensor) -> Tensor:
        """Uniform in [0, 1), shaped like ``like`` ``(N, ...)``."""
        draws = [torch.rand(like.shape[1:], generator=g, dtype=like.dtype) for g in self.generators]
        return torch.stack(draws).to(like.device)

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal, shaped like ``like`` ``(N, ...)``."""
        draws = [torch.randn(like.shape[1:], generator=g, dtype=like.dtype) for g in self.generators]
        return torch.stack(draws).to(like.device)

    def integers(self, high: int, count: int) -> Tensor:
        """``count`` whole numbers from 0 to ``high - 1`` per case, ``(N, count)`` int64."""
        return torch.stack([torch.randint(high, (count,), generator=g) for g in self.generators])

    def permutation(self, size: int) -> Tensor:
        """A permutation of 0 to ``size - 1`` per case, ``(N, size)`` int64."""
        return torch.stack([torch.randperm(size, generator=g) for g in self.generators])

    def subset(self, rows: Tensor) -> CaseRandom:
        """The generators of some cases, shared with this object: their draws go on where they are."""
        some = copy.copy(self)
        some.generators = [self.generators[i] for i in rows.tolist()]
        return some


def per_case(values: Tensor | float, like: Tensor) -> Tensor:
    """One number, or one per case ``(N,)``, shaped to broadcast against ``like`` ``(N, ...)``."""
    given = values if isinstance(values, Tensor) else torch.tensor(values, dtype=like.dtype, device=like.device)
    return given.view(-1, *[1] * (like.ndim - 1))


def chosen(rows: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """``new`` for the cases ``rows`` ``(N,)``, ``old`` for the others; no copy where it is all or none."""
    if bool(rows.all()):
        return new
    return torch.where(per_case(rows, new), new, old) if bool(rows.any()) else old


def case_norm(values: Tensor, order: float = 2, dtype: torch.dtype | None = None) -> Tensor:
    """Vector norm of each case: ``(N, ...) -> (N,)``; summed in ``dtype``, default: that of the values."""
    flat = values.flatten(1)
    if order == 2:
        return torch.linalg.vector_norm(flat, dim=1, dtype=dtype)
    if order == 1:  # torch's own norms of this and the next order take several times as long on a CPU
        return flat.abs().sum(1, dtype=dtype)
    if order == torch.inf:
        return flat.abs().amax(1).to(dtype or flat.dtype)
    return torch.linalg.vector_norm(flat, ord=order, dim=1, dtype=dtype)


class Threat(ABC):
    """The set of images the attacker may show instead of ``x``.

    Attributes:
        x: the images, ``(N, C, *S)``.
        radius: size of the set in the unit of :meth:`distance`.
        parametric: True if theta is more than the perturbation, so that it must be kept beside the image to tell
            whether the image is in the set.
    """

    x: Tensor
    radius: float
    parametric = False

    @abstractmethod
    def start(self, random: CaseRandom | None) -> Tensor:
        """``theta`` of the clean image (None), or a random one in the set."""

    @abstractmethod
    def apply(self, theta: Tensor) -> Tensor:
        """``theta`` -> images ``(N, C, *S)`` that are allowed, without a graph."""

    def apply_target(self, theta: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """The reference of the changed image: moved with it where the threat moves anatomy, else as it is."""
        return target, valid

    @abstractmethod
    def pullback(self, theta: Tensor, grad: Tensor) -> Tensor:
        """Gradient to the image -> gradient to ``theta`` (range and grid are passed straight through)."""

    @abstractmethod
    def ascend(self, theta: Tensor, grad: Tensor, step: Tensor | float) -> Tensor:
        """Steepest ascent in the geometry of the set; ``step`` in the unit of :meth:`distance`, ``(N,)`` or one."""

    @abstractmethod
    def project(self, theta: Tensor) -> Tensor:
        """The nearest allowed ``theta``."""

    @abstractmethod
    def distance(self, x_adv: Tensor, theta: Tensor | None = None) -> Tensor:
        """How far images are from ``x``, ``(N,)`` float64; parametric threats read it off ``theta``."""

    def contains(self, x_adv: Tensor, theta: Tensor | None = None) -> Tensor:
        """Which images are in the set, ``(N,)`` bool; parametric threats need the ``theta`` they came from."""
        return self.distance(x_adv, theta) <= self.radius

    def subset(self: SomeThreat, rows: Tensor) -> SomeThreat:
        """The same set for some of the cases."""
        some = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor) and value.ndim and len(value) == len(self.x) and name in self._of_cases:
                setattr(some, name, value[rows])
        return some

    _of_cases: tuple[str, ...] = ("x",)
