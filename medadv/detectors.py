"""Models with a detector: an attack succeeds where the diagnosis is wrong and the image is accepted.

The detector gives each image a score, large is suspicious, and rejects above a threshold that is fixed on validation
data (:func:`threshold_at_fpr`). A rejected image goes to a human, so it counts as correctly diagnosed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from medadv.adaptive import WrappedVictim
from medadv.decisions import Decision, Multiclass, Multilabel
from medadv.metrics import auc
from medadv.numbers import is_finite
from medadv.objectives.evasion import rejected, split
from medadv.victims import Features, Loss, logits_in

Detector = Callable[[Any], Tensor]
LOOKS_AT = ("images", "logits", "features", "output")


class _WithDetector:
    """What both kinds of decisions do with an output ``(N, C + 1)`` whose last channel is the detector's."""

    guarded: ClassVar[bool] = True

    def harden(self, logits: Tensor) -> Tensor:
        return super().harden(split(logits)[0])  # type: ignore[misc]

    def probabilities(self, logits: Tensor) -> Tensor:
        return super().probabilities(split(logits)[0])  # type: ignore[misc]

    def score(self, logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """As without the detector where it accepts, 1 where it rejects."""
        score = super().score(logits, target, valid)  # type: ignore[misc]
        return torch.where(rejected(split(logits)[1]) & score.isfinite(), torch.ones_like(score), score)


@dataclass(frozen=True)
class GuardedMulticlass(_WithDetector, Multiclass):
    """:class:`~medadv.decisions.Multiclass` behind a detector.

    Attributes:
        weight: what a unit of the detector's score weighs in objectives, see :func:`guarded`.
    """

    weight: float = 1.0

    @property
    def plain(self) -> Multiclass:
        """The decision without the detector."""
        return Multiclass(**_without_weight(self))


@dataclass(frozen=True)
class GuardedMultilabel(_WithDetector, Multilabel):
    """:class:`~medadv.decisions.Multilabel` behind a detector.

    Attributes:
        weight: what a unit of the detector's score weighs in objectives, see :func:`guarded`.
    """

    weight: float = 1.0

    @property
    def plain(self) -> Multilabel:
        """The decision without the detector."""
        return Multilabel(**_without_weight(self))


def _without_weight(decision: Any) -> dict[str, Any]:
    return {name: value for name, value in asdict(decision).items() if name != "weight"}


class Guarded(WrappedVictim):
    """A model with a detector, as attacks see it: see :func:`guarded`."""

    def __init__(self, estimator: Any, detector: Detector, threshold: float, on: str, weight: float) -> None:
        super().__init__(estimator, (detector,))
        if self.segments:
            raise ValueError("detectors are for one diagnosis per image; this model gives one per voxel.")
        if not callable(detector):
            raise TypeError(f"detector must be a callable that gives scores (N,), got {type(detector).__name__}.")
        if on not in LOOKS_AT:
            raise ValueError(f"on={on!r} is unknown; the detector looks at {', '.join(map(repr, LOOKS_AT))}.")
        if not _finite(threshold):
            raise ValueError(f"threshold={threshold!r} must be a finite number, such as threshold_at_fpr gives.")
        if not _finite(weight) or weight <= 0:
            raise ValueError(f"weight={weight!r} must be a finite number above 0.")
        self.detector = detector
        self.threshold = float(threshold)
        self.on = on
        self.decision = _guarded(self.decision, float(weight))

    def _excess(self, seen: Any, cases: int) -> Tensor:
        """Score of what the detector looks at, less the threshold, ``(N,)``."""
        score = self.detector(seen)
        if not isinstance(score, Tensor) or score.shape != (cases,):
            got = f"shape {tuple(score.shape)}" if isinstance(score, Tensor) else type(score).__name__
            raise ValueError(f"the detector gave {got} for {cases} images; it must return one score per image, (N,).")
        return score - self.threshold

    def _inside(self, output: Tensor | Features) -> Any:
        """What a detector behind the model looks at."""
        if self.on == "logits":
            return logits_in(output)
        if not isinstance(output, Features):
            raise TypeError(f"on={self.on!r} needs a model that shows them; wrap it in medadv.features.FeatureVictim.")
        return output if self.on == "output" else output.features

    def logits(self, x: Tensor) -> Tensor:
        output = self.inner.logits(x)
        with torch.no_grad():
            seen = x if self.on == "images" else self._inside(output)
            return _joined(logits_in(output), self._excess(seen, len(x)))

    def differentiate(self, x: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        if self.on == "images":
            return self._through_both(x, loss)
        output, values, grad = self.inner.differentiate(x, lambda out: loss(self._judged(out)))
        with torch.no_grad():
            return self._judged(output), values, grad

    def _judged(self, output: Tensor | Features) -> Tensor:
        logits = logits_in(output)
        excess = self._excess(self._inside(output), len(logits))
        self._need_gradient(excess, logits)
        return _joined(logits, excess)

    def _through_both(self, x: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        """The detector has a graph of its own beside the model's; the loss says how much it weighs."""
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            excess = self._excess(leaf, len(x))
            self._need_gradient(excess, leaf)
        weights: list[Tensor] = []

        def judged(output: Tensor | Features) -> Tensor:
            verdict = excess.detach().requires_grad_(torch.is_grad_enabled())
            values = loss(_joined(logits_in(output), verdict))
            if torch.is_grad_enabled():
                weights.append(torch.autograd.grad(values.sum(), verdict, retain_graph=True)[0])
            return values

        output, values, grad = self.inner.differentiate(x, judged)
        weight = torch.stack(weights).mean(0)  # the model may have run several times
        (of_detector,) = torch.autograd.grad(excess, leaf, weight)
        return _joined(logits_in(output), excess.detach()), values, grad + of_detector

    @staticmethod
    def _need_gradient(excess: Tensor, source: Tensor) -> None:
        if source.requires_grad and not excess.requires_grad:
            raise ValueError(
                "the detector has no gradient, so the attack can't see it; give a differentiable one, or a "
                "differentiable approximation, and evaluate on the real one."
            )


def _joined(logits: Tensor, excess: Tensor) -> Tensor:
    return torch.cat([logits, excess[:, None].to(logits.dtype)], 1)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(float(value))


def _guarded(decision: Decision, weight: float) -> Decision:
    if getattr(decision, "guarded", False):
        raise TypeError("the model has a detector already; join both into one callable.")
    kind = GuardedMulticlass if isinstance(decision, Multiclass) else GuardedMultilabel
    return kind(**asdict(decision), weight=weight)  # type: ignore[call-overload]


def guarded(
    estimator: Any, detector: Detector, *, threshold: float, on: str = "images", weight: float = 1.0
) -> Guarded:
    """A model with a detector, for attacks that know it.

    Attacks made by :func:`medadv.attacks.create` then look for images that are wrong and accepted: their objective is
    wrapped in :class:`~medadv.objectives.evasion.Evasive`, and the score of a rejected image is 1. The output is
    ``(N, C + 1)``: the model's logits and the detector's score less the threshold. Passes count the model's, not those
    of a detector on images. Wrappers of :mod:`medadv.adaptive` go inside, as in ``guarded(eot(estimator, n=8), ...)``;
    :func:`~medadv.adaptive.bpda` may also go outside, where both see the transformed image.

    Args:
        estimator: an image-level medadv estimator, a stock ART classifier, or a victim.
        detector: differentiable callable that gives one score per image ``(N,)``, large is suspicious. A module is run
            in inference mode and left as found.
        threshold: the image is rejected where its score exceeds this; fix it on validation data.
        on: what the detector is called with: ``"images"`` ``(N, C, *S)``, ``"logits"`` ``(N, C)`` or ``"features"``
            (the mapping that a :class:`~medadv.features.FeatureVictim` shows) or ``"output"`` (its
            :class:`~medadv.victims.Features`, logits and features).
        weight: what a unit of the score weighs against the objective of the diagnosis; a search runs from a tenth to
            ten times of it, so its order of magnitude matters: about the logits' slope over the score's.

    Raises:
        ValueError: a segmenter, or a threshold, ``on`` or ``weight`` that is none.
        TypeError: a detector that can't be called, or a second one.

    Example:
        >>> import torch
        >>> from medadv.adapters import MonaiClassifier
        >>> from medadv.attacks import create
        >>> from medadv.decisions import Multiclass
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
        >>> estimator = MonaiClassifier(net, (1, 4, 4), decision=Multiclass(2))
        >>> def roughness(x):
        ...     return (x[..., 1:] - x[..., :-1]).abs().flatten(1).mean(1)
        >>> clean = torch.rand(40, 1, 4, 4)
        >>> victim = guarded(estimator, roughness, threshold=threshold_at_fpr(roughness(clean), 0.05))
        >>> x_adv = create("pgd", victim, eps="8/255", max_iter=3).perturb(clean[:4], [0, 1, 0, 1])
        >>> victim.logits(x_adv).shape
        torch.Size([4, 3])
    """
    return Guarded(estimator, detector, threshold, on, weight)


def balanced_weight(victim: Guarded, x: Tensor) -> float:
    """The weight at which a detector's score pulls on an image as much as the model's leading logit.

    Args:
        victim: a model with a detector, of any weight.
        x: a few clean images ``(N, C, *S)``.

    Returns:
        Mean L1 norm of the gradient of the leading logit over that of the score; 1 where either has none.

    Example:
        >>> import torch
        >>> from medadv.adapters import MonaiClassifier
        >>> from medadv.decisions import Multiclass
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
        >>> _ = net[1].weight.data.copy_(torch.tensor([[6.0], [-6.0]]).expand(2, 16))
        >>> estimator = MonaiClassifier(net, (1, 4, 4), decision=Multiclass(2))
        >>> victim = guarded(estimator, lambda x: 2 * x.flatten(1).sum(1), threshold=1.0)
        >>> balanced_weight(victim, torch.rand(3, 1, 4, 4))
        3.0
    """
    with victim.attacked():
        slopes = [
            victim.differentiate(x.to(victim.device), value)[2].double().abs().sum()
            for value in (lambda z: z[:, :-1].amax(1) + 0 * z[:, -1], lambda z: z[:, -1] + 0 * z[:, 0])
        ]
    of_model, of_detector = map(float, slopes)
    balanced = of_model / of_detector if of_detector > 0 else 1.0
    return balanced if 0 < balanced < math.inf else 1.0


def threshold_at_fpr(scores: Any, fpr: float) -> float:
    """The smallest of the clean scores above which at most a share ``fpr`` of them lies.

    Args:
        scores: the detector's scores of clean validation images ``(N,)``.
        fpr: share of clean images that may be rejected, in [0, 1).

    Raises:
        ValueError: scores that are none or not finite, or a share outside [0, 1).

    Example:
        >>> threshold_at_fpr([0.1, 0.2, 0.3, 0.4, 0.5], 0.2)
        0.4
    """
    values = scores.detach().cpu().numpy() if isinstance(scores, Tensor) else np.asarray(scores)
    if values.ndim != 1 or not len(values) or not np.isfinite(values.astype(np.float64)).all():
        raise ValueError(f"scores have shape {values.shape} or are not finite; give one finite number per clean image.")
    if not (is_finite(fpr) and 0 <= fpr < 1):
        raise ValueError(f"fpr={fpr!r} must be a share of at least 0 and below 1.")
    allowed = math.floor(fpr * len(values) + 1e-9)
    return float(np.sort(values)[::-1][allowed])


@dataclass(frozen=True)
class Evasion:
    """How a model with a detector fared.

    Attributes:
        wrong: where the diagnosis of the adversarial image is wrong, ``(N,)`` bool.
        rejected: where the detector rejects it, ``(N,)`` bool.
        false_alarms: share of the clean images rejected.
        auc: how well the detector tells adversarial from clean images; 0.5 is by chance.
    """

    wrong: np.ndarray
    rejected: np.ndarray
    false_alarms: float
    auc: float

    @property
    def evaded(self) -> np.ndarray:
        """Where the attack succeeded, which is wrong and accepted, ``(N,)`` bool."""
        return self.wrong & ~self.rejected


def evasion(victim: Guarded, x: Any, x_adv: Any, y: Any, *, batch_size: int = 32) -> Evasion:
    """Evaluates adversarial images on a model with a detector.

    Args:
        victim: from :func:`guarded`.
        x: clean images ``(N, C, *S)``, array or tensor.
        x_adv: their adversarial counterparts.
        y: the true diagnosis in any usual form.
        batch_size: images per forward pass.

    Returns:
        Wrong, rejected and evaded cases, false alarms and the detector's AUC.
    """
    target, valid = victim.decision.canonical(y, device=victim.device)
    clean, adversarial = (_outputs(victim, images, batch_size) for images in (x, x_adv))
    if not len(target) == len(clean) == len(adversarial):
        raise ValueError(f"{len(target)} references for {len(clean)} clean and {len(adversarial)} adversarial images.")
    plain: Any = victim.decision
    logits, excess = split(adversarial)
    wrong = plain.plain.score(logits, target, valid) < 1
    scores = torch.cat([split(clean)[1], excess]).cpu().numpy()
    truth = np.repeat([False, True], [len(clean), len(adversarial)])
    alarms = float(rejected(split(clean)[1]).double().mean())
    return Evasion(wrong.cpu().numpy(), rejected(excess).cpu().numpy(), alarms, auc(scores, truth))


def _outputs(victim: Guarded, images: Any, batch_size: int) -> Tensor:
    tensor = images.detach().as_subclass(Tensor) if isinstance(images, Tensor) else torch.from_numpy(np.asarray(images))
    with victim.attacked():
        return torch.cat([victim.logits(part) for part in tensor.to(victim.device).split(batch_size)])
