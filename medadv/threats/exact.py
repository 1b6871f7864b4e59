"""Bounds that hold to the last bit: the largest share within a limit, and the furthest number within a distance."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def largest_share(
    measure: Callable[[Tensor], tuple[Tensor, Callable[[], Tensor]]],
    short: Tensor,
    long: Tensor,
    share: Tensor,
    *,
    tolerance: float,
    resolution: float = 2e-16,
    rounds: int = 60,
) -> Tensor:
    """The largest share with no excess, per case: Newton's method, halves where it leaves the bracket.

    Args:
        measure: share ``(N,)`` -> by how much it is too much ``(N,)``, growing, and what gives its slope, which is
            asked only if the search goes on.
        short: shares without excess, ``(N,)`` float64.
        long: shares with one, or at the limit.
        share: where to begin.
        tolerance: a share that falls short of no excess by less is near enough; the middle of this is aimed at.
        resolution: relative difference of shares below which they are the same.
        rounds: at most so many evaluations.

    Returns:
        ``(N,)``; never one with an excess.

    Example:
        >>> import torch
        >>> zero, four = torch.zeros(1, dtype=torch.float64), torch.full((1,), 4.0, dtype=torch.float64)
        >>> root = largest_share(lambda s: (s.square() - 2, lambda: 2 * s), zero, four, four, tolerance=1e-12)
        >>> root.round(decimals=6)
        tensor([1.4142], dtype=torch.float64)
    """
    for _ in range(rounds):
        excess, slope = measure(share)
        fits = excess <= 0
        short, long = torch.where(fits, share, short), torch.where(fits, long, share)
        found = (fits & (excess >= -tolerance)) | (long - short <= resolution * short.abs())
        if bool(found.all()):
            break
        newton = share - (excess + tolerance / 2) / slope()
        further = torch.where((newton > short) & (newton < long), newton, (short + long) / 2)
        share = torch.where(found, short, further)  # a case that is found waits for the others
    return short


def not_further(x: Tensor, reach: Tensor, sign: int) -> Tensor:
    """``x + sign * reach`` rounded towards ``x``: in ``x``'s float type the distance to ``x`` is at most ``reach``.

    Args:
        x: images.
        reach: float64, not negative, broadcastable to ``x``.
        sign: +1 or -1.

    Example:
        >>> import torch
        >>> x, reach = torch.tensor([0.1, 0.7]), torch.tensor(8 / 255, dtype=torch.float64)
        >>> (not_further(x, reach, 1).double() - x.double() <= reach).tolist()
        [True, True]
    """
    limit = reach.to(x.dtype)
    limit = sign * torch.where(limit.to(torch.float64) > reach, torch.nextafter(limit, torch.zeros_like(limit)), limit)
    moved = x + limit
    # what rounding took from the sum, without error (Knuth's two-sum): float64 copies of the images cost more
    gained = moved - x
    lost = (x - (moved - gained)) + (limit - gained)
    exceeds = (sign * lost).sign_().clamp_(max=0)  # -1 or 0
    return torch.nextafter(moved, moved + exceeds * (sign * torch.finfo(x.dtype).max / 2))
