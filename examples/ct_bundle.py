"""Makes a MONAI bundle that segments an organ in CT, and a scan to attack it on.

Usage: python examples/ct_bundle.py FOLDER

FOLDER then holds ``bundle`` (configs and trained weights in the layout of MONAI's model zoo), ``scan.nii.gz`` (int16,
Hounsfield units) and ``organ.nii.gz`` (its segmentation). The scans are phantoms: a body, ribs, and an organ 50 HU
brighter than what is around it. About ten seconds on one core.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from monai.utils import set_determinism
from scipy import ndimage

SIDES, SPACING = (72, 64, 48), (2.0, 2.0, 3.0)
CHANNELS, STRIDES = (8, 16, 32), (2, 2)


def ellipsoid(rng: np.random.Generator, centre: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
    """A smooth lump around a centre, both given as shares of the sides."""
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, side) for side in SIDES], indexing="ij"), -1)
    bumps = ndimage.gaussian_filter(rng.normal(size=SIDES), 5)
    return (((grid - centre) / radii) ** 2).sum(-1) + 0.25 * bumps / bumps.std() < 1


def phantom(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A scan in Hounsfield units, int16, and the mask of its organ."""
    rng = np.random.default_rng(seed)
    body = ellipsoid(rng, (0.5, 0.5, 0.5), (0.45, 0.4, 0.7))
    organ = ellipsoid(rng, tuple(rng.uniform(0.4, 0.6, 3)), tuple(rng.uniform(0.14, 0.2, 3))) & body
    ribs = body & ~ndimage.binary_erosion(body, iterations=2) & (np.arange(SIDES[2]) % 8 < 3)
    scan = np.full(SIDES, -1000.0)
    scan[body], scan[organ], scan[ribs] = 60, 110, 400
    scan = ndimage.gaussian_filter(scan, 0.6) + ndimage.gaussian_filter(rng.normal(0, 60, SIDES), 0.7)
    return np.rint(scan).clip(-1024, 3071).astype(np.int16), organ.astype(np.uint8)


def write(path: Path, values: np.ndarray) -> None:
    """Writes a volume with its voxel size."""
    nibabel.save(nibabel.Nifti1Image(values, np.diag([*SPACING, 1.0])), path)


def trained(steps: int) -> UNet:
    """A U-Net trained on crops of phantoms, in the window the bundle shows it."""
    set_determinism(0)
    network = UNet(3, 1, 2, CHANNELS, STRIDES, norm="instance")
    optimizer, loss = torch.optim.Adam(network.parameters(), 5e-3), DiceCELoss(to_onehot_y=True, softmax=True)
    cases = [phantom(seed) for seed in range(1, 9)]
    rng = np.random.default_rng(0)
    for _ in range(steps):
        scan, organ = cases[rng.integers(len(cases))]
        corner = [rng.integers(0, side - 40 + 1) for side in SIDES]
        crop = tuple(slice(first, first + 40) for first in corner)
        x = (torch.from_numpy(scan[crop].astype(np.float32)) + 175).clamp(0, 425) / 425
        optimizer.zero_grad()
        loss(network(x[None, None]), torch.from_numpy(organ[crop].astype(np.int64))[None, None]).backward()
        optimizer.step()
    return network.eval()


INFERENCE = {
    "imports": ["$import glob"],
    "bundle_root": ".",
    "image_key": "image",
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "network_def": {
        "_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": list(CHANNELS),
        "strides": list(STRIDES), "norm": "instance",
    },
    "network": "$@network_def.to(@device)",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "@image_key"},
            {"_target_": "EnsureChannelFirstd", "keys": "@image_key"},
            {"_target_": "Orientationd", "keys": "@image_key", "axcodes": "RAS"},
            {"_target_": "ScaleIntensityRanged", "keys": "@image_key", "a_min": -175, "a_max": 250, "b_min": 0,
             "b_max": 1, "clip": True},
            {"_target_": "EnsureTyped", "keys": "@image_key"},
        ],
    },
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [40, 40, 40], "sw_batch_size": 2, "overlap": 0.25},
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "Activationsd", "keys": "pred", "softmax": True},
            {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "@image_key",
             "nearest_interp": False, "to_tensor": True},
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            {"_target_": "SaveImaged", "keys": "pred", "output_dir": "$@bundle_root + '/eval'"},
        ],
    },
}  # fmt: skip
METADATA = {
    "version": "0.1.0",
    "task": "Segmentation of one organ in CT",
    "network_data_format": {
        "inputs": {
            "image": {
                "type": "image", "format": "hounsfield", "modality": "CT", "num_channels": 1,
                "spatial_shape": [40, 40, 40], "dtype": "float32", "value_range": [0, 1], "is_patch_data": True,
                "channel_def": {"0": "image"},
            }
        },
        "outputs": {
            "pred": {
                "type": "image", "format": "segmentation", "num_channels": 2, "spatial_shape": [40, 40, 40],
                "dtype": "float32", "value_range": [0, 1], "is_patch_data": True,
                "channel_def": {"0": "background", "1": "organ"},
            }
        },
    },
}  # fmt: skip


def main(folder: Path, steps: int = 500) -> None:
    """Writes bundle, scan and segmentation."""
    bundle = folder / "bundle"
    for name, content in (("inference", INFERENCE), ("metadata", METADATA)):
        path = bundle / "configs" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2))
    (bundle / "models").mkdir(exist_ok=True)
    torch.save(trained(steps).state_dict(), bundle / "models" / "model.pt")
    scan, organ = phantom(100)
    write(folder / "scan.nii.gz", scan)
    write(folder / "organ.nii.gz", organ)
    print(f"wrote {bundle}, {folder / 'scan.nii.gz'} and {folder / 'organ.nii.gz'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
