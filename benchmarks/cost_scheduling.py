"""What Dask adds to a cell, and how many cells two workers do beside one."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

import pandas as pd
import torch

from medadv.benchmarks.cost_windows import peak_memory
from medadv.benchmarks.distribution import Cluster, Job, run_jobs

BOUND_SECONDS = 0.5


def stub(key: Hashable) -> Hashable:
    """Does nothing."""
    return key


def bound(key: Hashable) -> Hashable:
    """Keeps one core busy for about half a second of its time."""
    torch.set_num_threads(1)
    matrix = torch.eye(256)
    start = time.process_time()
    while time.process_time() - start < BOUND_SECONDS:
        matrix = matrix @ matrix
    return key


def scheduling_costs(stubs: int = 1000, bound_cells: int = 40, planned: int = 100_000) -> pd.DataFrame:
    """Measures the scheduling of cells on local workers.

    Args:
        stubs: cells that do nothing: what is left is what Dask adds to each.
        bound_cells: cells bound by one core, on one worker and on two.
        planned: cells of a plan of which all but the first ``stubs`` wait for a cell that never comes.

    Returns:
        A row per measurement: ``what, cells, seconds, ms_per_cell, peak_mb`` (of the process that schedules, so far).
    """
    rows = []
    for what, cells, workers, do in (
        ("nothing to do, 1 worker", stubs, 1, stub),
        ("bound by one core, 1 worker", bound_cells, 1, bound),
        ("bound by one core, 2 workers", bound_cells, 2, bound),
    ):
        rows.append(_row(what, [Job(key) for key in range(cells)], do, workers))
    names = [("task", 0, "model", "training", number) for number in range(planned - 1)]
    never = ("task", 0, "model", "training", -1)  # a training that is never done, as it needs itself
    plan = [Job(name, needs=() if number < stubs else (never,)) for number, name in enumerate(names)]
    rows.append(_row(f"the first {stubs} of a plan", [*plan, Job(never, needs=(never,))], stub, 1))
    return pd.DataFrame(rows, columns=["what", "cells", "seconds", "ms_per_cell", "peak_mb"])


def _row(what: str, jobs: list[Job], do: Callable[[Hashable], Hashable], workers: int) -> tuple[object, ...]:
    began: list[float] = []  # when the first was done: workers have started and loaded the libraries then
    results = run_jobs(jobs, do, Cluster(workers=workers), on_done=lambda job: began.append(time.perf_counter()))
    seconds = began[-1] - began[0]
    done = len(results) - 1
    return what, len(jobs), round(seconds, 2), round(1000 * seconds / done, 2), round(peak_memory() / 1e6)
