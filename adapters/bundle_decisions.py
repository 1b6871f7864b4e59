"""What a bundle says about its diagnosis: classes or labels, of an image or of each voxel, their names, the unit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monai.transforms import Activationsd, AsDiscreted, Invertd, ScaleIntensityRanged
from torch import nn

from medadv.adapters.bundle_config import BundleConfig, Component
from medadv.adapters.bundle_files import BundleError
from medadv.decisions import Decision, Multiclass, Multilabel
from medadv.numbers import is_finite

PREDICTION = "pred"
_LOSSES = ("loss", "lossfn", "loss_function", "train::loss")
_OVERLAPS = ("Dice", "Tversky", "Jaccard", "Hausdorff")
_CHANNELS = ("out_channels", "num_classes", "n_classes", "classes_num")
_OTHER = re.compile(r"mask|label|signal|click|guid|prompt|point|heat|distance|previous", re.IGNORECASE)


@dataclass(frozen=True)
class Loss:
    """What the training loss tells of the logits.

    Args:
        name: of its class.
        activation: ``"softmax"``, ``"sigmoid"`` or None.
        to_onehot: whether it takes class numbers apart into channels.
    """

    name: str = ""
    activation: str | None = None
    to_onehot: bool = False


def loss_of(configs: Sequence[BundleConfig]) -> Loss:
    """The training loss as the configs describe it; it is not built."""
    for config in configs:
        key = config.first(_LOSSES)
        found = None if key is None else config.value(key)
        while isinstance(found, Component) and isinstance(found.argument("loss"), Component):
            found = found.argument("loss")  # deep supervision wraps the loss of one scale
        if isinstance(found, Component):
            return _read_loss(found)
    return Loss()


def _read_loss(component: Component) -> Loss:
    fixed = {"CrossEntropyLoss": "softmax", "BCEWithLogitsLoss": "sigmoid"}.get(component.name)
    given = [n for n in ("softmax", "sigmoid") if component.argument(n) or component.argument(f"use_{n}")]
    activation = fixed or (given[0] if len(given) == 1 else None)
    return Loss(component.name, activation, bool(component.argument("to_onehot_y")))


class Metadata:
    """``metadata.json``, of which anything may be missing.

    Args:
        content: of the file.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.content = content
        formats = _mapping(content.get("network_data_format"))
        self.image = _one(_mapping(formats.get("inputs")), "image")
        self.prediction = _one(_mapping(formats.get("outputs")), PREDICTION)

    @property
    def channels(self) -> int | None:
        """Number of logits, if it says so."""
        count = self.prediction.get("num_channels")
        return count if isinstance(count, int) and not isinstance(count, bool) and count > 0 else None

    def labels(self, channels: int) -> tuple[str, ...]:
        """Names of the logits, if it names each."""
        named = _mapping(self.prediction.get("channel_def") or self.prediction.get("label_def"))
        names = [named.get(str(i)) for i in range(channels)]
        return tuple(map(str, names)) if len(named) == channels and None not in names else ()

    @property
    def other_channels(self) -> tuple[int, ...]:
        """Channels of the network's input that are no image: masks, clicks, guidance."""
        named = _mapping(self.image.get("channel_def"))
        return tuple(sorted(int(i) for i, name in named.items() if str(i).isdecimal() and _OTHER.search(str(name))))

    @property
    def segments(self) -> bool | None:
        """True for one diagnosis per voxel, False for one per image, None where it does not say."""
        kind, form = (str(self.prediction.get(name, "")).lower() for name in ("type", "format"))
        if "segment" in form:
            return True
        if form.startswith("class") or kind.startswith("prob"):
            return False
        given, seen = (_sequence(part.get("spatial_shape")) for part in (self.prediction, self.image))
        if not given or not seen:
            return None
        return False if given in ([1], [1] * len(given), [1, self.channels]) else len(given) == len(seen) or None

    def unit(self, preprocessing: Sequence[Any]) -> str:
        """``"HU"`` for CT, else nothing; ``value_range`` is what the network sees, and often wrong."""
        modality = str(self.image.get("modality", "")).strip().lower()
        if modality and modality != "none":
            return "HU" if modality == "ct" else ""
        if str(self.image.get("format", "")).lower() == "hounsfield":
            return "HU"
        told = " ".join(str(self.content.get(name, "")) for name in ("name", "task", "description", "image_classes"))
        windows = [t for t in preprocessing if isinstance(t, ScaleIntensityRanged)]
        return "HU" if re.search(r"\bCT\b", told) and any(t.scaler.a_min < 0 for t in windows) else ""


def channels_of(
    network: nn.Module, component: Component | None, metadata: Metadata, chain: Sequence[Any]
) -> int | None:
    """Number of logits: what the network was built with, else what it, the metadata or the postprocessing say."""
    given = [] if component is None else [component.argument(name) for name in _CHANNELS]
    for value in (*given, *(getattr(network, name, None) for name in _CHANNELS)):
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return metadata.channels or next((n for _, _, n in _discretised(chain) if n), None)


def tells_decision(chain: Sequence[Any]) -> bool:
    """Whether a postprocessing activates or discretises the prediction."""
    return bool(_activations(chain) or _discretised(chain))


def _discretised(chain: Sequence[Any]) -> list[tuple[bool, float | None, int | None]]:
    """Argmax, threshold and number of classes of each discretisation of the prediction."""
    found = []
    for transform in chain:
        if isinstance(transform, AsDiscreted) and PREDICTION in transform.keys:
            i = transform.keys.index(PREDICTION)
            found.append((bool(transform.argmax[i]), transform.threshold[i], transform.to_onehot[i]))
    return found


def _activations(chain: Sequence[Any]) -> set[str]:
    found = set()
    for transform in chain:
        if isinstance(transform, Activationsd) and PREDICTION in transform.keys:
            i = transform.keys.index(PREDICTION)
            found |= {name for name in ("softmax", "sigmoid") if getattr(transform, name)[i]}
            found |= {"other"} if transform.other[i] is not None else set()
    return found


def decision_of(
    channels: int | None, chain: Sequence[Any], loss: Loss, labels: Sequence[str], *, segments: bool
) -> Decision:
    """How logits become a diagnosis.

    Args:
        channels: number of logits.
        chain: the postprocessing, which decides.
        loss: the training loss, where the postprocessing leaves it open.
        labels: names of the logits.
        segments: one diagnosis per voxel.

    Raises:
        BundleError: nothing tells.
    """
    if channels is None:
        raise BundleError("neither the network nor metadata.json tell the number of logits; pass decision=.")
    exclusive, threshold = _rule(chain, loss, channels)
    background = 0 if segments and channels > 1 and (not labels or _is_background(labels[0])) else None
    if exclusive:
        return Multiclass(channels, background=background)
    named = segments and bool(labels) and background is not None
    return Multilabel(channels, threshold, scored=tuple(range(1, channels)) if named else None)


def _rule(chain: Sequence[Any], loss: Loss, channels: int) -> tuple[bool, float]:
    """Whether classes exclude each other, and the threshold if they don't."""
    activations, hard = _activations(chain), _discretised(chain)
    thresholds = [t for _, t, _ in hard if t is not None]
    exclusive = any(argmax for argmax, _, _ in hard) or (activations == {"softmax"} and not thresholds)
    if not exclusive and not activations and not thresholds:
        exclusive = loss.activation == "softmax"
        activations = {loss.activation} if loss.activation else set()
    if exclusive and channels > 1:
        return True, 0.5
    independent = activations == {"sigmoid"} and (thresholds or channels == 1 or loss.activation == "sigmoid")
    threshold = thresholds[0] if thresholds else 0.5
    if exclusive or not independent or not is_finite(threshold) or not 0 < threshold < 1:
        steps = [*sorted(activations), *["argmax"] * any(argmax for argmax, _, _ in hard)]
        told = " and ".join([*steps, *(f"threshold {t}" for t in thresholds)]) or "no activation"
        raise BundleError(
            f"how {channels} logits become a diagnosis is not clear from {told} in the postprocessing and "
            f"{loss.name or 'no loss'} in training; pass decision=."
        )
    return False, float(threshold)


def _is_background(name: str) -> bool:
    return name.strip().lower().startswith(("background", "bg", "unlabel"))


def segments_of(metadata: Metadata, chain: Sequence[Any], loss: Loss) -> bool:
    """Whether there is one diagnosis per voxel.

    Raises:
        BundleError: nothing tells.
    """
    if metadata.segments is not None:
        return metadata.segments
    if any(isinstance(transform, Invertd) for transform in chain) or any(name in loss.name for name in _OVERLAPS):
        return True
    raise BundleError("metadata.json does not say whether the output is of the image or of each voxel; pass segments=.")


def _mapping(value: Any) -> dict[str, Any]:
    return {str(key): part for key, part in value.items()} if isinstance(value, dict) else {}


def _sequence(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _one(formats: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The entry of that name, or the only one."""
    return _mapping(formats.get(name, next(iter(formats.values())) if len(formats) == 1 else {}))
