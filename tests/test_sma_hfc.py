"""SMA and HFC: their formulas written out in numpy, gradients by differences, and what they were made for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from builders import KINDS, SIDE, setting
from scipy.ndimage import gaussian_filter
from torch import nn

from medadv.adapters import MonaiClassifier
from medadv.adaptive import eot
from medadv.attacks import create
from medadv.decisions import Multiclass, Multilabel
from medadv.detectors import evasion, guarded, threshold_at_fpr
from medadv.features import FeatureVictim, fit_statistics
from medadv.metrics import auc
from medadv.objectives import CrossEntropy
from medadv.objectives.features import HierarchicalFeatures
from medadv.objectives.stability import Stabilised, gaussian_blur
from medadv.victims import Features, victim_of


@pytest.mark.parametrize("shape", [(2, 3, 9, 7), (2, 1, 6, 5, 4)])
@pytest.mark.parametrize("sigma", [0.0, 0.6, 2.0])
def test_the_blur_is_scipys(shape, sigma):
    x = np.random.default_rng(0).normal(size=shape)
    expected = gaussian_filter(x, sigma, axes=tuple(range(2, len(shape))), mode="nearest", truncate=4)
    assert np.allclose(gaussian_blur(torch.from_numpy(x), sigma).numpy(), expected, atol=1e-12)


def test_the_blur_takes_a_width_per_axis():
    x = np.random.default_rng(0).normal(size=(1, 1, 6, 5, 4))
    expected = gaussian_filter(x, (0, 0, 1.0, 0, 2.0), mode="nearest")
    assert np.allclose(gaussian_blur(torch.from_numpy(x), (1.0, 0, 2.0)).numpy(), expected, atol=1e-12)
    with pytest.raises(ValueError, match="2 widths for 3 spatial axes"):
        gaussian_blur(torch.from_numpy(x), (1.0, 2.0))


def in_numpy(kind: str, z: np.ndarray, blurred: np.ndarray, y: np.ndarray, sign: float, a: float) -> np.ndarray:
    """The objective from its formula, case by case."""
    values = []
    for case, smooth, target in zip(z, blurred, y, strict=True):
        if "labels" in kind:
            p, q = (1 / (1 + np.exp(-v)) for v in (smooth, case))
            entropy = -(target * np.log(q) + (1 - target) * np.log(1 - q))
            divergence = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
        else:
            p, q = (np.exp(v) / np.exp(v).sum(0) for v in (smooth, case))
            entropy = -np.log(np.take_along_axis(q, target[None], 0)[0])
            divergence = (p * np.log(p / q)).sum(0)
        values.append(sign * entropy.mean() - a * divergence.mean())
    return np.array(values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("targeted", [False, True])
def test_sma_is_the_papers_formula(kind, dims, targeted):
    case = setting(kind, dims, dtype=np.float64)
    objective = Stabilised(case.decision, targeted=targeted, a=0.7)
    z, blurred = np.random.default_rng(0).normal(size=(2, 3, 3, *(SIDE[dims] if "voxel" in kind else ())))
    target, valid = case.canonical()
    value = objective(torch.from_numpy(z), target, valid=valid, others=(torch.from_numpy(blurred),))
    assert np.allclose(value.numpy(), in_numpy(kind, z, blurred, case.y, -1 if targeted else 1, 0.7))
    alone = Stabilised(case.decision, targeted=targeted, a=0.0)
    plain = CrossEntropy(case.decision, targeted=targeted)(torch.from_numpy(z), target, valid=valid)
    assert torch.allclose(alone(torch.from_numpy(z), target, valid=valid, others=(torch.from_numpy(blurred),)), plain)


@pytest.mark.parametrize("kind", ["class", "voxel-labels"])
def test_a_step_of_sma_is_the_algorithm_written_out(kind):
    case = setting(kind, dtype=np.float64)
    x, (target, _) = torch.from_numpy(case.x), case.canonical()
    attack = create("sma", case.estimator, eps=0.05, eps_step=0.02, max_iter=3, a=0.8, sigma=1.2, keep="last")
    x_adv = attack.generate(case.x, case.y)
    assert vars(attack.passes) == {"forward": 6, "backward": 3}
    net = case.net.eval()
    current = x.clone()
    for _ in range(3):
        smooth = torch.from_numpy(gaussian_filter(current.numpy(), 1.2, axes=(2, 3), mode="nearest"))
        leaf = current.clone().requires_grad_()
        z, blurred = net(leaf), net(smooth).detach()
        if kind == "class":
            stay = -(blurred.softmax(1) * z.log_softmax(1)).sum(1)  # cross-entropy: the gradient of the divergence
            loss = nn.functional.cross_entropy(z, target, reduction="sum") - 0.8 * stay.sum()
        else:
            entropy = nn.functional.binary_cross_entropy_with_logits
            loss = entropy(z, target.double(), reduction="none") - 0.8 * entropy(z, blurred.sigmoid(), reduction="none")
            loss = loss.flatten(1).mean(1).sum()
        (grad,) = torch.autograd.grad(loss, leaf)
        current = (current + 0.02 * grad.sign()).clamp(x - 0.05, x + 0.05).clamp(0, 1)
    assert np.allclose(x_adv, current.numpy(), atol=1e-12)


@pytest.mark.parametrize("kind", ["labels", "voxel-class", "voxel-labels"])
def test_the_stabilising_term_brings_the_blurred_prediction_nearer(kind):
    case = setting(kind, cases=6)
    apart = {}
    for a in (0.0, 3.0):
        x_adv = create("sma", case.estimator, eps=0.05, a=a, keep="last").generate(case.x, case.y)
        with victim_of(case.estimator).attacked():
            z, blurred = (case.net(torch.from_numpy(np.asarray(x))) for x in
                          (x_adv, gaussian_filter(x_adv, 1.0, axes=(2, 3), mode="nearest")))  # fmt: skip
            p, q = (case.decision.probabilities(v.detach()) for v in (z, blurred))
        apart[a] = float((p - q).abs().mean())
    assert apart[3.0] < apart[0.0]


@pytest.mark.parametrize(("options", "words"), [
    ({"a": -1}, "a=-1 must be"), ({"a": "1"}, "a='1' must be"), ({"sigma": -0.5}, "sigma=-0.5 must be"),
    ({"sigma": float("inf")}, "sigma=inf must be"), ({"sigma": ()}, r"sigma=\(\) must be"),
    ({"norm": 2}, "is for norm inf"),
])  # fmt: skip
def test_bad_settings_of_sma_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        create("sma", setting("class").estimator, eps=0.1, **options)


# --- feature victims and statistics -----------------------------------------------------------------------------


def test_a_feature_victim_shows_the_layers_and_keeps_all_else():
    case = setting("class", 3)
    x = torch.from_numpy(case.x)
    plain, victim = victim_of(case.estimator), FeatureVictim(case.estimator, ["first", "norm"])
    with victim.attacked():
        seen = victim.logits(x)
        output, values, grad = victim.differentiate(x, lambda out: out.features["norm"].flatten(1).sum(1))
        assert torch.equal(seen.logits, plain.logits(x)) and torch.equal(output.logits, seen.logits)
        assert torch.equal(seen.features["first"], case.net.first(x).detach())
        assert torch.equal(seen.features["norm"], case.net.norm(case.net.first(x)).detach())
        leaf = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(case.net.norm(case.net.first(leaf)).sum(), leaf)
    assert torch.allclose(grad, expected) and not values.requires_grad and not output.features["norm"].requires_grad
    assert vars(victim.passes) == {"forward": 2, "backward": 1} and not case.net.first._forward_hooks


class Inner(nn.Module):
    """A 'network' whose layer shows the image's four channels, weighted per voxel."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Identity()
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.layer(x).flatten(2).mean(2))


def inner_estimator() -> MonaiClassifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Inner().double()
    return MonaiClassifier(net, (4, 2, 2), decision=Multiclass(2))


def test_one_component_is_mean_and_covariance_and_the_distance_is_mahalanobis_over_channels():
    rng = np.random.default_rng(0)
    x, y = rng.random((60, 4, 2, 2)), np.arange(60) % 2
    statistics = fit_statistics(inner_estimator(), x, y, layers=["layer"], regularisation=0.0)
    h, probe = x.mean((2, 3)), rng.random((5, 4, 2, 2))
    expected = np.zeros((5, 2))
    for c in (0, 1):
        own = h[y == c]
        precision = np.linalg.inv(np.cov(own, rowvar=False, bias=True))
        away = probe.mean((2, 3)) - own.mean(0)
        expected[:, c] = np.einsum("nf,fg,ng->n", away, precision, away) / 4
    shown = {"layer": torch.from_numpy(probe)}
    for c in (0, 1):
        found = statistics.distance(shown, torch.full((5,), c))
        assert np.allclose(found.numpy(), expected[:, c])
    assert np.allclose(statistics(shown).numpy(), expected.min(1))
    assert statistics.layers == ("layer",) and statistics.classes == 2


def test_with_several_components_the_likeliest_one_counts():
    rng = np.random.default_rng(1)
    clusters = np.where(np.arange(80)[:, None] % 4 < 2, 0.2, 0.8) + 0.05 * rng.random((80, 4))
    x = np.broadcast_to(clusters[..., None, None], (80, 4, 2, 2)).copy()
    statistics = fit_statistics(inner_estimator(), x, np.arange(80) % 2, layers=["layer"], components=2)
    means, factors = statistics.means["layer"], statistics.factors["layer"]
    for level in (0.2, 0.8):
        h = np.full(4, level + 0.02)
        probe = torch.from_numpy(np.broadcast_to(h[None, :, None, None], (1, 4, 2, 2)).copy())
        nearest = int((means[0].numpy() - h).__abs__().sum(1).argmin())
        expected = (((h - means[0, nearest].numpy()) @ factors[0, nearest].numpy()) ** 2).mean()
        assert np.isclose(statistics.distance({"layer": probe}, torch.tensor([0])).item(), expected)


@pytest.mark.parametrize("targeted", [False, True])
def test_the_objective_of_hfc_is_its_formula_and_its_gradient_is_right(targeted):
    estimator = inner_estimator()
    rng = np.random.default_rng(0)
    statistics = fit_statistics(estimator, rng.random((60, 4, 2, 2)), np.arange(60) % 2, layers=["layer"])
    objective = HierarchicalFeatures(Multiclass(2), targeted=targeted, statistics=statistics, weight=0.3)
    victim = FeatureVictim(estimator, ["layer"])
    x, y = torch.from_numpy(rng.random((3, 4, 2, 2))), torch.tensor([0, 1, 0])
    wanted = y if targeted else 1 - y
    valid = torch.ones(3, dtype=torch.bool)
    output, value, grad = victim.differentiate(x, lambda out: objective(out, y, valid=valid))
    log_p = output.logits.log_softmax(1).gather(1, wanted[:, None])[:, 0]
    assert torch.allclose(value, log_p - 0.3 * statistics.distance(output.features, wanted))
    direction = torch.from_numpy(rng.normal(size=x.shape))
    ends = [objective(victim.logits(x + step * direction), y, valid=valid) for step in (1e-6, -1e-6)]
    assert torch.allclose((grad * direction).flatten(1).sum(1), (ends[0] - ends[1]) / 2e-6, rtol=1e-5)


def test_untargeted_each_case_goes_to_its_likeliest_wrong_class():
    statistics = fit_statistics(
        MonaiClassifier(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), (1, 2, 2), decision=Multiclass(3)),
        np.random.default_rng(0).random((30, 1, 2, 2), dtype=np.float32), np.arange(30) % 3, layers=["1"],
    )  # fmt: skip
    z = torch.tensor([[3.0, 2.0, 1.0], [3.0, 1.0, 2.0]])
    features, y, valid = {"1": z}, torch.tensor([0, 0]), torch.ones(2, dtype=torch.bool)
    free = HierarchicalFeatures(Multiclass(3), statistics=statistics)(Features(z, features), y, valid=valid)
    told = HierarchicalFeatures(Multiclass(3), targeted=True, statistics=statistics)
    assert torch.equal(free, told(Features(z, features), torch.tensor([1, 2]), valid=valid))


# --- what HFC was made for --------------------------------------------------------------------------------------


class Detectable(nn.Module):
    """The class is read off channel 0; channel 1 is the same up to noise in clean images, but the head ignores it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2, 3, 1)
        self.head = nn.Linear(3, 2)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]])[..., None, None])
            self.layer.bias.zero_()
            self.head.weight.copy_(20 * torch.tensor([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
            self.head.bias.copy_(torch.tensor([10.0, -10.0]))

    def forward(self, x):
        return self.head(self.layer(x).flatten(2).mean(2))


def lesions(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    level = np.where(y == 1, 0.56, 0.44)[:, None] + 0.01 * rng.normal(size=(n, 1))
    both = level + 0.005 * rng.normal(size=(n, 2))
    return np.broadcast_to(both[..., None, None], (n, 2, 3, 3)).astype(np.float32).copy(), y


@pytest.mark.filterwarnings("ignore:.*rests on the regularisation")
def test_hfc_passes_a_detector_that_finds_plain_pgd():
    estimator = MonaiClassifier(Detectable(), (2, 3, 3), decision=Multiclass(2))
    x_clean, y_clean = lesions(80, 0)
    x, y = lesions(40, 1)
    hfc = create("hfc", estimator, eps=0.15, layers=["layer"]).fit(x_clean, y_clean)
    victim = FeatureVictim(estimator, ["layer"])

    def suspicion(images):
        return hfc.statistics(victim.logits(torch.from_numpy(images)).features).numpy()

    clean, found = suspicion(x), {}
    for name, attack in {"pgd": create("pgd", estimator, eps=0.15), "hfc": hfc}.items():
        x_adv = attack.generate(x, y)
        assert (estimator.predict(x_adv).argmax(1) != y).all()
        found[name] = auc(np.concatenate([clean, suspicion(x_adv)]), np.repeat([False, True], 40))
    assert found["pgd"] == 1 and found["hfc"] < 0.6
    threshold = threshold_at_fpr(hfc.statistics(victim.logits(torch.from_numpy(x_clean)).features), 0.05)
    watched = guarded(victim, hfc.statistics, threshold=threshold, on="features", weight=0.1)
    joint = evasion(watched, x, x_adv, y)
    assert joint.auc == found["hfc"] and joint.evaded.mean() > 0.9
    unaware, aware = (create("apgd-margin", e, eps=0.15, max_iter=40).generate(x, y) for e in (estimator, watched))
    assert not evasion(watched, x, unaware, y).evaded.any()
    assert evasion(watched, x, aware, y).evaded.mean() > 0.5
    towards = create("hfc", estimator, eps=0.15, statistics=hfc.statistics, targeted=True).generate(x, 1 - y)
    assert (estimator.predict(towards).argmax(1) == 1 - y).all()


def test_hfc_runs_on_a_randomised_feature_victim_and_steps_as_released():
    case = setting("class", cases=4)
    x = np.random.default_rng(0).random((30, *case.x.shape[1:]), dtype=np.float32)
    victim = eot(FeatureVictim(case.estimator, ["first"]), n=2, active=[nn.Dropout])
    attack = create("hfc", victim, eps=0.04, layers=["first"], max_iter=4).fit(x, np.arange(30) % 3)
    assert attack.step_size == 0.02
    x_adv = attack.generate(case.x)
    assert np.abs(x_adv - case.x).max() <= 0.04 and attack.passes.backward == 8
    attack.set_params(eps_step=0.01)
    assert attack.step_size == 0.01


def refused(error, words, do):
    with pytest.raises(error, match=words):
        do()


def test_bad_input_is_refused():
    case = setting("class")
    estimator, rng = case.estimator, np.random.default_rng(0)
    x, y = rng.random((30, *case.x.shape[1:]), dtype=np.float32), np.arange(30) % 3
    refused(TypeError, "needs layers=", lambda: create("hfc", estimator, eps=0.1))
    refused(ValueError, "must name submodules .* such as 'first'", lambda: FeatureVictim(estimator, ["conv9"]))
    refused(ValueError, "must name submodules", lambda: FeatureVictim(estimator, "first"))
    refused(ValueError, "must name submodules", lambda: FeatureVictim(estimator, []))
    refused(TypeError, "make the feature victim first", lambda: FeatureVictim(eot(estimator, 2), ["first"]))
    attack = create("hfc", estimator, eps=0.1, layers=["first"])
    refused(ValueError, r"call fit\(x_clean, y_clean\) first", lambda: attack.generate(case.x, case.y))
    refused(ValueError, "give at least 2 of each", lambda: attack.fit(x[:4], y[:4]))
    refused(ValueError, "29 references for 30", lambda: attack.fit(x, y[:29]))
    for option, value in (("components", 0), ("components", 1.5), ("regularisation", -1), ("regularisation", "a")):
        refused(ValueError, f"{option}={value!r}", lambda o=option, v=value: attack.fit(x, y, **{o: v}))
    statistics = attack.fit(x, y).statistics
    refused(
        ValueError,
        "leave layers out",
        lambda: create("hfc", estimator, eps=0.1, layers=["norm"], statistics=statistics),
    )
    refused(ValueError, "lam=-1", lambda: create("hfc", estimator, eps=0.1, statistics=statistics, lam=-1))
    two = MonaiClassifier(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), (1, 8, 6), decision=Multiclass(2))
    refused(ValueError, "must name submodules", lambda: create("hfc", two, eps=0.1, statistics=statistics))
    shown = FeatureVictim(estimator, ["norm"])
    refused(ValueError, "shows norm", lambda: create("hfc", shown, eps=0.1, statistics=statistics))
    for kind in ("labels", "voxel-class"):
        other = setting(kind)
        refused(
            ValueError,
            "feature statistics are for",
            lambda o=other: fit_statistics(o.estimator, o.x, o.y, layers=["first"]),
        )
        refused(ValueError, "is for", lambda o=other: create("hfc", o.estimator, eps=0.1, layers=["first"]))
    with pytest.raises(ValueError, match="exclusive classes"):
        HierarchicalFeatures(Multilabel(3), statistics=statistics)
    with pytest.warns(UserWarning, match="layers first have at least as many channels"):
        fit_statistics(estimator, x[:9], y[:9], layers=["first"])


def test_a_layer_that_runs_on_windows_is_refused():
    from monai.inferers import SlidingWindowInferer

    case = setting("voxel-class")
    case.estimator.model.inferer = SlidingWindowInferer((4, 4), sw_batch_size=2)
    victim = FeatureVictim(case.estimator, ["first"])
    with victim.attacked(), pytest.raises(ValueError, match="choose one that runs once on whole images"):
        victim.logits(torch.from_numpy(case.x))
