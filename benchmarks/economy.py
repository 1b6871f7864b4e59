"""Worst cases for fewer passes: what is at the floor is left alone, what was found before is a candidate again.

``rows: every`` runs every attack on every case. ``rows: worst-case`` finds the same worst cases, or worse, so:

- Attacks of one threat set take turns, cheapest first, and see only the cases that are not at the floor of the score
  yet (a wrong class, all labels wrong, Dice 0), in full batches of these. No score is lower than that.
- The worst image of a smaller budget is a candidate at the larger ones, where the sets are balls and one holds the
  other; the image itself is one everywhere. They are never a start: every attack searches as it does alone.
- Ensembles are taken apart, and the same attack with the same options runs once, whoever asked for it.
- Images that were made on a surrogate before are not made again.

Every case draws its random numbers from the seed and its own id, so what an attack finds does not depend on which
others are left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medadv.attacks import CatalogueAttack, recipe_of
from medadv.attacks.ensembles import EnsembleAttack
from medadv.attacks.recipes import COMMON_OPTIONS
from medadv.benchmarks.crafting import NEEDS, Order, attack_of, craft, facts_of
from medadv.benchmarks.endpoints import Diagnosis
from medadv.benchmarks.evaluate import WORST_CASE, Evaluator
from medadv.benchmarks.outcomes import Outcome, Planned, joint_facts
from medadv.benchmarks.worst_so_far import Origin, WorstSoFar
from medadv.threats import LpBall
from medadv.victims import Passes

_NOT_DECISIVE = ("batch_size", "verbose")


@dataclass(frozen=True)
class Step:
    """One search: an attack, or a member of an ensemble.

    Attributes:
        order: what is run.
        key: equal for searches that find the same.
        cost: passes of a batch, about.
    """

    order: Order
    key: str
    cost: float


@dataclass
class Attempt:
    """An attack that is planned, at one budget.

    Attributes:
        planned: what is run.
        eps: the budget in the words of the suite; None: its own.
        attack: as it was built, to be read only.
        steps: what it consists of, by key; empty where every case has to see it.
        passes, seconds, queries: what it has cost so far.
        attacked: how many cases it has run on.
        done: keys of its steps that have run; ``shared``: the attacks that paid for some of them.
    """

    planned: Planned
    eps: float | str | None
    attack: CatalogueAttack
    steps: dict[str, Step]
    queries: np.ndarray
    passes: Passes = field(default_factory=Passes)
    seconds: float = 0.0
    attacked: int = 0
    done: set[str] = field(default_factory=set)
    shared: set[str] = field(default_factory=set)

    def pay(self, outcome: Outcome, rows: np.ndarray) -> None:
        """Adds what a search of the cases ``rows`` has cost."""
        more = outcome.passes
        self.passes = Passes(self.passes.forward + more.forward, self.passes.backward + more.backward)
        self.queries[rows] += outcome.queries
        self.seconds += outcome.seconds

    @property
    def threat_set(self) -> tuple[str, str, float]:
        """As :attr:`~medadv.benchmarks.outcomes.Outcome.threat_set`."""
        facts = facts_of(self.attack)
        return facts["threat"], self.planned.region, facts["eps"]


def worst_case_outcomes(
    evaluator: Evaluator,
    attacks: Sequence[Planned],
    budgets: Sequence[float | str],
    *,
    keep_images: bool = False,
) -> list[Outcome]:
    """The worst case of each threat set, region and budget, and how the attacks came there.

    Args:
        evaluator: of the model.
        attacks: what to run.
        budgets: above 0; attacks with a budget of their own run once.
        keep_images: keep the images of the worst cases.

    Returns:
        Per threat set and budget a row for each attack and the worst case. The score of a worst case is complete: never
        higher, for any case, than that of running every attack on every case. Endpoints of it are not given, as of
        cases that were left alone nobody knows the worst AUC or volume. An attack's row holds the score after it and
        all before it, with how many cases it ran on (``n_attacked``) and where the others' images come from
        (``reused``); but noise, attacks replayed from a surrogate, those that want a diagnosis, those without a budget
        and those whose cases depend on each other run on every case, and their rows are their own.

    Example:
        >>> from medadv.benchmarks.data.base import Cases, Dataset
        >>> from medadv.benchmarks.toys import toy
        >>> toy = toy("multi-class", 2)
        >>> cases = Cases(toy.x, toy.y, ("a", "b"))
        >>> data = Dataset("toy", "classification", toy.estimator.decision, toy.estimator.intensity, tuple("wxyz"),
        ...                cases.take(0), cases.take(0), cases)
        >>> evaluator = Evaluator(toy.estimator, data)
        >>> for o in worst_case_outcomes(evaluator, [Planned("fgsm"), Planned("pgd")], ["4/255", "32/255"]):
        ...     print(o.attack, round(o.fraction * 255), o.scores.mean(), o.n_attacked, o.reused)
        fgsm 4 1.0 2 carried=2
        pgd 4 1.0 2 carried=2
        worst-case 4 1.0 2 carried=2
        fgsm 32 0.0 2
        pgd 32 0.0 0 earlier=2
        worst-case 32 0.0 2
    """
    groups: dict[tuple[str, str], dict[float, list[Attempt]]] = {}
    for planned in attacks:
        for eps in [None] if planned.has_own_budget else budgets:
            attempt = _attempt(evaluator, planned, eps)
            threat, region, size = attempt.threat_set
            groups.setdefault((threat, region), {}).setdefault(size, []).append(attempt)
    outcomes = []
    for of_threat in groups.values():
        carried: WorstSoFar | None = None
        for size in sorted(of_threat):
            rounds = _Rounds(evaluator, of_threat[size], carried)
            outcomes += rounds.run(keep_images)
            carried = rounds.worst if rounds.is_ball else None
    return outcomes


def _attempt(evaluator: Evaluator, planned: Planned, eps: float | str | None) -> Attempt:
    order = evaluator.order(planned, eps)
    estimator = evaluator.attacked if planned.surrogate is None else planned.surrogate.estimator
    attack = attack_of(estimator, order if planned.surrogate is None else order.replayed)
    steps = [] if _sees_every_case(planned, attack) else _steps(estimator, order, attack)
    nothing = np.zeros(len(evaluator.x), dtype=np.int64)
    return Attempt(planned, eps, attack, {step.key: step for step in steps}, nothing)


def _sees_every_case(planned: Planned, attack: CatalogueAttack) -> bool:
    """Whether a row of this attack means nothing unless it is about all cases and about this attack alone."""
    row = attack.recipe
    alone = planned.surrogate is not None or planned.wanted is not None or attack.targeted
    return alone or row.access == "none" or not row.independent or attack.budget is None


def _steps(estimator: Any, order: Order, attack: CatalogueAttack) -> list[Step]:
    if not isinstance(attack, EnsembleAttack):
        return [_step(order, attack)]
    common = {name: order.options[name] for name in ("eps", "batch_size", "seed", "norm") if name in order.options}
    orders = [replace(order, name=m.name, options={**common, **m.options}) for m in attack.plan(attack)]
    return [_step(member, attack_of(estimator, member)) for member in orders]


def _step(order: Order, attack: CatalogueAttack) -> Step:
    options = sorted({"eps", *COMMON_OPTIONS, *attack.recipe.all_options} - {*_NOT_DECISIVE})
    key = repr((attack.name, order.region, [(name, getattr(attack, name)) for name in options]))
    looks = int(attack.looks or getattr(attack, "max_iter", None) or 1)
    rivals = min(getattr(attack, "n_target_classes", 1), max(attack.victim.decision.channels - 1, 1))
    return Step(order, key, looks * rivals * (1 if attack.recipe.access in ("score", "decision") else 2))


class _Rounds:
    """The attacks of one threat set, region and budget, in turn."""

    def __init__(self, evaluator: Evaluator, attempts: list[Attempt], carried: WorstSoFar | None) -> None:
        self.evaluator = evaluator
        self.attempts = attempts
        self.threat, self.region, self.eps = attempts[0].threat_set
        self.is_ball = attempts[0].attack.budget is not None and self._ball is not None
        self.worst = self._begin(carried)
        self.access = "none" if carried is None else carried.access
        self.outcomes: list[Outcome] = []

    @property
    def _ball(self) -> LpBall | None:
        """The ball around the cases; None where the threat set is none."""
        attack = self.attempts[0].attack
        kind, seen = attack.threat_kind, self.evaluator.seen
        if kind is None or kind.norm is None or attack.budget is None:
            return None
        x, mask = self.evaluator.x, seen.mask(self.region)
        where = None if mask is None else torch.from_numpy(mask).expand_as(x)
        ball = kind.threat(x, attack.budget, self.evaluator.estimator.intensity, where, {})
        assert isinstance(ball, LpBall)
        return ball

    def _begin(self, carried: WorstSoFar | None) -> WorstSoFar:
        ball = self._ball
        if ball is None:
            return WorstSoFar(self.evaluator)
        clean = WorstSoFar.of_clean(self.evaluator)
        if carried is None:
            return clean
        # a smaller ball lies in a larger one; the threat itself says so, in the float type of the images
        inside = ball.contains(torch.from_numpy(carried.images))
        carried.take_over(clean, ~inside.numpy())
        return carried

    def run(self, keep_images: bool) -> list[Outcome]:
        """All rows of this budget, the worst case last."""
        for attempt in self.attempts:
            if not attempt.steps:
                self._on_every_case(attempt)
        steps = {key: step for attempt in self.attempts for key, step in attempt.steps.items()}
        for step in sorted(steps.values(), key=lambda step: step.cost):
            owners = [attempt for attempt in self.attempts if step.key in attempt.steps]
            self._take(step, owners)
            for attempt in owners:
                attempt.done.add(step.key)
                if len(attempt.done) == len(attempt.steps):
                    self._finish(attempt)
        self.outcomes.append(self._worst_case(keep_images))
        return self.outcomes

    def _on_every_case(self, attempt: Attempt) -> None:
        made = self.evaluator.craft(attempt.planned, attempt.eps)
        outcome = self.evaluator.judge(attempt.planned, made, keep_images=True)
        if made.recalled:
            outcome.passes, outcome.seconds, outcome.reused = Passes(), 0.0, "replayed"
        every = np.arange(len(self.evaluator.x))
        self.worst.offer(every, outcome, Origin(attempt.planned.label, self.eps), self.evaluator.ranking(outcome))
        self.access = max(self.access, outcome.access, key=NEEDS.index)
        outcome.images = None
        self.outcomes.append(outcome)

    def _take(self, step: Step, owners: list[Attempt]) -> None:
        """Runs one search on the cases that are not at the floor; the first of its owners pays."""
        rows = self.worst.unfinished
        self.access = max(self.access, recipe_of(step.order.name).access, key=NEEDS.index)
        for attempt in owners:
            attempt.attacked = max(attempt.attacked, len(rows))
            attempt.shared |= {owners[0].planned.label} - {attempt.planned.label}
        if not len(rows):
            return
        part = _Part(self.evaluator, rows)
        made = craft(self.evaluator.attacked, step.order, part.seen)
        outcome = part.judge(owners[0].planned, made, keep_images=True)
        found = Origin(owners[0].planned.label, self.eps, step.key)
        self.worst.offer(rows, outcome, found, part.ranking(outcome))
        owners[0].pay(outcome, rows)

    def _finish(self, attempt: Attempt) -> None:
        told = {**self.worst.reused(self.eps, attempt.done), "shared": "+".join(sorted(attempt.shared))}
        facts = {
            **facts_of(attempt.attack), "access": self.access, "passes": attempt.passes, "queries": attempt.queries,
            "seconds": attempt.seconds, "n_attacked": attempt.attacked, "reused": _told(told),
        }  # fmt: skip
        self.outcomes.append(self.worst.outcome(attack=attempt.planned.label, region=self.region, **facts))

    def _worst_case(self, keep_images: bool) -> Outcome:
        rows = self.outcomes
        outcome = self.worst.outcome(
            attack=WORST_CASE, **{**joint_facts(rows), "access": self.access},
            n_attacked=max((row.n_attacked for row in rows if row.n_attacked is not None), default=None),
            reused=_told({"carried": self.worst.reused(self.eps, set())["carried"]}),
        )  # fmt: skip
        outcome.worst_attack = self.worst.found_by(self.eps)
        outcome.images = self.worst.images.copy() if keep_images else None
        self.worst.access = self.access
        return outcome


def _told(counts: dict[str, Any]) -> str:
    return ";".join(f"{name}={count}" for name, count in counts.items() if count)


class _Part(Evaluator):
    """Some cases of an evaluator; their endpoints are not computed."""

    def __init__(self, whole: Evaluator, rows: np.ndarray) -> None:
        vars(self).update(vars(whole))
        some = torch.from_numpy(rows)
        self.x, self.target, self.valid = whole.x[some], whole.target[some], whole.valid[some]
        self.seen = whole.seen.subset(some)

    def _measures(self, diagnosis: Diagnosis, target: Tensor, valid: Tensor) -> dict[str, np.ndarray]:
        return {}

    def _endpoints(self, *given: Any) -> pd.DataFrame:
        return self.clean.endpoints.iloc[:0]
