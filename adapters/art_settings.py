"""Settings of ART's attacks: what a user may set, checked, in ART's own names and units."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import art.attacks.evasion as evasion
import numpy as np

from medadv.adapters.art_table import ART_ROWS, ART_TABLE, VIEWED, ArtRow, kind_of, options_of, parameters_of
from medadv.adapters.art_views import Blank, UnitRange, as_art_classifier, layer_in
from medadv.attacks.base import CatalogueAttack
from medadv.attacks.recipes import Recipe
from medadv.victims import ModuleVictim, victim_of

# not inside a universal attack: these need probabilities, or take labels for targets
_NO_INNER = ("vat", "simba", "newtonfool", "jsma")


class ArtSettings(CatalogueAttack):
    """The parameters of one of ART's attacks: refused where they can't be right, translated where they can.

    Args:
        estimator, recipe, targeted, settings: see :class:`~medadv.adapters.art_attacks.ArtAttack`.
    """

    victim: Any
    guide: Any = None
    attacker: str
    attacker_params: Mapping[str, Any] | None
    dice_threshold: float = 0.5

    def __init__(self, estimator: Any, recipe: Recipe, *, targeted: bool = False, **settings: Any) -> None:
        self.row: ArtRow = ART_ROWS[recipe.name]
        victim = victim_of(estimator)
        if not isinstance(victim, ModuleVictim):
            raise TypeError(f"{recipe.name} needs a model that is one torch module, got {type(victim).__name__}.")
        self._kind = kind_of(victim)
        self._shape: tuple[int, ...] | None = getattr(estimator, "input_shape", None)
        self.row.check(recipe.name, self._kind, None if self._shape is None else len(self._shape) - 1, targeted)
        if "dice_threshold" in settings and not victim.segments:
            raise TypeError(f"{recipe.name}: dice_threshold is for segmenters; leave it out.")
        super().__init__(estimator, recipe, targeted=targeted, **settings)

    def _prepare(self) -> None:
        row = self.row
        if self.keep == "loss":
            raise ValueError(f"{self.name} returns one image, whose loss ART does not tell; keep='score' or 'last'.")
        for package in row.needs:
            if importlib.util.find_spec(package) is None:
                raise ImportError(f"ART's {row.art} imports {package} without declaring it; pip install {package}.")
        if row.guided and self.guide is None:
            raise TypeError(f"{self.name} needs guide=, the images whose features are imitated, (1 or N, C, *S).")
        if not 0 < self.dice_threshold <= 1:
            raise ValueError(f"dice_threshold={self.dice_threshold} must be a Dice above 0 and at most 1.")
        for option, why in row.dense_refusals.items() if self._dense else ():
            if getattr(self, option):
                raise ValueError(f"{self.name}: {why}, and this model is none; leave {option} out or use 'pgd'.")
        if getattr(self, "loss_type", None) == "difference_logits_ratio" and self._classes < 3:
            raise ValueError(f"{self.name}: the logits ratio needs three classes, ART sees two; leave loss_type out.")
        self._unit = UnitRange(self.victim.intensity, -0.5 if row.centred else 0.0)
        self._width = self._one_width() if self.budget is not None else 1.0
        if self._shape is not None and not self._nothing_allowed:  # ART checks parameters when an attack is built
            self._check_flat(tuple(self._shape))
            blank = Blank(self._classes)
            self._build(as_art_classifier(blank, tuple(self._shape), self._classes, self._unit, soft=row.soft))

    def _read_budget(self) -> Any:
        if self.row.budget is None and self.eps is not None:
            raise TypeError(f"attack {self.name!r} looks for a small perturbation and has no budget; leave eps out.")
        return super()._read_budget()

    @property
    def _dense(self) -> bool:
        """True if a model that is no classifier in ART's sense is attacked as it is."""
        return self.row.dense and self._kind in VIEWED

    @property
    def _classes(self) -> int:
        """How many classes ART sees."""
        return 2 if self._kind in VIEWED else self.victim.decision.channels

    @property
    def _nothing_allowed(self) -> bool:
        return self.budget is not None and self.budget.eps == 0

    def _check_flat(self, shape: tuple[int, ...]) -> None:
        for option, value in self.row.flat.items():
            if getattr(self, option) == value and (len(shape) != 3 or shape[1] != shape[2]):
                raise ValueError(
                    f"{self.name}: {option}={value!r} is right for square 2D images only, got {shape}; use 'simba-dct'."
                )

    def _one_width(self) -> float:
        """What ART's range of 1 is in the unit of the budget, the same for every channel."""
        assert self.budget is not None
        low, high = np.array(self.victim.intensity.lows), np.array(self.victim.intensity.highs)
        widths = (high - low) / np.array(self.budget.weights or 1.0)
        if not np.allclose(widths, widths[0], rtol=1e-9):
            raise ValueError(
                f"{self.name}: eps={self.eps!r} is another share of the range in each channel, and ART knows one eps; "
                "give a fraction such as '8/255'."
            )
        return float(widths[0])

    def _parameters(self) -> dict[str, Any]:
        """What ART's class is called with: its own names, for images in a range of 1."""
        row, known = self.row, parameters_of(self.row)
        values = {name: getattr(self, name) for name in options_of(row) if name not in ("guide", "dice_threshold")}
        if row.budget is not None:
            assert self.budget is not None
            values[row.budget] = self.budget.eps / self._width
            for name in ("eps_step", "step_size"):
                if name in values:
                    values[name] = self._step(values[name])
        shared = {"norm": self.norm, "targeted": self.targeted, "verbose": False}
        values.update({name: value for name, value in shared.items() if name in known})
        if "batch_size" in known and not row.universal:
            values["batch_size"] = 1
        return values

    def _step(self, given: float | str | None) -> float:
        assert self.threat_kind is not None and self.budget is not None
        if given is None:
            return self.row.first_step * self.budget.eps / self._width
        return self.threat_kind.budget(given, self.victim.intensity).eps / self._width

    def _build(self, estimator: Any) -> Any:
        values = self._parameters()
        if self.row.slices:
            steps = {name: values.pop(name) for name in ("eps", "eps_step", "max_iter")}
            values["attacker"] = evasion.ProjectedGradientDescent(estimator, **steps, verbose=False)
        if self.row.universal:
            values["attacker_params"] = self._inner_parameters()
        if self.row.art == "ZooAttack":
            values["use_resize"] = False  # ART resizes the two axes of an image
        if self.row.guided:
            values["layer"] = layer_in(estimator, getattr(self.estimator, "network", None), values["layer"])
        attack = getattr(evasion, self.row.art)(estimator, **values)
        for inner in getattr(attack, "attacks", ()):
            inner.verbose = False
        return attack

    def _inner_parameters(self) -> dict[str, Any]:
        """Parameters of the attack inside a universal one: quiet, and led to the target where there is one."""
        paths = getattr(evasion, self.row.art).attacks_dict
        names = [name for name, path in paths.items() if name not in _NO_INNER]
        if self.attacker not in names:
            raise ValueError(f"{self.name}: attacker={self.attacker!r} must be one of {', '.join(map(repr, names))}.")
        known = parameters_of(ART_TABLE[paths[self.attacker].rsplit(".", 1)[1]])
        quiet = {"verbose": False} if "verbose" in known else {}
        return {**quiet, **(self.attacker_params or {}), **({"targeted": True} if self.targeted else {})}
