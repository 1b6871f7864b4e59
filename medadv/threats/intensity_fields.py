"""Threats that change grey values smoothly: a bias field over the image, and a curve over its grey values."""

from __future__ import annotations

import torch
from torch import Tensor

from medadv.intensities import Budget, Intensity
from medadv.threats.base import per_case
from medadv.threats.parametric import ParametricThreat, rounded_down

DEGREE = 3


class BiasField(ParametricThreat):
    """A smooth multiplicative field (arXiv 2006.13322 for MR, 2009.09247 for X-ray), one for all channels.

    ``x' = low + (x - low) exp(f)`` with f a tensor-product cubic B-spline and low the least grey value of the
    intensity. Theta, ``(N, *control points)``, holds ``bias - 1`` at the control points, between -eps and eps; f has
    the control points ``log(1 + theta)``. A B-spline lies in the convex hull of its control points, so
    ``|exp(f) - 1| <= eps`` in every voxel and not only at the control points. The knots are uniform and clamped: the
    outermost control points are the values in the corners.

    Args:
        x, budget, intensity, mask: as for every threat; the budget in [0, 1).
        control_points: per axis, at least 4; 4 is one polynomial over the whole image.

    Example:
        >>> import torch
        >>> from medadv.intensities import Budget, Intensity
        >>> threat = BiasField(torch.full((1, 1, 5, 5), 0.5), Budget(0.3, "", 0.3), Intensity(0, 1))
        >>> bright = threat.apply(torch.full((1, 4, 4), 0.3))
        >>> round(float(bright.max()), 4), round(float(bright.min()), 4)
        (0.65, 0.65)
    """

    def __init__(
        self, x: Tensor, budget: Budget, intensity: Intensity, mask: Tensor | None = None, *, control_points: int = 4
    ) -> None:
        self.control_points = control_points
        self._bases = [spline_basis(size, control_points, x) for size in x.shape[2:]]
        super().__init__(x, budget, intensity, mask)

    def box(self) -> tuple[Tensor, Tensor]:
        limit = rounded_down(self.radius, self.x.dtype)
        most = self.x.new_full((len(self.x), *[self.control_points] * (self.x.ndim - 2)), limit)
        return -most, most

    def bias(self, theta: Tensor) -> Tensor:
        """Theta -> the factor of every voxel, ``(N, 1, *S)``."""
        field = torch.log1p(theta)
        with torch.autocast(field.device.type, enabled=False):  # a rounded field could leave its bounds
            for axis, basis in enumerate(self._bases, start=1):
                field = (field.movedim(axis, -1) @ basis.T).movedim(-1, axis)
        return field.exp()[:, None]

    def transform(self, theta: Tensor) -> Tensor:
        low = self.intensity.bounds(self.x)[0]
        return low + (self.x - low) * self.bias(theta)


def spline_basis(size: int, control_points: int, like: Tensor) -> Tensor:
    """Cubic B-splines of uniform clamped knots at ``size`` equidistant points from end to end, by de Boor's recursion.

    Args:
        size: number of points.
        control_points: number of splines, at least 4.
        like: gives dtype and device.

    Returns:
        ``(size, control_points)``; no entry is negative and the rows sum to 1.

    Raises:
        ValueError: no whole number, or fewer than 4 control points.
    """
    if isinstance(control_points, bool) or not isinstance(control_points, int) or control_points <= DEGREE:
        raise ValueError(f"control_points={control_points!r} makes no cubic spline; give a whole number of at least 4.")
    inner = torch.linspace(0, 1, control_points - DEGREE + 1, dtype=torch.float64)
    knots = torch.cat([inner.new_zeros(DEGREE), inner, inner.new_ones(DEGREE)])
    at = torch.linspace(0, 1, size, dtype=torch.float64)[:, None]
    start, stop = knots[:-1], knots[1:]
    # the last knot span holds its end as well, else nothing would be left at the border of the image
    basis = ((at >= start) & ((at < stop) | ((stop == 1) & (start < 1) & (at == 1)))).to(torch.float64)
    for degree in range(1, DEGREE + 1):
        rise, fall = (knots[degree + i : len(knots) - 1 + i] - knots[i : len(knots) - 1 - degree + i] for i in (0, 1))
        up = torch.where(rise > 0, (at - knots[: len(rise)]) / rise, 0)
        down = torch.where(fall > 0, (knots[degree + 1 :] - at) / fall, 0)
        basis = up * basis[:, :-1] + down * basis[:, 1:]
    return basis.to(like.device, like.dtype)


class IntensityCurve(ParametricThreat):
    """Another gamma, window width and window level: one monotone curve over the grey values of a case.

    With u the grey value as a share of the window (of the range where there is none) and theta, ``(N, 3)``, the
    logarithm g of gamma, the logarithm c of the contrast, and the shift b, each between -eps and eps:
    ``u' = 1/2 + exp(c) (u ** exp(g) - 1/2) + b``. So eps = 0.2 allows gamma and contrast from 0.82 to 1.22 and a
    shift of the brightness by 20 % of the window. Gamma keeps 0 and 1 where they are and spares the grey values outside
    the window.

    Args:
        x, budget, intensity, mask: as for every threat.

    Example:
        >>> import torch
        >>> from medadv.intensities import Budget, Intensity
        >>> threat = IntensityCurve(torch.full((1, 1, 2, 2), 0.25), Budget(0.2, "", 0.2), Intensity(0, 1))
        >>> threat.apply(torch.tensor([[0.0, 0.0, 0.2]])).unique()
        tensor([0.4500])
    """

    def box(self) -> tuple[Tensor, Tensor]:
        most = self.x.new_full((len(self.x), 3), rounded_down(self.radius, self.x.dtype))
        return -most, most

    def transform(self, theta: Tensor) -> Tensor:
        log_gamma, log_contrast, shift = (per_case(part, self.x) for part in theta.unbind(1))
        start, width = window_of(self.intensity, self.x)
        u = (self.x - start) / width
        # gamma comes first: behind the affine part its slope would be infinite at 0
        curved = u.clamp(min=torch.finfo(u.dtype).tiny) ** log_gamma.exp()
        curved = torch.where((u >= 0) & (u <= 1), curved, u)
        return start + width * (0.5 + log_contrast.exp() * (curved - 0.5) + shift)


def window_of(intensity: Intensity, like: Tensor) -> tuple[Tensor, Tensor]:
    """Start and width of the window, else of the range, as tensors that broadcast to ``like`` ``(N, C, *S)``."""
    starts = intensity.lows if intensity.window is None else intensity.window[:1]
    shape = (1, -1, *[1] * (like.ndim - 2))
    start, width = (
        torch.tensor(v, dtype=like.dtype, device=like.device).view(shape) for v in (starts, intensity.widths)
    )
    return start, width
