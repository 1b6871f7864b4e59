"""Intervals contain the true mean as often as they say: 40 patients, 1 to 5 images each, 1,000 runs, fixed draws."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from medadv.benchmarks.crossed import seeds_interval
from medadv.benchmarks.paired import paired_test
from medadv.benchmarks.statistics import mean_interval

RUNS, PATIENTS = 1000, 40
Draw = Callable[[np.random.Generator, np.ndarray], np.ndarray]


def right_or_wrong(mean: float, alike: float) -> Draw:
    """Images of a patient are right or wrong alike: correlation ``alike`` within a patient."""
    a, b = mean * (1 / alike - 1), (1 - mean) * (1 / alike - 1)

    def draw(rng: np.random.Generator, owner: np.ndarray) -> np.ndarray:
        return (rng.random(len(owner)) < rng.beta(a, b, PATIENTS)[owner]).astype(float)

    return draw


def dice(mean: float, narrow: float, floor: float = 0.0) -> Draw:
    """Dice that varies between and within patients; ``floor``: share of patients with no overlap at all."""
    of_rest = mean / (1 - floor)

    def draw(rng: np.random.Generator, owner: np.ndarray) -> np.ndarray:
        skill = rng.beta(narrow * of_rest, narrow * (1 - of_rest), PATIENTS)[owner]
        scores = rng.beta(np.maximum(20 * skill, 1e-6), np.maximum(20 * (1 - skill), 1e-6))
        return np.where((rng.random(PATIENTS) < floor)[owner], 0.0, scores)

    return draw


# name: true mean, generator, least coverage
GENERATORS = {
    "right .5": (0.5, right_or_wrong(0.5, 0.3), 0.93),
    "right .3": (0.3, right_or_wrong(0.3, 0.1), 0.93),
    "right .8": (0.8, right_or_wrong(0.8, 0.5), 0.93),
    "right .9": (0.9, right_or_wrong(0.9, 0.3), 0.90),
    "right .05": (0.05, right_or_wrong(0.05, 0.3), 0.90),
    "right .02": (0.02, right_or_wrong(0.02, 0.1), 0.90),
    "dice .3": (0.3, dice(0.3, 3), 0.93),
    "dice .5, half at the floor": (0.5, dice(0.5, 3, 0.4), 0.93),
    "dice .8": (0.8, dice(0.8, 4), 0.93),
    "dice .95, narrow": (0.95, dice(0.95, 60), 0.90),
    "dice .95, skewed": (0.95, dice(0.95, 3), 0.90),
    "dice .07, skewed": (0.07, dice(0.07, 3), 0.90),
    "dice .02, very skewed": (0.02, dice(0.02, 1), 0.90),
    "dice .05, most at the floor": (0.05, dice(0.05, 3, 0.8), 0.90),
}


def owners(rng: np.random.Generator) -> np.ndarray:
    return np.repeat(np.arange(PATIENTS), rng.integers(1, 6, PATIENTS))


@pytest.mark.parametrize("name", GENERATORS)
def test_interval_contains_the_mean_as_often_as_it_says(name):
    mean, draw, least = GENERATORS[name]
    rng = np.random.default_rng(20)
    hits = bounds = undefined = 0
    for run in range(RUNS):
        owner = owners(rng)
        scores = draw(rng, owner)
        interval = mean_interval(scores, owner, seed=run)
        hits += interval.low <= mean <= interval.high
        bounds += interval.bound
        off = min(len(set(owner[scores > 0])), len(set(owner[scores < 1])))
        undefined += off < 5
        assert interval.bound or off >= 5, "no bootstrap is defined there, and the bound is not flagged"
    print(f"{name}: coverage {hits / RUNS:.3f}, bounds {bounds / RUNS:.3f}")
    assert hits / RUNS >= least
    assert undefined <= bounds <= undefined + RUNS / 100  # also where all patients are alike but for rounding


@pytest.mark.parametrize(("seeds", "apart"), [(2, 0.02), (3, 0.05), (5, 0.05)])
def test_interval_over_seeds_contains_the_mean_of_the_method(seeds, apart):
    rng = np.random.default_rng(21)
    hits = naive = 0
    for run in range(RUNS):
        owner = owners(rng)
        skill = 0.6 + rng.normal(0, 0.1, PATIENTS)[owner] + rng.normal(0, apart, (seeds, 1))
        scores = np.clip(skill + rng.normal(0, 0.03, (seeds, len(owner))), 0, 1)
        interval = seeds_interval(scores, owner, seed=run)
        hits += interval.low <= 0.6 <= interval.high
        if run < 200:
            alone = mean_interval(scores[0], owner, seed=run)
            naive += alone.low <= 0.6 <= alone.high
    print(f"{seeds} seeds, {apart}: coverage {hits / RUNS:.3f}; of one network {naive / 200:.3f}")
    assert hits / RUNS >= 0.93
    assert naive / 200 < hits / RUNS


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_difference_that_is_none_is_rarely_found(seeds):
    rng = np.random.default_rng(22)
    found = covered = 0
    for run in range(RUNS):
        owner = owners(rng)
        # asymmetric: many patients a little better, few much worse, none on average
        shift = np.where(rng.random(PATIENTS) < 0.8, 0.02, -0.08)[owner]
        noise = rng.normal(0, 0.02, (2, seeds, 1)) if seeds > 1 else 0
        a, b = rng.normal(0.6, 0.05, (2, seeds, len(owner))) + noise
        test = paired_test(a + shift, b, owner, seed=run)
        found += test.p < 0.05
        covered += test.interval.low <= 0 <= test.interval.high
    print(f"{seeds} seeds: false alarms {found / RUNS:.3f}, coverage {covered / RUNS:.3f}")
    assert found / RUNS <= 0.06
    assert covered / RUNS >= 0.93
