"""Deployed models as victims: gradients in half precision where asked for, logits always as the model is deployed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from medadv.adapters.deployed import deployed_in
from medadv.decisions import Decision
from medadv.intensities import Intensity
from medadv.names import unknown_name
from medadv.victims import Loss, ModuleVictim

SEARCH_PRECISIONS = {"bfloat16": torch.bfloat16}


def search_dtype(precision: str | None, network: nn.Module) -> torch.dtype | None:
    """The type that gradients are computed in, or None for that of the network.

    Args:
        precision: ``"bfloat16"`` or None.
        network: the network, in float32.

    Raises:
        ValueError: an unknown precision, ``"float16"``, or a network that is not in float32.

    Example:
        >>> import torch
        >>> search_dtype("bfloat16", torch.nn.Conv2d(1, 2, 3))
        torch.bfloat16
    """
    if precision is None:
        return None
    if precision == "float16":
        raise ValueError(
            "search_precision='float16' is too narrow: the gradient of a mean over many voxels vanishes in it; "
            "use 'bfloat16'."
        )
    if precision not in SEARCH_PRECISIONS:
        raise unknown_name("search precision", precision, SEARCH_PRECISIONS)
    wrong = next((p.dtype for p in network.parameters() if p.is_floating_point() and p.dtype != torch.float32), None)
    if wrong is not None:
        raise ValueError(
            f"search_precision={precision!r} is for networks in float32, this one has parameters in {wrong}; "
            "leave it out, or call .float() on the network."
        )
    return SEARCH_PRECISIONS[precision]


class DeployedVictim(ModuleVictim):
    """A deployed model as the attacker sees it, whose gradients may be computed in half precision.

    In half precision the network alone runs under ``torch.autocast``; input transform, blending of windows and loss
    stay in float32. :meth:`logits`, and with them every score and the choice of the image that an attack returns, are
    always those of the deployed model (:class:`~medadv.problem.Problem`).

    Args:
        module: the deployed model, or a view of it.
        decision, intensity, segments: as for :class:`~medadv.victims.ModuleVictim`.
        precision: type the network computes gradients in; None: its own.

    Attributes:
        approximate: True if what :meth:`differentiate` returns is no verdict of the deployed model.

    Example:
        >>> import torch
        >>> from medadv import Intensity, Multiclass
        >>> from medadv.adapters.deployed import DeployedModel
        >>> model = DeployedModel(torch.nn.Conv2d(1, 2, 3, padding=1), channels=2, segments=True)
        >>> victim = DeployedVictim(model, Multiclass(2), Intensity(0, 1), segments=True, precision=torch.bfloat16)
        >>> output, _, grad = victim.differentiate(torch.rand(1, 1, 8, 8), lambda z: z[:, 1].flatten(1).sum(1))
        >>> output.dtype, grad.dtype, victim.approximate
        (torch.float32, torch.float32, True)
    """

    def __init__(
        self,
        module: nn.Module,
        decision: Decision,
        intensity: Intensity,
        *,
        segments: bool,
        precision: torch.dtype | None = None,
    ) -> None:
        super().__init__(module, decision, intensity, segments=segments)
        self.precision = precision

    @property
    def approximate(self) -> bool:
        """True if what :meth:`differentiate` returns is no verdict of the deployed model."""
        return self.precision is not None

    def differentiate(self, x: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        with _computing_in(self.precision, self.module):
            return super().differentiate(x, loss)


@contextmanager
def _computing_in(precision: torch.dtype | None, module: nn.Module) -> Iterator[None]:
    deployed = deployed_in(module)
    before, deployed.autocast = deployed.autocast, precision
    try:
        yield
    finally:
        deployed.autocast = before
