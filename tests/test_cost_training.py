"""The cost of a training step is measured against the passes that really ran."""

from __future__ import annotations

import pytest
import torch
from test_cost import TINY

from medadv.benchmarks.cli import main
from medadv.benchmarks.cost_training import Pass, cost_of_update, plain_update, training_costs, watched
from medadv.training import RECIPES

# forward, attack and update passes, and updates, of one batch with a recipe's defaults
EXPECTED = {
    "natural": (0, 0, 1, 1), "pgd-at": (0, 10, 1, 1), "fast": (0, 1, 1, 1), "free": (0, 0, 4, 4),
    "trades": (1, 10, 2, 1), "mart": (0, 10, 2, 1), "hat": (2, 10, 3, 1), "maadvt": (0, 4, 2, 1),
    "vaft": (0, 5, 2, 1), "attack": (0, 20, 1, 1),
}  # fmt: skip


@pytest.mark.parametrize("subject", TINY)
@pytest.mark.parametrize("name", EXPECTED)
def test_the_passes_of_an_update_are_those_that_ran(name, subject):
    if (name, subject) == ("vaft", "image"):
        return
    row = cost_of_update(TINY[subject], name, pairs=2)
    assert tuple(row[f"{kind}_passes"] for kind in ("forward", "attack", "update")) == EXPECTED[name][:3]
    assert row["updates"] == EXPECTED[name][3] and row["bar"] == 1.1
    assert 0 < row["ci_low"] <= row["ratio"] <= row["ci_high"]


def test_every_recipe_is_timed_or_says_why_not():
    table = training_costs(pairs=2, subjects=[TINY["image"]], progress=False).set_index("recipe")
    assert set(table.index) == set(RECIPES)
    assert table.index[table.ratio.isna()].tolist() == ["vaft"] and "not timed: 'vaft' compares" in table.note["vaft"]


def test_plain_passes_are_those_asked_for():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(9, 2)).eval()
    asked = [Pass("forward", 2), Pass("attack", 1, True), Pass("update", 2), None, Pass("update", 1, True), None]
    seen: list = []
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    optimizer.register_step_post_hook(lambda *_: seen.append(None))
    before = network[1].weight.detach().clone()
    with watched([network], seen):
        plain_update(network, optimizer, torch.rand(2, 1, 3, 3), torch.tensor([0, 1]), asked)
    assert seen == asked
    assert not torch.equal(network[1].weight, before) and not network.training


def test_the_command_times_recipes_and_refuses_others(monkeypatch, capsys):
    monkeypatch.setattr("medadv.benchmarks.cost_training.training_costs.__defaults__", (None, 5, [TINY["image"]], True))
    assert main(["cost", "--training", "fast", "--pairs", "2"]) == 0
    assert "fast" in capsys.readouterr().out
    assert main(["cost", "--training", "trade"]) == 2
    assert "training recipe 'trade' is unknown; did you mean 'trades'" in capsys.readouterr().err
