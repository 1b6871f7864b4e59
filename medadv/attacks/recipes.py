"""What a row of the catalogue is: an objective, a search, and what they are for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medadv.decisions import Multiclass
from medadv.names import unknown_name
from medadv.search import Search
from medadv.victims import Victim

TASKS = ("classification", "segmentation")
COMMON_OPTIONS = ("norm", "targeted", "batch_size", "verbose", "keep", "seed")


@dataclass(frozen=True)
class Recipe:
    """A named attack as data.

    Attributes:
        name: name in the catalogue.
        summary: what it does, in one line.
        objective: name of its objective.
        search: builds the search from the attack's parameters.
        search_name: how the table calls it.
        reference: paper id.
        tasks: which kinds of models it is for.
        norms: balls it searches.
        options: parameters it accepts besides the common ones, with their defaults.
        keep: default of ``keep``.
        access: what the attacker needs of the model.
        ranks: spatial dimensions it is right for.
        fixed_objective: False if ``objective=`` may replace its objective.
        directed: False if it can't be targeted.
    """

    name: str
    summary: str
    objective: str
    search: Callable[[Any], Search]
    search_name: str
    reference: str
    options: Mapping[str, Any] = field(default_factory=dict)
    tasks: tuple[str, ...] = TASKS
    norms: tuple[float, ...] = (np.inf, 2.0)
    keep: str = "score"
    access: str = "white-box"
    ranks: tuple[int, ...] = (2, 3)
    fixed_objective: bool = True
    directed: bool = True

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuses a parameter this attack has no use for."""
        own = [*self.options, *([] if self.fixed_objective else ["objective"])]
        for option in options:
            if option not in own:
                error = unknown_name(f"option of {self.name}", option, [*COMMON_OPTIONS, *own])
                raise TypeError(f"{error} It accepts {', '.join([*COMMON_OPTIONS, *own])}.")

    def check_supports(self, victim: Victim, norm: float, targeted: bool) -> None:
        """Refuses a model or setting this attack is not right for."""
        task = "segmentation" if victim.segments else "classification"
        if task not in self.tasks:
            kind = "Multiclass" if isinstance(victim.decision, Multiclass) else "Multilabel"
            raise ValueError(
                f"attack {self.name!r} is for {' and '.join(self.tasks)}, the model does {task} ({kind}); use "
                f"{'pgd-dice or apgd-dice' if victim.segments else 'pgd or apgd-ce'}."
            )
        if norm not in self.norms:
            raise ValueError(f"attack {self.name!r} is for norm {' and '.join(map(str, self.norms))}, got {norm}.")
        if targeted and not self.directed:
            raise ValueError(f"attack {self.name!r} has no direction and can't be targeted.")
