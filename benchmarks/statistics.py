"""Intervals of mean scores that resample patients, and the bound that stands in where a bootstrap is not defined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

FEWEST_INFORMATIVE = 5
RESAMPLES = 2000
LEVEL = 0.95
# nearer to 0 or 1 than this a bootstrap of few patients covers too little (SAS SURVEYFREQ switches there as well)
NEAR_AN_END = 0.25


@dataclass(frozen=True)
class Interval:
    """A 95 % interval of a mean.

    Attributes:
        low: lower end.
        high: upper end.
        unit: what was resampled: ``"patient"``, or ``"case"`` where there are no patient ids; with training seeds
            ``"patient x seed"`` or ``"case x seed"``.
        bound: True if it is a bound that holds without a bootstrap, as too few patients say anything.
    """

    low: float
    high: float
    unit: str
    bound: bool = False


def mean_interval(scores: np.ndarray, patients: Sequence[str] | None, *, seed: int = 0) -> Interval:
    """95 % interval of the mean score in [0, 1] over cases, resampling patients with all their cases.

    Bias-corrected and accelerated bootstrap (Efron 1987) at levels that allow for few patients (arXiv 1411.5279). Where
    the mean is below .25 or above .75, each end is the outer one of it and of Korn and Graubard's interval (1998): the
    exact binomial interval of as many independent cases as the spread between patients is worth; of no more than there
    are where fewer than five patients' worth carry what is off the end, as their spread then tells too little.

    With fewer than five patients off the floor (all other scores 0) or off the ceiling (all others 1) a bootstrap says
    too little: then a one-sided Clopper-Pearson bound on the share of such patients is given, flagged. Where all
    patients have the same mean, each counts as one case of a binomial interval, flagged as well.

    Args:
        scores: ``(N,)``; NaN (unscored) cases are left out.
        patients: patient of each case; None: every case on its own.
        seed: of the resampling.

    Raises:
        ValueError: a score outside [0, 1].

    Example:
        >>> import numpy as np
        >>> interval = mean_interval(np.zeros(40), None)
        >>> round(interval.high, 4), interval.bound
        (0.0722, True)
    """
    values = np.asarray(scores, dtype=float)
    _check_scores(values)
    unit = unit_of(patients)
    sums, counts = by_patient(values, patients)
    n = len(sums)
    if n == 0:
        return Interval(np.nan, np.nan, unit)
    mean = float(sums.sum() / counts.sum())
    bound = end_bound(sums, counts)
    if bound is not None:
        return Interval(*bound, unit, bound=True)
    variance = variance_of_ratio(sums, counts)
    if variance <= np.finfo(float).eps ** 2:
        return Interval(*binomial_ends(mean, n), unit, bound=True)
    low, high = bca(sums, counts, seed)
    if not NEAR_AN_END <= mean <= 1 - NEAR_AN_END:
        cases = effective_cases(mean, variance, float(stats.t.ppf((1 + LEVEL) / 2, n - 1)))
        if patients_off_the_end(sums, counts) < FEWEST_INFORMATIVE:
            cases = min(cases, float(counts.sum()))
        outer = binomial_ends(mean, cases)
        low, high = min(low, outer[0]), max(high, outer[1])
    return Interval(low, high, unit)


def amount_interval(values: np.ndarray, patients: Sequence[str] | None, *, seed: int = 0) -> Interval:
    """95 % interval of the mean of amounts without an upper end, such as volumes, resampling patients.

    BCa bootstrap; NaN where fewer than five patients have anything but 0, or all the same, as nothing bounds amounts.

    Args:
        values: ``(N,)``; NaN (unscored) cases are left out.
        patients: patient of each case; None: every case on its own.
        seed: of the resampling.

    Example:
        >>> import numpy as np
        >>> amount_interval(np.array([0.0, 3.0, 0.0, 0.0, 0.0, 0.0]), None).low
        nan
    """
    sums, counts = by_patient(values, patients)
    if int((sums != 0).sum()) < FEWEST_INFORMATIVE or np.ptp(sums / counts) == 0:
        return Interval(np.nan, np.nan, unit_of(patients))
    return Interval(*bca(sums, counts, seed), unit_of(patients))


def paired_difference(
    a: np.ndarray, b: np.ndarray, patients: Sequence[str] | None, *, seed: int = 0
) -> tuple[float, Interval]:
    """Mean of ``a - b`` over cases with its 95 % interval, resampling patients; cases unscored in either are left out.

    With fewer than five patients that differ, no bootstrap is defined: each end is the two-sided Clopper-Pearson bound
    on the share of patients for which ``a`` is better, or worse, flagged.

    Example:
        >>> import numpy as np
        >>> difference, interval = paired_difference(np.linspace(.5, .9, 20), np.linspace(.1, .3, 20), None)
        >>> round(difference, 2), interval.low > 0.4
        (0.5, True)
    """
    sums, counts = by_patient(np.asarray(a, dtype=float) - np.asarray(b, dtype=float), patients)
    return difference_interval(sums, counts, unit_of(patients), seed)


def difference_interval(sums: np.ndarray, counts: np.ndarray, unit: str, seed: int = 0) -> tuple[float, Interval]:
    """Mean difference in [-1, 1] and its interval, from the sum and number of cases of each patient ``(P,)``."""
    n = len(sums)
    if n == 0:
        return np.nan, Interval(np.nan, np.nan, unit)
    mean = float(sums.sum() / counts.sum())
    if int((sums != 0).sum()) < FEWEST_INFORMATIVE:
        better, worse = int((sums > 0).sum()), int((sums < 0).sum())
        outer = (1 + LEVEL) / 2
        low, high = -upper_share(worse, n, outer), upper_share(better, n, outer)
        return mean, Interval(min(mean, low), max(mean, high), unit, bound=True)
    if variance_of_ratio(sums, counts) <= np.finfo(float).eps ** 2:
        return mean, Interval(mean, mean, unit, bound=True)
    return mean, Interval(*bca(sums, counts, seed), unit)


def unit_of(patients: Sequence[str] | None) -> str:
    """What is resampled."""
    return "case" if patients is None else "patient"


def _check_scores(values: np.ndarray) -> None:
    scored = values[~np.isnan(values)]
    if ((scored < 0) | (scored > 1)).any():
        raise ValueError(
            f"scores from {scored.min():.4g} to {scored.max():.4g} are no shares; intervals are of scores from 0 to 1 "
            "(NaN where a case is unscored)."
        )


def by_patient(values: np.ndarray, patients: Sequence[str] | None) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of scored cases of each patient who has any, ``(P,)`` each."""
    values = np.asarray(values, dtype=float)
    scored = ~np.isnan(values)
    owner = np.arange(len(values)) if patients is None else np.unique(np.asarray(patients), return_inverse=True)[1]
    counts = np.bincount(owner[scored], minlength=owner.max(initial=-1) + 1)
    sums = np.bincount(owner[scored], weights=values[scored], minlength=len(counts))
    return sums[counts > 0], counts[counts > 0].astype(float)


def end_bound(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float] | None:
    """The one-sided bound at the floor or the ceiling; None where enough patients are off both."""
    n, mean = len(sums), float(sums.sum() / counts.sum())
    off_floor, off_ceiling = int((sums > 0).sum()), int((sums < counts).sum())
    if off_floor < FEWEST_INFORMATIVE and off_floor <= off_ceiling:
        return 0.0, max(mean, upper_share(off_floor, n, LEVEL))
    if off_ceiling < FEWEST_INFORMATIVE:
        return min(mean, 1 - upper_share(off_ceiling, n, LEVEL)), 1.0
    return None


def upper_share(successes: int, n: int, level: float) -> float:
    """One-sided Clopper-Pearson upper bound of a share.

    Example:
        >>> round(upper_share(0, 40, 0.95), 4)
        0.0722
    """
    return 1.0 if successes >= n else float(stats.beta.ppf(level, successes + 1, n - successes))


def variance_of_ratio(sums: np.ndarray, counts: np.ndarray) -> float:
    """Variance of the mean over cases when patients are drawn, by linearisation (Cochran 1977)."""
    n = len(sums)
    rest = sums - sums.sum() / counts.sum() * counts
    return float(n / (n - 1) * (rest**2).sum() / counts.sum() ** 2) if n > 1 else np.nan


def effective_cases(mean: float, variance: float, quantile: float) -> float:
    """How many independent yes-or-no cases would know a mean as well (Korn and Graubard 1998).

    Args:
        mean: in (0, 1).
        variance: of it.
        quantile: standard errors to the end of its interval; more than the normal 1.96 make fewer cases.
    """
    shrink = stats.norm.ppf((1 + LEVEL) / 2) / quantile
    return float(mean * (1 - mean) / variance * shrink**2)


def patients_off_the_end(sums: np.ndarray, counts: np.ndarray) -> float:
    """How many patients, all alike, would carry as unevenly what is off the nearer end (Kish's effective number).

    Example:
        >>> patients_off_the_end(np.array([1.0, 1.0, 0.0, 0.0]), np.full(4, 5.0))
        2.0
    """
    off = sums if 2 * sums.sum() < counts.sum() else counts - sums
    return float(off.sum() ** 2 / (off**2).sum())


def binomial_ends(mean: float, cases: float) -> tuple[float, float]:
    """Clopper-Pearson interval of a share in a number of cases, neither of which need be whole.

    Example:
        >>> [round(end, 3) for end in binomial_ends(0.2, 10)]
        [0.025, 0.556]
    """
    successes, tail = mean * cases, (1 - LEVEL) / 2
    low = float(stats.beta.ppf(tail, successes, cases - successes + 1)) if mean > 0 else 0.0
    high = float(stats.beta.ppf(1 - tail, successes + 1, cases - successes)) if mean < 1 else 1.0
    return low, high


def expanded_level(n: int) -> float:
    """Level at which a percentile interval of ``n`` patients is as wide as one by Student's t (arXiv 1411.5279).

    Example:
        >>> round(expanded_level(40), 3), round(expanded_level(10), 3)
        (0.959, 0.983)
    """
    tail = stats.norm.cdf(-np.sqrt(n / (n - 1)) * stats.t.ppf((1 + LEVEL) / 2, n - 1))
    return float(1 - 2 * tail)


def bca(sums: np.ndarray, counts: np.ndarray, seed: int) -> tuple[float, float]:
    """BCa interval of the mean over cases, drawing patients with all their cases."""

    def ratio(s: np.ndarray, c: np.ndarray, axis: int = -1) -> np.ndarray:
        return s.sum(axis=axis) / c.sum(axis=axis)

    result = stats.bootstrap(
        (sums, counts), ratio, paired=True, vectorized=True, n_resamples=RESAMPLES, method="BCa",
        confidence_level=expanded_level(len(sums)), rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
