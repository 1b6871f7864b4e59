from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from medadv.benchmarks.statistics import mean_interval, paired_difference


def test_bound_at_the_floor_is_clopper_pearsons():
    interval = mean_interval(np.zeros(40), None)
    assert interval.bound and interval.low == 0
    assert interval.high == pytest.approx(1 - 0.05 ** (1 / 40))


def test_bound_at_the_ceiling_mirrors_the_floor():
    interval = mean_interval(np.ones(30), None)
    assert interval.bound and interval.high == 1
    assert interval.low == pytest.approx(0.05 ** (1 / 30))


@pytest.mark.parametrize(("positives", "bound"), [(4, True), (5, False)])
def test_fewer_than_five_patients_off_the_floor_give_a_bound(positives, bound):
    scores = np.zeros(40)
    scores[:positives] = 0.9
    assert mean_interval(scores, None).bound is bound


def test_cases_of_one_patient_are_no_independent_evidence():
    rng = np.random.default_rng(0)
    skill = rng.uniform(0.2, 0.9, 12)
    scores = np.repeat(skill, 5)
    patients = np.repeat([f"p{i}" for i in range(12)], 5)
    by_patient, by_case = mean_interval(scores, list(patients)), mean_interval(scores, None)
    assert by_patient.unit == "patient" and by_case.unit == "case"
    assert by_patient.high - by_patient.low > 1.5 * (by_case.high - by_case.low)


def test_unscored_cases_are_left_out():
    scores = np.array([0.2, 0.4, 0.6, 0.8, 0.5, 0.3, np.nan, np.nan])
    assert mean_interval(scores, None) == mean_interval(scores[:6], None)


def test_no_scored_case_gives_no_interval():
    interval = mean_interval(np.array([np.nan, np.nan]), None)
    assert np.isnan(interval.low) and np.isnan(interval.high)


@pytest.mark.parametrize("mean", [0.3, 0.5, 0.8])
def test_coverage_over_patients(mean):
    rng = np.random.default_rng(1)
    hits, runs = 0, 150
    for run in range(runs):
        skill = stats.beta.rvs(4 * mean, 4 * (1 - mean), size=40, random_state=rng)
        owner = np.repeat(np.arange(40), rng.integers(1, 6, 40))
        scores = np.clip(skill[owner] + rng.normal(0, 0.02, len(owner)), 0, 1)
        interval = mean_interval(scores, [str(o) for o in owner], seed=run)
        hits += interval.low <= mean <= interval.high
    assert hits / runs >= 0.88  # 95 % minus what a bootstrap of 40 patients and 150 runs may miss


def test_paired_difference_sees_what_overlapping_intervals_hide():
    rng = np.random.default_rng(2)
    a = rng.uniform(0.1, 0.9, 40)
    b = a - 0.05 + rng.normal(0, 0.02, 40)
    difference, interval = paired_difference(a, b, None)
    assert difference == pytest.approx(0.05, abs=0.01)
    assert interval.low > 0
    assert mean_interval(a, None).low < mean_interval(b.clip(0, 1), None).high


def test_too_few_patients_give_no_paired_interval():
    _, interval = paired_difference(np.ones(8), np.zeros(8), ["a", "b"] * 4)
    assert interval.bound and (interval.low, interval.high) == (-1.0, 1.0)
