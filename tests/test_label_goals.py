"""Goals for images with several labels: their formulas, what they rank by, and that attacks reach them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml
from builders import setting

from medadv.adapters import MonaiMultilabelClassifier
from medadv.attacks import create
from medadv.benchmarks.suite_parts import AttackSpec
from medadv.decisions import Multiclass, Multilabel
from medadv.objectives import AllLabels, AnyLabel, LabelShare, Margin, OneLabel, make_objective

THRESHOLDS = (0.3, 0.5, 0.8)
DECISION = Multilabel(3, threshold=THRESHOLDS, ignore_index=9)


def example(cases=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(cases, 3, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 2, (cases, 3), generator=generator)
    valid = torch.rand(cases, 3, generator=generator) > 0.25
    valid[0] = False
    return logits, torch.where(valid, target, 0), valid


def signed(z):
    return z - np.log(np.array(THRESHOLDS) / (1 - np.array(THRESHOLDS)))


def margins(z, t):
    return np.where(t == 1, signed(z), -signed(z))


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("kind", [AnyLabel, AllLabels, LabelShare])
def test_goals_over_labels_are_their_formula_and_rank_by_the_goal(kind, targeted):
    logits, target, valid = example()
    objective = kind(DECISION, targeted=targeted)
    values, badness = objective(logits, target, valid=valid), objective.badness(logits, target, valid)
    for i in range(1, len(logits)):
        m = margins(logits[i].numpy(), target[i].numpy())[valid[i].numpy()]
        right = m > 0
        if kind is AnyLabel:
            value, reached = (m.max(), right.any()) if targeted else (-m.min(), (~right).any())
        elif kind is AllLabels:
            value, reached = (m.min(), right.all()) if targeted else (-m.max(), (~right).all())
        else:
            value = np.minimum(m, 0).mean() if targeted else -np.maximum(m, 0).mean()
            reached = None
        assert float(values[i]) == pytest.approx(value, abs=1e-12)
        if reached is None:
            assert float(badness[i]) == pytest.approx(right.mean() if targeted else -right.mean())
        else:
            assert float(badness[i]) == objective.floor - 1 + reached
    assert float(values[0]) == 0  # nothing valid: nothing to gain, and never "reached"
    assert float(badness[0]) < objective.floor


def cross_entropy(z, t):
    p = 1 / (1 + np.exp(-z))
    return -(t * np.log(p) + (1 - t) * np.log(1 - p))


@pytest.mark.parametrize("keep_weight", [0.0, 0.7])
@pytest.mark.parametrize("goal", ["add", "remove"])
@pytest.mark.parametrize("label", [0, 2])
def test_one_label_is_its_formula_and_ranks_by_the_goal(label, goal, keep_weight):
    logits, target, valid = example()
    objective = OneLabel(DECISION, label=label, goal=goal, keep_weight=keep_weight)
    values, badness = objective(logits, target, valid=valid), objective.badness(logits, target, valid)
    for i in range(len(logits)):
        z, t = logits[i].numpy(), target[i].numpy()
        others = valid[i].numpy() & (np.arange(3) != label)
        distance = signed(z)[label] * (1 if goal == "add" else -1)
        entropy = (cross_entropy(z, t) * others).sum() / max(others.sum(), 1)
        changed = (((signed(z) > 0) != t) & others).sum() / max(others.sum(), 1)
        assert float(values[i]) == pytest.approx(distance - keep_weight * entropy, abs=1e-12)
        assert float(badness[i]) == pytest.approx((distance > 0) - keep_weight * changed, abs=1e-12)
    assert objective.floor == 1


@pytest.mark.parametrize("objective", [
    AnyLabel(DECISION), AllLabels(DECISION, targeted=True), OneLabel(DECISION, label=1, keep_weight=0.5),
    OneLabel(DECISION, label=1, goal="remove"),
], ids=["any", "all", "add", "remove"])  # fmt: skip
def test_gradients_are_those_of_finite_differences(objective):
    logits, target, valid = example(seed=2)
    assert torch.autograd.gradcheck(lambda z: objective(z, target, valid=valid), logits.requires_grad_())


class Linear(torch.nn.Module):
    """Three labels, each with its own pixels, so that each can be moved alone."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(12, 3, dtype=torch.float64)
        with torch.no_grad():
            self.head.weight.copy_(torch.kron(torch.eye(3), torch.ones(1, 4)))
            self.head.bias.fill_(-2.0)  # zero at a mean of 0.5

    def forward(self, x):
        return self.head(x.flatten(1))


def by_blocks(*means):
    """Images ``(N, 1, 3, 4)`` whose three rows have these means."""
    return np.broadcast_to(np.array(means, dtype=np.float64)[:, None, :, None], (len(means), 1, 3, 4)).copy()


def attack(objective, norm=np.inf, eps=0.05, **options):
    estimator = MonaiMultilabelClassifier(Linear(), (1, 3, 4), decision=Multilabel(3))
    return create("pgd", estimator, eps=eps, norm=norm, objective=objective, max_iter=10, num_random_init=0, **options)


def diagnosis(x):
    return (x.mean(axis=(1, 3)) > 0.5).astype(int)


def test_attacks_reach_the_labels_they_aim_at_and_no_others():
    x = by_blocks([0.54, 0.46, 0.9], [0.54, 0.3, 0.46])
    y = diagnosis(x)
    for label, goal, expected in (
        (1, "add", [[1, 1, 1], [1, 0, 0]]), (0, "remove", [[0, 0, 1], [0, 0, 0]]), (2, "add", [[1, 0, 1], [1, 0, 1]]),
    ):  # fmt: skip
        x_adv = attack({"name": "one-label", "label": label, "goal": goal}).generate(x, y)
        assert diagnosis(x_adv).tolist() == expected
        # the other labels' pixels have no gradient, so they stay as they are
        assert np.array_equal(np.delete(x_adv, label, axis=2), np.delete(x, label, axis=2))


def test_any_label_finds_the_weakest_and_all_labels_the_strongest():
    x = by_blocks([0.52, 0.44, 0.6])
    weakest = attack("any-label", norm=2, eps=0.05).generate(x, diagnosis(x))
    assert np.abs(weakest - x)[0, 0].max(1).tolist() == pytest.approx([0.025, 0, 0], abs=1e-12)
    assert diagnosis(attack("any-label", eps=0.03).generate(x, diagnosis(x))).tolist() == [[0, 0, 1]]
    assert diagnosis(attack("all-labels", eps=0.11).generate(x, diagnosis(x))).tolist() == [[0, 1, 0]]


def test_keeping_the_others_costs_the_goal_where_they_share_pixels():
    estimator = MonaiMultilabelClassifier(Linear(), (1, 3, 4), decision=Multilabel(3))
    with torch.no_grad():  # label 1 looks at the pixels of label 0 as well, at half the weight
        estimator.network.head.weight[1, :4] = 0.5
        estimator.network.head.bias[1] = -2.7
    x = by_blocks([0.42, 0.44, 0.3])
    y = np.array([[0, 0, 0]])
    changed = {}
    for weight in (0.0, 3.0):
        goal = {"name": "one-label", "label": 0, "goal": "add", "keep_weight": weight}
        x_adv = create("pgd", estimator, eps=0.1, objective=goal, max_iter=20, num_random_init=0).generate(x, y)
        logits = estimator.network(torch.from_numpy(x_adv)).detach().numpy()
        changed[weight] = logits[0]
    assert changed[0.0][0] > 0 and changed[3.0][0] > 0
    assert changed[3.0][1] < 0 < changed[0.0][1]


@pytest.mark.parametrize(("given", "decision", "message"), [
    ({"name": "one-labl", "label": 1}, DECISION, "objective 'one-labl' is unknown; did you mean 'one-label'"),
    ({"label": 1}, DECISION, "has no name; give it as .'name'"),
    ({"name": "one-label", "lable": 1}, DECISION, "no argument 'lable'; it accepts label, goal, keep_weight"),
    ({"name": "ce", "label": 1}, DECISION, "'ce' has no argument 'label'; it accepts none"),
    ({"name": "one-label", "label": 3}, DECISION, "label=3 is no label to attack; choose one of 0, 1, 2"),
    ({"name": "one-label", "label": -1}, DECISION, "label=-1 is no label to attack"),
    ({"name": "one-label", "label": 1.0}, DECISION, "label=1.0 is no label to attack"),
    ({"name": "one-label"}, DECISION, "label is needed where there are several; choose one of 0, 1, 2"),
    ({"name": "one-label", "label": 1, "goal": "hide"}, DECISION, "goal='hide' is unknown; choose 'add' or 'remove'"),
    ({"name": "one-label", "label": 1, "keep_weight": -1}, DECISION, "keep_weight=-1 must be a number"),
    ({"name": "one-label", "label": 1, "keep_weight": float("nan")}, DECISION, "keep_weight=nan must be a number"),
    ({"name": "one-label", "label": 1}, Multiclass(3), "labels that do not exclude each other.*use 'margin'"),
    ("any-label", Multiclass(3), "labels that do not exclude each other.*use 'margin'"),
])  # fmt: skip
def test_what_can_not_be_right_is_refused(given, decision, message):
    with pytest.raises(ValueError, match=message):
        make_objective(given, decision, targeted=False)


def test_one_label_can_not_be_targeted():
    with pytest.raises(ValueError, match="states its own goal.*leave targeted=False"):
        OneLabel(DECISION, targeted=True, label=1)


def test_names_carry_arguments():
    objective = make_objective({"name": "margin", "over": "any"}, DECISION, targeted=True)
    assert isinstance(objective, Margin) and objective.over == "any" and objective.targeted
    assert make_objective("one-label", Multilabel(1), targeted=False).label == 0


@pytest.mark.parametrize("goal", ["any-label", "all-labels", "label-share", {"name": "one-label", "label": 0}])
def test_goals_of_images_are_refused_on_voxels(goal):
    with pytest.raises(ValueError, match="one diagnosis per image, but this model gives one per voxel"):
        create("pgd", setting("voxel-labels").estimator, eps=0.1, objective=goal)


def test_suites_state_an_objective_with_arguments():
    text = "name: pgd\noptions: {max_iter: 10, objective: {name: one-label, label: 1, goal: add}}"
    spec = AttackSpec(**yaml.safe_load(text))
    estimator = MonaiMultilabelClassifier(Linear(), (1, 3, 4), decision=Multilabel(3))
    x = by_blocks([0.54, 0.46, 0.9])
    x_adv = create(spec.name, estimator, eps=0.05, **spec.options).generate(x, diagnosis(x))
    assert diagnosis(x_adv).tolist() == [[1, 1, 1]]
