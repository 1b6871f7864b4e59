"""Ensembles: per case the worst of their members, nobody dropped before the floor, everything counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from builders import KINDS, setting
from rows import attack_on

from medadv.attacks import CATALOGUE, create

ENSEMBLES = [(name, kind) for name in ("robust", "autoattack", "sea") for kind in KINDS
             if kind.startswith("voxel") or name != "sea"
             if not (kind.startswith("voxel") and name == "autoattack")]  # fmt: skip


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("name", "kind"), ENSEMBLES)
def test_an_ensemble_is_per_case_at_least_as_strong_as_each_member(name, kind, dims):
    case = setting(kind, dims, cases=4)
    attack = attack_on(case, name, eps="4/255")
    worst = case.scores(attack.generate(case.x, case.y))
    assert (worst <= case.scores(case.x)).all()
    for _, member in attack._members:
        alone = case.scores(member.generate(case.x, case.y))
        assert (worst <= alone + 1e-6).all(), member.name


@pytest.mark.parametrize(("name", "kind"), ENSEMBLES)
def test_the_report_tells_who_saw_whom_and_adds_up(name, kind):
    case = setting(kind, cases=4)
    attack = attack_on(case, name, eps="16/255", batch_size=3)
    x_adv = attack.generate(case.x, case.y)
    report = attack.report
    assert list(report.columns) == ["member", "cases", "at_floor", "score", "forward", "backward", "seconds"]
    assert list(report.member) == [member.label for member, _ in attack._members]
    left = report.at_floor.rsub(4).to_list()
    start = int((case.scores(case.x) > 0).sum())
    assert report.cases.to_list() == [start, *left[:-1]]
    assert report.score.is_monotonic_decreasing
    assert report.score.iloc[-1] == pytest.approx(case.scores(x_adv).mean(), abs=1e-6)
    batches = 2
    # beside the members: one look at the clean images, one at what each member found
    looks = batches + sum((report.forward > 0) * 0)
    assert attack.passes.backward == report.backward.sum()
    assert attack.passes.forward >= report.forward.sum() + looks


def test_a_broken_case_costs_later_members_nothing():
    case = setting("class", cases=4)
    attack = attack_on(case, "robust", eps=0.4)
    attack.generate(case.x, case.y)
    assert attack.report.at_floor.iloc[0] == 4
    assert attack.report.forward.iloc[1:].sum() == 0 and (attack.report.cases.iloc[1:] == 0).all()
    assert (attack.queries <= 2 + attack.report.forward.iloc[0]).all()


def test_a_wrong_diagnosis_is_returned_as_it_is():
    case = setting("class", cases=3)
    wrong = (case.y + 1) % 3
    for name in ("robust", "autoattack"):
        attack = attack_on(case, name)
        assert np.array_equal(attack.generate(case.x, wrong), case.x)
        assert attack.passes.backward == 0


def test_negative_cases_are_attacked_to_the_end():
    case = setting("voxel-class", cases=2)
    nothing = np.zeros_like(case.y)
    attack = attack_on(case, "robust")
    x_adv = attack.generate(case.x, nothing)
    assert (attack.report.cases == 2).all()

    def claimed(x):
        with torch.no_grad():
            return float((case.decision.harden(case.net(torch.from_numpy(x))) > 0).double().mean())

    assert claimed(x_adv) > claimed(case.x)


@pytest.mark.parametrize("name", ["robust", "sea"])
def test_targeted_ensembles_near_the_target(name):
    kind = "voxel-class" if name == "sea" else "class"
    case = setting(kind, cases=4)
    wanted = (case.y + 1) % 3
    x_adv = attack_on(case, name, targeted=True, eps="16/255").generate(case.x, wanted)
    before, after = (np.nan_to_num(case.scores(x, wanted)) for x in (case.x, x_adv))
    assert after.mean() > before.mean()


@pytest.mark.parametrize("name", ["robust", "autoattack"])
@pytest.mark.parametrize("keep", ["loss", "last"])
def test_an_ensemble_keeps_the_worst_score_and_nothing_else(name, keep):
    with pytest.raises(ValueError, match="does not fit an ensemble"):
        create(name, setting("class").estimator, eps=0.1, keep=keep)


def test_the_default_answer_has_no_parameter_but_restarts():
    assert dict(CATALOGUE["robust"].options) == {"num_random_init": 1}
    assert set(CATALOGUE["autoattack"].options) == set()


@pytest.mark.parametrize("name", ["autoattack", "sea"])
def test_the_wrong_kind_of_model_is_pointed_elsewhere(name):
    kind = "voxel-class" if name == "autoattack" else "class"
    with pytest.raises(ValueError, match="use robust or"):
        create(name, setting(kind).estimator, eps=0.1)
