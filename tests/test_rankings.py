"""Who is better than whom: paired tests, Holm's correction, rank sets, and what can't be compared."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medadv.benchmarks.cli import main
from medadv.benchmarks.comparison import Board, compare_boards, described, read_board
from medadv.benchmarks.leaderboard import Leaderboard
from medadv.benchmarks.leaderboard_rows import COLUMNS, SCHEMA_VERSION
from medadv.benchmarks.paired import holm, paired_test, rank_sets, sign_flip_p
from medadv.benchmarks.per_class import per_class

CASES, EPS = 40, 0.1
MEANS = {("a", "natural"): 0.3, ("a", "pgd-at"): 0.6, ("b", "natural"): 0.3}


def cases_of(model, training, seed, attack, scores, threat="linf", eps=EPS):
    return pd.DataFrame({
        "suite": "s", "dataset": "d", "task": "t", "model": model, "training": training, "train_seed": seed,
        "attack": attack, "threat": threat, "region": "all", "eps": eps, "unit": "1",
        "case": [f"c{i}" for i in range(len(scores))], "patient": [f"p{i // 2}" for i in range(len(scores))],
        "clean": 0.9, "adversarial": scores,
    })  # fmt: skip


def row_of(cases, access="white-box", steps=10):
    first, scores = cases.iloc[0], cases.adversarial
    told = {**first[["suite", "dataset", "task", "model", "training", "train_seed", "attack", "threat", "region", "eps",
                     "unit"]], "access": access, "surrogate": "none", "steps": steps, "restarts": 1, "metric": "dice",
            "empty_policy": "present", "clean": 0.9, "adversarial": scores.mean(), "eps_fraction": 0.1,
            "error": ""}  # fmt: skip
    return {**dict.fromkeys(COLUMNS, 0), **told}


def board_of(means=MEANS, seeds=(0, 1, 2), steps=10, attacks=("pgd",), shift=0.0) -> Leaderboard:
    ease = np.random.default_rng(0).normal(0, 0.08, CASES)
    tables, rows = [], []
    for number, ((model, training), seed) in enumerate(product(means, seeds)):
        own = np.random.default_rng(100 + number).normal(0, 0.02, CASES)
        scores = np.clip(means[model, training] + ease + own + shift, 0, 1)
        for attack in (*attacks, "worst-case"):
            tables.append(cases_of(model, training, seed, attack, scores))
            rows.append(row_of(tables[-1], steps=steps))
    return Leaderboard(frame=pd.DataFrame(rows, columns=list(COLUMNS)), cases=pd.concat(tables, ignore_index=True))


def saved(board, folder, **meta):
    folder.mkdir()
    board.frame.to_csv(folder / "leaderboard.csv", index=False)
    board.cases.to_csv(folder / "cases.csv", index=False)
    told = {"schema_version": SCHEMA_VERSION, "data": {"t": {"sha256": "abc"}}, **meta}
    (folder / "leaderboard.meta.json").write_text(json.dumps(told))
    return folder


def test_sign_flips_of_few_patients_are_counted_exactly():
    sums = np.array([3.0, 1.0, -1.0, 2.0, 0.0])
    flips = [abs(np.dot(sums, signs)) for signs in product((-1, 1), repeat=5)]
    assert sign_flip_p(sums) == pytest.approx(np.mean([value >= 5 - 1e-9 for value in flips]))
    assert sign_flip_p(np.full(5, 0.1)) == pytest.approx(2 / 2**5)
    assert sign_flip_p(np.zeros(9)) == 1


def test_drawn_flips_agree_with_all_flips():
    sums = np.random.default_rng(3).normal(0.3, 1, 14)
    bits = (np.arange(2**14)[:, None] >> np.arange(14)) & 1
    exact = (np.abs((2 * bits - 1) @ sums) >= abs(sums.sum()) - 1e-12).mean()
    assert sign_flip_p(sums) == pytest.approx(exact, abs=0.015)


def test_holm_by_hand():
    assert holm([0.01, np.nan, 0.02, 0.5])[[0, 2, 3]] == pytest.approx([0.03, 0.04, 0.5])
    assert np.isnan(holm([0.01, np.nan])[1])
    assert len(holm([])) == 0


def test_models_that_no_test_parts_share_their_ranks():
    better = np.zeros((4, 4), dtype=bool)
    better[0, 2] = better[0, 3] = better[1, 3] = True
    assert rank_sets(better).tolist() == [[1, 2], [1, 3], [2, 4], [3, 4]]


def test_a_seed_that_happens_to_be_good_is_no_better_method():
    rng = np.random.default_rng(5)
    ease = rng.normal(0.6, 0.1, 40)
    luck = np.array([0.10, -0.09, 0.03])[:, None]
    a, b = ease + luck, np.tile(ease, (3, 1)) + rng.normal(0, 0.005, (3, 40))
    assert paired_test(a[:1], b[:1], None).p < 0.001
    assert paired_test(a, b, None).p > 0.3


def test_all_pairs_are_corrected_as_one_family():
    table = board_of().compare(None)
    assert len(table) == 3 and (table.family == 3).all() and (table.n_seeds == 3).all()
    assert (table.p_holm >= table.p).all()
    row = table[(table.model == "a") & (table.against_training == "pgd-at")].iloc[0]
    assert row.difference == pytest.approx(row["mean"] - row.against_mean) and row.ci_unit == "patient x seed"
    assert row.significant and row.difference < 0 and row["flags"] == ""


def test_a_baseline_is_compared_within_its_model_and_one_seed_is_flagged():
    table = board_of(seeds=(0,)).compare()
    assert table[["model", "training", "against_training"]].values.tolist() == [["a", "pgd-at", "natural"]]
    assert table["flags"].tolist() == ["single-train-seed"]


def test_ranks_leave_open_what_the_tests_leave_open():
    table = board_of().ranks().set_index(["model", "training"])
    assert table.loc[("a", "pgd-at"), ["best_rank", "worst_rank"]].tolist() == [1, 1]
    for name in (("a", "natural"), ("b", "natural")):
        assert table.loc[name, ["best_rank", "worst_rank"]].tolist() == [2, 3]
    assert table["rank"].tolist() == [1, 2, 3]


def test_unscored_cases_are_counted_and_left_out_in_pairs():
    board = board_of(seeds=(0,))
    lost = (board.cases.training == "pgd-at") & board.cases.case.isin(["c1", "c2"])
    board.cases.loc[lost, "adversarial"] = np.nan
    row = board.compare().iloc[0]
    assert (row.n_cases, row.n_unscored) == (38, 2)
    assert board.ranks().set_index("training").n_unscored["pgd-at"] == 2


@pytest.mark.parametrize(("change", "word"), [
    ({"access": "gray-box"}, "gray-box"), ({"steps": 40}, "40 steps"), ({"attack": "square"}, "square"),
])  # fmt: skip
def test_worst_cases_of_other_attacks_are_kept_apart(change, word):
    board = board_of(seeds=(0,))
    odd = (board.frame.training == "pgd-at") & (board.frame.attack == "pgd")
    for column, value in change.items():
        board.frame.loc[odd, column] = value
    assert board.compare().empty
    apart = board.not_compared()
    assert len(apart) == 1 and word in apart.reason[0]
    ranks = board.ranks().set_index(["model", "training"])
    assert ranks.loc[("a", "pgd-at"), "n_models"] == 1 and ranks.loc[("b", "natural"), "n_models"] == 2


def test_a_defended_model_whose_attackers_know_the_defence_is_compared():
    board = board_of(seeds=(0,))
    mine = board.frame.training == "pgd-at"
    unaware = board.frame[mine & (board.frame.attack == "pgd")].assign(attack="pgd (unaware)", access="gray-box")
    board.frame.loc[mine & (board.frame.attack == "pgd"), "attack"] = "pgd (adaptive)"
    board.frame = pd.concat([board.frame, unaware], ignore_index=True)
    assert len(board.compare()) == 1 and board.not_compared().empty


def test_over_seeds_tells_the_spread_of_trainings():
    table = board_of().over_seeds()
    assert (table.n_seeds == 3).all() and (table.seed_std < 0.02).all() and (table.ci_unit == "patient x seed").all()
    single = board_of(seeds=(0,)).over_seeds()
    assert (single["flags"] == "single-train-seed").all() and single.seed_std.isna().all()


def test_classes_have_means_intervals_and_counts():
    scores = np.linspace(0.2, 0.8, 10)
    cases = cases_of("a", "natural", 0, "pgd", scores)
    keys = cases[
        ["suite", "dataset", "task", "model", "training", "train_seed", "attack", "threat", "region", "eps", "unit"]
    ]
    rows = keys.assign(case=cases.case, endpoint="class_dice:liver", reference=1.0, clean=0.9, adversarial=scores)[:8]
    rows.loc[0, "adversarial"] = np.nan
    far = rows.assign(endpoint="hd95_mm:liver", adversarial=[np.inf, *np.arange(1.0, 8)])
    logits = keys.assign(case=cases.case, endpoint="score:tumour", reference=[1.0] * 6 + [0.0] * 4, clean=1.0,
                         adversarial=[1, 1, 1, -1, -1, -1, -2, -2, 2, np.nan])  # fmt: skip
    found = per_class(pd.concat([rows, far, logits]), cases).set_index(["class", "measure"])
    dice = found.loc[("liver", "class_dice")]
    assert (dice.n_cases, dice.n_absent, dice.n_unscored) == (10, 2, 1)
    assert dice.adversarial == pytest.approx(scores[1:8].mean()) and dice.ci_low < dice.adversarial < dice.ci_high
    assert found.loc[("liver", "hd95_mm")].n_infinite == 1 and found.loc[("liver", "hd95_mm")].adversarial == 4
    recall, rest = found.loc[("tumour", "recall")], found.loc[("tumour", "true_negative_rate")]
    assert recall.adversarial == 0.5 and recall.n_absent == 4
    assert rest.adversarial == pytest.approx(2 / 3) and rest.n_unscored == 1 and rest["flags"] == "ci-bound"


def test_two_runs_are_compared_and_what_one_alone_has_is_listed(tmp_path, capsys):
    one = saved(board_of(), tmp_path / "one")
    fewer = {name: mean for name, mean in MEANS.items() if name[0] == "a"}
    two = saved(board_of(fewer, shift=-0.1), tmp_path / "two")
    assert main(["compare", str(one), str(two / "leaderboard.csv"), "--out", str(tmp_path / "table.csv")]) == 0
    printed = capsys.readouterr().out
    assert "not compared: 2 rows" in printed and "b/natural" in printed
    table = pd.read_csv(tmp_path / "table.csv")
    fair = table[table.not_compared.isna()]
    assert len(fair) == 4 and (fair.family == 4).all() and (abs(fair.difference - 0.1) < 0.01).all()
    assert table[table.not_compared.notna()].model.tolist() == ["b", "b"]


def test_runs_without_a_common_name_are_compared_by_all_pairs(tmp_path):
    boards = [
        read_board(saved(board_of({(name, "natural"): mean}), tmp_path / name))
        for name, mean in (("x", 0.3), ("y", 0.5))
    ]
    table = compare_boards(boards)
    assert table[["attack", "model", "against_model"]].values.tolist() == [["worst-case", "x", "y"]]
    assert table.difference[0] == pytest.approx(-0.2, abs=0.01) and table.n_seeds[0] == 3
    with pytest.raises(ValueError, match="nothing can be compared: only in"):
        compare_boards(boards, models="same")
    assert "against_model" in described(table)


@pytest.mark.parametrize(("other", "meta", "reason"), [
    ({"steps": 40}, {}, "other attacks: pgd (white-box, 10 steps"),
    ({}, {"data": {"t": {"sha256": "other"}}}, "other data"),
    ({"seeds": (7,)}, {}, "no training seed in common"),
])  # fmt: skip
def test_nothing_in_common_is_refused_with_the_reason(tmp_path, capsys, other, meta, reason):
    one, two = saved(board_of(), tmp_path / "one"), saved(board_of(**other), tmp_path / "two", **meta)
    assert main(["compare", str(one), str(two)]) == 2
    assert reason in capsys.readouterr().err


def test_without_a_hash_of_the_data_the_rows_are_flagged(tmp_path):
    folders = [saved(board_of(seeds=(0,)), tmp_path / name) for name in ("one", "two")]
    (folders[0] / "leaderboard.meta.json").unlink()
    table = compare_boards([read_board(folder) for folder in folders])
    assert (table["flags"] == "single-train-seed;ci-bound;data-unverified").all()


def test_seeds_that_one_run_alone_has_are_told(tmp_path):
    boards = [
        Board(name, board.frame, board.cases, {})
        for name, board in (("one", board_of()), ("two", board_of(seeds=(0, 1))))
    ]
    table = compare_boards(boards)
    assert (table.n_seeds == 2).all() and table["flags"].str.contains("seeds-left-out=1").all()


def test_rows_that_failed_and_ids_that_look_like_numbers_are_no_hindrance(tmp_path):
    board = board_of()
    board.cases["case"] = [f"{int(case[1:]):03d}" for case in board.cases.case]
    nothing = {"attack": "square", "threat": "none", "adversarial": np.nan, "error": "ValueError: no"}
    failed = {**board.frame.iloc[0], **nothing}
    broken = Leaderboard(frame=pd.concat([board.frame, pd.DataFrame([failed])]), cases=board.cases, meta=board.meta)
    one, two = (read_board(saved(each, tmp_path / name)) for name, each in (("one", board), ("two", broken)))
    assert set(two.cases.case) == {f"{i:03d}" for i in range(CASES)}
    assert (compare_boards([one, two]).not_compared == "").all()


@pytest.mark.parametrize("damage", ["schema", "column", "cases", "metric", "alone", "missing"])
def test_what_can_not_be_compared_is_refused_in_one_sentence(tmp_path, capsys, damage):
    one, two = saved(board_of(), tmp_path / "one"), saved(board_of(), tmp_path / "two")
    frame = pd.read_csv(two / "leaderboard.csv")
    told = {
        "schema": "is of schema 1", "column": "has no column metric", "cases": "does not hold the scores of 18 rows",
        "metric": "scored by dice/present in", "alone": "give two or more", "missing": "is not there",
    }[damage]  # fmt: skip
    if damage == "schema":
        (two / "leaderboard.meta.json").write_text('{"schema_version": 1}')
    if damage == "column":
        frame.drop(columns="metric").to_csv(two / "leaderboard.csv", index=False)
    if damage == "cases":
        frame.assign(adversarial=frame.adversarial + 0.01).to_csv(two / "leaderboard.csv", index=False)
    if damage == "metric":
        frame.assign(metric="accuracy").to_csv(two / "leaderboard.csv", index=False)
    if damage == "missing":
        (two / "cases.csv").unlink()
    assert main(["compare", str(one), *([] if damage == "alone" else [str(two)])]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_two_leaderboards_may_share_a_folder(tmp_path):
    for name, mean in (("x", 0.3), ("y", 0.5)):
        board = board_of({("net", "natural"): mean})
        board.frame.to_csv(tmp_path / f"{name}.csv", index=False)
        board.cases.to_csv(tmp_path / f"{name}.cases.csv", index=False)
    table = compare_boards([read_board(tmp_path / "x.csv"), read_board(tmp_path / "y.csv")])
    assert len(table) == 2 and (abs(table.difference + 0.2) < 0.01).all()


def test_the_example_of_the_statistics_page_says_what_is_printed(capsys):
    page = (Path(__file__).parents[1] / "docs" / "statistics.md").read_text("utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    exec(compile(block, "statistics.md", "exec"), {})
    assert capsys.readouterr().out.split() == ["0.000", "to", "0.149", "True"]
