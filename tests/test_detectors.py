"""Models with a detector: attacks that know it evade it, the others are caught; scores, thresholds, gradients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import setting
from rows import attack_on, rows
from torch import Tensor, nn

from medadv.adapters import MonaiClassifier, MonaiMultilabelClassifier
from medadv.adaptive import bpda, eot, rescaled
from medadv.attacks import create
from medadv.attacks.transfer import transfer
from medadv.decisions import Multiclass, Multilabel
from medadv.detectors import Evasion, evasion, guarded, threshold_at_fpr
from medadv.features import FeatureVictim
from medadv.objectives import CrossEntropy, Margin, make_objective, monitor_of
from medadv.objectives.evasion import Evasive
from medadv.victims import ModuleVictim, Victim

SHAPE = (1, 4, 4)


def linear(labels: int = 0):
    """Brighter upper half: class 1 (or each label); the lower half does not matter to the diagnosis."""
    outputs = labels or 2
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, outputs))
    weight = torch.cat([torch.ones(8), torch.zeros(8)])
    with torch.no_grad():
        net[1].weight.copy_(
            weight.expand(outputs, 16) * torch.arange(outputs).clamp(min=labels // max(labels, 1))[:, None]
        )
        net[1].bias.copy_(-net[1].weight.sum(1) / 2)
    if labels:
        return MonaiMultilabelClassifier(net, SHAPE, decision=Multilabel(labels))
    return MonaiClassifier(net, SHAPE, decision=Multiclass(2))


def imbalance(x: Tensor) -> Tensor:
    """Clean images are as bright above as below; an attack on the upper half alone is not."""
    return (x[..., :2, :].flatten(1).mean(1) - x[..., 2:, :].flatten(1).mean(1)).abs()


def images(n: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    level = np.where(y == 1, 0.54, 0.46)[:, None, None, None]
    return (level + rng.uniform(-0.03, 0.03, (n, *SHAPE))).astype(np.float32), y


OPTIONS = {"eps": 0.1, "max_iter": 40}


@pytest.mark.parametrize("name", ["pgd", "apgd-ce", "apgd-margin"])
@pytest.mark.parametrize("labels", [0, 2])
def test_an_unaware_attack_is_caught_and_an_aware_one_evades(name, labels):
    estimator = linear(labels)
    x, y = images()
    reference = np.stack([y, y], 1) if labels else y
    threshold = threshold_at_fpr(imbalance(torch.from_numpy(images(200, seed=1)[0])), 0.05)
    victim = guarded(estimator, imbalance, threshold=threshold)
    found = {}
    for kind, attacked in (("unaware", estimator), ("aware", victim)):
        x_adv = create(name, attacked, **OPTIONS).generate(x, reference)
        assert np.abs(x_adv - x).max() <= 0.1
        found[kind] = evasion(victim, x, x_adv, reference)
    assert found["unaware"].wrong.all() and found["unaware"].rejected.all() and found["unaware"].auc == 1
    assert found["aware"].evaded.mean() >= 0.95 and found["aware"].false_alarms <= 0.15


@pytest.mark.parametrize("norm", [np.inf, 2])
def test_targeted_attacks_evade_too(norm):
    x, y = images()
    victim = guarded(linear(), imbalance, threshold=0.02)
    options = {"eps": 0.1 if norm == np.inf else 0.3, "max_iter": 40, "norm": norm}
    x_adv = create("pgd", victim, targeted=True, **options).generate(x, 1 - y)
    assert evasion(victim, x, x_adv, y).evaded.mean() > 0.9


@pytest.mark.parametrize("plain", [Multiclass(3), Multilabel(3, (0.2, 0.5, 0.9))])
def test_a_rejected_image_counts_as_right_and_a_rejected_target_as_missed(plain):
    inner = ModuleVictim(nn.Flatten(), plain, setting("class").estimator.intensity, segments=False)
    decision = guarded(inner, imbalance, threshold=0.1).decision
    assert decision.plain == plain and isinstance(decision, type(plain)) and decision.channels == 3
    z = torch.tensor([[3.0, -1.0, -2.0]]).repeat(3, 1)
    output = torch.cat([z, torch.tensor([[-0.1], [0.0], [0.1]])], 1)
    y = torch.tensor([2] * 3) if plain.exclusive else torch.tensor([[0, 1, 1]] * 3)
    target, valid = decision.canonical(y)
    assert decision.score(output, target, valid).tolist() == [0, 0, 1]
    assert torch.equal(decision.harden(output), plain.harden(z))
    assert torch.equal(decision.probabilities(output), plain.probabilities(z))
    own = plain.harden(z)
    assert make_objective("ce", decision, targeted=False).badness(output, target, valid).tolist() == [0, 0, -1]
    assert make_objective("ce", decision, targeted=True).badness(output, own, valid).tolist() == [1, 1, 0]
    nan = torch.cat([z[:1], torch.tensor([[torch.nan]])], 1)
    assert decision.score(nan, target[:1], valid[:1]).item() == 1  # no verdict is no acceptance


def test_the_objective_is_the_diagnosis_less_a_penalty_that_rises():
    decision = guarded(linear(), imbalance, threshold=0.1, weight=3.0).decision
    output = torch.tensor([[1.0, 2.0, -0.3], [1.0, 2.0, 0.0], [1.0, 2.0, 0.3]])
    y, valid = torch.tensor([1, 1, 1]), torch.ones(3, dtype=torch.bool)
    for targeted in (False, True):
        inner = CrossEntropy(Multiclass(2), targeted=targeted)
        diagnosis = inner(output[:, :2], y, valid=valid)
        for given in ("ce", inner):
            objective = make_objective(given, decision, targeted=targeted)
            assert isinstance(objective, Evasive) and objective.scheduled
            for progress, weight in ((0.0, 0.3), (0.5, 3.0), (1.0, 30.0)):
                value = objective(output, y, valid=valid, progress=progress)
                assert torch.allclose(value, diagnosis - weight * torch.tensor([0, 0, 0.3]))
            fixed = monitor_of(objective, segments=False)
            assert torch.allclose(fixed(output, y, valid=valid), diagnosis - 3 * torch.tensor([0, 0, 0.3]))
    ignored = torch.zeros(3, dtype=torch.bool)
    assert not make_objective("ce", decision, targeted=False)(output, y, valid=ignored).any()


def smooth(x: Tensor) -> Tensor:
    return x.square().flatten(1).sum(1)


@pytest.mark.parametrize("on", ["images", "logits", "features"])
@pytest.mark.parametrize("outside", [False, True])
def test_gradients_through_model_and_detector_are_right(on, outside):
    case = setting("class", dtype=np.float64)
    detector = {"images": smooth, "logits": smooth, "features": lambda features: smooth(features["norm"])}[on]
    inner = FeatureVictim(case.estimator, ["norm"])
    victim = guarded(inner, detector, threshold=0.3, on=on)
    if outside:
        victim = bpda(victim, transform=torch.sin, backward=torch.sin)
    x = torch.from_numpy(case.x)

    def loss(output):  # not linear in the detector's score, so that its weight matters
        return output[:, 0] * output[:, -1] + output[:, -1].square()

    with victim.attacked():
        output, values, grad = victim.differentiate(x, loss)
        assert torch.allclose(values, loss(output)) and torch.allclose(victim.logits(x), output)
        direction = torch.from_numpy(np.random.default_rng(0).normal(size=x.shape))
        ends = [loss(victim.logits(x + step * direction)) for step in (1e-6, -1e-6)]
    assert torch.allclose((grad * direction).flatten(1).sum(1), (ends[0] - ends[1]) / 2e-6, rtol=1e-5)
    assert isinstance(victim, Victim)


def test_it_composes_with_randomised_and_rescaled_models():
    case = setting("class", dtype=np.float64)
    x = torch.from_numpy(case.x)
    victim = guarded(eot(rescaled(case.estimator), n=3, active=[nn.Dropout]), smooth, threshold=10.0)
    with victim.attacked():
        output, _, grad = victim.differentiate(x, lambda out: out[:, -1] * 2 + 0 * out[:, 0])
    assert torch.allclose(grad, 4 * x) and output.shape == (3, 4) and not victim.deterministic
    assert vars(victim.passes) == {"forward": 3, "backward": 3}
    x_adv = create("sma", guarded(case.estimator, smooth, threshold=15.0), eps=0.05, max_iter=3).generate(
        case.x, case.y
    )
    assert 0 < np.abs(x_adv - case.x).max() <= 0.05


def test_a_detector_module_is_run_in_inference_mode_and_left_as_found():
    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(1)
            self.modes = set()

        def forward(self, x):
            self.modes.add(self.training)
            return self.norm(x).square().flatten(1).sum(1)

    detector = Module().train()
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    case = setting("class")
    create("pgd", guarded(case.estimator, detector, threshold=1.0), eps=0.05, max_iter=2).generate(case.x, case.y)
    assert detector.modes == {False} and detector.training and detector.norm.weight.grad is None
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())


def test_no_case_influences_another():
    case = setting("class", dtype=np.float64, cases=5)
    victim = guarded(case.estimator, smooth, threshold=float(smooth(torch.from_numpy(case.x)).median()))
    attack = create("pgd", victim, eps=0.05, max_iter=5)
    whole = attack.generate(case.x, case.y)
    for i in range(5):
        alone = attack.generate(case.x[i : i + 1], case.y[i : i + 1], ids=[i])
        assert np.allclose(alone[0], whole[i], rtol=0, atol=1e-9)


def test_images_made_on_a_surrogate_are_judged_by_the_targets_detector():
    x, y = images()
    victim = guarded(linear(), imbalance, threshold=0.02)
    x_adv = transfer(linear(), victim, eps=0.1, max_iter=3).generate(x, y)
    outcome = evasion(victim, x, x_adv, y)
    assert isinstance(outcome, Evasion) and outcome.wrong.all() and outcome.rejected.all()


@pytest.mark.parametrize("n", [7, 20, 100])
@pytest.mark.parametrize("fpr", [0.0, 0.05, 0.1, 0.5, 0.99])
def test_at_most_the_stated_share_of_clean_images_is_rejected(n, fpr):
    scores = np.random.default_rng(0).normal(size=n).round(1)  # with ties
    threshold = threshold_at_fpr(scores, fpr)
    assert (scores > threshold).mean() <= fpr and threshold in scores
    smaller = scores[scores < threshold]
    if len(smaller):
        assert (scores > smaller.max()).mean() > fpr
    assert threshold_at_fpr(torch.from_numpy(scores), fpr) == threshold


UNAWARE = {"fab", "cw", "apgd-t", "robust", "autoattack", "hfc"}


@pytest.mark.parametrize(("name", "kind"), [pair for pair in rows() if not pair[1].startswith("voxel")])
def test_every_attack_knows_the_detector_or_is_refused_before_it_runs(name, kind):
    case = setting(kind)
    victim = guarded(case.estimator, smooth, threshold=10.0)
    if name in UNAWARE:
        refused(TypeError, "detector|feature victim first", lambda: attack_on(replace(case, estimator=victim), name))
        return
    attack = attack_on(replace(case, estimator=victim), name)
    found = attack.perturb(torch.from_numpy(case.x), case.y)
    assert found.shape == case.x.shape and victim.logits(found).shape[1] == victim.decision.plain.channels + 1


def refused(error, words, do):
    with pytest.raises(error, match=words):
        do()


def test_bad_input_is_refused():
    estimator = setting("class").estimator
    x = torch.from_numpy(setting("class").x)
    refused(ValueError, "one per voxel", lambda: guarded(setting("voxel-class").estimator, smooth, threshold=1.0))
    refused(TypeError, "must be a callable", lambda: guarded(estimator, "lid", threshold=1.0))
    refused(ValueError, "threshold='5%' must be a finite number", lambda: guarded(estimator, smooth, threshold="5%"))
    refused(ValueError, "threshold=nan", lambda: guarded(estimator, smooth, threshold=float("nan")))
    for weight in (0, -1.0, "a", float("inf")):
        refused(ValueError, "weight=", lambda w=weight: guarded(estimator, smooth, threshold=1.0, weight=w))
    refused(ValueError, "on='image' is unknown", lambda: guarded(estimator, smooth, threshold=1.0, on="image"))
    victim = guarded(estimator, smooth, threshold=1.0)
    refused(TypeError, "has a detector already", lambda: guarded(victim, smooth, threshold=1.0))
    refused(TypeError, r"guarded\(eot", lambda: eot(victim, n=2))
    refused(TypeError, r"guarded\(rescaled", lambda: rescaled(victim))
    refused(TypeError, "does not know the detector", lambda: Margin(victim.decision))
    shape = guarded(estimator, lambda x: x.flatten(1), threshold=1.0)
    refused(ValueError, r"gave shape \(3, 48\) for 3 images", lambda: shape.logits(x))
    array = guarded(estimator, lambda x: np.zeros(len(x)), threshold=1.0)
    refused(ValueError, "gave ndarray", lambda: array.logits(x))
    hidden = guarded(estimator, lambda x: smooth(x.detach()), threshold=1.0)
    refused(ValueError, "no gradient", lambda: hidden.differentiate(x, lambda out: out[:, 0]))
    rounded = guarded(estimator, lambda z: z.detach().sum(1), threshold=1.0, on="logits")
    refused(ValueError, "no gradient", lambda: rounded.differentiate(x, lambda out: out[:, 0]))
    blind = guarded(estimator, lambda f: f["norm"], threshold=1.0, on="features")
    refused(TypeError, "needs a model that shows them", lambda: blind.logits(x))
    for scores in ([], [[1.0]], [np.nan]):
        refused(ValueError, "scores have shape", lambda s=scores: threshold_at_fpr(s, 0.1))
    for fpr in (-0.1, 1.0, "5%", True):
        refused(ValueError, "fpr=", lambda f=fpr: threshold_at_fpr([1.0, 2.0], f))
    refused(ValueError, "2 references for 3 clean and 1", lambda: evasion(victim, x, x[:1], [0, 1]))
