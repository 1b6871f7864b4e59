"""The strength table compares per case, not per mean."""

from __future__ import annotations

import pandas as pd
import pytest

from medadv.benchmarks.strength import read_strength, strength_table

KEY = {"task": "t", "model": "m", "training": "natural", "train_seed": 0, "threat": "linf", "eps": 0.1}
SCORES = {"robust": [0.2, 0.4], "robust-2x": [0.2, 0.39], "pgd-ce": [0.1, 0.9], "pgd-dice": [0.8, 0.4],
          "noise": [0.0, 0.0], "worst-case": [0.0, 0.0]}  # fmt: skip


def tables(scores, metric="dice"):
    cases = [{**KEY, "attack": name, "case": f"c{i}", "adversarial": s} for name, v in scores.items()
             for i, s in enumerate(v)]  # fmt: skip
    board = [
        {**KEY, "attack": name, "eps_fraction": 0.1, "metric": metric, "clean": 0.9, "adversarial": sum(v) / len(v),
         "forward_passes": 10, "backward_passes": 9, "seconds": 1.0}
        for name, v in scores.items()
    ]  # fmt: skip
    return pd.DataFrame(board), pd.DataFrame(cases)


def test_the_others_count_per_case_and_noise_and_the_worst_case_do_not():
    row = strength_table(*tables(SCORES)).iloc[0]
    assert row.robust == pytest.approx(0.3) and row.others == pytest.approx(0.25)
    assert row.gap == pytest.approx(0.05) and not row.holds
    assert row.strongest_other == "pgd-ce" and row.change_2x == pytest.approx(0.005)
    assert (row.forward_passes, row.others_seconds) == (10, 2.0)


@pytest.mark.parametrize(("metric", "holds"), [("dice", False), ("accuracy", True)])
def test_of_images_one_case_may_be_missed(metric, holds):
    scores = {"robust": [0.0, 1.0], "pgd": [1.0, 0.0]}
    assert strength_table(*tables({**scores, "pgd-2": [0.0, 1.0]}, metric)).iloc[0].holds == holds


@pytest.mark.parametrize("scores", [{"robust": [0.1]}, {"pgd": [0.1]}, {"robust": [0.1], "noise": [0.2]}])
def test_a_run_without_something_to_compare_is_refused(scores):
    with pytest.raises(ValueError, match="it needs 'robust' and attacks to compare it with"):
        strength_table(*tables(scores))


def test_a_folder_is_read_and_an_unfinished_one_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no leaderboard.csv and no cases.csv; give the folder of a finished"):
        read_strength(tmp_path)
    board, cases = tables(SCORES)
    board.to_csv(tmp_path / "leaderboard.csv"), cases.to_csv(tmp_path / "cases.csv")
    assert read_strength(tmp_path).robust.iloc[0] == pytest.approx(0.3)
