"""The deployed model as one module: input transform, network, inferer and head, from stored image to logits."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer
from monai.transforms import Compose, NormalizeIntensity, Transform
from torch import Tensor, nn

from medadv.adapters.heads import Head, head_for, logits_of

Predictor = Callable[[Tensor], Tensor]


class DeployedModel(nn.Module):
    """What the clinic runs: the only module an attack ever sees.

    Args:
        network: the user's network.
        channels: number of logits of the decision.
        segments: True if logits have the spatial shape of the image.
        input_transform: what belongs to the model but happens before the network: a MONAI transform (called per case,
            channel-first) or any callable on the batch. It must be differentiable.
        inferer: a MONAI inferer; the network alone in training mode.
        head: picks the logits from the network's output, see :func:`~medadv.adapters.heads.logits_of`.
        output_transform: logits on the grid the network sees -> logits on that of the image, differentiable.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        channels: int,
        segments: bool,
        input_transform: Callable[[Any], Any] | None = None,
        inferer: Inferer | None = None,
        head: Head = None,
        output_transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.training = network.training  # one mode for all, else every attack has to switch all layers
        if _detaches_statistics(input_transform):
            warnings.warn(
                "MONAI's NormalizeIntensity treats the image's mean and standard deviation as constants in the "
                "gradient, so attacks through it are weaker than they could be; give fixed subtrahend= and divisor= or "
                "a callable that computes them in torch.",
                stacklevel=4,
            )
        self.network = network
        self.channels = channels
        self.segments = segments
        self.input_transform = input_transform
        self.inferer = inferer
        self.head = head_for(network, head)
        self.output_transform = output_transform
        # how windows are blended where the inferer is not to be asked, see medadv.adapters.windows
        self.blend: Callable[[Tensor, Predictor], Tensor] | None = None
        # what is told of each batch of windows that the inferer runs: images and predictor -> predictor
        self.watch: Callable[[Tensor, Predictor], Predictor] | None = None
        # what runs in the network's place where its logits are no verdict, see medadv.adapters.acceleration
        self.search: Callable[[Tensor], Any] | None = None

    def forward(self, x: Tensor) -> Tensor:
        logits = self._inferred(self._transformed(x))
        return logits if self.output_transform is None else self.output_transform(logits)

    def _inferred(self, z: Tensor) -> Tensor:
        if self.inferer is None or self.training:
            return self._logits(z)
        if self.blend is not None:
            return self.blend(z, self._logits)
        predict = self._logits if self.watch is None else self.watch(z, self._logits)
        # MONAI's sliding window scales the predictor's output in place, which autograd refuses for some last layers
        output = self.inferer(z, lambda window: predict(window).clone())
        return logits_of(output, self.channels, tuple(z.shape[2:]) if self.segments else ())

    def _transformed(self, x: Tensor) -> Tensor:
        if self.input_transform is None:
            return x
        if isinstance(self.input_transform, Transform):
            z = torch.stack([torch.as_tensor(self.input_transform(case)).as_subclass(Tensor) for case in x])
        else:
            z = self.input_transform(x)
        return z.to(x.dtype)  # MONAI's transforms give float32 whatever the network computes in

    def _logits(self, z: Tensor) -> Tensor:
        spatial = tuple(z.shape[2:]) if self.segments else ()
        if self.search is None:
            return logits_of(self.network(z), self.channels, spatial, self.head)
        return logits_of(self.search(z), self.channels, spatial, self.head).to(z.dtype)


def _detaches_statistics(transform: Any) -> bool:
    """True for MONAI's NormalizeIntensity with statistics of the image, alone or in a Compose."""
    if isinstance(transform, Compose):
        return any(_detaches_statistics(part) for part in transform.transforms)
    return isinstance(transform, NormalizeIntensity) and (transform.subtrahend is None or transform.divisor is None)


def deployed_in(module: nn.Module) -> DeployedModel:
    """The deployed model itself, out of it or a view of it."""
    return next(part for part in module.modules() if isinstance(part, DeployedModel))


class ModelView(nn.Module):
    """A deployed model shown in another way.

    Args:
        model: the deployed model, or a view of it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.training = model.training  # as above
        self.deployed = model

    @property
    def network(self) -> nn.Module:
        """The user's network."""
        return self.deployed.network  # type: ignore[return-value]


class TwoClassView(ModelView):
    """A one-logit model shown as two classes ``[0, z - logit(threshold)]``, whose softmax is the sigmoid of z.

    Args:
        model: images -> ``(N, 1)``.
        threshold: probability from which class 1 is given.
    """

    def __init__(self, model: nn.Module, threshold: float = 0.5) -> None:
        super().__init__(model)
        self.offset = math.log(threshold / (1 - threshold))

    def forward(self, x: Tensor) -> Tensor:
        logit = self.deployed(x) - self.offset
        return torch.cat([torch.zeros_like(logit), logit], 1)
