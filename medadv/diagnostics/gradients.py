"""Do gradients lead anywhere? Zero gradients, finite differences, random directions."""

from __future__ import annotations

import torch
from torch import Tensor

from medadv.adaptive import BackwardApproximation
from medadv.diagnostics.finding import Measured, nothing
from medadv.diagnostics.probe import Probe, per_case

# root mean square of the steps of a difference, in the order they are tried, and steps along signs; in shares of the
# window
DIFFERENCES = (1e-3, 1e-2, 1e-4, 1e-5)
STEPS = (0.5 / 255, 2 / 255, 8 / 255)
_RANDOM_DIFFERENCES = 4
# differences that agree so well need no other step size
_AGREES = 0.05
_RANDOM_STEPS = 6
# share of all change from which voxels without a gradient are said to matter
_INFLUENCE = 0.25


def zero_share(probe: Probe) -> Measured:
    """Share of voxels whose gradient is zero or not finite, counted in cases in which such voxels change the loss.

    A voxel outside the window of a CT network has a zero gradient, rightly, and so have most in front of a pooling by
    the maximum; so they only count where random steps, however small, of these voxels alone change the loss by a good
    part of what steps of all voxels do, or where no gradient is left.
    """
    dead = probe.gradient == 0
    share = per_case(dead).double().mean(1)
    influence = torch.full_like(share, torch.inf)
    if bool((share > 0.5).any()):
        start = probe.losses(probe.x)
        for number, step in enumerate(STEPS):
            signs = probe.width * step * probe.random_signs(number)
            whole, part = (probe.losses(probe.inside(probe.x + moved)) - start for moved in (signs, signs * dead))
            changed = whole.abs() + part.abs()
            shared = torch.where(changed > 0, part.abs() / changed.clamp(min=torch.finfo(changed.dtype).tiny), 0.0)
            influence = influence.minimum(2 * shared)
    masked = (share == 1) | ((share > 0.5) & (influence > _INFLUENCE))
    return Measured(float((share * masked).mean()), {"zero": float(share.mean())})


def differences(probe: Probe) -> Measured:
    """How far slopes along the gradient and random directions are off central differences, 0 (equal) to 1 (unrelated).

    The median over cases of the worse of the two; per case the step size at which they agree best counts, so that
    neither rounding (small steps) nor kinks of ReLU and pooling (large ones) are held against a model. Voxels at an
    end of the range or window, where clamping has a kink, stand still.
    """
    if _approximates(probe.victim):
        return nothing("the backward pass is an approximation by intent (bpda)")
    movable = _movable(probe)
    gradient = torch.where(movable, probe.gradient, torch.zeros_like(probe.gradient))
    alive = per_case(gradient).abs().amax(1) > 0
    if not bool(alive.any()):
        return nothing("no case has a gradient")
    # large gradients would overflow once squared
    unit = _scaled(gradient)
    along = unit / per_case(unit).square().mean(1).sqrt().clamp(min=1e-30).view(-1, *[1] * (unit.ndim - 1))
    straight = _disagreement(probe, gradient, [along])
    signs = [movable * probe.random_signs(number) for number in range(_RANDOM_DIFFERENCES)]
    across = _disagreement(probe, gradient, signs)
    worse = straight.maximum(across)[alive]
    numbers = {"along": float(straight[alive].median()), "random": float(across[alive].median())}
    return Measured(float(worse.median()), numbers)


def _approximates(victim: object) -> bool:
    while victim is not None:
        if isinstance(victim, BackwardApproximation):
            return True
        victim = getattr(victim, "inner", None)
    return False


def _scaled(gradient: Tensor) -> Tensor:
    largest = per_case(gradient).abs().amax(1).view(-1, *[1] * (gradient.ndim - 1))
    return torch.where(largest > 0, gradient / largest, torch.zeros_like(gradient))


def _movable(probe: Probe) -> Tensor:
    """Voxels away from the ends of range and window; all of a case where that leaves few."""
    margin = 3 * probe.width * max(DIFFERENCES)
    low, high = probe.intensity.bounds(probe.x)
    free = (probe.x - low > margin) & (high - probe.x > margin)
    for edge in probe.intensity.window or ():
        free &= (probe.x - edge).abs() > margin
    few = per_case(free).double().mean(1) < 0.05
    return free | few.view(-1, *[1] * (free.ndim - 1))


def _disagreement(probe: Probe, gradient: Tensor, directions: list[Tensor]) -> Tensor:
    """``(N,)``: over the directions ``|difference - slope| / sqrt(difference^2 + slope^2)``, at the best step size."""
    slopes = torch.stack([(per_case(gradient).double() * per_case(d).double()).sum(1) for d in directions])
    best = torch.full((len(gradient),), torch.inf, dtype=torch.float64, device=gradient.device)
    for size in DIFFERENCES:
        found = []
        for direction in directions:
            step = probe.width * size * direction
            ahead, behind = probe.x + step, probe.x - step
            # what was really walked: float32 rounds steps that are small beside the grey values
            walked = per_case((ahead.double() - behind.double()) * direction).sum(1)
            walked = walked / per_case(direction.double()).square().sum(1).clamp(min=1e-30)
            change = probe.losses(ahead) - probe.losses(behind)
            found.append(torch.where(walked != 0, change / walked, torch.zeros_like(change)))
        difference = torch.stack(found)
        size_of_both = difference.square().sum(0) + slopes.square().sum(0)
        off = (difference - slopes).square().sum(0)
        error = torch.where(size_of_both > 0, off / size_of_both, torch.zeros_like(off)).sqrt()
        best = best.minimum(torch.nan_to_num(error, nan=torch.inf))
        if bool((best < _AGREES).all()):
            break
    return best


def beaten_by_chance(probe: Probe) -> Measured:
    """Share of cases in which, at every step size, some random signs raise the loss more than the gradient's signs."""
    start = probe.losses(probe.x)
    lost = torch.ones_like(start, dtype=torch.bool)
    gains, chances = torch.zeros_like(start), torch.zeros_like(start)
    for step in STEPS:
        size = probe.width * step
        gain = probe.losses(probe.inside(probe.x + size * probe.gradient.sign())) - start
        draws = [probe.inside(probe.x + size * probe.random_signs(number)) for number in range(_RANDOM_STEPS)]
        chance = torch.stack([probe.losses(draw) - start for draw in draws]).amax(0)
        lost &= chance > gain + 1e-6 * (1 + start.abs())
        gains, chances = gain, chance
    numbers = {"gain_gradient": float(gains.mean()), "gain_random": float(chances.mean())}
    return Measured(float(lost.double().mean()), numbers)
