"""What is tried on a model: each attack at each budget and each corruption, and how that becomes its outcomes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from medadv.attacks import recipe_of
from medadv.benchmarks.corruptions import SEVERITIES, chosen
from medadv.benchmarks.data.base import Dataset
from medadv.benchmarks.economy import worst_case_outcomes
from medadv.benchmarks.evaluate import WORST_CASE, Evaluator
from medadv.benchmarks.models import Estimator
from medadv.benchmarks.outcomes import Evaluation, Failure, Outcome, Planned
from medadv.intensities import Intensity
from medadv.names import unknown_name


@dataclass(frozen=True)
class Trial:
    """One attack at one budget.

    Attributes:
        planned: the attack.
        eps: the budget; None: its own.
    """

    planned: Planned
    eps: float | str | None = None

    @property
    def label(self) -> str:
        """In words."""
        return f"{self.planned.label} at {'its own budget' if self.eps is None else self.eps}"

    def failed(self, reason: str, intensity: Intensity) -> Failure:
        """What is told where it raised."""
        access = recipe_of(self.planned.name).access
        if self.eps is None:
            return Failure(self.planned.label, reason, access)
        budget = intensity.budget(self.eps)
        return Failure(self.planned.label, reason, access, budget.eps, budget.fraction)


@dataclass(frozen=True)
class Corruption:
    """A natural corruption at one severity; nobody attacks."""

    name: str
    severity: int

    @property
    def label(self) -> str:
        """In words."""
        return f"{self.name} at severity {self.severity}"

    def failed(self, reason: str, intensity: Intensity) -> Failure:
        """What is told where it raised."""
        return Failure(self.name, reason, eps=float(self.severity))


@dataclass(frozen=True)
class Schedule:
    """All that is tried on a model.

    Attributes:
        own: attacks at their own budget.
        budgets: per budget of the suite the attacks.
        corruptions: all severities of each.
    """

    own: Sequence[Trial]
    budgets: Sequence[Sequence[Trial]]
    corruptions: Sequence[Corruption]

    @property
    def attacks(self) -> list[Trial]:
        """All attacks."""
        return [*self.own, *(trial for group in self.budgets for trial in group)]

    @property
    def planned(self) -> list[Planned]:
        """The attacks, each once."""
        return [trial.planned for trial in [*self.own, *(self.budgets[0] if self.budgets else [])]]

    @property
    def sizes(self) -> list[float | str]:
        """The budgets above 0, in the words of the suite."""
        return [group[0].eps for group in self.budgets if group[0].eps is not None]

    @property
    def all(self) -> list[Trial | Corruption]:
        """All attacks and corruptions."""
        return [*self.attacks, *self.corruptions]


def schedule(
    attacks: Sequence[Planned], budgets: Sequence[float | str], intensity: Intensity,
    corruptions: str | Sequence[str] = (),
) -> Schedule:  # fmt: skip
    """All attacks at all budgets, with noise if it is missing; budget 0 is the clean row that is always there."""
    planned = [*([] if any(attack.name == "noise" for attack in attacks) else [Planned("noise")]), *attacks]
    positive = [eps for eps in budgets if intensity.budget(eps).eps > 0]
    return Schedule(
        [Trial(attack) for attack in planned if attack.has_own_budget],
        [[Trial(attack, eps) for attack in planned if not attack.has_own_budget] for eps in positive],
        [Corruption(name, severity) for name in chosen(corruptions) for severity in SEVERITIES],
    )


def assembled(
    evaluator: Evaluator, plan: Schedule, outcome_of: Callable[[Trial | Corruption], Outcome | Failure]
) -> Evaluation:
    """Outcomes of all trials in the order of the tables, with the worst case per budget, threat set and region.

    Args:
        evaluator: of the model.
        plan: what is tried.
        outcome_of: gives the outcome of each trial; images that it holds are kept in the worst cases alone.
    """
    outcomes: list[Outcome] = [evaluator.clean]
    failures: list[Failure] = []

    def settled(trials: Iterable[Trial | Corruption]) -> list[Outcome]:
        found = [outcome_of(trial) for trial in trials]
        failures.extend(each for each in found if isinstance(each, Failure))
        return [each for each in found if isinstance(each, Outcome)]

    own = settled(plan.own)
    of_own = [failure.attack for failure in failures]
    for group in plan.budgets:
        before = len(failures)
        found = settled(group)
        missing = [*of_own, *(failure.attack for failure in failures[before:])]
        threats = {outcome.threat_set for outcome in found}
        joining = [outcome for outcome in own if outcome.threat_set in threats]
        outcomes += [*found, *(_flagged(worst, missing) for worst in evaluator.worst_cases([*found, *joining]))]
        for outcome in found:
            outcome.images = None  # kept once, in the worst case
    known = {outcome.threat_set for outcome in outcomes}
    alone = evaluator.worst_cases([outcome for outcome in own if outcome.threat_set not in known])
    outcomes += [*own, *(_flagged(worst, of_own) for worst in alone)]
    for outcome in own:
        outcome.images = None
    outcomes += settled(plan.corruptions)
    return Evaluation(evaluator.data, evaluator.cases, evaluator.estimator.segments, outcomes, [], failures)


def with_worst_cases(
    evaluator: Evaluator, plan: Schedule, found: Sequence[Outcome],
    outcome_of: Callable[[Trial | Corruption], Outcome | Failure], failures: Sequence[Failure] = (),
) -> Evaluation:  # fmt: skip
    """What :func:`~medadv.benchmarks.economy.worst_case_outcomes` found, after the clean images; and corruptions.

    ``failures`` are of attacks that could not be among them.
    """
    result = assembled(evaluator, Schedule([], [], plan.corruptions), outcome_of)
    missing = list(dict.fromkeys(failure.attack for failure in failures))
    result.outcomes[1:1] = [_flagged(each, missing) if each.attack == WORST_CASE else each for each in found]
    result.failures[:0] = failures
    return result


def _flagged(worst: Outcome, missing: Sequence[str]) -> Outcome:
    """A worst case over attacks of which some have failed is a worst case no more, and says so."""
    return replace(worst, flags=(*worst.flags, *(f"without-failed={name}" for name in missing)))


def evaluate_estimator(
    estimator: Estimator,
    data: Dataset,
    attacks: Sequence[Planned],
    budgets: Sequence[float | str],
    *,
    corruptions: str | Sequence[str] = (),
    keep_images: bool = False,
    diagnostics: str = "basic",
    rows: str = "every",
    **options: Any,
) -> Evaluation:
    """All attacks at all budgets, and per budget, threat set and region the worst case.

    Args:
        estimator: a medadv estimator.
        data: its test cases are attacked.
        attacks: what to run; noise is added if it is missing.
        budgets: as :meth:`~medadv.intensities.Intensity.budget` reads them; 0 is the clean row that is always there.
            Attacks whose threat is no ball, or that have ``eps`` among their options, run once, at their own budget.
        corruptions: names of :data:`~medadv.benchmarks.corruptions.CORRUPTIONS`, or ``"all"``, each run at severities
            1 to 5 beside the attacks.
        keep_images: keep the adversarial images of every worst case.
        diagnostics: checks of the model: ``"basic"``, ``"full"`` or ``"none"``.
        rows: ``"every"``: every attack runs on every case; ``"worst-case"``: only the worst cases are complete, for
            fewer passes, see :func:`~medadv.benchmarks.economy.worst_case_outcomes`.
        options: of :class:`~medadv.benchmarks.evaluate.Evaluator`.
    """
    evaluator = Evaluator(estimator, data, **options)

    def outcome_of(trial: Trial | Corruption) -> Outcome:
        if isinstance(trial, Corruption):
            return evaluator.corrupt(trial.name, trial.severity)
        return evaluator.attack(trial.planned, trial.eps, keep_images=keep_images)

    plan = schedule(attacks, budgets, estimator.intensity, corruptions)
    if rows == "every":
        result = assembled(evaluator, plan, outcome_of)
    elif rows == "worst-case":
        found = worst_case_outcomes(evaluator, plan.planned, plan.sizes, keep_images=keep_images)
        result = with_worst_cases(evaluator, plan, found, outcome_of)
    else:
        raise unknown_name("choice of rows", rows, ("every", "worst-case"))
    result.findings = evaluator.findings(diagnostics, plan.sizes)
    return result
