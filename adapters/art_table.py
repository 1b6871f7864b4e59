"""ART's evasion attacks as data: what each is for, how it is reached, and why some are refused (ART 1.20.1)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import art.attacks.evasion as evasion
import numpy as np

from medadv.attacks.recipes import COMMON_OPTIONS
from medadv.decisions import Multiclass
from medadv.victims import Victim

KINDS = ("multiclass", "binary", "multilabel", "segmentation")
TWO_CLASS = ("binary", "multilabel", "segmentation")
VIEWED = ("multilabel", "segmentation")
BOTH = (np.inf, 2.0)


@dataclass(frozen=True)
class Refusal:
    """Where an attack is not right.

    Attributes:
        why: the reason, as the second half of a sentence that begins with the attack's name.
        instead: attacks of the catalogue that are right.
        kinds: kinds of models it is refused for.
        ranks: spatial dimensions it is refused for.
        targeted: True: only where a target is asked for; False: only where none is; None: always.
    """

    why: str
    instead: tuple[str, ...] = ("pgd", "apgd-ce")
    kinds: tuple[str, ...] = KINDS
    ranks: tuple[int, ...] = (2, 3)
    targeted: bool | None = None


@dataclass(frozen=True)
class ArtRow:
    """One class of ``art.attacks.evasion``.

    Attributes:
        art: name of the class.
        summary: what it does, in one line.
        reference: paper id.
        access: what the attacker needs of the model.
        norms: balls it searches, or norms it measures the smallest perturbation in; empty: none.
        budget: ART's name of the radius; None: the attack has none.
        first_step: ``eps_step`` as a share of the radius where it is not given.
        dense: True if it needs no classifier: multi-label models and segmenters are attacked as they are.
        soft: True if it needs probabilities.
        centred: True if it needs a range centred on zero.
        labels: "both": y is the reference or the target; "targets": ART takes y for a target whatever else is said.
        guided: True if it needs the option ``guide``, an image.
        universal: True if it seeks one perturbation for all images.
        slices: True if it wraps PGD and changes slices one by one.
        defaults: options whose defaults are not ART's.
        hidden: parameters of ART's that are not offered.
        needs: packages that ART imports without declaring them.
        refusals: where it is not right.
        flat: values of options that are right in 2D only, on square images.
        dense_refusals: options that ART has for classifiers only, with the reason.
        instead: attacks of the catalogue to turn to where it fails.
    """

    art: str
    summary: str
    reference: str
    access: str = "white-box"
    norms: tuple[float, ...] = ()
    budget: str | None = None
    first_step: float = 0.25
    dense: bool = False
    soft: bool = False
    centred: bool = False
    labels: str = "both"
    guided: bool = False
    universal: bool = False
    slices: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    flat: Mapping[str, str] = field(default_factory=dict)
    dense_refusals: Mapping[str, str] = field(default_factory=dict)

    instead: tuple[str, ...] = ("pgd", "apgd-ce")

    def refusal(self, kind: str, rank: int, targeted: bool | None = None) -> Refusal | None:
        """Why it is refused for a kind of model and a rank; None where it is right."""
        for refusal in self.refusals:
            if kind in refusal.kinds and rank in refusal.ranks and refusal.targeted in (None, targeted):
                return refusal
        return None

    def ranks_for(self, kind: str) -> tuple[int, ...]:
        """Spatial dimensions it is right in, for a kind of model."""
        return tuple(rank for rank in (2, 3) if self.refusal(kind, rank) is None)

    def check(self, name: str, kind: str, rank: int | None, targeted: bool) -> None:
        """Refuses a model; where the rank is not known yet, only one that is refused in both."""
        found = [self.refusal(kind, r, targeted) for r in ((2, 3) if rank is None else (rank,))]
        if all(found):
            refusal = found[0]
            assert refusal is not None
            raise ValueError(
                f"attack {name!r} is not right for this model ({kind}{'' if rank is None else f', {rank}D'}): ART's "
                f"{self.art} {refusal.why}; use {' or '.join(map(repr, refusal.instead))}."
            )

    @property
    def directed(self) -> bool:
        """True if it can be led to a diagnosis."""
        return self.labels == "targets" or "targeted" in parameters_of(self) or self.art.startswith("Targeted")


def kind_of(victim: Victim) -> str:
    """Which of :data:`KINDS` a model is."""
    if victim.segments:
        return "segmentation"
    if not isinstance(victim.decision, Multiclass):
        return "multilabel"
    return "binary" if victim.decision.num_classes == 2 else "multiclass"


def parameters_of(row: ArtRow) -> dict[str, Any]:
    """Parameters of ART's class and their defaults, the estimator aside; none where the class can't be imported."""
    kind = getattr(evasion, row.art, None)
    if kind is None:
        return {}
    parameters = list(inspect.signature(kind.__init__).parameters.values())[2:]
    return {p.name: None if p.default is p.empty else p.default for p in parameters}


def options_of(row: ArtRow) -> dict[str, Any]:
    """Options a user may set, with their defaults: those of ART's class, and the few the wrapper adds."""
    shared = {*COMMON_OPTIONS, "summary_writer", row.budget, *row.hidden}
    options = {name: value for name, value in parameters_of(row).items() if name not in shared}
    options.update({name: None for name in ("eps_step", "step_size") if name in options and row.budget})
    if row.guided:
        options["guide"] = None
    if not (row.dense or row.universal):
        options["dice_threshold"] = 0.5
    return {**options, **row.defaults}


def _never(art: str, reference: str, why: str, *instead: str) -> ArtRow:
    """A class that is right for no model of medadv."""
    return ArtRow(art, f"refused: {why}", reference, refusals=(Refusal(why, instead),))


_RANDOM = "ART draws random starts for classifiers only"
_DETECTOR = "is for object detectors, whose output is boxes"
_SPEECH = "is for speech recognisers, whose input is sound"
_TENSORFLOW = "is for TensorFlow models"
_GREY = "counts in whole grey values of 0 to 255 and fails on two classes and on volumes"
_PATCH = "makes a patch and no adversarial images, and extrudes it through all slices of a volume"
_FLAT = "is for 2D images"
_ONE_FOR_ALL = Refusal("needs one classifier for all images, and each case here has one of its own",
                       ("universal",), VIEWED)  # fmt: skip

_GRADIENT = (
    ArtRow("FastGradientMethod", "one step along the gradient", "1412.6572", norms=BOTH, budget="eps", dense=True,
           dense_refusals={"minimal": "ART looks for the least eps on classifiers only"}),
    ArtRow("BasicIterativeMethod", "projected gradient steps", "1607.02533", norms=(np.inf,), budget="eps", dense=True),
    ArtRow("ProjectedGradientDescent", "projected gradient steps", "1706.06083", norms=BOTH, budget="eps", dense=True,
           hidden=("random_eps",), dense_refusals={"num_random_init": _RANDOM}),
    ArtRow("ProjectedGradientDescentNumpy", "projected gradient steps in numpy", "1706.06083", norms=BOTH,
           budget="eps", dense=True, hidden=("random_eps",), dense_refusals={"num_random_init": _RANDOM}),
    ArtRow("ProjectedGradientDescentPyTorch", "projected gradient steps in torch", "1706.06083", norms=BOTH,
           budget="eps", hidden=("random_eps",)),
    ArtRow("MomentumIterativeMethod", "projected steps with momentum", "1710.06081", norms=BOTH, budget="eps",
           dense=True),
    ArtRow("AutoProjectedGradientDescent", "projected steps whose size adapts", "2003.01690", norms=BOTH, budget="eps",
           first_step=2.0),
    ArtRow("AutoConjugateGradient", "conjugate gradients whose step adapts", "2206.09628", norms=BOTH, budget="eps",
           first_step=2.0),
    ArtRow("RescalingAutoConjugateGradient", "conjugate gradients, rescaled", "2408.03972", norms=BOTH, budget="eps",
           first_step=2.0),
    ArtRow("AutoAttack", "two Auto-PGDs, DeepFool and squares", "2003.01690", norms=BOTH, budget="eps", first_step=2.0,
           hidden=("attacks", "estimator_orig", "parallel_pool_size"), needs=("multiprocess",), refusals=(
               Refusal("ends in a square attack that is for 2D images", ("robust", "autoattack"), ranks=(3,)),
               Refusal("needs three classes for its logits ratio", ("robust", "autoattack"), TWO_CLASS),
               Refusal("takes y for the class to leave whatever targeted says", ("pgd", "apgd-ce"), targeted=True))),
    ArtRow("FeatureAdversariesPyTorch", "features like those of a guide", "1511.05122", norms=(np.inf,),
           budget="delta", dense=True, guided=True, hidden=("optimizer", "optimizer_kwargs")),
    ArtRow("FeatureAdversariesNumpy", "features like those of a guide, by L-BFGS", "1511.05122", norms=(np.inf,),
           budget="delta", dense=True, guided=True, refusals=(
               Refusal("differentiates by trial, a pass per voxel and step", ("art/FeatureAdversariesPyTorch",),
                       ranks=(3,)),)),
    ArtRow("FrameSaliencyAttack", "PGD slice by slice, the most salient first", "1811.11875", norms=(np.inf,),
           budget="eps", slices=True, hidden=("attacker",),
           defaults={"frame_index": 2, "eps_step": None, "max_iter": 10},
           refusals=(Refusal("changes one slice after another, and an image has none", ("pgd",), ranks=(2,)),)),
    ArtRow("UniversalPerturbation", "one perturbation for all images", "1610.08401", norms=BOTH, budget="eps",
           universal=True, refusals=(_ONE_FOR_ALL,)),
    ArtRow("TargetedUniversalPerturbation", "one perturbation that leads all images to their targets", "1911.06502",
           norms=BOTH, budget="eps", universal=True, labels="targets", refusals=(
               _ONE_FOR_ALL, Refusal("needs targeted=True and y", ("universal",), targeted=False))),
)  # fmt: skip

_MINIMAL = (
    ArtRow("CarliniL2Method", "small L2 perturbation by steps in tanh space", "1608.04644"),
    ArtRow("CarliniLInfMethod", "small largest change by steps in tanh space", "1608.04644"),
    ArtRow("CarliniL0Method", "few voxels: CW that leaves out ever more of them", "1608.04644", hidden=("mask",),
           refusals=(Refusal("counts over three axes, which are not the voxels of a volume", ("alma-prox", "fab"),
                             ranks=(3,)),)),
    ArtRow("DeepFool", "steps to the nearest boundary of the linearised model", "1511.04599"),
    ArtRow("ElasticNet", "small L1 plus L2 perturbation", "1709.04114"),
    ArtRow("NewtonFool", "steps that lower the probability of the class", "10.1145/3134600.3134635", soft=True,
           refusals=(Refusal("stops at the boundary of two classes without crossing it", ("deepfool", "fab"),
                             TWO_CLASS),)),
    ArtRow("SaliencyMapMethod", "pairs of voxels by saliency; theta > 0 brightens only", "1511.07528",
           labels="targets"),
    ArtRow("HopSkipJump", "along the boundary by decisions alone", "1904.02144", "decision", (2.0, np.inf)),
    ArtRow("BoundaryAttack", "random walk along the boundary", "1712.04248", "decision", hidden=("min_epsilon",)),
    ArtRow("SignOPTAttack", "signs of the slope of the distance to the boundary", "1909.10773", "decision",
           hidden=("eval_perform",), refusals=(
               Refusal("is not made for two classes", ("hop-skip-jump",), TWO_CLASS),)),
    ArtRow("SimBA", "one voxel at a time, kept if the probability falls", "1905.07121", "score", soft=True,
           defaults={"attack": "px"}, flat={"attack": "dct", "order": "diag"}),
    ArtRow("ZooAttack", "Adam on differences of scores", "1708.03999", "score", centred=True,
           defaults={"use_importance": False}, hidden=("use_resize",)),
    # in L2 it divides by zero on small images
    ArtRow("SquareAttack", "random squares", "1912.00049", "score", (np.inf,), "eps", hidden=("adv_criterion", "loss"),
           refusals=(Refusal(_FLAT, ("square", "square-dice"), ranks=(3,)),)),
    ArtRow("ShadowAttack", "large smooth changes, without a bound", "2003.08937", labels="targets",
           refusals=(Refusal(_FLAT, ("deformation", "pgd"), ranks=(3,)),)),
)  # fmt: skip

_REFUSED = (
    _never("ProjectedGradientDescentTensorFlowV2", "1706.06083", _TENSORFLOW, "pgd"),
    _never("FeatureAdversariesTensorFlowV2", "1511.05122", _TENSORFLOW, "art/FeatureAdversariesPyTorch"),
    _never("GeoDA", "2003.06468", "calls numpy.mat, which numpy 2 has removed", "hop-skip-jump"),
    _never("BrendelBethgeAttack", "1907.01003",
           "needs numba, which ART does not declare, and hands torch float64 where it has float32", "fab", "alma-prox"),
    _never("Wasserstein", "1902.07906", "refuses volumes, and its projection overflows on 2D images",
           "deformation", "pgd"),
    _never("VirtualAdversarialMethod", "1507.00677",
           "goes where the output changes most, towards the right answer as often as away from it", "pgd"),
    _never("PixelAttack", "1710.08864", _GREY, "square", "simba-dct"),
    _never("ThresholdAttack", "1906.06026",
           f"needs cma, which ART does not declare, and {_GREY}", "square", "simba-dct"),
    _never("SpatialTransformation", "1712.02779",
           "turns all images alike, refuses volumes, and leaves the mask of a segmentation where it was",
           "affine", "deformation"),
    _never("CompositeAdversarialAttackPyTorch", "2202.04235",
           "changes hue and saturation of colour images by kornia, which ART does not declare", "affine", "pgd"),
    _never("OverTheAirFlickeringPyTorch", "2002.05123",
           "is for video with channels last, and would change the rows of a volume", "pgd"),
    _never("LowProFool", "1911.03274", "is for tables, whose columns it weighs by their correlation", "pgd"),
    _never("DecisionTreeAttack", "1605.07277", "is for decision trees", "pgd"),
    _never("HighConfidenceLowUncertainty", "1812.02606", "is for Gaussian processes", "pgd"),
    _never("MalwareGDTensorFlow", "1802.04528", "is for Windows programs", "pgd"),
    _never("AdversarialPatch", "1712.09665", _PATCH, "patch"),
    _never("AdversarialPatchNumpy", "1712.09665", _PATCH, "patch"),
    _never("AdversarialPatchPyTorch", "1712.09665", _PATCH, "patch"),
    _never("AdversarialPatchTensorFlowV2", "1712.09665", _TENSORFLOW, "patch"),
    _never("AdversarialTexturePyTorch", "1904.11042", "is for object trackers in video", "patch"),
    _never("DPatch", "1806.02299", _DETECTOR, "patch"),
    _never("RobustDPatch", "1906.11897", _DETECTOR, "patch"),
    _never("OverloadPyTorch", "2304.05370", _DETECTOR, "pgd"),
    _never("SNAL", "2404.15881", _DETECTOR, "pgd"),
    _never("GRAPHITEBlackbox", "2002.07088", "is for stickers on photographed signs in colour", "patch"),
    _never("GRAPHITEWhiteboxPyTorch", "2002.07088", "is for stickers on photographed signs in colour", "patch"),
    _never("LaserAttack", "2103.06504", "draws laser beams into colour photographs with channels last", "patch"),
    _never("CarliniWagnerASR", "1801.01944", _SPEECH, "pgd"),
    _never("ImperceptibleASR", "1903.10346", _SPEECH, "pgd"),
    _never("ImperceptibleASRPyTorch", "1903.10346", _SPEECH, "pgd"),
)  # fmt: skip

ART_TABLE: dict[str, ArtRow] = {row.art: row for row in (*_GRADIENT, *_MINIMAL, *_REFUSED)}
ART_ROWS: dict[str, ArtRow] = {
    **{f"art/{name}": row for name, row in ART_TABLE.items()},
    "deepfool": replace(ART_TABLE["DeepFool"], defaults={"epsilon": 0.02}),  # the overshoot of the paper
    "hop-skip-jump": ART_TABLE["HopSkipJump"],
}
