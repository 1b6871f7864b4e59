"""Which files a bundle's transforms work on, and how its labels come to the form of its diagnosis."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import monai.transforms
from monai.apps.nuclick.transforms import AddLabelAsGuidanced
from monai.transforms import (
    AsDiscreted,
    ConcatItemsd,
    ConvertToMultiChannelBasedOnBratsClassesd,
    LoadImaged,
    MapTransform,
)

from medadv.adapters.bundle_components import components, keys_of
from medadv.adapters.bundle_config import BundleConfig, Component, PartRefused
from medadv.adapters.bundle_files import BundleError
from medadv.decisions import Decision, Multilabel

IMAGE, LABEL = "image", "label"
VALIDATION = ("validate::preprocessing", "val_preprocessing", "preprocessing")
# they change where voxels lie or how they are kept, not what a label says
_LAYOUT = ("EnsureChannelFirstd", "EnsureTyped", "CastToTyped", "ToTensord", "ToNumpyd", "SelectItemsd", "DeleteItemsd",
           "CopyItemsd", "Identityd", "AddChanneld", "AsChannelFirstd", "FromMetaTensord", "ToMetaTensord")  # fmt: skip
_MOVING = ("monai.transforms.spatial", "monai.transforms.croppad", "monai.transforms.io")


@dataclass(frozen=True)
class Keys:
    """Which entries of the dictionaries that the transforms work on are what.

    Args:
        image: of the file that is attacked.
        extra: of further files that become channels beside it.
        network: under which the preprocessing leaves the network's input.
    """

    image: str
    extra: tuple[str, ...] = ()
    network: str = IMAGE


def keys_of_chain(preprocessing: Sequence[Any], image_key: str | None = None) -> Keys:
    """Which files a preprocessing reads for the network.

    Args:
        preprocessing: dictionary transforms.
        image_key: of the file that is attacked, where the user says so.

    Raises:
        BundleError: it is not clear which of several files is the image.
    """
    files, joined_as = loaded(preprocessing), None
    for transform in preprocessing:
        if isinstance(transform, AddLabelAsGuidanced):
            files, joined_as = [*map(str, transform.keys), str(transform.source)], str(transform.keys[0])
        elif isinstance(transform, ConcatItemsd):
            files, joined_as = [str(key) for key in transform.keys], str(transform.name)
    if image_key is None and len(files) == 1:
        image_key = files[0]
    if image_key is None and (not files or IMAGE in files):
        image_key = IMAGE
    if image_key is None:
        raise BundleError(
            f"the preprocessing reads {', '.join(files)}, none called {IMAGE!r}; pass image_key= with what is attacked."
        )
    if joined_as is None:
        # nothing that is known joins files; what scripts join is called as MONAI's engines expect it
        others = [key for key in files if key not in (image_key, LABEL)] if image_key != IMAGE else []
        return Keys(image_key, tuple(others), IMAGE if others else image_key)
    return Keys(image_key, tuple(key for key in files if key != image_key), joined_as)


def loaded(preprocessing: Sequence[Any]) -> list[str]:
    """Keys of the files that are read, each once."""
    keys = [str(key) for t in preprocessing if isinstance(t, LoadImaged) for key in t.keys]
    return list(dict.fromkeys(keys))


def without_labels(transforms: Sequence[Any], keys: Sequence[str]) -> tuple[Any, ...]:
    """The same transforms, where a dictionary may lack what is not in ``keys``."""
    for transform in transforms:
        if isinstance(transform, MapTransform) and not set(map(str, getattr(transform, "keys", ()))) <= set(keys):
            transform.allow_missing_keys = True
    return tuple(transforms)


class Unreadable:
    """A step of a label's preparation that needs trust: refuses when a label is given, not before.

    Args:
        message: what to say then.
    """

    def __init__(self, message: str) -> None:
        self.message = message

    def __call__(self, data: Mapping[str, Any]) -> Mapping[str, Any]:
        raise BundleError(self.message)


def label_key_of(configs: Sequence[BundleConfig], taken: Sequence[str]) -> str:
    """The key of the reference: the one file beside the image that the validation reads."""
    with suppress(PartRefused):  # where the validation can't be read, the reference says so
        for part in (part for config in configs for part in _validation(config)):
            if isinstance(part, Component) and part.name.startswith("LoadImage"):
                others = [key for key in keys_of(part) if key not in taken]
                if len(others) == 1:
                    return others[0]
    return LABEL if LABEL not in taken else "reference"


def reference_of(
    configs: Sequence[BundleConfig], build: Callable[[Component], Any], key: str, decision: Decision, *, to_onehot: bool
) -> tuple[Any, ...]:
    """The transforms of the validation that change what a label says.

    Args:
        configs: the first that has a validation counts.
        build: builds a transform.
        key: of the label.
        decision: whose form the label is to have.
        to_onehot: whether the training loss takes class numbers apart into channels.
    """
    steps: list[Any] = []
    config = next((c for c in configs if c.first(VALIDATION)), None)
    try:
        for part in [] if config is None else _validation(config):
            if isinstance(part, Component) and key in keys_of(part) and not _keeps_values(part):
                steps.append(_only(build(part), key))
    except PartRefused as refusal:
        assert config is not None
        return (
            Unreadable(
                f"{config.name}: {refusal}, and labels pass it; pass reference= (an empty list where they are in the "
                "diagnosis's form already) or trust=True."
            ),
        )
    split = any(isinstance(s, ConvertToMultiChannelBasedOnBratsClassesd) or _is_onehot(s) for s in steps)
    if to_onehot and isinstance(decision, Multilabel) and decision.num_labels > 1 and not split:
        steps.append(AsDiscreted(keys=key, to_onehot=decision.num_labels))
    return tuple(steps)


def _validation(config: BundleConfig) -> list[Any]:
    """The steps of the validation's preprocessing."""
    key = config.first(VALIDATION)
    return [] if key is None else list(components(config.value(key), key))


def _keeps_values(part: Component) -> bool:
    if part.name in _LAYOUT:
        return True
    found = getattr(monai.transforms, part.name, None)
    return found is not None and found.__module__.startswith(_MOVING)


def _is_onehot(transform: Any) -> bool:
    return isinstance(transform, AsDiscreted) and any(n is not None for n in transform.to_onehot)


def _only(transform: Any, key: str) -> Any:
    """A copy of a dictionary transform that works on one of its keys."""
    keys = tuple(map(str, transform.keys))
    if keys == (key,):
        return transform
    one = copy.copy(transform)
    for name, value in vars(transform).items():
        if isinstance(value, list | tuple) and len(value) == len(keys):
            setattr(one, name, (value[keys.index(key)],))
    return one
