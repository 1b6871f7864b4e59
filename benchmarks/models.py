"""From a suite's words to an estimator: networks by name, checkpoints, and the right adapter for the task."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import monai.networks.nets
import numpy as np
import torch
from monai.transforms import ScaleIntensityRange
from torch import nn

from medadv.adapters import MonaiClassifier, MonaiMultilabelClassifier, MonaiSegmenter
from medadv.benchmarks.data.base import Dataset
from medadv.benchmarks.networks import NETWORKS
from medadv.benchmarks.suite_parts import ModelSpec
from medadv.decisions import Multilabel
from medadv.intensities import Intensity
from medadv.names import unknown_name

Estimator = MonaiClassifier | MonaiMultilabelClassifier | MonaiSegmenter


# what MONAI's own defaults would make of a network in a suite: ViT without a head, or with one whose tanh keeps logits
# between -1 and 1; weights from a download
_DEFAULTS: dict[str, dict[str, Any]] = {
    "ViT": {"classification": True, "post_activation": None},
    "EfficientNetBN": {"pretrained": False},
}


def networks() -> dict[str, Callable[..., nn.Module]]:
    """All networks that suites can name: those of :mod:`medadv.benchmarks.networks` and ``monai.networks.nets``."""
    of_monai = {
        key: value for key, value in vars(monai.networks.nets).items() if callable(value) and not key.startswith("_")
    }
    return {**of_monai, **NETWORKS}


def build_network(name: str, args: dict[str, Any]) -> nn.Module:
    """A network by name: of ``monai.networks.nets``, or of :data:`medadv.benchmarks.networks.NETWORKS`.

    A ``ViT`` is a classifier with a linear head and ``EfficientNetBN`` starts from random weights, unless ``args`` say
    otherwise.

    Raises:
        ValueError: an unknown name (the nearest are given), or arguments the network does not take.

    Example:
        >>> type(build_network("DenseNet121", {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}))
        <class 'monai.networks.nets.densenet.DenseNet121'>
    """
    nets = networks()
    if name not in nets:
        raise unknown_name("network", name, nets)
    try:
        network = nets[name](**{**_DEFAULTS.get(name, {}), **args})
    except (TypeError, ValueError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"network {name} can't be built with {args}: {error}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"{name} of monai.networks.nets is no network.")
    return network


def arguments_from_data(name: str, data: Dataset) -> dict[str, Any]:
    """Those arguments of a network that its data decide on: rank, channels, number of logits, size of the image.

    Args:
        name: of the network.
        data: what it is to be trained on.

    Returns:
        What the network's signature has of ``spatial_dims``, ``in_channels`` or ``n_input_channels``, ``out_channels``
        or ``num_classes``, and ``img_size``.
    """
    channels, size = data.test.x.shape[1], tuple(int(side) for side in data.test.x.shape[2:])
    logits = data.decision.channels
    known = {
        "spatial_dims": data.dims, "in_channels": channels, "n_input_channels": channels, "out_channels": logits,
        "num_classes": logits, "img_size": size,
    }  # fmt: skip
    make = networks().get(name)
    taken = () if make is None else signature(make).parameters
    return {argument: value for argument, value in known.items() if argument in taken}


def load_checkpoint(network: nn.Module, path: Path) -> None:
    """Loads weights without running any code that a file may hold.

    Args:
        network: gets the weights.
        path: a state dict saved by ``torch.save``, plain or under ``"state_dict"`` or ``"model"``.

    Raises:
        ValueError: a missing, damaged or malicious file, or weights of another network.
    """
    if not path.is_file():
        raise ValueError(f"checkpoint {str(path)!r} does not exist.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"checkpoint {str(path)!r} was refused: it is damaged or holds more than tensors (weights_only=True); "
            f"save a state dict with torch.save(network.state_dict(), ...). ({reason})"
        ) from None
    for key in ("state_dict", "model"):
        content = content.get(key, content) if isinstance(content, dict) else content
    if not isinstance(content, dict):
        raise ValueError(f"checkpoint {str(path)!r} holds {type(content).__name__}; save a state dict.")
    try:
        network.load_state_dict(content)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"checkpoint {str(path)!r} is of another network: {str(error).splitlines()[0]}") from None


def build_estimator(spec: ModelSpec, data: Dataset, *, seed: int = 0, device: str | None = None) -> Estimator:
    """The estimator of a suite's model on a data set, with fresh (seeded) or loaded weights.

    Args:
        spec: network by name and arguments; those that the data decide on may be left out, see
            :func:`arguments_from_data`.
        data: decides on the adapter: voxels, exclusive classes or several labels.
        seed: of the initial weights.
        device: default: a GPU where there is one.

    Raises:
        ValueError: a network or checkpoint that can't be built or loaded, or a ``cam_layer`` that it does not have.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(spec.network, {**arguments_from_data(spec.network, data), **spec.args})
    _check_cam_layer(spec, network, data)
    if spec.checkpoint is not None:
        load_checkpoint(network, spec.checkpoint)
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    settings: dict[str, Any] = {
        "intensity": data.intensity,
        "device": place,
        "input_transform": window_transform(data.intensity),
    }
    shape = tuple(int(s) for s in data.test.x.shape[1:])
    if data.task == "segmentation":
        return MonaiSegmenter(network, shape, decision=data.decision, **settings)
    if isinstance(data.decision, Multilabel) and data.decision.num_labels > 1:
        return MonaiMultilabelClassifier(network, shape, decision=data.decision, **settings)
    return MonaiClassifier(network, shape, decision=data.decision, **settings)


def _check_cam_layer(spec: ModelSpec, network: nn.Module, data: Dataset) -> None:
    """Refuses, before anything is trained, a layer that no class-activation map can be made of."""
    layers = [name for name, _ in network.named_modules() if name]
    if spec.cam_layer is None:
        return
    if data.task == "segmentation":
        raise ValueError(f"cam_layer={spec.cam_layer!r} is for images; leave it out for segmentations.")
    if spec.cam_layer not in layers:
        raise unknown_name(f"layer of {spec.network}", spec.cam_layer, layers)


def reference_of(estimator: Estimator, y: np.ndarray) -> np.ndarray:
    """A data set's references as an estimator's decision reads them; a network with one logit is shown as two classes.

    Args:
        estimator: of images or voxels.
        y: canonical references of the data set, of one logit ``(N, 1)``.
    """
    if estimator.segments or not estimator.decision.exclusive:
        return y
    return y.reshape(len(y)).astype(np.int64)


def window_transform(intensity: Intensity) -> ScaleIntensityRange | None:
    """The model's own windowing: stored values -> [0, 1], cut off at the window; None where they are that already.

    Example:
        >>> import torch
        >>> window_transform(Intensity(-1024, 3071, unit="HU", window=(-175, 250)))(torch.tensor([-1000.0, 37.5]))
        metatensor([0.0000, 0.5000])
    """
    low, high = intensity.window or (min(intensity.lows), max(intensity.highs))
    if (low, high) == (0.0, 1.0):
        return None
    return ScaleIntensityRange(a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True)


def weights_sha256(network: nn.Module) -> str:
    """Hash of all parameters and buffers, in the order of their names."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
