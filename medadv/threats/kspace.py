"""Perturbations of the k-space of MR images: complex, on some lines, small against the energy of the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medadv.intensities import Budget, Intensity
from medadv.names import unknown_name
from medadv.numbers import is_finite
from medadv.threats.base import CaseRandom, case_norm, per_case
from medadv.threats.parametric import ParametricThreat, limit_reader

RECONSTRUCTIONS = ("auto", "magnitude", "real")


class KSpace(ParametricThreat):
    """A complex perturbation of the k-space of each image, ``theta`` ``(N, C, *S, 2)`` (real and imaginary part).

    The k-space of an image is its orthonormal Fourier transform over the spatial axes, frequency zero in the middle;
    ``theta`` is in units of its L2 norm (over all channels). The image shown is ``|x + ifft(norm * theta)|`` where
    intensities are not negative, as scanners show magnitudes, and the real part otherwise (z-scored data). A line is a
    position along the last spatial axis with all frequencies of the others, as one phase-encoding step measures it.
    Lines are changed together with their mirror (the negative frequency): that of a real image holds the same values.

    The L2 norm of the change of the image is never more than that in k-space (Parseval; taking the magnitude, and
    keeping to the range, bring images nearer). Outside a region mask the image is put back, which no scanner does.

    Args:
        x, intensity, mask: as in :class:`~medadv.threats.parametric.ParametricThreat`.
        budget: L2 norm of the perturbation relative to that of the k-space.
        lines: ``"all"``, the share of lines in (0, 1] to draw for each case (as many mirrored pairs as reach it), or
            one bool per line, zero frequency in the middle, equal to its own mirror image.
        reconstruction: ``"magnitude"``, ``"real"`` or ``"auto"``.
        random: draws of each case; needed where lines are drawn.

    Raises:
        ValueError: lines or a reconstruction that can't be right for the images.
    """

    _of_cases = ("x", "mask", "least", "most", "lines", "energy")

    def __init__(
        self,
        x: Tensor,
        budget: Budget,
        intensity: Intensity,
        mask: Tensor | None = None,
        *,
        lines: str | float | Sequence[bool] = "all",
        reconstruction: str = "auto",
        random: CaseRandom | None = None,
    ) -> None:
        if reconstruction not in RECONSTRUCTIONS:
            raise unknown_name("reconstruction", reconstruction, RECONSTRUCTIONS)
        signed = min(intensity.lows) < 0
        if reconstruction == "magnitude" and signed:
            raise ValueError(
                f"reconstruction='magnitude' is never negative, but intensities are, from {min(intensity.lows):g}; use "
                "'real' or 'auto'."
            )
        self.magnitude = reconstruction == "magnitude" or (reconstruction == "auto" and not signed)
        self.axes = tuple(range(2, x.ndim))
        self.lines = _lines(lines, x, random).view(len(x), 1, *[1] * (x.ndim - 3), x.shape[-1], 1)
        self.energy = case_norm(x.to(torch.float64)).to(x.dtype)
        super().__init__(x, budget, intensity, mask)

    def box(self) -> tuple[Tensor, Tensor]:
        # no number of a perturbation is above its norm
        most = (self.radius * self.lines).to(self.x.dtype).expand(*self.x.shape, 2)
        return -most, most

    def start(self, random: CaseRandom | None) -> Tensor:
        """The clean image, or a random direction on the allowed lines with a length drawn evenly."""
        if random is None:
            return torch.zeros_like(self.least)
        direction = random.normal(self.least) * self.lines
        length = self.radius * random.uniform(self.energy[:, None])[:, 0]
        return self.project(_unit(direction) * per_case(length, direction))

    def transform(self, theta: Tensor) -> Tensor:
        spectrum = torch.view_as_complex((theta * self.lines * per_case(self.energy, theta)).contiguous())
        added = torch.fft.ifftn(torch.fft.ifftshift(spectrum, dim=self.axes), dim=self.axes, norm="ortho")
        return (self.x + added).abs() if self.magnitude else self.x + added.real

    def ascend(self, theta: Tensor, grad: Tensor, step: Tensor | float) -> Tensor:
        return theta + per_case(step, theta) * _unit(grad)

    def project(self, theta: Tensor) -> Tensor:
        theta = theta * self.lines
        length = case_norm(theta.to(torch.float64))
        # a hair less than the radius, as scaling rounds
        most = self.radius * (1 - 4 * torch.finfo(theta.dtype).eps)
        factor = torch.where(length > most, most / length.clamp(min=1e-300), torch.ones_like(length))
        return theta * per_case(factor.to(theta.dtype), theta)

    def distance(self, x_adv: Tensor, theta: Tensor | None = None) -> Tensor:
        """L2 norm of the perturbation of the k-space relative to that of the k-space, ``(N,)``."""
        if theta is None:
            raise ValueError("this threat reads its distance off theta, not off the image; give theta.")
        return case_norm(theta.to(torch.float64))

    def contains(self, x_adv: Tensor, theta: Tensor | None = None) -> Tensor:
        return (self.distance(x_adv, theta) <= self.radius) & super().contains(x_adv, theta)


kspace_budget = limit_reader("the L2 norm of the perturbation relative to that of the k-space")


def mirrored_line(line: int, count: int) -> int:
    """The line of the negative frequency, for ``count`` lines with frequency zero at ``count // 2``.

    Example:
        >>> [mirrored_line(line, 5) for line in range(5)], [mirrored_line(line, 4) for line in range(4)]
        ([4, 3, 2, 1, 0], [0, 3, 2, 1])
    """
    return (2 * (count // 2) - line) % count


def _unit(values: Tensor) -> Tensor:
    """Each case divided by its L2 norm; zero stays."""
    return values / per_case(case_norm(values).clamp(min=torch.finfo(values.dtype).tiny), values)


def _lines(given: Any, x: Tensor, random: CaseRandom | None) -> Tensor:
    """Which lines of each case may change, bool ``(N, L)``."""
    count = x.shape[-1]
    mirror = [mirrored_line(line, count) for line in range(count)]
    if isinstance(given, str) and given == "all":
        allowed = torch.ones(len(x), count, dtype=torch.bool)
    elif is_finite(given) and 0 < given <= 1:
        if random is None:
            raise ValueError("a share of lines needs the draws of each case; give random=CaseRandom(seed, ids).")
        allowed = _drawn_lines(float(given) * count, mirror, random.permutation(count // 2 + 1))
    else:
        values = np.asarray(given)
        if values.dtype != np.bool_ or values.shape != (count,) or not values.any():
            raise ValueError(
                f"lines={given!r} can't be read; give 'all', a share above 0 and at most 1, or {count} bools, one per "
                "position along the last axis, with at least one True."
            )
        if not (values == values[mirror]).all():
            raise ValueError(
                "lines must hold with each line its mirror, the negative frequency, as that of an image holds the same "
                f"values; of {count} lines, line i goes with line ({2 * (count // 2)} - i) modulo {count}."
            )
        allowed = torch.from_numpy(values.copy()).expand(len(x), count)
    return allowed.to(x.device)


def _drawn_lines(wanted: float, mirror: list[int], orders: Tensor) -> Tensor:
    """For each case pairs of mirrored lines in the drawn order until their number is reached."""
    count = len(mirror)
    allowed = torch.zeros(len(orders), count, dtype=torch.bool)
    for case, order in enumerate(orders.tolist()):
        for frequency in order:
            line = (count // 2 + frequency) % count
            allowed[case, [line, mirror[line]]] = True
            if int(allowed[case].sum()) >= wanted - 1e-9:
                break
    return allowed
