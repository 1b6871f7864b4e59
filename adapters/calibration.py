"""Which acceleration of the search is worth it on this model and machine: agreement first, then time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medadv.adapters.acceleration import ACCELERATIONS, NONE, Acceleration, acceleration_of
from medadv.adapters.base import MonaiEstimator
from medadv.objectives import CrossEntropy, SoftDice

COSINE = 0.95
SIGNS = 0.95
LEAST_SPEED_UP = 1.05


@dataclass(frozen=True)
class Calibration:
    """What :func:`calibrate` found.

    Attributes:
        table: a row per acceleration: ``acceleration, seconds`` (median of a gradient), ``speed_up`` over the network
            itself, ``logits_off`` (largest difference, over the largest logit), ``cosine`` (of the gradients, least of
            the cases), ``signs`` (share of the gradient's length whose sign agrees), ``refused`` (why not, or empty).
        chosen: the fastest that agrees, or none.
    """

    table: pd.DataFrame
    chosen: Acceleration


def calibrate(
    estimator: MonaiEstimator, x: Any, y: Any, *, candidates: Sequence[str] | None = None, rounds: int = 3
) -> Calibration:
    """Times gradients of some cases in each accelerated form, in turn, and compares them with the network's own.

    A form is refused where its gradients differ: cosine below .95, or signs that agree for less than .95 of the
    gradient's absolute sum. It changes no verdict in any case: the images an attack keeps are those that the network
    itself, in its own precision, scores worst.

    Args:
        estimator: in eval mode; it is left as it was.
        x: a few images ``(N, C, *S)``; time depends on their size and number.
        y: their reference.
        candidates: names of :data:`~medadv.adapters.acceleration.ACCELERATIONS`; None: all.
        rounds: of timing; in each every form runs once.

    Example:
        >>> import numpy as np
        >>> from medadv.adapters import MonaiClassifier
        >>> from medadv.decisions import Multiclass
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(),
        ...                           torch.nn.Linear(400, 2)).eval()
        >>> estimator = MonaiClassifier(net, (1, 12, 12), decision=Multiclass(2))
        >>> x = np.random.default_rng(0).random((4, 1, 12, 12), dtype=np.float32)
        >>> found = calibrate(estimator, x, np.array([0, 1, 0, 1]), candidates=["folded"])
        >>> found.table.acceleration.tolist(), found.table.refused.tolist()
        (['none', 'folded'], ['', ''])
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds} measure nothing; give 1 or more.")
    forms = [NONE, *(acceleration_of(name) for name in candidates or ACCELERATIONS if name != NONE.name)]
    images = torch.as_tensor(np.asarray(x), dtype=torch.float32, device=estimator.device)
    estimator.check_images(images)
    target, valid = estimator.referred(images, y)
    before = estimator.acceleration
    try:
        looks = {form: _Look(estimator, form, images, target, valid) for form in forms}
        for _ in range(rounds):
            for look in looks.values():
                look.time()
    finally:
        estimator.acceleration = before
    exact = looks[NONE]
    table = pd.DataFrame([look.row(exact) for look in looks.values()])
    fits = table[(table.refused == "") & (table.speed_up >= LEAST_SPEED_UP)]
    chosen = NONE if fits.empty else ACCELERATIONS[fits.acceleration[fits.seconds.idxmin()]]
    return Calibration(table, chosen)


class _Look:
    """Gradients in one form: the first for what they are, others for their time."""

    def __init__(
        self, estimator: MonaiEstimator, form: Acceleration, x: Tensor, target: Tensor, valid: Tensor
    ) -> None:  # fmt: skip
        self.form, self.x, self.target, self.valid = form, x, target, valid
        self.objective = (SoftDice if estimator.segments else CrossEntropy)(estimator.decision)
        self.seconds: list[float] = []
        self.refused = ""
        estimator.acceleration = form
        self.victim = estimator.victim()  # with a copy of its own, made in the first look
        try:
            self.output, self.gradient = self._look()
        except (ValueError, RuntimeError) as error:
            self.refused = " ".join(str(error).split())

    def _look(self) -> tuple[Tensor, Tensor]:
        with self.victim.attacked():
            output, _, gradient = self.victim.differentiate(
                self.x, lambda z: self.objective(z, self.target, valid=self.valid)
            )
        return output, gradient

    def time(self) -> None:
        """Runs it once more."""
        if not self.refused:
            began = time.perf_counter()
            self._look()
            self.seconds.append(time.perf_counter() - began)

    def row(self, exact: _Look) -> dict[str, Any]:
        """What is told of it beside the network itself."""
        unknown = dict.fromkeys(("seconds", "speed_up", "logits_off", "cosine", "signs"), np.nan)
        told: dict[str, Any] = {"acceleration": self.form.name, **unknown, "refused": self.refused}
        if self.refused:
            return told
        mine, theirs = (look.gradient.double().flatten(1) for look in (self, exact))
        cosine = float(torch.nn.functional.cosine_similarity(mine, theirs, dim=1, eps=1e-300).min())
        size = theirs.abs()
        signs = float(size[mine.sign() == theirs.sign()].sum() / size.sum().clamp_min(1e-300))
        off = float((self.output - exact.output).abs().max() / exact.output.abs().max().clamp_min(1e-30))
        seconds = float(np.median(self.seconds))
        told |= {"seconds": seconds, "speed_up": float(np.median(exact.seconds)) / seconds, "logits_off": off,
                 "cosine": cosine, "signs": signs}  # fmt: skip
        if not (cosine >= COSINE and signs >= SIGNS):
            told["refused"] = f"its gradients differ (cosine {cosine:.3f}, signs {signs:.3f})"
        return told
