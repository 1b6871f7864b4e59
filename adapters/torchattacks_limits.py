"""The limits of torchattacks' attacks: refusals with their reason, and options that would fail inside."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from medadv.adapters.torchattacks_table import ENTRIES, Entry
from medadv.attacks.recipes import Recipe
from medadv.decisions import Multiclass
from medadv.names import unknown_name
from medadv.numbers import whole_number
from medadv.victims import Victim

# EAD's early stop looks back every tenth of the iterations
_LEAST = {"max_iterations": 10}
_BOUNDS = {
    "resize_rate": (0.5, 0.99), "diversity_prob": (0.0, 1.0), "p_init": (0.0, 1.0), "gamma": (0.0, 1.0),
    "rho": (0.0, 1.0), "alpha_max": (0.0, 1.0),
}  # fmt: skip


@dataclass(frozen=True)
class TorchRecipe(Recipe):
    """A row of the catalogue made of a row of the table.

    Attributes:
        entry: what torchattacks is right for here.
    """

    entry: Entry = ENTRIES[0]

    def check_supports(self, victim: Victim, norm: float | None, targeted: bool) -> None:
        """Refuses, with the reason, a model or setting this attack is not right for."""
        entry = self.entry
        if entry.refused:
            raise self.refusal("used", entry.refused)
        if not isinstance(victim.decision, Multiclass):
            instead = ("pgd-dice", "apgd-dice") if victim.segments else ("pgd", "apgd-ce")
            raise self.refusal(
                "used on labels that do not exclude each other", "its losses are those of classes that do", *instead
            )
        if victim.segments and "segmentation" not in entry.tasks:
            raise self.refusal("used on segmentations", entry.reason("segmentation"), "pgd-dice", "apgd-dice")
        if (classes := victim.decision.channels) < entry.least_classes:
            raise self.refusal(f"used on {classes} classes", entry.reason("classes"))
        if norm is not None and norm not in self.norms:
            bounds = " and ".join(f"norm {n:g}" for n in self.norms) or "nothing but the intensity range"
            raise self.refusal(f"used with norm {norm:g}", f"it bounds {bounds}; {entry.reason('norm')}")
        if targeted and not entry.targeted:
            raise self.refusal("targeted", entry.reason("targeted"))
        if entry.needs_target and not targeted:
            raise self.refusal("used without targeted=True", entry.reason("targeted"))

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Refuses images ``(N, C, *S)`` of a shape this attack is not right for."""
        entry, (channels, *spatial) = self.entry, shape[1:]
        if len(spatial) not in self.ranks:
            raise self.refusal(f"used on {len(spatial)}D images", entry.reason("3D"))
        if entry.channels is not None and channels != entry.channels:
            raise self.refusal(f"used on {channels} channels", f"its kernel is made for {entry.channels}")
        if entry.square and len(set(spatial)) > 1:
            raise self.refusal(f"used on {' x '.join(map(str, spatial))} images", "it is written for square images")
        if entry.most_values is not None and math.prod(shape[1:]) > entry.most_values:
            raise self.refusal(
                f"used on images of {math.prod(shape[1:])} values",
                f"it compares all pairs of values, which needs more memory than there is beyond {entry.most_values}",
            )

    def refusal(self, what: str, why: str, *instead: str) -> ValueError:
        """The error that says why."""
        return ValueError(f"{self.name} can't be {what}: {why}. Use {' or '.join(instead or self.alternatives)}.")


def checked_option(option: str, value: Any, entry: Entry) -> Any:
    """An option of the type of its default."""
    default = entry.options[option]
    if option in entry.choices:
        if value not in entry.choices[option]:
            raise unknown_name(f"{option} of torchattacks/{entry.name}", value, entry.choices[option])
    elif isinstance(default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"{option}={value!r} must be True or False.")
    elif isinstance(default, int):
        whole_number(option, value, _LEAST.get(option, 1))
    elif isinstance(default, tuple):
        if not isinstance(value, tuple | list) or len(value) != 2:
            raise ValueError(f"{option}={value!r} must be two whole numbers, the least and the greatest.")
        for bound, least in zip(value, (1, value[0]), strict=True):
            whole_number(option, bound, least)
    else:
        least, most = _BOUNDS.get(option, (0.0, math.inf))
        number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if not (number and math.isfinite(value) and least <= value <= most):
            raise ValueError(f"{option}={value!r} must be a finite number from {least:g} to {most:g}.")
    return value
