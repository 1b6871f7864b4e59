"""What training seeds and patients together say of a mean, where each network meets each patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from medadv.benchmarks.statistics import (
    FEWEST_INFORMATIVE,
    LEVEL,
    Interval,
    binomial_ends,
    by_patient,
    effective_cases,
    end_bound,
    mean_interval,
    patients_off_the_end,
    unit_of,
    variance_of_ratio,
)

_SMALLEST_P = 1e-12


@dataclass(frozen=True)
class CrossedMean:
    """Mean over training seeds and cases, with its variance when both seeds and patients are drawn.

    Attributes:
        mean: over seeds, then over cases.
        of_patients, of_seeds: the parts of its variance. Chance that a network has with a patient is counted in both,
            so their sum is no smaller than the true one (the denominator of Clark's min F', 1973).
        seeds: how many.
        sums, counts: per patient ``(P,)``, over the mean of the seeds.
    """

    mean: float
    of_patients: float
    of_seeds: float
    seeds: int
    sums: np.ndarray
    counts: np.ndarray

    @property
    def variance(self) -> float:
        """Of the mean."""
        return self.of_patients + self.of_seeds

    def quantile(self, p: float) -> float:
        """How many standard errors a two-sided test at level ``p`` needs.

        Student's t of patients and of seeds, weighted by their variances (Cochran and Cox 1950): with few seeds this
        keeps its level, which Satterthwaite's degrees of freedom do not.
        """
        weights = np.array([self.of_patients, self.of_seeds]) / self.variance
        return float(weights @ stats.t.isf(p / 2, [len(self.sums) - 1, self.seeds - 1]))

    def p_value(self) -> float:
        """Two-sided p-value of the mean being 0; no smaller than 1e-12."""
        distance = abs(self.mean) / self.variance**0.5
        if distance >= self.quantile(_SMALLEST_P):
            return _SMALLEST_P
        return float(optimize.brentq(lambda p: self.quantile(p) - distance, _SMALLEST_P, 1.0))


def crossed_mean(values: np.ndarray, patients: Sequence[str] | None) -> CrossedMean:
    """Mean and variance of values of K >= 2 training seeds and N cases, all scored.

    Args:
        values: ``(K, N)``.
        patients: patient of each case; None: every case on its own.

    Example:
        >>> both = crossed_mean(np.array([[.2, .4, .6], [.4, .6, .8]]), None)
        >>> round(both.mean, 2), round(both.of_patients, 4), round(both.of_seeds, 4), round(both.quantile(0.05), 1)
        (0.5, 0.0133, 0.01, 7.9)
    """
    sums, counts = by_patient(values.mean(0), patients)
    of_seeds = float(values.mean(1).var(ddof=1)) / len(values)
    mean = float(sums.sum() / counts.sum())
    return CrossedMean(mean, variance_of_ratio(sums, counts), of_seeds, len(values), sums, counts)


def seeds_interval(scores: np.ndarray, patients: Sequence[str] | None, *, seed: int = 0) -> Interval:
    """95 % interval of the mean score in [0, 1] that another training and other patients would have.

    Of one seed it is :func:`~medadv.benchmarks.statistics.mean_interval`, which holds for that network alone. Two or
    three networks are too few to be resampled (see the page on statistics), so of several it is Korn and Graubard's
    interval of the variance of both. A case that is unscored by one network is left out.

    Args:
        scores: ``(K, N)``: a row per training seed, a column per case.
        patients: patient of each case; None: every case on its own.
        seed: of the resampling.

    Example:
        >>> scores = np.stack([np.linspace(.2, .8, 20), np.linspace(.3, .9, 20)])
        >>> wide, narrow = seeds_interval(scores, None), seeds_interval(scores[:1], None)
        >>> wide.unit, wide.high - wide.low > 2 * (narrow.high - narrow.low)
        ('case x seed', True)
    """
    scores = np.atleast_2d(np.asarray(scores, dtype=float))
    if len(scores) == 1:
        return mean_interval(scores[0], patients, seed=seed)
    unit = f"{unit_of(patients)} x seed"
    scored = ~np.isnan(scores).any(0)
    if not scored.any():
        return Interval(np.nan, np.nan, unit)
    both = crossed_mean(scores[:, scored], None if patients is None else np.asarray(patients)[scored].tolist())
    bound = end_bound(both.sums, both.counts)
    if bound is not None:
        return Interval(*bound, unit, bound=True)
    if both.variance <= np.finfo(float).eps ** 2:
        return Interval(*binomial_ends(both.mean, len(both.sums)), unit, bound=True)
    cases = effective_cases(both.mean, both.variance, both.quantile(1 - LEVEL))
    if patients_off_the_end(both.sums, both.counts) < FEWEST_INFORMATIVE:
        cases = min(cases, float(both.counts.sum()))
    return Interval(*binomial_ends(both.mean, cases), unit)
