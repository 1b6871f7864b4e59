"""MONAI Bundles as deployed models, without running what they say unless they are trusted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeAlias

import torch
from monai.inferers import Inferer, SimpleInferer
from monai.transforms import Compose
from torch import Tensor, nn

from medadv.adapters.bundle_components import DataBuilder, chain, components
from medadv.adapters.bundle_config import BundleConfig, Component, PartRefused, merged
from medadv.adapters.bundle_decisions import (
    PREDICTION,
    Loss,
    Metadata,
    channels_of,
    decision_of,
    loss_of,
    segments_of,
    tells_decision,
)
from medadv.adapters.bundle_files import BundleError, bundle_folder, find, read
from medadv.adapters.bundle_labels import (
    VALIDATION,
    keys_of_chain,
    label_key_of,
    reference_of,
    without_labels,
)
from medadv.adapters.bundle_trust import BundleModules, TrustedBuilder
from medadv.adapters.bundle_weights import fit, load_weights, state_dict_of, weights_file
from medadv.adapters.deployments import Deployment, DictTransform
from medadv.adapters.heads import Head
from medadv.decisions import Decision
from medadv.intensities import Intensity

_NETWORK = ("network_def", "network")
_INFERER = ("validate::inferer", "inferer")
_POSTPROCESSING = ("validate::postprocessing", "postprocessing")
_DECIDING = ("Activations", "AsDiscrete")

Transforms: TypeAlias = Sequence[DictTransform] | Compose


def from_bundle(
    path: Path | str,
    trust: bool = False,
    *,
    network: nn.Module | None = None,
    weights: Path | str | Mapping[str, Tensor] | None = None,
    preprocessing: Transforms | None = None,
    postprocessing: Transforms | None = None,
    reference: Transforms | None = None,
    inferer: Inferer | None = None,
    decision: Decision | None = None,
    segments: bool | None = None,
    intensity: Intensity | None = None,
    head: Head = None,
    labels: Sequence[str] | None = None,
    image_key: str | None = None,
    device: torch.device | str | None = None,
) -> Deployment:
    """Reads a MONAI Bundle: network, weights, preprocessing, inferer, postprocessing, names and unit.

    ``configs/inference.json`` (or yaml) is read first, then ``train`` with ``evaluate`` or ``test``, and
    ``configs/metadata.json``. Without trust they are data: classes on a list, references, no expressions, no scripts,
    weights as tensors only, no file outside the folder. Each part that can't be had so is refused by its key, with what
    to pass in its place; what is passed is not looked for in the bundle.

    Args:
        path: the folder that holds ``configs`` and ``models``.
        trust: run whatever the bundle says, as MONAI would.
        network: trained, in place of the bundle's; its weights are left alone unless ``weights`` is given.
        weights: a checkpoint anywhere, or a state dict.
        preprocessing: MONAI dictionary transforms from file to network input; an empty list: none.
        postprocessing: MONAI dictionary transforms of the prediction; an empty list: the decision's own.
        reference: MONAI dictionary transforms that bring a label to the decision's form; an empty list: it has it.
        inferer: a MONAI inferer.
        decision: how logits become a diagnosis.
        segments: True for one diagnosis per voxel, False for one per image.
        intensity: range, unit and window of the stored values.
        head: picks the logits from the network's output.
        labels: name of each logit.
        image_key: which of several files is the image.
        device: where the network will run.

    Raises:
        BundleError: something is missing, unclear or refused; the message says what to pass.

    Example:
        >>> deployment = from_bundle("spleen_ct_segmentation")  # doctest: +SKIP
        >>> deployment.decision, deployment.unit  # doctest: +SKIP
        (Multiclass(num_classes=2, background=0, ignore_index=None, empty='present', scored=None), 'HU')
    """
    before = None if preprocessing is None else tuple(components(preprocessing, "preprocessing"))
    root = bundle_folder(path)
    with _naming(root):
        bundle = _Bundle(root, trust=trust, device=device, preprocessing=before)
        network, component = bundle.network(network, weights)
        before = bundle.chain("preprocessing", VALIDATION, before)
        after = bundle.chain("postprocessing", _POSTPROCESSING, postprocessing)
        keys = keys_of_chain(before, image_key)
        loss = bundle.loss(needed=decision is None)
        told = after if tells_decision(after) or decision is not None else bundle.activations()
        voxels = segments_of(bundle.metadata, told, loss) if segments is None else segments
        channels = channels_of(network, component, bundle.metadata, told) if decision is None else decision.channels
        names = bundle.metadata.labels(channels or 0) if labels is None else tuple(labels)
        if decision is None:
            decision = decision_of(channels, told, loss, names, segments=voxels)
        if labels is not None and len(names) != decision.channels:
            raise BundleError(f"{len(names)} labels are given for {decision.channels} logits; name each.")
        label_key = label_key_of(bundle.training, (keys.image, *keys.extra))
        if reference is None:
            reference = bundle.reference(label_key, decision, to_onehot=loss.to_onehot)
        seen = (keys.image, *keys.extra, keys.network, PREDICTION)
        return Deployment(
            network=network,
            decision=decision,
            segments=voxels,
            preprocessing=without_labels(before, seen) if preprocessing is None else before,
            postprocessing=without_labels(after, seen) if postprocessing is None else after,
            reference=tuple(components(reference, "reference")),
            inferer=bundle.inferer() if inferer is None else inferer,
            head=head,
            image_key=keys.image,
            input_key=keys.network,
            label_key=label_key,
            prediction_key=PREDICTION,
            extra_keys=keys.extra,
            fixed_channels=() if keys.extra else bundle.metadata.other_channels,
            labels=names,
            unit=bundle.metadata.unit(before),
            intensity=intensity,
            name=root.name,
            device=device,
        )


@contextmanager
def _naming(root: Path) -> Iterator[None]:
    """Context whose refusals begin with the name of the bundle."""
    try:
        yield
    except BundleError as error:
        raise BundleError(f"{root.name}: {error}") from error


class _Bundle:
    """The configs of a bundle with what builds from them; each part is looked for in turn."""

    def __init__(
        self, root: Path, *, trust: bool, device: torch.device | str | None, preprocessing: tuple[Any, ...] | None
    ) -> None:
        self.root = root
        self.trust = trust
        self.modules = BundleModules(root)
        self.builder = TrustedBuilder(self.modules) if trust else DataBuilder()
        place = torch.device("cpu" if device is None else device)
        # Invertd refers to the preprocessing that really ran
        given = {} if preprocessing is None else {"preprocessing": Compose(preprocessing)}
        fixed = {"bundle_root": str(root), "device": place, **given}
        self.training = self._open([("train",), ("evaluate", "test")], fixed)
        self.configs = [*self._open([("inference",)], fixed), *self.training]
        if not self.configs:
            raise BundleError("it holds no configs/inference.json, evaluate.json or train.json (or yaml).")
        path = find(root, "metadata")
        self.metadata = Metadata({} if path is None else read(path))

    def _open(self, stems: list[tuple[str, ...]], fixed: Mapping[str, Any]) -> list[BundleConfig]:
        """One config from files of which the later win; of alternatives the first that is there."""
        found = [next(filter(None, (find(self.root, stem) for stem in group)), None) for group in stems]
        paths = [path for path in found if path is not None]
        if not paths:
            return []
        name = " and ".join(path.name for path in paths)
        return [self.builder.open(merged(map(read, paths)), name, fixed)]

    @contextmanager
    def _explained(self, override: str, config: BundleConfig | None = None) -> Iterator[None]:
        """Context whose refusals say which file they are of, and what can be passed."""
        try:
            yield
        except PartRefused as refusal:
            where = "" if config is None else f"{config.name}: "
            remedy = f"pass {override}=" if self.trust else f"pass {override}= or trust=True"
            raise BundleError(f"{where}{refusal}; {remedy}.") from refusal

    def _part(self, keys: Sequence[str]) -> tuple[BundleConfig, str] | None:
        """The first config that has one of some ids, and the id."""
        found = ((config, config.first(keys)) for config in self.configs)
        return next(((config, key) for config, key in found if key is not None), None)

    def network(
        self, given: nn.Module | None, weights: Path | str | Mapping[str, Tensor] | None
    ) -> tuple[nn.Module, Component | None]:
        """The network with its weights, and what the config says of it."""
        network, component = self._build_network() if given is None else (given, None)
        if given is None or weights is not None:
            state, source = self._weights(weights)
            fit(network, state, source)
        return network, component

    def _build_network(self) -> tuple[nn.Module, Component | None]:
        part = self._part(_NETWORK)
        if part is None:
            raise BundleError("no config has network_def; pass network=.")
        config, key = part
        with self._explained("network", config):
            value = config.value(key)
            component = value if isinstance(value, Component) else None
            network = value if component is None else self.builder.build(component, "network")
            if not isinstance(network, nn.Module):
                raise PartRefused(key, f"is no network but {type(network).__name__}")
        return network.eval(), component

    def _weights(self, given: Path | str | Mapping[str, Tensor] | None) -> tuple[dict[str, Tensor], str]:
        if isinstance(given, Mapping):
            return state_dict_of(given, (), "weights"), "weights"
        names: tuple[str, ...] = ()
        with self._explained("weights"):
            if given is None:
                path, names = weights_file(self.root, self.configs, trust=self.trust)
            else:
                path = Path(given).expanduser()
                if not path.is_file():
                    raise BundleError(f"weights={str(given)!r} is no file.")
            with self.modules.active() if self.trust else nullcontext():
                return load_weights(path, names, trust=self.trust), path.name

    def chain(self, name: str, keys: Sequence[str], given: Transforms | None) -> tuple[Any, ...]:
        """A chain of transforms, as given or from the config."""
        if given is not None:
            return tuple(components(given, name))
        part = self._part(keys)
        if part is None:
            if name == "preprocessing":
                raise BundleError(f"no config has {name}; pass {name}= (an empty list: none).")
            return ()
        config, key = part
        with self._explained(name, config):
            return tuple(chain(config.value(key), self.builder, key))

    def activations(self) -> tuple[Any, ...]:
        """The steps of the postprocessing that decide, where others are replaced by the user."""
        part = self._part(_POSTPROCESSING)
        if part is None:
            return ()
        config, key = part
        with self._explained("decision", config):
            steps = [step for step in components(config.value(key), key) if isinstance(step, Component)]
            return tuple(self.builder.build(step, "transform") for step in steps if step.name.startswith(_DECIDING))

    def loss(self, *, needed: bool) -> Loss:
        """What the training loss tells; nothing where it is code and the decision does not depend on it."""
        with suppress(*(() if needed else (BundleError,))), self._explained("decision", *self.training):
            return loss_of(self.training)
        return Loss()

    def inferer(self) -> Inferer | None:
        """The inferer; None for the network on the whole image."""
        part = self._part(_INFERER)
        if part is None:
            return None
        config, key = part
        with self._explained("inferer", config):
            value = config.value(key)
            built = self.builder.build(value, "inferer") if isinstance(value, Component) else value
            if built is not None and not isinstance(built, Inferer):
                raise PartRefused(key, f"is no inferer but {type(built).__name__}")
        return None if type(built) is SimpleInferer else built

    def reference(self, key: str, decision: Decision, *, to_onehot: bool) -> tuple[Any, ...]:
        """The transforms that bring a label to the decision's form."""
        configs = self.training or self.configs
        return reference_of(
            configs, lambda part: self.builder.build(part, "transform"), key, decision, to_onehot=to_onehot
        )
