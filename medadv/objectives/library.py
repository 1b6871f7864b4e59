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
    one-channel label map ``(1, 1, *S)`` where the loss has ``to_onehot_y=True``, else one-hot ``(1, C, *S)`` float.

    Args:
        decision: how the logits become a diagnosis.
        loss: a callable ``(output, target) -> scalar``, low where they agree.
        targeted: as in :class:`Objective`.

    Raises:
        ValueError: a MONAI loss built without ``softmax``, ``sigmoid`` or ``other_act`` (it would take logits for
            probabilities), or ``batch=True``.

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
        for part in _monai_parts(loss):
            if not (part.softmax or part.sigmoid or getattr(part, "other_act", None)):
                raise ValueError(
                    f"{type(loss).__name__} applies no activation and would take logits for probabilities; build it "
                    "with softmax=True or sigmoid=True."
                )
            if getattr(part, "batch", False):
                raise ValueError(f"{type(loss).__name__} has batch=True, which mixes cases; build it with batch=False.")

    def __call__(self, output: Tensor, target: Tensor, *, valid: Tensor, progress: float = 0.0) -> Tensor:
        if not bool(valid.all()):
            raise ValueError(
                f"{type(self.loss).__name__} can't leave out ignored voxels; use one of medadv's own objectives, "
                "such as 'ce' or 'dice', where the reference has ignore_index."
            )
        reference = reference_for(self.loss, self.decision, target, output.dtype)
        cases = [self.loss(output[i : i + 1], reference[i : i + 1]) for i in range(len(output))]
        if any(case.numel() != 1 for case in cases):
            raise ValueError(
                f"{type(self.loss).__name__} must return one number per case; build it with reduction='mean'."
            )
        return self.sign * torch.stack([case.reshape(()) for case in cases])


def _monai_parts(loss: Any) -> list[Any]:
    """The loss, or the parts of a compound loss, that take ``softmax`` and ``sigmoid`` like MONAI's."""
    return [part for part in _parts(loss) if hasattr(part, "softmax") and hasattr(part, "sigmoid")]


def _parts(loss: Any) -> list[Any]:
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
    if isinstance(loss, torch.nn.CrossEntropyLoss | torch.nn.NLLLoss):
        return target
    if any(getattr(part, "to_onehot_y", False) for part in _parts(loss)):
        return target[:, None]
    return decision.one_hot(target).to(dtype)
