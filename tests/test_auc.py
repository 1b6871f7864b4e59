"""AUC under attack on linear models, whose smallest margins are known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from builders import setting
from scipy.optimize import minimize
from scipy.special import logsumexp
from sklearn.metrics import roc_auc_score

from medadv.adapters import MonaiClassifier, MonaiMultilabelClassifier
from medadv.attacks.auc import auc_under_attack
from medadv.decisions import Multiclass, Multilabel

SIDE = (1, 3, 4)


def linear(outputs, decision, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, outputs, dtype=dtype))
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(outputs, 12, generator=generator))
        net[1].bias.copy_(-net[1].weight.sum(1) / 2)
    kind = MonaiMultilabelClassifier if isinstance(decision, Multilabel) else MonaiClassifier
    return kind(net, SIDE, decision=decision), net[1].weight.detach().numpy(), net[1].bias.detach().numpy()


def images(cases, seed=0):
    """Far from the ends of the range, so that no budget here is cut off."""
    return np.random.default_rng(seed).uniform(0.3, 0.7, (cases, *SIDE))


@pytest.mark.parametrize(("norm", "dual"), [(np.inf, 1), (2, 2)])
def test_margins_of_labels_fall_by_the_dual_norm_and_auc_is_theirs(norm, dual):
    decision = Multilabel(3, threshold=(0.3, 0.5, 0.8), ignore_index=9)
    estimator, weight, bias = linear(3, decision)
    x = images(24)
    rng = np.random.default_rng(1)
    z = x.reshape(24, -1) @ weight.T + bias
    y = (z + rng.normal(0, 0.7, z.shape) > 0).astype(int)
    hidden = rng.random(y.shape) < 0.1
    eps = 0.05
    result = auc_under_attack(estimator, x, np.where(hidden, 9, y), eps=eps, norm=norm, max_iter=30)
    tau = np.log(np.array([0.3, 0.5, 0.8]) / np.array([0.7, 0.5, 0.2]))
    clean = np.where(hidden, np.nan, (2 * y - 1) * (z - tau))
    assert np.allclose(result.clean_margins, clean, equal_nan=True, atol=1e-9)
    fall = eps * np.linalg.norm(weight, ord=dual, axis=1)
    assert np.allclose(result.adversarial_margins, clean - fall, equal_nan=True, atol=1e-6)
    for c, row in result.table.iterrows():
        seen = ~hidden[:, c]
        assert (row.label, row.positives, row.negatives) == (c, y[seen, c].sum(), (1 - y[seen, c]).sum())
        scores = z[:, c] - (2 * y[:, c] - 1) * fall[c]
        assert row.clean == pytest.approx(roc_auc_score(y[seen, c], z[seen, c]))
        assert row.adversarial == pytest.approx(roc_auc_score(y[seen, c], scores[seen]))
    assert result.clean == pytest.approx(result.table.clean.mean())
    assert result.adversarial < result.clean and result.passes.backward == 3 * 30


def test_two_classes_are_one_ranking():
    estimator, weight, bias = linear(2, Multiclass(2))
    x = images(12)
    z = x.reshape(12, -1) @ weight.T + bias
    y = (z[:, 1] - z[:, 0] + np.random.default_rng(2).normal(0, 1, 12) > 0).astype(int)
    result = auc_under_attack(estimator, x, y, eps=0.04, max_iter=20)
    clean = (2 * y - 1) * (z[:, 1] - z[:, 0])
    assert result.table.label.tolist() == [1]
    assert np.allclose(result.adversarial_margins[:, 0], clean - 0.04 * np.abs(weight[1] - weight[0]).sum(), atol=1e-9)


def test_classes_are_ranked_one_against_the_rest_by_their_probability():
    estimator, weight, bias = linear(3, Multiclass(3))
    x = images(9)
    z = x.reshape(9, -1) @ weight.T + bias
    y = np.arange(9) % 3
    eps = 0.05
    result = auc_under_attack(estimator, x, y, eps=eps, max_iter=30, num_random_init=3)
    corners = eps * np.array(list(itertools.product((-1, 1), repeat=12)))

    def log_odds(i, c, change):
        logits = z[i] + change @ weight.T
        return logits[..., c] - logsumexp(np.delete(logits, c, axis=-1), axis=-1)

    for i in range(9):
        for c in range(3):
            if y[i] == c:  # concave in the change, so smallest in a corner of the box
                margin = log_odds(i, c, corners).min()
            else:
                margin = minimize(lambda d, i=i, c=c: -log_odds(i, c, d), np.zeros(12), bounds=[(-eps, eps)] * 12).fun
            assert result.adversarial_margins[i, c] == pytest.approx(margin, abs=1e-3)
            assert result.adversarial_margins[i, c] >= margin - 1e-6
    probabilities = np.exp(z - logsumexp(z, axis=1, keepdims=True))
    assert result.clean == pytest.approx(roc_auc_score(y, probabilities, multi_class="ovr"))


def test_the_attack_goes_on_beyond_the_boundary():
    estimator, _, _ = linear(1, Multilabel(1))
    x = images(6)
    y = (np.asarray(estimator.predict(x)) > 0).astype(int).reshape(-1, 1)
    budgets = [auc_under_attack(estimator, x, y, eps=eps, max_iter=10).adversarial_margins for eps in (0, 0.1, 0.2)]
    assert (budgets[1] < budgets[0]).all() and (budgets[2] < budgets[1]).all() and (budgets[1] < 0).any()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", ["class", "labels"])
def test_it_never_helps_and_only_what_is_allowed_changes(kind, dims):
    case = setting(kind, dims, cases=6)
    y = (case.y + 1) % (2 if kind == "labels" else 3)
    nowhere = np.zeros((1, 1, *case.x.shape[2:]), dtype=bool)
    free = auc_under_attack(case.estimator, case.x, y, eps=0.1, max_iter=5, labels=[1])
    still = auc_under_attack(case.estimator, case.x, y, eps=0.1, max_iter=5, labels=[1], mask=nowhere)
    assert (free.adversarial_margins < free.clean_margins).all()
    assert np.allclose(still.adversarial_margins, still.clean_margins, atol=1e-6)
    assert free.table.label.tolist() == [1]


def test_a_label_without_positive_cases_has_no_auc():
    estimator, _, _ = linear(2, Multilabel(2))
    y = np.array([[0, 1], [0, 0], [0, 1]])
    result = auc_under_attack(estimator, images(3), y, eps=0.01, max_iter=3)
    assert np.isnan(result.table.clean[0]) and np.isnan(result.table.adversarial[0])
    assert result.clean == result.table.clean[1]


@pytest.mark.parametrize(("kind", "options", "message"), [
    ("voxel-class", {"eps": 0.1}, "is for classification, the model does segmentation"),
    ("labels", {"eps": 0.1, "labels": [3]}, "label=3 is no label to attack; choose one of 0, 1, 2"),
    ("labels", {"eps": 0.1, "labels": []}, "labels is empty"),
    ("labels", {"eps": 0.1, "max_iter": 0}, "max_iter=0 must be a whole number of at least 1"),
    ("labels", {"eps": -1}, "eps"),
])  # fmt: skip
def test_what_can_not_be_right_is_refused(kind, options, message):
    case = setting(kind)
    with pytest.raises(ValueError, match=message):
        auc_under_attack(case.estimator, case.x, case.y, **options)
