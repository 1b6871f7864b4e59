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


def test_paired_difference_sees_what_overlapping_intervals_hide():
    rng = np.random.default_rng(2)
    a = rng.uniform(0.1, 0.9, 40)
    b = a - 0.05 + rng.normal(0, 0.02, 40)
    difference, interval = paired_difference(a, b, None)
    assert difference == pytest.approx(0.05, abs=0.01)
    assert interval.low > 0
    assert mean_interval(a, None).low < mean_interval(b.clip(0, 1), None).high


def test_few_patients_that_differ_give_a_bound_of_their_share():
    a = np.zeros(40)
    a[:3], a[3] = 0.8, -0.5
    _, interval = paired_difference(a, np.zeros(40), None)
    assert interval.bound
    assert interval.high == pytest.approx(stats.beta.ppf(0.975, 4, 37))
    assert interval.low == pytest.approx(-stats.beta.ppf(0.975, 2, 39))


def test_two_patients_give_a_bound_that_says_nothing():
    _, interval = paired_difference(np.ones(8), np.zeros(8), ["a", "b"] * 4)
    assert interval.bound and interval.high == 1.0 and interval.low < 0


def test_patients_that_are_all_alike_count_as_a_case_each():
    interval = mean_interval(np.full(40, 0.5), ["p", "q", "r", "s", "t", "u", "v", "w"] * 5)
    assert interval.bound
    assert (interval.low, interval.high) == pytest.approx(stats.binomtest(4, 8).proportion_ci())


def test_scores_that_are_no_shares_are_refused():
    with pytest.raises(ValueError, match="no shares"):
        mean_interval(np.array([0.2, 1.7]), None)


def test_a_tight_mean_near_the_ceiling_keeps_a_tight_interval():
    scores = np.random.default_rng(4).normal(0.93, 0.02, 40)
    interval = mean_interval(scores, None)
    assert interval.high - interval.low < 0.02
