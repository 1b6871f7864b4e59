"""Can this robustness number be trusted? Each check returns its evidence and, where it fails, a flag for the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medadv.objectives import CrossEntropy, SoftDice
from medadv.victims import Victim

MONOTONE_TOLERANCE = 0.01
ZERO_GRADIENT_LIMIT = 0.5
REPEAT_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        check: its name.
        evidence: the number it looked at.
        flag: what goes into the table, empty if all is well.
    """

    check: str
    evidence: float
    flag: str = ""


def monotone(eps: Sequence[float], scores: Sequence[float], tolerance: float = MONOTONE_TOLERANCE) -> Finding:
    """A larger budget must not help the model: the largest rise of the score from one budget to a larger one.

    Args:
        eps: budgets.
        scores: mean score at each; rows into which no candidate of a smaller budget was carried.
        tolerance: rise that is still accepted.

    Example:
        >>> monotone([0, 1, 2], [0.9, 0.5, 0.6]).flag
        'not-monotone=+0.100'
    """
    ordered = np.asarray(scores, dtype=float)[np.argsort(eps)]
    rise = float(np.max(ordered - np.minimum.accumulate(ordered), initial=0.0))
    return Finding("monotone", rise, f"not-monotone=+{rise:.3f}" if rise > tolerance else "")


def zero_gradients(victim: Victim, x: Tensor, target: Tensor, valid: Tensor) -> Finding:
    """Share of voxels whose input gradient is exactly zero: a sign of quantisation, saturation or a cut graph.

    Args:
        victim: the model.
        x: images ``(N, C, *S)``.
        target: canonical reference.
        valid: where it counts.
    """
    objective = (SoftDice if victim.segments else CrossEntropy)(victim.decision)
    with victim.attacked():
        try:
            _, _, grad = victim.differentiate(x, lambda z: objective(z, target, valid=valid))
        except RuntimeError as error:
            if "does not require grad" not in str(error):
                raise
            grad = torch.zeros_like(x)  # autograd found no path from the logits to the image
    share = float((grad == 0).double().mean())
    return Finding("zero-gradients", share, f"zero-gradients={share:.2f}" if share > ZERO_GRADIENT_LIMIT else "")


def repeatable(victim: Victim, x: Tensor) -> Finding:
    """Largest difference between the logits of two runs on the same images; randomised models need another attack."""
    with victim.attacked():
        difference = float((victim.logits(x) - victim.logits(x)).abs().max())
    flag = f"not-repeatable={difference:.1e}" if not difference <= REPEAT_TOLERANCE else ""
    return Finding("repeatable", difference, flag)
