"""The cells of a run as jobs for workers, who find all they need in its folder."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from medadv.attacks import recipe_of
from medadv.benchmarks.bench import TargetBench, TaskBench
from medadv.benchmarks.cell_store import CellStore, digest
from medadv.benchmarks.distribution import Cluster, Job, run_jobs
from medadv.benchmarks.outcomes import reason_of
from medadv.benchmarks.replays import planned_attacks
from medadv.benchmarks.store import versions
from medadv.benchmarks.suites import Suite
from medadv.benchmarks.trainings import Trained
from medadv.benchmarks.trials import Corruption, Schedule, Trial, schedule
from medadv.files import write_text

CELLS = "cells"
_TRAINING, _WORST = -1, -2  # in the place of the number of a trial
_EPOCH = 50.0  # weight of an epoch of training beside a step of an attack; what others wait for comes first
_ENSEMBLE = 500


@dataclass(frozen=True)
class RunSettings:
    """What every process of a run has to know.

    Attributes:
        suite: what is run.
        folder: of the run.
        data_root: where the data sets named by the suite are.
        threads: of each cell; None: those of torch.
        keep_stale: take results of other versions.
        since: results that are older are computed again, in seconds as files are dated.
        keep_images: keep the worst images of defended models.
    """

    suite: Suite
    folder: Path
    data_root: str | Path | None = None
    threads: int | None = None
    keep_stale: bool = False
    since: float = 0.0
    keep_images: bool = False

    @contextmanager
    def threaded(self) -> Iterator[None]:
        """Runs the block with the threads of a cell."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def store(self) -> CellStore:
        """The results so far."""
        return CellStore(self.folder / CELLS, versions(), keep_stale=self.keep_stale, since=self.since)

    def bench(self, name: str, store: CellStore, *, bars: bool = False) -> TaskBench:
        """One task."""
        task = next(task for task in self.suite.tasks if task.name == name)
        return TaskBench(
            self.suite, task, store, data_root=self.data_root, bars=bars,
            keep_images=self.keep_images,
        )  # fmt: skip

    def write(self) -> Path:
        """Leaves the settings in the folder, for workers; returns the file."""
        told = {
            "suite": self.suite.model_dump(mode="json"), "folder": str(self.folder.resolve()),
            "data_root": None if self.data_root is None else str(Path(self.data_root).resolve()),
            "threads": self.threads or torch.get_num_threads(), "keep_stale": self.keep_stale, "since": self.since,
            "keep_images": self.keep_images,
        }  # fmt: skip
        path = self.folder / CELLS / f"run-{digest(told)}.json"
        write_text(path, json.dumps(told))
        return path

    @classmethod
    def read(cls, path: Path) -> RunSettings:
        """What :meth:`write` wrote."""
        told = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{**told, "suite": Suite.model_validate(told["suite"]), "folder": Path(told["folder"])})


def compute(settings: RunSettings, cluster: Cluster, *, bars: bool = False) -> dict[str, str]:
    """Computes all cells of a run on workers.

    Returns:
        Why a cell has no result, by its hash, where it has none.
    """
    path = settings.write()
    jobs = []
    for task in settings.suite.tasks:
        bench = settings.bench(task.name, settings.store())
        bench.check_defences()
        jobs += jobs_of(bench)
    with tqdm(total=len(jobs), desc="cells", disable=not bars) as bar:
        results = run_jobs(jobs, partial(do, str(path)), cluster, on_done=lambda job: _tick(bar))
    failed: dict[str, str] = {}
    for key, result in results.items():
        if isinstance(result, BaseException):  # not that of a cell: a worker died, or could not begin
            failed.update(_lost(settings, key, reason_of(result)))
        else:
            failed.update(result)
    return failed


def _tick(bar: Any) -> None:
    bar.update()


def jobs_of(bench: TaskBench) -> list[Job]:
    """Trainings, attacks and corruptions of a task, each with what it needs."""
    task, suite = bench.task, bench.suite
    found = []
    for seed in bench.seeds:
        networks = bench.networks(seed)
        names = networks.names
        for name in names:
            needs = tuple((task.name, seed, *earlier, _TRAINING) for earlier in networks.needs(name))
            weight = _EPOCH * networks.epochs(name) * max(1, len(bench.data.train))
            found.append(Job((task.name, seed, *name, _TRAINING), weight, needs, task.resources))
        for name in names:
            attacks = planned_attacks(task, name, dict.fromkeys(names))
            plan = schedule(attacks, suite.budgets, bench.data.intensity, task.corruptions)
            if suite.rows == "worst-case":
                found.append(_worst_job(bench, seed, name, plan))
                plan = Schedule([], [], plan.corruptions)
            for number, trial in enumerate(plan.all):
                sources = _sources(trial)
                needs = tuple((task.name, seed, *source, _TRAINING) for source in (name, *sources))
                found.append(Job((task.name, seed, *name, number), _weight(bench, trial), needs, task.resources))
    return found


def _worst_job(bench: TaskBench, seed: int, name: Trained, plan: Schedule) -> Job:
    """All attacks on one network, where each sees only the cases that the others have left."""
    sources = {source for trial in plan.attacks for source in (name, *_sources(trial))}
    needs = tuple((bench.task.name, seed, *source, _TRAINING) for source in sorted(sources))
    weight = sum(_weight(bench, trial) for trial in plan.attacks)
    return Job((bench.task.name, seed, *name, _WORST), weight, needs, bench.task.resources)


def _sources(trial: Trial | Corruption) -> list[Trained]:
    """The surrogate of an attack."""
    if isinstance(trial, Corruption) or trial.planned.surrogate is None:
        return []
    return [trial.planned.surrogate.source]


def _weight(bench: TaskBench, trial: Trial | Corruption) -> float:
    """How long a trial takes beside others: passes times voxels, roughly."""
    size = len(bench.cases) * float(bench.cases.x[0].size) / 1000
    if isinstance(trial, Corruption):
        return size
    options = {**trial.planned.options, **trial.planned.per_budget.get(str(trial.eps), {})}
    row = recipe_of(trial.planned.name)
    steps = options.get("max_iter", _ENSEMBLE if row.attack is not None else 20)
    return size * float(steps) * max(1, int(options.get("num_random_init", 1)))


def do(path: str, key: Hashable) -> dict[str, str]:
    """Does one job; called on a worker.

    Returns:
        Why a cell has no result, by its hash.
    """
    assert isinstance(key, tuple)
    task, seed, model, training, number = key
    settings = _settings(path)
    with settings.threaded():
        bench = _bench(path, task)
        if number == _TRAINING:
            cell = bench.networks(seed).cell((model, training))
            return _reason(cell.config, lambda: bench.networks(seed)[model, training])
        try:
            target = _target(path, task, model, training, seed)
        except Exception:  # the job of the training tells
            return {}
        if number == _WORST:
            return _reason(target.worst_cell.config, target.worst_cases)
        return _try(target, _trial(target, number))


def _trial(target: TargetBench, number: int) -> Trial | Corruption:
    return (target.schedule.corruptions if target.economical else target.schedule.all)[number]


def _try(target: TargetBench, trial: Trial | Corruption) -> dict[str, str]:
    failed = _reason(target.cell(trial).config, lambda: target.outcome(trial))
    if isinstance(trial, Corruption):
        return failed
    for title in target.defences:
        try:
            concerned = target.behind(title).concerned(trial.planned)
        except Exception:  # whoever makes the tables meets it again and tells
            continue
        if concerned:
            cell = target.defended_cell(title, trial)
            failed |= _reason(cell.config, partial(target.defended, title, trial))
    return failed


def _reason(config: str, compute_it: Any) -> dict[str, str]:
    try:
        compute_it()
    except Exception as error:  # whatever a cell raises, the others go on
        return {config: reason_of(error)}
    return {}


def _lost(settings: RunSettings, key: Any, reason: str) -> Mapping[str, str]:
    """The cells of a job that no worker has finished."""
    task, seed, model, training, number = key
    bench = settings.bench(task, settings.store())
    if number == _TRAINING:
        return {bench.networks(seed).cell((model, training)).config: reason}
    with settings.threaded():
        target = bench.target((model, training), seed)
        cell = target.worst_cell if number == _WORST else target.cell(_trial(target, number))
        return {cell.config: reason}


@lru_cache(maxsize=1)
def _settings(path: str) -> RunSettings:
    return RunSettings.read(Path(path))


@lru_cache(maxsize=1)
def _bench(path: str, task: str) -> TaskBench:
    settings = _settings(path)
    return settings.bench(task, settings.store())


@lru_cache(maxsize=1)
def _target(path: str, task: str, model: str, training: str, seed: int) -> TargetBench:
    return _bench(path, task).target((model, training), seed)
