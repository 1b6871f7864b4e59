"""One perturbation for a data set: closed form on a linear model, ART's fooling rate, unseen images, ranges, masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from art.attacks.evasion import UniversalPerturbation
from builders import KINDS, SIDE, setting
from torch import nn

from medadv.adapters import MonaiClassifier
from medadv.attacks import CATALOGUE, create
from medadv.decisions import Multiclass
from medadv.intensities import Intensity

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(1, 4, 4)).astype(np.float32)


def linear(intensity=Intensity(0, 1)) -> MonaiClassifier:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.stack([torch.zeros(16), torch.from_numpy(WEIGHT).flatten()]))
        net[1].bias.copy_(torch.tensor([0.0, -0.5 * float(WEIGHT.sum())]))
    return MonaiClassifier(net, (1, 4, 4), decision=Multiclass(2), intensity=intensity)


def images(n=20, spread=0.1, shape=(1, 4, 4)) -> np.ndarray:
    return (0.5 + RNG.uniform(-spread, spread, (n, *shape))).astype(np.float32)


@pytest.mark.parametrize("targeted", [False, True])
def test_on_a_linear_model_the_optimum_is_the_shared_corner_or_direction(targeted):
    y = np.ones(20, dtype=int)
    wanted = 1 - y if targeted else y
    attack = create("universal", linear(), eps=0.05, targeted=targeted, batch_size=6, max_iter=3).fit(images(), wanted)
    assert np.array_equal(attack.perturbation, -np.float32(0.05) * np.sign(WEIGHT))
    attack = create("universal", linear(), eps=0.2, norm=2, targeted=targeted, batch_size=6, max_iter=6, keep="loss")
    attack.fit(images(), wanted)
    assert np.allclose(attack.perturbation, -0.2 * WEIGHT / np.linalg.norm(WEIGHT), atol=1e-5)


def test_it_fools_at_least_as_many_as_arts_universal_perturbation():
    estimator, x = linear(), images(40, spread=0.05)
    y = estimator.predict(x).argmax(1)
    x, y = x[y == 1], y[y == 1]
    eps = 0.02
    ours = create("universal", estimator, eps=eps, max_iter=5)
    art = UniversalPerturbation(
        estimator.as_classifier(saturate=True), attacker="fgsm", attacker_params={"eps": 0.01}, delta=0.01, max_iter=5,
        eps=eps, norm=np.inf, verbose=False,
    )  # fmt: skip
    fooled = [(estimator.predict(a.generate(x, y)).argmax(1) != y).mean() for a in (ours, art)]
    best = ((x - eps * np.sign(WEIGHT)).reshape(len(x), -1) @ WEIGHT.ravel() < 0.5 * WEIGHT.sum()).mean()
    assert fooled[0] == pytest.approx(best) and fooled[0] >= fooled[1] and best > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("norm", [np.inf, 2])
def test_unseen_cases_suffer_and_stay_in_ball_range_and_mask(kind, dims, norm):
    case = setting(kind, dims, cases=12)
    eps = 0.2 if norm == np.inf else 1.5
    attack = create("universal", case.estimator, eps=eps, norm=norm, max_iter=5, batch_size=3)
    fitted = attack.generate(case.x[:8], case.y[:8])
    assert np.array_equal(attack.apply(case.x[:8]), fitted)
    x_adv = attack.apply(case.x)
    assert case.scores(x_adv)[8:].mean() < case.scores(case.x)[8:].mean()
    assert case.scores(x_adv)[:8].mean() < case.scores(case.x)[:8].mean()
    change = (x_adv.astype(np.float64) - case.x).reshape(12, -1)
    assert (np.abs(change).max() if norm == np.inf else np.linalg.norm(change, axis=1).max()) <= eps
    assert x_adv.min() >= 0 and x_adv.max() <= 1 and x_adv.dtype == case.x.dtype
    mask = np.zeros((1, 1, *SIDE[dims]), dtype=bool)
    mask[..., :2] = True
    masked = attack.apply(torch.from_numpy(case.x), mask)
    assert isinstance(masked, torch.Tensor) and not (masked.numpy() != case.x)[..., 2:].any()
    inner = (case.x > 0.3) & (case.x < 0.7)  # away from the range all cases move by the same
    if norm == np.inf:
        assert np.allclose(np.where(inner, x_adv - case.x - attack.perturbation, 0), 0, atol=1e-6)


def test_the_best_epoch_by_mean_hard_score_is_kept():
    case = setting("voxel-class", cases=8)
    options = {"eps": 0.1, "eps_step": 0.09, "batch_size": 3}
    means = []
    for epochs in range(1, 6):
        last = create("universal", case.estimator, keep="last", max_iter=epochs, **options).generate(case.x, case.y)
        means.append(case.scores(last).mean())
    best = create("universal", case.estimator, max_iter=5, **options)
    assert case.scores(best.generate(case.x, case.y)).mean() == pytest.approx(min(means), abs=1e-6)
    assert min(means) < means[-1]  # the last is not the best here, so keeping matters
    batches = 3
    assert vars(best.passes) == {"forward": 2 * 5 * batches, "backward": 5 * batches}


def test_grids_and_channel_ranges_hold():
    case = setting("voxel-class", intensity=Intensity(-1024, 3071, unit="HU", window=(-175, 250), grid=(1, 0)))
    for norm, eps in ((np.inf, "10 HU"), (2, 60.0)):
        x_adv = create("universal", case.estimator, eps=eps, norm=norm, max_iter=2).generate(case.x, case.y)
        change = (x_adv.astype(np.float64) - case.x).reshape(3, -1)
        assert np.array_equal(x_adv, np.round(x_adv)) and change.any()
        assert (np.abs(change).max() if norm == np.inf else np.linalg.norm(change, axis=1).max()) <= float(
            str(eps).split()[0]
        )
    case = setting("voxel-class", channels=2, intensity=Intensity((0.0, -2.0), (1.0, 6.0)))
    x_adv = create("universal", case.estimator, eps="8/255", max_iter=4).generate(case.x, case.y)
    change = np.abs(x_adv.astype(np.float64) - case.x).max(axis=(0, 2, 3))
    assert np.allclose(change, [8 / 255, 64 / 255], rtol=1e-2) and (change <= [8 / 255, 64 / 255]).all()


def test_seeds_shuffle_and_repeat():
    case = setting("class", cases=9)
    made = [
        create("universal", case.estimator, eps=0.1, max_iter=2, batch_size=2, eps_step=0.03, seed=seed, keep="last")
        .fit(case.x, case.y).perturbation for seed in (0, 0, 1)
    ]  # fmt: skip
    assert np.array_equal(made[0], made[1]) and not np.array_equal(made[0], made[2])
    assert not CATALOGUE["universal"].independent


def test_bad_input_is_refused():
    case = setting("class")
    attack = create("universal", case.estimator, eps=0.1, max_iter=1)
    with pytest.raises(ValueError, match="no perturbation yet"):
        attack.apply(case.x)
    assert attack.perturbation is None
    attack.fit(case.x, case.y)
    with pytest.raises(ValueError, match="images of one shape"):
        attack.apply(np.zeros((2, 1, 8, 8), dtype=np.float32))
    with pytest.raises(ValueError, match="outside the intensity range"):
        attack.apply(case.x + 3)
    with pytest.raises(ValueError, match="max_iter=0"):
        create("universal", case.estimator, eps=0.1, max_iter=0)
    with pytest.raises(ValueError, match="compares voxels"):
        create("universal", case.estimator, eps=0.1, objective="dice")
    with pytest.raises(ValueError, match="eps='x'"):
        create("universal", case.estimator, eps=0.1, eps_step="x")
    with pytest.raises(ValueError, match="needs y"):
        create("universal", case.estimator, eps=0.1, targeted=True).fit(case.x)
