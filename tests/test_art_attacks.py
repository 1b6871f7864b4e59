"""ART's own attacks on medadv's estimators, 2D and 3D: adversarial and within budget; and where ART is wrong."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import art.attacks.evasion as evasion
import numpy as np
import pytest
import torch
from art.attacks.evasion.projected_gradient_descent.projected_gradient_descent_numpy import (
    ProjectedGradientDescentNumpy,
)
from art.attacks.evasion.projected_gradient_descent.projected_gradient_descent_pytorch import (
    ProjectedGradientDescentPyTorch,
)
from art.defences import trainer
from art.exceptions import EstimatorError
from networks import (
    BrightnessClassifier,
    BrightnessSegmenter,
    assert_valid,
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
from medadv.adapters import MonaiClassifier, MonaiSegmenter
from medadv.attacks import create

EPS = 0.1
QUIET = {"verbose": False}
STEPS = {"eps": EPS, "eps_step": 0.04, "max_iter": 4, **QUIET}


@pytest.fixture(autouse=True)
def seeded():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


# kind -> (estimator as ART's classifier attacks see it, images, classes it gives them)
CLASSIFIERS: dict[str, Callable[..., tuple[MonaiClassifier, np.ndarray, np.ndarray]]] = {
    "multiclass": lambda dims, **view: (
        multiclass(dims).as_classifier(**view) if view else multiclass(dims),
        grey_images(dims, (0.48, 0.52)),
        np.array([0, 1]),
    ),
    "one-logit": lambda dims, **view: (
        one_logit(dims).as_classifier(**view) if view else one_logit(dims),
        grey_images(dims, (0.48, 0.52)),
        np.array([0, 1]),
    ),
    "one label": lambda dims, **view: (
        multilabel(dims).as_classifier(label=1, **view),
        grey_images(dims, (0.48, 0.52)),
        np.array([1, 0]),
    ),
    "all labels": lambda dims, **view: (
        multilabel(dims).as_classifier(reference=[1, 0, 1], **view),
        grey_images(dims, (0.52,)),
        np.array([0]),
    ),
    "mask": lambda dims, **view: (
        segmenter(dims).as_classifier(reference=bright_boxes(dims, 1)[1], **view),
        bright_boxes(dims, 1)[0],
        np.array([0]),
    ),
}
TWO_CLASS = ("one-logit", "one label", "all labels", "mask")


@dataclass(frozen=True)
class Row:
    """One of ART's attacks: how it is built, its budget, the view it needs, and what it can be expected to do."""

    build: Callable[[Any], Any]
    norm: float | None = None
    eps: float = EPS
    view: tuple[str, ...] = ()
    kinds: tuple[str, ...] = tuple(CLASSIFIERS)
    flips: str = "all"  # "any": one perturbation for all images can't break those on both sides of the decision


ATTACKS = {
    "FGM": Row(lambda e: evasion.FastGradientMethod(e, eps=EPS), np.inf),
    "FGM, least eps": Row(lambda e: evasion.FastGradientMethod(e, eps=EPS, eps_step=0.01, minimal=True), np.inf),
    "BIM": Row(lambda e: evasion.BasicIterativeMethod(e, **STEPS), np.inf),
    "PGD": Row(lambda e: evasion.ProjectedGradientDescent(e, num_random_init=2, **STEPS), np.inf),
    "PGD torch": Row(lambda e: ProjectedGradientDescentPyTorch(e, num_random_init=1, **STEPS), np.inf),
    "PGD numpy": Row(lambda e: ProjectedGradientDescentNumpy(e, num_random_init=2, **STEPS), np.inf),
    "PGD torch, L2": Row(
        lambda e: ProjectedGradientDescentPyTorch(e, norm=2, eps=2.0, eps_step=0.8, max_iter=4, **QUIET), 2, 2.0
    ),
    "PGD numpy, L2": Row(
        lambda e: ProjectedGradientDescentNumpy(e, norm=2, eps=2.0, eps_step=0.8, max_iter=4, **QUIET), 2, 2.0
    ),
    "MIM": Row(lambda e: evasion.MomentumIterativeMethod(e, **STEPS), np.inf),
    "APGD": Row(lambda e: evasion.AutoProjectedGradientDescent(e, nb_random_init=1, **STEPS), np.inf),
    "APGD, cross-entropy": Row(
        lambda e: evasion.AutoProjectedGradientDescent(e, nb_random_init=1, loss_type="cross_entropy", **STEPS), np.inf
    ),
    "APGD, logits ratio": Row(
        lambda e: evasion.AutoProjectedGradientDescent(
            e, nb_random_init=1, loss_type="difference_logits_ratio", **STEPS
        ),
        np.inf,
        kinds=("multiclass",),
    ),
    "CarliniL2": Row(
        lambda e: evasion.CarliniL2Method(
            e, max_iter=5, binary_search_steps=3, initial_const=1.0, learning_rate=0.05, **QUIET
        )
    ),
    "CarliniLInf": Row(
        lambda e: evasion.CarliniLInfMethod(e, max_iter=5, learning_rate=0.05, initial_const=1.0, **QUIET),
        kinds=("multiclass", "mask"),
    ),
    "DeepFool": Row(lambda e: evasion.DeepFool(e, max_iter=10, epsilon=0.02, **QUIET)),
    "ElasticNet": Row(
        lambda e: evasion.ElasticNet(
            e, max_iter=8, binary_search_steps=2, initial_const=1.0, learning_rate=0.05, **QUIET
        )
    ),
    "NewtonFool": Row(
        lambda e: evasion.NewtonFool(e, max_iter=20, eta=0.01, **QUIET),
        view=("probabilities", "saturate"),
        kinds=("multiclass",),
    ),
    "Universal, FGM": Row(
        lambda e: evasion.UniversalPerturbation(
            e, attacker="fgsm", attacker_params={"eps": EPS}, eps=EPS, max_iter=3, **QUIET
        ),
        np.inf,
        view=("saturate",),
        flips="any",
    ),
    "Universal, DeepFool": Row(
        lambda e: evasion.UniversalPerturbation(
            e, attacker="deepfool", attacker_params={"max_iter": 10, **QUIET}, eps=EPS, max_iter=3, **QUIET
        ),
        np.inf,
        view=("saturate",),
        flips="any",
    ),
    "HopSkipJump": Row(lambda e: evasion.HopSkipJump(e, max_iter=2, max_eval=60, init_eval=10, init_size=50, **QUIET)),
    "Boundary": Row(
        lambda e: evasion.BoundaryAttack(
            e, targeted=False, max_iter=5, num_trial=5, sample_size=5, init_size=50, **QUIET
        )
    ),
    "SimBA": Row(
        lambda e: evasion.SimBA(e, attack="px", max_iter=120, epsilon=0.2, freq_dim=2, **QUIET),
        view=("probabilities",),
    ),
    "FeatureAdversaries torch": Row(
        lambda e: evasion.FeatureAdversariesPyTorch(
            e, delta=EPS, layer=-1, max_iter=5, step_size=0.04, batch_size=4, **QUIET
        ),
        np.inf,
    ),
    "FeatureAdversaries numpy": Row(
        lambda e: evasion.FeatureAdversariesNumpy(e, delta=EPS, layer=-1, batch_size=4),
        np.inf,
        kinds=("multiclass",),
    ),
}


def generate(attack: Any, x: np.ndarray, y: Any = None, **kwargs: Any) -> np.ndarray:
    """Runs an attack; FeatureAdversaries is guided by the images with light and dark exchanged."""
    before = x.copy()
    if "FeatureAdversaries" in type(attack).__name__:
        y = 1 - x
    x_adv = attack.generate(x, y, **kwargs)
    np.testing.assert_array_equal(x, before, err_msg="the attack changed its input")
    return x_adv


MATRIX = [
    pytest.param(name, kind, dims, id=f"{name}-{kind}-{dims}D")
    for name, row in ATTACKS.items()
    for kind in row.kinds
    for dims in (2, 3)
    if (name, dims) != ("FeatureAdversaries numpy", 3)  # seconds per image
]


@pytest.mark.parametrize(("name", "kind", "dims"), MATRIX)
def test_classifier_attack_is_adversarial_and_within_budget(name: str, kind: str, dims: int) -> None:
    row = ATTACKS[name]
    estimator, x, classes = CLASSIFIERS[kind](dims, **dict.fromkeys(row.view, True))
    assert (estimator.predict(x).argmax(1) == classes).all()
    x_adv = generate(row.build(estimator), x)
    assert_valid(x, x_adv, estimator.intensity, row.norm, row.eps)
    flipped = estimator.predict(x_adv).argmax(1) != classes
    assert flipped.all() if row.flips == "all" else flipped.any()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", ["all labels", "mask"])
def test_success_on_a_view_is_success_on_the_estimator(kind: str, dims: int) -> None:
    estimator, x, _ = CLASSIFIERS[kind](dims)
    x_adv = generate(ATTACKS["DeepFool"].build(estimator), x)
    if kind == "mask":
        mask = bright_boxes(dims, 1)[1]
        found = segmenter(dims).predict(x_adv).argmax(1)
        assert 2 * (found * mask).sum() / (found + mask).sum() < 0.5
    else:
        assert ((multilabel(dims).predict(x_adv) > 0) != np.array([1, 0, 1])).any()


# attacks that need no classifier run on segmenters and multi-label classifiers as they are
DIRECT = ("FGM", "BIM", "PGD", "PGD numpy", "MIM", "FeatureAdversaries torch")
DIRECT_BUILD: dict[str, Callable[[Any], Any]] = {
    **{name: ATTACKS[name].build for name in ("FGM", "BIM", "MIM", "FeatureAdversaries torch")},
    "PGD": lambda e: evasion.ProjectedGradientDescent(e, **STEPS),
    "PGD numpy": lambda e: ProjectedGradientDescentNumpy(e, **STEPS),
}


def dense(kind: str, dims: int) -> tuple[Any, np.ndarray, np.ndarray]:
    if kind == "multilabel":
        return multilabel(dims), grey_images(dims, (0.48, 0.52)), np.array([[0, 1, 1], [1, 0, 1]])
    x, mask = bright_boxes(dims)
    return segmenter(dims, 2 if kind == "softmax" else 1), x, mask


def score(estimator: Any, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    spatial = x.shape[2:] if estimator.segments else ()
    target, valid = estimator.decision.canonical(y, spatial)
    return estimator.decision.score(torch.from_numpy(estimator.predict(x)), target, valid).numpy()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("reference", ["given", "own prediction"])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid", "multilabel"])
@pytest.mark.parametrize("name", DIRECT)
def test_gradient_attack_breaks_dense_estimators_directly(name: str, kind: str, reference: str, dims: int) -> None:
    estimator, x, y = dense(kind, dims)
    assert (score(estimator, x, y) == 1).all()
    x_adv = generate(DIRECT_BUILD[name](estimator), x, y if reference == "given" else None)
    assert_valid(x, x_adv, estimator.intensity, np.inf, EPS)
    # 1/3: of the three labels, one is far from its threshold
    np.testing.assert_allclose(score(estimator, x_adv, y), 0 if estimator.segments else 1 / 3, atol=1e-6)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", ["softmax", "multilabel"])
def test_without_reference_art_hands_over_predictions_which_are_hardened(kind: str, dims: int) -> None:
    estimator, x, y = dense(kind, dims)
    own = estimator.loss_gradient(x, estimator.predict(x))
    np.testing.assert_array_equal(own, estimator.loss_gradient(x, y))


@pytest.mark.parametrize("name", ["FGM", "BIM", "MIM", "PGD numpy"])
@pytest.mark.parametrize("kind", ["softmax", "multilabel"])
def test_targeted_gradient_attack_reaches_the_target(name: str, kind: str) -> None:
    estimator, x, y = dense(kind, 2)
    target = 1 - y if kind == "softmax" else np.array([[1, 0, 1], [0, 1, 1]])
    attack = DIRECT_BUILD[name](estimator)
    attack.set_params(targeted=True)
    if hasattr(attack, "_attack"):
        attack._attack.set_params(targeted=True)
    assert (score(estimator, generate(attack, x, target), target) == 1).all()


@pytest.mark.parametrize(
    "name",
    [n for n in ATTACKS if not n.startswith(("FGM", "BIM", "PGD numpy", "FeatureAdversaries")) and n not in DIRECT],
)
@pytest.mark.parametrize("kind", ["softmax", "multilabel"])
def test_classifier_attacks_refuse_dense_estimators(name: str, kind: str) -> None:
    with pytest.raises((EstimatorError, ValueError)):
        ATTACKS[name].build(dense(kind, 2)[0])


# ---- where ART is wrong -----------------------------------------------------------------------------------------


def test_art_refuses_random_starts_on_dense_estimators() -> None:
    estimator, x, y = dense("softmax", 2)
    with pytest.raises(ValueError, match="Random initialisation is only supported for classification"):
        evasion.ProjectedGradientDescent(estimator, num_random_init=1, **STEPS).generate(x, y)


def test_art_momentum_on_dense_estimators_needs_all_cases_in_one_batch() -> None:
    estimator, x, y = dense("softmax", 2)
    with pytest.raises((ValueError, AssertionError)):
        evasion.MomentumIterativeMethod(estimator, batch_size=1, **STEPS).generate(x, y)


def test_art_fgm_drops_the_mask_on_dense_estimators_and_others_keep_it() -> None:
    estimator, x, y = dense("softmax", 2)
    mask = np.zeros_like(x)
    mask[..., :4] = 1
    touched = evasion.FastGradientMethod(estimator, eps=EPS).generate(x, y, mask=mask) != x
    assert touched[..., 4:].any(), "ART honours mask= now: change the documentation"
    for attack in (
        evasion.ProjectedGradientDescent(estimator, eps=EPS, eps_step=EPS, max_iter=1, **QUIET),
        create("fgsm", estimator, eps=EPS),
    ):
        changed = attack.generate(x, y, mask=mask) != x
        assert changed[..., :4].any() and not changed[..., 4:].any()


def test_art_zoo_clips_the_noise_to_the_range_and_so_can_only_brighten() -> None:
    estimator = multiclass(2).as_classifier(saturate=True)
    x = grey_images(2, (0.48, 0.52))
    x_adv = zoo(estimator).generate(x)
    assert (x_adv >= x).all(), "ART's ZOO darkens now: change the documentation"
    assert (estimator.predict(x_adv).argmax(1) == [1, 1]).all()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", ["multiclass", "mask"])
def test_zoo_breaks_models_whose_range_is_centred_on_zero(kind: str, dims: int) -> None:
    options: dict[str, Any] = {"intensity": Intensity(-0.5, 0.5), "input_transform": shift_up}
    if kind == "multiclass":
        estimator, x = multiclass(dims, **options), grey_images(dims, (0.48, 0.52))
        view = estimator.as_classifier(saturate=True)
    else:
        x, y = bright_boxes(dims, 1)
        network = BrightnessSegmenter(dims)
        base = MonaiSegmenter(network, shape_of(dims), decision=Multiclass(2, background=0), **options)
        view = base.as_classifier(reference=y, threshold=0.8, saturate=True)
    x = x - np.float32(0.5)
    x_adv = zoo(view).generate(x)
    assert_valid(x, x_adv, view.intensity, None, 0)
    assert (view.predict(x_adv).argmax(1) != view.predict(x).argmax(1)).all()


def shift_up(x: torch.Tensor) -> torch.Tensor:
    return x + 0.5


def zoo(estimator: Any) -> Any:
    return evasion.ZooAttack(
        estimator,
        max_iter=8,
        learning_rate=0.1,
        binary_search_steps=1,
        initial_const=100.0,
        abort_early=False,
        use_resize=False,
        use_importance=False,
        nb_parallel=40,
        variable_h=0.01,
        **QUIET,
    )


@pytest.mark.parametrize("kind", ["one-logit", "one label", "all labels"])
def test_newtonfool_stops_at_the_boundary_of_two_classes(kind: str) -> None:
    estimator, x, _ = CLASSIFIERS[kind](2, probabilities=True, saturate=True)
    x_adv = evasion.NewtonFool(estimator, max_iter=20, eta=0.01, **QUIET).generate(x)
    assert_valid(x, x_adv, estimator.intensity, None, 0)
    np.testing.assert_allclose(estimator.predict(x_adv), 0.5, atol=1e-3)


def test_newtonfool_on_logits_does_nothing_sensible_and_needs_probabilities() -> None:
    x = grey_images(2, (0.48, 0.52))
    attack = evasion.NewtonFool(multiclass(2), max_iter=20, eta=0.01, **QUIET)
    assert (multiclass(2).predict(attack.generate(x)).argmax(1) == [0, 1]).all()


@pytest.mark.parametrize(
    ("attack", "view"),
    [
        ("NewtonFool", {"probabilities": True}),
        ("Universal, FGM", {}),
        ("ZOO", {}),
    ],
)
def test_attacks_that_evaluate_images_outside_the_range_are_refused_or_saturate_on_request(
    attack: str, view: dict[str, bool]
) -> None:
    images = np.where(grey_images(2, (0.48, 0.52), seed=3) > [[[[0.48]]], [[[0.52]]]], 1, 0).astype(np.float32)
    build = zoo if attack == "ZOO" else ATTACKS[attack].build
    with pytest.raises(ValueError, match="outside the intensity range"):
        for _ in range(5):  # which way the first step goes is drawn
            build(multiclass(2).as_classifier(**view)).generate(images)
    estimator = multiclass(2).as_classifier(saturate=True, **view)
    assert_valid(images, build(estimator).generate(images), estimator.intensity, None, 0)


def test_art_carlini_cannot_move_voxels_that_lie_on_the_bounds() -> None:
    images = np.zeros((1, 1, 8, 8), dtype=np.float32)
    images[..., :4] = 1
    images[0, 0, 0, 0] = 0
    for name in ("CarliniL2", "CarliniLInf"):
        np.testing.assert_allclose(ATTACKS[name].build(multiclass(2)).generate(images), images, atol=1e-5)
    x_adv = ATTACKS["DeepFool"].build(multiclass(2)).generate(images)
    assert multiclass(2).predict(x_adv).argmax(1) != multiclass(2).predict(images).argmax(1)


def test_art_deepfool_steps_grow_with_the_range_so_state_images_in_0_to_1() -> None:
    x = grey_images(2, (0.48,))
    wide = multiclass(2, intensity=Intensity(-9.0, 11.0))  # the same model, a range of 20
    size = {
        name: np.abs(ATTACKS["DeepFool"].build(e).generate(x) - x).max()
        for name, e in {"0 to 1": multiclass(2), "wide": wide}.items()
    }
    assert size["0 to 1"] < 0.03 and size["wide"] > 10 * size["0 to 1"]


def test_art_pgd_in_l1_moves_one_voxel_and_stands_still_once_it_is_at_the_bound() -> None:
    attack = ProjectedGradientDescentNumpy(multiclass(2), norm=1, eps=9.0, eps_step=2.0, max_iter=6, **QUIET)
    x = grey_images(2, (0.48,))
    assert (attack.generate(x) != x).sum() == 1


def test_art_logits_ratio_needs_three_classes() -> None:
    with pytest.raises(IndexError):
        ATTACKS["APGD, logits ratio"].build(one_logit(2)).generate(grey_images(2, (0.48,)))


def test_simba_is_refused_on_logits() -> None:
    with pytest.raises(ValueError, match="requires an estimator predicting probabilities"):
        ATTACKS["SimBA"].build(multiclass(2)).generate(grey_images(2, (0.48,)))


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_art_square_attack_is_for_2d_only(kind: str) -> None:
    flat, x, classes = CLASSIFIERS[kind](2)
    x_adv = evasion.SquareAttack(flat, eps=EPS, max_iter=40, **QUIET).generate(x)
    assert_valid(x, x_adv, flat.intensity, np.inf, EPS)
    assert (flat.predict(x_adv).argmax(1) != classes).all()
    solid, x, _ = CLASSIFIERS[kind](3)
    with pytest.raises(ValueError, match="image data"):
        evasion.SquareAttack(solid, eps=EPS, max_iter=40, **QUIET).generate(x)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", ["classifier", "segmenter"])
def test_z_scored_images_are_refused_instead_of_attacked_wrongly(kind: str, dims: int) -> None:
    estimator: Any = multiclass(dims) if kind == "classifier" else segmenter(dims)
    x = np.random.default_rng(0).normal(size=(1, *shape_of(dims))).astype(np.float32)
    with pytest.raises(ValueError, match=r"outside the intensity range 0\.0 to 1\.0"):
        evasion.ProjectedGradientDescent(estimator, **STEPS).generate(x)


@pytest.mark.parametrize("method", ["predict", "class_gradient"])
def test_float64_images_are_cast_as_art_on_numpy_2_makes_them(method: str) -> None:
    x = grey_images(2, (0.48, 0.52))
    np.testing.assert_array_equal(
        getattr(multiclass(2), method)(x.astype(np.float64)), getattr(multiclass(2), method)(x)
    )


@pytest.mark.parametrize("labels", ["indices", "column", "one-hot"])
@pytest.mark.parametrize("name", ["FGM", "PGD", "PGD numpy", "APGD", "CarliniL2", "HopSkipJump"])
def test_every_form_of_labels_gives_a_working_attack_on_one_logit(name: str, labels: str) -> None:
    x, y = grey_images(2, (0.48, 0.52)), np.array([0, 1])
    forms = {"indices": y, "column": y[:, None], "one-hot": np.eye(2)[y]}
    x_adv = ATTACKS[name].build(one_logit(2)).generate(x, forms[labels])
    assert (one_logit(2).predict(x_adv).argmax(1) != y).all()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ["FGM", "PGD torch", "PGD numpy", "MIM", "APGD", "DeepFool"])
def test_ranges_per_channel_are_kept(name: str, dims: int) -> None:
    network = BrightnessClassifier((-20.0, 20.0, 0.0), (0.0, 0.0, -3.0), channels=2)
    grey = grey_images(dims, (0.48, 0.52))
    x = np.concatenate([grey, grey], 1)
    # the second channel may not get darker or brighter than it is by more than .05
    intensity = Intensity((0.0, float(x.min()) - 0.05), (1.0, float(x.max()) + 0.05))
    estimator = MonaiClassifier(network, x.shape[1:], decision=Multiclass(3), intensity=intensity)
    row = ATTACKS[name]
    if name == "APGD":  # it begins with an image of ones, which this range does not have
        with pytest.raises(ValueError, match="images hold values from 1 to 1, outside the intensity range"):
            row.build(estimator)
        estimator = estimator.as_classifier(saturate=True)
    x_adv = row.build(estimator).generate(x)
    assert_valid(x, x_adv, intensity, row.norm, row.eps)
    assert (estimator.predict(x_adv).argmax(1) != [0, 1]).all()


def test_art_feature_adversaries_takes_no_range_per_channel() -> None:
    network = BrightnessClassifier((-20.0, 20.0), channels=2)
    x = np.repeat(grey_images(2, (0.48,)), 2, 1)
    estimator = MonaiClassifier(
        network, x.shape[1:], decision=Multiclass(2), intensity=Intensity((0.0, 0.0), (1.0, 2.0))
    )
    with pytest.raises(TypeError):
        ATTACKS["FeatureAdversaries torch"].build(estimator).generate(x, 1 - x)


# ---- the model is left as found ---------------------------------------------------------------------------------


KEEPS_STATE = ("FGM", "PGD torch", "PGD numpy", "MIM", "APGD", "CarliniL2", "DeepFool", "ElasticNet", "HopSkipJump")


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", KEEPS_STATE)
def test_attacks_through_the_estimator_leave_the_network_as_found(name: str, dims: int) -> None:
    network = awkward(dims, 3, segments=False)
    estimator = MonaiClassifier(network, shape_of(dims), decision=Multiclass(3))
    network.train()
    network.frozen_norm.eval()
    before = state(network)
    ATTACKS[name].build(estimator).generate(grey_images(dims, (0.4, 0.6)))
    assert changes(before, state(network)) == []


def test_art_apgd_with_a_loss_of_its_own_bypasses_the_estimator_and_leaves_gradients() -> None:
    network = awkward(2, 3, segments=False)
    estimator = MonaiClassifier(network, shape_of(2), decision=Multiclass(3))
    before = state(network)
    ATTACKS["APGD, cross-entropy"].build(estimator).generate(grey_images(2, (0.4, 0.6)))
    left = changes(before, state(network))
    assert any(name.startswith("grad") for name in left), "ART leaves no gradients now: change the documentation"
    assert not any(name.endswith(("weight", "running_mean")) and not name.startswith("grad") for name in left)


@pytest.mark.parametrize("dims", [2, 3])
def test_feature_adversaries_leaves_no_weight_gradients(dims: int) -> None:
    network = awkward(dims, 2, segments=True)
    estimator = MonaiSegmenter(network, shape_of(dims), decision=Multiclass(2, background=0))
    before = state(network)
    x = grey_images(dims, (0.4, 0.6))
    attack = evasion.FeatureAdversariesPyTorch(estimator, delta=0.1, layer="norm", max_iter=2, step_size=0.04, **QUIET)
    attack.generate(x, 1 - x)
    # ART itself calls eval() on the model; nothing else may change
    assert all(name.startswith("flag") for name in changes(before, state(network)))


# ---- ART's trainers ---------------------------------------------------------------------------------------------


def untrained(kind: str, dims: int) -> tuple[Any, np.ndarray, np.ndarray]:
    """An estimator that knows nothing yet, and a task it can learn: images and references."""
    if kind == "segmenter":
        network: Any = BrightnessSegmenter(dims, slope=0.01)
        make: Any = MonaiSegmenter
        x, y = bright_boxes(dims, 12)
        x, decision = (0.5 + 10 * (x - 0.5)).astype(np.float32), Multiclass(2, background=0)
    else:
        outputs = 2 if kind == "multiclass" else 1
        network, make = BrightnessClassifier((0.1,) * outputs), MonaiClassifier
        decision = Multiclass(2) if kind == "multiclass" else Multilabel(1)
        y = np.arange(12) % 2
        x = grey_images(dims, tuple(0.3 + 0.4 * y))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.5)
    return make(network, shape_of(dims), decision=decision, optimizer=optimizer), x, y


TRAINER_STEPS = {"eps": 0.05, "eps_step": 0.02, "max_iter": 2}
TRAINERS: dict[str, Callable[[Any], Any]] = {
    "AdversarialTrainer": lambda e: trainer.AdversarialTrainer(e, inner_attack(e), ratio=0.5),
    "Madry": lambda e: trainer.AdversarialTrainerMadryPGD(
        e, nb_epochs=30, batch_size=6, num_random_init=1, **TRAINER_STEPS
    ),
    "FBF": lambda e: trainer.AdversarialTrainerFBFPyTorch(e, eps=0.05),
    "TRADES": lambda e: trainer.AdversarialTrainerTRADESPyTorch(e, inner_attack(e), beta=1.0),
    "AWP": lambda e: trainer.AdversarialTrainerAWPPyTorch(
        e, copy.deepcopy(e), inner_attack(e), mode="PGD", gamma=0.01, beta=1.0, warmup=0
    ),
}


def inner_attack(estimator: Any) -> Any:
    return evasion.ProjectedGradientDescent(estimator, **TRAINER_STEPS, **QUIET)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", ["multiclass", "one-logit"])
@pytest.mark.parametrize("name", TRAINERS)
def test_arts_trainers_make_a_robust_classifier(name: str, kind: str, dims: int) -> None:
    estimator, x, y = untrained(kind, dims)
    one_hot = np.eye(2, dtype=np.float32)[y]
    epochs = {} if name == "Madry" else {"nb_epochs": 30, "batch_size": 6}
    TRAINERS[name](estimator).fit(x, one_hot, **epochs)
    x_adv = inner_attack(estimator).generate(x, y)
    assert (estimator.predict(x_adv).argmax(1) == y).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_arts_adversarial_trainer_makes_a_robust_segmenter(dims: int) -> None:
    estimator, x, y = untrained("segmenter", dims)
    TRAINERS["AdversarialTrainer"](estimator).fit(x, y, nb_epochs=15, batch_size=6)
    assert (score(estimator, inner_attack(estimator).generate(x, y), y) > 0.95).all()
