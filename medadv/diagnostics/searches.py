"""Short attacks that must hold together: a large budget, more steps and restarts, queries, a surrogate, storage."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medadv.adaptive import WrappedVictim
from medadv.diagnostics.finding import Measured, nothing
from medadv.diagnostics.probe import Probe

FEW_STEPS, MORE_STEPS, MORE_RESTARTS = 10, 40, 4
LARGE_STEPS = 20
QUERIES = 200
_HARDLY = 0.2
# fewer cases than this share (and than two) are chance
_SEVERAL = 0.25
_NO_BUDGET = "no budget was given"


def survives_everything(probe: Probe) -> Measured:
    """Share of the score that is left under Auto-PGD with the whole range as budget, above what simple images leave.

    Simple images (those of other cases, and noise) are in that ball, so an attack that leaves a higher score has not
    found what lies before it. A model whose diagnosis hardly depends on the image is not held against the attack.
    """
    eps = max(high - low for low, high in zip(probe.intensity.lows, probe.intensity.highs, strict=True))
    # from the image itself, as a start drawn from the whole range would break many a model without any gradient
    names = ("apgd-margin", "apgd-dice") if probe.victim.segments else ("apgd-margin",)
    found = [probe.attack(name, eps=eps, max_iter=LARGE_STEPS, num_random_init=0) for name in names]
    clean = _mean(probe.scores(probe.x))
    score = _mean(np.fmin.reduce([probe.scores(x_adv) for x_adv in found]))
    floor = _mean(_simple_images(probe))
    numbers = {"clean": clean, "score": score, "simple_images": floor}
    if not clean - floor > _HARDLY:
        return Measured(np.nan, numbers, "the diagnosis hardly depends on the image", counts=False)
    return Measured(max(score - floor, 0.0) / (clean - floor), numbers)


def _simple_images(probe: Probe) -> np.ndarray:
    """Lowest score ``(N,)`` that each case gets where it is replaced by one of the simple images."""
    low, high = probe.intensity.bounds(probe.x)
    noise = torch.rand(probe.x[:1].shape, generator=torch.Generator().manual_seed(probe.seed)).to(probe.x)
    noise = probe.inside(probe.intensity.snap(low + noise * (high - low)))
    worst = np.full(len(probe.x), np.inf)
    with probe.deployed.attacked():
        for image in [*probe.x.split(1), noise]:
            logits = probe.logits(image)
            logits = logits.expand(len(probe.x), *[-1] * (logits.ndim - 1))
            scores = probe.decision.score(logits, probe.target, probe.valid).double().cpu().numpy()
            worst = np.fmin(worst, scores)
    return np.where(np.isfinite(worst), worst, np.nan)


def more_steps(probe: Probe) -> Measured:
    """How much lower the mean score is after four times as many steps."""
    return _gain(probe, MORE_STEPS, 1, f"steps_{MORE_STEPS}")


def more_restarts(probe: Probe) -> Measured:
    """How much lower the mean score is with more random starts."""
    return _gain(probe, FEW_STEPS, MORE_RESTARTS, f"restarts_{MORE_RESTARTS}")


def _gain(probe: Probe, steps: int, restarts: int, name: str) -> Measured:
    if probe.eps is None:
        return nothing(_NO_BUDGET)
    few = probe.scores(_pgd(probe, probe.eps, FEW_STEPS, 1))
    more = np.fmin(few, probe.scores(_pgd(probe, probe.eps, steps, restarts)))
    return _fallen(few, more, f"steps_{FEW_STEPS}", name)


def black_box(probe: Probe) -> Measured:
    """How much lower the mean score is under an attack on scores alone than under white-box ones."""
    if probe.eps is None:
        return nothing(_NO_BUDGET)
    name = "square-dice" if probe.victim.segments else "square"
    asked = probe.scores(probe.attack(name, probe.deployed, eps=probe.eps, max_iter=QUERIES))
    return _fallen(_white_box(probe), asked, "white_box", f"queries_{QUERIES}")


def transferred(probe: Probe) -> Measured:
    """How much lower the mean score is on images made on the surrogate than under white-box attacks."""
    if probe.eps is None or probe.surrogate is None:
        return nothing(_NO_BUDGET if probe.eps is None else "no surrogate was given")
    shown = probe.scores(probe.attack("transfer", eps=probe.eps, surrogate=probe.surrogate))
    return _fallen(_white_box(probe), shown, "white_box", "surrogate")


def _white_box(probe: Probe) -> np.ndarray:
    """The lowest score of each case under all that gradients can do here."""
    assert probe.eps is not None
    name = "apgd-dice" if probe.victim.segments else "apgd-margin"
    images = [
        _pgd(probe, probe.eps, MORE_STEPS, 1),
        _pgd(probe, probe.eps, FEW_STEPS, MORE_RESTARTS),
        probe.attack(name, eps=probe.eps, max_iter=MORE_STEPS),
    ]
    lowest: np.ndarray = np.fmin.reduce([probe.scores(x_adv) for x_adv in images])
    return lowest


def stored(probe: Probe) -> Measured:
    """How much higher the mean score is once images of an attack that knows no grid are rounded to that of the file."""
    if probe.eps is None or probe.intensity.grid is None:
        return nothing(_NO_BUDGET if probe.eps is None else "the intensity has no storage grid")
    return round_trip(probe, _pgd(probe, probe.eps, LARGE_STEPS, 1, _WithoutGrid(probe.victim)))


def round_trip(probe: Probe, x_adv: Tensor) -> Measured:
    """How much higher the mean score of adversarial images like ``x`` is once they are written to a file and read."""
    low, high = probe.intensity.bounds(x_adv)
    back = probe.intensity.snap(x_adv).maximum(probe.intensity.snap(low, "up"))
    back = back.minimum(probe.intensity.snap(high, "down"))
    return _fallen(probe.scores(back), probe.scores(x_adv), "stored", "as_made")


class _WithoutGrid(WrappedVictim):
    """A model whose files would hold any float."""

    def __init__(self, victim: Any) -> None:
        super().__init__(victim)
        self.intensity = replace(self.inner.intensity, grid=None)


def _pgd(probe: Probe, eps: float | str, steps: int, restarts: int, victim: Any = None, **options: Any) -> Tensor:
    name = "pgd-dicece" if probe.victim.segments else "pgd"
    return probe.attack(name, victim, eps=eps, max_iter=steps, num_random_init=restarts, **options)


def _fallen(before: np.ndarray, after: np.ndarray, first: str, second: str) -> Measured:
    """Fall of the mean from one score to the other; a few cases alone are chance and do not count."""
    numbers = {first: _mean(before), second: _mean(after)}
    fall = before - after
    several = int((fall > 0.01).sum()) >= max(2.0, _SEVERAL * len(fall))
    return Measured(_mean(fall), numbers, counts=several)


def _mean(scores: np.ndarray) -> float:
    return float(np.nanmean(scores)) if np.isfinite(scores).any() else np.nan
