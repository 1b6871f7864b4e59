"""Projected gradient steps: along the sign or the direction of the gradient, with momentum, a look ahead, diversity."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medadv.problem import Problem
from medadv.search.base import Search
from medadv.search.diversity import Resizing
from medadv.threats import CaseRandom, per_case


@dataclass(frozen=True)
class SteepestAscent(Search):
    """Projected steps along the gradient: its sign (L-inf) or direction (L2); with momentum if ``decay`` > 0.

    One step from the clean image is FGSM (arXiv 1412.6572), several are BIM (1607.02533), several from a random start
    are PGD (1706.06083); with momentum over gradients scaled to mean absolute value 1 per case it is MI-FGSM
    (1710.06081), with the gradient taken where the momentum leads NI-FGSM (1908.06281), with the gradient taken through
    a random resizing DI-FGSM (1803.06978).

    Attributes:
        step_size: length of a step in the unit of the threat's distance.
        decay: weight of the accumulated gradient.
        look_ahead: the gradient is taken one momentum step ahead.
        diversity: (smallest share of the sides, probability) of the random resizing.
    """

    step_size: float = 0.0
    decay: float = 0.0
    look_ahead: bool = False
    diversity: tuple[float, float] | None = None

    def run_once(self, problem: Problem, theta: Tensor, random: CaseRandom) -> None:
        momentum: Tensor | None = None
        threat = problem.threat
        for step in range(self.steps):
            at = theta
            if self.look_ahead and momentum is not None:
                at = threat.project(theta + self.step_size * self.decay * momentum)
            grad = problem.evaluate(at, progress=step / self.steps, through=self._through(problem, random)).grad
            assert grad is not None
            if self.decay:
                # a case with zero gradient keeps its momentum instead of turning into NaN
                size = grad.abs().flatten(1).mean(1).clamp(min=torch.finfo(grad.dtype).tiny)
                scaled = grad / per_case(size, grad)
                momentum = scaled if momentum is None else self.decay * momentum + scaled
                grad = momentum
            theta = threat.project(threat.ascend(theta, grad, self.step_size))
        problem.finish(theta)

    def _through(self, problem: Problem, random: CaseRandom) -> Resizing | None:
        if self.diversity is None:
            return None
        least, share = self.diversity
        x = problem.threat.x
        fill, _ = problem.victim.intensity.bounds(x)
        fill = fill.expand(1, x.shape[1], *fill.shape[2:])
        segments = problem.victim.segments
        return Resizing(random, tuple(x.shape[2:]), least=least, share=share, fill=fill, segments=segments)
