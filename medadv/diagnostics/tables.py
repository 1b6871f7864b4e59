"""What scores alone tell: they fall with the budget, and nobody who knows less finds more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from medadv.diagnostics.finding import Finding, Measured, nothing
from medadv.diagnostics.registry import CHECKS

# what the attacker knows less than all, as tables call it; semi-white-box images are made on the undefended twin
QUERYING = ("score", "decision")
REPLAYED = ("transfer", "semi-white-box")
MONOTONE_TOLERANCE = CHECKS["monotone"].limit
# of means over all cases of a suite, in which there is less chance than in the few of a model's checks
STRONGER_TOLERANCE = 0.05


def rise(eps: Sequence[float], scores: Sequence[float]) -> Measured:
    """The largest rise of the score from one budget to a larger one.

    Args:
        eps: budgets.
        scores: mean score at each; rows into which no candidate of a smaller budget was carried.
    """
    order = np.argsort(np.asarray(eps, dtype=float), kind="stable")
    ordered = np.asarray(scores, dtype=float)[order]
    ordered = ordered[~np.isnan(ordered)]
    if not len(ordered):
        return nothing("nothing was scored")
    risen = ordered - np.minimum.accumulate(ordered)
    at = int(np.argmax(risen))
    return Measured(float(risen[at]), {"lowest_before": float(ordered[: at + 1].min()), "score": float(ordered[at])})


def stronger(white_box: Mapping[str, float], others: Mapping[str, float]) -> Measured:
    """How much lower the lowest mean score of attackers who know less is than that of all white-box attacks.

    Args:
        white_box: mean score per white-box attack.
        others: the same of attacks that see scores or decisions alone, or of images made on other models.
    """
    known = {name: score for name, score in white_box.items() if not np.isnan(score)}
    unknown = {name: score for name, score in others.items() if not np.isnan(score)}
    if not known or not unknown:
        return nothing("no white-box attack to compare with" if not known else "no such attack was run")
    best, other = min(known, key=known.__getitem__), min(unknown, key=unknown.__getitem__)
    numbers = {best: known[best], other: unknown[other]}
    return Measured(known[best] - unknown[other], numbers, note=f"{other} against {best}")


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
    return replace(CHECKS["monotone"], limit=tolerance).judge(rise(eps, scores))


def knows_less(rows: Sequence[Mapping[str, object]]) -> list[Finding]:
    """Black-box and transferred attacks must not be stronger than white-box ones of the same threat set and budget.

    Args:
        rows: mappings with ``attack``, ``access`` (as in a leaderboard) and ``adversarial``, the mean score.

    Returns:
        A finding each for attacks on scores or decisions, and for images made on other models.

    Example:
        >>> rows = [dict(attack="pgd", access="white-box", adversarial=0.7),
        ...         dict(attack="square", access="score", adversarial=0.4)]
        >>> [finding.flag for finding in knows_less(rows)]
        ['black-box-stronger=0.30', '']
    """

    def scores(*access: str) -> dict[str, float]:
        return {str(row["attack"]): float(row["adversarial"]) for row in rows if row["access"] in access}  # type: ignore[arg-type]

    known = scores("white-box")
    return [
        replace(CHECKS[name], limit=STRONGER_TOLERANCE).judge(stronger(known, scores(*access)))
        for name, access in (("black-box", QUERYING), ("transfer", REPLAYED))
    ]
