"""Ensembles: several attacks in turn, per case the worst, and only what is left at the floor leaves early."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from medadv.attacks.base import Batch, CatalogueAttack, Solution, joined
from medadv.attacks.recipes import Recipe
from medadv.decisions import Multiclass
from medadv.objectives import Margin, Objective, SoftDice
from medadv.problem import Best
from medadv.victims import Passes


@dataclass(frozen=True)
class Member:
    """An attack of an ensemble: a name of the catalogue and its options."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """How the report calls it."""
        objective = self.options.get("objective")
        return self.name if objective is None else f"{self.name}({objective})"


class EnsembleAttack(CatalogueAttack):
    """Several attacks in turn; each case keeps the image with the worst hard score, ties by a common loss.

    The clean image is the first candidate. A case is dropped only at the floor of the hard score (a wrong diagnosis,
    Dice 0, all labels wrong): later attacks see the others alone, in full batches. All members share seed, budget and
    pass counts.

    Args:
        plan: the members for this attack, in the order they run.

    Attributes:
        report: a row per member of the last run: cases it saw, cases at the floor after it, mean hard score after it
            (targeted: mean agreement), forward and backward passes, seconds.

    Example:
        >>> import numpy as np, torch
        >>> from medadv.adapters import MonaiClassifier
        >>> from medadv.attacks import create
        >>> from medadv.decisions import Multiclass
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
        >>> estimator = MonaiClassifier(net, (1, 4, 4), decision=Multiclass(2))
        >>> attack = create("robust", estimator, eps="8/255")
        >>> x_adv = attack.generate(np.full((2, 1, 4, 4), 0.5, dtype=np.float32), np.array([0, 1]))
        >>> list(attack.report.member)[:2]
        ['apgd-ce', 'apgd-dlr']
    """

    knows_detectors = False

    num_random_init: int

    def __init__(
        self, estimator: Any, recipe: Recipe, *, plan: Callable[[EnsembleAttack], list[Member]], **options: Any
    ) -> None:
        self.plan = plan
        self.report = pd.DataFrame()
        super().__init__(estimator, recipe, **options)

    def _prepare(self) -> None:
        if self.keep != "score":
            raise ValueError(f"keep={self.keep!r} does not fit an ensemble, which keeps the worst hard score; "
                             "leave it out, or run one of its members.")  # fmt: skip
        loss: type[Objective] = SoftDice if self.victim.segments else Margin
        self._ranking: Objective = loss(self.victim.decision, targeted=self.targeted)
        self._members = [(member, self._build(member)) for member in self.plan(self)]

    def _build(self, member: Member) -> CatalogueAttack:
        from medadv.attacks.catalogue import create  # the catalogue holds the ensembles

        attack = create(
            member.name, self.estimator, eps=self.eps, norm=self.norm, targeted=self.targeted, seed=self.seed,
            batch_size=self.batch_size, **member.options,
        )  # fmt: skip
        attack.victim = self.victim
        return attack

    def _collect(self, batches: list[Batch]) -> list[Tensor]:
        self._log: list[dict[str, Any]] = []
        images = super()._collect(batches)
        self.report = pd.DataFrame(self._log).groupby("member", sort=False).sum()
        self.report.insert(2, "score", self.report.pop("total") / self.report.pop("scored").clip(lower=1))
        self.report = self.report.reset_index()
        return images

    def _solve(self, batch: Batch) -> Solution:
        best = self._judged(batch.x, batch)
        scored = ~self.victim.decision.score_hard(batch.target, batch.target, batch.valid).isnan()
        queries = torch.ones(len(batch), dtype=torch.int64)
        inside = torch.ones(len(batch), dtype=torch.bool, device=batch.x.device)
        undirected = torch.zeros_like(inside)
        shown = self.verbose and sys.stderr.isatty()
        for member, attack in tqdm(self._members, desc=self.name, disable=not shown):
            left = (best.badness < self._ranking.floor).nonzero()[:, 0]
            before, began = self.victim.passes.copy(), time.perf_counter()
            for rows in left.split(self.batch_size):
                if not len(rows):
                    continue
                part = batch.subset(rows.cpu())
                found = attack._solve(part)
                best.update(self._judged(found.x, part), rows)
                queries[rows.cpu()] += 1 + (0 if found.queries is None else found.queries.cpu())
                if found.inside is not None:
                    inside[rows] &= found.inside
                if found.undirected is not None:
                    undirected[rows] |= found.undirected
            self._note(member, len(left), best, self.victim.passes - before, time.perf_counter() - began, scored)
        return Solution(best.x, inside, undirected, queries)

    def _solve_all(self, batches: Sequence[Batch]) -> Iterable[Solution]:
        # all cases are one batch here, so that those that are left fill the batches of the next member
        whole = self._solve(batches[0] if len(batches) == 1 else joined(batches))
        assert whole.inside is not None and whole.undirected is not None and whole.queries is not None
        start = 0
        for batch in batches:
            rows = slice(start, start + len(batch))
            yield Solution(whole.x[rows], whole.inside[rows], whole.undirected[rows], whole.queries[rows])
            start += len(batch)

    def _judged(self, x: Tensor, batch: Batch) -> Best:
        badness, loss = [], []
        for rows in torch.arange(len(x)).split(self.batch_size):
            logits, target, valid = self.victim.logits(x[rows]), batch.target[rows], batch.valid[rows]
            badness.append(self._ranking.badness(logits, target, valid))
            loss.append(self._ranking(logits, target, valid=valid))
        return Best(x.clone(), torch.cat(badness), torch.cat(loss))

    def _note(self, member: Member, cases: int, best: Best, passes: Passes, seconds: float, scored: Tensor) -> None:
        at_floor = int((best.badness >= self._ranking.floor).sum())
        self._log.append(
            {"member": member.label, "cases": cases, "at_floor": at_floor,
             "total": float(best.badness[scored].abs().sum()), "scored": int(scored.sum()),
             "forward": passes.forward, "backward": passes.backward, "seconds": seconds}
        )  # fmt: skip


def _classes(attack: EnsembleAttack) -> int:
    """Number of exclusive classes; 0 where labels do not exclude each other."""
    return attack.victim.decision.channels if isinstance(attack.victim.decision, Multiclass) else 0


def robust_plan(attack: EnsembleAttack) -> list[Member]:
    """The default answer: complementary losses and searches for the kind of decision, white-box first."""
    starts = {"num_random_init": attack.num_random_init}
    if attack.norm == 1:
        losses = ("dice", "ce", "masked-ce") if attack.victim.segments else ("ce", "margin")
        return [Member("apgd-l1", {"objective": loss, **starts}) for loss in losses]
    if attack.victim.segments:
        return [
            Member("apgd-dice", starts),
            Member("pgd-dice", {"max_iter": 100, **starts}),
            *sea_plan(attack, max_iter=100),
            Member("segpgd", {"max_iter": 100, **starts}),
            Member("square-dice", {"max_iter": 1000, **starts}),
        ]
    margin = "apgd-dlr" if _classes(attack) >= 2 else "apgd-margin"
    members = [Member("apgd-ce", starts), Member(margin, starts)]
    if not attack.targeted:
        members += [Member("apgd-t", starts)] if _classes(attack) > 2 else []
        members += [Member("fab")]
    return [*members, Member("square", starts)]


def autoattack_plan(attack: EnsembleAttack) -> list[Member]:
    """AutoAttack's standard version: APGD-CE, targeted APGD-DLR, FAB, Square with 5,000 queries."""
    towards = [Member("apgd-t")] if _classes(attack) else [Member("apgd-margin")]
    return [Member("apgd-ce"), *towards, Member("fab"), Member("square", {"max_iter": 5000})]


def sea_plan(attack: EnsembleAttack, max_iter: int | None = None) -> list[Member]:
    """SEA's four losses, each by Auto-PGD that enters the ball from twice the radius."""
    options = {"num_random_init": attack.num_random_init, "max_iter": max_iter or getattr(attack, "max_iter", 300)}
    return [Member("apgd-sea", {"objective": loss, **options}) for loss in ("masked-ce", "segpgd", "js", "mask-norm")]


def _row(name: str, summary: str, plan: Any, reference: str, options: dict[str, Any], **changes: Any) -> Recipe:
    settings: dict[str, Any] = {"objective": "per case the worst of its members", "search_name": "ensemble", **changes}
    return Recipe(name, summary, search=None, reference=reference, options=options,
                  attack=partial(EnsembleAttack, plan=plan), **settings)  # fmt: skip


ROWS = (
    _row("robust", "the default answer to how robust a model is: an ensemble for its kind of decision", robust_plan,
         "2003.01690, 2306.12941", {"num_random_init": 1}, norms=(np.inf, 2.0, 1.0)),
    _row("autoattack", "AutoAttack's standard ensemble, per case, cheap attacks first", autoattack_plan, "2003.01690",
         {}, tasks=("classification",), directed=False, alternatives=("robust", "sea")),
    _row("sea", "four segmentation losses entered from wider balls, per case the worst foreground Dice", sea_plan,
         "2306.12941", {"max_iter": 300, "num_random_init": 1}, tasks=("segmentation",),
         alternatives=("robust", "autoattack")),
)  # fmt: skip
