"""The cells of one task: its networks, and all that is tried on each of them, every result kept in a store."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from medadv.adapters.acceleration import unaccelerated
from medadv.adapters.calibration import calibrate
from medadv.benchmarks import data as datasets
from medadv.benchmarks.cell_store import Cell, CellStore
from medadv.benchmarks.corruptions import check_modality, chosen
from medadv.benchmarks.crafting import Crafted
from medadv.benchmarks.data.base import Cases
from medadv.benchmarks.defences import Defended, build_defence
from medadv.benchmarks.defended import DefenceTrials, DefendedEvaluator, attacks_through
from medadv.benchmarks.economy import worst_case_outcomes
from medadv.benchmarks.evaluate import Evaluator
from medadv.benchmarks.kept_images import Kept
from medadv.benchmarks.models import Estimator, build_estimator, reference_of
from medadv.benchmarks.outcomes import Evaluation, Failure, Outcome, Planned
from medadv.benchmarks.replays import LostSurrogate, StoredMemory, planned_attacks
from medadv.benchmarks.suites import AUTO, Suite, TaskSpec
from medadv.benchmarks.trainings import Network, Networks, Trained
from medadv.benchmarks.trials import Corruption, Schedule, Trial, assembled, schedule, with_worst_cases
from medadv.diagnostics import Finding

_CALIBRATED = 8  # cases at most that an acceleration is chosen by
_FACTS = (
    "access", "threat", "targeted", "settings", "eps", "unit", "fraction", "queries", "passes", "region", "seconds",
)  # fmt: skip


class TaskBench:
    """One task of a suite: data, networks, and what is tried on them.

    Args:
        suite: what is run.
        task: one of its tasks.
        store: where results are kept.
        data_root: where the data sets named by the suite are.
        bars: show progress bars of trainings.
        keep_images: keep the worst images of defended models too.
    """

    def __init__(
        self, suite: Suite, task: TaskSpec, store: CellStore, *, data_root: str | Path | None = None,
        bars: bool = False, keep_images: bool = False,
    ) -> None:  # fmt: skip
        self.suite = suite
        self.task = task
        self.store = store
        self.bars = bars
        self.keep_images = keep_images
        self.data = datasets.load(task.data, seed=suite.seed, data_root=data_root, **task.data_options)
        self.sha256 = self.data.sha256
        self._networks: dict[int, Networks] = {}
        check_modality(chosen(task.corruptions), self.data.intensity)

    @property
    def seeds(self) -> list[int]:
        """Seeds of the trainings."""
        return self.task.train_seeds or self.suite.train_seeds

    @cached_property
    def data_settings(self) -> dict[str, Any]:
        """All that decides the data."""
        data = self.data
        meaning = [repr(data.decision), repr(data.intensity), data.classes, data.spacing]
        return {"name": data.name, "sha256": self.sha256, "meaning": meaning}

    @property
    def cases(self) -> Cases:
        """The cases that are attacked."""
        return self.data.test.take(self.task.test_cases)

    def networks(self, seed: int) -> Networks:
        """The networks of one training seed."""
        if seed not in self._networks:
            self._networks[seed] = Networks(self.task, self.data, self.data_settings, seed, self.store, self.bars)
        return self._networks[seed]

    def target(self, name: Trained, seed: int) -> TargetBench:
        """One trained network with all that is tried on it."""
        return TargetBench(self, name, seed)

    def release(self, seed: int) -> None:
        """Lets go of the networks of a seed."""
        self._networks.pop(seed, None)

    def check_defences(self) -> None:
        """Refuses defences that can't be right before anything is trained."""
        own = [attack for attack in self.task.attacks if attack.surrogate is None]
        attacks = [Planned(attack.name, attack.options, attack.title or "", wanted=attack.wanted) for attack in own]
        for title, spec in self.task.defences.items():
            for model in self.task.models:
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # of a network that has learned nothing
                        defence = self.defence(title, build_estimator(model, self.data), fitted=False)
                    attacks_through(defence, attacks, spec.attacks)
                except (TypeError, ValueError) as error:
                    where = f"task {self.task.name!r}, defence {title!r}, model {model.name!r}"
                    raise ValueError(f"{where}: {error}") from None

    def defence(self, title: str, estimator: Estimator, *, fitted: bool) -> Defended:
        """A defended model."""
        spec = self.task.defences[title]
        return build_defence(
            spec.kind, spec.name or title, spec.options, estimator, self.data, batch_size=self.task.batch_size,
            seed=self.suite.seed, fitted=fitted,
        )  # fmt: skip


class TargetBench:
    """A trained network, and the outcome of each trial on it, computed once and kept.

    Args:
        bench: its task.
        name: its model and training.
        seed: of its training.
    """

    def __init__(self, bench: TaskBench, name: Trained, seed: int) -> None:
        self.bench = bench
        self.name = name
        self.seed = seed
        self.label = bench.networks(seed).label(name)
        self.network: Network = bench.networks(seed)[name]
        self.estimator = self.network.estimator
        self.calibration: pd.DataFrame | None = None
        self._behind: dict[str, DefenceTrials] = {}
        self.estimator.acceleration = self._acceleration()

    def _acceleration(self) -> str:
        """The form in which gradients are computed, calibrated once; it belongs to every cell of an attack."""
        wanted = self.bench.suite.acceleration
        if wanted != AUTO:
            return wanted
        cases = self.bench.cases.take(min(self.bench.task.batch_size, _CALIBRATED))

        def found() -> pd.DataFrame:
            made = calibrate(self.estimator, cases.x, reference_of(self.estimator, cases.y))
            return made.table.assign(chosen=made.table.acceleration == made.chosen.name)

        table: pd.DataFrame = self.bench.store.result(self._cell("calibration", "calibration", {}), found)
        self.calibration = table
        return str(table.acceleration[table.chosen].iloc[0])

    @cached_property
    def planned(self) -> list[Planned]:
        """The attacks, one for each surrogate where there are several."""
        memory = StoredMemory(self.bench.networks(self.seed))
        return planned_attacks(self.bench.task, self.name, self.bench.networks(self.seed).estimators, memory)

    @cached_property
    def schedule(self) -> Schedule:
        """All that is tried."""
        task = self.bench.task
        return schedule(self.planned, self.bench.suite.budgets, self.estimator.intensity, task.corruptions)

    @cached_property
    def evaluator(self) -> Evaluator:
        """Judges images by this network."""
        clean = self._cell("clean", "clean images", {})
        return Evaluator(
            self.estimator, self.bench.data, bands=self.bench.suite.bands,
            clean=self._kept(clean), **self._judging,
        )  # fmt: skip

    @property
    def _judging(self) -> dict[str, Any]:
        suite, task = self.bench.suite, self.bench.task
        return {
            "batch_size": task.batch_size, "seed": suite.seed, "test_cases": task.test_cases, "hd95": suite.hd95,
        }  # fmt: skip

    def _cell(self, kind: str, what: str, settings: Mapping[str, Any]) -> Cell:
        decisive = {
            "network": self.network.settings, "data": self.bench.data_settings, "threads": torch.get_num_threads(),
            "device": str(self.estimator.device), **self._judging, "bands": self.bench.suite.bands, **settings,
        }  # fmt: skip
        return Cell(kind, f"{what} on {self.label}", decisive)

    def cell(self, trial: Trial | Corruption, kind: str = "outcome") -> Cell:
        """The cell of one trial."""
        if isinstance(trial, Corruption):
            return self._cell(kind, trial.label, {"corruption": trial.name, "severity": trial.severity})
        planned = trial.planned
        surrogate = planned.surrogate
        source: dict[str, Any] = {}
        if surrogate is not None:
            source = {
                "surrogate": self.bench.networks(self.seed).settings_of(surrogate.source),
                "access": surrogate.access,
            }
        return self._cell(kind, trial.label, {
            "attack": planned.name, "options": {**planned.options, **planned.per_budget.get(str(trial.eps), {})},
            "eps": trial.eps, "region": planned.region, "wanted": planned.wanted, **source,
            "acceleration": self.estimator.acceleration.name,
        })  # fmt: skip

    def outcome(self, trial: Trial | Corruption) -> Outcome:
        """What came of one trial."""
        cell = self.cell(trial)
        result: Outcome = self._flagged(cell, self.bench.store.result(cell, lambda: self._outcome(trial)))
        if isinstance(trial, Corruption):
            return result
        planned = trial.planned
        source = "none" if planned.surrogate is None else planned.surrogate.name
        return replace(result, attack=planned.label, surrogate=source)

    def _flagged(self, cell: Cell, outcome: Outcome) -> Outcome:
        """Says so where other versions have computed it, or have trained the network."""
        stale = self.bench.store.is_stale(cell) or self.network.stale
        return replace(outcome, flags=(*outcome.flags, "stale")) if stale else outcome

    def _outcome(self, trial: Trial | Corruption) -> Outcome:
        if isinstance(trial, Corruption):
            return self.evaluator.corrupt(trial.name, trial.severity)
        crafted = self.evaluator.craft(trial.planned, trial.eps)
        self.bench.store.keep(self.cell(trial, "images"), Kept.all_of(crafted.images))
        return self.evaluator.judge(trial.planned, crafted)

    def images(self, trial: Trial) -> np.ndarray:
        """The adversarial images of a trial; those that :meth:`prune` has let go are made again."""
        kept = self._kept_images(trial)
        if not kept.whole:
            kept = self._crafted_images(trial)
            self.bench.store.keep(self.cell(trial, "images"), kept)
        return kept.images

    def _crafted_images(self, trial: Trial) -> Kept:
        return Kept.all_of(self.evaluator.craft(trial.planned, trial.eps).images)

    def _kept_images(self, trial: Trial) -> Kept:
        kept: Kept = self.bench.store.result(self.cell(trial, "images"), lambda: self._crafted_images(trial))
        return kept

    def with_images(self, trial: Trial | Corruption) -> Outcome:
        """What came of one trial, with those of its images that are kept; others are NaN."""
        outcome = self.outcome(trial)
        if isinstance(trial, Corruption):
            return outcome
        return replace(outcome, images=self._kept_images(trial).filled())

    def prune(self, result: Evaluation) -> None:
        """Lets go of all images but those of worst cases."""
        if self.economical:
            return
        worst = [outcome.worst_attack for outcome in result.outcomes if outcome.worst_attack]
        for trial in self.schedule.attacks:
            chosen = [any(names[row] == trial.planned.label for names in worst) for row in range(len(result.cases))]
            kept = self._kept_images(trial)
            if sum(chosen) < len(kept.rows):
                self.bench.store.keep(self.cell(trial, "images"), kept.only(np.flatnonzero(chosen)))

    def evaluation(self, outcome_of: Callable[[Trial | Corruption], Outcome | Failure]) -> Evaluation:
        """All outcomes with their worst cases; ``outcome_of`` is one of the methods above or tells of a failure."""
        result = assembled(self.evaluator, self.schedule, outcome_of)
        if any(outcome.images is not None and np.isnan(outcome.images).any() for outcome in result.outcomes):
            for trial in self.schedule.attacks:
                if isinstance(outcome_of(trial), Outcome):
                    self.images(trial)
            result = assembled(self.evaluator, self.schedule, outcome_of)
        return result

    @property
    def economical(self) -> bool:
        """Whether the worst cases alone are wanted."""
        return self.bench.suite.rows == "worst-case"

    @property
    def worst_cell(self) -> Cell:
        """The cell of all worst cases, where these alone are wanted."""
        attacks = [[trial.planned.label, self.cell(trial).config] for trial in self.schedule.attacks]
        return self._cell("worst-cases", "worst cases", {"attacks": attacks, "budgets": self.schedule.sizes})

    def worst_cases(self) -> list[Outcome]:
        """Worst cases, and how the attacks came there (:func:`~medadv.benchmarks.economy.worst_case_outcomes`)."""
        plan, cell = self.schedule, self.worst_cell

        def made() -> list[Outcome]:
            there = [planned for planned in plan.planned if not isinstance(planned.surrogate, LostSurrogate)]
            return worst_case_outcomes(self.evaluator, there, plan.sizes, keep_images=True)

        return [self._flagged(cell, outcome) for outcome in self.bench.store.result(cell, made)]

    def worst_evaluation(
        self, found: list[Outcome], outcome_of: Callable[[Trial | Corruption], Outcome | Failure]
    ) -> Evaluation:
        """What :meth:`worst_cases` found, with the clean images and the corruptions."""
        lost = [
            trial.failed(trial.planned.surrogate.reason, self.estimator.intensity)
            for trial in self.schedule.attacks if isinstance(trial.planned.surrogate, LostSurrogate)
        ]  # fmt: skip
        return with_worst_cases(self.evaluator, self.schedule, found, outcome_of, lost)

    def without_attacks(self, reason: str) -> Evaluation:
        """The clean images alone, where the worst cases could not be found."""
        failure = Failure("worst-case", reason, "white-box")
        data, cases = self.bench.data, self.evaluator.cases
        return Evaluation(data, cases, self.estimator.segments, [self.evaluator.clean], [], [failure])

    @property
    def findings_cell(self) -> Cell:
        """The cell of the checks that look at the model itself."""
        return self._cell("findings", "checks", {
            "level": self.bench.suite.diagnostics, "budgets": self.schedule.sizes,
        })  # fmt: skip

    def findings(self) -> list[Finding]:
        """What the checks find that look at the model itself."""

        def found() -> list[Finding]:
            with unaccelerated(self.estimator):
                return self.evaluator.findings(self.bench.suite.diagnostics, self.schedule.sizes)

        kept: list[Finding] = self.bench.store.result(self.findings_cell, found)
        return kept

    @property
    def defences(self) -> list[str]:
        """Titles of its defences."""
        specs = self.bench.task.defences.items()
        return [title for title, spec in specs if spec.trainings is None or self.name[1] in spec.trainings]

    def behind(self, title: str) -> DefenceTrials:
        """What is tried on it behind a defence, which is fitted once."""
        if title not in self._behind:
            defence = self.bench.defence(title, self.estimator, fitted=True)
            clean = self._cell("clean", f"clean images behind {title}", self._defence_settings(title))
            evaluator = DefendedEvaluator(defence, self.bench.data, clean=self._kept(clean), **self._judging)
            through = attacks_through(defence, self.planned, self.bench.task.defences[title].attacks)
            level = self.bench.suite.diagnostics
            self._behind[title] = DefenceTrials(evaluator, through, self.bench.keep_images, level)
        return self._behind[title]

    def _kept(self, cell: Cell) -> Callable[[Callable[[], Outcome]], Outcome]:
        return lambda make: self._flagged(cell, self.bench.store.result(cell, make))

    def _defence_settings(self, title: str) -> dict[str, Any]:
        spec = self.bench.task.defences[title]
        return {"defence": [spec.kind, spec.name or title, spec.options], "images kept": self.bench.keep_images}

    def defended_cell(self, title: str, trial: Trial) -> Cell:
        """The cell of one trial on a defended model."""
        cell = self.cell(trial, "defended")
        return Cell(cell.kind, f"{cell.label} behind {title}", {**cell.settings, **self._defence_settings(title)})

    def defended(self, title: str, trial: Trial) -> list[Outcome]:
        """What came of one trial on a defended model."""

        def tried() -> list[Outcome]:
            undefended = self.outcome(trial)
            facts = {name: getattr(undefended, name) for name in _FACTS}
            crafted = Crafted(self.images(trial), undefended.reference, facts)
            return self.behind(title).tried(trial.planned, crafted, trial.eps)

        cell = self.defended_cell(title, trial)
        return [self._flagged(cell, outcome) for outcome in self.bench.store.result(cell, tried)]
