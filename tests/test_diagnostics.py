"""Each check fires on a model built to trigger it, is silent on an honest one, and names an attack that breaks it."""

from __future__ import annotations

from typing import Any

import masked
import numpy as np
import pytest
import torch
from masked import EPS, KINDS, Behind, Brightness, Case, detached, jpeg, quantised
from torch import Tensor, nn

from medadv import Intensity, Multiclass
from medadv.adapters import MonaiClassifier
from medadv.adaptive import bpda, eot, rescaled
from medadv.attacks import create
from medadv.diagnostics import CHECKS, Finding, Probe, as_frame, diagnose, run_checks
from medadv.diagnostics.searches import round_trip
from medadv.victims import ModuleVictim, victim_of

# every kind of model and both ranks, without all pairs of them
SETTINGS = [("class", 2), ("labels", 3), ("voxel-class", 2), ("voxel-labels", 3)]
NAMES = {"create": create, "bpda": bpda, "eot": eot, "rescaled": rescaled, "torch": torch}


@pytest.fixture(autouse=True)
def _seeded():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def found(estimator: Any, x: Any, y: Any, level: str = "basic", **options: Any) -> dict[str, Finding]:
    return {f.check: f for f in diagnose(estimator, x, y, **{"eps": EPS, "level": level, **options})}


def flagged(findings: dict[str, Finding]) -> set[str]:
    return {name for name, finding in findings.items() if finding.flag}


def attacked(case: Case, attack: Any) -> float:
    return case.score(attack.generate(case.x, case.y))


def advised(case: Case, finding: Finding) -> Any:
    """The attack that a finding names, made from its own words."""
    parts = {"estimator": case.estimator, "inner": case.inner, "surrogate": case.inner, "transform": case.transform}
    return eval(finding.call, {**NAMES, **parts, "eps": EPS})


def plain(case: Case) -> Any:
    return create("pgd-dice" if case.estimator.segments else "pgd", case.estimator, eps=EPS)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_all_checks_are_silent_on_an_honest_model_that_attacks_break(kind, dims):
    case = masked.honest(kind, dims)
    findings = found(case.estimator, case.x, case.y, "full")
    assert flagged(findings) == set() and not any(f.advice or f.call for f in findings.values())
    looked = {name for name, row in CHECKS.items() if row.level != "table"}
    assert set(findings) == looked
    assert {name for name in looked if np.isnan(findings[name].evidence)} == {"transfer", "storage"}
    assert case.score(case.x) == 1 and attacked(case, plain(case)) < 0.1


@pytest.mark.filterwarnings("ignore:.*gradient of:UserWarning")
@pytest.mark.parametrize(
    ("transform", "kind", "dims"),
    [(quantised, *setting) for setting in SETTINGS] + [(detached, *setting) for setting in SETTINGS]
    + [(jpeg, "class", 2), (jpeg, "voxel-labels", 3)],
)  # fmt: skip
def test_a_model_behind_a_transform_without_gradient_is_flagged_and_falls_to_bpda(transform, kind, dims):
    case = masked.behind(transform, kind, dims)
    findings = found(case.estimator, case.x, case.y)
    assert {"zero-gradients", "large-budget"} <= flagged(findings) <= {
        "zero-gradients", "large-budget", "random-directions"
    }  # fmt: skip
    assert findings["zero-gradients"].flag == "zero-gradients=1.00"
    assert attacked(case, plain(case)) > 0.75
    assert attacked(case, advised(case, findings["zero-gradients"])) < 0.2
    assert attacked(case, advised(case, findings["large-budget"])) < 0.2


@pytest.mark.parametrize(("kind", "dims"), SETTINGS)
def test_huge_logits_are_flagged_and_fall_once_rescaled(kind, dims):
    case = masked.honest(kind, dims, gain=1000.0)
    findings = found(case.estimator, case.x, case.y)
    assert "saturated-loss" in flagged(findings)
    assert not {"zero-gradients", "finite-differences", "repeatable"} & flagged(findings)
    if not case.estimator.segments:  # borders of a mask are never saturated, and the attack gets in from there
        assert attacked(case, plain(case)) == 1
    assert attacked(case, advised(case, findings["saturated-loss"])) < 0.2


def test_random_resizing_is_flagged_and_falls_to_the_expectation_over_draws():
    case = masked.resized("class", 2)
    findings = found(case.estimator, case.x, case.y)
    assert "repeatable" in flagged(findings) and "train-mode" not in flagged(findings)
    assert case.score(case.x) == 1 and attacked(case, plain(case)) > 0.6
    assert attacked(case, advised(case, findings["repeatable"])) < 0.2


def test_dropout_left_on_is_flagged_and_falls_to_the_expectation_over_draws():
    case = masked.dropping("labels", 3)
    findings = found(case.estimator, case.x, case.y)
    assert {"repeatable", "train-mode"} <= flagged(findings)
    assert findings["train-mode"].flag == "train-mode=1" and "texture" in findings["train-mode"].note
    assert case.score(case.x) == 1 and attacked(case, plain(case)) > 0.6
    assert attacked(case, advised(case, findings["train-mode"])) < 0.2


@pytest.mark.parametrize(("kind", "dims"), SETTINGS)
def test_random_models_of_every_kind_are_flagged(kind, dims):
    case = masked.dropping(kind, dims)
    findings = found(case.estimator, case.x, case.y)
    assert {"repeatable", "train-mode"} <= flagged(findings) and not findings["finite-differences"].flag


class BatchNormed(nn.Module):
    """Batch norm that looks at the batch, also at inference, or a standardisation over the batch by hand."""

    def __init__(self, by_hand: bool) -> None:
        super().__init__()
        self.norm = nn.Identity() if by_hand else nn.BatchNorm2d(1, track_running_stats=False)
        self.by_hand = by_hand
        self.last = Brightness("class")

    def forward(self, x: Tensor) -> Tensor:
        z = (x - x.mean()) / x.std() if self.by_hand else self.norm(x)
        return self.last(0.5 + 0.05 * z)


@pytest.mark.parametrize("by_hand", [False, True])
def test_cases_that_influence_each_other_are_flagged(by_hand):
    x, y = masked.images("class", 2)
    findings = found(masked.wrapped(BatchNormed(by_hand), "class", 2), x, y)
    assert findings["train-mode"].flag == "train-mode=1" and findings["train-mode"].numbers["cases_apart"] > 1e-3


@pytest.mark.parametrize(("kind", "dims"), SETTINGS)
def test_probabilities_for_logits_are_flagged_and_the_advice_undoes_them(kind, dims):
    exclusive = isinstance(KINDS[kind], Multiclass)
    last: nn.Module = nn.Softmax(1) if exclusive else nn.Sigmoid()
    x, y = masked.images(kind, dims)
    case = Case(masked.wrapped(nn.Sequential(Brightness(kind), last), kind, dims), x, y)
    findings = found(case.estimator, x, y)
    assert findings["probabilities"].flag == "probabilities=1.00"
    honest = masked.honest(kind, dims)
    undone = advised(case, findings["probabilities"])
    with undone.victim.attacked():
        logits = undone.victim.logits(torch.from_numpy(x))
    expected = torch.from_numpy(honest.estimator.predict(x))
    assert torch.allclose(logits, expected.log_softmax(1) if exclusive else expected, atol=1e-4)
    assert attacked(honest, undone) < 0.2


def test_labels_whose_logits_are_between_0_and_1_by_chance_are_no_probabilities():
    class Bounded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 0.5 + 0.4 * torch.tanh(x.flatten(1)[:, :3] - 0.5) + 0 * x.flatten(1).sum(1, keepdim=True)

    finding = found(masked.wrapped(Bounded(), "labels", 2), *masked.images("labels", 2))["probabilities"]
    assert finding.evidence == 1 and not finding.flag


class HalfDetached(Brightness):
    """The gradient of a part of the image's influence alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(0.4 * x + 0.6 * x.detach())


class Scrambled(Brightness):
    """A gradient whose signs are drawn once and for all."""

    def forward(self, x: Tensor) -> Tensor:
        z = x * 1.0
        if z.requires_grad:
            signs = torch.randint(0, 2, x.shape[1:], generator=torch.Generator().manual_seed(3)) * 2 - 1
            z.register_hook(lambda grad: grad * signs)
        return super().forward(z)


class NoisyGradient(Brightness):
    """An exact output whose gradient is noise."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 6 * torch.randn_like(x) * (x - x.detach()))


@pytest.mark.parametrize(("kind", "dims"), SETTINGS)
@pytest.mark.parametrize(("net", "check"), [
    (HalfDetached, "finite-differences"), (Scrambled, "finite-differences"), (Scrambled, "random-directions"),
    (NoisyGradient, "repeatable"),
])  # fmt: skip
def test_gradients_that_are_not_those_of_the_function_are_flagged(net, check, kind, dims):
    x, y = masked.images(kind, dims)
    finding = found(masked.wrapped(net(kind), kind, dims), x, y)[check]
    assert finding.flag.startswith(f"{CHECKS[check].flag}=") and finding.evidence > CHECKS[check].limit


def test_the_approximation_of_bpda_is_no_wrong_gradient_and_finds_what_it_looks_through():
    case = masked.behind(quantised, "class", 2)
    findings = found(bpda(case.inner, transform=quantised), case.x, case.y, "full")
    assert flagged(findings) == set() and "by intent" in findings["finite-differences"].note


def test_voxels_outside_a_window_do_not_count_as_without_gradient():
    class Windowed(Brightness):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(0.45 + ((x + 175) / 425).clamp(0, 1))

    ct = Intensity(-1024, 3071, unit="HU", window=(-175, 250), grid=(1, 0))
    rng = np.random.default_rng(0)
    x = np.full((4, 1, 16, 16), -1000.0, dtype=np.float32)
    x[..., 6:10, 5:12] = rng.integers(-100, 200, (4, 1, 4, 7))
    estimator = MonaiClassifier(Windowed("class"), (1, 16, 16), decision=Multiclass(3), intensity=ct)
    findings = found(estimator, x, None, eps="10 HU")
    assert findings["zero-gradients"].numbers["zero"] > 0.8
    assert not {"zero-gradients", "finite-differences", "random-directions"} & flagged(findings)


def two_classes(margin: Tensor) -> Tensor:
    return torch.stack([-margin, margin], 1)


class TwoSlopes(nn.Module):
    """Only starts on the right side of one voxel lead to the break."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        u = self.one * (x[:, 0, 0, 0] - 0.5) / EPS
        return two_classes(1 - 0.3 * (-u).relu() - 1.5 * u.relu())


class Staircase(TwoSlopes):
    """Six voxels that have to be moved one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        u = self.one * (x[:, 0, 0, :6] - 0.5) / EPS
        reached = torch.cat([torch.ones_like(u[:, :1]), (u[:, :-1] > 0.8).to(u)], 1).cumprod(1)
        return two_classes(1 - 0.25 * (u * reached).sum(1))


@pytest.mark.parametrize(("net", "check"), [(TwoSlopes, "restarts"), (Staircase, "steps")])
def test_attacks_that_have_not_converged_are_flagged_and_the_advice_finds_more(net, check):
    x = np.full((8, 1, 8, 8), 0.5, dtype=np.float32)
    estimator = MonaiClassifier(net(), (1, 8, 8), decision=Multiclass(2))
    case = Case(estimator, x, np.ones(8, dtype=np.int64))
    findings = found(estimator, x, case.y, "full")
    assert check in flagged(findings)
    short, longer = findings[check].numbers.values()
    assert short - longer == pytest.approx(findings[check].evidence) and short > 0.3
    assert attacked(case, advised(case, findings[check])) < short


@pytest.mark.parametrize(("kind", "dims"), SETTINGS)
def test_attackers_who_know_less_and_find_more_are_flagged(kind, dims):
    case = masked.behind(quantised, kind, dims)
    findings = found(case.estimator, case.x, case.y, "full", surrogate=case.inner)
    assert {"black-box", "transfer"} <= flagged(findings)
    transfer = eval(
        findings["transfer"].call, {**NAMES, "estimator": case.estimator, "surrogate": case.inner, "eps": EPS}
    )
    assert attacked(case, transfer) < 0.2
    honest = masked.honest(kind, dims)
    assert flagged(found(honest.estimator, honest.x, honest.y, "full", surrogate=case.inner)) == set()


class Fractions(nn.Module):
    """Decides by what lies between the values that a file can hold, or by brightness."""

    def __init__(self, fractions: bool) -> None:
        super().__init__()
        self.brightness = Brightness("class")
        self.fractions = fractions

    def forward(self, x: Tensor) -> Tensor:
        extra = 4 * torch.sin(2 * torch.pi * x).flatten(1).mean(1) if self.fractions else x.flatten(1).sum(1) * 0
        return self.brightness(x / 255) + torch.stack([extra, -extra, 0 * extra], 1)


@pytest.mark.parametrize(("fractions", "eps"), [(True, 1), (False, 13)])
def test_what_a_file_rounds_away_is_flagged(fractions, eps):
    x, y = masked.images("class", 2)
    x, intensity = np.round(x * 255).astype(np.float32)[1::2], Intensity(0, 255, grid=(1, 0))
    estimator = masked.wrapped(Fractions(fractions), "class", 2, intensity=intensity)
    findings = found(estimator, x, y[1::2], "full", eps=eps)
    assert ("storage" in flagged(findings)) == fractions
    if fractions:
        assert findings["storage"].flag == "lost-in-storage=1.00"
        assert findings["storage"].numbers == {"stored": 1.0, "as_made": 0.0}
    # medadv's own attacks search on the grid, so nothing is lost
    x_adv = torch.from_numpy(create("pgd", estimator, eps=eps).generate(x, y[1::2]))
    target, valid = estimator.decision.canonical(y[1::2])
    assert round_trip(Probe(estimator.victim(), torch.from_numpy(x), target, valid), x_adv).evidence == 0


def test_a_victim_without_a_module_and_a_model_that_ignores_the_image_are_looked_at_all_the_same():
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).sum(1, keepdim=True) * 0 + torch.tensor([2.0, 0.0, 0.0])

    x, _ = masked.images("class", 2)
    findings = found(MonaiClassifier(Constant(), (1, 16, 16), decision=Multiclass(3), device="cpu"), x, None, "full")
    assert flagged(findings) == {"zero-gradients"}
    assert "hardly depends" in findings["large-budget"].note


class WithoutGraph(Brightness):
    """As a model that was compiled or exported: no gradient at all."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x)


@pytest.mark.parametrize(("kind", "dims"), SETTINGS)
def test_a_model_without_a_graph_is_flagged_and_falls_to_an_attack_on_scores(kind, dims):
    x, y = masked.images(kind, dims)
    case = Case(masked.wrapped(WithoutGraph(kind), kind, dims), x, y)
    findings = found(case.estimator, x, y, "full")
    assert {"zero-gradients", "large-budget", "black-box"} <= flagged(findings)
    assert attacked(case, advised(case, findings["black-box"])) < 0.2


def test_an_attack_that_refuses_a_model_leaves_its_check_out_with_the_reason():
    case = masked.honest("class", 2)
    probe = Probe(case.estimator.victim(), torch.from_numpy(case.x), torch.from_numpy(case.y), torch.ones(6).bool(),
                  eps="9 mm")  # fmt: skip
    findings = {finding.check: finding for finding in run_checks(probe)}
    assert "could not be run: eps='9 mm' is in mm" in findings["steps"].note and flagged(findings) == set()


def test_nothing_is_left_behind():
    case = masked.dropping("class", 2)
    net = case.estimator.network
    flags, states = [m.training for m in net.modules()], (torch.get_rng_state(), np.random.get_state()[1].copy())
    diagnose(case.estimator, case.x, case.y, eps=EPS)
    assert [m.training for m in net.modules()] == flags
    assert torch.equal(torch.get_rng_state(), states[0]) and np.array_equal(np.random.get_state()[1], states[1])
    assert all(p.grad is None for p in net.parameters())


def test_findings_repeat_and_cases_are_evenly_spread():
    case = masked.honest("labels", 2)
    first, second = (as_frame(diagnose(case.estimator, case.x, case.y, eps=EPS, cases=4)) for _ in range(2))
    assert first.equals(second)
    some = [0, 2, 3, 5]
    assert first.equals(as_frame(diagnose(case.estimator, torch.from_numpy(case.x[some]), case.y[some], eps=EPS)))
    assert set(first.columns) == {"check", "flag", "evidence", "numbers", "advice", "call", "note"}


def test_victims_and_losses_are_read_without_an_estimator():
    case = masked.honest("class", 2)
    victim = ModuleVictim(Behind(Brightness("class"), quantised), Multiclass(3), Intensity(0, 1), segments=False)
    assert "zero-gradients" in flagged(found(victim, case.x, case.y)) and victim_of(victim) is victim


@pytest.mark.parametrize(("options", "error", "words"), [
    ({"level": "ful"}, ValueError, "level of diagnostics 'ful' is unknown; did you mean 'full'"),
    ({"level": "table"}, ValueError, "level of diagnostics"),
    ({"eps": "10 HU"}, ValueError, "the data have no unit"),
    ({"cases": 0}, ValueError, "cases=0"),
    ({"y": np.zeros(3, dtype=np.int64)}, ValueError, "3 references for 6 images"),
    ({"x": np.zeros((2, 16, 16), dtype=np.float32)}, ValueError, r"shape \(2, 16, 16\)"),
    ({"x": np.zeros((2, 1, 16, 16), dtype=np.int64)}, ValueError, "dtype torch.int64"),
    ({"x": np.zeros((2, 3, 16, 16), dtype=np.float32)}, ValueError, "this model takes"),
    ({"x": np.full((2, 1, 16, 16), 7.0, dtype=np.float32)}, ValueError, "outside the intensity range"),
    ({"estimator": "model"}, TypeError, "no estimator that medadv can attack"),
])  # fmt: skip
def test_what_can_not_be_right_is_refused(options, error, words):
    case = masked.honest("class", 2)
    given = {"estimator": case.estimator, "x": case.x, "y": case.y, "eps": EPS, **options}
    with pytest.raises(error, match=words):
        diagnose(given.pop("estimator"), given.pop("x"), given.pop("y"), **given)


def test_rows_of_the_table_are_complete_and_their_calls_are_code():
    for name, row in CHECKS.items():
        assert row.name == name and row.looks_at and row.advice and row.flag
        assert (row.measure is None) == (row.level == "table") or name in ("black-box", "transfer")
        compile(row.call, name, "eval")
        assert row.call.startswith("create(")
    assert len({row.flag for row in CHECKS.values()}) == len(CHECKS)
