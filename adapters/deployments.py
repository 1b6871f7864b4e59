"""A deployed model as the clinic runs it: from stored files over preprocessing and network to a diagnosis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import (
    Activationsd,
    Compose,
    EnsureChannelFirstd,
    EnsureTyped,
    Invertd,
    LoadImaged,
    MapTransform,
    SaveClassificationd,
    SaveImaged,
)
from monai.transforms.inverse import InvertibleTransform
from monai.transforms.utils import allow_missing_keys_mode
from torch import Tensor, nn

from medadv.adapters.base import device_of, dtype_of
from medadv.adapters.deployed import DeployedModel
from medadv.adapters.heads import Head
from medadv.decisions import Decision, as_plain_tensor
from medadv.intensities import Intensity
from medadv.victims import left_as_found

DictTransform = Callable[[Mapping[str, Any]], Mapping[str, Any]]
Files = str | Path | Sequence[str | Path]
# what stands between a file and its array; all that follows is part of the model
_READING = (LoadImaged, EnsureChannelFirstd, EnsureTyped)
_WRITING = (SaveImaged, SaveClassificationd)


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A network with all that happens before and after it, such as a MONAI bundle describes it.

    Args:
        network: trained, with its weights.
        decision: how its logits become a diagnosis.
        segments: True if there is one diagnosis per voxel.
        preprocessing: MONAI dictionary transforms from file to network input, in order; loading may be left out.
        postprocessing: MONAI dictionary transforms of the prediction, in order; empty: the decision's own, brought back
            to the grid of the file. What writes files is left out.
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
        any_transform: take preprocessing that is not known to be differentiable as it is.
        device: where the network runs; None: where it is.

    Example:
        >>> from monai.networks.nets import UNet
        >>> from monai.transforms import ScaleIntensityRanged
        >>> from medadv import Multiclass
        >>> deployment = Deployment(
        ...     network=UNet(3, 1, 2, (4, 8), (2,)), decision=Multiclass(2, background=0), segments=True, unit="HU",
        ...     preprocessing=(ScaleIntensityRanged("image", -175, 250, 0, 1, clip=True),),
        ... )
        >>> deployment.names
        ('background', 'class 1')
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
    any_transform: bool = False
    device: torch.device | str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each channel of the decision."""
        given = self.labels if len(self.labels) == self.decision.channels else ()
        background = self.decision.background
        return given or tuple("background" if c == background else f"class {c}" for c in range(self.decision.channels))

    @cached_property
    def reading(self) -> Compose:
        """From files to arrays ``(C, *S)``: the first transforms of the preprocessing, or MONAI's usual ones."""
        own = self._transforms[: self._split]
        if any(isinstance(t, LoadImaged) for t in own):
            return Compose(own)
        keys = (self.image_key, *self.extra_keys)
        return Compose([LoadImaged(keys, image_only=True, ensure_channel_first=True, allow_missing_keys=True), *own])

    @cached_property
    def inside(self) -> tuple[MapTransform, ...]:
        """From arrays to network input: the rest of the preprocessing, which belongs to the model."""
        return self._transforms[self._split :]

    @cached_property
    def _transforms(self) -> tuple[Any, ...]:
        flat = Compose(list(self.preprocessing)).flatten().transforms
        for transform in flat:
            if not isinstance(transform, MapTransform):
                raise ValueError(
                    f"preprocessing {type(transform).__name__} is no dictionary transform; give MONAI's dictionary "
                    "transforms, whose names end in d."
                )
        return tuple(flat)

    @cached_property
    def _split(self) -> int:
        following = (place for place, t in enumerate(self._transforms) if not isinstance(t, _READING))
        return next(following, len(self._transforms))

    def read(self, image: Files, extras: Mapping[str, Files] | None = None) -> dict[str, Any]:
        """What the model reads, under the keys of its transforms: the image as MetaTensor ``(C, *S)``, and the extras.

        Args:
            image: file, folder of a DICOM series, or a file per channel.
            extras: further files by their key.

        Raises:
            ValueError: extras other than :attr:`extra_keys`.
        """
        given = dict(extras or {})
        if set(given) != set(self.extra_keys):
            wanted = ", ".join(self.extra_keys) or "none"
            raise ValueError(
                f"the model needs these files beside the image: {wanted}; got {', '.join(given) or 'none'}."
            )
        files = {self.image_key: image, **given}
        return self.applied(self.reading.transforms, {name: _names(paths) for name, paths in files.items()})

    @staticmethod
    def applied(transforms: Sequence[Any], data: Mapping[str, Any]) -> dict[str, Any]:
        """What dictionary transforms make of those of their keys that are there."""
        found = dict(data)
        for transform in transforms:  # Compose would hide what went wrong behind a RuntimeError
            with allow_missing_keys_mode(transform) if isinstance(transform, MapTransform) else nullcontext():
                found = dict(transform(found))
        return found

    def predict(self, image: Files, extras: Mapping[str, Files] | None = None) -> Tensor:
        """The diagnosis of a file, by MONAI's own transforms from its bytes on.

        Args:
            image, extras: as for :meth:`read`.

        Returns:
            Canonical, ``(1, *S)`` or ``(1, C, *S)`` (``S`` empty for an image-level model), on the grid of the file.
        """
        data = self.read(image, extras)
        sides = tuple(data[self.image_key].shape[1:])
        return self.diagnosed(self.applied(self.inside, data), sides)

    def diagnosed(self, data: Mapping[str, Any], sides: tuple[int, ...]) -> Tensor:
        """The diagnosis of what preprocessing made of an image.

        Args:
            data: the network's input under the image's key, with its trace.
            sides: of the image as it is stored, ``S``.

        Returns:
            As :meth:`predict`.
        """
        shown = data[self.input_key]
        model = self.model()
        with left_as_found(model), torch.no_grad():
            logits = model.eval()(
                shown.as_subclass(Tensor)[None].to(device_of(self.network, self.device), dtype_of(self.network))
            )[0]
        found = MetaTensor(logits.cpu(), meta=shown.meta) if self.segments else logits.cpu()
        after = self.applied(self._after(), {**data, self.prediction_key: found})
        return self._hard(as_plain_tensor(after[self.prediction_key])[None], sides if self.segments else ())

    def model(self, **options: Any) -> DeployedModel:
        """Network, inferer and head as one module; ``options`` are those of the input and output transform."""
        return DeployedModel(
            self.network.to(device_of(self.network, self.device)),
            channels=self.decision.channels,
            segments=self.segments,
            inferer=self.inferer,
            head=self.head,
            **options,
        )

    def _after(self) -> list[Any]:
        """The postprocessing, which ends on the grid of the file."""
        given = [t for t in Compose(list(self.postprocessing)).flatten().transforms if not isinstance(t, _WRITING)]
        chain = Compose(list(self.inside))
        back: dict[str, Any] = {"keys": self.prediction_key, "transform": chain, "orig_keys": self.image_key}
        moves = self.segments and any(isinstance(t, InvertibleTransform) for t in self.inside)
        if given:
            done = not moves or any(isinstance(t, Invertd) for t in given)
            return given if done else [*given, Invertd(**back, nearest_interp=True)]
        exclusive = self.decision.exclusive
        activation = Activationsd(self.prediction_key, softmax=exclusive, sigmoid=not exclusive)
        return [activation, *([Invertd(**back, nearest_interp=False)] if moves else [])]

    @property
    def nearest(self) -> bool:
        """True if the postprocessing takes the nearest voxel where it undoes a resampling."""
        inverts = [t for t in self._after() if isinstance(t, Invertd)]
        return bool(inverts) and bool(inverts[0].nearest_interp[0])

    def _hard(self, found: Tensor, sides: tuple[int, ...]) -> Tensor:
        """What postprocessing left, classes or probabilities, as canonical prediction."""
        channels = found.shape[1:] == (self.decision.channels, *sides)
        if self.decision.exclusive:
            classes = self.decision.harden(found) if channels else found.reshape(1, *sides).to(torch.int64)
            return self.decision.canonical(classes, sides)[0]
        if bool((found == found.round()).all()):
            return self.decision.canonical(found, sides)[0]
        activated = any(isinstance(t, Activationsd) for t in self._after())
        return self.decision.harden(torch.logit(found) if activated else found)

    def labelled(self, label: Any, image: MetaTensor) -> tuple[Tensor, Tensor]:
        """A reference in the decision's form.

        Args:
            label: a segmentation on the grid of the image; a class number, or 0 and 1 per label, of an image-level
                model.
            image: as it was read, ``(C, *S)``.

        Returns:
            ``target`` and ``valid`` of one case, see :meth:`medadv.decisions.Decision.canonical`.

        Raises:
            ValueError: a segmentation of another shape or in another place than the image.
        """
        if not self.segments:
            if isinstance(label, str | Path):
                raise ValueError(f"label {str(label)!r} is a file, but the model diagnoses whole images; give numbers.")
            return self.decision.canonical([label] if isinstance(label, int) else [list(label)])
        if isinstance(label, int):
            raise ValueError(f"label {label} is a number, but the model segments; give a file.")
        read = Compose([LoadImaged(self.label_key, image_only=True, ensure_channel_first=True)])
        data = read({self.label_key: _names(label)})
        _check_same_place(data[self.label_key], image)
        data = self.applied(self.reference, data)
        return self.decision.canonical(data[self.label_key][None], tuple(image.shape[1:]))


def _names(files: Any) -> Any:
    return [str(f) for f in files] if isinstance(files, Sequence) and not isinstance(files, str) else str(files)


def _check_same_place(label: MetaTensor, image: MetaTensor) -> None:
    if label.shape[1:] != image.shape[1:]:
        raise ValueError(
            f"the label has shape {tuple(label.shape[1:])}, the image {tuple(image.shape[1:])}; give a label on the "
            "grid of the image."
        )
    if not torch.allclose(label.affine.to(image.affine), image.affine, rtol=1e-3, atol=1e-2):
        raise ValueError(
            "label and image have the same shape but lie in different places (their affines differ); resample the "
            "label to the image."
        )
