"""What the attacker maximises: one number per case.

Every objective is ``objective(output, target, valid=..., progress=...) -> (N,)`` on logits ``(N, C, *S)`` and a
canonical target. Untargeted, it grows as the diagnosis leaves the reference; targeted, as it nears the target. Means
run over the valid voxels (or labels) of each case, never over a batch. Weights that depend on the prediction are
detached.
``progress`` in [0, 1) is the share of the search that is over.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import functional as F

from medadv.decisions import Decision, Multiclass
from medadv.metrics import voxels_in

View = Callable[[Tensor], Tensor]


class Objective(ABC):
    """One number per case that the attacker makes large.

    Args:
        decision: how the logits become a diagnosis.
        targeted: False: away from the reference; True: towards the given target.

    Attributes:
        scheduled: True if the value changes with ``progress`` or with the prediction's own weights, so that values of
            different steps can't be compared; step control then watches a fixed objective
            (:func:`medadv.objectives.monitor_of`).
        voxels_only: True if it compares regions and has no meaning for one diagnosis per image.
        sees_detector: True if it is made for the outputs of a model with a detector (:mod:`medadv.detectors`).
        images_only: True if it has no meaning for one diagnosis per voxel.
        views: functions of the image whose logits it needs as well; it gets them, without a graph, as ``others``.
    """

    scheduled = False
    voxels_only = False
    images_only = False
    views: Sequence[View] = ()
    sees_detector = False

    def __init__(self, decision: Decision, *, targeted: bool = False) -> None:
        if getattr(decision, "guarded", False) and not self.sees_detector:
            raise TypeError(
                f"{type(self).__name__} does not know the detector of this decision; give the objective by name, or "
                "make it for decision.plain and hand it to the attack."
            )
        self.decision = decision
        self.targeted = targeted

    @abstractmethod
    def __call__(self, output: Tensor, target: Tensor, *, valid: Tensor, progress: float = 0.0) -> Tensor:
        """Logits ``(N, C, *S)``, canonical target and validity -> ``(N,)``."""

    def badness(self, output: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """How far the attacker is by the hard diagnosis, ``(N,)``, large is what it wants; ranks images first.

        The hard score against the reference with its sign turned, or the agreement with the target. An objective that
        wants something else (a volume, a lesion) says so here, and selection follows. A case that can't be scored
        gets -1, as any number equal for all its images will do.
        """
        score = self.decision.score(output, target, valid)
        return (score if self.targeted else -score).nan_to_num(-1.0)

    @property
    def floor(self) -> float:
        """The badness at which nothing is left to gain by the hard diagnosis."""
        return 1.0 if self.targeted else 0.0

    @property
    def sign(self) -> float:
        """+1 to leave the reference, -1 to approach the target; the sign of a loss that measures disagreement."""
        return -1.0 if self.targeted else 1.0


def log_odds(output: Tensor) -> Tensor:
    """Logits ``(N, 2, *S)`` of two classes that exclude each other -> logit of the second, ``(N, *S)``."""
    first, second = output.unbind(1)  # the gradient of this is one copy, that of two indices four
    return second - first


def per_voxel_cross_entropy(decision: Decision, output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy like ``target``: softmax over classes, or binary per label."""
    if isinstance(decision, Multiclass):
        if decision.channels > 2:
            return F.cross_entropy(output, target, reduction="none")
        output = log_odds(output)  # the same number at half the cost
    # torch's binary cross-entropy has the gradient p - 1 where the target is 1, which a sure model rounds to 0
    return F.softplus(output * (1 - 2 * target.to(output.dtype)))


def kullback_leibler(decision: Decision, first: Tensor, second: Tensor) -> Tensor:
    """Kullback-Leibler divergence ``KL(p || q)`` of two predictions, like a canonical target.

    Args:
        decision: Multiclass: summed over the classes; Multilabel: that of each label given or not.
        first: logits ``(N, C, *S)`` of p.
        second: logits ``(N, C, *S)`` of q.
    """
    if isinstance(decision, Multiclass):
        log_p, log_q = first.log_softmax(1), second.log_softmax(1)
        return (log_p.exp() * (log_p - log_q)).sum(1)
    p = first.sigmoid()
    given = p * (F.logsigmoid(first) - F.logsigmoid(second))
    return given + (1 - p) * (F.logsigmoid(-first) - F.logsigmoid(-second))


def mean_over_valid(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of ``values`` over the valid entries of each case ``(N, ...) -> (N,)``; 0 for a case without any."""
    if values.ndim == 1:
        return values * valid
    count = voxels_in(valid, 1)
    if bool((count < valid[0].numel()).any()):  # a product with a mask is slow on a CPU, and so is its gradient
        values = values * valid
    return values.flatten(1).sum(1) / count.clamp(min=1)


def agrees(decision: Decision, output: Tensor, target: Tensor) -> Tensor:
    """Where the hard diagnosis equals the target, like ``target``."""
    return decision.harden(output.detach()) == target
