"""The objective of stabilised medical attacks: leave the reference, but agree with the blurred image's prediction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from medadv.decisions import Decision
from medadv.numbers import is_finite
from medadv.objectives.base import Objective, kullback_leibler, mean_over_valid, per_voxel_cross_entropy


class Stabilised(Objective):
    """Leaves the reference while the prediction stays that of the blurred image (SMA, arXiv 2103.05232).

    ``CE(f(x'), y) - a D(f(G * x'), f(x'))`` with G a Gaussian and ``f(G * x')`` detached; targeted
    ``-CE(f(x'), t) - a D``. D is the Kullback-Leibler divergence of the two predictions, whose gradient is that of
    their cross-entropy as the first one is detached: summed over classes (Multiclass) or the mean over the labels'
    Bernoulli divergences (Multilabel), averaged over valid voxels. The paper publishes neither ``a`` nor ``sigma`` nor
    a schedule for other data; the defaults here are this library's.

    Args:
        decision: how the logits become a diagnosis.
        targeted: as in :class:`Objective`.
        a: weight of the stabilising term; 0 leaves cross-entropy alone.
        sigma: standard deviation of G in voxels; one number, or one per spatial axis.

    Raises:
        ValueError: a weight or a width that is negative or not finite.

    Example:
        >>> import torch
        >>> from medadv.decisions import Multiclass
        >>> objective = Stabilised(Multiclass(2), a=1.0, sigma=1.0)
        >>> z, blurred = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0]])
        >>> objective(z, torch.tensor([0]), valid=torch.tensor([True]), others=(blurred,))
        tensor([0.6931])
    """

    def __init__(
        self, decision: Decision, *, targeted: bool = False, a: float = 1.0, sigma: float | Sequence[float] = 1.0
    ) -> None:
        super().__init__(decision, targeted=targeted)
        if not _not_negative(a):
            raise ValueError(f"a={a!r} must be a finite weight of at least 0.")
        widths = sigma if isinstance(sigma, Sequence) and not isinstance(sigma, str) else (sigma,)
        if not widths or not all(map(_not_negative, widths)):
            raise ValueError(f"sigma={sigma!r} must be a finite width in voxels of at least 0, or one per axis.")
        self.a = float(a)
        self.views = (lambda x: gaussian_blur(x, sigma),)

    def __call__(
        self,
        output: Tensor,
        target: Tensor,
        *,
        valid: Tensor,
        progress: float = 0.0,
        others: Sequence[Tensor] = (),
    ) -> Tensor:
        deviation = mean_over_valid(per_voxel_cross_entropy(self.decision, output, target), valid)
        divergence = mean_over_valid(kullback_leibler(self.decision, others[0].detach(), output), valid)
        return self.sign * deviation - self.a * divergence


def gaussian_blur(x: Tensor, sigma: float | Sequence[float]) -> Tensor:
    """Images ``(N, C, *S)`` blurred along every spatial axis by a Gaussian cut off at 4 sigma; edges are repeated.

    Args:
        x: images of any spatial rank.
        sigma: standard deviation in voxels; one number, or one per spatial axis; 0 leaves an axis as it is.

    Raises:
        ValueError: another number of widths than axes.

    Example:
        >>> import torch
        >>> gaussian_blur(torch.ones(1, 1, 4, 4, 4), 1.0).allclose(torch.ones(1, 1, 4, 4, 4))
        True
    """
    axes = x.ndim - 2
    widths = list(sigma) if isinstance(sigma, Sequence) else [sigma] * axes
    if len(widths) != axes:
        raise ValueError(f"sigma has {len(widths)} widths for {axes} spatial axes; give one number or one per axis.")
    for axis, width in enumerate(widths, start=2):
        radius = int(4 * width + 0.5)
        if radius == 0:
            continue
        offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
        kernel = torch.exp(-0.5 * (offsets / width) ** 2)
        kernel = (kernel / kernel.sum()).to(x.device, x.dtype)
        lines = x.movedim(axis, -1)
        padded = F.pad(lines.reshape(-1, 1, lines.shape[-1]), (radius, radius), mode="replicate")
        x = F.conv1d(padded, kernel.view(1, 1, -1)).view(lines.shape).movedim(-1, axis)
    return x


def _not_negative(value: object) -> bool:
    return is_finite(value) and value >= 0
