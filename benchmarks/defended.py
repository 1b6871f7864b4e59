"""Evaluation of defended models: every attack unaware of the defence, and looking through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from medadv.attacks import create, recipe_of
from medadv.benchmarks.crafting import GRAY_BOX, Crafted
from medadv.benchmarks.data.base import Dataset
from medadv.benchmarks.defences import OF_ONE_ATTACK, Defended, Row, frame_of
from medadv.benchmarks.evaluate import Evaluator
from medadv.benchmarks.outcomes import Evaluation, Failure, Outcome, Planned
from medadv.diagnostics import CHECKS, Finding
from medadv.diagnostics.finding import Measured
from medadv.victims import Victim

UNAWARE, ADAPTIVE = "unaware", "adaptive"


class DefendedEvaluator(Evaluator):
    """Judges images by the defended model, and attacks it looking through the defence.

    Args:
        defence: the model as it is deployed.
        data, batch_size, seed, test_cases: as for :class:`~medadv.benchmarks.evaluate.Evaluator`.
    """

    def __init__(self, defence: Defended, data: Dataset, **options: Any) -> None:
        self.defence = defence
        self._view = defence.views[0]
        self._verdicts: list[np.ndarray] = []
        estimator: Any = defence
        super().__init__(estimator, data, **options)

    @property
    def attacked(self) -> Any:
        """The defended model as an attacker sees it who knows the defence."""
        return self._view

    def _logits(self, x: Tensor) -> Tensor:
        logits, verdict = self.defence.output(x, self.batch_size)
        self._verdicts.append(verdict)
        return logits

    def _outcome(self, x_adv: Tensor, clean: Outcome | None, **facts: Any) -> Outcome:
        self._verdicts = []
        outcome = super()._outcome(x_adv, clean, **facts)
        verdict = np.concatenate(self._verdicts)
        outcome.verdict = verdict
        outcome.scores = self.defence.settled(outcome.scores, verdict)
        rows = self._rows(clean or outcome, outcome)
        if clean is None:
            rows += self.defence.clean_rows(self.x, self.target, self.batch_size, self.cases.ids)
        return self._with_rows(outcome, rows)

    def _rows(self, clean: Outcome, adversarial: Outcome) -> list[Row]:
        assert clean.verdict is not None and adversarial.verdict is not None
        before, after = (clean.scores, clean.verdict), (adversarial.scores, adversarial.verdict)
        return self.defence.cohort_rows(before, after, self.cases.ids)

    @staticmethod
    def _with_rows(outcome: Outcome, rows: list[Row]) -> Outcome:
        if rows:
            outcome.endpoints = pd.concat([outcome.endpoints, frame_of(rows)], ignore_index=True)
        return outcome

    def worst_case(self, outcomes: Sequence[Outcome]) -> Outcome:
        worst = super().worst_case(outcomes)
        assert worst.worst_attack is not None
        by_name = {outcome.attack: outcome.verdict for outcome in outcomes}
        picked = [by_name[name][row] for row, name in enumerate(worst.worst_attack)]  # type: ignore[index]
        worst.verdict = np.array(picked)
        return self._with_rows(worst, self._rows(self.clean, worst))

    def through(self, planned: Planned, eps: float | str | None, *, keep_images: bool = False) -> Outcome:
        """The attack on every view of the defended model, per case the worst."""
        outcomes = []
        for number, view in enumerate(self.defence.views):
            self._view = view
            one = replace(planned, title=f"{planned.label} {number}")
            outcomes.append(self.attack(one, eps, keep_images=keep_images))
        worst = outcomes[0] if len(outcomes) == 1 else self.worst_case(outcomes)
        return replace(worst, attack=f"{planned.label} ({ADAPTIVE})", settings=outcomes[0].settings, worst_attack=None)

    def _diagnosed(self) -> tuple[Victim, Victim]:
        return self.defence.differentiable, self.defence.deployed


def adaptable(planned: Planned, defence: Defended) -> bool:
    """Whether an attack can look through a defence: white-box, in a ball, medadv's own, and accepted there."""
    row = recipe_of(planned.name)
    of_its_own = row.threat is not None or row.minimal or "/" in row.name
    if row.access != "white-box" or of_its_own or planned.surrogate is not None or planned.wanted is not None:
        return False
    eps = {} if "eps" in planned.options else {"eps": defence.intensity.budget(max(defence.intensity.widths) / 100).eps}
    try:
        create(planned.name, defence.views[0], **eps, **planned.options)
    except (TypeError, ValueError):
        return False
    return True


def attacks_through(defence: Defended, attacks: Sequence[Planned], wanted: Sequence[str] | None) -> list[Planned]:
    """The attacks of a task that a defence has to stand.

    Args:
        defence: a defended model.
        attacks: of the task.
        wanted: their titles; None: all that can look through the defence.

    Raises:
        ValueError: a title that can't, with the attack's own reason, or none that can.
    """
    fit = [planned for planned in attacks if adaptable(planned, defence)]
    if wanted is None:
        if not fit:
            names = ", ".join(planned.label for planned in attacks)
            raise ValueError(
                f"none of the attacks {names} can look through the defence, and a defence is measured against an "
                "attacker that knows it; add a white-box attack in a ball, such as 'pgd' or 'apgd-ce'."
            )
        return fit
    for title in wanted:
        if title not in [planned.label for planned in fit]:
            raise ValueError(
                f"attack {title!r} can't look through the defence; choose some of "
                f"{', '.join(planned.label for planned in fit) or 'none that the task has'}."
            )
    return [planned for planned in fit if planned.label in wanted]


@dataclass
class DefenceTrials:
    """A defended model, tried with the images of attacks on the undefended one and with attacks that look through it.

    Attributes:
        evaluator: of the defended model.
        attacks: that it has to stand.
        keep_images: keep the adversarial images of every worst case.
        diagnostics: checks of the defended model: ``"basic"``, ``"full"`` or ``"none"``.
    """

    evaluator: DefendedEvaluator
    attacks: Sequence[Planned]
    keep_images: bool = False
    diagnostics: str = "basic"

    def concerned(self, planned: Planned) -> bool:
        """Whether an attack on the undefended model is tried here."""
        return planned.name == "noise" or planned.label in [known.label for known in self.attacks]

    def tried(self, planned: Planned, crafted: Crafted, eps: float | str | None) -> list[Outcome]:
        """Outcomes of one attack: its images on the undefended model shown here, and the same attack adapted.

        Args:
            planned: one of the attacks that concern this model.
            crafted: its images on the undefended model.
            eps: its budget; None: its own.
        """
        keep = self.keep_images
        if planned.name == "noise":
            return [self.evaluator.judge(planned, crafted, keep_images=keep)]
        named = {"attack": f"{planned.label} ({UNAWARE})", "access": GRAY_BOX}
        unaware = self.evaluator.judge(planned, crafted, keep_images=keep, **named)
        return [unaware, self.evaluator.through(planned, eps, keep_images=keep)]

    def evaluation(self, found: Sequence[Outcome], failures: Sequence[Failure] = ()) -> Evaluation:
        """All outcomes, each budget closed by the worst case per threat set, as for undefended models.

        Args:
            found: of :meth:`tried`, in the order of the attacks.
            failures: attacks that raised.
        """
        outcomes = [self.evaluator.clean]
        for group in dict.fromkeys(outcome.threat_set for outcome in found):
            of_group = [outcome for outcome in found if outcome.threat_set == group]
            worst = self.evaluator.worst_case(of_group)
            worst.flags = (*worst.flags, *(f"without-failed={failure.attack}" for failure in failures))
            # cases that nothing turned show the first image tried, so shares of alarms would tell nothing there
            worst.endpoints = worst.endpoints[~worst.endpoints.endpoint.isin(OF_ONE_ATTACK)]
            for outcome in of_group:
                outcome.images = None  # kept once, in the worst case
            outcomes += [*of_group, worst]
        data, cases, segments = self.evaluator.data, self.evaluator.cases, self.evaluator.defence.segments
        unit = self.evaluator.estimator.intensity.unit
        budgets = sorted({outcome.eps for outcome in found if outcome.unit in (None, unit)})
        findings = [*self.evaluator.findings(self.diagnostics, budgets), _weaker(found)]
        return Evaluation(data, cases, segments, outcomes, findings, list(failures))


def _weaker(found: Sequence[Outcome]) -> Finding:
    """An attack that knows more and finds less has not been adapted well enough, and the number is too good."""
    gap = 0.0
    for unaware, adaptive in zip(found, found[1:], strict=False):
        if unaware.attack.endswith(f"({UNAWARE})"):
            gap = max(gap, float(np.nanmean(adaptive.scores) - np.nanmean(unaware.scores)))
    return CHECKS["adaptive"].judge(Measured(gap))
