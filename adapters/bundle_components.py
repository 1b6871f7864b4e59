"""What a bundle may name without being trusted: classes known to compute and to do nothing else."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, Protocol

import monai.inferers
import monai.networks.nets
import monai.transforms
from monai.apps.nuclick.transforms import AddLabelAsGuidanced
from monai.transforms import Compose
from torch import nn

from medadv.adapters.bundle_config import BundleConfig, Component, PartRefused
from medadv.adapters.bundle_files import shortened

# dictionary transforms without their d; none takes code, names code, or writes
TRANSFORMS = (
    "LoadImage", "EnsureChannelFirst", "AsChannelLast", "EnsureType", "CastToType", "ToTensor", "ToNumpy", "SqueezeDim",
    "Transpose", "RepeatChannel", "RemoveRepeatedChannel", "SplitDim", "SelectItems", "DeleteItems", "CopyItems",
    "ConcatItems", "FlattenSubKeys", "Identity", "FromMetaTensor", "ToMetaTensor", "AddCoordinateChannels",
    "Orientation", "Spacing", "SpatialResample", "ResampleToMatch", "Resize", "Zoom", "Flip", "Rotate", "Rotate90",
    "Affine", "SpatialPad", "BorderPad", "DivisiblePad", "ResizeWithPadOrCrop", "SpatialCrop", "CenterSpatialCrop",
    "CenterScaleCrop", "CropForeground",
    "ScaleIntensity", "ScaleIntensityRange", "ScaleIntensityRangePercentiles", "ClipIntensityPercentiles",
    "NormalizeIntensity", "ShiftIntensity", "StdShiftIntensity", "ThresholdIntensity", "AdjustContrast",
    "HistogramNormalize", "MaskIntensity", "ForegroundMask", "GaussianSmooth", "GaussianSharpen", "MedianSmooth",
    "SavitzkyGolaySmooth",
    "ConvertToMultiChannelBasedOnBratsClasses", "MapLabelValue", "LabelToMask",
    "Activations", "AsDiscrete", "KeepLargestConnectedComponent", "LabelFilter", "FillHoles", "RemoveSmallObjects",
    "LabelToContour", "DistanceTransformEDT", "Invert",
)  # fmt: skip
# what writes, prints or moves between devices is left out of a chain: it changes no value
SKIPPED = tuple(
    f"{name}{suffix}"
    for name in ("SaveImage", "SaveClassification", "WriteFileMapping", "DataStats", "IntensityStats", "ToDevice")
    for suffix in ("d", "D", "Dict")
)
INFERERS = ("SimpleInferer", "SlidingWindowInferer", "SlidingWindowInfererAdapt", "SliceInferer")
READERS = ("ITKReader", "NibabelReader", "NumpyReader", "PILReader", "PydicomReader", "NrrdReader")
# their constructors read files or fetch them
_READING_NETWORKS = ("Transchex", "BertPreTrainedModel", "MultiModal")

# weights come from the bundle, devices from the user
_OURS: dict[str, Any] = {"pretrained": False, "pretrained_url": None, "weights": None, "progress": False}
_PLACES = ("device", "sw_device")
_FILES = ("path", "file", "url", "repo", "checkpoint")
_REMOVED = {"SwinUNETR": ("img_size",)}


def _public(module: ModuleType, base: type) -> dict[str, type]:
    return {name: c for name, c in vars(module).items() if inspect.isclass(c) and issubclass(c, base)}


def _transforms() -> dict[str, type]:
    allowed = {getattr(monai.transforms, f"{name}d") for name in TRANSFORMS}
    aliases = {name: c for name, c in _public(monai.transforms, object).items() if c in allowed}
    return {**aliases, "AddLabelAsGuidanced": AddLabelAsGuidanced}


ALLOWED: dict[str, tuple[dict[str, type], ...]] = {
    "network": (
        {n: c for n, c in _public(monai.networks.nets, nn.Module).items() if c.__name__ not in _READING_NETWORKS},
        {n: c for n, c in _public(nn, nn.Module).items() if c.__module__.startswith("torch.nn.modules.")},
    ),
    "transform": (_transforms(),),
    "inferer": ({name: getattr(monai.inferers, name) for name in INFERERS},),
}
_PACKAGES = ("monai.networks.nets", "torch.nn", "monai.transforms", "monai.inferers")


def class_of(component: Component, kind: str) -> type:
    """The class that a component names.

    Args:
        component: from a config.
        kind: ``"network"``, ``"transform"`` or ``"inferer"``.

    Raises:
        PartRefused: it is none of those that an untrusted bundle may use for this.
    """
    package = component.target.rpartition(".")[0]
    for table in ALLOWED[kind]:
        found = table.get(component.name)
        if found is None:
            continue
        home = next((p for p in _PACKAGES if found.__module__.startswith(p)), found.__module__)
        # without a package MONAI looks among its own names
        if package in (home, found.__module__) or (not package and home != "torch.nn"):
            return found
    raise PartRefused(component.id, f"names {shortened(component.target)!r}, no {kind} that is built without trust")


_BUILDING = object()


class Builder(Protocol):
    """What reads a bundle's configs and builds from them."""

    def open(self, content: Mapping[str, Any], name: str, fixed: Mapping[str, Any]) -> BundleConfig:
        """A config of that content, where ``fixed`` ids are ours."""

    def build(self, component: Component, kind: str) -> Any:
        """The object that a component describes; always the same one."""


class DataBuilder:
    """Builds components of an untrusted bundle, each once."""

    def __init__(self) -> None:
        self._built: dict[tuple[int, str], Any] = {}

    def open(self, content: Mapping[str, Any], name: str, fixed: Mapping[str, Any]) -> BundleConfig:
        """A config whose expressions are refused."""
        return BundleConfig(content, name, fixed)

    def build(self, component: Component, kind: str) -> Any:
        """The object that a component describes.

        Args:
            component: from a config.
            kind: as for :func:`class_of`.

        Raises:
            PartRefused: it is not allowed, or can't be built.
        """
        key = (id(component.config), component.id)
        if key not in self._built:
            self._built[key] = _BUILDING
            self._built[key] = self._new(component, kind)
        if self._built[key] is _BUILDING:
            raise PartRefused(component.id, "is an argument of itself")
        return self._built[key]

    def _new(self, component: Component, kind: str) -> Any:
        if kind == "transform" and component.name == "Compose":
            return Compose(list(chain(component, self)))
        built = class_of(component, kind)
        arguments = component.arguments(without=(*_PLACES, *_OURS))
        arguments = {name: self._argument(value, kind) for name, value in arguments.items()}
        parameters = inspect.signature(built).parameters
        for name in _REMOVED.get(built.__name__, ()):
            if name in arguments and name not in parameters:
                warnings.warn(f"{component.id}: {built.__name__} has no {name} any more; left out.", stacklevel=2)
                del arguments[name]
        self._check(component, kind, arguments)
        arguments.update({name: value for name, value in _OURS.items() if name in parameters})
        try:
            return built(**arguments)
        except Exception as error:  # the arguments are anything; so is what a constructor makes of them
            raise PartRefused(component.id, f"can't be built as {built.__name__} ({shortened(error)})") from error

    def _argument(self, value: Any, kind: str) -> Any:
        if isinstance(value, Component):
            return None if value.disabled else self.build(value, kind)
        if isinstance(value, list):
            return [self._argument(part, kind) for part in value]
        if isinstance(value, dict):
            return {name: self._argument(part, kind) for name, part in value.items()}
        return value

    @staticmethod
    def _check(component: Component, kind: str, arguments: dict[str, Any]) -> None:
        if kind == "network":
            for name, value in arguments.items():
                if isinstance(value, str) and any(word in name for word in _FILES):
                    raise PartRefused(f"{component.id}::{name}", f"names a file or an address ({shortened(value)!r})")
        if "reader" in arguments:
            arguments["reader"] = _readers(component, arguments["reader"])


def _readers(component: Component, given: Any) -> list[str] | None:
    """Readers by the names of MONAI's classes; MONAI would import whatever else is named."""
    known = {name.lower(): name for name in READERS}
    names = given if isinstance(given, list) else [] if given is None else [given]
    for name in names:
        if not isinstance(name, str) or name.lower() not in known:
            raise PartRefused(f"{component.id}::reader", f"is {shortened(name)!r}, none of {', '.join(READERS)}")
    return [known[name.lower()] for name in names] or None


def components(value: Any, key: str, within: tuple[str, ...] = ()) -> Iterator[Any]:
    """The members of a chain of transforms in order: components, or objects where the config holds those.

    ``Compose`` is taken apart; what is disabled or changes no value is left out.

    Args:
        value: of a config: a list, ``Compose``, or one of them built.
        key: its id.
        within: ids of the ``Compose`` around it.

    Raises:
        PartRefused: it is no chain of transforms.
    """
    if isinstance(value, list | tuple):
        for part in value:
            yield from components(part, key, within)
    elif isinstance(value, Compose):
        yield from components(value.transforms, key)
    elif isinstance(value, Component):
        if value.disabled or value.name in SKIPPED:
            return
        if value.name != "Compose":
            yield value
            return
        if value.argument("lazy"):
            raise PartRefused(f"{value.id}::lazy", "resamples several transforms at once, which is not taken over")
        if value.id in within:
            raise PartRefused(value.id, "is a part of itself")
        yield from components(value.argument("transforms"), value.id, (*within, value.id))
    elif callable(value):
        if type(value).__name__ not in SKIPPED:
            yield value
    elif value is not None:
        raise PartRefused(key, f"is no chain of transforms but {type(value).__name__}")


def chain(value: Any, builder: Builder, key: str = "") -> Iterator[Any]:
    """The members of a chain of transforms, built."""
    for part in components(value, key):
        yield builder.build(part, "transform") if isinstance(part, Component) else part


def keys_of(component: Component) -> tuple[str, ...]:
    """The keys that a dictionary transform works on."""
    keys = component.argument("keys", [])
    return tuple(key for key in (keys if isinstance(keys, list) else [keys]) if isinstance(key, str) and key)
