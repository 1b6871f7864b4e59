"""Auto-PGD towards each of the likeliest other classes in turn."""

from __future__ import annotations

import torch
from torch import Tensor

from medadv.attacks.base import Batch, Solution
from medadv.attacks.framework import FrameworkAttack, auto_pgd, solution_of
from medadv.attacks.recipes import Recipe
from medadv.decisions import Decision
from medadv.numbers import whole_number
from medadv.objectives import DLR, Margin, Objective
from medadv.problem import Best


class TowardsClass(Objective):
    """The targeted difference of logits ratio to one class per case, of an attack that wants to leave the reference.

    Args:
        decision: exclusive classes.
        wanted: the class each case is pushed to, ``(N,)`` int64.
    """

    def __init__(self, decision: Decision, wanted: Tensor) -> None:
        super().__init__(decision)
        self.towards = DLR(decision, targeted=True)
        self.wanted = wanted

    def __call__(self, output: Tensor, target: Tensor, *, valid: Tensor, progress: float = 0.0) -> Tensor:
        return self.towards(output, self.wanted, valid=valid, progress=progress)


class MultiTargeted(FrameworkAttack):
    """One Auto-PGD run towards each of the likeliest wrong classes (arXiv 2003.01690, APGD-T).

    The classes are ranked by the clean logits, the reference left out. The image with the worst hard score is kept,
    ties by the untargeted margin. With two classes it is ``apgd-margin``.

    Example:
        >>> import numpy as np, torch
        >>> from medadv.adapters import MonaiClassifier
        >>> from medadv.attacks import create
        >>> from medadv.decisions import Multiclass
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 5))
        >>> attack = create("apgd-t", MonaiClassifier(net, (1, 4, 4), decision=Multiclass(5)), eps="8/255", max_iter=5)
        >>> attack.generate(np.full((2, 1, 4, 4), 0.5, dtype=np.float32), np.array([0, 1])).shape
        (2, 1, 4, 4)
    """

    knows_detectors = False

    n_target_classes: int

    def _prepare(self) -> None:
        whole_number("n_target_classes", self.n_target_classes, 1)
        if self.keep != "score":
            raise ValueError(f"keep={self.keep!r} does not fit {self.name}, whose losses differ from class to class; "
                             "use keep='score', or apgd-margin.")  # fmt: skip
        super()._prepare()

    def _solve(self, batch: Batch) -> Solution:
        margin = Margin(self.victim.decision)
        likely = self.victim.logits(batch.x).scatter(1, batch.target[:, None], -torch.inf).argsort(1, descending=True)
        queries = torch.ones(len(batch), dtype=torch.int64)
        undirected = torch.zeros(len(batch), dtype=torch.bool, device=batch.x.device)
        best: Best | None = None
        for rank in range(min(self.n_target_classes, likely.shape[1] - 1)):
            problem = self.problem_of(batch, TowardsClass(self.victim.decision, likely[:, rank]))
            self._search.run(problem, [f"{case}/{rank}" if rank else case for case in batch.ids])
            found = problem.best
            assert found is not None
            # losses towards different classes can't be compared: the untargeted margin can
            found.loss = margin(self.victim.logits(found.x), batch.target, valid=batch.valid)
            queries += problem.queries + 1
            undirected |= problem.undirected
            if best is None:
                best = found
            else:
                best.update(found)
        problem.best = best
        solution = solution_of(problem)
        return Solution(solution.x, solution.inside, undirected, queries)


ROWS = (
    Recipe("apgd-t", "auto-pgd towards each of the likeliest wrong classes", "dlr", auto_pgd, "auto-pgd", "2003.01690",
           {"max_iter": 100, "num_random_init": 1, "n_target_classes": 9}, attack=MultiTargeted,
           tasks=("classification",), decisions=("multiclass",), directed=False,
           alternatives=("apgd-margin", "apgd-ce")),
)  # fmt: skip
