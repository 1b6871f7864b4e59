"""The orthonormal discrete cosine transform (type II) over any axes, as matrix products, differentiable."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def dct_matrix(size: int, like: Tensor) -> Tensor:
    """The orthonormal DCT-II matrix ``(size, size)``: row k is the cosine of frequency k.

    Example:
        >>> import torch
        >>> basis = dct_matrix(4, torch.zeros(1, dtype=torch.float64))
        >>> bool(torch.allclose(basis @ basis.T, torch.eye(4, dtype=torch.float64)))
        True
    """
    # in float64 first: the cosines of large sizes lose digits otherwise
    k, n = (torch.arange(size, dtype=torch.float64).view(shape) for shape in ((-1, 1), (1, -1)))
    basis = torch.cos(math.pi * k * (2 * n + 1) / (2 * size)) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis.to(like.device, like.dtype)


def dct(x: Tensor, axes: Sequence[int]) -> Tensor:
    """Orthonormal DCT-II along ``axes``; norms are kept, so energy can be compared.

    Args:
        x: any shape.
        axes: axes that are transformed.

    Returns:
        Coefficients like ``x``.
    """
    return _along(x, axes, inverse=False)


def idct(coefficients: Tensor, axes: Sequence[int]) -> Tensor:
    """The inverse of :func:`dct`."""
    return _along(coefficients, axes, inverse=True)


def _along(x: Tensor, axes: Sequence[int], *, inverse: bool) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):  # which would multiply in half precision
        for axis in axes:
            basis = dct_matrix(x.shape[axis], x)
            x = ((x.movedim(axis, -1)) @ (basis if inverse else basis.T)).movedim(-1, axis)
    return x
