"""A deployed model as the clinic runs it: from stored files over preprocessing and network to a diagnosis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from monai.inferers import Inferer
from torch import nn

from medadv.adapters.heads import Head
from medadv.decisions import Decision
from medadv.intensities import Intensity

DictTransform = Callable[[Mapping[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A network with all that happens before and after it, such as a MONAI bundle describes it.

    Args:
        network: trained, with its weights.
        decision: how its logits become a diagnosis.
        segments: True if there is one diagnosis per voxel.
        preprocessing: MONAI dictionary transforms from file to network input, in order.
        postprocessing: MONAI dictionary transforms of the prediction, in order; empty: the decision's own.
        reference: MONAI dictionary transforms that bring a label to the decision's form without moving voxels.
        inferer: a MONAI inferer; None: the network on the whole image.
        head: picks the logits from the network's output.
        image_key, label_key, prediction_key: keys of the dictionaries that the transforms work on.
        input_key: key under which the preprocessing leaves the network's input.
        extra_keys: keys of further files that the network sees beside the image (masks, clicks) and nobody attacks.
        fixed_channels: channels of the network's input that are no image (masks, clicks) although they come with it,
            and nobody attacks.
        labels: name of each channel of the decision.
        unit: unit of the stored values, such as ``"HU"``; ``""``: none.
        intensity: range, unit and window of the stored values; None: as the preprocessing and the file say.
        name: of the model, for tables.
    """

    network: nn.Module
    decision: Decision
    segments: bool
    preprocessing: tuple[DictTransform, ...] = ()
    postprocessing: tuple[DictTransform, ...] = ()
    reference: tuple[DictTransform, ...] = ()
    inferer: Inferer | None = None
    head: Head = None
    image_key: str = "image"
    label_key: str = "label"
    prediction_key: str = "pred"
    input_key: str = "image"
    extra_keys: tuple[str, ...] = ()
    fixed_channels: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    unit: str = ""
    intensity: Intensity | None = None
    name: str = "model"
    device: torch.device | str | None = None
