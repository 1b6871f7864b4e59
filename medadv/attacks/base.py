"""What every attack of the catalogue shares: ART's interface, checked input, batches, and the guarantees verified."""

from __future__ import annotations

import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from art.attacks.attack import EvasionAttack
from torch import Tensor
from tqdm.auto import tqdm

from medadv.attacks.recipes import COMMON_OPTIONS, Recipe
from medadv.decisions import as_plain_tensor
from medadv.intensities import Budget
from medadv.numbers import whole_number
from medadv.objectives.evasion import plain_of
from medadv.problem import KEEP
from medadv.threats import BALL_KINDS, ThreatKind
from medadv.victims import Passes, Victim, logits_in, victim_of

# options that are whole numbers, with the least value of each
WHOLE_NUMBERS = {"batch_size": 1, "max_iter": 1, "num_random_init": 0, "block": 2}


@dataclass(frozen=True)
class Batch:
    """Cases that are attacked at once.

    Attributes:
        x: images ``(N, C, *S)``.
        target: canonical reference, or the diagnosis wanted.
        valid: where it counts.
        mask: bool like ``x``: where the image may change; None: everywhere.
        ids: one id per case.
    """

    x: Tensor
    target: Tensor
    valid: Tensor
    mask: Tensor | None
    ids: list[object]

    def __len__(self) -> int:
        return len(self.x)

    def subset(self, rows: Tensor) -> Batch:
        """Some of the cases."""
        mask = None if self.mask is None else self.mask[rows]
        return Batch(self.x[rows], self.target[rows], self.valid[rows], mask, [self.ids[i] for i in rows.tolist()])


def joined(batches: Sequence[Batch]) -> Batch:
    """All cases as one batch."""
    masks = [batch.mask for batch in batches if batch.mask is not None]
    return Batch(
        torch.cat([batch.x for batch in batches]),
        torch.cat([batch.target for batch in batches]),
        torch.cat([batch.valid for batch in batches]),
        torch.cat(masks) if masks else None,
        [case for batch in batches for case in batch.ids],
    )


@dataclass
class Solution:
    """What an attack found for a batch.

    Attributes:
        x: adversarial images like the batch's.
        inside: which of them are in the threat set, ``(N,)`` bool, judged by the threat itself.
        undirected: cases whose gradient was not finite at some step, ``(N,)`` bool.
        queries: how often the model was asked about each case, ``(N,)``.
        reference: target and valid that belong to the images, where a threat moved them; None: the batch's.
        details: further values per case, ``(N,)``, kept as ``attack.details``.
    """

    x: Tensor
    inside: Tensor | None = None
    undirected: Tensor | None = None
    queries: Tensor | None = None
    details: dict[str, Tensor] = field(default_factory=dict)
    reference: tuple[Tensor, Tensor] | None = None


class CatalogueAttack(EvasionAttack, ABC):
    """An attack of the catalogue as an ART ``EvasionAttack``: what all of them share.

    Made by :func:`medadv.attacks.create`; the options an attack accepts are in :func:`medadv.attacks.catalogue`.
    A subclass says in :meth:`_solve` how one batch is attacked.

    Args:
        estimator: a medadv estimator, or a stock ART ``PyTorchClassifier``.
        recipe: the row of the catalogue.
        eps: budget: ``"8/255"`` of the window, a quantity such as ``"10 HU"``, or a number in data units; for threats
            that are no balls, in the unit the catalogue names. None: the threat's default; attacks that look for the
            smallest perturbation need none.
        norm: ``numpy.inf``, 2 or 1; None: the first that the attack is for.
        targeted: True: ``y`` is the diagnosis the attacker wants.
        batch_size: cases attacked at once; never changes what a case gets, only speed and memory.
        verbose: progress bar with the time left (only on a terminal).
        keep: ``"score"`` (evaluation: worst hard score, ties by loss), ``"loss"`` (transfer) or ``"last"`` (training).
        seed: of all random draws; each case draws from (seed, case id).
        options: what else the recipe accepts.

    Attributes:
        passes: forward and backward passes of the last ``generate`` or ``perturb``.
        queries: how often the model was asked about each case of it, ``(N,)`` int64.
        details: further values per case of it, by name, ``(N,)``.
        reference: canonical target and valid to score its images against: ``y``, but where the threat moves anatomy or
            covers it, moved and without what is covered; None before the first run.
    """

    attack_params = [*EvasionAttack.attack_params, "eps", *COMMON_OPTIONS]
    _estimator_requirements = ()
    # whether success is its objective's, so that the detector of a model can become a part of it
    knows_detectors = True

    budget: Budget | None
    norm: Any
    # the problem at work, where an attack has one
    running: Any = None

    def __init__(
        self,
        estimator: Any,
        recipe: Recipe,
        *,
        eps: float | str | None = None,
        norm: float | str | None = None,
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
        self.norm = norm if norm is not None else recipe.norms[0] if recipe.norms else None
        self.targeted = targeted
        self.batch_size = batch_size
        self.verbose = verbose
        self.keep = recipe.keep if keep is None else keep
        self.seed = seed
        recipe.check_options(options)
        settings: dict[str, Any] = {"objective": recipe.objective, **recipe.all_options, **options}
        for name, value in settings.items():
            setattr(self, name, value)
        self.attack_params = [*type(self).attack_params, *recipe.all_options]
        self.passes = Passes()
        self.queries = np.zeros(0, dtype=np.int64)
        self.details: dict[str, np.ndarray] = {}
        self.reference: tuple[np.ndarray, np.ndarray] | None = None
        self._check_params()

    @property
    def name(self) -> str:
        """Name in the catalogue."""
        return self.recipe.name

    @property
    def threat_kind(self) -> ThreatKind | None:
        """The kind of threat that is searched; None where the attack bounds nothing."""
        if self.recipe.threat is not None:
            return self.recipe.threats[0]
        return None if self.norm is None else BALL_KINDS[self.norm]

    def _check_params(self) -> None:
        super()._check_params()
        self.norm = None if self.norm is None else _norm(self.norm)
        self.recipe.check_supports(self.victim, self.norm, self.targeted)
        if not self.knows_detectors and plain_of(self.victim.decision) is not self.victim.decision:
            raise TypeError(
                f"attack {self.name!r} does not know the detector of this model; use an attack whose objective the "
                "detector becomes a part of, such as 'apgd-margin', 'pgd' or 'square'."
            )
        self.budget = self._read_budget()
        if self.keep not in KEEP:
            raise ValueError(f"keep={self.keep!r} is unknown; choose one of {', '.join(map(repr, KEEP))}.")
        for option, least in WHOLE_NUMBERS.items():
            if hasattr(self, option):
                whole_number(option, getattr(self, option), least)
        whole_number("seed", self.seed, None)
        self._prepare()

    def _read_budget(self) -> Budget | None:
        kind = self.threat_kind
        eps = kind.eps if self.eps is None and kind is not None else self.eps
        if eps is None:
            if self.recipe.minimal or kind is None:
                return None
            raise TypeError(f"attack {self.name!r} needs eps=, such as '8/255', a quantity or a number in data units.")
        if kind is None:
            raise TypeError(f"attack {self.name!r} has no budget; leave eps out.")
        return kind.budget(eps, self.victim.intensity)

    @property
    def looks(self) -> int | None:
        """How often a batch is looked at, at most; None where that is not known beforehand."""
        return None

    def _prepare(self) -> None:
        """What a subclass builds from its checked parameters."""

    @abstractmethod
    def _solve(self, batch: Batch) -> Solution:
        """Attacks one batch."""

    def _solve_all(self, batches: Sequence[Batch]) -> Iterable[Solution]:
        """Attacks all batches, one after the other; attacks of a whole data set see all of them here."""
        for batch in tqdm(batches, desc=self.name, disable=not (self.verbose and sys.stderr.isatty())):
            yield self._solve(batch)

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
        before = self.victim.passes.copy()
        with self.victim.attacked():
            batches = self._batches(plain, y, mask, ids)
            adversarial = torch.cat(self._collect(batches))
        self.passes = self.victim.passes - before
        if type(x) is Tensor:
            return adversarial
        kept = x.detach().clone()
        kept.copy_(adversarial)
        return kept

    def _batches(self, x: Tensor, y: Any, mask: Any, ids: Sequence[object] | None) -> list[Batch]:
        """Checked input, in batches."""
        self._check_images(x)
        region = None if mask is None else _region(mask, x)
        names: list[object] = list(range(len(x))) if ids is None else list(ids)
        if len(names) != len(x):
            raise ValueError(f"{len(names)} ids for {len(x)} images; give one per case.")
        target, valid = self._reference(x, y)
        whole = Batch(x, target, valid, region, names)
        if len(x) <= self.batch_size:  # a subset is a copy, which a whole volume can do without
            return [whole]
        return [whole.subset(rows) for rows in torch.arange(len(x)).split(self.batch_size)]

    def _collect(self, batches: list[Batch]) -> list[Tensor]:
        """Runs the attack, verifies what it returns and gathers what is told about each case."""
        images, queries, undirected, references = [], [], [], []
        details: dict[str, list[Tensor]] = {}
        for batch, solution in zip(batches, self._solve_all(batches)):
            self._verify(batch, solution)
            images.append(solution.x)
            references.append(solution.reference or (batch.target, batch.valid))
            counted = torch.zeros(len(batch)) if solution.queries is None else solution.queries
            queries.append(counted.to(torch.int64).cpu())
            if solution.undirected is not None:
                undirected += [batch.ids[i] for i in solution.undirected.nonzero()[:, 0].tolist()]
            for name, values in solution.details.items():
                details.setdefault(name, []).append(values.cpu())
        self.queries = torch.cat(queries).numpy()
        self.details = {name: torch.cat(values).numpy() for name, values in details.items()}
        target, valid = (torch.cat(parts).cpu().numpy() for parts in zip(*references, strict=True))
        self.reference = (target, valid)
        if undirected:
            warnings.warn(
                f"{self.name}: the gradient of {len(undirected)} of {len(self.queries)} cases was NaN or infinite, so "
                f"they did not move there and only look robust: {', '.join(map(str, undirected[:10]))}.",
                stacklevel=4,
            )
        return images

    def _verify(self, batch: Batch, solution: Solution) -> None:
        """The guarantees on what is returned: finite, in range, unchanged outside the mask, in the threat set."""
        found = solution.x
        low, high = self.victim.intensity.bounds(found)
        right = found.shape == batch.x.shape and found.dtype == batch.x.dtype
        right = right and bool(torch.minimum(found - low, high - found).amin() >= 0)  # False also for NaN
        right = right and (batch.mask is None or bool((found == batch.x)[~batch.mask].all()))
        if not right or (solution.inside is not None and not bool(solution.inside.all())):
            raise RuntimeError(
                f"{self.name} returned an image outside the threat set; this is a defect of medadv, please report it."
            )

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
            predicted = [
                self.victim.decision.harden(logits_in(self.victim.logits(part))) for part in x.split(self.batch_size)
            ]
            return self.victim.decision.canonical(torch.cat(predicted), spatial)
        target, valid = self.victim.decision.canonical(y, spatial, device=x.device)
        if len(target) != len(x):
            raise ValueError(f"{len(target)} references for {len(x)} images; give one per case.")
        return target, valid


_NORMS = {
    np.inf: ("inf", "linf", "Linf", np.inf), 2.0: ("2", "l2", "L2", 2), 1.0: ("1", "l1", "L1", 1)
}  # fmt: skip


def _norm(norm: float | str) -> float:
    for value, names in _NORMS.items():
        if norm in names:
            return value
    raise ValueError(f"norm={norm!r} is not supported; choose numpy.inf, 2 or 1.")


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
