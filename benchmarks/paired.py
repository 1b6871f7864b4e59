"""Whether one model is better than another on the same cases: paired tests, corrected, and what ranks they leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medadv.benchmarks.crossed import CrossedMean, crossed_mean
from medadv.benchmarks.statistics import (
    FEWEST_INFORMATIVE,
    LEVEL,
    Interval,
    by_patient,
    difference_interval,
    unit_of,
)

FLIPS = 9999
_ALL_FLIPS_UP_TO = 13


@dataclass(frozen=True)
class PairedTest:
    """Two models on the same cases.

    Attributes:
        difference: mean of first minus second.
        interval: of it, 95 %, uncorrected.
        p: two-sided p-value of no difference, uncorrected.
        seeds, cases: how many training seeds and cases it is over.
        unscored: cases left out, as one of the models has no score there.
    """

    difference: float
    interval: Interval
    p: float
    seeds: int
    cases: int
    unscored: int


def paired_test(a: np.ndarray, b: np.ndarray, patients: Sequence[str] | None, *, seed: int = 0) -> PairedTest:
    """Compares two models on the same cases.

    One training seed: the interval is the paired bootstrap of patients, the p-value that of sign flips of patients
    (:func:`sign_flip_p`). Several: both are of the variance of seeds and patients
    (:class:`~medadv.benchmarks.crossed.CrossedMean`), the same seed of both trainings being a pair.

    Args:
        a: scores ``(K, N)``: a row per training seed, a column per case; NaN where unscored.
        b: of the other model, the same seeds and cases.
        patients: patient of each case; None: every case on its own.
        seed: of the resampling.

    Raises:
        ValueError: shapes that differ.

    Example:
        >>> a = np.linspace(.5, .9, 20)
        >>> found = paired_test(a[None], a[None] - .1, None)
        >>> round(found.difference, 2), found.p < .001
        (0.1, True)
    """
    a, b = (np.atleast_2d(np.asarray(scores, dtype=float)) for scores in (a, b))
    if a.shape != b.shape:
        raise ValueError(f"scores {a.shape} and {b.shape} are no pairs; give the same seeds and cases of both models.")
    differences = a - b
    scored = ~np.isnan(differences).any(0)
    kept = differences[:, scored]
    owners = None if patients is None else np.asarray(patients)[scored].tolist()
    unscored = int((~scored).sum())
    if not scored.any():
        return PairedTest(np.nan, Interval(np.nan, np.nan, unit_of(patients)), np.nan, len(a), 0, unscored)
    sums, counts = by_patient(kept.mean(0), owners)
    both = crossed_mean(kept, owners) if len(a) > 1 else None
    if both is not None and int((sums != 0).sum()) >= FEWEST_INFORMATIVE and both.variance > np.finfo(float).eps ** 2:
        mean, (interval, p) = both.mean, _over_seeds(both, f"{unit_of(patients)} x seed")
    else:
        mean, interval = difference_interval(sums, counts, unit_of(patients), seed)
        p = sign_flip_p(sums, seed=seed)
    return PairedTest(mean, interval, p, len(a), int(scored.sum()), unscored)


def _over_seeds(both: CrossedMean, unit: str) -> tuple[Interval, float]:
    half = both.quantile(1 - LEVEL) * both.variance**0.5
    return Interval(max(-1.0, both.mean - half), min(1.0, both.mean + half), unit), both.p_value()


def sign_flip_p(sums: np.ndarray, *, seed: int = 0) -> float:
    """Two-sided p-value that patients' differences are as likely one way as the other.

    Exact where the two models could be exchanged within a patient, however few patients there are; the smallest
    possible is 2 / 2^P. (A bootstrap's p-value is too small with few patients.) All flips up to 13 patients, else 9,999
    drawn ones and the observed one (Phipson and Smyth 2010).

    Args:
        sums: sum of the differences of each patient's cases, ``(P,)``.
        seed: of the flips.

    Example:
        >>> sign_flip_p(np.array([.1, .2, .1, .3, .2, .1]))
        0.03125
    """
    moved = sums[sums != 0]
    if not len(moved):
        return 1.0
    if len(moved) <= _ALL_FLIPS_UP_TO:
        bits = (np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved))) & 1
        extra = 0
    else:
        bits = np.random.default_rng(seed).integers(0, 2, (FLIPS, len(moved)), dtype=np.int8)
        extra = 1
    flipped = np.abs((2.0 * bits - 1) @ moved)
    as_far = int((flipped >= abs(moved.sum()) * (1 - 1e-9)).sum())
    return (as_far + extra) / (len(bits) + extra)


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """P-values corrected for being several (Holm 1979); NaN is no test and stays.

    Example:
        >>> [round(float(p), 3) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    given = np.asarray(p, dtype=float)
    corrected = np.full(given.shape, np.nan)
    order = np.argsort(given)[: int((~np.isnan(given)).sum())]
    steps = given[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected


def rank_sets(better: np.ndarray) -> np.ndarray:
    """Best and worst rank that corrected tests leave each model (arXiv 2401.15205).

    Args:
        better: ``(M, M)`` bool: row significantly better than column.

    Returns:
        ``(M, 2)`` from 1 (best) to M: one more than the models that are significantly better, and M less those that
        are significantly worse.

    Example:
        >>> rank_sets(np.array([[0, 1, 1], [0, 0, 0], [0, 0, 0]], dtype=bool)).tolist()
        [[1, 1], [2, 3], [2, 3]]
    """
    return np.stack([1 + better.sum(0), len(better) - better.sum(1)], 1)
