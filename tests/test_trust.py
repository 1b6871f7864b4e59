"""Findings in leaderboards: flags in the rows they are about, evidence and advice on disk and in the report."""

from __future__ import annotations

import warnings

import masked
import numpy as np
import pandas as pd
import pytest
import torch
from masked import EPS, quantised

from medadv.benchmarks import evaluate
from medadv.benchmarks.report import doubts, write_report
from medadv.benchmarks.run import _as_dataset
from medadv.benchmarks.store import read_run, read_table, write_tables
from medadv.benchmarks.suites import parse_suite
from medadv.benchmarks.trials import evaluate_estimator
from medadv.benchmarks.trust import MODEL, SCOPE, findings_of, flagged
from medadv.diagnostics import CHECKS, Finding, knows_less, monotone
from medadv.diagnostics.tables import STRONGER_TOLERANCE

BASIC = {name for name, row in CHECKS.items() if row.level == "basic"}


def row(attack: str, eps: float, score: float, access: str = "white-box", **more: object) -> dict[str, object]:
    key = dict.fromkeys(MODEL, "m")
    return {**key, "attack": attack, "access": access, "threat": "linf", "region": "all", "eps": eps,
            "adversarial": score, "targeted": False, "flags": "", **more}  # fmt: skip


TABLE = pd.DataFrame([
    row("none", 0, 0.9, "none", threat="none"),
    row("noise", 1, 0.2, "none"), row("pgd", 1, 0.6), row("square", 1, 0.7, "score"), row("worst-case", 1, 0.6),
    row("pgd", 2, 0.7), row("square", 2, 0.4, "score"), row("pgd from b", 2, 0.68, "transfer"),
    row("wanted", 2, 0.1, "score", targeted=True), row("worst-case", 2, 0.4),
    row("blur", 1, 0.1, "none", threat="corruption:blur"), row("blur", 2, 0.8, "none", threat="corruption:blur"),
])  # fmt: skip


def test_flags_are_in_the_rows_they_are_about():
    found = findings_of(TABLE, [Finding("repeatable", 1.0, "not-repeatable=1.0e+00"), Finding("steps", 0.0)])
    flags = flagged(TABLE, found, ["single-train-seed"])["flags"].str.split(";")
    assert flags.apply(lambda some: {"single-train-seed", "not-repeatable=1.0e+00"} <= set(some)).all()

    def of(word: str) -> list[tuple[str, int]]:
        rows = TABLE[flags.apply(lambda some: any(flag.startswith(word) for flag in some))]
        return list(zip(rows.attack, rows.eps, strict=True))

    assert of("not-monotone") == [("pgd", 1), ("pgd", 2)]
    # noise, targeted attacks and corruptions are measured by something else; 0.68 is within the tolerance
    assert of("black-box-stronger=0.30") == [
        (attack, 2) for attack in ("pgd", "square", "pgd from b", "wanted", "worst-case")
    ]
    assert of("transfer-stronger") == []
    assert of("black-box") == of("black-box-stronger=0.30")


def test_every_finding_has_a_row_with_its_evidence_and_advice():
    found = findings_of(TABLE, [Finding("repeatable", 0.0)])
    assert list(found.columns[: len(MODEL) + len(SCOPE)]) == [*MODEL, *SCOPE]
    assert found.check.tolist() == ["repeatable", *["monotone"] * 5, "black-box", "black-box", "transfer"]
    failed = found[found["flag"] != ""].set_index("check")
    assert failed.call["black-box"] == CHECKS["black-box"].call and "pgd=0.7" in failed.numbers["black-box"]
    assert failed.note["black-box"] == "square against pgd"
    assert (found[found["flag"] == ""][["advice", "call"]] == "").all(axis=None)


@pytest.mark.parametrize(("eps", "scores", "rise"), [
    ([0, 1, 2], [0.9, 0.5, 0.2], 0), ([2, 0, 1], [0.6, 0.9, 0.5], 0.1), ([0, 1, 2, 3], [0.9, 0.2, 0.5, 0.4], 0.3),
    ([0, 1, 2], [0.9, np.nan, 0.2], 0), ([0, 1], [0.5, 0.509], 0.009),
])  # fmt: skip
def test_a_rise_with_the_budget_is_the_largest_one(eps, scores, rise):
    finding = monotone(eps, scores)
    assert finding.evidence == pytest.approx(rise) and bool(finding.flag) == (rise > 0.01)


def test_attackers_are_compared_where_there_are_two():
    assert np.isnan([f.evidence for f in knows_less([row("pgd", 1, 0.5)])]).all()
    assert [f.flag for f in knows_less([row("square", 1, 0.1, "score")])] == ["", ""]
    tight = [row("pgd", 1, 0.5), row("square", 1, 0.51 - STRONGER_TOLERANCE, "decision"), row("t", 1, 0.4, "transfer")]
    assert [f.flag for f in knows_less(tight)] == ["", "transfer-stronger=0.10"]
    assert knows_less([row("pgd", 1, np.nan), row("square", 1, 0.1, "score")])[0].flag == ""


@pytest.fixture(scope="module")
def board():
    torch.set_num_threads(1)
    case = masked.behind(quantised, "voxel-class", 2)
    return evaluate(case.estimator, (case.x, case.y), ["pgd-dice", "square-dice"], [EPS / 2, EPS])


def test_a_masked_model_is_flagged_in_every_row_and_stays_so_on_disk(board, tmp_path):
    assert board.frame["flags"].str.contains("zero-gradients=1.00").all()
    assert board.frame["flags"].str.contains("survives-any-budget=1.00").all()
    largest = board.frame[board.frame.eps == EPS]
    assert largest["flags"].str.contains("black-box-stronger").all()
    assert set(board.diagnostics.check) == {*BASIC, "monotone", "black-box"}
    write_tables(board, tmp_path)
    again = read_run(tmp_path)
    written = (tmp_path / "diagnostics.csv").read_bytes()
    write_tables(again, tmp_path)
    assert (tmp_path / "diagnostics.csv").read_bytes() == written
    np.testing.assert_array_equal(again.diagnostics.evidence, board.diagnostics.evidence)
    pd.testing.assert_frame_equal(doubts(again.diagnostics), doubts(board.diagnostics), check_dtype=False)


def test_the_report_shows_what_failed_and_the_attack_to_run(board, tmp_path):
    board.meta["suite"] = {}
    write_report(board, [], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    section = page[page.index("Can the numbers be trusted?") : page.index("<summary>All findings")]
    assert "zero-gradients=1.00" in section and "bpda(inner, transform=transform)" in section
    assert "finite-differences" not in section and "finite-differences" in page


@pytest.mark.parametrize(("level", "checks"), [
    ("none", set()), ("basic", BASIC),
    ("full", {n for n, r in CHECKS.items() if r.level != "table"}),
])  # fmt: skip
def test_a_suite_chooses_how_much_is_checked(level, checks):
    case = masked.honest("class", 2)
    data = _as_dataset(case.estimator, case.x, case.y)
    result = evaluate_estimator(case.estimator, data, [], [0.0, EPS / 2, EPS], diagnostics=level)
    assert {finding.check for finding in result.findings} == checks
    assert not any(finding.flag for finding in result.findings)
    if level == "full":  # the middle budget is one at which the checks' attacks have something to break
        black_box = next(f for f in result.findings if f.check == "black-box")
        assert black_box.numbers["white_box"] == 0.0


def test_suites_know_the_key():
    text = "{name: s, budgets: [0.1], diagnostics: %s, tasks: [{name: t, data: embedded-lesions-2d, models: " \
        "[{name: m, network: UNet}], trainings: {n: {}}, attacks: [{name: fgsm}]}]}"  # fmt: skip
    assert parse_suite(text % "full", "x").diagnostics == "full"
    with pytest.raises(ValueError, match="diagnostics: Input should be 'basic', 'full' or 'none'"):
        parse_suite(text % "most", "x")


def test_words_of_a_table_stay_words_where_they_look_like_numbers_or_all_are_empty(tmp_path):
    (tmp_path / "t.csv").write_text("case,unit,flag,error,value\n001,1,,,0.5\n")
    table = read_table(tmp_path / "t.csv")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert table.fillna({"flag": ""}).iloc[0].tolist() == ["001", "1", "", "", 0.5]
