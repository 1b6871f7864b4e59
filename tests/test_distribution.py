"""Cells on Dask workers: the same tables as in one process, whatever workers do."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pandas as pd
import pytest
import torch
from dask_stubs import fragile, note, pid

from medadv.benchmarks import run_suite
from medadv.benchmarks.cli import main
from medadv.benchmarks.distribution import Cluster, Job, fair_share, run_jobs
from medadv.benchmarks.jobs import RunSettings, jobs_of
from medadv.benchmarks.suites import Suite, load_suite

distributed = pytest.importorskip("distributed")
TABLES = ("leaderboard.csv", "cases.csv", "endpoints.csv")


def suite(**changes) -> Suite:
    """The first task of the quick suite, made tiny."""
    task = load_suite("quick").tasks[0].model_dump()
    trainings = {name: {**spec, "epochs": 1} for name, spec in task["trainings"].items()}
    attacks = [{"name": "fgsm"}, {"name": "mi-fgsm", "options": {"max_iter": 2}},
               {"name": "fgsm", "title": "replayed", "surrogate": "natural"}]  # fmt: skip
    few = {"data_options": {"subjects": [8, 2, 6]}, "test_cases": 8}
    task = {**task, **few, "trainings": trainings, "attacks": attacks, **changes}
    return Suite.model_validate({"name": "tiny", "budgets": ["0", "8/255"], "tasks": [task]})


def timeless(folder: Path) -> dict[str, str]:
    found = {}
    for name in TABLES:
        table = pd.read_csv(folder / name, dtype=str, keep_default_na=False)
        found[name] = table.drop(columns="seconds", errors="ignore").to_csv()
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    run_suite(suite(), out=folder, threads=1)
    return folder


def test_workers_come_to_the_same_tables(alone, tmp_path):
    board = run_suite(suite(), out=tmp_path, threads=1, cluster=Cluster(workers=2))
    assert board.failures.empty and timeless(tmp_path) == timeless(alone)


def test_a_defence_that_can_t_be_is_refused_before_any_worker_starts(tmp_path):
    unseen = suite(defences={"jpeg": {"kind": "preprocessor"}}, attacks=[{"name": "square"}])
    with pytest.raises(ValueError, match="none of the attacks square can look through the defence"):
        run_suite(unseen, out=tmp_path, threads=1, cluster=Cluster(workers=1))
    assert not list((tmp_path / "cells").glob("*.npz"))


def test_a_job_is_given_for_every_cell_and_comes_after_what_it_needs(tmp_path):
    settings = RunSettings(suite(), tmp_path)
    jobs = jobs_of(settings.bench("lesion-class-2d", settings.store()))
    trainings = [job for job in jobs if job.key[-1] == -1]
    assert [job.needs for job in trainings] == [(), (trainings[0].key,)], "pgd-at starts from natural"
    attacks = [job for job in jobs if job.key[-1] >= 0]
    assert len(attacks) == 3 + 4, "noise, fgsm, mi-fgsm, and on pgd-at what was made on natural"
    replayed = [job for job in attacks if len(job.needs) == 2]
    assert len(replayed) == 1 and {need[3] for need in replayed[0].needs} == {"natural", "pgd-at"}
    assert min(job.weight for job in trainings) > max(job.weight for job in attacks)


def test_jobs_wait_for_what_they_need_and_the_largest_come_first(tmp_path):
    jobs = [Job("small", 1), Job("last", 9, ("large", "small")), Job("large", 5)]
    assert run_jobs(jobs, functools.partial(note, tmp_path), Cluster(workers=1)) == {
        "small": "small", "large": "large", "last": "last",
    }  # fmt: skip
    order = sorted(tmp_path.iterdir(), key=lambda path: int(path.name.partition("-")[2]))
    assert [path.name.partition("-")[0] for path in order] == ["large", "small", "last"]


def test_a_worker_that_dies_takes_nothing_along_and_a_job_that_kills_is_given_up(tmp_path):
    results = run_jobs([Job(k) for k in range(6)], functools.partial(fragile, tmp_path), Cluster(workers=2))
    assert [results[k] for k in (0, 1, 4, 5)] == [0, 1, 4, 5]
    assert type(results[2]).__name__ == "KilledWorker"
    assert isinstance(results[3], RuntimeError)


def test_resources_choose_workers_and_what_nobody_has_is_refused(tmp_path):
    offered = Cluster(workers=1, resources={"gpu": 1})
    assert len(set(run_jobs([Job(k, resources={"gpu": 1}) for k in range(4)], pid, offered).values())) == 1
    with pytest.raises(ValueError, match="needs a worker with gpu=2, and none of the 1 workers has that"):
        run_jobs([Job(0, resources={"gpu": 2})], pid, offered)
    with pytest.raises(ValueError, match="needs 'b', which is none of the jobs"):
        run_jobs([Job("a", needs=("b",))], pid, offered)


@pytest.mark.parametrize(("options", "words"), [
    ({}, "a number of workers, or the address"),
    ({"workers": 1, "scheduler": "tcp://h:1"}, "and not both"),
    ({"workers": 0}, "workers=0 can't do anything"),
    ({"scheduler": "tcp://h:1", "resources": {"gpu": 1}}, "leave them out"),
])  # fmt: skip
def test_a_cluster_that_can_t_be_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Cluster(**options)


@pytest.mark.parametrize(("options", "words"), [
    (["--resources", "gpu"], "no NAME=AMOUNT"),
    (["--resources", "gpu=1"], "those of --workers"),
    (["--threads", "0"], "threads=0 can't compute anything"),
    (["--workers", "0"], "workers=0 can't do anything"),
])  # fmt: skip
def test_options_that_can_t_be_right_are_one_sentence(tmp_path, capsys, options, words):
    assert main(["bench", "--suite", "quick", "--out", str(tmp_path / "r"), *options]) == 2
    assert words in capsys.readouterr().err


def test_an_address_where_nobody_answers_is_refused(monkeypatch):
    def refuse(address, timeout):
        raise OSError("timed out")

    monkeypatch.setattr(distributed, "Client", refuse)
    with pytest.raises(ValueError, match=r"no Dask scheduler answers at 'tcp://127.0.0.1:1'"):
        run_jobs([Job(0)], pid, Cluster(scheduler="tcp://127.0.0.1:1"))


def test_an_existing_scheduler_is_used_and_left_running(tmp_path):
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as running:
        assert run_jobs([Job(7)], pid, Cluster(scheduler=running.scheduler_address))[7] != os.getpid()
        assert len(running.scheduler_info["workers"]) == 1


def test_threads_are_shared_fairly():
    threads = torch.get_num_threads()
    assert fair_share(None) is None and fair_share(Cluster(workers=1)) == threads
    assert fair_share(Cluster(workers=10 * threads)) == 1


def test_the_job_script_of_the_documentation_asks_slurm_for_what_it_says():
    jobqueue = pytest.importorskip("dask_jobqueue")
    text = (Path(__file__).parents[1] / "docs" / "scale.md").read_text()
    code = text.split("```python\n# slurm\n")[1].split("```")[0]
    settings = {}
    exec(code.split("cluster.scale")[0].replace("SLURMCluster(", "dict("), {"dict": dict, "__builtins__": {
        "__import__": __import__, "dict": dict}}, settings)  # fmt: skip
    with jobqueue.SLURMCluster(**settings["cluster"], scheduler_options={"dashboard_address": None}) as cluster:
        script = cluster.job_script()
    for line in ("#SBATCH --cpus-per-task=8", "#SBATCH --mem=30G", "#SBATCH -t 08:00:00", "#SBATCH --gpus=1"):
        assert line in script, line
    assert script.count("--nthreads 1 --resources gpu=1") == 1 and "--nworkers" not in script
