"""Intervals that resample patients, and the bound that stands in where a bootstrap is not defined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

FEWEST_INFORMATIVE = 5
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A 95 % interval of a mean.

    Attributes:
        low: lower end.
        high: upper end.
        unit: what was resampled: ``"patient"``, or ``"case"`` where there are no patient ids.
        bound: True if it is a one-sided bound instead of a bootstrap interval.
    """

    low: float
    high: float
    unit: str
    bound: bool = False


def mean_interval(scores: np.ndarray, patients: Sequence[str] | None, *, seed: int = 0) -> Interval:
    """95 % interval of the mean score in [0, 1] over cases, resampling patients with all their cases.

    BCa bootstrap. With fewer than five patients off the floor (all other scores 0) or off the ceiling (all others 1) a
    bootstrap says too little: then a one-sided Clopper-Pearson bound on the share of such patients is given, flagged.

    Args:
        scores: ``(N,)``; NaN (unscored) cases are left out.
        patients: patient of each case; None: every case on its own.
        seed: of the resampling.

    Example:
        >>> import numpy as np
        >>> interval = mean_interval(np.zeros(40), None)
        >>> round(interval.high, 4), interval.bound
        (0.0722, True)
    """
    unit = "case" if patients is None else "patient"
    sums, counts = _by_patient(scores, patients)
    n = len(sums)
    if n == 0:
        return Interval(np.nan, np.nan, unit)
    off_floor, off_ceiling = int((sums > 0).sum()), int((sums < counts).sum())
    mean = float(sums.sum() / counts.sum())
    if off_floor < FEWEST_INFORMATIVE:
        return Interval(0.0, max(mean, _upper_share(off_floor, n)), unit, bound=True)
    if off_ceiling < FEWEST_INFORMATIVE:
        return Interval(min(mean, 1 - _upper_share(off_ceiling, n)), 1.0, unit, bound=True)
    low, high = _bootstrap(sums, counts, seed)
    return Interval(low, high, unit)


def paired_difference(
    a: np.ndarray, b: np.ndarray, patients: Sequence[str] | None, *, seed: int = 0
) -> tuple[float, Interval]:
    """Mean of ``a - b`` over cases with its 95 % interval, resampling patients; cases unscored in either are left out.

    Example:
        >>> import numpy as np
        >>> difference, interval = paired_difference(np.linspace(.5, .9, 20), np.linspace(.1, .3, 20), None)
        >>> round(difference, 2), interval.low > 0.4
        (0.5, True)
    """
    unit = "case" if patients is None else "patient"
    sums, counts = _by_patient(np.asarray(a) - np.asarray(b), patients)
    if len(sums) == 0:
        return np.nan, Interval(np.nan, np.nan, unit)
    mean = float(sums.sum() / counts.sum())
    if len(sums) < FEWEST_INFORMATIVE:
        return mean, Interval(-1.0, 1.0, unit, bound=True)
    low, high = _bootstrap(sums, counts, seed)
    return mean, Interval(low, high, unit)


def _by_patient(values: np.ndarray, patients: Sequence[str] | None) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of scored cases of each patient."""
    values = np.asarray(values, dtype=float)
    scored = ~np.isnan(values)
    owner = np.arange(len(values)) if patients is None else np.unique(np.asarray(patients), return_inverse=True)[1]
    counts = np.bincount(owner[scored], minlength=owner.max(initial=-1) + 1)
    sums = np.bincount(owner[scored], weights=values[scored], minlength=len(counts))
    return sums[counts > 0], counts[counts > 0]


def _upper_share(successes: int, n: int) -> float:
    """One-sided 95 % Clopper-Pearson upper bound of a share."""
    return 1.0 if successes >= n else float(stats.beta.ppf(0.95, successes + 1, n - successes))


def _bootstrap(sums: np.ndarray, counts: np.ndarray, seed: int) -> tuple[float, float]:
    if np.ptp(sums / counts) == 0:
        value = float(sums[0] / counts[0])
        return value, value

    def ratio(s: np.ndarray, c: np.ndarray, axis: int = -1) -> np.ndarray:
        return s.sum(axis=axis) / c.sum(axis=axis)

    result = stats.bootstrap(
        (sums, counts.astype(float)), ratio, paired=True, vectorized=True, n_resamples=RESAMPLES, method="BCa",
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
