"""torchattacks' attacks as ART attacks in the unit of the image; what is not right for a model is refused.

torchattacks is an optional extra and imported when an attack is made. ``pip install --no-deps torchattacks==3.5.1``
leaves out its pin of an old requests, which it never imports.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import random
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medadv.adapters.torchattacks_limits import TorchRecipe, checked_option
from medadv.adapters.torchattacks_table import ENTRIES, Entry
from medadv.adapters.unit_range import UnitRangeModel
from medadv.attacks.base import Batch, CatalogueAttack, Solution
from medadv.attacks.recipes import Recipe
from medadv.intensities import Budget
from medadv.names import unknown_name
from medadv.threats.base import per_case
from medadv.victims import ModuleVictim

PREFIX = "torchattacks/"
_FLOAT32 = torch.finfo(torch.float32).eps
_IGNORED = -100  # what torch's cross-entropy leaves out


class TorchAttack(CatalogueAttack):
    """An attack of torchattacks as an ART ``EvasionAttack``, in the unit of the image.

    The model is shown to torchattacks on images mapped to [0, 1] by one affine map. What comes back is added to the
    image in its own precision, so that voxels which were left alone keep their value; checked against the budget;
    brought into the ball to the last bit; and put on the storage grid. Also reached as
    ``medadv.attacks.create("torchattacks/MIFGSM", estimator, eps=...)``.

    Args:
        name: class of torchattacks, such as ``"MIFGSM"``.
        estimator: a medadv estimator with exclusive classes, or a stock ART ``PyTorchClassifier``.
        eps: budget, see :class:`~medadv.attacks.CatalogueAttack`. For CW, DeepFool and EADL1, which look for the
            smallest perturbation: optional; images further away than this are given back as they came.
        options: the class's own parameters. Those in the unit of the image (``alpha``, ``delta``, ``lr`` of SPSA,
            ``std`` of GN, ``noise_sd``, ``theta``) are read like ``eps``; their default is torchattacks' ratio to eps.
            ``targeted, batch_size, norm, seed`` as everywhere; ``seed`` replaces torchattacks' own.

    Raises:
        ImportError: torchattacks is not installed.
        ValueError: what torchattacks does wrong on such a model, with the reason and the attack to use instead.

    Most of these attacks draw for a batch as a whole, so that a case depends on its batch
    (``Recipe.independent``); attacks that go through the cases one by one are run so.

    Example:
        >>> import numpy as np, pytest, torch
        >>> _ = pytest.importorskip("torchattacks")
        >>> from medadv.adapters import MonaiClassifier, TorchAttack
        >>> from medadv.decisions import Multiclass
        >>> from medadv.intensities import Intensity
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
        >>> ct = Intensity(-1024, 3071, unit="HU", window=(-175, 250))
        >>> estimator = MonaiClassifier(net, (1, 4, 4), decision=Multiclass(2), intensity=ct)
        >>> attack = TorchAttack("MIFGSM", estimator, eps="10 HU", alpha="2 HU", steps=4)
        >>> x = np.full((2, 1, 4, 4), 40.0, dtype=np.float32)
        >>> float(np.abs(attack.generate(x, np.array([0, 1])) - x).max()).__round__(3)
        8.0
    """

    def __init__(self, name: str, estimator: Any, *, eps: float | str | None = None, **options: Any) -> None:
        if name not in RECIPES:
            raise unknown_name("attack of torchattacks", name, RECIPES)
        recipe = RECIPES[name]
        self.entry = recipe.entry
        if not self.entry.refused:
            _library()
        super().__init__(estimator, recipe, eps=eps, **options)

    recipe: TorchRecipe

    def _prepare(self) -> None:
        recipe, intensity = self.recipe, self.victim.intensity
        if not isinstance(self.victim, ModuleVictim):
            raise TypeError(
                f"{self.name} needs the whole model as one torch module, got a {type(self.victim).__name__}; use "
                f"{' or '.join(recipe.alternatives)}."
            )
        if len(intensity.lows) > 1:
            raise recipe.refusal(
                "used on channels with a range each", "its budget is one number for all channels after mapping to 0..1"
            )
        if intensity.grid is not None and (self.entry.minimal or self.name.endswith("/FAB")):
            raise recipe.refusal(
                "used on a storage grid", "it stops a hair behind the decision boundary, which rounding would undo"
            )
        if self.keep != "last":
            raise ValueError(f"keep={self.keep!r} is not for {self.name}, which chooses what it returns; leave it out.")
        if getattr(self, "loss", None) == "dlr" and self.victim.decision.channels < 3:
            raise recipe.refusal("used with loss='dlr' on 2 classes", "the ratio of logits needs a third one")
        shape = getattr(self.estimator, "input_shape", None)
        if shape is not None:
            recipe.check_shape((1, *shape))
        self.width = intensity.highs[0] - intensity.lows[0]
        self._parameters = self._read_parameters()

    def _read_parameters(self) -> dict[str, Any]:
        """The parameters as torchattacks wants them: shares of high - low where they have a unit."""
        entry = self.entry
        given = {option: checked_option(option, getattr(self, option), entry) for option in entry.options}
        if "noise_type" in given:
            given["noise_type"] = {"gaussian": "guassian"}.get(given["noise_type"], given["noise_type"])
            given["batch_max"] = max(2048, given["noise_batch_size"])
        if self.budget is not None and not entry.minimal:
            given[entry.eps_name] = self.budget.eps / self.width
        for option, share in {**entry.of_eps, **entry.of_range}.items():
            given[option] = self._in_shares(option, share)
        if {2.0, np.inf} <= set(self.recipe.norms) or entry.takes_classes:
            given["norm"] = "L2" if self.norm == 2 else "Linf"
        if entry.takes_classes:
            given["n_classes"] = self.victim.decision.channels
        return given

    def _in_shares(self, option: str, default: float | None) -> float:
        value = getattr(self, option)
        if value is not None:
            size = self.victim.intensity.budget(value).eps
            if not size:
                raise ValueError(f"{option}={value!r} must be greater than 0.")
            return size / self.width
        if default is None:
            raise TypeError(
                f"{self.name} needs {option}=, the standard deviation of its noise, such as '16/255', a quantity or a "
                "number in data units."
            )
        if option in self.entry.of_range:
            return default
        assert self.budget is not None
        return default * self.budget.eps / self.width

    def _check_images(self, x: Tensor) -> None:
        super()._check_images(x)
        self.recipe.check_shape(tuple(x.shape))
        if self.entry.open_range:
            low, _ = self.victim.intensity.bounds(x)
            fixed = (2 * ((x - low) / self.width).to(torch.float32) - 1).abs() >= 1
            if share := float(fixed.float().mean()):
                raise self.recipe.refusal(
                    f"used on images with {100 * share:.2g} % of their voxels at the ends of the intensity range",
                    "its change of variables can't move them (a wider range can)",
                )

    def _solve(self, batch: Batch) -> Solution:
        if batch.mask is not None:
            raise self.recipe.refusal("held inside a mask", "torchattacks changes the whole image")
        if self.budget is not None and not self.budget.eps:
            return Solution(batch.x)
        shown, queries = batch.x.clone(), torch.zeros(len(batch))
        attacked = batch.valid.view(len(batch), -1).any(1).nonzero()[:, 0]  # a case to be ignored is left alone
        undirected = torch.zeros(len(batch), dtype=torch.bool, device=batch.x.device)
        for rows in attacked.split(1) if self.entry.single else (attacked,):
            if len(rows):
                part = batch.subset(rows)
                moved, blind, asked = self._attack(part)
                shown[rows], undirected[rows], queries[rows.cpu()] = part.x + moved, blind, asked
        found, inside = self._allowed(batch, shown)
        return Solution(found, inside, undirected, queries)

    def _attack(self, batch: Batch) -> tuple[Tensor, Tensor, float]:
        """What torchattacks adds to a batch, cases that had no gradient to follow, and how often each was asked."""
        victim = self.victim
        assert isinstance(victim, ModuleVictim)
        # some attacks call backward(), which would add to the gradients that the user has in the weights
        model = UnitRangeModel(victim, len(batch), positive=self.entry.positive).eval().requires_grad_(False)
        z = model.unit(batch.x)
        labels = torch.where(batch.valid, batch.target, _IGNORED)
        with contextlib.redirect_stdout(io.StringIO()), torch.enable_grad():  # it prints
            z_adv = self._made(model, batch.ids)(z.clone(), labels).detach()
        finite = z_adv.flatten(1).isfinite().all(1)
        moved = torch.where(per_case(finite, z), z_adv - z, torch.zeros_like(z)).to(torch.float64) * self.width
        blind = model.broken | ~finite | (model.faint if self.entry.fades else torch.zeros_like(finite))
        return moved.to(batch.x.dtype), blind, math.ceil(model.rows / len(batch))

    def _made(self, model: UnitRangeModel, ids: list[object]) -> Any:
        """The object of torchattacks, with all random number generators set by (seed, case ids)."""
        digest = hashlib.blake2b(f"{self.seed}/{ids}".encode(), digest_size=4).digest()
        seed = int.from_bytes(digest, "big") % 2**31
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        seeded = {"seed": seed} if self.entry.seeded else {}
        attack = getattr(_library(), self.entry.name)(model, **self._parameters, **seeded)
        attack.set_device(self.victim.device)
        if self.targeted:
            attack.set_mode_targeted_by_label(quiet=True)
        return attack

    def _allowed(self, batch: Batch, shown: Tensor) -> tuple[Tensor, Tensor | None]:
        """The images inside range, grid and ball; more than rounding beyond the ball is an error."""
        intensity, kind = self.victim.intensity, self.threat_kind
        if self.budget is None or kind is None:
            low, high = intensity.bounds(shown)
            least, most = intensity.snap(low, "up"), intensity.snap(high, "down")
            inner = intensity.snap(shown).maximum(least).minimum(most)
            return torch.where(shown == batch.x, batch.x, inner), None
        threat = kind.threat(batch.x, self.budget, intensity, None, {})
        distance = threat.distance(shown)
        if self.entry.minimal:
            shown = torch.where(per_case(distance <= self.budget.eps, shown), shown, batch.x)
        elif bool((distance > self._reach(self.budget, batch.x)).any()):
            raise RuntimeError(
                f"{self.name} moved an image by {float(distance.max()):g}, more than eps={self.budget.eps:g}; this is "
                "a defect of torchattacks that medadv does not know, please report it."
            )
        found = threat.apply(threat.project(shown - batch.x))
        return found, threat.contains(found)

    def _reach(self, budget: Budget, x: Tensor) -> float:
        """The budget and what rounding in [0, 1] may add."""
        voxels = 1.0 if self.norm == np.inf else math.sqrt(x[0].numel())
        return budget.eps * (1 + 1e-6) + 2 * _FLOAT32 * self.width * voxels


def _library() -> ModuleType:
    """torchattacks, or how to install it."""
    try:
        import torchattacks
    except ImportError as error:
        raise ImportError(
            "torchattacks is not installed; run: python -m pip install --no-deps torchattacks==3.5.1 (--no-deps leaves "
            "out its pin of requests 2.25, which it never imports)."
        ) from error
    return torchattacks


def _create(estimator: Any, recipe: Recipe, *, eps: float | str | None = None, **options: Any) -> TorchAttack:
    return TorchAttack(recipe.name.removeprefix(PREFIX), estimator, eps=eps, **options)


def _recipe(entry: Entry) -> TorchRecipe:
    with_unit = dict.fromkeys([*entry.of_eps, *entry.of_range])
    return TorchRecipe(
        PREFIX + entry.name,
        f"refused: {entry.refused}" if entry.refused else entry.summary,
        entry.objective,
        None,
        "torchattacks",
        entry.reference,
        {**entry.options, **with_unit},
        _create,
        tasks=entry.tasks,
        decisions=("multiclass",),
        norms=entry.norms,
        keep="last",
        access=entry.access,
        ranks=entry.ranks,
        directed=entry.targeted,
        minimal=entry.minimal,
        independent=entry.single or not entry.draws,
        alternatives=entry.instead,
        entry=entry,
    )


RECIPES: dict[str, TorchRecipe] = {entry.name: _recipe(entry) for entry in ENTRIES}


def rows() -> list[Recipe]:
    """The rows torchattacks adds to the catalogue (entry point ``medadv.attacks``)."""
    return list(RECIPES.values())
