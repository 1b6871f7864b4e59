"""The kinds of threats by name: how a budget is read and how the set is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from medadv.intensities import Budget, Intensity
from medadv.threats.balls import LInfBall, LpBall
from medadv.threats.base import CaseRandom, Threat
from medadv.threats.frequency import GREY, DCTQuantisation
from medadv.threats.geometry import Affine, Deformation, affine_budget, displacement_budget
from medadv.threats.intensity_fields import BiasField, IntensityCurve
from medadv.threats.kspace import KSpace, kspace_budget
from medadv.threats.noise import PoissonNoise, RicianNoise
from medadv.threats.parametric import limit_reader
from medadv.threats.patches import Patch, patch_budget
from medadv.threats.summed_balls import L1Ball, L2Ball

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
        drawn: True if the set itself is drawn at random per case, such as the place of a patch; ``build`` then gets
            the draws of each case as ``random``.
        ranks: spatial dimensions it is for.
    """

    name: str
    summary: str
    build: Build
    budget: Callable[[float | str, Intensity], Budget] = _budget_of_intensity
    eps: float | str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    norm: float | None = None
    drawn: bool = False
    ranks: tuple[int, ...] = (2, 3)

    def threat(
        self,
        x: Tensor,
        budget: Budget,
        intensity: Intensity,
        mask: Tensor | None,
        options: Mapping[str, Any],
        random: CaseRandom | None = None,
    ) -> Threat:
        """The set around images ``x``; of ``options`` and of the draws those are used that this kind has."""
        used = {name: options[name] for name in self.options}
        if self.drawn:
            used["random"] = random
        return self.build(x, budget, intensity, mask, **used)


_BALLS = (
    ThreatKind("linf", "every voxel moves by at most eps", LInfBall, norm=torch.inf),
    ThreatKind("l2", "the root of the summed squared change is at most eps", L2Ball, norm=2.0),
    ThreatKind("l1", "the summed absolute change is at most eps", L1Ball, norm=1.0),
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

_PHYSICAL = (
    ThreatKind("deformation", "a smooth one-to-one field moves image and reference by at most eps along an axis",
               Deformation, displacement_budget, eps=1.0,
               options={"control_points": 5, "interpolation": "bspline", "spacing": None}),
    ThreatKind("affine", "image and reference turn, scale and shift by at most the share eps of the limits", Affine,
               affine_budget, eps=1.0, options={"rotation": 30.0, "scale": 0.2, "translation": 0.1, "shear": 0.0,
                                                     "spacing": None}),
    ThreatKind("patch", "any intensity in a box of at most the share eps of the voxels, which do not count", Patch,
               patch_budget, eps=0.05, options={"location": "random", "score_patch": False}, drawn=True),
    ThreatKind("kspace", "a complex change of k-space lines with at most the share eps of its L2 norm", KSpace,
               kspace_budget, eps=0.02, options={"lines": "all", "reconstruction": "auto"}, drawn=True),
)  # fmt: skip

THREATS: dict[str, ThreatKind] = {kind.name: kind for kind in (*_BALLS, *_APPEARANCE, *_PHYSICAL)}
BALLS: dict[float, type[LpBall]] = {torch.inf: LInfBall, 2.0: L2Ball, 1.0: L1Ball}
BALL_KINDS: dict[float, ThreatKind] = {kind.norm: kind for kind in _BALLS if kind.norm is not None}
