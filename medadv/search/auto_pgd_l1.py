"""Auto-PGD for the L1 ball: sparse steps whose number of voxels follows the perturbation's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medadv.search.auto_pgd import AutoPGD, AutoPGDState
from medadv.threats import L1Ball, Threat, chosen


class SparseState(AutoPGDState):
    """Iterate, best point, step size and number of moved voxels of each case."""

    first_share = 0.2
    fewer = 1.5
    settled = 0.95
    slower = 1.5
    least_step = 0.1

    def __init__(self, threat: Threat, theta: Tensor, loss: Tensor, grad: Tensor, marks: list[int]) -> None:
        super().__init__(theta, loss, grad, threat.radius, marks)
        self.full_step = threat.radius
        changed = (theta != 0).flatten(1).sum(1)
        size = theta[0].numel()
        # from scratch a fifth of the voxels moves; a start from a wider ball says how many matter
        begun = (changed > 0) & (changed < size)
        self.changed = torch.where(begun, changed, size)
        self.moved = torch.where(begun, (changed / self.fewer).long(), int(self.first_share * size)).clamp(min=1)

    def propose(self, threat: Threat) -> Tensor:
        """The next point: no momentum, a sparse step and the exact projection."""
        assert isinstance(threat, L1Ball)
        self.moves += 1
        return threat.project(threat.ascend(self.theta, self.grad, self.step_size, self.moved))

    def _look_back(self, step: int) -> None:
        changed = (self.best_theta != 0).flatten(1).sum(1)
        sparser = changed < self.settled * self.changed
        smaller = (self.step_size / self.slower).clamp(min=self.least_step * self.full_step)
        self.step_size = torch.where(sparser, self.full_step, smaller)
        self.theta = chosen(sparser, self.best_theta, self.theta)
        self.grad = chosen(sparser, self.best_grad, self.grad)
        self.moved = (changed / self.fewer).long().clamp(min=1)
        self.changed = changed


@dataclass(frozen=True)
class AutoPGDL1(AutoPGD):
    """Auto-PGD for L1 (arXiv 2103.01208).

    Plain steepest L1 steps move one voxel at a time. Here a step is shared by the k voxels with the largest gradients;
    at checkpoints (every 4 % of the steps) k becomes the number of voxels the best perturbation changes, over 1.5. If
    that number still falls (below 95 % of the last), the step is the full radius again and the case goes back to its
    best point; else the step shrinks by 1.5, down to a tenth. With :attr:`radii` the search comes from wider balls.
    """

    radii: tuple[tuple[float, float], ...] = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))

    def _begin(self, threat: Threat, theta: Tensor, loss: Tensor, grad: Tensor, steps: int) -> AutoPGDState:
        every = max(int(0.04 * self.steps), 1)
        return SparseState(threat, theta, loss, grad, list(range(every, steps, every)))
