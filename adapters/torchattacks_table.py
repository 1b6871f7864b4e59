"""What torchattacks 3.5.1 is right for, attack by attack, as data; torchattacks itself is not imported.

Every limit was measured: each class was run on 2D and 3D images, exclusive classes, labels that overlap, and
segmentations. A limit stands where the library fails there, or where it gives a wrong result without an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

LINF: tuple[float, ...] = (np.inf,)
L2: tuple[float, ...] = (2.0,)
L1: tuple[float, ...] = (1.0,)
IMAGES = ("classification",)
VOXELS_TOO = ("classification", "segmentation")

ONE_LABEL = "it reads one label per image and fails on a map of labels"
FLAT = "it fails on images of three dimensions"
MOMENTUM = (
    "it scales the gradient by its mean over axes 1 to 3 and leaves out the last axis of a volume, so that every slice "
    "along it is scaled on its own"
)
NORM_OF_ROWS = "it shapes the norms of the cases for 2D images, so volumes fail or leave the budget"
DIVERSITY_MOVES = "it resizes and shifts the image but not its segmentation"
NO_DIRECTION = "it has no targeted form"
RATIO = "its ratio of logits compares the four greatest"
ONE_BALL = "it knows no other ball"
SIZES = "the L2 form of its square attack fails on sizes such as 24 x 24"


@dataclass(frozen=True)
class Entry:
    """One class of torchattacks.

    Attributes:
        name: of the class.
        summary: what it does, in one line.
        reference: paper id.
        objective: what it raises, in words.
        options: parameters without a unit and their defaults, which are torchattacks' own (but for ``nb_iter`` of SPSA:
            its one step moves a thirtieth of eps).
        of_eps: parameters in the unit of the image; default: this share of eps, torchattacks' own ratio.
        of_range: parameters in the unit of the image without a relation to eps; default: this share of high - low, or
            None where it must be given.
        choices: what options that are names accept.
        tasks, ranks, norms, access, minimal: as in :class:`medadv.attacks.Recipe`; no norm: it bounds nothing but the
            range.
        targeted: True if it can be directed, and is right then.
        needs_target: True if it is right only when directed.
        channels: number of channels it needs; None: any.
        least_classes: number of classes it needs.
        square: True if height and width must be equal.
        most_values: greatest number of values of an image; None: any.
        open_range: True if voxels at the ends of the range can't move.
        eps_name: what torchattacks calls eps.
        takes_classes: True if it must be told the number of classes.
        seeded: True if it sets the seed itself.
        draws: True if it draws random numbers for the whole batch.
        single: True if it goes through the cases one by one anyhow, or lets them influence each other in a batch; it is
            run on one case at a time.
        fades: True if one step without a gradient ends the attack of that case.
        positive: True if its formula is right only for logits above zero; they are shifted, which changes no margin.
        why: reason for a limit, by ``"segmentation"``, ``"3D"``, ``"targeted"``, ``"norm"`` or
            ``"classes"``.
        instead: what to use where it is not right.
        refused: why it can't be used at all.
    """

    name: str
    summary: str
    reference: str
    objective: str = "cross-entropy"
    options: Mapping[str, Any] = field(default_factory=dict)
    of_eps: Mapping[str, float] = field(default_factory=dict)
    of_range: Mapping[str, float | None] = field(default_factory=dict)
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tasks: tuple[str, ...] = IMAGES
    ranks: tuple[int, ...] = (2, 3)
    norms: tuple[float, ...] = LINF
    access: str = "white-box"
    minimal: bool = False
    targeted: bool = True
    needs_target: bool = False
    channels: int | None = None
    least_classes: int = 2
    square: bool = False
    most_values: int | None = None
    open_range: bool = False
    eps_name: str = "eps"
    takes_classes: bool = False
    seeded: bool = False
    draws: bool = False
    single: bool = False
    fades: bool = False
    positive: bool = False
    why: Mapping[str, str] = field(default_factory=dict)
    instead: tuple[str, ...] = ("pgd", "apgd-ce")
    refused: str = ""

    def reason(self, limit: str) -> str:
        """Why it does not go beyond a limit."""
        common = {"segmentation": ONE_LABEL, "3D": FLAT, "targeted": NO_DIRECTION, "norm": ONE_BALL, "classes": RATIO}
        return self.why.get(limit, common[limit])


_STEPS = {"steps": 10}
_QUARTER = {"alpha": 0.25}


def _momentum(name: str, summary: str, reference: str, **changes: Any) -> Entry:
    settings: dict[str, Any] = {
        "options": {**_STEPS, "decay": 1.0}, "of_eps": _QUARTER, "tasks": VOXELS_TOO, "ranks": (2,), "fades": True,
        "why": {"3D": MOMENTUM}, "instead": ("mi-fgsm",),
    }  # fmt: skip
    return Entry(name, summary, reference, **{**settings, **changes})


_DIVERSITY = {**_STEPS, "decay": 0.0, "resize_rate": 0.9, "diversity_prob": 0.5, "random_start": False}
_ELASTIC = {
    "kappa": 0.0, "lr": 0.01, "binary_search_steps": 9, "max_iterations": 100, "abort_early": True,
    "initial_const": 0.001, "beta": 0.001,
}  # fmt: skip
_SMOOTHED = {**_STEPS, "noise_type": "gaussian", "noise_batch_size": 5}
_NOISES = {"noise_type": ("gaussian", "uniform")}

ENTRIES = (
    Entry("GN", "Gaussian noise of a standard deviation, cut off at the range", "baseline", "nothing", norms=(),
          of_range={"std": None}, tasks=VOXELS_TOO, access="none", targeted=False, draws=True, instead=("noise",)),
    Entry("FGSM", "one step along the gradient", "1412.6572", tasks=VOXELS_TOO, instead=("fgsm",)),
    Entry("BIM", "repeated steps from the image", "1607.02533", options=_STEPS, of_eps=_QUARTER, tasks=VOXELS_TOO),
    Entry("RFGSM", "a random step, then gradient steps", "1705.07204", options=_STEPS, of_eps=_QUARTER,
          tasks=VOXELS_TOO, draws=True),
    Entry("PGD", "projected gradient steps from a random start", "1706.06083",
          options={**_STEPS, "random_start": True}, of_eps=_QUARTER, tasks=VOXELS_TOO, draws=True),
    Entry("EOTPGD", "projected steps along a gradient averaged over repetitions", "1907.00895",
          options={**_STEPS, "eot_iter": 2, "random_start": True}, of_eps=_QUARTER, tasks=VOXELS_TOO, draws=True),
    Entry("FFGSM", "a random start and one step", "2001.03994", of_eps={"alpha": 1.25}, tasks=VOXELS_TOO, draws=True),
    _momentum("MIFGSM", "steps with momentum", "1710.06081"),
    _momentum("NIFGSM", "steps with Nesterov momentum", "1908.06281"),
    _momentum("SINIFGSM", "Nesterov momentum over images scaled by 1, 1/2, 1/4 ...", "1908.06281",
              options={**_STEPS, "decay": 1.0, "m": 5}),
    _momentum("VMIFGSM", "momentum tuned by the gradient's variance nearby", "2103.15571", draws=True,
              options={**_STEPS, "decay": 1.0, "N": 5, "beta": 1.5}),
    _momentum("VNIFGSM", "Nesterov momentum tuned by the gradient's variance nearby", "2103.15571", draws=True,
              options={**_STEPS, "decay": 1.0, "N": 5, "beta": 1.5}),
    _momentum("UPGD", "steps with momentum along a gradient averaged over repetitions", "torchattacks", draws=True,
              options={**_STEPS, "decay": 1.0, "random_start": False, "eot_iter": 1}),
    _momentum("DIFGSM", "momentum over images that are resized and padded at random", "1803.06978", options=_DIVERSITY,
              tasks=IMAGES, square=True, draws=True, why={"3D": FLAT, "segmentation": DIVERSITY_MOVES}),
    _momentum("TIFGSM", "input diversity with gradients blurred by a kernel", "1904.02884", tasks=IMAGES,
              options={**_DIVERSITY, "kernel_name": "gaussian", "len_kernel": 15, "nsig": 3.0}, square=True, draws=True,
              channels=3, choices={"kernel_name": ("gaussian", "linear", "uniform")},
              why={"3D": FLAT, "segmentation": DIVERSITY_MOVES}),
    Entry("PGDL2", "projected gradient steps in the L2 ball", "1706.06083", norms=L2, tasks=VOXELS_TOO, ranks=(2,),
          options={**_STEPS, "random_start": True}, of_eps={"alpha": 0.2}, draws=True, why={"3D": NORM_OF_ROWS},
          instead=("pgd",)),
    Entry("APGD", "auto-pgd", "2003.01690", options={**_STEPS, "n_restarts": 1, "loss": "ce", "eot_iter": 1,
          "rho": 0.75}, choices={"loss": ("ce", "dlr")}, norms=(np.inf, 2.0), ranks=(2,), targeted=False, seeded=True,
          draws=True, instead=("apgd-ce",)),
    Entry("APGDT", "auto-pgd on the ratio of logits, towards each other class", "2003.01690", "ratio of logits",
          options={**_STEPS, "n_restarts": 1, "eot_iter": 1, "rho": 0.75}, norms=(np.inf, 2.0), ranks=(2,),
          targeted=False, least_classes=4, takes_classes=True, seeded=True, draws=True,
          instead=("apgd-t", "apgd-margin")),
    Entry("AutoAttack", "auto-pgd, targeted auto-pgd, FAB and square, each on what the ones before left", "2003.01690",
          "cross-entropy, ratio of logits, distance, margin", options={"version": "standard"},
          choices={"version": ("standard", "plus", "rand")}, ranks=(2,), square=True, targeted=False, least_classes=4,
          takes_classes=True, seeded=True, draws=True, why={"norm": SIZES}, instead=("autoattack", "robust")),
    Entry("FAB", "the nearest image across the linearised boundary, kept where it is within eps", "1907.02044",
          "distance", options={**_STEPS, "n_restarts": 1, "alpha_max": 0.1, "eta": 1.05, "beta": 0.9,
          "multi_targeted": False}, norms=(np.inf, 2.0), targeted=False, takes_classes=True, seeded=True, draws=True,
          why={"targeted": "its targeted form takes the class wanted for the reference and returns the images as they "
               "came", "norm": "its L1 form fails"}, instead=("fab",)),
    Entry("Square", "random squares, kept where the margin falls", "1912.00049", "margin",
          options={"n_queries": 5000, "n_restarts": 1, "p_init": 0.8, "loss": "margin", "resc_schedule": True},
          choices={"loss": ("margin", "ce")}, ranks=(2,), square=True, access="score", seeded=True, single=True,
          why={"norm": SIZES}, instead=("square",)),
    Entry("SPSA", "Adam on a gradient estimated from random differences", "1802.05666", "margin",
          options={"nb_iter": 40, "nb_sample": 128, "max_batch_size": 64}, of_eps={"delta": 1 / 30, "lr": 1 / 30},
          access="score", draws=True, instead=("square",)),
    Entry("Jitter", "steps on rescaled, noisy probabilities", "2105.10304", "distance of probabilities",
          options={**_STEPS, "scale": 10.0, "std": 0.1, "random_start": True}, of_eps=_QUARTER, ranks=(2,),
          targeted=False, least_classes=3, draws=True,
          why={"targeted": "its targeted form scales the loss where the target is not reached yet instead of where it "
               "is", "classes": "it divides the logits by the greatest, which leaves hardly a gradient between two"}),
    Entry("PGDRS", "projected steps on a model smoothed by noise", "1906.04584", "cross-entropy of mean probabilities",
          options=_SMOOTHED, of_eps=_QUARTER, of_range={"noise_sd": None}, choices=_NOISES, ranks=(2,), draws=True),
    Entry("PGDRSL2", "projected steps in the L2 ball on a model smoothed by noise", "1906.04584",
          "cross-entropy of mean probabilities", options=_SMOOTHED, of_eps={"alpha": 0.2}, of_range={"noise_sd": None},
          choices=_NOISES, norms=L2, ranks=(2,), draws=True, instead=("pgd",)),
    Entry("PIFGSM", "steps with the part beyond the budget spread over neighbours", "2007.06765", ranks=(2,),
          options={"num_iter_set": 10, "amplification": 10.0}, eps_name="max_epsilon", channels=3, targeted=False,
          instead=("mi-fgsm",)),
    Entry("CW", "Adam on distance plus margin, in a variable that keeps the range", "1608.04644", "distance and margin",
          options={"c": 1.0, "kappa": 0.0, "steps": 50, "lr": 0.01}, norms=L2, minimal=True, single=True, positive=True,
          open_range=True, instead=("cw",)),
    Entry("DeepFool", "steps to the linearised boundary", "1511.04599", "distance", norms=L2, minimal=True,
          options={"steps": 50, "overshoot": 0.02}, targeted=False, single=True, instead=("fab", "cw")),
    Entry("EADL1", "shrinkage on L1, L2 and margin; the least L1 is kept", "1709.04114", "distance and margin",
          norms=L1, options=_ELASTIC, minimal=True, single=True, positive=True, instead=("fab", "cw")),
    Entry("EADEN", "shrinkage on L1, L2 and margin; the least of L2 plus L1 is kept", "1709.04114",
          "distance and margin", norms=(), options=_ELASTIC, minimal=True, single=True, positive=True,
          instead=("fab", "cw")),
    Entry("SparseFool", "steps to the linearised boundary voxel by voxel", "1811.02248", "distance", norms=(),
          options={"steps": 10, "lam": 3.0, "overshoot": 0.02}, minimal=True, targeted=False, single=True,
          instead=("fab", "cw")),
    Entry("JSMA", "the two most salient voxels at a time", "1511.07528", "saliency", norms=(),
          options={"gamma": 0.1}, of_range={"theta": 1.0}, needs_target=True, single=True, most_values=4096,
          least_classes=3, why={
              "targeted": "without a target it aims at class (y + 1) % 10, whatever the number of classes",
              "classes": "of logits 0 and z it finds no pair of voxels that raises one and lowers the other, and "
              "changes the first voxel again and again"},
          instead=("pgd",)),
    Entry("OnePixel", "a pixel found by differential evolution", "1710.08864", "probability of the class", norms=(),
          options={"pixels": 1, "steps": 10, "popsize": 10, "inf_batch": 128}, ranks=(2,), access="score", single=True,
          instead=("square",)),
    Entry("Pixle", "pixels of a patch copied to random places", "2202.02236", "probability of the class", norms=(),
          options={"x_dimensions": (2, 10), "y_dimensions": (2, 10), "restarts": 20, "max_iterations": 10}, ranks=(2,),
          square=True, access="score", single=True, instead=("square",)),
    Entry("VANILA", "no attack", "none", norms=(), instead=("noise",), refused="it returns the images as they came"),
    Entry("TPGD", "steps away from the model's own output", "1901.08573", refused=(
        "it never looks at the reference but moves away from the model's own output, also towards more confidence")),
    Entry("PIFGSMPP", "PIFGSM with blurred gradients", "2012.15503", instead=("mi-fgsm",), refused=(
        "the kernel it blurs gradients with is put together with rows and channels mixed up, so that it is no Gaussian "
        "and another one for each channel")),
    Entry("MultiAttack", "several attacks in turn", "none", norms=(), instead=("autoattack", "robust"), refused=(
        "it takes ready attacks instead of a model; run them one by one and keep the worst score of each case")),
    Entry("LGV", "an attack on models collected while training on", "2207.13129", norms=(), instead=("transfer",),
          refused="it goes on training a copy of the network with a loader, a loss and a range of its own"),
)  # fmt: skip
