"""Class-activation maps by MONAI's GradCAM, on the layer that fits the network."""

from __future__ import annotations

import copy
import math
import warnings
from collections import Counter
from typing import Any

import numpy as np
import torch
from monai.visualize import GradCAM
from torch import Tensor, nn

from medadv.adapters.deployed import TwoClassView
from medadv.benchmarks.models import Estimator
from medadv.decisions import as_plain_tensor

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class NoFeatureMapError(ValueError):
    """A network has no layer that a class-activation map can be made of."""


class ActivationMaps:
    """Maps of which part of an image speaks for a class (Grad-CAM, arXiv 1610.02391).

    Works on a copy of the model, as MONAI's hooks stay in a network and its in-place layers are changed.

    Args:
        estimator: an image-level estimator.
        x: an image ``(1, C, *S)`` to find the layer with.
        layer: name of a layer of ``estimator.network``; default: the last feature map before the pooling.

    Raises:
        NoFeatureMapError: the network (or the layer) has no feature map.

    Example:
        >>> from medadv.adapters import MonaiClassifier
        >>> from medadv.decisions import Multiclass
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> maps = ActivationMaps(MonaiClassifier(net, (1, 9, 9), decision=Multiclass(2)), torch.rand(1, 1, 9, 9))
        >>> maps.layer, maps(torch.rand(1, 1, 9, 9), 1).shape
        ('1', (9, 9))
    """

    def __init__(self, estimator: Estimator, x: Tensor, layer: str | None = None) -> None:
        self.device = estimator.device
        model = copy.deepcopy(estimator.model).eval().requires_grad_(True)
        for module in model.modules():
            if getattr(module, "inplace", False):
                module.inplace = False
        network = next(f"{name}." for name, part in model.named_modules() if part is model.network)
        outputs = {
            name.removeprefix(network): shape
            for name, shape in _feature_maps(model, x.to(self.device)).items()
            if name.startswith(network)
        }
        if layer is not None and layer not in outputs:
            raise NoFeatureMapError(f"its layer {layer!r} gives no feature map with several positions")
        if layer is None and not outputs:
            raise NoFeatureMapError("it has no convolution with a feature map behind which only pooled numbers come")
        self.layer = list(outputs)[-1] if layer is None else layer
        shown = _BothSides(model) if isinstance(model, TwoClassView) else model
        inside = f"{'model.' if shown is not model else ''}{network}{self.layer}"
        self._cam = GradCAM(shown, target_layers=inside, postprocessing=lambda values: values)

    def __call__(self, x: Tensor, channel: int) -> np.ndarray:
        """The map of one class.

        Args:
            x: ``(1, C, *S)``.
            channel: the class or label.

        Returns:
            ``S``, from 0 to 1, the greatest value of the map; all 0 where nothing speaks for the class.

        Raises:
            NoFeatureMapError: no gradient reaches the layer.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a gradient that does not arrive, said below
                values = as_plain_tensor(self._cam(x.to(self.device), class_idx=channel))[0, 0]
        except (IndexError, RuntimeError) as error:
            raise NoFeatureMapError(f"no gradient reaches its layer {self.layer!r} ({error})") from None
        strongest = values.max()
        scaled: np.ndarray = (values / strongest if strongest > 0 else values).cpu().numpy()
        return scaled


def _feature_maps(model: nn.Module, x: Tensor) -> dict[str, Any]:
    """Layers from the first convolution on whose output is a feature map with several positions, in order of running.

    None where tokens follow, as in transformers: what a patch embedding convolves is not what the network found. A
    layer that runs several times is left out, as activation and gradient would be of different runs.
    """
    ran: list[tuple[str, nn.Module, tuple[int, ...]]] = []

    def watched(name: str) -> Any:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                ran.append((name, module, tuple(output.shape)))

        return hook

    handles = [module.register_forward_hook(watched(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    times = Counter(name for name, _, _ in ran)
    found: dict[str, Any] = {}
    convolved = False
    for name, module, shape in ran:
        convolved |= isinstance(module, _CONVOLUTIONS)
        if convolved and len(shape) == x.ndim and math.prod(shape[2:]) > 1 and times[name] == 1:
            found[name] = shape
        elif found and len(shape) == 3 and shape[1] > 1:
            return {}
    return found


class _BothSides(nn.Module):
    """A one-logit model as two opposed logits, so that something speaks for its negative diagnosis too."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logit: Tensor = self.model(x)[:, 1:]
        return torch.cat([-logit, logit], 1)
