"""ART's evasion attacks by name: every class on every kind of model runs and breaks it, or is refused with a reason."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import random
from pathlib import Path
from typing import Any

import art.attacks.evasion as evasion
import numpy as np
import pytest
import torch
from art.attacks.attack import EvasionAttack
from art.estimators.classification import PyTorchClassifier
from networks import (
    SHAPES,
    BrightnessClassifier,
    awkward,
    bright_boxes,
    changes,
    grey_images,
    multiclass,
    multilabel,
    one_logit,
    segmenter,
    shape_of,
    state,
)

from medadv import Intensity, Multiclass, Multilabel
from medadv.adapters import MonaiClassifier, MonaiMultilabelClassifier, MonaiSegmenter
from medadv.adapters.art_table import ART_ROWS, ART_TABLE, KINDS, kind_of
from medadv.attacks import create
from medadv.attacks.catalogue import recipe_of, recipes

EPS = 0.1
STEPS = {"eps": EPS, "eps_step": 0.04, "max_iter": 3}
AUTO = {"eps": EPS, "max_iter": 3, "nb_random_init": 1}
HU = Intensity(-1024, 3071, unit="HU", window=(-175, 250), grid=(1, 0))

# few steps: that an attack breaks these models, not how strong it is
OPTIONS: dict[str, dict[str, Any]] = {
    "FastGradientMethod": {"eps": EPS},
    "BasicIterativeMethod": STEPS,
    "ProjectedGradientDescent": STEPS,
    "ProjectedGradientDescentNumpy": STEPS,
    "ProjectedGradientDescentPyTorch": STEPS,
    "MomentumIterativeMethod": STEPS,
    "AutoProjectedGradientDescent": AUTO,
    "AutoConjugateGradient": AUTO,
    "RescalingAutoConjugateGradient": AUTO,
    "AutoAttack": {"eps": EPS},
    "FeatureAdversariesPyTorch": {"eps": EPS, "max_iter": 3, "step_size": 0.04, "guide": 0.8},
    "FeatureAdversariesNumpy": {"eps": EPS, "layer": -1, "guide": 0.8},
    "FrameSaliencyAttack": STEPS,
    "UniversalPerturbation": {"eps": EPS, "max_iter": 2, "attacker": "fgsm"},
    "TargetedUniversalPerturbation": {"eps": EPS, "max_iter": 2, "targeted": True},
    "CarliniL2Method": {"max_iter": 3, "binary_search_steps": 2, "initial_const": 1.0, "learning_rate": 0.1},
    "CarliniLInfMethod": {"max_iter": 3, "learning_rate": 0.1, "initial_const": 10.0, "decrease_factor": 0.5},
    "CarliniL0Method": {"max_iter": 3, "binary_search_steps": 1, "initial_const": 5.0, "learning_rate": 0.1},
    "DeepFool": {"max_iter": 5, "epsilon": 0.02},
    "deepfool": {"max_iter": 5},
    "ElasticNet": {"max_iter": 4, "binary_search_steps": 1, "initial_const": 5.0, "learning_rate": 0.1},
    "NewtonFool": {"max_iter": 20},
    "SaliencyMapMethod": {"theta": 0.5},
    "HopSkipJump": {"max_iter": 1, "max_eval": 20, "init_eval": 5, "init_size": 50},
    "hop-skip-jump": {"max_iter": 1, "max_eval": 20, "init_eval": 5, "init_size": 50},
    "BoundaryAttack": {"max_iter": 2, "num_trial": 2, "sample_size": 2, "init_size": 50},
    "SignOPTAttack": {"max_iter": 1, "num_trial": 5, "k": 5, "query_limit": 200},
    "SimBA": {"max_iter": 150, "epsilon": 0.4},
    "ZooAttack": {
        "max_iter": 4, "learning_rate": 0.2, "initial_const": 100.0, "abort_early": False, "nb_parallel": 64,
        "variable_h": 0.01,
    },
    "SquareAttack": {"eps": EPS, "max_iter": 30},
    "ShadowAttack": {"nb_steps": 15, "batch_size": 2},
}  # fmt: skip


def setting(kind: str, dims: int, **changes: Any) -> tuple[Any, np.ndarray, np.ndarray]:
    """A model, images and references it agrees with; the first image is the one to brighten."""
    grey, (box, mask) = grey_images(dims, (0.48, 0.52)), bright_boxes(dims)
    if kind == "multiclass":
        return multiclass(dims, **changes), grey, np.array([0, 1])
    if kind == "one-logit":
        return one_logit(dims, **changes), grey, np.array([0, 1])
    if kind == "multilabel":
        return multilabel(dims, **changes), grey, np.array([[0, 1, 1], [1, 0, 1]])
    if kind == "segmentation":
        return segmenter(dims, **changes), box, mask
    overlapping = {"decision": Multilabel(2), **changes}
    return segmenter(dims, **overlapping), box, np.stack([1 - mask, mask], 1)


MODELS = ("multiclass", "one-logit", "multilabel", "segmentation", "overlapping")


def options_for(name: str, x: np.ndarray, **more: Any) -> dict[str, Any]:
    options = {**OPTIONS.get(name.removeprefix("art/"), {}), **more}
    if "guide" in options:
        options["guide"] = np.full_like(x[:1], options["guide"])
    return options


def scores(estimator: Any, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    target, valid = estimator.decision.canonical(y, x.shape[2:] if estimator.segments else ())
    return estimator.decision.score(torch.from_numpy(estimator.predict(x)), target, valid).numpy()


def assert_kept(x: np.ndarray, x_adv: np.ndarray, eps: float | None = None, norm: float = np.inf) -> None:
    assert x_adv.shape == x.shape and x_adv.dtype == x.dtype and np.isfinite(x_adv).all()
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    if eps is not None:
        assert np.linalg.norm((x_adv.astype(np.float64) - x).reshape(len(x), -1), norm, axis=1).max() <= eps


def cells() -> list[Any]:
    found = []
    for name, row in ART_ROWS.items():
        for kind in MODELS:
            for dims in (2, 3):
                # minutes on voxels: it differentiates by trial
                slow = row.art == "FeatureAdversariesNumpy" and kind not in ("multiclass", "multilabel")
                marks = [pytest.mark.slow] if slow and dims == 2 else []
                found.append(pytest.param(name, kind, dims, id=f"{name}-{kind}-{dims}D", marks=marks))
    return found


@pytest.mark.parametrize(("name", "kind", "dims"), cells())
def test_every_attack_breaks_every_model_or_is_refused_with_a_reason(name: str, kind: str, dims: int) -> None:
    estimator, x, y = setting(kind, dims)
    row = ART_ROWS[name]
    options = options_for(name, x)
    if row.refusal(kind_of(estimator), dims, options.get("targeted", False)) is not None:
        with pytest.raises(ValueError, match=r"is not right for this model \(.*ART's \w+ .*; use '"):
            create(name, estimator, **options)
        return
    assert (scores(estimator, x, y) == 1).all()
    if row.universal:
        wanted = np.array([1, 1]) if row.labels == "targets" else y
        x_adv = create(name, estimator, **options).generate(x, wanted)
        assert np.allclose(x_adv[0] - x[0], x_adv[1] - x[1], atol=1e-6)
        # one perturbation can't break images on both sides of a decision
        assert scores(estimator, x_adv, y).min() == 0
    else:
        x, y = x[:1], y[:1]
        attack = create(name, estimator, **options)
        before = x.copy()
        x_adv = attack.generate(x, y)
        assert np.array_equal(x, before) and attack.queries[0] > 1
        assert scores(estimator, x_adv, y)[0] < {"multilabel": 0.4}.get(kind, 0.5)
    assert_kept(x, x_adv, EPS if row.budget else None)


def test_every_class_of_art_is_in_the_table() -> None:
    classes = {
        name for name, kind in vars(evasion).items() if inspect.isclass(kind) and issubclass(kind, EvasionAttack)
    }
    assert classes <= set(ART_TABLE)
    assert set(ART_TABLE) - classes <= {"BrendelBethgeAttack"}  # ART hides it where numba is missing
    assert {f"art/{name}" for name in ART_TABLE} | {"deepfool", "hop-skip-jump"} == set(ART_ROWS) <= set(recipes())


@pytest.mark.parametrize("name", ART_ROWS)
def test_rows_are_complete_and_name_attacks_that_are_right(name: str) -> None:
    row, recipe = ART_ROWS[name], recipe_of(name)
    for kind, rank in itertools.product(KINDS, (2, 3)):
        refusal = row.refusal(kind, rank)
        if refusal is not None:
            task = "segmentation" if kind == "segmentation" else "classification"
            decision = "multilabel" if kind == "multilabel" else "multiclass"
            right = [recipe_of(other) for other in refusal.instead]
            assert any(task in r.tasks and decision in r.decisions and rank in r.ranks for r in right), (kind, rank)
    usable = [kind for kind in KINDS if row.ranks_for(kind)]
    assert bool(recipe.tasks) == bool(usable) == bool(recipe.ranks)
    assert recipe.independent != row.universal and recipe.summary and recipe.reference
    if usable:
        kind = getattr(evasion, row.art)
        known = set(inspect.signature(kind.__init__).parameters)
        own = {"guide", "dice_threshold"} | ({"eps_step", "max_iter"} if row.slices else set())
        assert set(recipe.all_options) <= known | own
        assert not {"eps", "norm", "targeted", "batch_size", "verbose"} & set(recipe.all_options)
    else:
        assert recipe.summary.startswith("refused: ")


def test_autoattack_goes_on_to_squares_where_nothing_else_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def shorter(kind: Any, **changes: Any) -> Any:
        def build(**options: Any) -> Any:
            ran.append(kind.__name__)
            return kind(**{**options, **changes})

        return build

    for kind, shortened in {
        evasion.AutoProjectedGradientDescent: {"max_iter": 3, "nb_random_init": 1},
        evasion.SquareAttack: {"max_iter": 20, "nb_restarts": 1},
    }.items():
        monkeypatch.setattr(f"art.attacks.evasion.auto_attack.{kind.__name__}", shorter(kind, **shortened))
    estimator, x, y = setting("multiclass", 2)
    attack = create("art/AutoAttack", estimator, eps=0.001)
    x_adv = attack.generate(x, y)
    assert_kept(x, x_adv, 0.001)
    assert (scores(estimator, x_adv, y) == 1).all() and ran.count("SquareAttack") > 2


# ---- against known answers --------------------------------------------------------------------------------------


class Linear(torch.nn.Module):
    """Logits ``W x + b`` of random weights, for images in the units of ``intensity``."""

    def __init__(self, dims: int, width: float) -> None:
        super().__init__()
        size = int(np.prod(SHAPES[dims]))
        self.head = torch.nn.Linear(size, 4)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(4, size, generator=torch.Generator().manual_seed(0)) / width)
            self.head.bias.copy_(torch.tensor([0.3, -0.2, 0.1, 0.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.flatten(1))


@pytest.mark.parametrize("intensity", [Intensity(0, 1), Intensity(-9, 11), Intensity(-1024, 3071, unit="HU")])
@pytest.mark.parametrize("dims", [2, 3])
def test_deepfool_goes_to_the_nearest_hyperplane_and_over_by_its_overshoot(dims: int, intensity: Intensity) -> None:
    low, width = intensity.lows[0], intensity.highs[0] - intensity.lows[0]
    network = Linear(dims, width)
    estimator = MonaiClassifier(network, (1, *SHAPES[dims]), decision=Multiclass(4), intensity=intensity)
    x = np.random.default_rng(1).uniform(0.4, 0.6, (3, 1, *SHAPES[dims]))
    x = (low + width * x).astype(np.float32)
    x_adv = create("deepfool", estimator, max_iter=20).generate(x)
    weight, bias = network.head.weight.detach().double().numpy(), network.head.bias.detach().double().numpy()
    for case, moved in zip(x.reshape(3, -1).astype(np.float64), x_adv.reshape(3, -1).astype(np.float64), strict=True):
        logits = weight @ case + bias
        own = logits.argmax()
        distances = [(logits[own] - logits[k]) / np.linalg.norm(weight[own] - weight[k]) for k in range(4) if k != own]
        assert (weight @ moved + bias).argmax() != own
        assert np.linalg.norm(moved - case) == pytest.approx(1.02 * min(distances), rel=2e-3)


@pytest.mark.parametrize("dims", [2, 3])
def test_budgets_are_in_the_unit_of_the_image(dims: int) -> None:
    # voxels at 0.5 lie half-way in the range: the same model as in 0 to 1
    network = BrightnessClassifier((-20.0, 20.0))
    estimator = MonaiClassifier(
        network, shape_of(dims), decision=Multiclass(2), intensity=HU, input_transform=lambda x: (x + 1024) / 4095
    )
    x = np.round(4095 * grey_images(dims, (0.48,)) - 1024).astype(np.float32)
    for name, options in {
        "FastGradientMethod": {}, "ProjectedGradientDescent": {"eps_step": "4 HU", "max_iter": 4},
    }.items():  # fmt: skip
        x_adv = create(f"art/{name}", estimator, eps="10 HU", **options).generate(x, np.array([0]))
        assert np.array_equal(x_adv, x + 10)
    x_adv = create("art/FastGradientMethod", estimator, eps="8/255").generate(x, np.array([0]))
    assert np.array_equal(x_adv, x + 13)  # 8/255 of the window is 13.33, rounded down on the grid


def test_a_fraction_is_taken_of_each_channels_own_range_and_other_numbers_are_refused() -> None:
    estimator = MonaiClassifier(
        BrightnessClassifier((-20.0, 20.0), channels=2), (2, 8, 8), decision=Multiclass(2),
        intensity=Intensity((0.0, -2.0), (1.0, 6.0)),
    )  # fmt: skip
    x = np.full((1, 2, 8, 8), 0.5, dtype=np.float32)
    change = create("art/FastGradientMethod", estimator, eps="8/255").generate(x, np.array([0])) - x
    np.testing.assert_allclose(np.abs(change).max((0, 2, 3)), [8 / 255, 64 / 255], rtol=1e-5)
    with pytest.raises(ValueError, match="another share of the range in each channel.*'8/255'"):
        create("art/FastGradientMethod", estimator, eps=0.1)


def test_zoo_can_darken() -> None:
    estimator, x, y = setting("multiclass", 2)
    x_adv = create("art/ZooAttack", estimator, **OPTIONS["ZooAttack"]).generate(x[1:], y[1:])
    assert scores(estimator, x_adv, y[1:]) == 0 and x_adv.mean() < x[1:].mean()


def test_auto_conjugate_gradient_without_reference_attacks_the_models_own_diagnosis() -> None:
    estimator, x, y = setting("multiclass", 2)
    attack = create("art/AutoConjugateGradient", estimator, **AUTO)
    assert np.array_equal(attack.generate(x), attack.generate(x, y))


# ---- guarantees -------------------------------------------------------------------------------------------------

SOME = ("FastGradientMethod", "MomentumIterativeMethod", "AutoProjectedGradientDescent", "DeepFool", "SimBA")
DRAWS = ("AutoProjectedGradientDescent", "HopSkipJump", "BoundaryAttack", "SimBA")


@pytest.mark.parametrize("kind", ["multiclass", "multilabel", "segmentation"])
@pytest.mark.parametrize("name", [*SOME, "HopSkipJump"])
def test_every_attack_keeps_to_a_region(name: str, kind: str) -> None:
    estimator, x, y = setting(kind, 3)
    mask = np.zeros((1, *x.shape[1:]), dtype=bool)
    mask[..., :4] = True
    attack = create(f"art/{name}", estimator, **options_for(name, x))
    x_adv = attack.generate(x, y, mask=mask)
    changed = x_adv != x
    assert changed[..., :4].any() and not changed[..., 4:].any()
    assert (scores(estimator, x_adv, y) < 1).all()


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("kind", ["multiclass", "segmentation"])
def test_no_case_influences_another_and_draws_follow_the_seed(name: str, kind: str) -> None:
    estimator, x, y = setting(kind, 2)
    attack = create(f"art/{name}", estimator, **options_for(name, x))
    whole = attack.generate(x, y, ids=["a", "b"])
    np.random.seed(5)  # a global seed is of no account
    alone = attack.generate(x[1:], y[1:], ids=["b"])
    np.testing.assert_array_equal(alone[0], whole[1])
    np.testing.assert_array_equal(attack.generate(x[::-1].copy(), y[::-1].copy(), ids=["b", "a"])[::-1], whole)
    if name != "AutoProjectedGradientDescent":  # which ends in the same corner from everywhere
        attack.set_params(seed=1)
        assert not np.array_equal(attack.generate(x, y, ids=["a", "b"]), whole)


@pytest.mark.parametrize(("name", "options"), [
    ("FastGradientMethod", {}), ("MomentumIterativeMethod", {}), ("ProjectedGradientDescentPyTorch", {}),
    ("AutoProjectedGradientDescent", {"loss_type": "cross_entropy"}), ("DeepFool", {}), ("HopSkipJump", {}),
    ("FeatureAdversariesPyTorch", {"layer": "norm"}), ("CarliniL2Method", {}), ("SquareAttack", {}),
])  # fmt: skip
@pytest.mark.parametrize("segments", [False, True])
def test_the_model_and_all_generators_are_left_as_found(name: str, options: dict[str, Any], segments: bool) -> None:
    network = awkward(2, 3, segments=segments)
    wrap: Any = MonaiSegmenter if segments else MonaiClassifier
    estimator = wrap(network, shape_of(2), decision=Multiclass(3, background=0 if segments else None))
    network.train()
    network.frozen_norm.eval()
    x = grey_images(2, (0.4, 0.6))
    y = estimator.predict(x).argmax(1)
    network.train()
    network.frozen_norm.eval()
    before, generators = state(network), (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    attack = create(f"art/{name}", estimator, **{**options_for(name, x), **options})
    if segments and not (y > 0).reshape(2, -1).any(1).all():
        y[:, 0] = 1
    attack.generate(x, y)
    assert changes(before, state(network)) == []
    assert torch.equal(generators[0], torch.get_rng_state()) and generators[2] == random.getstate()
    assert np.array_equal(generators[1], np.random.get_state()[1])
    assert attack.passes.forward > 0 and (attack.queries > 0).all()


def test_passes_and_queries_are_what_ran() -> None:
    estimator, x, y = setting("segmentation", 2)
    count = []
    estimator.network.register_forward_hook(lambda module, inputs, output: count.append(len(output)))
    for name in ("FastGradientMethod", "SimBA", "DeepFool"):
        count.clear()
        attack = create(f"art/{name}", estimator, **options_for(name, x))
        attack.generate(x, y)
        assert attack.passes.forward == len(count) and attack.queries.sum() == sum(count)
    assert create("art/FastGradientMethod", estimator, eps=EPS, keep="last").keep == "last"


@pytest.mark.parametrize("kind", MODELS)
def test_without_a_reference_the_models_own_diagnosis_is_attacked_hardened(kind: str) -> None:
    estimator, x, y = setting(kind, 2)
    for name in ("FastGradientMethod", "DeepFool"):
        attack = create(f"art/{name}", estimator, **options_for(name, x))
        assert np.array_equal(attack.generate(x), attack.generate(x, y))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "name", ["FastGradientMethod", "AutoProjectedGradientDescent", "HopSkipJump", "BoundaryAttack"]
)
def test_networks_and_images_of_either_precision(name: str, dtype: type) -> None:
    estimator, x, y = setting("multiclass", 2)
    estimator.network.to(torch.float64 if dtype == np.float64 else torch.float32)
    x = x.astype(dtype)
    x_adv = create(f"art/{name}", estimator, **options_for(name, x)).generate(x, y)
    assert_kept(x, x_adv, EPS if ART_TABLE[name].budget else None)
    assert (scores(estimator, x_adv, y) == 0).all()


def test_tensors_stay_tensors() -> None:
    estimator, x, y = setting("segmentation", 2)
    attack = create("art/FastGradientMethod", estimator, eps=EPS)
    out = attack.perturb(torch.from_numpy(x), torch.from_numpy(y))
    assert type(out) is torch.Tensor and np.array_equal(out.numpy(), attack.generate(x, y))


def test_a_stock_classifier_is_attacked_too() -> None:
    stock = PyTorchClassifier(
        BrightnessClassifier((-20.0, 20.0, 0.0), (0.0, 0.0, -3.0)), torch.nn.CrossEntropyLoss(), (1, 8, 8), 3,
        clip_values=(0.0, 1.0),
    )  # fmt: skip
    x = grey_images(2, (0.48, 0.52))
    for name in ("DeepFool", "FastGradientMethod"):
        x_adv = create(f"art/{name}", stock, **options_for(name, x)).generate(x, np.array([0, 1]))
        assert (stock.predict(x_adv).argmax(1) != [0, 1]).all()


@pytest.mark.parametrize("norm", [np.inf, 2])
def test_a_budget_of_zero_returns_the_image(norm: float) -> None:
    for kind in ("multiclass", "segmentation"):
        estimator, x, y = setting(kind, 2)
        x_adv = create("art/AutoProjectedGradientDescent", estimator, eps=0, norm=norm).generate(x, y)
        assert np.array_equal(x_adv, x)


@pytest.mark.parametrize("name", [row.art for row in ART_TABLE.values() if 2.0 in row.norms and not row.universal
                                  and row.budget and row.art != "AutoAttack"])  # fmt: skip
@pytest.mark.parametrize("dims", [2, 3])
def test_l2_budgets_hold_strictly(name: str, dims: int) -> None:
    estimator, x, y = setting("segmentation", dims)
    attack = create(f"art/{name}", estimator, norm=2, **options_for(name, x, eps=0.5, **(
        {} if name == "FastGradientMethod" else {"eps_step": 0.2})))  # fmt: skip
    x_adv = attack.generate(x, y)
    assert_kept(x, x_adv, 0.5, 2)
    assert (scores(estimator, x_adv, y) < 0.9).all()


# ---- what is kept, and targets ----------------------------------------------------------------------------------


def test_a_diagnosis_that_is_broken_already_needs_no_perturbation() -> None:
    for kind, wrong in {"multiclass": np.array([1, 1]), "multilabel": np.array([[1, 1, 1], [1, 0, 1]])}.items():
        estimator, x, _ = setting(kind, 2)
        x_adv = create("deepfool", estimator).generate(x, wrong)
        assert np.array_equal(x_adv[0], x[0]) and not np.array_equal(x_adv[1], x[1])


def test_the_clean_image_stands_where_arts_is_better_for_the_clinic(monkeypatch: pytest.MonkeyPatch) -> None:
    estimator, x, _ = setting("multiclass", 2)
    wrong = np.array([1, 1])  # of the first image; brightening it makes the diagnosis right
    monkeypatch.setattr(evasion.FastGradientMethod, "generate", lambda self, x, y=None, **kwargs: x + np.float32(0.05))
    assert np.array_equal(create("art/FastGradientMethod", estimator, eps=EPS).generate(x, wrong)[0], x[0])
    last = create("art/FastGradientMethod", estimator, eps=EPS, keep="last").generate(x, wrong)
    assert scores(estimator, last, wrong)[0] == 1


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ["FastGradientMethod", "ProjectedGradientDescentPyTorch", "CarliniL2Method"])
@pytest.mark.parametrize("kind", ["multiclass", "multilabel", "segmentation"])
def test_targeted_attacks_reach_the_diagnosis_wanted(kind: str, name: str, dims: int) -> None:
    estimator, x, y = setting(kind, dims)
    wanted = {"multiclass": 1 - y, "multilabel": y[::-1].copy(), "segmentation": 1 - y}[kind]
    options = options_for(name, x)
    if name == "CarliniL2Method":
        options |= {"max_iter": 6, "binary_search_steps": 3, "learning_rate": 0.2}
    x_adv = create(f"art/{name}", estimator, targeted=True, **options).generate(x, wanted)
    assert (scores(estimator, x_adv, wanted) >= (0.5 if kind == "segmentation" else 1)).all()


def test_labels_that_are_ignored_do_not_count() -> None:
    estimator, x, y = setting("multilabel", 2, decision=Multilabel(3, ignore_index=7))
    y = y[:1].copy()
    y[0, :2] = 7  # leaves a label that is far from its threshold
    for name in ("DeepFool", "FastGradientMethod"):
        x_adv = create(f"art/{name}", estimator, **options_for(name, x, **(
            {"max_iter": 30} if name == "DeepFool" else {"eps": 0.4})))  # fmt: skip
        assert scores(estimator, x_adv.generate(x[:1], y), y)[0] == 0
    y[:] = 7
    assert np.array_equal(create("deepfool", estimator).generate(x[:1], y), x[:1])


# ---- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name", "options", "error", "match"), [
    ("multiclass", "FastGradientMethod", {}, TypeError, "needs eps="),
    ("multiclass", "FastGradientMethod", {"eps": EPS, "epsilon": 1}, TypeError, "no option of|epsilon"),
    ("multiclass", "ProjectedGradientDescent", {"eps": EPS, "random_eps": True}, TypeError, "random_eps"),
    ("multiclass", "FastGradientMethod", {"eps": EPS, "norm": 1}, ValueError, "is for norm inf and 2"),
    ("multiclass", "BasicIterativeMethod", {"eps": EPS, "norm": 2}, ValueError, "is for norm inf"),
    ("multiclass", "BasicIterativeMethod", {"eps": EPS, "max_iter": 0}, ValueError, "max_iter"),
    ("multiclass", "DeepFool", {"eps": EPS}, TypeError, "has no budget; leave eps out"),
    ("multiclass", "HopSkipJump", {"eps": EPS}, TypeError, "has no budget; leave eps out"),
    ("multiclass", "DeepFool", {"targeted": True}, ValueError, "can't be targeted"),
    ("multiclass", "DeepFool", {"epsilon": -1.0}, ValueError, "overshoot"),
    ("multiclass", "DeepFool", {"keep": "loss"}, ValueError, "keep='score' or 'last'"),
    ("multiclass", "DeepFool", {"dice_threshold": 0.3}, TypeError, "is for segmenters"),
    ("segmentation", "DeepFool", {"dice_threshold": 0.0}, ValueError, "must be a Dice above 0"),
    ("segmentation", "ProjectedGradientDescent", {**STEPS, "num_random_init": 1}, ValueError, "random starts"),
    ("multilabel", "ProjectedGradientDescentNumpy", {**STEPS, "num_random_init": 1}, ValueError, "random starts"),
    ("segmentation", "FastGradientMethod", {"eps": EPS, "minimal": True}, ValueError, "classifiers only"),
    ("multiclass", "FeatureAdversariesPyTorch", {"eps": EPS}, TypeError, "needs guide="),
    ("one-logit", "AutoProjectedGradientDescent", {"eps": EPS, "loss_type": "difference_logits_ratio"}, ValueError,
     "needs three classes"),
    ("multiclass", "UniversalPerturbation", {"eps": EPS, "attacker": "vat"}, ValueError, "must be one of 'carlini'"),
    ("multiclass", "TargetedUniversalPerturbation", {"eps": EPS}, ValueError, "needs targeted=True"),
    ("multiclass", "AutoAttack", {"eps": EPS, "targeted": True}, ValueError, "whatever targeted says"),
])  # fmt: skip
def test_parameters_that_cannot_be_right_are_refused(
    kind: str, name: str, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    estimator, _, _ = setting(kind, 2)
    with pytest.raises(error, match=match):
        create(f"art/{name}", estimator, **options)


@pytest.mark.parametrize("option", [{"attack": "dct"}, {"order": "diag"}])
def test_options_for_square_images_are_refused_on_others(option: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"right for square 2D images only.*'simba-dct'"):
        create("art/SimBA", multiclass(3), **option)
    create("art/SimBA", multiclass(2), **option)


def test_input_that_cannot_be_right_is_refused() -> None:
    estimator, x, y = setting("segmentation", 2)
    with pytest.raises(ValueError, match="case a has no foreground in its reference"):
        create("deepfool", estimator).generate(x, np.zeros_like(y), ids=["a", "b"])
    guided = create("art/FeatureAdversariesPyTorch", estimator, eps=EPS, guide=x[:, :, :4])
    with pytest.raises(ValueError, match="guide has shape"):
        guided.generate(x, y)
    with pytest.raises(ValueError, match="outside the intensity range"):
        create("deepfool", estimator).generate(x - 1, y)
    classifier, x, y = setting("multiclass", 2)
    with pytest.raises(ValueError, match="leave mask out or use 'universal'"):
        create("art/UniversalPerturbation", classifier, eps=EPS).generate(x, y, mask=np.ones_like(x))
    with pytest.raises(ValueError, match="targeted attack needs y"):
        create("art/FastGradientMethod", classifier, eps=EPS, targeted=True).generate(x)


def test_models_that_are_no_torch_module_are_refused() -> None:
    class Asked:
        """A victim that can only be asked."""

        def __init__(self) -> None:
            victim = multiclass(2).victim()
            self.decision, self.intensity, self.passes = victim.decision, victim.intensity, victim.passes
            self.segments, self.deterministic, self.device = False, True, victim.device
            self.logits, self.differentiate, self.attacked = victim.logits, victim.differentiate, victim.attacked

    with pytest.raises(TypeError, match="one torch module, got Asked"):
        create("deepfool", Asked())


def test_packages_that_art_does_not_declare_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    with pytest.raises(ImportError, match="pip install multiprocess"):
        create("art/AutoAttack", multiclass(2), eps=EPS)


@pytest.mark.parametrize(("factor", "accepted"), [(1 + 5e-7, True), (1.001, False), (np.nan, False)])
def test_what_art_returns_is_checked_and_brought_exactly_into_the_ball(
    factor: float, accepted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def beyond(self: Any, x: np.ndarray, y: Any = None, **kwargs: Any) -> np.ndarray:
        return x + np.float32(factor * self.eps)

    monkeypatch.setattr(evasion.FastGradientMethod, "generate", beyond)
    estimator, x, y = setting("multiclass", 2)
    attack = create("art/FastGradientMethod", estimator, eps=EPS)
    if accepted:
        assert_kept(x, attack.generate(x, y), EPS)
    else:
        with pytest.raises(RuntimeError, match="moved case 0 by 0.1001 where eps is 0.1|not finite on case 0"):
            attack.generate(x, y)


def test_a_single_label_is_a_multilabel_model_too() -> None:
    estimator = MonaiMultilabelClassifier(BrightnessClassifier((20.0,)), (1, 8, 8), decision=Multilabel(1))
    x = grey_images(2, (0.48,))
    assert scores(estimator, create("deepfool", estimator).generate(x), np.array([[0]]))[0] == 0


DOCS = (Path(__file__).parents[1] / "docs" / "art.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ART_TABLE)
def test_the_documentation_says_what_the_table_says(name: str) -> None:
    row = ART_TABLE[name]
    if not any(row.ranks_for(kind) for kind in KINDS):
        assert any(f"`{name}`" in line and row.refusals[0].why in line for line in DOCS.splitlines())
        return
    (line,) = [line for line in DOCS.splitlines() if line.startswith(f"| `art/{name}` ")]
    shown = [cell.strip() for cell in line.strip("|").split("|")]
    for kind, cell in zip(KINDS, shown[4:], strict=True):
        ranks = row.ranks_for(kind)
        route = "view" if kind in ("multilabel", "segmentation") and not row.dense else "direct"
        assert cell == (f"{route}{'' if len(ranks) == 2 else f', {ranks[0]}D'}" if ranks else "")
