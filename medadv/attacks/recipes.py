"""What a row of the catalogue is: what an attack is made of, what it is for, and what it accepts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medadv.decisions import Multiclass
from medadv.names import unknown_name
from medadv.problem import ImageTerm
from medadv.search import Search
from medadv.threats import BALL_KINDS, THREATS, ThreatKind
from medadv.victims import Victim

TASKS = ("classification", "segmentation")
DECISIONS = ("multiclass", "multilabel")
ACCESS = ("none", "white-box", "score", "decision", "transfer")
COMMON_OPTIONS = ("norm", "targeted", "batch_size", "verbose", "keep", "seed")
LINF_L2 = (np.inf, 2.0)


@dataclass(frozen=True)
class Recipe:
    """A named attack as data.

    Attributes:
        name: name in the catalogue.
        summary: what it does, in one line.
        objective: name of its objective, ``"auto"`` (soft Dice on voxels, else cross-entropy), or what it pursues in
            words where it does not factor.
        search: builds the search from the attack's parameters; None for attacks with a class of their own.
        search_name: how the table calls it.
        reference: paper id.
        options: parameters it accepts besides the common ones, with their defaults.
        attack: the class, called like :class:`~medadv.attacks.framework.FrameworkAttack`; None: that class.
        tasks: which kinds of models it is for.
        decisions: which decisions it is for.
        norms: balls it searches; empty where the threat is no ball.
        threat: name of a threat that is no ball; None: the ball of the norm.
        image_terms: builds terms of the image alone that are added to the objective.
        keep: default of ``keep``.
        access: what the attacker needs of the model.
        ranks: spatial dimensions it is right for.
        fixed_objective: False if ``objective=`` may replace its objective.
        directed: False if it can't be targeted.
        minimal: True if it looks for the smallest perturbation and needs no ``eps``.
        independent: False if cases of a batch influence each other or share draws.
        alternatives: names of attacks to point to where this one is not right.
    """

    name: str
    summary: str
    objective: str
    search: Callable[[Any], Search] | None
    search_name: str
    reference: str
    options: Mapping[str, Any] = field(default_factory=dict)
    attack: Callable[..., Any] | None = None
    tasks: tuple[str, ...] = TASKS
    decisions: tuple[str, ...] = DECISIONS
    norms: tuple[float, ...] = LINF_L2
    threat: str | None = None
    image_terms: Callable[[Any], Sequence[ImageTerm]] | None = None
    keep: str = "score"
    access: str = "white-box"
    ranks: tuple[int, ...] = (2, 3)
    fixed_objective: bool = True
    directed: bool = True
    minimal: bool = False
    independent: bool = True
    alternatives: tuple[str, ...] = ()

    @property
    def threats(self) -> tuple[ThreatKind, ...]:
        """The kinds of threats it searches."""
        if self.threat is not None:
            return (THREATS[self.threat],)
        return tuple(BALL_KINDS[norm] for norm in self.norms)

    @property
    def all_options(self) -> dict[str, Any]:
        """The options of the attack and of its threat, with their defaults."""
        changeable = {} if self.fixed_objective else {"objective": self.objective}
        of_threat = {} if self.threat is None else dict(THREATS[self.threat].options)
        return {**of_threat, **self.options, **changeable}

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuses a parameter this attack has no use for."""
        own = list(self.all_options)
        for option in options:
            if option not in own:
                error = unknown_name(f"option of {self.name}", option, [*COMMON_OPTIONS, *own])
                raise TypeError(f"{error} It accepts {', '.join([*COMMON_OPTIONS, *own])}.")

    def check_supports(self, victim: Victim, norm: float | None, targeted: bool) -> None:
        """Refuses a model or setting this attack is not right for."""
        task = TASKS[victim.segments]
        kind = DECISIONS[not isinstance(victim.decision, Multiclass)]
        instead = self.alternatives or (("pgd-dice", "apgd-dice") if victim.segments else ("pgd", "apgd-ce"))
        for given, accepted in ((task, self.tasks), (kind, self.decisions)):
            if given not in accepted:
                raise ValueError(
                    f"attack {self.name!r} is for {' and '.join(accepted)}, the model does {task} "
                    f"({'Multiclass' if kind == 'multiclass' else 'Multilabel'}); use {' or '.join(instead)}."
                )
        if norm is not None and norm not in self.norms:
            accepted_norms = " and ".join(map(str, self.norms)) or f"the threat {self.threat!r}, which has no norm"
            raise ValueError(f"attack {self.name!r} is for norm {accepted_norms}, got {norm}.")
        if targeted and not self.directed:
            raise ValueError(f"attack {self.name!r} has no direction and can't be targeted.")
