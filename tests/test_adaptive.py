"""Victims that see through randomness, non-differentiable code and saturated logits; attacks that know a detector."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from art.attacks.attack import EvasionAttack
from builders import KINDS, setting
from torch import Tensor, nn

from medadv.adapters import MonaiClassifier, MonaiMultilabelClassifier
from medadv.adaptive import bpda, eot, rescaled
from medadv.attacks import create
from medadv.decisions import Multiclass, Multilabel
from medadv.objectives import CrossEntropy
from medadv.victims import Features, ModuleVictim, Victim, logits_in, victim_of

SHAPE = (1, 4, 4)


class Affine(nn.Module):
    """Two logits ``[0, w x + b]``, with w drawn anew for each case around a known mean, by one of three generators."""

    def __init__(self, mean: Tensor, spread: float, source: str = "torch") -> None:
        super().__init__()
        self.mean = nn.Parameter(mean)
        self.spread = spread
        self.source = source

    def forward(self, x: Tensor) -> Tensor:
        if self.source == "torch":
            noise = torch.randn_like(x)
        elif self.source == "numpy":
            noise = torch.from_numpy(np.random.normal(size=x.shape)).to(x.dtype)
        else:
            noise = torch.tensor([random.gauss(0, 1) for _ in range(x.numel())], dtype=x.dtype).view(x.shape)
        z = ((self.mean + self.spread * noise) * (x - 0.5)).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(z), z], 1)


def classifier(net: nn.Module, shape=SHAPE, **options) -> MonaiClassifier:
    return MonaiClassifier(net, shape, decision=Multiclass(2), **options)


def margin(output) -> Tensor:
    z = logits_in(output)
    return z[:, 1] - z[:, 0]


def test_art_accepts_a_victim_where_no_requirement_is_stated():
    class Bare(EvasionAttack):
        _estimator_requirements = ()

        def generate(self, x, y=None, **kwargs):
            return x

    Bare(estimator=object())
    victim = eot(setting("class").estimator, n=1)
    assert isinstance(victim, Victim) and victim_of(victim) is victim


@pytest.mark.parametrize("source", ["torch", "numpy", "python"])
def test_eot_gives_the_expected_gradient_of_affine_noise(source):
    mean = torch.linspace(-1, 1, 16).view(SHAPE)
    estimator = classifier(Affine(mean, 2.0, source))
    x = torch.full((2, *SHAPE), 0.7)
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    grads = {}
    for n in (1, 300):
        victim = eot(estimator, n=n)
        with victim.attacked():
            _, _, grads[n] = victim.differentiate(x, margin)
        assert victim.passes.forward == victim.passes.backward == n
    # the gradient of E[z] is the mean of w; 300 draws of standard deviation 2 leave 0.12 of error
    assert (grads[300] - mean).abs().max() < 0.5
    assert (grads[300] - mean).square().mean().sqrt() < 0.2
    assert (grads[1] - mean).square().mean().sqrt() > 1
    after = torch.random.get_rng_state(), np.random.get_state()[1], random.getstate()
    assert all(np.array_equal(a, b) for a, b in zip(states[:2], after[:2], strict=True)) and states[2] == after[2]


def test_eot_runs_differ_from_each_other_and_repeat_from_attack_to_attack():
    estimator = classifier(Affine(torch.zeros(SHAPE), 1.0))
    victim = eot(estimator, n=1, seed=3)
    x = torch.rand(2, *SHAPE)

    def looks(some):
        with some.attacked():
            return [some.logits(x) for _ in range(2)]

    first, second = looks(victim)
    assert not torch.equal(first, second)
    assert all(map(torch.equal, looks(victim), (first, second)))
    assert not torch.equal(looks(eot(estimator, n=1, seed=4))[0], first)
    assert not victim.deterministic and eot(victim, n=2).deterministic is False


@pytest.mark.parametrize("decision", [Multiclass(3), Multilabel(3, (0.2, 0.5, 0.9))])
def test_eot_scores_by_the_mean_probability(decision):
    class Alternating(nn.Module):
        def forward(self, x):
            return logits[int(torch.randint(2, ()))].expand(len(x), 3)

    logits = torch.tensor([[[9.0, 0.0, -3.0]], [[-60.0, 1.0, 2.0]]])
    victim = eot(ModuleVictim(Alternating(), decision, setting("class").estimator.intensity, segments=False), n=200)
    with victim.attacked():
        z = victim.logits(torch.zeros(1, 1, 4, 4))
    mixed = torch.stack([decision.probabilities(one) for one in logits]).mean(0)
    assert torch.allclose(decision.probabilities(z), mixed, atol=0.1)
    assert torch.equal(decision.harden(z), decision.harden(torch.log(mixed / (1 - mixed))))


def test_dropout_that_is_on_at_inference_stays_on_and_all_flags_return():
    case = setting("class")
    case.net.train()
    case.net.norm.eval()
    flags = [m.training for m in case.net.modules()]
    x = torch.from_numpy(case.x)
    victim = eot(case.estimator, n=1, active=[nn.Dropout])
    with victim.attacked():
        assert case.net.drop.training and not case.net.norm.training and not case.net.training
        assert not torch.equal(victim.logits(x), victim.logits(x))
    assert [m.training for m in case.net.modules()] == flags
    plain = eot(case.estimator, n=3)
    with plain.attacked():
        expected = victim_of(case.estimator).logits(x).log_softmax(1)
        assert torch.allclose(plain.logits(x), expected, atol=1e-5)


class NoisyGradient(nn.Module):
    """A defence that hides its gradient behind noise of mean zero that is 6 times larger; its output is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        level = self.slope * (x - 0.5).flatten(1)
        decoy = torch.randn_like(level)
        z = level.sum(1) + 6 * (decoy * (level - level.detach())).sum(1)
        return torch.stack([torch.zeros_like(z), z], 1)


def test_a_randomised_model_stands_against_pgd_and_falls_to_eot():
    estimator = classifier(NoisyGradient())
    x = torch.full((4, *SHAPE), 0.56)
    y = torch.ones(4, dtype=torch.int64)
    options = {"eps": 0.1, "eps_step": 0.025, "max_iter": 8, "num_random_init": 0}
    broken = {}
    for name, victim in {"pgd": estimator, "eot": eot(estimator, n=60)}.items():
        x_adv = create("pgd", victim, **options).perturb(x, y)
        broken[name] = ((x_adv - 0.5).flatten(1).sum(1) < 0).float().mean().item()
    assert broken["pgd"] == 0 and broken["eot"] == 1


def quantised(x: Tensor) -> Tensor:
    return (x * 8).round() / 8


def test_bpda_of_a_quantiser_is_the_straight_through_gradient_at_the_quantised_image():
    case = setting("class", dtype=np.float64)
    x = torch.from_numpy(case.x)
    victim = bpda(case.estimator, transform=quantised)
    with victim.attacked():
        output, _, grad = victim.differentiate(x, lambda z: z[:, 0])
        plain = victim_of(case.estimator)
        expected, _, expected_grad = plain.differentiate(quantised(x), lambda z: z[:, 0])
        assert torch.equal(victim.logits(x), expected)
    assert torch.equal(output, expected) and torch.equal(grad, expected_grad)
    assert vars(victim.passes) == {"forward": 2, "backward": 1}


def test_bpda_with_a_backward_of_its_own_is_the_chain_rule():
    case = setting("class", dtype=np.float64)
    x = torch.from_numpy(case.x)
    victim = bpda(case.estimator, transform=lambda x: x**2, backward=lambda x: x**2)
    with victim.attacked():
        _, _, grad = victim.differentiate(x, lambda z: z[:, 1])
        direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
        step = 1e-6 * direction
        difference = (victim.logits(x + step)[:, 1] - victim.logits(x - step)[:, 1]) / 2e-6
    assert torch.allclose((grad * direction).flatten(1).sum(1), difference, rtol=1e-6, atol=1e-8)


def test_bpda_breaks_what_a_quantiser_protects_and_takes_images_of_another_shape():
    case = setting("class", cases=6)
    estimator = case.estimator

    class Hidden(nn.Module):
        def forward(self, x):
            return estimator.network(quantised(x))

    hidden = MonaiClassifier(Hidden(), estimator.input_shape, decision=estimator.decision)
    x = torch.from_numpy(case.x)
    y = estimator.decision.harden(victim_of(estimator).logits(quantised(x)))
    plain = create("pgd", hidden, eps=0.1, num_random_init=0).perturb(x, y)
    assert torch.equal(plain, x)  # rounding has no gradient
    through = create("pgd", bpda(estimator, transform=quantised), eps=0.1, num_random_init=0).perturb(x, y)
    with hidden.victim().attacked():
        wrong = hidden.decision.harden(hidden.victim().logits(through)) != y
    assert wrong.float().mean() > 0.5
    pooled = bpda(estimator, transform=lambda x: x[..., ::2, ::2], backward=lambda x: x[..., ::2, ::2])
    big = torch.rand(2, 1, 16, 12)
    x_adv = create("pgd", pooled, eps=0.1, max_iter=2, num_random_init=0).perturb(big, [0, 1])
    moved = (x_adv != big).any(0)[0]
    assert moved[::2, ::2].any() and not moved[1::2].any()


@pytest.mark.parametrize("scale", ["auto", 1e-3, 0.37, 50.0])
@pytest.mark.parametrize("decision", [Multiclass(4), Multilabel(4, (0.1, 0.5, 0.6, 0.99))])
def test_rescaling_never_changes_the_diagnosis(decision, scale):
    generator = torch.Generator().manual_seed(0)
    z = torch.cat([10.0**power * torch.randn(500, 4, 3, generator=generator) for power in (-6, 0, 2, 4)])
    close = z[:200, :1].expand(-1, 4, -1).clone()
    close[:, 1::2] = torch.nextafter(close[:, 1::2], torch.full_like(close[:, 1::2], torch.inf))
    cases = [z, close]
    if isinstance(decision, Multilabel):
        at = decision.logit_threshold(z).expand(3, 4, 3).clone()
        at[0], at[2] = torch.nextafter(at[0], at[0] + 9), torch.nextafter(at[2], at[2] - 9)
        cases.append(at)

    class Given(nn.Module):
        def forward(self, x):
            return x

    z = torch.cat(cases)
    inner = ModuleVictim(Given(), decision, setting("class").estimator.intensity, segments=True)
    output, _, grad = rescaled(inner, scale).differentiate(z, lambda out: CrossEntropy(decision)(
        out, decision.harden(out), valid=torch.ones_like(decision.harden(out), dtype=torch.bool)))  # fmt: skip
    assert torch.equal(decision.harden(output), decision.harden(z)) and grad.isfinite().all()
    assert torch.equal(rescaled(inner, scale).logits(z), output)


@pytest.mark.parametrize("kind", KINDS)
def test_a_factor_scales_distances_from_the_threshold(kind):
    case = setting(kind, dtype=np.float64)
    x = torch.from_numpy(case.x)
    victim = rescaled(case.estimator, 0.25)
    with victim.attacked():
        z, shrunk = victim_of(case.estimator).logits(x), victim.logits(x)
    if "labels" in kind:
        assert torch.allclose(shrunk, 0.25 * z)  # thresholds of 0.5 are logits of 0
    else:
        assert torch.allclose(shrunk.softmax(1), (0.25 * z).softmax(1))


@pytest.mark.parametrize("labels", [False, True])
def test_a_saturated_model_stands_against_pgd_and_falls_once_rescaled(labels):
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with torch.no_grad():
        net[1].weight.copy_(1e4 * torch.tensor([[-1.0], [1.0]]).expand(2, 16))
        net[1].bias.copy_(1e4 * torch.tensor([8.0, -8.0]))
    wrapper, decision = (MonaiMultilabelClassifier, Multilabel(2)) if labels else (MonaiClassifier, Multiclass(2))
    estimator = wrapper(net, SHAPE, decision=decision)
    x = torch.full((2, *SHAPE), 0.53)
    y = torch.tensor([[0, 1]] * 2) if labels else torch.tensor([1, 1])
    options = {"eps": 0.05, "max_iter": 5, "num_random_init": 0}
    assert torch.equal(create("pgd", estimator, **options).perturb(x, y), x)
    for scale in ("auto", 1e-4):
        x_adv = create("pgd", rescaled(estimator, scale), **options).perturb(x, y)
        score = decision.score(estimator.victim().logits(x_adv), *decision.canonical(y))
        assert torch.equal(score, torch.zeros(2))


def test_wrappers_compose_in_any_order_and_keep_features():
    case = setting("class", dtype=np.float64)
    x = torch.from_numpy(case.x)

    class Inside(ModuleVictim):
        def _run(self, x):
            z = super()._run(x)
            return Features(z, {"mean": x.flatten(1).mean(1)})

        def differentiate(self, x, loss):
            leaf = x.detach().requires_grad_()
            output = self._run(leaf)
            values = loss(output)
            self.passes.backward += 1
            grad = torch.autograd.grad(values.sum(), leaf)[0]
            return Features(output.logits.detach(), {"mean": output.features["mean"].detach()}), values.detach(), grad

    inner = Inside(case.net, case.decision, case.estimator.intensity, segments=False)
    for victim in (
        eot(bpda(rescaled(inner, 0.5), transform=quantised), n=2),
        rescaled(bpda(eot(inner, n=2), transform=quantised), 0.5),
        bpda(rescaled(eot(inner, n=2), 0.5), transform=quantised),
    ):
        with victim.attacked():
            output, _, grad = victim.differentiate(x, margin)
            looked = victim.logits(x)
        assert isinstance(output, Features) and isinstance(looked, Features)
        z = victim_of(case.estimator).logits(quantised(x)).detach()
        assert torch.allclose(output.logits.softmax(1), (z / 2).softmax(1)) and grad.any()
        assert torch.allclose(looked.features["mean"], quantised(x).flatten(1).mean(1))
        assert not victim.deterministic


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dims", [2, 3])
def test_attacks_on_wrapped_models_keep_their_promises(kind, dims):
    case = setting(kind, dims)
    victim = eot(bpda(rescaled(case.estimator), transform=quantised), n=2, active=[nn.Dropout])
    attack = create("pgd", victim, eps="8/255", max_iter=2)
    x_adv = attack.generate(case.x, case.y)
    assert x_adv.shape == case.x.shape and 0 < np.abs(x_adv - case.x).max() <= 8 / 255
    assert vars(attack.passes) == {"forward": 6, "backward": 4} and attack.queries.tolist() == [6, 6, 6]
    assert np.array_equal(attack.generate(case.x, case.y), x_adv)


def test_the_models_own_checks_still_hold():
    case = setting("class")
    for victim in (eot(case.estimator, n=1), rescaled(case.estimator), bpda(case.estimator, transform=quantised)):
        with pytest.raises(ValueError, match="this model takes"):
            create("pgd", victim, eps=0.1).generate(np.zeros((1, 2, 8, 6), dtype=np.float32), np.array([0]))


@pytest.mark.parametrize(("make", "error", "words"), [
    (lambda e: eot(e, n=0), ValueError, "n=0 must be a whole number of at least 1"),
    (lambda e: eot(e, n=2.0), ValueError, "n=2.0 must be"),
    (lambda e: eot(e, n=2, seed="a"), ValueError, "seed='a' must be a whole number"),
    (lambda e: eot(e, n=2, active=[nn.Dropout3d]), ValueError, "has no such layer"),
    (lambda e: eot(e, n=2, active=[nn.BatchNorm2d]), ValueError, "batch norm"),
    (lambda e: bpda(e, transform=3), TypeError, "must be callables"),
    (lambda e: bpda(e, transform=quantised, backward="identity"), TypeError, "must be callables"),
    (lambda e: rescaled(e, 0), ValueError, "positive number"),
    (lambda e: rescaled(e, "fast"), ValueError, "'auto' or a positive number"),
    (lambda e: rescaled(e, float("nan")), ValueError, "positive number"),
    (lambda e: rescaled("model"), TypeError, "no estimator"),
])  # fmt: skip
def test_bad_input_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make(setting("class").estimator)


def test_transforms_that_give_no_image_are_refused():
    case = setting("class")
    x = torch.from_numpy(case.x)
    with pytest.raises(ValueError, match=r"gave shape \(1, 1, 8, 6\) for 3 images"):
        bpda(case.estimator, transform=lambda x: x[:1]).logits(x)
    with pytest.raises(ValueError, match="gave ndarray"):
        bpda(case.estimator, transform=lambda x: x.numpy()).logits(x)
    with pytest.raises(ValueError, match="give backward="):
        bpda(case.estimator, transform=lambda x: x[..., 1:]).differentiate(x, lambda z: z[:, 0])
