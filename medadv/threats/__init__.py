"""What the attacker may change, and the nearest image that is allowed.

A threat belongs to one batch of images ``x``. It turns a parameter ``theta`` into an image with :meth:`Threat.apply`;
intensity range, storage grid and region mask live there, so every image that leaves a threat is allowed.
"""

from medadv.threats.balls import LInfBall, LpBall
from medadv.threats.base import CaseRandom, Threat, case_norm, chosen, per_case
from medadv.threats.frequency import DCTQuantisation
from medadv.threats.geometry import Affine, Deformation
from medadv.threats.intensity_fields import BiasField, IntensityCurve
from medadv.threats.kinds import BALL_KINDS, BALLS, THREATS, ThreatKind
from medadv.threats.kspace import KSpace
from medadv.threats.noise import PoissonNoise, RicianNoise
from medadv.threats.parametric import ParametricThreat
from medadv.threats.patches import Patch
from medadv.threats.summed_balls import L1Ball, L2Ball

__all__ = [
    "Affine",
    "BALLS",
    "BALL_KINDS",
    "BiasField",
    "CaseRandom",
    "DCTQuantisation",
    "Deformation",
    "IntensityCurve",
    "KSpace",
    "L1Ball",
    "L2Ball",
    "LInfBall",
    "LpBall",
    "ParametricThreat",
    "Patch",
    "PoissonNoise",
    "RicianNoise",
    "THREATS",
    "Threat",
    "ThreatKind",
    "case_norm",
    "chosen",
    "per_case",
]
