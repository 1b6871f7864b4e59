"""Deployed models as victims: gradients in a faster form where asked for, logits always as the model is deployed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from medadv.adapters.acceleration import SearchNetwork
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
    """A deployed model as the attacker sees it, whose gradients may come from a faster form of its network.

    The network alone is replaced, by half precision or a copy (:mod:`~medadv.adapters.acceleration`); input transform,
    blending of windows and loss stay as they are. :meth:`logits`, and with them every score and the choice of the image
    that an attack returns, are always those of the deployed model (:class:`~medadv.problem.Problem`).

    Args:
        module: the deployed model, or a view of it.
        decision, intensity, segments: as for :class:`~medadv.victims.ModuleVictim`.
        search: what computes gradients in the network's place; None: the network.

    Attributes:
        approximate: True if what :meth:`differentiate` returns is no verdict of the deployed model.

    Example:
        >>> import torch
        >>> from medadv import Intensity, Multiclass
        >>> from medadv.adapters.acceleration import ACCELERATIONS
        >>> from medadv.adapters.deployed import DeployedModel
        >>> net = torch.nn.Conv2d(1, 2, 3, padding=1)
        >>> model = DeployedModel(net, channels=2, segments=True)
        >>> search = SearchNetwork(net, ACCELERATIONS["bfloat16"])
        >>> victim = DeployedVictim(model, Multiclass(2), Intensity(0, 1), segments=True, search=search)
        >>> output, _, grad = victim.differentiate(torch.rand(1, 1, 8, 8), lambda z: z[:, 1].flatten(1).sum(1))
        >>> output.dtype, grad.dtype, victim.approximate
        (torch.float32, torch.float32, True)
    """

    def __init__(
        self, module: nn.Module, decision: Decision, intensity: Intensity, *, segments: bool,
        search: SearchNetwork | None = None,
    ) -> None:  # fmt: skip
        super().__init__(module, decision, intensity, segments=segments)
        self.search = search

    @property
    def approximate(self) -> bool:
        """True if what :meth:`differentiate` returns is no verdict of the deployed model."""
        return self.search is not None

    @property
    def exact(self) -> DeployedVictim:
        """The same, differentiated as it is deployed; passes are counted together."""
        twin = copy.copy(self)
        twin.search = None
        return twin

    def differentiate(self, x: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        with _searching(self.search, self.module):
            return super().differentiate(x, loss)


@contextmanager
def _searching(search: SearchNetwork | None, module: nn.Module) -> Iterator[None]:
    deployed = deployed_in(module)
    before, deployed.search = deployed.search, search
    try:
        yield
    finally:
        deployed.search = before
