"""The kinds of threats by name: how a budget is read and how the set is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from medadv.intensities import Budget, Intensity
from medadv.threats.balls import L2Ball, LInfBall
from medadv.threats.base import Threat
from medadv.threats.frequency import GREY, DCTQuantisation
from medadv.threats.intensity_fields import BiasField, IntensityCurve
from medadv.threats.noise import PoissonNoise, RicianNoise
from medadv.threats.parametric import limit_reader

Build = Callable[..., Threat]


def _budget_of_intensity(eps: float | str, intensity: Intensity) -> Budget:
    return intensity.budget(eps)


@dataclass(frozen=True)
class ThreatKind:
    """A kind of threat as data.

    Attributes:
        name: how tables call it.
        summary: what the attacker may do and what the budget bounds, in one line.
        build: ``(x, budget, intensity, mask, **options) -> Threat`` for images ``(N, C, *S)``.
        budget: reads ``eps`` and step sizes; default: as :meth:`Intensity.budget` does, in the unit of the image.
        eps: default budget; None: the user must say it.
        options: parameters of ``build`` that an attack may set, with their defaults.
        norm: order of the ball, where it is one.
        ranks: spatial dimensions it is for.
    """

    name: str
    summary: str
    build: Build
    budget: Callable[[float | str, Intensity], Budget] = _budget_of_intensity
    eps: float | str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    norm: float | None = None
    ranks: tuple[int, ...] = (2, 3)

    def threat(
        self, x: Tensor, budget: Budget, intensity: Intensity, mask: Tensor | None, options: Mapping[str, Any]
    ) -> Threat:
        """The set around images ``x``; of ``options`` those are used that this kind has."""
        return self.build(x, budget, intensity, mask, **{name: options[name] for name in self.options})


_BALLS = (
    ThreatKind("linf", "every voxel moves by at most eps", LInfBall, norm=torch.inf),
    ThreatKind("l2", "the root of the summed squared change is at most eps", L2Ball, norm=2.0),
)

_APPEARANCE = (
    ThreatKind("bias-field", "a smooth field multiplies grey values by 1 - eps to 1 + eps", BiasField,
               limit_reader("a bias field", below=1.0), 0.3, {"control_points": 4}),
    ThreatKind("intensity-curve", "log gamma, log contrast and shift of the window are at most eps", IntensityCurve,
               limit_reader("an intensity curve"), 0.2),
    ThreatKind("vafa", "frequencies of blocks are quantised by steps of at most eps grey values of 0..255",
               DCTQuantisation, limit_reader("quantisation steps", unit="grey/255", whole=GREY), 20.0, {"block": 32}),
    ThreatKind("rician-noise", "noise with a standard deviation of eps windows in both parts of the signal",
               RicianNoise, limit_reader("Rician noise"), 0.05),
    ThreatKind("poisson-noise", "counting noise with a standard deviation of eps relative to mid-grey", PoissonNoise,
               limit_reader("Poisson noise"), 0.05),
)  # fmt: skip

THREATS: dict[str, ThreatKind] = {kind.name: kind for kind in (*_BALLS, *_APPEARANCE)}
BALL_KINDS: dict[float, ThreatKind] = {kind.norm: kind for kind in _BALLS if kind.norm is not None}
