"""The cost command times the same work on both sides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.networks.nets import UNet

from medadv.attacks import create
from medadv.benchmarks.cost import EPS, STEPS, Subject, hand_loop, measure, median_interval
from medadv.benchmarks.cost_table import attack_costs, plain_passes
from medadv.threats import CaseRandom

TINY = {
    "image": Subject("image", lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, 2)), (1, 12, 12), 3),
    "voxels": Subject("voxels", lambda: UNet(3, 1, 2, (4, 8), (2,)), (1, 8, 8, 8), 2, segments=True),
}


@pytest.mark.parametrize("name", TINY)
def test_the_hand_loop_and_pgd_find_the_same_images(name):
    subject = TINY[name]
    estimator = subject.estimator()
    estimator.model.double()
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.random((subject.batch, *subject.shape)))
    y = torch.from_numpy(rng.integers(0, 2, (subject.batch, *(subject.shape[1:] if subject.segments else ()))))
    start = (2 * CaseRandom(0, range(subject.batch)).uniform(x) - 1) * EPS
    by_hand = hand_loop(estimator.network, x, y, (x + start).clamp(0, 1) - x, eps=EPS, step=EPS / 4, steps=STEPS)
    ours = create("pgd", estimator, eps=EPS, eps_step=EPS / 4, max_iter=STEPS).perturb(x, y)
    assert (by_hand - ours).abs().max() < 1e-9


@pytest.mark.parametrize("name", TINY)
def test_the_passes_are_counted_and_the_ratios_measured(name):
    row = measure(TINY[name], pairs=2, art_runs=1, progress=False)
    assert (row["forward_passes"], row["backward_passes"]) == (STEPS + 1, STEPS)
    assert 0 < row["ci_low"] <= row["ratio"] <= row["ci_high"]
    assert row["art_ratio"] > 0


def test_interval_of_the_median_holds_it():
    values = np.random.default_rng(0).normal(1, 0.1, 30)
    low, high = median_interval(values)
    assert low < np.median(values) < high


@pytest.mark.parametrize("subject", TINY)
def test_every_attack_is_timed_beside_the_passes_it_ran(subject):
    table = attack_costs(["pgd", "apgd-margin"], runs=2, subjects=[TINY[subject]], progress=False)
    ours = table[table.attack.isin(["pgd", "apgd-margin"])]
    assert ours.groupby("attack").norm.apply(list).to_dict() == {"apgd-margin": [np.inf, 2], "pgd": [np.inf, 2]}
    assert (ours.forward_passes == 11).all() and (ours.backward_passes == 10).all() and (ours.bar == 1.05).all()
    assert (ours.ratio > 0).all() and (ours.ci_low <= ours.ratio).all() and (ours.ratio <= ours.ci_high).all()


def test_what_can_not_be_timed_says_why():
    table = attack_costs(["pgd-dice"], runs=2, subjects=[TINY["image"]], progress=False)
    assert "not timed: attack 'pgd-dice' is for segmentation" in table.note.iloc[0]


def test_plain_passes_are_as_many_as_asked_for():
    count = {"forward": 0, "backward": 0}
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 2))

    def seen(module, inputs, output):
        count["forward"] += 1
        count["backward"] += output.requires_grad and inputs[0].requires_grad

    network.register_forward_hook(seen)
    plain_passes(network, torch.rand(2, 1, 3, 3), torch.tensor([0, 1]), forward=5, backward=3)
    assert count == {"forward": 5, "backward": 3}
