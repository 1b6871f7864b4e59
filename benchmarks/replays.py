"""Attacks whose images are made on another model of the task, each made once and kept in the store of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from medadv.adapters.acceleration import unaccelerated
from medadv.benchmarks import crafting
from medadv.benchmarks.cell_store import Cell
from medadv.benchmarks.crafting import NO_BOX, SEMI_WHITE_BOX, Crafted, Memory, Order, Seen, Surrogate
from medadv.benchmarks.outcomes import Planned
from medadv.benchmarks.suites import TaskSpec
from medadv.benchmarks.trainings import Networks, Trained, TrainingFailedError


def planned_attacks(
    task: TaskSpec, target: Trained, trained: Mapping[Trained, Any], memory: Memory | None = None
) -> list[Planned]:
    """The attacks of a task on one model, one for each surrogate where there are several.

    Args:
        task: what is asked for.
        target: model and training that are attacked.
        trained: the estimators of all models of the task; None where only the plan is wanted.
        memory: of images that were made on surrogates.
    """
    planned = []
    for spec in task.attacks:
        plain = Planned(spec.name, spec.options, spec.title or "", spec.per_budget, None, spec.region, spec.wanted)
        sources = [] if spec.surrogate is None else spec.surrogate.sources(target, trained)
        for source in sources:
            access = SEMI_WHITE_BOX if _undefended_twin(task, source, target) else NO_BOX
            surrogate = _surrogate(source, trained, access, memory or Memory())
            planned.append(replace(plain, title=spec.label_of(source), surrogate=surrogate))
        planned += [plain] if spec.surrogate is None else []
    return planned


def _surrogate(source: Trained, trained: Mapping[Trained, Any], access: str, memory: Memory) -> Surrogate:
    name = "/".join(source)
    try:
        return Surrogate(name, trained[source], access, memory)
    except TrainingFailedError as error:  # the other attacks go on
        return LostSurrogate(name, None, access, memory, reason=f"training of surrogate {name} failed: {error}")  # type: ignore[arg-type]


@dataclass(frozen=True)
class LostSurrogate(Surrogate):
    """A surrogate whose training has failed, for the ``reason`` given."""

    reason: str = ""

    def craft(self, target: Any, order: Order, seen: Seen) -> Crafted:
        raise TrainingFailedError(self.reason)


def _undefended_twin(task: TaskSpec, source: Trained, target: Trained) -> bool:
    """Whether a surrogate is the target's network, trained without a defence."""
    spec = task.trainings.get(source[1])
    return source[0] == target[0] and spec is not None and spec.recipe == "natural"


class StoredMemory(Memory):
    """Images made on surrogates, kept in the store of a run.

    Args:
        networks: among which the surrogates are.
    """

    def __init__(self, networks: Networks) -> None:
        super().__init__()
        self.networks = networks

    def recall(self, surrogate: Surrogate, order: Order, seen: Seen) -> Crafted:
        settings = {
            "network": self.networks.settings_of(surrogate.source), "data": self.networks.data_settings,
            "cases": len(seen.x), "attack": order.name, "options": dict(order.options), "region": order.region,
            "wanted": order.wanted, "threads": torch.get_num_threads(),
        }  # fmt: skip
        cell = Cell("replayed", f"{order.name} on {surrogate.name}", settings)

        def made() -> Crafted:
            with unaccelerated(surrogate.estimator):
                return crafting.craft(surrogate.estimator, order, seen)

        found: Crafted = self.networks.store.result(cell, made)
        return found
