"""Small deployed models on files that tests write: an organ in CT, regions in MR, photographs, one with a mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from monai.transforms import (
    ConcatItemsd,
    CropForegroundd,
    EnsureChannelFirstd,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    ScaleIntensityRanged,
    Spacingd,
)
from PIL import Image
from torch import Tensor, nn

from medadv import Multiclass, Multilabel
from medadv.adapters.deployments import Deployment

AFFINE = np.array([[0, -1.2, 0, 3], [1.5, 0, 0, -4], [0, 0, 2.5, 5], [0, 0, 0, 1]], dtype=np.float64)
SIDES = (22, 20, 14)


class Threshold(nn.Module):
    """Logits ``gain * (x - level)``, one per level, of the mean brightness around a voxel, or of the image."""

    def __init__(self, levels: tuple[float, ...], gain: float, dims: int = 3, channels: int = 1, voxels: bool = True):
        super().__init__()
        conv = nn.Conv3d if dims == 3 else nn.Conv2d
        self.conv = conv(channels, len(levels), 3, padding=1, padding_mode="replicate")
        self.voxels = voxels
        with torch.no_grad():
            self.conv.weight.fill_(gain / self.conv.weight[0].numel())
            self.conv.bias.copy_(-gain * torch.tensor(levels))

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x)
        return maps if self.voxels else maps.flatten(2).mean(2)


class Background(Threshold):
    """As :class:`Threshold`, with a background whose logit is 0."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return torch.cat([torch.zeros_like(logits[:, :1]), logits], 1)


class Files(NamedTuple):
    """A model, and the files of a case."""

    deployment: Deployment
    image: Any
    label: Any
    eps: str
    extras: dict[str, Path]


def ball(centre: tuple[int, ...], radii: tuple[int, ...], sides: tuple[int, ...] = SIDES) -> np.ndarray:
    grid = np.stack(np.meshgrid(*[np.arange(side) for side in sides], indexing="ij"), -1)
    return (((grid - centre) / radii) ** 2).sum(-1) < 1


def volume(path: Path, values: np.ndarray, dtype: str, inter: float = 0.0) -> Path:
    image = nibabel.Nifti1Image(np.rint(values - inter).astype(dtype), AFFINE, dtype=dtype)
    image.header.set_slope_inter(1.0, inter)
    nibabel.save(image, path)
    return path


def ct(folder: Path, **changes: Any) -> Files:
    """An organ of 80 HU in a body of 30 HU, resampled, cropped and seen through windows; stored with an intercept."""
    rng = np.random.default_rng(0)
    values = np.full(SIDES, -1000.0)
    values[ball((11, 10, 7), (9, 8, 6))] = 30
    organ = ball((12, 10, 7), (4, 4, 4))
    values[organ] = 80
    values += rng.normal(0, 6, SIDES)
    keys = ("image", "label")
    chain = (
        LoadImaged(keys), EnsureChannelFirstd(keys), Orientationd(keys, "RAS", labels=None),
        Spacingd(keys, (1.0, 1.0, 2.0), mode=("bilinear", "nearest")),
        ScaleIntensityRanged("image", -175, 250, 0, 1, clip=True), CropForegroundd(keys, source_key="image", margin=1),
    )  # fmt: skip
    level = (55 + 175) / 425
    given: dict[str, Any] = {
        "network": Background((level,), 40.0), "decision": Multiclass(2, background=0), "segments": True,
        "preprocessing": chain, "inferer": SlidingWindowInferer((12, 12, 12), overlap=0.25, sw_batch_size=2),
        "unit": "HU", "labels": ("background", "organ"), **changes,
    }  # fmt: skip
    return Files(
        Deployment(**given), volume(folder / "scan.nii.gz", values, "uint16", -1024),
        volume(folder / "seg.nii.gz", organ, "uint8"), "10 HU", {},
    )  # fmt: skip


def mr(folder: Path) -> Files:
    """Two overlapping regions in two channels, z-scored inside the head."""
    rng = np.random.default_rng(1)
    head, whole, core = ball((11, 10, 7), (10, 9, 6)), ball((12, 10, 7), (6, 5, 4)), ball((12, 10, 7), (3, 3, 3))
    files = []
    for channel in range(2):
        values = np.where(head, 300.0, 0) + 150 * whole + 150 * core + np.where(head, rng.normal(0, 20, SIDES), 0)
        files.append(volume(folder / f"mr{channel}.nii.gz", values.clip(0), "int16"))
    label = volume(folder / "seg.nii.gz", np.stack([whole, core], -1), "uint8")
    chain = (
        LoadImaged("image"), EnsureChannelFirstd("image"),
        NormalizeIntensityd("image", nonzero=True, channel_wise=True),
    )  # fmt: skip
    deployment = Deployment(
        network=Threshold((0.3, 1.6), 8.0, channels=2), decision=Multilabel(2), segments=True, preprocessing=chain
    )
    return Files(deployment, files, label, "8/255", {})


def photo(folder: Path) -> Files:
    """A colour photograph, bright or dark."""
    rng = np.random.default_rng(2)
    Image.fromarray(rng.integers(118, 142, (10, 12, 3)).astype(np.uint8)).save(folder / "photo.png")
    deployment = Deployment(
        network=Background((0.5,), 40.0, dims=2, channels=3, voxels=False), decision=Multiclass(2), segments=False,
        preprocessing=(
            LoadImaged("image"), EnsureChannelFirstd("image"), ScaleIntensityRanged("image", 0, 255, 0, 1, clip=True)
        ),
    )  # fmt: skip
    return Files(deployment, folder / "photo.png", 1, "8/255", {})


def masked(folder: Path) -> Files:
    """A grey photograph with a mask beside it that nobody may change; one logit."""
    rng = np.random.default_rng(3)
    Image.fromarray(rng.integers(122, 142, (10, 12)).astype(np.uint8)).save(folder / "cell.png")
    Image.fromarray(np.full((10, 12), 128, np.uint8)).save(folder / "mask.png")
    keys = ("image", "mask")
    deployment = Deployment(
        network=Threshold((0.505,), 60.0, dims=2, channels=2, voxels=False), decision=Multilabel(1), segments=False,
        preprocessing=(
            LoadImaged(keys), EnsureChannelFirstd(keys), ScaleIntensityRanged(keys, 0, 255, 0, 1),
            ConcatItemsd(keys, "image"),
        ),
        extra_keys=("mask",),
    )  # fmt: skip
    return Files(deployment, folder / "cell.png", 1, "8/255", {"mask": folder / "mask.png"})


MODELS = {"ct": ct, "mr": mr, "photo": photo, "masked": masked}
