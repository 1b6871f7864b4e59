"""Any loss of MONAI or torch as an objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from medadv.decisions import Decision, Multilabel
from medadv.objectives.base import Objective


class LossObjective(Objective):
    """Any loss of MONAI or torch, called on one case at a time so that no case influences another.

    The reference is handed over as the loss expects it: class numbers ``(1, *S)`` for torch's cross-entropy, a
    one-channel label map ``(1, 1, *S)`` where the loss has ``to_onehot_y=True``, else one-hot ``(1, C, *S)`` float. So
    losses of MONAI that know no ``reduction="none"``, or each another shape of it, all give one number per case.

    Args:
        decision: how the logits become a diagnosis.
        loss: a callable ``(output, target) -> scalar``, low where they agree.
        targeted: as in :class:`Objective`.

    Raises:
        ValueError: a loss that can't be right: it takes logits for probabilities (no ``softmax``, ``sigmoid`` or
            ``other_act``), mixes cases (``batch=True``), lets labels exclude each other that don't, or compares
            something else than a diagnosis with its reference. Called: it gives more than one number, or does not fit
            the shape of the logits.

    Example:
        >>> import torch
        >>> from medadv.decisions import Multiclass
        >>> from monai.losses import DiceLoss
        >>> objective = LossObjective(Multiclass(2), DiceLoss(to_onehot_y=True, softmax=True))
        >>> target = torch.zeros(2, 4, 4, dtype=torch.int64)
        >>> objective(torch.randn(2, 2, 4, 4), target, valid=target == 0).shape
        torch.Size([2])
    """

    def __init__(self, decision: Decision, loss: Callable[[Tensor, Tensor], Tensor], *, targeted: bool = False) -> None:
        super().__init__(decision, targeted=targeted)
        self.loss = loss
        _check_kind(loss)
        _check_activation(loss)
        if not decision.exclusive:
            _check_labels(loss, decision.channels)

    def __call__(self, output: Tensor, target: Tensor, *, valid: Tensor, progress: float = 0.0) -> Tensor:
        if not bool(valid.all()):
            raise ValueError(
                f"{type(self.loss).__name__} can't leave out ignored voxels; use one of medadv's own objectives, "
                "such as 'ce' or 'dice', where the reference has ignore_index."
            )
        reference = reference_for(self.loss, self.decision, target, output.dtype)
        cases = [self._of_case(output[i : i + 1], reference[i : i + 1]) for i in range(len(output))]
        if any(case.numel() != 1 for case in cases):
            raise ValueError(
                f"{type(self.loss).__name__} must return one number per case; build it with reduction='mean'."
            )
        return self.sign * torch.stack([case.reshape(()) for case in cases])

    def _of_case(self, output: Tensor, reference: Tensor) -> Tensor:
        try:
            return self.loss(output, reference)
        except torch.OutOfMemoryError:
            raise
        except (AssertionError, IndexError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"{type(self.loss).__name__} can't compare logits of shape {tuple(output.shape)} with a reference of "
                f"shape {tuple(reference.shape)}: {error}"
            ) from error


# by name, as the core imports no MONAI; what each kind is refused for
_OF_SOMETHING_ELSE = {
    "images or intensities": (
        "SSIMLoss", "LocalNormalizedCrossCorrelationLoss", "GlobalMutualInformationLoss", "PerceptualLoss",
        "JukeboxLoss", "SURELoss",
    ),
    "embeddings of several cases": ("ContrastiveLoss", "BarlowTwinsLoss"),
    "a ranking of several cases": ("AUCMLoss",),
    "deformations": ("BendingEnergyLoss", "DiffusionLoss"),
    "boxes": ("BoxGIoULoss",),
    "the output of a discriminator": ("PatchAdversarialLoss",),
}  # fmt: skip
_OF_PROBABILITIES = {
    "AsymmetricUnifiedFocalLoss": "softmax(1)", "AsymmetricFocalLoss": "softmax(1)",
    "AsymmetricFocalTverskyLoss": "softmax(1)", "BCELoss": "sigmoid()", "NLLLoss": "log_softmax(1)",
}  # fmt: skip
_OF_CLASS_NUMBERS = ("CrossEntropyLoss", "NACLLoss", "GeneralizedWassersteinDiceLoss")


def _check_kind(loss: Any) -> None:
    """Refuses losses that are no measure of a diagnosis, or not of logits."""
    for name in map(_name, _parts(loss)):
        for what, names in _OF_SOMETHING_ELSE.items():
            if name in names:
                raise ValueError(f"{name} compares {what}, not a diagnosis with its reference; choose another loss.")
        if name in _OF_PROBABILITIES:
            raise ValueError(
                f"{name} takes probabilities and would clip or misread logits; give a function of both, such as "
                f"lambda logits, y: loss(logits.{_OF_PROBABILITIES[name]}, y)."
            )


def _check_activation(loss: Any) -> None:
    """Refuses parts of MONAI's losses that apply no activation, and those that mix cases."""
    for part in _parts(loss):
        if hasattr(part, "softmax") and hasattr(part, "sigmoid") and not _activations(part):
            raise ValueError(
                f"{_name(loss)} applies no activation and would take logits for probabilities; build it with "
                "softmax=True or sigmoid=True."
            )
        if getattr(part, "batch", False) is True:
            raise ValueError(f"{_name(loss)} has batch=True, which mixes cases; build it with batch=False.")


def _check_labels(loss: Any, channels: int) -> None:
    """Refuses losses that treat labels which do not exclude each other as classes that do."""
    parts = _parts(loss)
    if any("softmax" in _activations(part) for part in parts):
        raise ValueError(
            f"{_name(loss)} has softmax=True, but these labels do not exclude each other; build it with sigmoid=True."
        )
    if any(_name(part) in _OF_CLASS_NUMBERS for part in parts) and (channels > 1 or _name(loss) in _OF_CLASS_NUMBERS):
        raise ValueError(
            f"{_name(loss)} contains a cross-entropy over classes, but these labels do not exclude each other; use "
            "torch's BCEWithLogitsLoss, MONAI's DiceFocalLoss(sigmoid=True) or medadv's own 'dicece'."
        )
    if channels > 1 and any(getattr(part, "to_onehot_y", False) for part in parts):
        raise ValueError(
            f"{_name(loss)} has to_onehot_y=True, but the reference of several labels is one-hot; leave it out."
        )


def _activations(part: Any) -> set[str]:
    """What a part of a loss makes of logits; MaskedDiceLoss and FocalLoss have other names for it."""
    names = {"softmax": ("softmax", "pre_softmax", "use_softmax"), "sigmoid": ("sigmoid", "pre_sigmoid")}
    found = {kind for kind, flags in names.items() if any(getattr(part, flag, False) is True for flag in flags)}
    given = any(callable(getattr(part, flag, None)) for flag in ("other_act", "pre_other_act"))
    return found | ({"other"} if given else set())


def _name(part: Any) -> str:
    return type(part).__name__


def _parts(loss: Any) -> list[Any]:
    """The loss itself and, of a compound loss, its parts."""
    return list(loss.modules()) if isinstance(loss, torch.nn.Module) else [loss]


def reference_for(loss: Any, decision: Decision, target: Tensor, dtype: torch.dtype) -> Tensor:
    """A canonical target in the form that ``loss`` expects beside logits ``(N, C, *S)``.

    Args:
        loss: a MONAI or torch loss.
        decision: the decision the target is canonical for.
        target: canonical target.
        dtype: of the logits; one-hot references get it.
    """
    if isinstance(decision, Multilabel):
        return target.to(dtype)
    if _name(loss) in _OF_CLASS_NUMBERS:
        return target
    if any(getattr(part, "to_onehot_y", False) for part in _parts(loss)):
        return target[:, None]
    return decision.one_hot(target).to(dtype)
