"""Findings on a model: all checks at once, or one by one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medadv.decisions import as_plain_tensor
from medadv.diagnostics.finding import LEVELS, Check, Finding, Measured, nothing
from medadv.diagnostics.gradients import zero_share
from medadv.diagnostics.outputs import largest_difference
from medadv.diagnostics.probe import Probe, Refused, spread
from medadv.diagnostics.registry import CHECKS
from medadv.names import unknown_name
from medadv.numbers import whole_number
from medadv.victims import Victim, logits_in, victim_of


def run_checks(probe: Probe, level: str = "full") -> list[Finding]:
    """All checks of a model up to a level.

    Args:
        probe: the model with a few cases.
        level: ``"basic"``: a few passes and one short attack; ``"full"``: also checks that run several attacks.

    Raises:
        ValueError: another level.
    """
    if level not in LEVELS[:2]:
        raise unknown_name("level of diagnostics", level, LEVELS[:2])
    chosen = LEVELS[: LEVELS.index(level) + 1]
    return [_look(row, probe) for row in CHECKS.values() if row.level in chosen]


def _look(row: Check, probe: Probe) -> Finding:
    assert row.measure is not None
    try:
        return row.judge(row.measure(probe))
    except Refused as refusal:
        return row.judge(nothing(f"could not be run: {refusal}"))


def diagnose(
    estimator: Any,
    x: Any,
    y: Any = None,
    *,
    eps: float | str,
    surrogate: Any = None,
    cases: int = 16,
    batch_size: int = 8,
    seed: int = 0,
    level: str = "full",
) -> list[Finding]:
    """Whether the robustness of a model can be measured by gradient attacks, and by which attack if not so.

    Args:
        estimator: a medadv estimator, a stock ART ``PyTorchClassifier``, or a victim; 2D or 3D, one diagnosis per image
            or per voxel, exclusive classes or several labels.
        x: images ``(N, C, *S)``, array or tensor, in the units of its intensity.
        y: reference in any usual form; None: the model's own diagnosis.
        eps: budget of the checks that run attacks: ``"8/255"``, ``"10 HU"`` or a number in data units; best one that
            breaks some cases and leaves others.
        surrogate: a model that takes the same images; its adversarial images must not be stronger than the model's own.
        cases: looks at so many, evenly spread.
        batch_size: cases at once.
        seed: of all draws.
        level: as in :func:`run_checks`.

    Returns:
        A finding per check, :func:`~medadv.diagnostics.finding.as_frame` makes a table of them. ``flag`` is empty where
        all is well; else ``advice`` and ``call`` name the adaptive attack to run.

    Raises:
        ValueError, TypeError: images, reference, budget or level that can't be right; the message says why.

    Example:
        >>> import torch
        >>> from medadv.adapters import MonaiClassifier
        >>> from medadv.decisions import Multiclass
        >>> from medadv.diagnostics import diagnose
        >>> class Quantised(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.last = torch.nn.Linear(64, 2)
        ...     def forward(self, x):
        ...         return self.last((16 * x).round().flatten(1) / 16)
        >>> estimator = MonaiClassifier(Quantised(), (1, 8, 8), decision=Multiclass(2))
        >>> x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> findings = diagnose(estimator, x, eps="8/255", level="basic")
        >>> findings[0].flag, findings[0].call
        ('zero-gradients=1.00', 'create("pgd", bpda(inner, transform=transform), eps=eps)')
    """
    for name, value in (("cases", cases), ("batch_size", batch_size)):
        whole_number(name, value, 1)
    victim = victim_of(estimator)
    images = as_plain_tensor(x)
    if images.ndim not in (4, 5) or not images.is_floating_point() or not len(images):
        raise ValueError(
            f"images have shape {tuple(images.shape)} and dtype {images.dtype}; give floats (N, C, H, W) or "
            "(N, C, H, W, D) with at least one case."
        )
    rows = spread(len(images), cases)
    number, images = len(images), images[rows].to(victim.device)
    check_shape = getattr(estimator, "check_image_shape", None)
    if check_shape is not None:
        check_shape(tuple(images.shape))
    victim.intensity.check(images)
    victim.intensity.budget(eps)
    if y is None:
        with victim.attacked():
            looks = [logits_in(victim.logits(part)) for part in images.split(batch_size)]
        y = victim.decision.harden(torch.cat(looks))
        number, rows = len(images), torch.arange(len(images))
    spatial = tuple(images.shape[2:]) if victim.segments else ()
    target, valid = victim.decision.canonical(y, spatial, device=victim.device)
    if len(target) != number:
        raise ValueError(f"{len(target)} references for {number} images; give one per case.")
    target, valid = target[rows], valid[rows]
    probe = Probe(victim, images, target, valid, eps=eps, surrogate=surrogate, batch_size=batch_size, seed=seed)
    return run_checks(probe, level)


def zero_gradients(victim: Victim, x: Tensor, target: Tensor, valid: Tensor) -> Finding:
    """Share of voxels whose gradient is zero or not finite although the loss depends on them.

    Args:
        victim: the model.
        x: images ``(N, C, *S)``.
        target: canonical reference.
        valid: where it counts.
    """
    return CHECKS["zero-gradients"].judge(zero_share(Probe(victim, x, target, valid)))


def repeatable(victim: Victim, x: Tensor) -> Finding:
    """Largest difference between the logits of two runs on the same images; randomised models need another attack."""
    with victim.attacked():
        difference = largest_difference(logits_in(victim.logits(x)), logits_in(victim.logits(x)))
    return CHECKS["repeatable"].judge(Measured(difference, {"logits": difference}))
