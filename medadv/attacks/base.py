"""The one attack class: objective x threat x search, with ART's interface and the guarantees checked."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from torch import Tensor
from tqdm.auto import tqdm

from medadv.attacks.recipes import COMMON_OPTIONS, Recipe
from medadv.decisions import as_plain_tensor
from medadv.objectives import Objective, make_objective
from medadv.problem import KEEP, Problem
from medadv.search import Search
from medadv.threats import BALLS, LpBall
from medadv.victims import Passes, Victim, victim_of


class FrameworkAttack(EvasionAttack):
    """An attack of the catalogue as an ART ``EvasionAttack``.

    Made by :func:`medadv.attacks.create`; the options an attack accepts are in :func:`medadv.attacks.catalogue`.

    Args:
        estimator: a medadv estimator, or a stock ART ``PyTorchClassifier``.
        recipe: the row of the catalogue.
        eps: budget: ``"8/255"`` of the window, a quantity such as ``"10 HU"``, or a number in data units.
        norm: ``numpy.inf`` or 2.
        targeted: True: ``y`` is the diagnosis the attacker wants.
        batch_size: cases attacked at once; never changes what a case gets, only speed and memory.
        verbose: progress bar with the time left (only on a terminal).
        keep: ``"score"`` (evaluation: worst hard score, ties by loss), ``"loss"`` (transfer) or ``"last"`` (training).
        seed: of all random draws; each case draws from (seed, case id).
        options: what else the recipe accepts: ``max_iter``, ``eps_step``, ``num_random_init``, ``decay``,
            ``objective``.

    Attributes:
        passes: forward and backward passes of the last ``generate`` or ``perturb``.

    Example:
        >>> import numpy as np, torch
        >>> from medadv.adapters import MonaiClassifier
        >>> from medadv.attacks import create
        >>> from medadv.decisions import Multiclass
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
        >>> estimator = MonaiClassifier(net, (1, 4, 4), decision=Multiclass(2))
        >>> attack = create("pgd", estimator, eps="8/255", max_iter=5)
        >>> x = np.full((2, 1, 4, 4), 0.5, dtype=np.float32)
        >>> x_adv = attack.generate(x, y=np.array([0, 1]))
        >>> bool(np.abs(x_adv - x).max() <= 8 / 255), attack.passes
        (True, Passes(forward=6, backward=5))
    """

    attack_params = [
        *EvasionAttack.attack_params,
        "eps",
        *COMMON_OPTIONS,
        "eps_step",
        "max_iter",
        "num_random_init",
        "decay",
        "objective",
    ]
    _estimator_requirements = ()

    eps_step: float | str | None
    max_iter: int
    num_random_init: int
    decay: float

    def __init__(
        self,
        estimator: Any,
        recipe: Recipe,
        *,
        eps: float | str,
        norm: float | str = np.inf,
        targeted: bool = False,
        batch_size: int = 32,
        verbose: bool = False,
        keep: str | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        self.victim: Victim = victim_of(estimator)
        super().__init__(estimator=estimator)
        self.recipe = recipe
        self.eps = eps
        self.norm = _norm(norm)
        self.targeted = targeted
        self.batch_size = batch_size
        self.verbose = verbose
        self.keep = recipe.keep if keep is None else keep
        self.seed = seed
        recipe.check_options(options)
        settings: dict[str, Any] = {"objective": recipe.objective, **recipe.options, **options}
        for name, value in settings.items():
            setattr(self, name, value)
        self.passes = Passes()
        self._check_params()

    @property
    def name(self) -> str:
        """Name in the catalogue."""
        return self.recipe.name

    def _check_params(self) -> None:
        super()._check_params()
        self.recipe.check_supports(self.victim, self.norm, self.targeted)
        self.budget = self.victim.intensity.budget(self.eps)
        self._objective: Objective = make_objective(self.objective, self.victim.decision, targeted=self.targeted)
        if self._objective.voxels_only and not self.victim.segments:
            raise ValueError(
                f"objective {self.objective!r} compares voxels, but this model gives one diagnosis per image; "
                "use 'ce' or 'margin'."
            )
        if self.keep not in KEEP:
            raise ValueError(f"keep={self.keep!r} is unknown; choose one of {', '.join(map(repr, KEEP))}.")
        for option, least in (("batch_size", 1), ("max_iter", 1), ("num_random_init", 0)):
            value = getattr(self, option, least)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
                raise ValueError(f"{option}={value!r} must be a whole number of at least {least}.")
        if self.keep == "last" and getattr(self, "num_random_init", 0) > 1:
            raise ValueError(
                "keep='last' has one end point and can't use several random starts; set num_random_init=1 or "
                "keep='score'."
            )
        if isinstance(self.seed, bool) or not isinstance(self.seed, int | np.integer):
            raise ValueError(f"seed={self.seed!r} must be a whole number.")
        if getattr(self, "decay", 0.0) < 0:
            raise ValueError(f"decay={self.decay!r} must not be negative.")
        self._search: Search = self.recipe.search(self)

    @property
    def step_size(self) -> float:
        """``eps_step`` in data units; a quarter of ``eps`` where it was not given."""
        given = getattr(self, "eps_step", None)
        return self.budget.eps / 4 if given is None else self.victim.intensity.budget(given).eps

    def generate(self, x: np.ndarray, y: np.ndarray | None = None, **kwargs: Any) -> np.ndarray:
        """Adversarial counterparts of images.

        Args:
            x: images ``(N, C, *S)``, float32 or float64, in the units of the estimator's intensity.
            y: reference (targeted: the diagnosis wanted) in any usual form; None: the model's own diagnosis.
            mask: where the image may change, broadcastable to ``x``; default: everywhere.
            ids: one id per case for its random draws; default: 0 to N - 1.

        Returns:
            Array of the same shape and dtype.

        Raises:
            ValueError: images, reference or mask that can't be right; the message says why.
        """
        mask, ids = kwargs.pop("mask", None), kwargs.pop("ids", None)
        if kwargs:
            raise TypeError(f"generate does not take {', '.join(kwargs)}; it takes x, y, mask and ids.")
        if isinstance(y, np.ndarray) and y.dtype == object and y.ndim == 0:
            y = None  # ART's input filter wraps a positional None
        if not np.issubdtype(np.asarray(x).dtype, np.floating):
            raise ValueError(f"images have dtype {np.asarray(x).dtype}; convert them to float32 and keep their units.")
        tensor = torch.from_numpy(np.ascontiguousarray(x)).to(self.victim.device)
        return self.perturb(tensor, y, mask, ids=ids).cpu().numpy()

    def perturb(self, x: Tensor, y: Any = None, mask: Any = None, *, ids: Sequence[object] | None = None) -> Tensor:
        """:meth:`generate` on tensors without a numpy round trip; type (also MetaTensor), dtype and device are kept."""
        plain = as_plain_tensor(x)
        self._check_images(plain)
        region = None if mask is None else _region(mask, plain)
        names = list(range(len(plain))) if ids is None else list(ids)
        if len(names) != len(plain):
            raise ValueError(f"{len(names)} ids for {len(plain)} images; give one per case.")
        before = self.victim.passes.copy()
        with self.victim.attacked():
            target, valid = self._reference(plain, y)
            adversarial = torch.empty_like(plain)
            undirected: list[object] = []
            for rows in tqdm(
                torch.arange(len(plain)).split(self.batch_size),
                desc=self.name,
                disable=not (self.verbose and sys.stderr.isatty()),
            ):
                ball = self._ball(plain[rows], None if region is None else region[rows])
                problem = Problem(self.victim, self._objective, ball, target[rows], valid[rows], keep=self.keep)
                found = self._search.run(problem, [names[i] for i in rows])
                self._verify(ball, found)
                adversarial[rows] = found
                undirected += [names[i] for i in rows[problem.undirected.cpu()]]
        self.passes = self.victim.passes - before
        if undirected:
            warnings.warn(
                f"{self.name}: the gradient of {len(undirected)} of {len(plain)} cases was NaN or infinite, so they "
                f"did not move there and only look robust: {', '.join(map(str, undirected[:10]))}.",
                stacklevel=2,
            )
        if type(x) is Tensor:
            return adversarial
        kept = x.detach().clone()
        kept.copy_(adversarial)
        return kept

    def _ball(self, x: Tensor, mask: Tensor | None) -> LpBall:
        return BALLS[self.norm](x, self.budget, self.victim.intensity, mask)

    def _check_images(self, x: Tensor) -> None:
        if x.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"images have dtype {x.dtype}; convert them to float32 or float64 and keep their units.")
        if x.ndim not in (4, 5) or not x.numel():
            raise ValueError(
                f"images have shape {tuple(x.shape)}; give (N, C, H, W) or (N, C, H, W, D) with at least one case."
            )
        if x.device != self.victim.device:
            raise ValueError(f"images are on {x.device}, the model on {self.victim.device}; move one of them.")
        check_shape = getattr(self.estimator, "check_image_shape", None)
        if check_shape is not None:
            check_shape(tuple(x.shape))
        self.victim.intensity.check(x)

    def _reference(self, x: Tensor, y: Any) -> tuple[Tensor, Tensor]:
        spatial = tuple(x.shape[2:]) if self.victim.segments else ()
        if y is None:
            if self.targeted:
                raise ValueError("a targeted attack needs y, the diagnosis the attacker wants; none was given.")
            predicted = [self.victim.decision.harden(self.victim.logits(part)) for part in x.split(self.batch_size)]
            return self.victim.decision.canonical(torch.cat(predicted), spatial)
        target, valid = self.victim.decision.canonical(y, spatial, device=x.device)
        if len(target) != len(x):
            raise ValueError(f"{len(target)} references for {len(x)} images; give one per case.")
        return target, valid

    @staticmethod
    def _verify(ball: LpBall, found: Tensor) -> None:
        if not bool(torch.isfinite(found).all()) or not bool(ball.contains(found).all()):
            raise RuntimeError(
                "the search returned an image outside the threat set; this is a defect of medadv, please report it."
            )


def _norm(norm: float | str) -> float:
    value = np.inf if norm in ("inf", "linf", "Linf", np.inf) else 2.0 if norm in ("2", "l2", "L2", 2) else None
    if value is None:
        raise ValueError(f"norm={norm!r} is not supported; choose numpy.inf or 2.")
    return value


def _region(mask: Any, x: Tensor) -> Tensor:
    """The mask as bool like ``x``."""
    tensor = as_plain_tensor(mask).to(x.device)
    if tensor.dtype != torch.bool and not bool(((tensor == 0) | (tensor == 1)).all()):
        raise ValueError("mask holds values other than 0 and 1; give where the image may change as bool.")
    fits = tensor.ndim == x.ndim and all(m in (1, s) for m, s in zip(tensor.shape, x.shape, strict=True))
    if not fits:
        raise ValueError(
            f"mask has shape {tuple(tensor.shape)}, the images {tuple(x.shape)}; give (N, C, *S), with 1 where it is "
            "shared."
        )
    return tensor.to(torch.bool).expand(x.shape)
