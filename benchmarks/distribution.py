"""Jobs on Dask workers: a local cluster or any other, largest first, each when what it needs is done."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from monai.utils import optional_import

_AT_ONCE = 256  # so many jobs are with the scheduler, however many there are: its memory grows with them
_DEATHS = 3  # a job during which so many workers have died is given up


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
        _check_resources(jobs, client)
        running: dict[Any, Job] = {}
        done = distributed.as_completed(with_results=False)

        def submit() -> None:
            while len(running) < _AT_ONCE and (job := waiting.next()) is not None:
                future = client.submit(
                    do, job.key, pure=False, resources=dict(job.resources) or None, priority=job.weight,
                )  # fmt: skip
                running[future.key] = job
                done.add(future)

        submit()
        for future in done:
            job = running.pop(future.key)
            results[job.key] = future.exception() if future.status == "error" else future.result()
            future.release()
            waiting.finish(job)
            on_done(job)
            submit()
    return results


class _Waiting:
    """Jobs that wait for others, and those that are ready, largest first."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = {job.key: job for job in jobs}
        self._missing: dict[Hashable, int] = {}
        self._after: dict[Hashable, list[Hashable]] = {}
        self._ready: list[tuple[float, int, Hashable]] = []
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
        heapq.heappush(self._ready, (-job.weight, self._number, job.key))
        self._number += 1

    def next(self) -> Job | None:
        """The largest job that is ready, or None."""
        return self._jobs[heapq.heappop(self._ready)[2]] if self._ready else None

    def finish(self, job: Job) -> None:
        """Makes ready what waited for this one alone; one that failed is done too, and what needs it tells why."""
        for key in self._after.pop(job.key, []):
            self._missing[key] -= 1
            if not self._missing[key]:
                self._push(self._jobs[key])


def _check_resources(jobs: Sequence[Job], client: Any) -> None:
    """Refuses jobs that would wait for ever."""
    offers = [worker.get("resources", {}) for worker in client.scheduler_info(n_workers=-1)["workers"].values()]
    for needed in {tuple(sorted(job.resources.items())) for job in jobs if job.resources}:
        if not any(all(offer.get(name, 0) >= amount for name, amount in needed) for offer in offers):
            words = " and ".join(f"{name}={amount:g}" for name, amount in needed)
            raise ValueError(
                f"a task needs a worker with {words}, and none of the {len(offers)} workers has that; give --resources, "
                "or start workers of the scheduler with it."
            )
