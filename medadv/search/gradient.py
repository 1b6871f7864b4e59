"""Projected gradient steps: along the sign or the direction of the gradient, with or without momentum."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medadv.problem import Problem
from medadv.search.base import Search
from medadv.threats import CaseRandom, per_case


@dataclass(frozen=True)
class SteepestAscent(Search):
    """Projected steps along the gradient: its sign (L-inf) or direction (L2); with momentum if ``decay`` > 0.

    One step from the clean image is FGSM (arXiv 1412.6572), several from a random start are PGD (1706.06083); with
    momentum over gradients scaled to mean absolute value 1 per case it is MI-FGSM (1710.06081).

    Attributes:
        step_size: length of a step in the unit of the threat's distance.
        decay: weight of the accumulated gradient.
    """

    step_size: float = 0.0
    decay: float = 0.0

    def run_once(self, problem: Problem, theta: Tensor, random: CaseRandom) -> None:
        momentum: Tensor | None = None
        for step in range(self.steps):
            grad = problem.evaluate(theta, progress=step / self.steps).grad
            assert grad is not None
            if self.decay:
                # a case with zero gradient keeps its momentum instead of turning into NaN
                size = grad.abs().flatten(1).mean(1).clamp(min=torch.finfo(grad.dtype).tiny)
                scaled = grad / per_case(size, grad)
                momentum = scaled if momentum is None else self.decay * momentum + scaled
                grad = momentum
            theta = problem.threat.project(problem.threat.ascend(theta, grad, self.step_size))
        problem.finish(theta)
