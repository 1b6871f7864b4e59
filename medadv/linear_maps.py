"""Linear maps along one axis of a tensor: transforms and filters as matrix products."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


def along(x: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """Applies a matrix to every line of ``x`` along an axis, differentiable, in the precision of ``x``.

    Args:
        x: any shape.
        matrix: ``(M, x.shape[axis])``, of the float type of ``x``.
        axis: 0 or more.

    Returns:
        Like ``x``, but with M entries along the axis.

    Example:
        >>> import torch
        >>> along(torch.arange(6.0).view(2, 3), torch.tensor([[1.0, -1.0]]), axis=0)
        tensor([[-3., -3., -3.]])
    """
    # the axis stays where it is: to move it to the end copies the tensor, which takes longer than the product
    with torch.autocast(x.device.type, enabled=False):  # which would multiply in half precision
        if axis == x.ndim - 1:
            return x @ matrix.T
        lines = matrix @ x.flatten(axis + 1)
        return lines.reshape(*lines.shape[: axis + 1], *x.shape[axis + 1 :])


def made_once(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Keeps what ``make(size, device, dtype)`` returns, for calls with and without a gradient; nobody may change it."""
    # a matrix first asked for in inference mode has to serve calls that differentiate as well
    make_plain: Any = torch.inference_mode(False)(make)
    return lru_cache(maxsize=64)(make_plain)
