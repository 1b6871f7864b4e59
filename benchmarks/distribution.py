"""Jobs on Dask workers: a local cluster or any other, largest first, each when what it needs is done."""

from __future__ import annotations

import argparse
import heapq
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from monai.utils import optional_import

_PAUSE = 0.2  # seconds between looks for new workers
_DEATHS = 2  # a job during which more workers have died is given up


_Needed: TypeAlias = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Job:
    """Something to be done by a worker.

    Attributes:
        key: its name.
        weight: how long it takes beside others; the largest come first.
        needs: keys of jobs that have to be done before.
        resources: what a worker has to have free for it, such as ``{"gpu": 1}``.
    """

    key: Hashable
    weight: float = 1.0
    needs: tuple[Hashable, ...] = ()
    resources: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Cluster:
    """Where jobs are done.

    Attributes:
        workers: so many processes of this machine.
        scheduler: address of a Dask scheduler, such as ``"tcp://10.0.0.1:8786"``, instead.
        resources: what each local worker offers, such as ``{"gpu": 1, "memory": 16}``.

    Raises:
        ValueError: neither or both are given, or no workers.

    Example:
        >>> Cluster(workers=2).workers
        2
    """

    workers: int | None = None
    scheduler: str | None = None
    resources: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.workers is None) == (self.scheduler is None):
            raise ValueError("give a number of workers, or the address of a scheduler, and not both.")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers={self.workers} can't do anything; give 1 or more.")
        if self.scheduler is not None and self.resources:
            raise ValueError("resources are offered by the workers of a scheduler themselves; leave them out.")

    @contextmanager
    def client(self) -> Iterator[Any]:
        """A client of the cluster; workers that were started for it end with it.

        Raises:
            ValueError: Dask is not installed, or nothing answers at the address.
        """
        distributed, found = optional_import("distributed")
        dask, _ = optional_import("dask")
        if not found:
            raise ValueError("workers need Dask, which is not installed; pip install 'medadv[dask]'.")
        # workers that are daemons could not start loaders of data of their own
        with dask.config.set({"distributed.worker.daemon": False, "distributed.scheduler.allowed-failures": _DEATHS}):
            if self.scheduler is not None:
                try:
                    client = distributed.Client(self.scheduler, timeout="20s")
                except (OSError, ValueError) as error:
                    raise ValueError(
                        f"no Dask scheduler answers at {self.scheduler!r} ({type(error).__name__}); start one, or give "
                        "--workers."
                    ) from None
                with client:
                    yield client
                return
            with (
                # loopback alone, and no page: a scheduler runs what it is sent
                distributed.LocalCluster(
                    n_workers=self.workers, threads_per_worker=1, resources=dict(self.resources), host="127.0.0.1",
                    dashboard_address=None, memory_limit=0,
                ) as local,
                distributed.Client(local) as client,
            ):  # fmt: skip
                yield client


def fair_share(cluster: Cluster | None) -> int | None:
    """Threads for each of several workers on this machine; None where there are none."""
    if cluster is None or cluster.workers is None:
        return None
    return max(1, torch.get_num_threads() // cluster.workers)


def cluster_given(given: argparse.Namespace) -> Cluster | None:
    """The cluster that the options of ``medadv bench`` ask for.

    Raises:
        ValueError: a resource that is no NAME=AMOUNT, or resources of no workers.
    """
    resources = {}
    for text in given.resources:
        name, _, amount = text.partition("=")
        try:
            resources[name] = float(amount)
        except ValueError:
            raise ValueError(f"--resources {text!r} is no NAME=AMOUNT, such as gpu=1.") from None
    if given.workers is None and given.scheduler is None:
        if resources:
            raise ValueError("--resources are those of --workers; give a number of workers too.")
        return None
    return Cluster(given.workers, given.scheduler, resources)


def run_jobs(
    jobs: Sequence[Job],
    do: Callable[[Hashable], Any],
    cluster: Cluster,
    *,
    on_done: Callable[[Job], None] = lambda job: None,
) -> dict[Hashable, Any]:
    """Results of all jobs, by key; a job that raised, or that workers died of, has the exception.

    Args:
        jobs: what is to be done.
        do: called with the key of a job, on a worker; a function that can be pickled.
        cluster: where.
        on_done: called after each job.

    Raises:
        ValueError: a job needs one that is not there, or resources that no worker has.
    """
    distributed, _ = optional_import("distributed")
    waiting = _Waiting(jobs)
    results: dict[Hashable, Any] = {}
    with cluster.client() as client:
        client.wait_for_workers(1)
        _check_resources(jobs, _offers(client))
        running: dict[Any, Job] = {}
        done = distributed.as_completed(with_results=False)
        while True:
            # no worker has a job in waiting: when it dies, only what it was doing is suspected, and the memory of the
            # scheduler does not grow with the number of jobs
            for job in waiting.fitting(list(running.values()), _offers(client)):
                future = client.submit(do, job.key, pure=False, resources=dict(job.resources) or None)
                running[future.key] = job
                done.add(future)
            if not running and waiting.is_empty:
                return results
            if not running:  # no worker is left that could
                client.wait_for_workers(1)
                time.sleep(_PAUSE)
                continue
            future = next(done)
            job = running.pop(future.key)
            results[job.key] = future.exception() if future.status == "error" else future.result()
            future.release()
            waiting.finish(job)
            on_done(job)


class _Waiting:
    """Jobs that wait for others, and those that are ready, largest first."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = {job.key: job for job in jobs}
        self._missing: dict[Hashable, int] = {}
        self._after: dict[Hashable, list[Hashable]] = {}
        self._ready: dict[_Needed, list[tuple[float, int, Hashable]]] = {}
        self._number = 0
        for job in jobs:
            unknown = [key for key in job.needs if key not in self._jobs]
            if unknown:
                raise ValueError(f"job {job.key!r} needs {unknown[0]!r}, which is none of the jobs.")
            self._missing[job.key] = len(set(job.needs))
            for key in set(job.needs):
                self._after.setdefault(key, []).append(job.key)
            if not job.needs:
                self._push(job)

    def _push(self, job: Job) -> None:
        heapq.heappush(self._ready.setdefault(_needed(job), []), (-job.weight, self._number, job.key))
        self._number += 1

    def fitting(self, running: Sequence[Job], offers: Sequence[_Offer]) -> Iterator[Job]:
        """The largest jobs that are ready, of each kind of resources as many as workers are free for."""
        for needed, ready in self._ready.items():
            free = sum(offer.room_for(needed) for offer in offers) - sum(_needed(job) == needed for job in running)
            for _ in range(min(free, len(ready))):
                yield self._jobs[heapq.heappop(ready)[2]]

    @property
    def is_empty(self) -> bool:
        """Whether no job is ready."""
        return not any(self._ready.values())

    def finish(self, job: Job) -> None:
        """Makes ready what waited for this one alone; one that failed is done too, and what needs it tells why."""
        for key in self._after.pop(job.key, []):
            self._missing[key] -= 1
            if not self._missing[key]:
                self._push(self._jobs[key])


def _needed(job: Job) -> _Needed:
    return tuple(sorted(job.resources.items()))


@dataclass(frozen=True)
class _Offer:
    """What a worker has: threads and resources."""

    threads: int
    resources: Mapping[str, float]

    def room_for(self, needed: _Needed) -> int:
        """How many jobs of a kind it can do at once."""
        return min([self.threads, *(int(self.resources.get(name, 0) / amount) for name, amount in needed)])


def _offers(client: Any) -> list[_Offer]:
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return [_Offer(worker["nthreads"], worker.get("resources", {})) for worker in workers]


def _check_resources(jobs: Sequence[Job], offers: Sequence[_Offer]) -> None:
    """Refuses jobs that would wait for ever."""
    for needed in {_needed(job) for job in jobs if job.resources}:
        if not any(offer.room_for(needed) for offer in offers):
            words = " and ".join(f"{name}={amount:g}" for name, amount in needed)
            raise ValueError(
                f"a task needs a worker with {words}, and none of the {len(offers)} workers has that; give --resources "
                "with --workers, or start workers of the scheduler with it."
            )
