"""ART's evasion attacks by name: ``create("art/CarliniL2Method", estimator)``, with medadv's checks and guarantees."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medadv.adapters.art_settings import ArtSettings
from medadv.adapters.art_table import ART_ROWS, KINDS, VIEWED, ArtRow, options_of
from medadv.adapters.art_views import Doorway, as_art_classifier, as_art_dense, drawing_from, margin_of
from medadv.attacks.base import Batch, Solution
from medadv.attacks.recipes import DECISIONS, TASKS, Recipe
from medadv.decisions import as_plain_tensor
from medadv.threats import CaseRandom
from medadv.victims import logits_in


class ArtAttack(ArtSettings):
    """One of ART's evasion attacks, with the checks and guarantees of the catalogue.

    ART sees images in 0 to 1, one case at a time. Models with exclusive classes are shown as they are; multi-label
    models and segmenters as two classes, "the diagnosis holds" and "it is broken" (a label differs, or the Dice is
    below ``dice_threshold``), except for the few attacks that need no classifier. Outside a mask the model sees the
    clean image whatever the attack does there, so every attack keeps to a region.

    Args:
        estimator, recipe, eps, norm, targeted, batch_size, verbose, seed: see
            :class:`~medadv.attacks.base.CatalogueAttack`. ``eps``, ``eps_step`` and ``step_size`` are in the unit of
            the image.
        keep: ``"score"``: the clean image stands where ART's has the better score for the clinic; ``"last"``: what ART
            returned.
        options: ART's own parameters of the class, for images in 0 to 1; ``dice_threshold`` for segmenters; ``guide``,
            images ``(1 or N, C, *S)`` in data units, for the attacks on features.

    Raises:
        ValueError: a model or setting the attack is not right for, with the reason and the attack to use.

    Example:
        >>> import numpy as np, torch
        >>> from medadv.adapters import MonaiClassifier
        >>> from medadv.attacks import create
        >>> from medadv.decisions import Multiclass
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
        >>> estimator = MonaiClassifier(net, (1, 4, 4), decision=Multiclass(3))
        >>> x = np.full((2, 1, 4, 4), 0.5, dtype=np.float32)
        >>> attack = create("art/FastGradientMethod", estimator, eps="8/255")
        >>> bool(np.abs(attack.generate(x) - x).max() <= 8 / 255), attack.queries.tolist()
        (True, [3, 3])
    """

    def _solve_all(self, batches: Sequence[Batch]) -> Iterable[Solution]:
        self.row.check(self.name, self._kind, batches[0].x.ndim - 2, self.targeted)
        self._check_flat(tuple(batches[0].x.shape[1:]))
        self.victim.module.requires_grad_(False)  # restored with all else; ART would fill the weights' gradients
        self._guides = self._read_guides(sum(map(len, batches)), batches[0].x)
        if self.row.universal:
            return self._solve_universal(batches)
        return super()._solve_all(batches)

    def _read_guides(self, cases: int, like: Tensor) -> Any:
        if not self.row.guided:
            return None
        guides = as_plain_tensor(self.guide).to(like)
        if guides.shape[1:] != like.shape[1:] or len(guides) not in (1, cases):
            raise ValueError(
                f"guide has shape {tuple(guides.shape)} for {cases} images of {tuple(like.shape[1:])}; give one image "
                "(1, C, *S) or one per case."
            )
        self.victim.intensity.check(guides)
        return iter(guides.expand(cases, *guides.shape[1:]))

    def _solve(self, batch: Batch) -> Solution:
        clean = self._score(batch, batch.x)
        images, queries = [], []
        for i in range(len(batch)):
            case = batch.subset(torch.tensor([i]))
            guide = None if self._guides is None else next(self._guides)[None]
            self._check_case(case)
            door = Doorway(self.victim, self._unit, case.x, case.mask)
            if self._settled(case, float(clean[i])):
                images.append(case.x)
            else:
                after = self._generate(self._shown(door, case), case, guide, case.ids[0])
                images.append(self._allowed(case, after))
            queries.append(1 + door.images)
        return self._judged(batch, torch.cat(images), torch.tensor(queries), clean)

    def _solve_universal(self, batches: Sequence[Batch]) -> Iterable[Solution]:
        if any(batch.mask is not None for batch in batches):
            raise ValueError(f"{self.name} moves the whole image in ART; leave mask out or use 'universal'.")
        x, target, valid = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("x", "target", "valid"))
        whole = Batch(x, target, valid, None, [case for batch in batches for case in batch.ids])
        door = Doorway(self.victim, self._unit)
        after = x
        if not self._nothing_allowed:
            shown = as_art_classifier(door, tuple(x.shape[1:]), self._classes, self._unit, soft=self.row.soft)
            after = self._allowed(whole, self._generate(shown, whole, None, "all"))
        asked = -(-door.images // len(x))
        start = 0
        for batch in batches:
            found = after[start : start + len(batch)]
            start += len(batch)
            yield self._judged(batch, found, torch.full((len(batch),), asked), None)

    def _check_case(self, case: Batch) -> None:
        if self._kind != "segmentation" or self._dense or not bool(case.valid.any()):
            return
        if bool(self.victim.decision.score_hard(case.target, case.target, case.valid).isnan()):
            raise ValueError(
                f"{self.name}: case {case.ids[0]} has no foreground in its reference, so there is no Dice to break; "
                "leave it out, or use 'pgd-dicece'."
            )

    def _settled(self, case: Batch, score: float) -> bool:
        """True where there is nothing to do: no budget, no label that counts, or a smallest perturbation of nil."""
        if self._nothing_allowed or not bool(case.valid.any()):
            return True
        agrees = score >= (self.dice_threshold if self.victim.segments else 1.0)
        return self.row.budget is None and agrees == self.targeted

    def _shown(self, door: Doorway, case: Batch) -> Any:
        """The model as ART sees it for one case."""
        shape = tuple(case.x.shape[1:])
        if self._dense:
            return as_art_dense(self.victim, door, shape)
        if self._kind not in VIEWED:
            return as_art_classifier(door, shape, self._classes, self._unit, soft=self.row.soft)
        margin = margin_of(self.victim, door, case.target, case.valid, self.dice_threshold)
        return as_art_classifier(margin, shape, 2, self._unit, soft=self.row.soft)

    def _labels(self, case: Batch, guide: Tensor | None) -> np.ndarray | None:
        """``y`` as ART takes it: a guide, a reference in its own form, or one-hot classes; never ART's own logits."""
        if guide is not None:
            return self._unit.encode(guide)
        decision = self.victim.decision
        if self._dense:
            ignored = 0 if decision.ignore_index is None else decision.ignore_index
            return torch.where(case.valid, case.target, ignored).cpu().numpy()
        if self.row.labels == "targets" and not self.targeted:
            return None
        if self._kind in VIEWED:
            return np.array([[1, 0]], dtype=np.float32)  # "the diagnosis is as in the reference"
        return np.eye(decision.channels, dtype=np.float32)[case.target.cpu().numpy()]

    def _generate(self, shown: Any, case: Batch, guide: Tensor | None, draws: object) -> np.ndarray:
        number = CaseRandom(self.seed, [draws]).generators[0].initial_seed()
        try:
            with drawing_from(number):
                return np.asarray(self._build(shown).generate(self._unit.encode(case.x), self._labels(case, guide)))
        except ValueError as error:
            if "NaN or infinite" in str(error):  # ART asked about an image it had divided by zero
                raise RuntimeError(self._not_finite(case)) from error
            raise

    # ---- results ----------------------------------------------------------------------------------------------------

    def _allowed(self, case: Batch, after: np.ndarray) -> Tensor:
        """ART's images in data units, in the region, the range, the grid and exactly in the ball, or refused."""
        if after.shape != tuple(case.x.shape) or not np.isfinite(after).all():
            raise RuntimeError(self._not_finite(case))
        x_adv = self._unit.moved(case.x, self._unit.encode(case.x), after.astype(np.float32))
        if case.mask is not None:
            x_adv = torch.where(case.mask, x_adv, case.x)
        intensity = self.victim.intensity
        if self.budget is None:
            low, high = intensity.bounds(x_adv)
            stored = torch.minimum(intensity.snap(x_adv), intensity.snap(high, "down"))
            stored = torch.maximum(stored, intensity.snap(low, "up"))
            return torch.where(x_adv == case.x, case.x, stored)
        assert self.threat_kind is not None
        ball: Any = self.threat_kind.threat(case.x, self.budget, intensity, case.mask, {})
        self._check_distance(float(ball.distance(x_adv).max()), case)
        return ball.apply(ball.project(x_adv - case.x))

    def _not_finite(self, case: Batch) -> str:
        instead = " or ".join(map(repr, self.row.instead))
        return f"ART's {self.row.art} met values that are not finite on case {case.ids[0]}; use {instead}."

    def _check_distance(self, distance: float, case: Batch) -> None:
        assert self.budget is not None
        largest = max(map(abs, (*self.victim.intensity.lows, *self.victim.intensity.highs)))
        entries = 1.0 if self.norm == np.inf else case.x[0].numel() ** 0.5
        if distance > self.budget.eps * (1 + 1e-6) + 2 * float(np.spacing(np.float32(largest))) * entries:
            raise RuntimeError(
                f"ART's {self.row.art} moved case {case.ids[0]} by {distance:g} where eps is {self.budget.eps:g}; its "
                f"images are not used; use {' or '.join(map(repr, self.row.instead))}."
            )

    def _score(self, batch: Batch, x: Tensor) -> Tensor:
        return self.victim.decision.score(logits_in(self.victim.logits(x)), batch.target, batch.valid)

    def _judged(self, batch: Batch, found: Tensor, queries: Tensor, clean: Tensor | None) -> Solution:
        """Leaves the clean image where ART's is better for the clinic, unless ``keep="last"``."""
        if self.keep == "score":
            if clean is None:
                clean = self._score(batch, batch.x)
                queries = queries + 1
            score = self._score(batch, found)
            better = score < clean if self.targeted else score > clean
            found = torch.where(better.view(-1, *[1] * (found.ndim - 1)), batch.x, found)
            queries = queries + 1
        return Solution(found, queries=queries)


def _recipe(name: str, row: ArtRow) -> Recipe:
    kinds = [kind for kind in KINDS if row.ranks_for(kind)]
    tasks = tuple(t for t, has in zip(TASKS, (set(kinds) - {"segmentation"}, "segmentation" in kinds)) if has)
    decisions = tuple(d for d, has in zip(DECISIONS, (kinds, set(kinds) & set(VIEWED))) if has)
    ranks = tuple(sorted({rank for kind in kinds for rank in row.ranks_for(kind)}))
    options: Mapping[str, Any] = options_of(row) if kinds else {}
    return Recipe(
        name, row.summary, "ART's own", None, "ART", row.reference, options=options, attack=ArtAttack, tasks=tasks,
        decisions=decisions, norms=row.norms, access=row.access, ranks=ranks, directed=row.directed,
        minimal=row.budget is None, independent=not row.universal, alternatives=row.instead,
    )  # fmt: skip


def recipes() -> tuple[Recipe, ...]:
    """ART's attacks as rows of the catalogue, for the entry-point group ``medadv.attacks``.

    Example:
        >>> [row.name for row in recipes() if "DeepFool" in row.name or row.name == "deepfool"]
        ['art/DeepFool', 'deepfool']
    """
    return tuple(_recipe(name, row) for name, row in ART_ROWS.items())
