"""What training seeds and patients together say of a mean, where each network meets each patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medadv.benchmarks.statistics import (
    FEWEST_INFORMATIVE,
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


@dataclass(frozen=True)
class CrossedMean:
    """Mean over training seeds and cases, with its variance when both seeds and patients are drawn.

    Attributes:
        mean: over seeds, then over cases.
        variance: of patients plus of seeds. Chance that a network has with a patient is counted in both, so it is no
            smaller than the true one (the denominator of Clark's min F', 1973).
        freedom: degrees of freedom by Satterthwaite; close to the number of seeds where these differ most.
        sums, counts: per patient ``(P,)``, over the mean of the seeds.
    """

    mean: float
    variance: float
    freedom: float
    sums: np.ndarray
    counts: np.ndarray


def crossed_mean(values: np.ndarray, patients: Sequence[str] | None) -> CrossedMean:
    """Mean and variance of values of K >= 2 training seeds and N cases, all scored.

    Args:
        values: ``(K, N)``.
        patients: patient of each case; None: every case on its own.

    Example:
        >>> both = crossed_mean(np.array([[.2, .4, .6], [.4, .6, .8]]), None)
        >>> round(both.mean, 2), round(both.freedom, 2)
        (0.5, 2.88)
    """
    sums, counts = by_patient(values.mean(0), patients)
    of_patients = variance_of_ratio(sums, counts)
    of_seeds = float(values.mean(1).var(ddof=1)) / len(values)
    variance = of_patients + of_seeds
    parts = of_patients**2 / (len(sums) - 1) + of_seeds**2 / (len(values) - 1) if len(sums) > 1 else np.nan
    freedom = variance**2 / parts if parts else float(len(sums) - 1)
    return CrossedMean(float(sums.sum() / counts.sum()), variance, freedom, sums, counts)


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
    cases = effective_cases(both.mean, both.variance, both.freedom)
    if patients_off_the_end(both.sums, both.counts) < FEWEST_INFORMATIVE:
        cases = min(cases, float(both.counts.sum()))
    return Interval(*binomial_ends(both.mean, cases), unit)
