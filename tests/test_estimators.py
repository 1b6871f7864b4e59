"""The estimators: gradients are those of the deployed model, the model is left as found, wrong input is refused."""

from __future__ import annotations

import copy
import pickle
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art import config
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceCELoss, DiceLoss
from monai.networks.nets import DynUNet
from monai.transforms import Compose, NormalizeIntensity, ScaleIntensityRange
from networks import SHAPES, BrightnessClassifier, BrightnessSegmenter, awkward, bright_boxes, grey_images
from torch import nn

from medadv import Intensity, Multiclass, Multilabel
from medadv.adapters import MonaiClassifier, MonaiMultilabelClassifier, MonaiSegmenter

Estimator = MonaiClassifier | MonaiMultilabelClassifier | MonaiSegmenter

# kind -> (estimator class, decision)
KINDS: dict[str, tuple[type, Any]] = {
    "multiclass": (MonaiClassifier, Multiclass(3)),
    "one-logit": (MonaiClassifier, Multilabel(1, threshold=0.3)),
    "multilabel": (MonaiMultilabelClassifier, Multilabel(3, threshold=(0.2, 0.5, 0.7))),
    "softmax segmenter": (MonaiSegmenter, Multiclass(3, background=0)),
    "region segmenter": (MonaiSegmenter, Multilabel(2)),
    "one-logit segmenter": (MonaiSegmenter, Multilabel(1)),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_rank = pytest.mark.parametrize("dims", [2, 3])


def build(kind: str, dims: int, *, dtype: torch.dtype = torch.float32, network: nn.Module | None = None, **kwargs: Any):
    estimator, decision = KINDS[kind]
    if network is None:
        network = awkward(dims, decision.channels, segments=estimator is MonaiSegmenter)
    return estimator(network.to(dtype), (1, *SHAPES[dims]), decision=decision, **kwargs)


def images(dims: int, cases: int = 2, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(1).uniform(0.2, 0.8, (cases, 1, *SHAPES[dims])).astype(dtype)


def reference(kind: str, dims: int, cases: int = 2) -> np.ndarray:
    estimator, decision = KINDS[kind]
    spatial = SHAPES[dims] if estimator is MonaiSegmenter else ()
    draw = np.random.default_rng(2).integers
    if kind == "one-logit":
        return np.arange(cases) % 2
    if isinstance(decision, Multiclass):
        return draw(0, decision.num_classes, (cases, *spatial))
    return draw(0, 2, (cases, decision.num_labels, *spatial))


def slope(function: Callable[[np.ndarray], float], x: np.ndarray, direction: np.ndarray, h: float = 1e-6) -> float:
    return (function(x + h * direction) - function(x - h * direction)) / (2 * h)


# ---- gradients and logits ---------------------------------------------------------------------------------------


def sliding(dims: int) -> SlidingWindowInferer:
    return SlidingWindowInferer((4,) * dims, sw_batch_size=3, overlap=0.5, mode="gaussian")


def double(x: torch.Tensor) -> torch.Tensor:
    return 2 * x - 0.3


def standardised(x: torch.Tensor) -> torch.Tensor:
    axes = tuple(range(1, x.ndim))
    return (x - x.mean(axes, keepdim=True)) / x.std(axes, keepdim=True, unbiased=False)


def ending(dims: int, channels: int, last: nn.Module) -> nn.Module:
    return nn.Sequential(awkward(dims, channels, segments=True), last)


OPTIONS: dict[str, Callable[[str, int], dict[str, Any]]] = {
    "plain": lambda kind, dims: {},
    "callable transform": lambda kind, dims: {"input_transform": double},
    "MONAI transform": lambda kind, dims: {"input_transform": ScaleIntensityRange(0.1, 0.9, -1.0, 1.0, dtype=None)},
    "statistics of each case": lambda kind, dims: {"input_transform": standardised},
    "sliding window": lambda kind, dims: {"inferer": sliding(dims)},
    "sliding window, softmax at the end": lambda kind, dims: {
        "inferer": sliding(dims),
        "network": ending(dims, KINDS[kind][1].channels, nn.Softmax(1)),
    },
    "sliding window, ReLU at the end": lambda kind, dims: {
        "inferer": sliding(dims),
        "network": ending(dims, KINDS[kind][1].channels, nn.ReLU()),
    },
    "MONAI loss": lambda kind, dims: {
        "loss": DiceLoss(softmax=True, to_onehot_y=True) if kind == "softmax segmenter" else DiceLoss(sigmoid=True)
    },
}


def fits(kind: str, option: str) -> bool:
    if "softmax" in option and KINDS[kind][1].channels == 1:
        return False
    if option.startswith("sliding") or option == "MONAI loss":
        return kind.endswith("segmenter")
    return True


@every_rank
@pytest.mark.parametrize(("kind", "option"), [(k, o) for k in KINDS for o in OPTIONS if fits(k, o)])
def test_loss_gradient_is_that_of_the_summed_losses(kind: str, option: str, dims: int) -> None:
    estimator = build(kind, dims, dtype=torch.float64, **OPTIONS[option](kind, dims))
    x, y = images(dims, dtype=np.float64), reference(kind, dims)
    gradient = estimator.loss_gradient(x, y)
    assert gradient.shape == x.shape and gradient.dtype == x.dtype and np.abs(gradient).max() > 0
    for seed in range(3):
        direction = np.random.default_rng(seed).normal(size=x.shape)
        expected = slope(lambda z: float(estimator.compute_loss(z, y, reduction="sum")), x, direction)
        assert (gradient * direction).sum() == pytest.approx(expected, rel=1e-5, abs=1e-8)


@every_kind
def test_no_case_changes_the_gradient_of_another(kind: str) -> None:
    estimator = build(kind, 2, dtype=torch.float64)
    x, y = images(2, 3, np.float64), reference(kind, 2, 3)
    alone = np.concatenate([estimator.loss_gradient(x[i : i + 1], y[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(estimator.loss_gradient(x, y), alone, rtol=1e-12, atol=1e-15)


@every_rank
@pytest.mark.parametrize("kind", ["multiclass", "one-logit"])
def test_class_gradient_is_that_of_each_logit(kind: str, dims: int) -> None:
    estimator = build(kind, dims, dtype=torch.float64)
    x = images(dims, dtype=np.float64)
    gradient = estimator.class_gradient(x)
    assert gradient.shape == (2, estimator.nb_classes, *x.shape[1:])

    def logit(case: int, label: int) -> Callable[[np.ndarray], float]:
        return lambda z: float(estimator.model(torch.from_numpy(z[None]))[0, label].detach())

    estimator.model.eval()
    for case in range(2):
        direction = np.random.default_rng(case).normal(size=x.shape[1:])
        for label in range(estimator.nb_classes):
            expected = slope(logit(case, label), x[case], direction)
            assert (gradient[case, label] * direction).sum() == pytest.approx(expected, rel=1e-5, abs=1e-9)
    estimator.model.train()
    np.testing.assert_array_equal(estimator.class_gradient(x, label=1), gradient[:, 1:2])
    np.testing.assert_array_equal(estimator.class_gradient(x, label=[1, 0])[:, 0], gradient[[0, 1], [1, 0]])
    with pytest.raises(ValueError, match="label=7 is no class; give numbers from 0 to"):
        estimator.class_gradient(x, label=7)


@every_rank
@every_kind
def test_predict_gives_the_logits_of_the_network_in_eval_mode(kind: str, dims: int) -> None:
    estimator = build(kind, dims)
    x = images(dims, 5)
    with torch.no_grad():
        expected = copy.deepcopy(estimator.network).eval()(torch.from_numpy(x)).numpy()
    if kind == "one-logit":
        expected = np.concatenate([0 * expected, expected - np.log(0.3 / 0.7)], 1)
    for batch_size in (128, 2):
        found = estimator.predict(x, batch_size=batch_size)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@every_rank
@pytest.mark.parametrize("kind", ["softmax segmenter", "region segmenter"])
def test_predict_with_a_sliding_window_equals_the_inferer(kind: str, dims: int) -> None:
    estimator = build(kind, dims, inferer=sliding(dims))
    x = images(dims)
    with torch.no_grad():
        expected = sliding(dims)(torch.from_numpy(x), copy.deepcopy(estimator.network).eval())
    np.testing.assert_allclose(estimator.predict(x), expected.numpy(), rtol=1e-5, atol=1e-6)


def test_monai_transforms_are_applied_to_each_case_by_itself() -> None:
    estimator = build("multiclass", 2, input_transform=NormalizeIntensity())
    x = images(2, 3) * np.array([0.2, 0.5, 1.0], dtype=np.float32).reshape(3, 1, 1, 1)
    alone = np.concatenate([estimator.predict(case[None]) for case in x])
    np.testing.assert_allclose(estimator.predict(x), alone, rtol=1e-5, atol=1e-6)
    # contrast is normalised away, so the scaled copies look the same to the network
    np.testing.assert_allclose(estimator.predict(x), estimator.predict(images(2, 3)), rtol=1e-3, atol=1e-4)


def test_normalize_intensity_of_monai_hides_its_statistics_from_the_gradient() -> None:
    x, y = images(2, dtype=np.float64), reference("multiclass", 2)
    mean, std = (torch.from_numpy(f(x, axis=(1, 2, 3), keepdims=True)) for f in (np.mean, np.std))
    transforms = {
        "MONAI": NormalizeIntensity(dtype=np.float64),
        "statistics as constants": lambda z: (z - mean) / std,
        "exact": standardised,
    }
    gradient = {
        name: build("multiclass", 2, dtype=torch.float64, input_transform=transform).loss_gradient(x, y)
        for name, transform in transforms.items()
    }
    np.testing.assert_allclose(gradient["MONAI"], gradient["statistics as constants"], rtol=1e-5, atol=1e-9)
    assert not np.allclose(gradient["MONAI"], gradient["exact"], rtol=1e-2), "MONAI differentiates its statistics now"


def test_a_network_without_parameters_is_asked_in_float32() -> None:
    class Mean(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = x.flatten(1).mean(1, keepdim=True)
            return torch.cat([z, -z], 1)

    estimator = MonaiClassifier(Mean(), (1, 4, 4), decision=Multiclass(2))
    x = np.full((2, 1, 4, 4), 0.25)
    np.testing.assert_array_equal(estimator.predict(x), [[0.25, -0.25]] * 2)
    np.testing.assert_array_equal(estimator.class_gradient(x, 1), np.full((2, 1, 1, 4, 4), -1 / 16))


def test_a_transform_that_gives_float32_fits_a_float64_network() -> None:
    estimator = build("multiclass", 2, dtype=torch.float64, input_transform=ScaleIntensityRange(0, 1, -1, 1))
    assert estimator.loss_gradient(images(2), reference("multiclass", 2)).dtype == np.float32


@pytest.mark.parametrize("threshold", [0.5, 0.2, 0.9])
def test_one_logit_is_shown_as_two_classes_with_the_sigmoids_verdict(threshold: float) -> None:
    network = BrightnessClassifier((20.0,), (0.7,))
    estimator = MonaiClassifier(network, (1, *SHAPES[2]), decision=Multilabel(1, threshold=threshold))
    x = grey_images(2, tuple(np.linspace(0.2, 0.8, 13)))
    p = torch.sigmoid(network(torch.from_numpy(x)))[:, 0].detach()
    two = torch.from_numpy(estimator.predict(x))
    np.testing.assert_array_equal(two.argmax(1), (p > threshold).long())
    if threshold == 0.5:
        torch.testing.assert_close(two.softmax(1)[:, 1], p, rtol=1e-5, atol=1e-6)
    assert estimator.decision == Multiclass(2) and estimator.nb_classes == 2


# ---- references -------------------------------------------------------------------------------------------------


def forms(kind: str, y: np.ndarray) -> dict[str, Any]:
    """Every usual form of the same reference."""
    tensor = torch.from_numpy(y)
    common = {"tensor": tensor, "MetaTensor": MetaTensor(tensor), "list": y.tolist()}
    if kind in ("multiclass", "softmax segmenter"):
        one_hot = np.moveaxis(np.eye(3)[y], -1, 1)
        common |= {"one-hot": one_hot, "bool one-hot": one_hot == 1, "channel": y[:, None], "uint8": y.astype(np.uint8)}
        if kind == "softmax segmenter":
            common |= {"float32 label map": y[:, None].astype(np.float32), "float64 MetaTensor": MetaTensor(y * 1.0)}
        return common
    if kind == "one-logit":
        return common | {"one-hot": np.eye(2)[y], "column": y[:, None]}
    common |= {"bool": y == 1, "float32": y.astype(np.float32), "uint8": y.astype(np.uint8)}
    return common | ({"without channel": y[:, 0]} if kind == "one-logit segmenter" else {})


@every_rank
@every_kind
def test_every_usual_form_of_the_reference_gives_the_same_gradient(kind: str, dims: int) -> None:
    estimator = build(kind, dims)
    x, y = images(dims), reference(kind, dims)
    expected = estimator.loss_gradient(x, y)
    for name, form in forms(kind, y).items():
        np.testing.assert_array_equal(estimator.loss_gradient(x, form), expected, err_msg=name)


def test_overlapping_regions_are_scored_and_differentiated_each_on_its_own() -> None:
    estimator = build("region segmenter", 2, dtype=torch.float64)
    x = images(2, dtype=np.float64)
    both = np.ones((2, 2, *SHAPES[2]), dtype=int)  # every voxel carries both labels
    target, valid = estimator.decision.canonical(both, SHAPES[2])
    logits = torch.full((2, 2, *SHAPES[2]), 3.0)
    assert estimator.decision.score(logits, target, valid).tolist() == [1, 1]
    assert np.abs(estimator.loss_gradient(x, both)).max() > 0


@pytest.mark.parametrize("kind", ["tensor", "MetaTensor", "array"])
def test_gradients_come_back_as_the_images_were_given(kind: str) -> None:
    estimator = build("softmax segmenter", 2)
    x, y = images(2), reference("softmax segmenter", 2)
    given = {"tensor": torch.from_numpy(x), "MetaTensor": MetaTensor(x), "array": x}[kind]
    gradient = estimator.loss_gradient(given, y)
    assert isinstance(gradient, np.ndarray if kind == "array" else torch.Tensor)
    np.testing.assert_array_equal(np.asarray(gradient), estimator.loss_gradient(x, y))


# ---- training ---------------------------------------------------------------------------------------------------


@every_rank
@pytest.mark.parametrize("kind", ["multiclass", "one-logit", "multilabel", "segmenter", "one-logit segmenter"])
def test_fit_learns_a_simple_task(kind: str, dims: int) -> None:
    torch.manual_seed(0)
    shape = (1, *SHAPES[dims])
    if kind.endswith("segmenter"):
        outputs = 2 if kind == "segmenter" else 1
        network: nn.Module = BrightnessSegmenter(dims, outputs, slope=0.01)
        decision: Any = Multiclass(2, background=0) if outputs == 2 else Multilabel(1)
        x, y = bright_boxes(dims, 6)
        x, target = 0.5 + 10 * (x - 0.5), y if outputs == 2 else y[:, None]
        make: Any = MonaiSegmenter
    else:
        outputs = {"multiclass": 2, "one-logit": 1, "multilabel": 3}[kind]
        network = BrightnessClassifier((0.01,) * outputs)
        decision = Multiclass(2) if kind == "multiclass" else Multilabel(outputs)
        bright = np.arange(12) % 2
        x = grey_images(dims, tuple(0.25 + 0.5 * bright))
        target = np.stack([bright, 1 - bright, bright], 1) if kind == "multilabel" else bright
        make = MonaiMultilabelClassifier if kind == "multilabel" else MonaiClassifier
    optimizer = torch.optim.Adam(network.parameters(), lr=0.5)
    estimator = make(network, shape, decision=decision, optimizer=optimizer)
    before = estimator.compute_loss(x, target, reduction="mean")
    estimator.fit(x, target, batch_size=4, nb_epochs=25, seed=0)
    assert estimator.compute_loss(x, target, reduction="mean") < 0.5 * before
    assert mean_score(estimator, x, target) > 0.95


def mean_score(estimator: Any, x: np.ndarray, y: np.ndarray) -> float:
    target, valid = estimator.decision.canonical(y, x.shape[2:] if estimator.segments else ())
    return float(estimator.decision.score(torch.from_numpy(estimator.predict(x)), target, valid).mean())


@every_rank
def test_fit_with_a_loss_of_monai_and_a_deeply_supervised_network(dims: int) -> None:
    torch.manual_seed(0)
    network = DynUNet(
        dims,
        1,
        2,
        kernel_size=[3, 3, 3],
        strides=[1, 2, 2],
        upsample_kernel_size=[2, 2],
        filters=[4, 8, 8],
        deep_supervision=True,
        deep_supr_num=1,
    )
    shape = (8,) * dims
    estimator = MonaiSegmenter(
        network,
        (1, *shape),
        decision=Multiclass(2, background=0),
        loss=DiceCELoss(softmax=True, to_onehot_y=True),
        optimizer=torch.optim.Adam(network.parameters(), lr=0.01),
    )
    y = np.zeros((4, *shape), dtype=int)
    y[:, 2:6, 2:6] = 1
    x = (0.3 + 0.4 * y[:, None]).astype(np.float32)
    before = estimator.compute_loss(x, y, reduction="mean")
    estimator.fit(x, y, batch_size=2, nb_epochs=6, seed=0)
    assert estimator.compute_loss(x, y, reduction="mean") < before
    assert estimator.loss.__class__ is DiceCELoss
    assert estimator.predict(x).shape == (4, 2, *shape)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_compute_loss_reduces_as_asked(reduction: str) -> None:
    estimator = build("multiclass", 2)
    x, y = images(2, 3), reference("multiclass", 2, 3)
    each = estimator.compute_loss(x, y)
    assert each.shape == (3,)
    found = estimator.compute_loss(x, y, reduction=reduction)
    np.testing.assert_allclose(found, {"none": each, "mean": each.mean(), "sum": each.sum()}[reduction], rtol=1e-6)
    with pytest.raises(ValueError, match="choose 'none', 'mean' or 'sum'"):
        estimator.compute_loss(x, y, reduction="median")


# ---- the model is left as found ---------------------------------------------------------------------------------


def snapshot(network: nn.Module) -> dict[str, Any]:
    found: dict[str, Any] = {f"flag {name}": module.training for name, module in network.named_modules()}
    for name, parameter in network.named_parameters():
        found[f"grad {name}"] = None if parameter.grad is None else parameter.grad.clone()
        found[f"requires_grad {name}"] = parameter.requires_grad
    found |= {name: value.clone() for name, value in network.state_dict().items()}
    return found | {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].copy(),
        "python": random.getstate(),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before.keys() == after.keys()
    for name, value in before.items():
        same = np.array_equal(value, after[name]) if hasattr(value, "shape") else value == after[name]
        assert same, name


CALLS: dict[str, Callable[[Any, np.ndarray, np.ndarray], Any]] = {
    "predict": lambda e, x, y: e.predict(x),
    "predict, training mode": lambda e, x, y: e.predict(x, training_mode=True),
    "loss_gradient": lambda e, x, y: e.loss_gradient(x, y),
    "loss_gradient, training mode": lambda e, x, y: e.loss_gradient(x, y, training_mode=True),
    "compute_loss": lambda e, x, y: e.compute_loss(x, y),
    "get_activations": lambda e, x, y: e.get_activations(x, "norm"),
    "get_activations, framework": lambda e, x, y: e.get_activations(x, "norm", framework=True),
    "class_gradient": lambda e, x, y: e.class_gradient(x),
}


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", ["multiclass", "one-logit", "multilabel", "softmax segmenter"])
def test_the_network_and_the_generators_are_left_as_found(kind: str, call: str, fails: bool) -> None:
    if call == "class_gradient" and KINDS[kind][0] is not MonaiClassifier:
        assert not hasattr(build(kind, 2), "class_gradient")
        return
    estimator = build(kind, 2)
    x, y = images(2), reference(kind, 2)
    before = snapshot(estimator.network)
    estimator.network.fails = fails
    if fails:
        with pytest.raises(RuntimeError, match="the network failed"):
            CALLS[call](estimator, x, y)
    else:
        CALLS[call](estimator, x, y)
    assert_same(before, snapshot(estimator.network))


def test_training_mode_uses_dropout_and_batch_statistics() -> None:
    estimator = build("multiclass", 2)
    x = images(2)
    assert not np.allclose(estimator.predict(x), estimator.predict(x, training_mode=True))


# ---- copies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
@pytest.mark.parametrize("kind", ["multiclass", "one-logit", "multilabel", "softmax segmenter"])
def test_copies_are_equal_and_independent(kind: str, how: str) -> None:
    estimator = build(kind, 2)
    optimizer = torch.optim.SGD(estimator.network.parameters(), lr=0.1)
    estimator._optimizer = optimizer
    x, y = images(2, 4), reference(kind, 2, 4)
    stored = sorted(Path(config.ART_DATA_PATH).glob("*")) if Path(config.ART_DATA_PATH).exists() else []
    clone = pickle.loads(pickle.dumps(estimator)) if how == "pickle" else copy.deepcopy(estimator)
    after = sorted(Path(config.ART_DATA_PATH).glob("*")) if Path(config.ART_DATA_PATH).exists() else []
    assert stored == after, "a copy wrote files"
    clean = estimator.predict(x)
    np.testing.assert_array_equal(clone.predict(x), clean)
    np.testing.assert_array_equal(clone.loss_gradient(x, y), estimator.loss_gradient(x, y))
    assert clone.decision == estimator.decision and clone.intensity == estimator.intensity
    clone.fit(x, y, batch_size=2, nb_epochs=1)
    np.testing.assert_array_equal(estimator.predict(x), clean)
    assert np.abs(clone.predict(x) - clean).max() > 1e-4, "the copy's optimizer trains another network"


# ---- activations ------------------------------------------------------------------------------------------------


@every_rank
def test_activations_by_name_and_by_index(dims: int) -> None:
    estimator = build("softmax segmenter", dims)
    x = images(dims, 3)
    network = copy.deepcopy(estimator.network).eval()
    with torch.no_grad():
        expected = network.frozen_norm(network.first(torch.from_numpy(x))).numpy()
    index = estimator.layer_names.index("frozen_norm")
    for layer in ("frozen_norm", index, index - len(estimator.layer_names)):
        np.testing.assert_allclose(estimator.get_activations(x, layer, batch_size=2), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="layer 'nowhere' is unknown; see layer_names"):
        estimator.get_activations(x, "nowhere")
    with pytest.raises(ValueError, match=r"layer 99 is unknown; see layer_names"):
        estimator.get_activations(x, 99)


def test_activations_as_tensors_have_a_graph_to_the_images_but_not_to_the_weights() -> None:
    estimator = build("multiclass", 2)
    x = torch.from_numpy(images(2)).requires_grad_()
    before = snapshot(estimator.network)
    estimator.get_activations(x, "norm", framework=True).sum().backward()
    assert x.grad is not None and x.grad.abs().max() > 0
    assert_same(before, snapshot(estimator.network))


def test_activations_of_windows_are_refused() -> None:
    estimator = build("softmax segmenter", 2, inferer=sliding(2))
    with pytest.raises(ValueError, match="choose a layer that runs once per image"):
        estimator.get_activations(images(2), "norm")


# ---- two-class views --------------------------------------------------------------------------------------------


class Fixed(nn.Module):
    """Returns logits it was given, whatever the image, plus what keeps the graph alive."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits[: len(x)] + 0 * x.flatten(1).sum(1).view(-1, *[1] * (self.logits.ndim - 1))


@every_rank
@pytest.mark.parametrize("threshold", [0.6, 0.8, 1.0])
@pytest.mark.parametrize("kind", ["softmax segmenter", "region segmenter", "one-logit segmenter"])
def test_the_sign_of_a_segmenters_margin_is_the_hard_verdict(kind: str, threshold: float, dims: int) -> None:
    decision = KINDS[kind][1]
    generator = torch.Generator().manual_seed(0)
    y = reference(kind, dims, 1)
    target, valid = decision.canonical(y, SHAPES[dims])
    # from far off to exactly right, steep and flat
    right = 2.0 * decision.one_hot(target) - 1
    mixes = torch.linspace(0, 1, 40).view(-1, *[1] * (dims + 1))
    logits = torch.randn(40, decision.channels, *SHAPES[dims], generator=generator) * (1 - mixes) + 0.2 * mixes * right
    segmenter = MonaiSegmenter(Fixed(logits), (1, *SHAPES[dims]), decision=decision)
    view = segmenter.as_classifier(reference=y, threshold=threshold)
    found = view.predict(images(dims, 40)).argmax(1)
    holds = decision.score(logits, target, valid).numpy() >= threshold
    assert 0 < holds.sum() < 40
    np.testing.assert_array_equal(found == 0, holds)


@pytest.mark.parametrize("label", [0, 1, 2])
def test_one_label_view_is_that_labels_verdict(label: int) -> None:
    logits = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    decision = KINDS["multilabel"][1]
    estimator = MonaiMultilabelClassifier(Fixed(logits), (1, *SHAPES[2]), decision=decision)
    found = estimator.as_classifier(label=label).predict(images(2, 30)).argmax(1)
    np.testing.assert_array_equal(found, decision.harden(logits)[:, label])


def test_all_labels_view_is_broken_once_one_label_differs() -> None:
    logits = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    decision = KINDS["multilabel"][1]
    estimator = MonaiMultilabelClassifier(Fixed(logits), (1, *SHAPES[2]), decision=decision)
    found = estimator.as_classifier(reference=[1, 0, 1]).predict(images(2, 60)).argmax(1)
    same = (decision.harden(logits) == torch.tensor([1, 0, 1])).all(1).numpy()
    assert 0 < same.sum() < 60
    np.testing.assert_array_equal(found == 0, same)


@every_rank
@pytest.mark.parametrize("level", [0.001, 0.02, 0.3])
def test_the_margin_of_a_segmenter_has_its_own_gradient_also_where_soft_and_hard_dice_disagree(
    level: float, dims: int
) -> None:
    x, mask = bright_boxes(dims, 1)
    x = 0.5 + level * (2 * mask[:, None] - 1.0)  # always right; the smaller the level, the lower the soft Dice
    segmenter = MonaiSegmenter(BrightnessSegmenter(dims).double(), x.shape[1:], decision=Multiclass(2, background=0))
    view = segmenter.as_classifier(reference=mask, threshold=0.9)
    assert view.predict(x).argmax(1) == 0
    gradient = view.class_gradient(x, label=0)[:, 0]
    direction = np.random.default_rng(0).normal(size=x.shape)
    expected = slope(
        lambda z: float(view.model(torch.from_numpy(z))[0, 0].detach()), x, direction, h=1e-7 if level < 0.01 else 1e-6
    )
    assert np.abs(gradient).max() > 0
    assert (gradient * direction).sum() == pytest.approx(expected, rel=1e-4)


def test_a_view_of_one_organ_looks_at_that_organ() -> None:
    decision = Multiclass(3, background=0)
    y = np.zeros((1, *SHAPES[2]), dtype=int)
    y[:, :3], y[:, 5:] = 1, 2
    wrong_second = np.where(y == 2, 0, y)
    logits = 5.0 * torch.from_numpy(np.moveaxis(np.eye(3)[wrong_second], -1, 1)).float()
    segmenter = MonaiSegmenter(Fixed(logits), (1, *SHAPES[2]), decision=decision)
    verdict = {
        label: int(segmenter.as_classifier(reference=y, label=label).predict(images(2, 1)).argmax()) for label in (1, 2)
    }
    assert verdict == {1: 0, 2: 1}


@pytest.mark.parametrize("kind", ["multiclass", "one-logit", "multilabel", "softmax segmenter"])
def test_probabilities_are_the_softmax_and_keep_the_losses_gradient(kind: str) -> None:
    estimator = build(kind, 2, dtype=torch.float64)
    x = images(2, 1, np.float64)
    options = {
        "multiclass": {},
        "one-logit": {},
        "multilabel": {"label": 0},
        "softmax segmenter": {"reference": reference(kind, 2, 1)},
    }[kind]
    plain, view = (estimator.as_classifier(**options, probabilities=p) for p in (False, True))
    expected = torch.from_numpy(plain.predict(x)).softmax(1)
    np.testing.assert_allclose(view.predict(x), expected, rtol=1e-5, atol=1e-7)
    y = np.array([0])
    np.testing.assert_allclose(view.loss_gradient(x, y), plain.loss_gradient(x, y), rtol=1e-8, atol=1e-14)


def test_a_saturating_view_reads_values_outside_the_range_as_its_ends() -> None:
    estimator = build("multiclass", 2, intensity=Intensity(0.3, 0.7))
    x = images(2)
    with pytest.raises(ValueError, match="outside the intensity range"):
        estimator.predict(x)
    view = estimator.as_classifier(saturate=True)
    np.testing.assert_allclose(view.predict(x), estimator.predict(x.clip(0.3, 0.7)), rtol=1e-6)
    with pytest.raises(ValueError, match="NaN or infinite"):
        view.predict(np.full_like(x, np.nan))


VIEW_REFUSALS: dict[str, tuple[str, dict[str, Any], str]] = {
    "neither label nor reference": ("multilabel", {}, "give either label= .* or reference="),
    "both": ("multilabel", {"label": 0, "reference": [1, 0, 1]}, "give either label= .* or reference="),
    "label that does not exist": ("multilabel", {"label": 3}, "label=3 does not exist; give 0 to 2"),
    "too few labels": ("multilabel", {"reference": [1, 0]}, r"shape \(1, 2\); accepted is \(N, 3, \*S\)"),
    "several cases": (
        "softmax segmenter",
        {"reference": np.ones((2, *SHAPES[2]), dtype=int)},
        "of one case, got references of 2; make one view per case",
    ),
    "a negative case": (
        "softmax segmenter",
        {"reference": np.zeros((1, *SHAPES[2]), dtype=int)},
        "no voxel of what is to be scored",
    ),
    "an absent organ": (
        "softmax segmenter",
        {"reference": np.ones((1, *SHAPES[2]), dtype=int), "label": 2},
        "no voxel of what is to be scored",
    ),
    "an organ that does not exist": (
        "softmax segmenter",
        {"reference": np.ones((1, *SHAPES[2]), dtype=int), "label": 5},
        "give numbers from 0 to 2",
    ),
    "threshold 0": (
        "softmax segmenter",
        {"reference": np.ones((1, *SHAPES[2]), dtype=int), "threshold": 0.0},
        "threshold=0.0 must be a Dice above 0 and at most 1",
    ),
}


@pytest.mark.parametrize("case", VIEW_REFUSALS)
def test_views_that_make_no_sense_are_refused(case: str) -> None:
    kind, options, message = VIEW_REFUSALS[case]
    with pytest.raises(ValueError, match=message):
        build(kind, 2).as_classifier(**options)


def test_a_reference_may_be_given_in_every_usual_form_for_a_view() -> None:
    estimator = build("softmax segmenter", 2)
    y, x = reference("softmax segmenter", 2, 1), images(2, 1)
    expected = estimator.as_classifier(reference=y).predict(x)
    for form in (y[0], y[:, None], torch.from_numpy(y), MetaTensor(y), np.moveaxis(np.eye(3)[y], -1, 1)):
        np.testing.assert_array_equal(estimator.as_classifier(reference=form).predict(x), expected)


# ---- refusals ---------------------------------------------------------------------------------------------------

GOOD = images(2)

IMAGE_REFUSALS: dict[str, tuple[Any, str]] = {
    "NaN": (np.full_like(GOOD, np.nan), "NaN or infinite values; replace them"),
    "infinite": (np.full_like(GOOD, np.inf), "NaN or infinite values; replace them"),
    "too bright": (GOOD + 1, r"outside the intensity range 0\.0 to 1\.0; rescale them"),
    "too dark": (GOOD - 1, r"outside the intensity range 0\.0 to 1\.0; rescale them"),
    "one image": (GOOD[0], r"shape \(1, 8, 8\); this model takes \(N, 1, \*S\) with 2 spatial dimensions"),
    "a volume": (GOOD[..., None], r"shape \(2, 1, 8, 8, 1\); this model takes \(N, 1, \*S\) with 2 spatial"),
    "two channels": (np.repeat(GOOD, 2, 1), r"shape \(2, 2, 8, 8\); this model takes \(N, 1, \*S\)"),
    "channels last": (np.moveaxis(GOOD, 1, -1), r"this model takes \(N, 1, \*S\)"),
    "empty batch": (GOOD[:0], "the batch is empty; give at least one image"),
    "integers": ((GOOD * 255).astype(np.uint8), "dtype torch.uint8; convert them to float32 and keep their units"),
}


@pytest.mark.parametrize("kind", ["multiclass", "multilabel", "softmax segmenter"])
@pytest.mark.parametrize("case", IMAGE_REFUSALS)
def test_wrong_images_are_refused_with_what_is_accepted(case: str, kind: str) -> None:
    estimator = build(kind, 2)
    x, message = IMAGE_REFUSALS[case]
    calls: list[Callable[[], Any]] = [
        lambda: estimator.predict(x),
        lambda: estimator.loss_gradient(x, reference(kind, 2)),
        lambda: estimator.fit(x, reference(kind, 2)),
        lambda: estimator.get_activations(x, 0),
    ]
    if hasattr(estimator, "class_gradient"):
        calls.append(lambda: estimator.class_gradient(x))
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


REFERENCE_REFUSALS: dict[str, tuple[str, Any, str]] = {
    "class outside": ("multiclass", np.array([0, 3]), "reference holds class 3; accepted are 0 to 2"),
    "negative class": ("multiclass", np.array([0, -1]), "reference holds class -1; accepted are 0 to 2"),
    "float labels of images": ("multiclass", np.array([0.0, 1.0]), "give integer class numbers, or a one-hot array"),
    "not one-hot": ("multiclass", np.array([[1, 1, 0], [0, 1, 0]]), "not one-hot over its 3 channels"),
    "a mask for an image": ("multiclass", np.zeros((2, *SHAPES[2]), dtype=int), "reference has shape"),
    "labels outside": ("multilabel", np.array([[0, 1, 2], [0, 0, 0]]), "reference holds 2; a multi-label"),
    "too few labels": ("multilabel", np.zeros((2, 2), dtype=int), r"accepted is \(N, 3, \*S\)"),
    "probabilities": ("multilabel", np.array([[0.2, 0.6, 0.9], [0.1, 0.4, 0.7]]), "labels"),
    "voxel class outside": (
        "softmax segmenter",
        np.full((2, *SHAPES[2]), 7),
        "reference holds class 7; accepted are 0 to 2",
    ),
    "fractions": ("softmax segmenter", np.full((2, *SHAPES[2]), 0.5), "whole class numbers"),
    "another size": ("softmax segmenter", np.zeros((2, 4, 4), dtype=int), r"shape \(2, 4, 4\); accepted are"),
}


@pytest.mark.parametrize("case", REFERENCE_REFUSALS)
def test_wrong_references_are_refused_with_what_is_accepted(case: str) -> None:
    kind, y, message = REFERENCE_REFUSALS[case]
    estimator = build(kind, 2)
    for call in (estimator.loss_gradient, estimator.compute_loss, estimator.fit):
        with pytest.raises(ValueError, match=message):
            call(images(2), y)


@pytest.mark.parametrize("kind", ["multiclass", "multilabel", "softmax segmenter"])
def test_as_many_references_as_images_are_needed(kind: str) -> None:
    estimator = build(kind, 2)
    for call in (estimator.loss_gradient, estimator.compute_loss, estimator.fit):
        with pytest.raises(ValueError, match="1 references for 2 images; give one per case"):
            call(images(2), reference(kind, 2, 1))


SHAPE = (1, *SHAPES[2])
NET = nn.Conv2d(1, 2, 1)

CONSTRUCTION_REFUSALS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "multi-label as classifier": (
        lambda: MonaiClassifier(NET, SHAPE, decision=Multilabel(2)),
        ValueError,
        "exclusive classes or one logit, got .* use MonaiMultilabelClassifier",
    ),
    "multi-class as multi-label": (
        lambda: MonaiMultilabelClassifier(NET, SHAPE, decision=Multiclass(2)),  # type: ignore[arg-type]
        TypeError,
        "needs decision=Multilabel.* use MonaiClassifier",
    ),
    "a loss for one logit": (
        lambda: MonaiClassifier(NET, SHAPE, decision=Multilabel(1), loss=DiceLoss(sigmoid=True)),
        ValueError,
        "leave loss out, or give the network two outputs",
    ),
    "input_shape with the batch": (
        lambda: MonaiSegmenter(NET, (1, 1, 8, 8, 8), decision=Multiclass(2)),
        ValueError,
        r"input_shape=\(1, 1, 8, 8, 8\) must be \(C, H, W\) or \(C, H, W, D\), without the batch",
    ),
    "input_shape without channel": (
        lambda: MonaiClassifier(NET, (8, 8), decision=Multiclass(2)),
        ValueError,
        r"must be \(C, H, W\) or \(C, H, W, D\)",
    ),
    "no module": (
        lambda: MonaiSegmenter(lambda x: x, SHAPE, decision=Multiclass(2)),  # type: ignore[arg-type]
        TypeError,
        "network must be a torch.nn.Module, got function",
    ),
    "a Dice loss without activation": (
        lambda: MonaiSegmenter(NET, SHAPE, decision=Multiclass(2), loss=DiceLoss()),
        ValueError,
        "build it with softmax=True or sigmoid=True",
    ),
    "a Dice loss over the batch": (
        lambda: MonaiSegmenter(NET, SHAPE, decision=Multiclass(2), loss=DiceLoss(softmax=True, batch=True)),
        ValueError,
        "build it with batch=False",
    ),
    "a range per channel that does not fit": (
        lambda: MonaiSegmenter(NET, SHAPE, decision=Multiclass(2), intensity=Intensity((0.0, 0.0), (1.0, 1.0))).predict(
            images(2)
        ),
        ValueError,
        "images have 1 channels, the intensity range has 2",
    ),
}


@pytest.mark.parametrize("case", CONSTRUCTION_REFUSALS)
def test_arguments_that_do_not_fit_are_refused(case: str) -> None:
    call, error, message = CONSTRUCTION_REFUSALS[case]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("decision", [Multiclass(4), Multilabel(3)])
def test_a_network_with_another_number_of_outputs_is_refused(decision: Any) -> None:
    estimator = MonaiSegmenter(NET, SHAPE, decision=decision)
    message = re.escape(f"the decision needs logits (N, {decision.channels}, *(8, 8))")
    with pytest.raises(ValueError, match=message):
        estimator.predict(images(2))


def test_attributes_art_reads_are_right() -> None:
    per_channel = Intensity((0.0, -1.0), (1.0, 2.0))
    estimator = MonaiSegmenter(nn.Conv3d(2, 2, 1), (2, 6, 6, 6), decision=Multiclass(2), intensity=per_channel)
    assert estimator.input_shape == (2, 6, 6, 6) and estimator.channels_first and estimator.device.type == "cpu"
    low, high = estimator.clip_values
    assert low.shape == (2, 1, 1, 1) and high.ravel().tolist() == [1.0, 2.0]
    assert isinstance(estimator.model, nn.Module) and not isinstance(estimator.model, nn.Sequential)
    assert isinstance(estimator.network, nn.Conv3d)


@pytest.mark.parametrize("transform", [NormalizeIntensity(), Compose([NormalizeIntensity(subtrahend=0.5)])])
def test_statistics_that_monai_detaches_are_announced(transform):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    with pytest.warns(UserWarning, match="as constants in the gradient"):
        MonaiClassifier(net, (1, 4, 4), decision=Multiclass(2), input_transform=transform)


def test_fixed_statistics_are_not(recwarn):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    fixed = NormalizeIntensity(subtrahend=0.5, divisor=0.2)
    MonaiClassifier(net, (1, 4, 4), decision=Multiclass(2), input_transform=fixed)
    assert not [w for w in recwarn if "constants in the gradient" in str(w.message)]
