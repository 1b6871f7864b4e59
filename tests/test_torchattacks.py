"""Attacks of torchattacks through medadv: right, or refused with the reason; never an exception from inside."""

from __future__ import annotations

import io
import random
import sys
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from builders import Net
from monai.data import MetaTensor
from networks import SHAPES, BrightnessClassifier, BrightnessSegmenter, awkward, bright_boxes
from torch import nn

from medadv.adapters import MonaiClassifier, MonaiMultilabelClassifier, MonaiSegmenter, TorchAttack
from medadv.adapters.torchattacks import RECIPES
from medadv.attacks import catalogue, create, recipes
from medadv.decisions import Multiclass, Multilabel
from medadv.intensities import Intensity
from medadv.threats import LInfBall

torchattacks = pytest.importorskip("torchattacks")

EPS = 0.06  # in a unit range; the images lie 0.01 from the decision
CT = Intensity(-1024, 3071, unit="HU", window=(-175, 250))
KINDS = ("four classes", "two classes", "labels", "voxels")
# cells with an attack that is right there; all others must be refused
EVERYWHERE = {"FGSM", "BIM", "RFGSM", "PGD", "EOTPGD", "FFGSM", "GN"}
MOMENTUM = {"MIFGSM", "NIFGSM", "SINIFGSM", "VMIFGSM", "VNIFGSM", "UPGD"}
FLAT_VOXELS = EVERYWHERE | MOMENTUM | {"PGDL2"}
ANY_RANK = EVERYWHERE | {"FAB", "SPSA", "CW", "DeepFool", "EADL1", "EADEN", "SparseFool"}
TWO_CLASSES = ANY_RANK | FLAT_VOXELS | {
    "DIFGSM", "TIFGSM", "APGD", "Square", "PGDRS", "PGDRSL2", "PIFGSM", "OnePixel", "Pixle",
}  # fmt: skip
FOUR_CLASSES = TWO_CLASSES | {"APGDT", "AutoAttack", "Jitter", "JSMA"}
RIGHT = {
    "four classes": {2: FOUR_CLASSES, 3: ANY_RANK | {"JSMA"}},
    "two classes": {2: TWO_CLASSES, 3: ANY_RANK},
    "labels": {2: set(), 3: set()},
    "voxels": {2: FLAT_VOXELS, 3: EVERYWHERE},
}
CELLS = [(name, kind, dims) for name in RECIPES for kind in KINDS for dims in (2, 3)]
QUICK = {
    "SPSA": {"nb_iter": 10, "lr": EPS / 5, "nb_sample": 64},
    "EADL1": {"max_iterations": 10, "binary_search_steps": 6},
    "EADEN": {"max_iterations": 10, "binary_search_steps": 6},
    "GN": {"std": 0.05},
    "PGDRS": {"noise_sd": 0.05},
    "PGDRSL2": {"noise_sd": 0.05},
    "VMIFGSM": {"steps": 4, "N": 2, "alpha": 0.03},
    "VNIFGSM": {"steps": 4, "N": 2, "alpha": 0.03},
    "SINIFGSM": {"steps": 4, "m": 2, "alpha": 0.03},
    "Square": {"n_queries": 100},
    "FAB": {"steps": 4},
}


def images(dims: int, channels: int = 1, level: float = 0.01, spread: float = 0.2) -> np.ndarray:
    """Two images ``(2, C, *S)`` of much contrast whose means lie ``level`` above and below 0.5."""
    noise = np.random.default_rng(0).uniform(-spread, spread, (2, channels, *SHAPES[dims]))
    noise -= noise.mean(axis=tuple(range(1, noise.ndim)), keepdims=True)
    return (0.5 + level * np.array([1, -1]).reshape(2, 1, *[1] * dims) + noise).astype(np.float32)


def model_of(kind: str, dims: int, channels: int = 1, intensity: Intensity = Intensity(0, 1), level: float = 0.01):
    """An estimator with a known break in brightness, its images in [0, 1] and its diagnosis of them."""
    shape = (channels, *SHAPES[dims])
    scale: Any = {
        "intensity": intensity,
        "input_transform": lambda x: (x - intensity.low) / (intensity.high - intensity.low),
    }
    if kind == "voxels":
        x, y = bright_boxes(dims)
        return MonaiSegmenter(BrightnessSegmenter(dims), shape, decision=Multiclass(2, background=0), **scale), x, y
    x = images(dims, channels, level)
    if kind == "labels":
        network = BrightnessClassifier((40.0, -40.0, 20.0), channels=channels)
        return (
            MonaiMultilabelClassifier(network, shape, decision=Multilabel(3), **scale),
            x,
            np.array([[1, 0, 1], [0, 1, 0]]),
        )
    weights, biases = (
        ((-30.0, 30.0), (3.0, 3.0)) if kind == "two classes" else ((-30.0, 30.0, -10.0, 9.0), (3.0, 3.0, 2.5, 2.4))
    )
    network = BrightnessClassifier(weights, biases, channels)
    return MonaiClassifier(network, shape, decision=Multiclass(len(weights)), **scale), x, np.array([1, 0])


def options_of(name: str, dims: int, channels: int = 1, unit: float = 1.0) -> dict[str, Any]:
    """Options that make an attack quick, with its budget in the unit of an image whose range is ``unit`` wide."""
    entry = RECIPES[name].entry
    options = dict(QUICK.get(name, {}))
    for option in {*entry.of_eps, *entry.of_range} & set(options):
        options[option] *= unit
    if entry.norms and not entry.minimal:
        size = channels * int(np.prod(SHAPES[dims]))
        options["eps"] = unit * (EPS if entry.norms[0] == np.inf else 0.6 * EPS * size**0.5)
    return options


def attack_on(name: str, kind: str, dims: int, intensity: Intensity = Intensity(0, 1), **changes):
    """An attack with images and the reference or, where it must be directed, the diagnosis wanted."""
    channels = RECIPES[name].entry.channels or 1
    level = 1e-4 if name == "Pixle" else 0.001 if name == "OnePixel" else 0.01
    estimator, x, y = model_of(kind, dims, channels if "classes" in kind else 1, intensity, level)
    width = intensity.highs[0] - intensity.lows[0]
    x = (intensity.low + x.astype(np.float64) * width).astype(np.float32)
    options = {**options_of(name, dims, channels, width), **changes}
    if RECIPES[name].entry.needs_target and "classes" in kind:
        # it only brightens
        return TorchAttack(name, estimator, targeted=True, **options), x[1:], np.array([1]), estimator
    return TorchAttack(name, estimator, **options), x, y, estimator


def distance(name: str, change: np.ndarray, norm: float) -> float:
    flat = np.abs(change.astype(np.float64)).reshape(len(change), -1)
    return float(flat.max() if norm == np.inf else np.sqrt((flat**2).sum(1)).max())


def share_wrong(estimator, x: np.ndarray, y: np.ndarray) -> float:
    return float((estimator.predict(x).argmax(1) != np.tile(y, (len(x) // len(y), *[1] * (y.ndim - 1)))).mean())


def test_the_table_names_every_class_of_torchattacks():
    assert set(RECIPES) == set(torchattacks.__all__)
    assert len(torchattacks.__all__) == 39


@pytest.mark.parametrize("name", [n for n in RECIPES if not RECIPES[n].entry.refused])
def test_the_defaults_are_those_of_torchattacks(name):
    entry = RECIPES[name].entry
    made = getattr(torchattacks, name)(nn.Linear(1, 2)).__dict__
    renamed = {"rho": "thr_decr", "resc_schedule": "rescale_schedule"}
    if name == "Pixle":
        renamed = {
            "x_dimensions": "p1_x_dimensions",
            "y_dimensions": "p1_y_dimensions",
            "max_iterations": "max_patches",
        }
    for option, default in entry.options.items():
        if option in ("noise_type", "nb_iter"):  # "guassian" there; one step there
            continue
        assert made[renamed.get(option, option)] == default, option
    for option, share in entry.of_eps.items():
        assert made[option] / made["eps"] == pytest.approx(share)


@pytest.mark.parametrize(("name", "kind", "dims"), CELLS)
def test_every_cell_is_right_or_refused_with_a_reason(name, kind, dims):
    if name not in RIGHT[kind][dims]:
        with pytest.raises(ValueError, match=rf"^torchattacks/{name} can't be .+: .+\. Use .+\.$"):
            attack_on(name, kind, dims)
        return
    attack, x, y, estimator = attack_on(name, kind, dims)
    before = x.copy()
    x_adv = attack.generate(x, y)
    assert np.array_equal(x, before) and x_adv.shape == x.shape and x_adv.dtype == x.dtype
    assert np.isfinite(x_adv).all() and x_adv.min() >= 0 and x_adv.max() <= 1 and (x_adv != x).any()
    if attack.budget is not None:
        assert distance(name, x_adv - x, attack.norm) <= attack.budget.eps * (1 + 1e-6)
        assert distance(name, x_adv - x, attack.norm) >= 0.2 * attack.budget.eps or name == "FAB"  # the nearest
    if name == "GN":
        return
    reached = [share_wrong(estimator, shown, y) for shown in (x_adv, noisy(x, x_adv - x))]
    attacked, by_chance = (1 - share for share in reached) if attack.targeted else reached
    assert attacked >= (0.75 if kind == "voxels" else 1.0)
    assert by_chance < 0.7


def noisy(x: np.ndarray, change: np.ndarray) -> np.ndarray:
    """Forty times the images, changed by as much in each voxel but with random signs."""
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (40, *x.shape))
    return np.clip(x + np.abs(change) * signs, 0, 1).astype(np.float32).reshape(-1, *x.shape[1:])


@pytest.mark.parametrize(("name", "text"), [
    ("MIFGSM", "mean over axes 1 to 3"), ("PGDL2", "leave the budget"), ("APGD", "three dimensions"),
])  # fmt: skip
def test_what_is_silently_wrong_on_volumes_is_refused_and_why(name, text):
    with pytest.raises(ValueError, match=text):
        attack_on(name, "four classes", 3)
    # also where the estimator does not tell its shape until images come
    attack, x, y, _ = attack_on(name, "four classes", 2)
    with pytest.raises(ValueError, match=text):
        attack.recipe.check_shape((2, 1, 6, 6, 6))


def test_the_momentum_norm_really_is_wrong_on_volumes_and_right_on_images():
    """The measured error behind the refusal: in 3D one mean per column of the last axis."""
    for dims, equal in ((2, True), (3, False)):
        torch.manual_seed(0)
        side = (8, 8, 8)[:dims]
        net = Net(dims, 3, voxels=False, scale=0.1).eval()
        x = torch.rand(2, 1, *side)
        y = net(x).argmax(1)
        theirs = torchattacks.MIFGSM(net, eps=0.1, alpha=0.02, steps=8)(x, y).numpy()
        estimator = MonaiClassifier(net, (1, *side), decision=Multiclass(3))
        ours = create("mi-fgsm", estimator, eps=0.1, eps_step=0.02, max_iter=8, keep="last").generate(
            x.numpy(), y.numpy()
        )
        assert ((np.abs(theirs - ours) > 1e-4).mean() < 1e-3) == equal


@pytest.mark.parametrize("name", sorted(FOUR_CLASSES))
def test_what_torchattacks_gives_on_images_from_0_to_1_is_what_comes_back(name, monkeypatch):
    attack, x, y, estimator = attack_on(name, "four classes", 2)
    x, y, seeds = x[:1], y[:1], []
    with monkeypatch.context() as patch:
        patch.setattr(
            torch, "manual_seed", lambda seed, set_seed=torch.manual_seed: (seeds.append(seed), set_seed(seed))
        )
        ours = attack.generate(x, y)
    torch.manual_seed(seeds[0]), np.random.seed(seeds[0]), random.seed(seeds[0])
    seeded = {"seed": seeds[0]} if attack.entry.seeded else {}
    library = getattr(torchattacks, name)(estimator.model.eval(), **attack._parameters, **seeded)
    if attack.targeted:
        library.set_mode_targeted_by_label(quiet=True)
    theirs = library(torch.from_numpy(x), torch.from_numpy(y)).detach().numpy()
    assert np.abs(ours - theirs).max() < 1e-6


def images_and_net(side=(12, 12), seed: int = 0, classes: int = 3):
    torch.manual_seed(seed)
    net = Net(2, classes, voxels=False).eval()
    x = 0.2 + 0.6 * torch.rand(4, 1, *side)
    with torch.no_grad():
        net.last.bias -= net(x).median(0).values / 4
    return net, x.numpy(), net(x).argmax(1).numpy()


@pytest.mark.parametrize(("ours", "theirs", "options", "torch_options"), [
    ("fgsm", "FGSM", {}, {}),
    ("pgd", "BIM", {"max_iter": 10, "eps_step": 0.004, "num_random_init": 0}, {"steps": 10, "alpha": 0.004}),
    ("pgd", "PGD", {"max_iter": 10, "eps_step": 0.004, "num_random_init": 0},
     {"steps": 10, "alpha": 0.004, "random_start": False}),
    ("mi-fgsm", "MIFGSM", {"max_iter": 10, "eps_step": 0.004, "decay": 0.9},
     {"steps": 10, "alpha": 0.004, "decay": 0.9}),
    ("pgd", "PGDL2", {"max_iter": 10, "eps_step": 0.05, "num_random_init": 0, "norm": 2},
     {"steps": 10, "alpha": 0.05, "random_start": False}),
])  # fmt: skip
@pytest.mark.parametrize("task", ["images", "voxels"])
def test_medadvs_own_attacks_equal_torchattacks(ours, theirs, options, torch_options, task):
    net, x, y = images_and_net()
    decision = Multiclass(3)
    if task == "voxels":
        net.voxels = True
        y = net(torch.from_numpy(x)).argmax(1).numpy()
        estimator: Any = MonaiSegmenter(net, (1, 12, 12), decision=decision)
    else:
        estimator = MonaiClassifier(net, (1, 12, 12), decision=decision)
    eps = 0.2 if theirs == "PGDL2" else 0.02
    mine = create(ours, estimator, eps=eps, keep="last", **{"objective": "ce", **options}).generate(x, y)
    other = TorchAttack(theirs, estimator, eps=eps, **torch_options).generate(x, y)
    assert np.abs(other - x).max() > 0.015
    assert np.abs(mine - other).max() < 1e-6


class Seen(nn.Module):
    """A network that remembers the images it was shown."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.images: list[np.ndarray] = []

    def forward(self, x):
        self.images.append(x.detach().numpy().copy())
        return self.net(x)


@pytest.mark.parametrize("eps", [0.01, 0.2])
def test_auto_pgd_walks_the_same_way_from_the_same_start(eps, monkeypatch):
    net, x, y = images_and_net()
    draw = 2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) - 1
    draw /= draw.abs().amax((1, 2, 3), keepdim=True)
    paths, found = [], []
    for own in (False, True):
        seen = Seen(net)
        estimator = MonaiClassifier(seen, (1, 12, 12), decision=Multiclass(3))
        with monkeypatch.context() as patch:
            if own:
                patch.setattr(LInfBall, "start", lambda self, random: self.project(eps * draw))
                found.append(create("apgd-ce", estimator, eps=eps, max_iter=20, keep="last").generate(x, y))
                paths.append(seen.images)
            else:
                patch.setattr(torch, "rand", lambda shape: (draw + 1) / 2)
                found.append(TorchAttack("APGD", estimator, eps=eps, steps=20).generate(x, y))
                paths.append(seen.images[1:-1])  # it looks at the clean images first and ends with a gradient
    assert len(paths[0]) == len(paths[1]) == 20
    assert max(np.abs(theirs - mine).max() for theirs, mine in zip(*paths, strict=True)) < 1e-6
    assert np.abs(found[0] - found[1]).max() < 1e-6 and np.abs(found[0] - x).max() > 0.9 * eps


def test_hounsfield_units_are_divided_by_the_range_and_come_back():
    for name in ("FGSM", "PGD", "MIFGSM", "APGD", "FAB", "Square", "PGDL2", "CW", "SPSA"):
        attack, x, y, estimator = attack_on(name, "four classes", 2, CT)
        x_adv = attack.generate(x, y)
        assert x_adv.min() >= -1024 and x_adv.max() <= 3071
        assert share_wrong(estimator, x_adv, y) == 1.0, name
        if attack.budget is not None:
            moved = distance(name, x_adv.astype(np.float64) - x, attack.norm)
            assert 0.15 * attack.budget.eps <= moved <= attack.budget.eps * (1 + 1e-6), name


@pytest.mark.parametrize(("eps", "radius"), [("100 HU", 100.0), (100.0, 100.0), ("8/255", 425 * 8 / 255)])
def test_budgets_and_steps_are_read_with_their_unit(eps, radius):
    estimator, x, y = model_of("four classes", 2, intensity=CT)
    x = (-1024 + 4095 * x).astype(np.float32)
    attack = TorchAttack("BIM", estimator, eps=eps, alpha="3 HU", steps=2)
    assert attack._parameters["eps"] == pytest.approx(radius / 4095)
    assert attack._parameters["alpha"] == pytest.approx(3 / 4095)
    assert np.abs(attack.generate(x, y) - x).max() == pytest.approx(6, abs=1e-3)
    assert TorchAttack("BIM", estimator, eps=eps)._parameters["alpha"] == pytest.approx(radius / 4095 / 4)
    assert TorchAttack("JSMA", estimator, targeted=True)._parameters["theta"] == 1.0
    assert TorchAttack("PIFGSM", model_of("four classes", 2, 3, CT)[0], eps=eps)._parameters == {
        "num_iter_set": 10, "amplification": 10.0, "max_epsilon": pytest.approx(radius / 4095)
    }  # fmt: skip


@pytest.mark.parametrize("name", ["FGSM", "PGDL2", "Square", "GN", "JSMA", "OnePixel"])
def test_a_storage_grid_is_kept(name):
    stored = Intensity(-1024, 3071, unit="HU", window=(-175, 250), grid=(1, 0))
    attack, x, y, _ = attack_on(name, "four classes", 2, CT)
    estimator, _, _ = model_of("four classes", 2, intensity=stored, level=0.001 if name == "OnePixel" else 0.01)
    attack = TorchAttack(name, estimator, targeted=attack.targeted, **options_of(name, 2, unit=4095))
    x_adv = attack.generate(np.round(x), y)
    assert np.array_equal(x_adv, np.round(x_adv)) and (x_adv != np.round(x)).any()
    if attack.budget is not None:
        assert distance(name, x_adv.astype(np.float64) - np.round(x), attack.norm) <= attack.budget.eps


@pytest.mark.parametrize("name", ["CW", "DeepFool", "FAB", "EADL1", "EADEN", "SparseFool"])
def test_attacks_that_stop_at_the_boundary_are_refused_on_a_grid(name):
    estimator, _, _ = model_of("four classes", 2, intensity=Intensity(0, 1, grid=(1 / 255, 0)))
    with pytest.raises(ValueError, match="storage grid: it stops a hair behind the decision boundary"):
        TorchAttack(name, estimator, **options_of(name, 2))


def state_of(net: nn.Module) -> dict[str, Any]:
    return {
        "flags": [m.training for m in net.modules()],
        "requires_grad": [p.requires_grad for p in net.parameters()],
        "grads": [None if p.grad is None else p.grad.tolist() for p in net.parameters()],
        "values": [v.tolist() for v in net.state_dict().values()],
        "torch": torch.random.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist() + [np.random.get_state()[2]],
        "python": random.getstate(),
    }


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("name", sorted(FOUR_CLASSES))
def test_the_model_and_the_generators_are_left_as_found(name, fails):
    channels = RECIPES[name].entry.channels or 1
    net = awkward(2, 4, segments=False, channels=channels)
    estimator = MonaiClassifier(net, (channels, 8, 8), decision=Multiclass(4))
    net.train()
    net.frozen_norm.eval()
    x = images(2, channels)
    options = options_of(name, 2, channels)
    directed = RECIPES[name].entry.needs_target
    shorter = {"SparseFool": {"steps": 1}, "AutoAttack": {"version": "rand"}, "Pixle": {"restarts": 3}}.get(name, {})
    attack = TorchAttack(name, estimator, targeted=directed, **{**options, **shorter})
    y = np.array([1, 2]) if directed else None
    net.fails = fails and name != "GN"
    before = state_of(net)
    out = io.StringIO()
    with redirect_stdout(out):
        if net.fails:
            with pytest.raises(RuntimeError, match="the network failed"):
                attack.generate(x, np.array([1, 2]))
        else:
            attack.generate(x, y)
    after = state_of(net)
    for what, value in before.items():
        assert after[what] == value, what
    assert out.getvalue() == ""


def test_the_models_own_diagnosis_stands_in_for_a_missing_reference_and_one_hot_is_read():
    attack, x, y, _ = attack_on("PGD", "four classes", 2)
    expected = attack.generate(x, y)
    assert np.array_equal(attack.generate(x), expected)
    assert np.array_equal(attack.generate(x, np.eye(4)[y]), expected)


@pytest.mark.parametrize("name", ["PGD", "FFGSM", "GN", "SPSA", "Square", "Pixle", "OnePixel"])
def test_the_seed_decides_all_draws(name):
    small = {"alpha": 0.001} if name == "PGD" else {}  # so that it does not end in the same corner from everywhere
    attack, x, y, _ = attack_on(name, "four classes", 2, **small)
    first = attack.generate(x, y)
    torch.manual_seed(99), np.random.seed(99)
    assert np.array_equal(attack.generate(x, y), first)
    attack.set_params(seed=5)
    assert not np.array_equal(attack.generate(x, y), first)


@pytest.mark.parametrize("name", [n for n in sorted(FOUR_CLASSES) if RECIPES[n].independent])
def test_cases_are_independent_where_the_catalogue_says_so(name):
    attack, x, y, _ = attack_on(name, "four classes", 2)
    whole = attack.generate(x, y)
    for case in range(len(x)):
        alone = attack.generate(x[case : case + 1], y[case : case + 1], ids=[case])
        assert np.allclose(alone, whole[case : case + 1], rtol=0, atol=1e-6)


def test_shared_draws_are_declared():
    assert {n for n in FOUR_CLASSES if RECIPES[n].independent} == {
        "FGSM", "BIM", "MIFGSM", "NIFGSM", "SINIFGSM", "PIFGSM", "Square", "CW", "DeepFool", "EADL1", "EADEN",
        "SparseFool", "JSMA", "OnePixel", "Pixle",
    }  # fmt: skip


@pytest.mark.parametrize("name", [n for n in sorted(FOUR_CLASSES) if RECIPES[n].directed and n != "GN"])
def test_targeted_attacks_reach_their_target(name):
    attack, x, y, estimator = attack_on(name, "four classes", 2)
    if not attack.targeted:
        attack, x, y, estimator = attack_on(name, "four classes", 2, targeted=True)
        y = 1 - y
    assert share_wrong(estimator, attack.generate(x, y), y) == 0


@pytest.mark.parametrize(("name", "text"), [
    ("FAB", "returns the images as they came"), ("Jitter", "not reached yet"), ("APGD", "no targeted form"),
])  # fmt: skip
def test_a_target_is_refused_where_it_would_be_wrong(name, text):
    with pytest.raises(ValueError, match=f"can't be targeted: .*{text}"):
        attack_on(name, "four classes", 2, targeted=True)
    with pytest.raises(ValueError, match=r"without targeted=True: .*class \(y \+ 1\) % 10"):
        TorchAttack("JSMA", model_of("four classes", 2)[0])


def test_segmentations_can_be_targeted_and_voxels_ignored():
    attack, x, y, estimator = attack_on("PGD", "voxels", 3, targeted=True)
    assert share_wrong(estimator, attack.generate(x, 1 - y), 1 - y) < 0.05
    decision = Multiclass(2, background=0, ignore_index=255)
    network = BrightnessSegmenter(3)
    marked = MonaiSegmenter(network, (1, *SHAPES[3]), decision=decision)
    y = np.where(np.arange(y.shape[-1]) < 3, 255, y)
    y[1] = 255
    x_adv = TorchAttack("BIM", marked, eps=EPS).generate(x, y)
    assert np.array_equal(x_adv[..., :3], x[..., :3])  # the network looks at each voxel by itself
    assert np.array_equal(x_adv[1], x[1]) and share_wrong(estimator, x_adv[:1, ..., 3:], y[:1, ..., 3:]) > 0.9


def test_minimum_norm_attacks_give_back_what_they_find_too_far_away():
    attack, x, y, estimator = attack_on("DeepFool", "four classes", 2)
    found = attack.generate(x, y)
    size = distance("DeepFool", found - x, 2)
    near = TorchAttack("DeepFool", estimator, eps=2 * size).generate(x, y)
    assert np.abs(near - found).max() < 1e-6
    assert np.array_equal(TorchAttack("DeepFool", estimator, eps=0.5 * size).generate(x, y), x)


def test_deepfool_and_cw_find_the_closed_form_distance():
    """Of a linear model: |f_0 - f_k| / ||w_0 - w_k||, and DeepFool goes 2 % further."""
    estimator, x, y = model_of("two classes", 2)
    exact = 0.01 * np.sqrt(64)
    deepfool = TorchAttack("DeepFool", estimator).generate(x, y)
    assert distance("", deepfool - x, 2) == pytest.approx(1.02 * exact, rel=1e-3)
    cw = TorchAttack("CW", estimator, steps=200, lr=0.001).generate(x, y)
    assert exact <= distance("", cw - x, 2) < 1.2 * exact


def test_cw_is_right_where_other_logits_are_negative():
    """Its own formula compares with 0 instead of the greatest other logit; shifted logits make it right."""
    network = BrightnessClassifier((60.0, 10.0), (-5.0, -5.0))
    x = images(2)[:1]
    theirs = torchattacks.CW(network, steps=50)(torch.from_numpy(x), torch.tensor([0]))
    assert int(network(theirs).argmax(1)) == 0
    estimator = MonaiClassifier(network, (1, 8, 8), decision=Multiclass(2))
    assert share_wrong(estimator, TorchAttack("CW", estimator, steps=50).generate(x, np.array([0])), np.array([0])) == 1


def test_cw_is_refused_where_voxels_could_not_move():
    attack, x, y, _ = attack_on("CW", "four classes", 2)
    x[0, 0, :4] = 0.0
    with pytest.raises(ValueError, match="25 % of their voxels at the ends of the intensity range"):
        attack.generate(x, y)


class Flat(nn.Module):
    """No gradient for bright images."""

    def forward(self, x):
        mean = x.flatten(1).mean(1)
        value = torch.where(mean > 0.5, mean.detach(), mean)
        return torch.stack([20 * (value - 0.5), torch.zeros_like(value), -20 * (value - 0.5)], 1) + 0 * x.sum()


def test_a_momentum_attack_that_dies_of_a_zero_gradient_is_told():
    estimator = MonaiClassifier(Flat(), (1, 8, 8), decision=Multiclass(3))
    x = images(2, level=0.2, spread=0.01)
    with pytest.warns(UserWarning, match="1 of 2 cases was NaN or infinite.*: bright"):
        TorchAttack("MIFGSM", estimator, eps=EPS).generate(x, np.array([0, 2]), ids=["bright", "dark"])


def test_more_than_rounding_beyond_the_budget_is_an_error(monkeypatch):
    def too_far(self, images, labels):
        return (images + 1.01 * self.eps).clamp(0, 1)

    attack, x, y, _ = attack_on("FGSM", "four classes", 2)
    monkeypatch.setattr(torchattacks.FGSM, "forward", too_far)
    with pytest.raises(RuntimeError, match="more than eps=0.06"):
        attack.generate(x, y)


def test_the_same_attack_by_name_of_the_catalogue():
    estimator, x, y = model_of("four classes", 2)
    attack = create("torchattacks/MIFGSM", estimator, eps="15/255", steps=3)
    assert isinstance(attack, TorchAttack) and attack.name == "torchattacks/MIFGSM"
    assert np.array_equal(attack.generate(x, y), TorchAttack("MIFGSM", estimator, eps="15/255", steps=3).generate(x, y))
    assert set(catalogue()["name"]) >= {f"torchattacks/{name}" for name in torchattacks.__all__}


def test_what_is_named_instead_exists():
    for recipe in RECIPES.values():
        assert recipe.alternatives and set(recipe.alternatives) <= set(recipes()), recipe.name


def test_tensors_meta_and_float64_are_kept():
    attack, x, y, _ = attack_on("FGSM", "four classes", 2)
    meta = MetaTensor(torch.from_numpy(x), meta={"patient": "p1"})
    out = attack.perturb(meta, y)
    assert isinstance(out, MetaTensor) and out.meta["patient"] == "p1"
    with torch.no_grad():
        double = attack.generate(x.astype(np.float64), y)
    assert double.dtype == np.float64 and np.abs(double - x).max() <= EPS
    assert np.abs(out.as_tensor().numpy() - double).max() < 1e-6


def test_voxels_that_were_left_alone_keep_their_value_to_the_last_bit():
    attack, x, y, _ = attack_on("OnePixel", "four classes", 2, CT)
    assert ((attack.generate(x, y) != x).reshape(2, -1).sum(1) == 1).all()


def test_queries_and_passes_are_counted():
    attack, x, y, _ = attack_on("SPSA", "four classes", 2)
    attack.generate(x, y)
    assert attack.queries.tolist() == [2 * 64 * 10] * 2 and vars(attack.passes) == {"forward": 20, "backward": 0}
    attack, x, y, _ = attack_on("PGD", "four classes", 2)
    attack.generate(x, y)
    assert attack.queries.tolist() == [10, 10] and vars(attack.passes) == {"forward": 10, "backward": 10}


def test_a_budget_of_zero_returns_the_images():
    for name in ("PGD", "APGD", "SPSA", "DeepFool"):
        attack, x, y, _ = attack_on(name, "four classes", 2, **{**QUICK.get(name, {}), "eps": 0})
        assert np.array_equal(attack.generate(x, y), x)


def test_a_stock_art_classifier_is_attacked_with_its_preprocessing():
    network = BrightnessClassifier(
        (-3.0, 3.0), (1.0, 1.0)
    )  # of images standardised to mean 0.5 and a tenth of the width
    stock = PyTorchClassifier(
        network,
        nn.CrossEntropyLoss(),
        (1, 8, 8),
        2,
        clip_values=(-5, 5),
        preprocessing=(np.float32(-5.0), np.float32(10.0)),
    )
    x = (10 * images(2) - 5).astype(np.float32)
    x_adv = TorchAttack("PGD", stock, eps=10 * EPS).generate(x, np.array([1, 0]))
    assert np.abs(x_adv - x).max() <= 10 * EPS and x_adv.min() >= -5 and x_adv.max() <= 5
    assert (stock.predict(x).argmax(1) == [1, 0]).all() and (stock.predict(x_adv).argmax(1) == [0, 1]).all()


def test_a_one_logit_model_is_attacked_as_two_classes():
    estimator = MonaiClassifier(BrightnessClassifier((40.0,)), (1, 8, 8), decision=Multilabel(1))
    x = images(2)
    x_adv = TorchAttack("APGD", estimator, eps=EPS).generate(x, np.array([1, 0]))
    assert share_wrong(estimator, x_adv, np.array([1, 0])) == 1


@pytest.mark.parametrize(("name", "options", "error", "text"), [
    ("MIFGSN", {"eps": EPS}, ValueError, "did you mean"),
    ("MIFGSM", {}, TypeError, "needs eps="),
    ("CW", {"eps": -1}, ValueError, "not negative"),
    ("OnePixel", {"eps": EPS}, TypeError, "has no budget; leave eps out"),
    ("MIFGSM", {"eps": EPS, "max_iter": 3}, TypeError, "option of torchattacks/MIFGSM 'max_iter' is unknown"),
    ("MIFGSM", {"eps": EPS, "steps": 0}, ValueError, "steps=0 must be a whole number of at least 1"),
    ("MIFGSM", {"eps": EPS, "alpha": 0}, ValueError, "alpha=0 must be greater than 0"),
    ("MIFGSM", {"eps": EPS, "alpha": "3 HU"}, ValueError, "in HU, but the data have no unit"),
    ("MIFGSM", {"eps": EPS, "decay": float("nan")}, ValueError, "decay=nan must be a finite number"),
    ("MIFGSM", {"eps": EPS, "keep": "score"}, ValueError, "chooses what it returns"),
    ("MIFGSM", {"eps": EPS, "norm": 2}, ValueError, "with norm 2: it bounds norm inf; it knows no other ball"),
    ("FAB", {"eps": EPS, "norm": 1}, ValueError, "its L1 form fails"),
    ("Square", {"eps": EPS, "norm": 2}, ValueError, "24 x 24"),
    ("APGD", {"eps": EPS, "loss": "mse"}, ValueError, "choose one of ce, dlr"),
    ("PGD", {"eps": EPS, "random_start": 1}, ValueError, "random_start=1 must be True or False"),
    ("DIFGSM", {"eps": EPS, "resize_rate": 1.0}, ValueError, "from 0.5 to 0.99"),
    ("EADL1", {"max_iterations": 9}, ValueError, "at least 10"),
    ("Pixle", {"x_dimensions": (4, 2)}, ValueError, "whole number of at least 4"),
    ("Pixle", {"x_dimensions": 4}, ValueError, "two whole numbers"),
    ("PGDRS", {"eps": EPS}, TypeError, "needs noise_sd="),
    ("PGDRS", {"eps": EPS, "noise_sd": 0.1, "noise_type": "pink"}, ValueError, "noise_type"),
    ("GN", {}, TypeError, "needs std="),
])  # fmt: skip
def test_bad_options_are_refused_in_a_sentence(name, options, error, text):
    with pytest.raises(error, match=text):
        TorchAttack(name, model_of("four classes", 2)[0], **options)


def test_models_and_images_it_is_not_right_for_are_refused():
    estimator, x, y = model_of("four classes", 2)
    with pytest.raises(ValueError, match="held inside a mask: torchattacks changes the whole image. Use mi-fgsm"):
        TorchAttack("MIFGSM", estimator, eps=EPS).generate(x, y, mask=np.ones((1, 1, 8, 8), dtype=bool))
    with pytest.raises(ValueError, match="used on 1 channels: its kernel is made for 3"):
        TorchAttack("TIFGSM", estimator, eps=EPS)
    with pytest.raises(ValueError, match="loss='dlr' on 2 classes"):
        TorchAttack("APGD", model_of("two classes", 2)[0], eps=EPS, loss="dlr")
    oblong = MonaiClassifier(BrightnessClassifier((-30.0, 30.0)), (1, 8, 6), decision=Multiclass(2))
    with pytest.raises(ValueError, match="8 x 6 images: it is written for square images"):
        TorchAttack("DIFGSM", oblong, eps=EPS)
    large = MonaiClassifier(BrightnessClassifier((-30.0, 30.0, 0.0)), (1, 65, 65), decision=Multiclass(3))
    with pytest.raises(ValueError, match="used on images of 4225 values"):
        TorchAttack("JSMA", large, targeted=True)
    ranges = Intensity((0.0, -2.0), (1.0, 6.0))
    two = MonaiClassifier(
        BrightnessClassifier((-30.0, 30.0), channels=2), (2, 8, 8), decision=Multiclass(2), intensity=ranges
    )
    with pytest.raises(ValueError, match="channels with a range each"):
        TorchAttack("FGSM", two, eps=EPS)
    with pytest.raises(ValueError, match="outside the intensity range"):
        TorchAttack("FGSM", estimator, eps=EPS).generate((x - 0.5) * 6, y)


class Handmade:
    """A victim that is no module."""

    decision, intensity, segments, deterministic = Multiclass(4), Intensity(0, 1), False, True

    def __init__(self, victim):
        self.inner, self.passes, self.device = victim, victim.passes, victim.device

    def logits(self, x):
        return self.inner.logits(x)

    def differentiate(self, x, loss):
        return self.inner.differentiate(x, loss)

    def attacked(self):
        return self.inner.attacked()


def test_a_victim_that_is_no_module_is_refused():
    with pytest.raises(TypeError, match="the whole model as one torch module, got a Handmade"):
        TorchAttack("FGSM", Handmade(model_of("four classes", 2)[0].victim()), eps=EPS)


def test_without_torchattacks_it_is_told_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    with pytest.raises(ImportError, match="python -m pip install --no-deps torchattacks"):
        TorchAttack("FGSM", model_of("four classes", 2)[0], eps=EPS)
    assert "torchattacks/FGSM" in set(catalogue()["name"])
