"""Worst cases for fewer passes: the same scores or lower, fewer passes, and rows that say what was reused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch import nn

from medadv import Multiclass, Multilabel
from medadv.adapters import MonaiClassifier, MonaiMultilabelClassifier, MonaiSegmenter
from medadv.attacks import recipe_of
from medadv.attacks.ensembles import EnsembleAttack, Member
from medadv.benchmarks import evaluate
from medadv.benchmarks.cost_reuse import reuse_of, survey_attacks
from medadv.benchmarks.crafting import Memory, Surrogate, craft
from medadv.benchmarks.data.base import Cases, Dataset
from medadv.benchmarks.economy import worst_case_outcomes
from medadv.benchmarks.evaluate import Evaluator, Planned
from medadv.benchmarks.leaderboard import Leaderboard, is_own
from medadv.benchmarks.leaderboard_rows import Entry
from medadv.benchmarks.store import provenance, read_run, write_tables
from medadv.benchmarks.strength import strength_table
from medadv.benchmarks.suites import load_suite, parse_suite
from medadv.benchmarks.survey import survey_rows
from medadv.benchmarks.trials import evaluate_estimator
from medadv.intensities import Intensity

SIDE, COUNT = 8, 12
BUDGETS = ["4/255", "16/255", "48/255"]
ATTACKS = [
    Planned("fgsm"),
    Planned("pgd", {"max_iter": 5}),
    Planned("square", {"max_iter": 20}),
    Planned("apgd-ce", {"max_iter": 6}),
]


def images(dims: int) -> np.ndarray:
    x = np.random.default_rng(0).random((COUNT, 1, *(SIDE,) * dims))
    return x * np.linspace(0.05, 1, COUNT).reshape(-1, *[1] * (dims + 1))


class Net(nn.Module):
    """A small random network in float64; of images or voxels, whose logits are level on the mean of the cases."""

    def __init__(self, channels: int, *, dims: int = 2, segments: bool = False, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
        self.layers = nn.Sequential(conv(1, 6, 3, padding=1), nn.Tanh(), conv(6, channels, 3, padding=1))
        self.segments = segments
        self.double()
        with torch.no_grad():
            self.layers[2].bias -= self.layers(torch.from_numpy(images(dims))).transpose(0, 1).flatten(1).mean(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = 40 * self.layers(x)
        return z if self.segments else z.flatten(2).mean(2)


def estimator_of(kind: str, dims: int = 2, seed: int = 0):
    shape = (1, *(SIDE,) * dims)
    if kind == "voxels":
        network = Net(2, dims=dims, segments=True, seed=seed)
        return MonaiSegmenter(network, shape, decision=Multiclass(2, background=0))
    if kind == "labels":
        return MonaiMultilabelClassifier(Net(3, dims=dims, seed=seed), shape, decision=Multilabel(3))
    return MonaiClassifier(Net(3, dims=dims, seed=seed), shape, decision=Multiclass(3))


def data_of(estimator, intensity: Intensity = Intensity(0, 1), wrong: int = 2) -> Dataset:
    """Cases that the model gets right, but for the first ones (images and labels), and a reference with foreground."""
    dims = len(estimator.input_shape) - 1
    x = images(dims)
    if intensity.grid is not None:
        x = (x * 255).round() / 255
    y = estimator.decision.harden(torch.from_numpy(estimator.predict(x))).numpy()
    if not estimator.segments:
        y[:wrong] = (y[:wrong] + 1) % (3 if y.ndim == 1 else 2)
    cases = Cases(x, y, tuple(f"case-{i}" for i in range(COUNT)))
    task = "segmentation" if estimator.segments else "classification"
    classes = tuple("abc"[: estimator.decision.channels])
    return Dataset("random", task, estimator.decision, intensity, classes, cases.take(0), cases.take(0), cases)


def both_ways(estimator, attacks=ATTACKS, budgets=BUDGETS, **settings):
    data = settings.pop("data", None) or data_of(estimator)
    return [
        evaluate_estimator(estimator, data, attacks, budgets, batch_size=5, rows=rows, **settings)
        for rows in ("every", "worst-case")
    ]


def worst(result):
    return {outcome.threat_set: outcome for outcome in result.outcomes if outcome.attack == "worst-case"}


def passes(result):
    found = [outcome.passes for outcome in result.outcomes if outcome.attack != "worst-case"]
    return sum(p.forward + p.backward for p in found)


@pytest.mark.parametrize(("kind", "dims"), [("classes", 2), ("labels", 2), ("voxels", 2), ("voxels", 3)])
def test_no_worst_case_is_higher_for_any_case(kind, dims):
    every, alone = both_ways(estimator_of(kind, dims))
    theirs, ours = worst(every), worst(alone)
    assert list(theirs) == list(ours) and len(ours) == len(BUDGETS)
    for key, outcome in ours.items():
        assert not (outcome.scores > theirs[key].scores).any()
        np.testing.assert_array_equal(np.isnan(outcome.scores), np.isnan(theirs[key].scores))
    last = theirs[max(theirs, key=lambda key: key[2])].scores
    assert np.nanmean(last) < 0.8 * np.nanmean(every.clean.scores)  # else nothing is tried here


def test_where_nothing_can_be_dropped_or_carried_the_scores_are_those_of_every_row():
    # all labels right or two of three, never none: no case is at the floor, and at one budget nothing is carried
    every, alone = both_ways(estimator_of("labels"), budgets=["4/255"], data=data_of(estimator_of("labels"), wrong=0))
    (theirs,), (ours,) = worst(every).values(), worst(alone).values()
    assert (theirs.scores > 0).all() and (theirs.scores < 1).any()
    np.testing.assert_array_equal(ours.scores, theirs.scores)
    assert passes(alone) == passes(every)
    moved = theirs.scores < 1
    np.testing.assert_array_equal(ours.linf[moved], theirs.linf[moved])


def test_what_an_attack_finds_does_not_depend_on_who_else_is_left():
    estimator = estimator_of("classes")
    evaluator = Evaluator(estimator, data_of(estimator), batch_size=5)
    for planned in (*ATTACKS, Planned("apgd-t", {"max_iter": 4}), Planned("fab", {"max_iter": 4})):
        order = evaluator.order(planned, "4/255")
        whole = craft(estimator, order, evaluator.seen)
        rows = torch.tensor([1, 3, 4, 8, 9, 10, 11])
        some = craft(estimator, order, evaluator.seen.subset(rows))
        assert some.images.dtype == np.float64
        np.testing.assert_allclose(some.images, whole.images[rows], atol=1e-9)


def test_fewer_passes_and_cases_only_dropped_at_the_floor():
    every, alone = both_ways(estimator_of("classes"))
    assert passes(alone) < 0.7 * passes(every)
    for eps in {outcome.eps for outcome in alone.outcomes if outcome.eps}:
        rows = [outcome for outcome in alone.outcomes if outcome.eps == eps]
        cumulative = [row for row in rows if row.n_attacked is not None and row.attack != "worst-case"]
        before = None
        for row in cumulative:
            if before is not None:
                assert row.n_attacked == int((before.scores != 0).sum())
                assert (row.scores <= before.scores).all()
            assert (row.queries > 0).sum() == row.n_attacked
            before = row


def test_passes_told_are_those_that_ran():
    estimator = estimator_of("classes")
    evaluator = Evaluator(estimator, data_of(estimator), batch_size=5)
    ran, judged, logits = [], [], evaluator._logits
    handle = estimator.network.register_forward_hook(lambda module, inputs, output: ran.append(len(output)))

    def judging(x):
        judged.append(len(x))
        return logits(x)

    evaluator._logits = judging
    outcomes = worst_case_outcomes(evaluator, ATTACKS, BUDGETS)
    handle.remove()
    assert max(judged) <= 5
    told = sum(o.passes.forward for o in outcomes if o.attack != "worst-case")
    assert told == len(ran) - len(judged)
    for outcome in outcomes:
        if outcome.attack == "worst-case":
            same = [o for o in outcomes if o.threat_set == outcome.threat_set and o is not outcome]
            assert outcome.passes.forward == sum(o.passes.forward for o in same)


def test_the_measurement_of_cost_counts_what_ran_both_ways():
    estimator = estimator_of("classes")
    table = reuse_of(estimator, data_of(estimator), ATTACKS, BUDGETS, COUNT)
    assert table.eps.tolist() == ["4/255", "16/255", "48/255", "all"] and (table.higher == 0).all()
    total = table.iloc[-1]
    for way in ("every", "reused"):
        ran, cases = total[f"passes_{way}"], total[f"cases_{way}"]
        assert ran >= table[f"passes_{way}"][:-1].sum() and ran < cases <= ran * COUNT
    assert total.saved_per_case == total.cases_every / total.cases_reused > 1.3
    assert [attack.label for attack in survey_attacks()][-2:] == ["square-5000", "simba-dct-5000"]


def test_an_attack_that_two_rows_ask_for_runs_once():
    estimator = estimator_of("classes")
    attacks = [Planned("square", {"max_iter": 5000}), Planned("autoattack"), Planned("robust")]
    data = data_of(estimator)
    few = replace(data, test=Cases(data.test.x[9:11], data.test.y[9:11], data.test.ids[9:11]))
    result = evaluate_estimator(estimator, few, attacks, ["0.5/255"], rows="worst-case")
    rows = {outcome.attack: outcome for outcome in result.outcomes}
    assert rows["worst-case"].scores.tolist() == [1, 1]  # all had to run
    assert "shared=square" in rows["autoattack"].reused and rows["square"].passes.forward == 5000
    assert rows["autoattack"].passes.forward < 5000
    assert "shared=" in rows["robust"].reused


def test_cases_that_are_left_fill_the_batches_of_the_next_member():
    estimator = estimator_of("classes")
    data = data_of(estimator)

    def plan(attack):
        return [Member(name, {"max_iter": 8}) for name in ("apgd-ce", "apgd-dlr")]

    whole, alone = (
        EnsembleAttack(estimator, recipe_of("robust"), plan=plan, eps="8/255", batch_size=size, num_random_init=1)
        for size in (4, 1)
    )
    x, y = data.test.x, data.test.y
    found, single = whole.generate(x, y), alone.generate(x, y)
    np.testing.assert_allclose(found, single, atol=1e-9)
    np.testing.assert_array_equal(whole.queries, alone.queries)
    first, second = (whole.report.iloc[i] for i in (0, 1))
    assert (first.cases, second.cases) == (10, 8)  # two or three in each batch of four, but for the last
    assert (first.backward, second.backward) == (3 * 8, 2 * 8)


def test_what_is_in_the_ball_of_the_grid_and_the_region_is_carried():
    intensity = Intensity(0, 1, grid=(1 / 255, 0))
    estimator = MonaiSegmenter(
        Net(2, segments=True), (1, SIDE, SIDE), decision=Multiclass(2, background=0), intensity=intensity
    )
    data = data_of(estimator, intensity)
    attacks = [Planned("pgd", {"max_iter": 3}, region="foreground"), Planned("pgd", {"max_iter": 3, "norm": 2}, "l2")]
    result = evaluate_estimator(estimator, data, attacks, ["2/255", "40/255"], rows="worst-case", keep_images=True)
    inside = Evaluator(estimator, data).seen.mask("foreground")
    found = worst(result)
    assert [key[:2] for key in found] == [("linf", "all")] * 2 + [("linf", "foreground")] * 2 + [("l2", "all")] * 2
    for (threat, region, eps), outcome in found.items():
        moved = outcome.images - data.test.x
        size = np.abs(moved).reshape(COUNT, -1)
        size = size.max(1) if threat == "linf" else np.linalg.norm(size, axis=1)
        assert (size <= eps * (1 + 1e-6)).all()
        np.testing.assert_allclose(outcome.images * 255, (outcome.images * 255).round(), atol=1e-9)
        if region == "foreground":
            assert not np.abs(moved[~inside]).any()


def test_a_smaller_budgets_image_counts_at_a_larger_one():
    # an attack that does not move at the larger budget leaves what was found at the smaller one
    still = Planned("pgd", {"max_iter": 1}, per_budget={"48/255": {"eps_step": "40/255"}, "60/255": {"eps_step": 1e-9,
                    "num_random_init": 0}})  # fmt: skip
    every, alone = both_ways(estimator_of("classes"), [still], ["48/255", "60/255"])
    small, large = worst(alone).values()
    assert small.scores.mean() < every.clean.scores.mean()
    assert (large.scores <= small.scores).all()
    assert list(worst(every).values())[1].scores.mean() > large.scores.mean()
    assert f"carried={COUNT}" in large.reused and "pgd at 0.1882" in large.worst_attack


def test_threats_that_are_no_balls_start_anew_and_moved_references_go_with_their_images():
    estimator = estimator_of("voxels")
    moves = {"rotation": 0.0, "scale": 0.0, "translation": 0.3, "max_iter": 2}
    attacks = [Planned("affine", {"eps": eps, **moves}, f"affine {eps}") for eps in (0.5, 1.0)]
    every, alone = both_ways(estimator, attacks)
    theirs, ours = worst(every), worst(alone)
    for key in [("affine", "all", 0.5), ("affine", "all", 1.0)]:
        assert "carried" not in ours[key].reused
        np.testing.assert_array_equal(ours[key].scores, theirs[key].scores)
        assert torch.equal(ours[key].reference[0], theirs[key].reference[0])


def test_rows_that_need_every_case_get_every_case_and_transfer_is_paid_once():
    memory = Memory()
    surrogate = Surrogate("twin", estimator_of("classes", seed=1), memory=memory)
    attacks = [
        Planned("pgd", {"max_iter": 3}), Planned("pgd", {"max_iter": 3}, surrogate=surrogate),
        Planned("pgd", {"max_iter": 3}, "to 1", wanted=1), Planned("universal", {"max_iter": 2}),
    ]  # fmt: skip
    target = estimator_of("classes")
    data = data_of(target)
    ways = [evaluate_estimator(target, data, attacks, BUDGETS, batch_size=5, rows=r) for r in ("every", "worst-case")]
    again = evaluate_estimator(estimator_of("classes", seed=2), data, attacks, BUDGETS, batch_size=5, rows="worst-case")
    for label in ("pgd from twin", "to 1", "universal", "noise"):
        for theirs, ours in zip(*[[o for o in way.outcomes if o.attack == label] for way in ways], strict=True):
            np.testing.assert_array_equal(theirs.scores, ours.scores)
            assert ours.n_attacked is None and len(ours.endpoints) and ours.success == theirs.success
    (small, *_) = [o for o in ways[1].outcomes if o.attack == "pgd from twin"]
    assert small.reused == "replayed" and small.passes.forward == 0 and small.access == "transfer"
    assert all(o.reused == "replayed" for o in again.outcomes if o.attack == "pgd from twin")
    # a row that holds what transfer and white-box found needs both
    assert {o.access for o in ways[1].outcomes if o.attack in ("pgd", "worst-case")} == {"white-box"}


def board_of(result, **words):
    board = Leaderboard(meta=provenance())
    board.add(Entry("s", "t", "m", "natural", 0), result)
    return board


def test_the_tables_tell_what_was_reused_and_leave_out_what_nobody_knows(tmp_path):
    every, alone = (board_of(result) for result in both_ways(estimator_of("classes")))
    own = is_own(alone.frame)
    assert is_own(every.frame).all() and (every.frame.reused == "").all()
    assert (every.frame.n_attacked == np.where(every.frame.attack == "none", 0, COUNT)).all()
    assert set(alone.frame.attack[own]) == {"none", "noise"}
    assert set(alone.endpoints.attack) == {"none", "noise"}
    assert not alone.frame["flags"].str.contains("monotone|larger").any()
    shown = survey_rows(alone)
    assert set(shown.attack) == {"none", "noise", "worst-case"}
    write_tables(alone, tmp_path)
    back = read_run(tmp_path)
    pd.testing.assert_frame_equal(back.frame[["n_attacked", "reused"]], alone.frame[["n_attacked", "reused"]])
    with pytest.raises(ValueError, match="rows: every"):
        strength_table(alone.frame.replace({"attack": {"pgd": "robust"}}), alone.cases.replace({"pgd": "robust"}))


def test_a_run_of_the_schema_before_is_still_read(tmp_path):
    every = board_of(both_ways(estimator_of("classes"), budgets=["4/255"])[0])
    write_tables(every, tmp_path)
    path = tmp_path / "leaderboard.csv"
    pd.read_csv(path, keep_default_na=False).drop(columns=["n_attacked", "reused"]).to_csv(path, index=False)
    back = read_run(tmp_path)
    assert back.frame.n_attacked.tolist() == every.frame.n_attacked.tolist() and (back.frame.reused == "").all()


def test_no_cumulative_row_is_the_diagonal_of_a_transfer_matrix():
    memory = Memory()
    twins = {name: estimator_of("classes", seed=seed) for seed, name in enumerate(["a", "b"])}
    board = Leaderboard()
    data = data_of(twins["a"])
    for name, estimator in twins.items():
        other = Surrogate("b/x" if name == "a" else "a/x", twins["b" if name == "a" else "a"], memory=memory)
        attacks = [Planned("pgd", {"max_iter": 3}), Planned("pgd", {"max_iter": 3}, surrogate=other)]
        result = evaluate_estimator(estimator, data, attacks, ["16/255"], rows="worst-case")
        board.add(Entry("s", "t", name, "x", 0), result)
    matrix = board.transfer_matrix().set_index("surrogate")
    assert np.isnan(matrix.loc["a/x", "a/x"]) and np.isnan(matrix.loc["b/x", "b/x"])
    assert 0 <= matrix.loc["b/x", "a/x"] <= 1 and 0 <= matrix.loc["a/x", "b/x"] <= 1


def test_a_suite_can_ask_for_it_and_not_with_defences():
    plan = load_suite("quick").model_dump(mode="json")
    assert plan["rows"] == "every"
    plan["tasks"] = plan["tasks"][:1]
    plan["rows"] = "worst-case"
    assert parse_suite(yaml.safe_dump(plan), "mine").rows == "worst-case"
    plan["tasks"][0]["defences"] = {"jpeg": {"kind": "preprocessor"}}
    with pytest.raises(ValueError, match="rows: worst-case leaves cases alone.*use rows: every"):
        parse_suite(yaml.safe_dump(plan), "mine")


def test_misspelt_rows_are_refused():
    estimator = estimator_of("classes")
    with pytest.raises(ValueError, match="worst_case.*worst-case"):
        evaluate(estimator, data_of(estimator), ["fgsm"], ["1/255"], rows="worst_case")
