"""The adversarial counterpart of images as MONAI's pipelines hold them: MetaTensors, with file names and labels."""

from __future__ import annotations

import hashlib
import threading
from typing import Any

import torch
from monai.data import MetaTensor
from monai.utils import ImageMetaKey
from torch import Tensor

from medadv.attacks import CatalogueAttack
from medadv.decisions import as_plain_tensor

# an attack sets its model to inference mode and restores it: threads (of CacheDataset, say) wait for each other
_ONE_AT_A_TIME = threading.Lock()


def check_attack(attack: Any) -> None:
    """Refuses what is no attack of the catalogue.

    Raises:
        TypeError: something else.
    """
    if not isinstance(attack, CatalogueAttack):
        raise TypeError(
            f"attack is of type {type(attack).__name__}; give one made by medadv.attacks.create(name, estimator, ...)."
        )


def case_names(images: Tensor) -> list[str]:
    """A name for each case, for its random draws: its file, else a hash of its values.

    Args:
        images: ``(N, C, *S)``, tensor or MetaTensor.

    Returns:
        N names, which don't depend on the batch a case is in.

    Example:
        >>> import torch
        >>> from monai.data import MetaTensor
        >>> meta = {"filename_or_obj": ["a.nii", "b.nii"]}
        >>> case_names(MetaTensor(torch.zeros(2, 1, 4, 4), meta=meta))
        ['a.nii', 'b.nii']
    """
    files = images.meta.get(ImageMetaKey.FILENAME_OR_OBJ) if isinstance(images, MetaTensor) else None
    files = [files] if isinstance(files, str) and len(images) == 1 else files
    if isinstance(files, list | tuple) and len(files) == len(images) and all(files):
        return [str(file) for file in files]
    return [
        hashlib.blake2b(case.contiguous().numpy().tobytes(), digest_size=8).hexdigest()
        for case in as_plain_tensor(images).cpu()
    ]


def counterpart(
    attack: CatalogueAttack, images: Tensor, labels: Any = None, mask: Any = None, *, names: list[str] | None = None
) -> Tensor:
    """The adversarial counterpart of a batch.

    Args:
        attack: of the catalogue.
        images: ``(N, C, *S)``, tensor or MetaTensor, on any device.
        labels: reference in any usual form (of a targeted attack: the diagnosis wanted); None: the model's own
            diagnosis.
        mask: where the image may change; None: everywhere.
        names: of the cases, for their random draws; None: :func:`case_names`.

    Returns:
        Like ``images``: type, dtype, device, meta data and applied operations.

    Raises:
        ValueError: an attack that moves or covers what the labels show, as these would be wrong afterwards.

    Example:
        >>> import torch
        >>> from medadv.adapters import MonaiClassifier
        >>> from medadv.attacks import create
        >>> from medadv.decisions import Multiclass
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
        >>> estimator = MonaiClassifier(net, (1, 4, 4), decision=Multiclass(2))
        >>> x = torch.rand(2, 1, 4, 4)
        >>> counterpart(create("fgsm", estimator, eps="4/255"), x, [0, 1]).shape
        torch.Size([2, 1, 4, 4])
    """
    victim = attack.victim
    names = case_names(images) if names is None else names
    with _ONE_AT_A_TIME:
        found = attack.perturb(images.to(victim.device), labels, mask, ids=names)
        reference = attack.reference
    if labels is not None:
        spatial = tuple(images.shape[2:]) if victim.segments else ()
        given = victim.decision.canonical(labels, spatial)
        assert reference is not None
        if not all(torch.equal(a.cpu(), torch.from_numpy(b)) for a, b in zip(given, reference, strict=True)):
            raise ValueError(
                f"attack {attack.name!r} moves or covers what the labels show, so they are not those of its images; "
                "choose one that changes grey values only, such as 'pgd' or 'bias-field'."
            )
    return found.to(images.device)
