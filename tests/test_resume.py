"""A run that is interrupted, fails in places, or is changed goes on where it was, and comes to the same tables."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import time

import pandas as pd
import pytest
import torch
from test_leaderboard import discs_by_name, segmentation, tiny_suite  # noqa: F401

from medadv.benchmarks import bench, cell_store, crafting, economy, figures, jobs, run, run_suite, trainings
from medadv.benchmarks import data as datasets
from medadv.benchmarks.evaluate import Evaluator
from medadv.benchmarks.suites import Suite

TABLES = ("leaderboard.csv", "cases.csv", "endpoints.csv", "bands.csv", "survey.csv")
COST = ["seconds", "seconds_per_epoch"]


def two_tasks(**changes) -> Suite:
    task = tiny_suite().tasks[0].model_dump()
    trainings = {"natural": {"epochs": 2}, "pgd-at": {**task["trainings"]["pgd-at"], "epochs": 2}}
    tasks = [{**task, "name": name, "trainings": trainings} for name in ("first", "second")]
    tasks[0]["train_seeds"], tasks[1]["train_seeds"] = [0, 1], [2]
    return Suite.model_validate({**tiny_suite().model_dump(), "bands": 3, "tasks": tasks, **changes})


def timeless(folder):
    """The bytes of all tables without what they cost."""
    found = {}
    for name in (name for name in TABLES if (folder / name).is_file()):
        table = pd.read_csv(folder / name, dtype=str, keep_default_na=False)
        found[name] = table.drop(columns=[c for c in COST if c in table]).to_csv()
    return found


class Interrupted(BaseException):
    pass


@pytest.fixture(autouse=True)
def drawn_in_no_time(monkeypatch):
    """Pictures take longest, and are the same for the tests as long as they are counted."""
    monkeypatch.setattr(figures, "png_bytes", lambda figure: b"")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "png_bytes", lambda figure: b"")
        patch.setattr(datasets, "load", lambda name, **options: segmentation(2))
        run_suite(two_tasks(), out=folder)
    return folder


def break_at(monkeypatch, place, name, call, error=Interrupted):
    """The ``call``-th call of a function of a module raises."""
    function, calls = getattr(place, name), []

    def breaking(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise error
        return function(*args, **kwargs)

    monkeypatch.setattr(place, name, breaking)
    return calls


# one after the other, each time going on where the last interruption was
INTERRUPTIONS = (
    (Evaluator, "craft", 2),  # between two attacks
    (trainings, "train", 2),  # between the two seeds of the first task, whose pictures are drawn anew
    (torch, "save", 3),  # while a training leaves its state
    (Evaluator, "judge", 3),  # after images were made, before they were scored
    (run, "write_tables", 2),  # all is computed, and the tables are those of the first task alone
)


def test_an_interrupted_run_comes_to_the_same_tables(whole, discs_by_name, tmp_path):  # noqa: F811
    for place, name, call in INTERRUPTIONS:
        with pytest.MonkeyPatch.context() as patch:
            break_at(patch, place, name, call)
            with pytest.raises(Interrupted):
                run_suite(two_tasks(), out=tmp_path)
    run_suite(two_tasks(), out=tmp_path)
    assert timeless(tmp_path) == timeless(whole)
    meta, known = (json.loads((path / "leaderboard.meta.json").read_text()) for path in (tmp_path, whole))
    assert meta["weights"] == known["weights"] and meta["training"].keys() == known["training"].keys()
    assert (tmp_path / "report.html").read_text().count("data:image/png") == (
        (whole / "report.html").read_text().count("data:image/png")
    )
    assert not list((tmp_path / "cells").glob("*.checkpoint")), "states of finished trainings are removed"


def in_a_process(folder):
    """A run of its own, as of a command, without the time to load libraries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load", lambda name, **options: segmentation(2))
        patch.setattr(figures, "png_bytes", lambda figure: b"")  # figures take longest
        run_suite(tiny_suite(), out=folder, threads=1)


@pytest.fixture(scope="module")
def fresh():
    """Starts processes that have no threads of this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_leaderboard", "medadv.benchmarks"])
    first = context.Process(target=int)  # the server loads all libraries now, on nobody's time
    first.start()
    first.join()
    return context


def test_killed_without_warning_again_and_again(fresh, tmp_path):
    started = time.monotonic()
    process = fresh.Process(target=in_a_process, args=(tmp_path / "whole",))
    process.start()
    process.join()
    seconds = time.monotonic() - started
    assert process.exitcode == 0
    kills = 0
    for share in (0.2, 0.3, 0.4, 0.5, 0.6, None):
        process = fresh.Process(target=in_a_process, args=(tmp_path / "killed",))
        process.start()
        process.join(None if share is None else share * seconds)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
    assert kills >= 2 and process.exitcode == 0
    assert timeless(tmp_path / "killed") == timeless(tmp_path / "whole")


def test_two_processes_on_one_folder_come_to_the_same_tables(fresh, tmp_path):
    both = [fresh.Process(target=in_a_process, args=(tmp_path / "shared",)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    process = fresh.Process(target=in_a_process, args=(tmp_path / "alone",))
    process.start()
    process.join()
    assert timeless(tmp_path / "shared") == timeless(tmp_path / "alone")
    assert not list((tmp_path / "shared" / "cells").glob("*.damaged"))


def test_what_is_finished_is_not_done_again(whole, discs_by_name, monkeypatch):  # noqa: F811
    trained = break_at(monkeypatch, trainings, "train", -1)
    crafted = break_at(monkeypatch, crafting, "craft", -1)
    before = (whole / "leaderboard.csv").read_bytes()
    board = run_suite(two_tasks(), out=whole)
    assert not trained and not crafted and (whole / "leaderboard.csv").read_bytes() == before
    assert len(board.frame) == len(pd.read_csv(whole / "leaderboard.csv"))


@pytest.fixture
def finished(discs_by_name, tmp_path):  # noqa: F811
    """A small run, and how to run it again, counting what is computed."""
    suite = tiny_suite(trainings={"natural": {"epochs": 1}})
    run_suite(suite, out=tmp_path)

    def again(suite=suite, **options):
        with pytest.MonkeyPatch.context() as patch:
            trained = break_at(patch, trainings, "train", -1)
            crafted = break_at(patch, Evaluator, "craft", -1)
            board = run_suite(suite, out=tmp_path, **options)
        return board, len(trained), len(crafted)

    return suite, tmp_path, again


def test_a_changed_suite_computes_what_has_changed(finished):
    suite, folder, again = finished
    before = timeless_rows(folder)
    attacks = [attack.model_dump() for attack in suite.tasks[0].attacks]
    task = suite.tasks[0].model_dump()
    more = Suite.model_validate({**suite.model_dump(), "tasks": [{**task, "attacks": [*attacks, {"name": "fgsm"}]}]})
    board, trained, crafted = again(more)
    assert (trained, crafted) == (0, 1)
    assert {"fgsm", "pgd-dice"} <= set(board.frame.attack)
    assert again(suite)[1] == 0 and timeless_rows(folder) == before, "what was there before still is"
    assert again(suite.model_copy(update={"seed": 5}))[1:] == (0, 2), "attacks with another seed are other ones"


def test_force_computes_everything_again_and_once(finished):
    _, folder, again = finished
    before = timeless_rows(folder)
    assert again(force=True)[1:] == (1, 2) and timeless_rows(folder) == before
    assert again()[1:] == (0, 0)


def timeless_rows(folder):
    return pd.read_csv(folder / "leaderboard.csv").drop(columns="seconds").to_csv()


def test_results_of_other_versions_are_taken_only_when_asked_for_and_flagged(finished, monkeypatch):
    _, folder, again = finished
    newer = {**run.provenance()["versions"], "torch": "99.0"}
    monkeypatch.setattr("medadv.benchmarks.jobs.versions", lambda: newer)
    board, *counts = again(keep_stale=True)
    assert counts == [0, 0]
    attacked = board.frame[board.frame.model != "image-blind"]
    assert attacked["flags"].str.contains("stale").all()
    board, *counts = again()
    assert counts == [1, 2] and not board.frame["flags"].str.contains("stale").any()


def test_worst_cases_alone_are_one_cell_of_each_network(discs_by_name, tmp_path):  # noqa: F811
    suite = tiny_suite(trainings={"natural": {"epochs": 1}}).model_copy(update={"rows": "worst-case"})
    first = run_suite(suite, out=tmp_path)
    assert "worst-case" in set(first.frame.attack) and first.failures.empty
    with pytest.MonkeyPatch.context() as patch:
        crafted = break_at(patch, economy, "craft", -1)
        again = run_suite(suite, out=tmp_path)
    assert not crafted
    pd.testing.assert_frame_equal(first.frame, again.frame)
    assert (tmp_path / "report.html").read_text().count("data:image/png") >= 2, "curves and the worst case"
    with pytest.MonkeyPatch.context() as patch:
        break_at(patch, economy, "craft", 1, RuntimeError("out of memory"))
        failed = run_suite(suite.model_copy(update={"seed": 3}), out=tmp_path).failures
    assert failed.attack.tolist() == ["worst-case"] and failed.error.tolist() == ["RuntimeError: out of memory"]


def test_a_damaged_cell_is_told_set_aside_and_computed_again(finished, capsys):
    _, folder, again = finished
    before = timeless_rows(folder)
    cells = sorted((folder / "cells").glob("*.npz"), key=lambda path: path.stat().st_size)
    for number, path in enumerate(cells):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content if number % 2 else content[: len(content) // 3])
    assert again()[1:] == (1, 2) and timeless_rows(folder) == before
    told = capsys.readouterr().err.count("set aside and computed again")
    assert told == len(cells) - 2, "images are made again with their outcome, unread"


def test_a_full_disk_loses_one_cell(finished, discs_by_name, tmp_path_factory, monkeypatch, capsys):  # noqa: F811
    suite, folder, _ = finished
    other = tmp_path_factory.mktemp("full")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.MonkeyPatch.context() as patch:
        break_at(patch, cell_store, "write_bytes", 6, full)
        board = run_suite(suite, out=other)
    lost = board.failures
    assert len(lost) == 1 and "No space left on device" in lost.error.iloc[0]
    assert "failed: OSError: [Errno 28] No space left on device" in capsys.readouterr().err
    run_suite(suite, out=other)
    assert timeless_rows(other) == timeless_rows(folder)


def test_what_raises_is_a_row_with_its_reason_and_the_rest_goes_on(discs_by_name, tmp_path):  # noqa: F811
    suite = two_tasks()
    with pytest.MonkeyPatch.context() as patch:
        break_at(patch, Evaluator, "craft", 4, RuntimeError("out of memory"))
        board = run_suite(suite, out=tmp_path)
    lost = board.failures
    assert lost.attack.tolist() == ["pgd-dice"] and lost.adversarial.isna().all()
    assert lost.error.iloc[0] == "RuntimeError: out of memory" and (lost["flags"].str.contains("failed")).all()
    same = (board.frame.task == "first") & (board.frame.training == "pgd-at") & (board.frame.eps == lost.eps.iloc[0])
    worst = board.frame[same & (board.frame.attack == "worst-case") & (board.frame.train_seed == 0)]
    assert worst["flags"].str.contains("without-failed=pgd-dice").all() and len(worst) == 1
    assert set(board.frame.task) == {"first", "second"}
    read = pd.read_csv(tmp_path / "leaderboard.csv")
    assert read.error.notna().sum() == 1
    assert run_suite(suite, out=tmp_path).failures.empty, "what failed is tried again"


def test_memory_that_is_not_there_is_a_reason_too(discs_by_name, tmp_path):  # noqa: F811
    with pytest.MonkeyPatch.context() as patch:
        break_at(patch, Evaluator, "craft", 1, MemoryError())
        board = run_suite(tiny_suite(trainings={"natural": {"epochs": 1}}), out=tmp_path)
    assert board.failures.error.tolist() == ["MemoryError"] and "pgd-dice" in set(board.frame.attack)


def test_a_training_that_raises_takes_only_its_own_model_along(discs_by_name, tmp_path):  # noqa: F811
    with pytest.MonkeyPatch.context() as patch:
        break_at(patch, trainings, "train", 2, RuntimeError("out of memory"))
        board = run_suite(two_tasks(), out=tmp_path)
    lost = board.failures
    assert lost.error.tolist() == ["training failed: RuntimeError: out of memory"]
    assert lost.training.tolist() == ["pgd-at"] and lost.train_seed.tolist() == [0]
    assert len(board.frame[(board.frame.training == "pgd-at") & (board.frame.error == "")])


REPLAYED = [
    {"name": "pgd-dice", "options": {"max_iter": 2}},
    {
        "name": "pgd-dice",
        "title": "replayed",
        "options": {"max_iter": 2},
        "surrogate": {"model": "all", "training": "all"},
    },
]
ONE_EPOCH = {
    "natural": {"epochs": 1},
    "pgd-at": {"recipe": "pgd-at", "options": {"eps": "2/255", "steps": 1}, "epochs": 1},
}


@pytest.mark.parametrize("rows", ["every", "worst-case"])
@pytest.mark.parametrize(("call", "lost", "left"), [(1, "natural", "pgd-at"), (2, "pgd-at", "natural")])
def test_a_surrogate_that_could_not_be_trained_takes_only_its_images_along(
    discs_by_name, tmp_path, capsys, call, lost, left, rows  # noqa: F811
):  # fmt: skip
    suite = tiny_suite(attacks=REPLAYED, trainings=ONE_EPOCH).model_copy(update={"rows": rows})
    with pytest.MonkeyPatch.context() as patch:
        trained = break_at(patch, trainings, "train", call, RuntimeError("out of memory"))
        board = run_suite(suite, out=tmp_path)
    assert len(trained) == 2, "what has failed is not tried again"
    failures = board.failures.set_index("training").error
    reason = f"training of surrogate unet/{lost} failed: RuntimeError: out of memory"
    assert failures[lost] == "training failed: RuntimeError: out of memory" and failures[left] == reason
    attacked = board.frame[(board.frame.training == left) & (board.frame.error == "")]
    assert attacked.attack.tolist() == ["none", "noise", "pgd-dice", "worst-case"]
    assert f"without-failed=replayed from unet/{lost}" in attacked["flags"].iloc[3]
    assert not attacked["flags"][:3].str.contains("without-failed").any()
    assert run_suite(suite, out=tmp_path).failures.empty, "what failed is tried again"


def test_on_a_worker_a_lost_surrogate_is_the_reason_of_its_cells_alone(discs_by_name, tmp_path, monkeypatch):  # noqa: F811
    settings = jobs.RunSettings(tiny_suite(attacks=REPLAYED, trainings=ONE_EPOCH), tmp_path, threads=1)
    break_at(monkeypatch, trainings, "train", 2, RuntimeError("out of memory"))
    path = str(settings.write())
    keys = [job.key for job in jobs.jobs_of(settings.bench("discs", settings.store()))]
    told = {key: jobs.do(path, key) for key in keys if key[3] == "natural" or key[-1] < 0}
    assert [list(reasons.values()) for reasons in told.values() if reasons] == [
        ["RuntimeError: out of memory"],
        ["training of surrogate unet/pgd-at failed: RuntimeError: out of memory"],
    ]


@pytest.mark.parametrize(("place", "name", "row", "reason", "left"), [
    (Evaluator, "_clean", "none", "evaluation failed: RuntimeError: out of memory", []),
    (Evaluator, "findings", "diagnostics", "RuntimeError: out of memory", ["none", "noise", "pgd-dice", "worst-case"]),
])  # fmt: skip
def test_clean_images_and_checks_that_raise_are_rows_too(discs_by_name, tmp_path, place, name, row, reason, left):  # noqa: F811
    suite = tiny_suite(trainings=ONE_EPOCH)
    with pytest.MonkeyPatch.context() as patch:
        break_at(patch, place, name, 1, RuntimeError("out of memory"))
        board = run_suite(suite, out=tmp_path)
    lost = board.failures
    assert lost[["training", "attack", "error"]].values.tolist() == [["natural", row, reason]]
    there = board.frame[board.frame.error == ""]
    assert there[there.training == "natural"].attack.tolist() == left
    assert there[there.training == "pgd-at"].attack.tolist() == ["none", "noise", "pgd-dice", "worst-case"]
    assert run_suite(suite, out=tmp_path).failures.empty


def test_a_defence_that_raises_is_a_row_and_the_others_go_on(discs_by_name, tmp_path):  # noqa: F811
    defences = {"jpeg": {"kind": "preprocessor"}, "blur": {"kind": "preprocessor", "name": "spatial-smoothing"}}
    suite = tiny_suite(trainings={"natural": {"epochs": 1}}, defences=defences)
    with pytest.MonkeyPatch.context() as patch:
        break_at(patch, bench, "build_defence", 3, RuntimeError("out of memory"))  # after both were checked
        board = run_suite(suite, out=tmp_path)
    assert board.failures.training.tolist() == ["natural+jpeg"]
    assert board.failures.error.tolist() == ["defence failed: RuntimeError: out of memory"]
    assert "worst-case" in set(board.frame[board.frame.training == "natural+blur"].attack)


def test_a_folder_with_another_suite_or_a_damaged_one_is_refused(finished):
    suite, folder, again = finished
    with pytest.raises(ValueError, match="holds the run of suite 'tiny'; give another folder"):
        again(suite.model_copy(update={"name": "other"}))
    (folder / "leaderboard.meta.json").write_text("{")
    with pytest.raises(ValueError, match=r"leaderboard.meta.json' is damaged; give another folder"):
        again()
    (folder / "leaderboard.meta.json").unlink()
    with pytest.raises(ValueError, match="holds another run; give another folder"):
        again()
