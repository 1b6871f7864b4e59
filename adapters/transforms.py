"""Dictionary transforms of MONAI that replace an image by its adversarial counterpart."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor
from torch import Tensor
from torch.utils.data import get_worker_info

from medadv.adapters.counterparts import case_names, check_attack, counterpart
from medadv.attacks import CatalogueAttack


class Adversariald(MapTransform):
    """Dictionary transform that replaces images by their adversarial counterparts.

    It takes one case, channel first, or a batch, and keeps type, device, meta data and applied operations, so that
    ``Invertd`` works as before. The random draws of a case depend on the attack's seed and on the case alone: its file
    name, or its values where it has none. Transforms that come before it are part of what the attacker can't change;
    those that come after are not known to the attack, so let none of them change the image.

    In the workers of a ``DataLoader`` it attacks the network as it was when the workers started: right for a network
    that stays as it is, not for one in training.

    Args:
        keys: of the images.
        attack: made by :func:`medadv.attacks.create`.
        label_key: of the reference (of a targeted attack: the diagnosis wanted); None: the model's own diagnosis.
        mask_key: of a mask of where the image may change; None: everywhere.
        clean_key: where the clean image is kept; only with one key.
        allow_missing_keys: as in MONAI.

    Raises:
        TypeError: what is no attack.
        ValueError: ``clean_key`` for several images, or, called, images of another rank than the model's, or an attack
            that would make the labels wrong.
        RuntimeError: a network on a GPU in a worker of a ``DataLoader``.

    Example:
        >>> import torch
        >>> from medadv.adapters import MonaiClassifier
        >>> from medadv.attacks import create
        >>> from medadv.decisions import Multiclass
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
        >>> estimator = MonaiClassifier(net, (1, 4, 4), decision=Multiclass(2))
        >>> transform = Adversariald("image", create("fgsm", estimator, eps=0.01), label_key="label", clean_key="clean")
        >>> case = transform({"image": torch.full((1, 4, 4), 0.5), "label": 1})
        >>> case["image"].shape, round(float((case["image"] - case["clean"]).abs().max()), 4)
        (torch.Size([1, 4, 4]), 0.01)
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        keys: KeysCollection,
        attack: CatalogueAttack,
        *,
        label_key: str | None = "label",
        mask_key: str | None = None,
        clean_key: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        check_attack(attack)
        if clean_key is not None and len(self.keys) > 1:
            raise ValueError(
                f"clean_key={clean_key!r} keeps one image, but there are {len(self.keys)} keys; leave it out."
            )
        self.attack = attack
        self.label_key = label_key
        self.mask_key = mask_key
        self.clean_key = clean_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        found = dict(data)
        for key in self.key_iterator(found):
            clean = found[key]
            found[key] = self._attacked(clean, found)
            if self.clean_key is not None:
                found[self.clean_key] = clean
        return found

    def _attacked(self, image: Any, data: Mapping[Hashable, Any]) -> Any:
        self._check_worker()
        tensor: Any = convert_to_tensor(image, track_meta=True)
        rank = len(self.attack.estimator.input_shape)
        if tensor.ndim not in (rank, rank + 1):
            raise ValueError(
                f"the image has shape {tuple(tensor.shape)}; give a case (C, *S) or a batch (N, C, *S) with "
                f"{rank - 1} spatial dimensions."
            )
        single = tensor.ndim == rank
        batch, label, mask = (_batched(part, single) for part in (tensor, *self._beside(data)))
        names = self._names(case_names(batch))
        adversarial = counterpart(self.attack, batch, label, mask, names=names)
        return convert_to_dst_type(adversarial[0] if single else adversarial, image)[0]

    def _beside(self, data: Mapping[Hashable, Any]) -> tuple[Any, Any]:
        return (
            None if self.label_key is None else data[self.label_key],
            None if self.mask_key is None else data[self.mask_key],
        )

    def _names(self, names: list[str]) -> list[str]:
        """What the random draws of the cases depend on."""
        return names

    def _check_worker(self) -> None:
        device = self.attack.victim.device
        if device.type == "cuda" and get_worker_info() is not None:
            raise RuntimeError(
                f"the network is on {device}, which workers of a DataLoader can't use; give num_workers=0, or attack "
                "the batches after loading."
            )


class RandAdversariald(RandomizableTransform, Adversariald):
    """:class:`Adversariald` as an augmentation: with a probability, and with new random draws each time.

    A batch is attacked as a whole or not at all. For training against attacks, :mod:`medadv.training` is faster and
    always sees the network as it is; this is for pipelines that want some adversarial cases among the others.

    Args:
        keys: of the images.
        attack: made by :func:`medadv.attacks.create`.
        prob: probability that a case is attacked.
        label_key, mask_key, clean_key, allow_missing_keys: as in :class:`Adversariald`.

    Example:
        >>> import torch
        >>> from medadv.adapters import MonaiClassifier
        >>> from medadv.attacks import create
        >>> from medadv.decisions import Multiclass
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
        >>> estimator = MonaiClassifier(net, (1, 4, 4), decision=Multiclass(2))
        >>> transform = RandAdversariald("image", create("fgsm", estimator, eps=0.01), prob=0.5).set_random_state(0)
        >>> cases = [transform({"image": torch.full((1, 4, 4), 0.5), "label": 1}) for _ in range(20)]
        >>> sum(float((case["image"] - 0.5).abs().max()) > 0 for case in cases)
        7
    """

    def __init__(
        self,
        keys: KeysCollection,
        attack: CatalogueAttack,
        prob: float = 0.1,
        *,
        label_key: str | None = "label",
        mask_key: str | None = None,
        clean_key: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        RandomizableTransform.__init__(self, prob)
        Adversariald.__init__(
            self, keys, attack, label_key=label_key, mask_key=mask_key, clean_key=clean_key,
            allow_missing_keys=allow_missing_keys,
        )  # fmt: skip
        self.draw = 0

    def randomize(self, data: Any = None) -> None:
        """Draws whether to attack, and what the attack's own draws depend on."""
        super().randomize(None)
        self.draw = int(self.R.randint(2**31 - 1))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        self.randomize()
        return super().__call__(data)

    def _attacked(self, image: Any, data: Mapping[Hashable, Any]) -> Any:
        return super()._attacked(image, data) if self._do_transform else image

    def _names(self, names: list[str]) -> list[str]:
        return [f"{self.draw}-{name}" for name in names]


def _batched(part: Any, single: bool) -> Any:
    """A case's part as a batch of one."""
    if part is None or not single:
        return part
    return part[None] if isinstance(part, Tensor) else torch.as_tensor(part)[None]
