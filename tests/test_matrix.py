"""The matrix: every attack of the catalogue is right or refused on tiny models, and what is neither would be seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from medadv.attacks import CATALOGUE, recipes
from medadv.attacks.framework import FrameworkAttack
from medadv.benchmarks.cli import main
from medadv.benchmarks.matrix import COLUMNS, ERROR, NO_SUCCESS, REFUSED, RIGHT, WRONG, summary, try_attack, unexplained
from medadv.benchmarks.toys import BREAK, KINDS, toy

TOYS = {(kind, dims): toy(kind, dims) for kind in KINDS for dims in (2, 3)}


def scores(case, x):
    target, valid = case.estimator.decision.canonical(case.y, x.shape[2:] if case.estimator.segments else ())
    return case.estimator.decision.score(torch.from_numpy(case.estimator.predict(x)), target, valid).numpy()


@pytest.mark.parametrize(("kind", "dims"), TOYS)
def test_the_break_of_the_tiny_models_is_where_it_is_said_to_be(kind, dims):
    case = TOYS[kind, dims]
    assert (scores(case, case.x) == 1).all()
    moved = [scores(case, (case.x + sign * BREAK).clip(0, 1).astype(np.float32)) for sign in (1, -1)]
    assert (np.minimum(*moved) < 0.75).all()


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_attack_is_right_or_refused(name):
    table = pd.DataFrame([try_attack(name, case) for case in TOYS.values()], columns=list(COLUMNS))
    assert unexplained(table).empty, unexplained(table).to_string()
    assert (table.verdict == RIGHT).any()
    assert (table.reason[table.verdict == REFUSED].str.len() > 20).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in recipes() if name not in CATALOGUE])
def test_every_attack_of_other_libraries_is_right_or_refused(name):
    table = pd.DataFrame([try_attack(name, case) for case in TOYS.values()], columns=list(COLUMNS))
    assert unexplained(table).empty, unexplained(table).to_string()


class Lazy(FrameworkAttack):
    """Returns the images as they are."""

    def _collect(self, batches):
        super()._collect(batches)
        return [batch.x for batch in batches]


class Greedy(Lazy):
    """Leaves its budget."""

    def _collect(self, batches):
        return [x + 0.2 for x in super()._collect(batches)]


class Careless(Lazy):
    """Leaves the model changed."""

    def generate(self, x, y=None, **kwargs):
        found = super().generate(x, y, **kwargs)
        self.estimator.model.train()
        return found


class Broken(Lazy):
    """Breaks."""

    def _collect(self, batches):
        raise RuntimeError("shapes do not match")


class Foreign(Lazy):
    """Breaks in another library, with the kind of exception that refusals are."""

    def _collect(self, batches):
        return np.concatenate([np.zeros(2), np.zeros((2, 2))])


@pytest.mark.parametrize(("attack", "verdict", "reason"), [
    (Lazy, NO_SUCCESS, ""), (Greedy, WRONG, "budget exceeded"), (Careless, WRONG, "the model was changed"),
    (Broken, ERROR, "RuntimeError: shapes do not match"), (Foreign, ERROR, "all the input array"),
])  # fmt: skip
def test_what_is_neither_right_nor_refused_is_seen(attack, verdict, reason):
    case = toy("binary", 2)
    cell = try_attack("pgd", case, replace(CATALOGUE["pgd"], attack=attack))
    table = pd.DataFrame([cell], columns=list(COLUMNS))
    assert cell["verdict"] == verdict and reason in cell["reason"]
    assert len(unexplained(table)) == 1


def test_the_command_writes_the_table_and_says_how_many(tmp_path, capsys):
    out = tmp_path / "attacks.csv"
    assert main(["attacks", "fgsm", "pgd-dice", "--check", "--out", str(out)]) == 0
    table = pd.read_csv(out)
    assert tuple(table.columns) == COLUMNS and len(table) == 20
    assert summary(table) in capsys.readouterr().out
    assert main(["attacks", "fgsn"]) == 2
