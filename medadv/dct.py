"""The orthonormal discrete cosine transform (type II) over any axes, as matrix products, differentiable."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from medadv.linear_maps import along, made_once


def dct_matrix(size: int, like: Tensor) -> Tensor:
    """The orthonormal DCT-II matrix ``(size, size)``: row k is the cosine of frequency k.

    Example:
        >>> import torch
        >>> basis = dct_matrix(4, torch.zeros(1, dtype=torch.float64))
        >>> bool(torch.allclose(basis @ basis.T, torch.eye(4, dtype=torch.float64)))
        True
    """
    return _dct_matrix(size, like.device, like.dtype)


@made_once
def _dct_matrix(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    # in float64 first: the cosines of large sizes lose digits otherwise
    k, n = (torch.arange(size, dtype=torch.float64).view(shape) for shape in ((-1, 1), (1, -1)))
    basis = torch.cos(math.pi * k * (2 * n + 1) / (2 * size)) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis.to(device, dtype)


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
    for axis in axes:
        basis = dct_matrix(x.shape[axis], x)
        x = along(x, basis.T if inverse else basis, axis)
    return x


def band_shares(x: Tensor, bands: int = 8) -> Tensor:
    """How the energy of images, such as perturbations, spreads over bands of spatial frequencies.

    The frequency of a coefficient of the DCT over all spatial axes is the root mean square of ``k / n`` over the axes:
    0 for the mean, just below 1 for the change of sign from each voxel to the next along each axis. Bands are equally
    wide.

    Args:
        x: ``(N, C, *S)``.
        bands: number of bands.

    Returns:
        Shares ``(N, bands)``, float64, which sum to 1; NaN where ``x`` is all zero.

    Raises:
        ValueError: less than one band.

    Example:
        >>> import torch
        >>> band_shares(torch.tensor([[[[1.0, -1.0], [-1.0, 1.0]]], [[[1.0, 1.0], [1.0, 1.0]]]]), bands=2).round()
        tensor([[0., 1.],
                [1., 0.]], dtype=torch.float64)
    """
    if bands < 1:
        raise ValueError(f"bands={bands} leaves no band; give at least 1.")
    spatial = x.shape[2:]
    square = torch.zeros(spatial, dtype=torch.float64, device=x.device)
    for axis, size in enumerate(spatial):
        ratio = torch.arange(size, dtype=torch.float64, device=x.device) / size
        square += ratio.square().view(-1, *[1] * (len(spatial) - axis - 1))
    band = ((square / len(spatial)).sqrt() * bands).long().flatten()
    shares = torch.zeros(len(x), bands, dtype=torch.float64, device=x.device)
    for row, case in zip(shares, x):  # a case at a time: volumes are large in float64
        energy = dct(case.to(torch.float64), range(1, case.ndim)).square().sum(0).flatten()
        row.index_add_(0, band, energy)
    return shares / shares.sum(1, keepdim=True)
