"""A run that is interrupted goes on where it was, and comes to the same tables."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch
from test_leaderboard import discs_by_name, segmentation, tiny_suite  # noqa: F401

from medadv.benchmarks import resume, run, run_suite, trainings
from medadv.benchmarks.suites import Suite

TABLES = ("leaderboard.csv", "cases.csv", "endpoints.csv", "bands.csv", "survey.csv")
COST = ["seconds", "seconds_per_epoch"]


def two_tasks() -> Suite:
    task = tiny_suite().tasks[0].model_dump()
    trainings = {"natural": {"epochs": 2}, "pgd-at": {**task["trainings"]["pgd-at"], "epochs": 2}}
    tasks = [{**task, "name": name, "trainings": trainings} for name in ("first", "second")]
    tasks[0]["train_seeds"] = [0, 1]
    return Suite.model_validate({**tiny_suite().model_dump(), "bands": 3, "tasks": tasks})


def tables(folder):
    found = {name: pd.read_csv(folder / name) for name in TABLES}
    return {name: table.drop(columns=[c for c in COST if c in table]) for name, table in found.items()}


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.datasets, "load", lambda name, **options: segmentation(2))
        run_suite(two_tasks(), out=folder)
    return folder


def break_at(monkeypatch, place, name, call):
    """The ``call``-th call of a function of a module raises."""
    function, calls = getattr(place, name), []

    def breaking(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise Interrupted
        return function(*args, **kwargs)

    monkeypatch.setattr(place, name, breaking)
    return calls


@pytest.mark.parametrize(("place", "name", "call"), [
    (trainings, "train", 2),  # between two trainings of the first task
    (run, "evaluate_estimator", 2),  # between two evaluations
    (run, "evaluate_estimator", 4),  # in the second task
    (torch, "save", 5),  # while a training leaves its state
    (trainings, "train", 4),  # between the two seeds of the first task, whose pictures are drawn anew
    (resume, "write_text", 10),  # tables and pictures of the second task are written, but not that it is finished
])  # fmt: skip
def test_an_interrupted_run_comes_to_the_same_tables(whole, discs_by_name, tmp_path, place, name, call):  # noqa: F811
    with pytest.MonkeyPatch.context() as patch:
        break_at(patch, place, name, call)
        with pytest.raises(Interrupted):
            run_suite(two_tasks(), out=tmp_path)
    run_suite(two_tasks(), out=tmp_path)
    expected, found = tables(whole), tables(tmp_path)
    for name, table in expected.items():
        pd.testing.assert_frame_equal(found[name], table)
    meta, known = (json.loads((path / "leaderboard.meta.json").read_text()) for path in (tmp_path, whole))
    assert meta["weights"] == known["weights"] and meta["training"].keys() == known["training"].keys()
    assert (tmp_path / "report.html").read_text().count("data:image/png") == (
        (whole / "report.html").read_text().count("data:image/png")
    )
    assert not list((tmp_path / "models").glob(".*")), "states of finished trainings are removed"


def test_what_is_finished_is_not_done_again(whole, discs_by_name, monkeypatch):  # noqa: F811
    trained = break_at(monkeypatch, trainings, "train", -1)
    before = (whole / "leaderboard.csv").read_bytes()
    board = run_suite(two_tasks(), out=whole)
    assert not trained and (whole / "leaderboard.csv").read_bytes() == before
    assert len(board.frame) == len(pd.read_csv(whole / "leaderboard.csv"))


def test_a_folder_with_another_or_a_damaged_run_is_refused(discs_by_name, tmp_path):  # noqa: F811
    suite = tiny_suite(trainings={"natural": {"epochs": 1}})
    run_suite(suite, out=tmp_path)
    with pytest.raises(ValueError, match="holds a run with another suite; give another folder"):
        run_suite(suite.model_copy(update={"seed": 5}), out=tmp_path)
    weights = next((tmp_path / "models").glob("*.pt"))
    progress = json.loads((tmp_path / "progress.json").read_text())
    (tmp_path / "progress.json").write_text(json.dumps({**progress, "tasks": []}))
    state = {name: value + 1 for name, value in torch.load(weights, weights_only=True).items()}
    torch.save(state, weights)
    with pytest.raises(ValueError, match="holds other weights than this run wrote"):
        run_suite(suite, out=tmp_path)
    (tmp_path / "progress.json").write_text("{")
    with pytest.raises(ValueError, match=r"progress.json' is damaged .*give another folder"):
        run_suite(suite, out=tmp_path)
    (tmp_path / "progress.json").unlink()
    with pytest.raises(ValueError, match="holds another run; give another folder"):
        run_suite(suite, out=tmp_path)
