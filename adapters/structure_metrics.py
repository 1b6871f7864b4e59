"""How a segmented structure compares with its reference, in the units of the clinic."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from monai.metrics.utils import get_edge_surface_distance

from medadv.metrics import components, dice_per_class, volume

PERCENTILE = 95


def structure_metrics(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float], tolerance: float
) -> dict[str, float]:
    """Overlap, volume and surface distances of one structure of one case.

    Surfaces are the voxels of a mask that touch its outside, distances are between their centres, as in MONAI.

    Args:
        prediction: bool ``(*S)``, 2D or 3D.
        reference: bool ``(*S)``.
        spacing: voxel size in mm along each axis.
        tolerance: distance in mm at which two surfaces count as the same (surface Dice, arXiv 1809.04430).

    Returns:
        ``dice``; ``volume_ml`` and ``volume_ml_reference`` (2D: ``area_mm2``); ``surface_dice``, 0 for a missed
        structure; ``hd95_mm``, the 95th percentile of the distances, the larger of both directions, at most the
        diagonal of the image, which is what a missed structure gets; ``missed``, 1 or 0; ``invented``, 1 where the
        reference has no voxel and the prediction has, else 0; ``components`` of the prediction. Without a voxel in the
        reference there is no ``dice``, ``surface_dice`` and ``hd95_mm``: they are NaN.

    Raises:
        ValueError: masks of different shapes or no masks, a spacing or tolerance that is none.

    Example:
        >>> import numpy as np
        >>> reference = np.zeros((8, 8, 8), dtype=bool)
        >>> reference[2:5, 2:5, 2:5] = True
        >>> found = structure_metrics(np.roll(reference, 1, axis=2), reference, (1.0, 1.0, 2.0), tolerance=1.0)
        >>> round(found["dice"], 3), found["hd95_mm"], found["volume_ml"]
        (0.667, 2.0, 0.054)
    """
    _check(prediction, reference, spacing, tolerance)
    measure, scale = ("volume_ml", 1000.0) if reference.ndim == 3 else ("area_mm2", 1.0)
    voxel = float(np.prod(spacing)) / scale
    there, found = bool(reference.any()), bool(prediction.any())
    both = torch.from_numpy(np.stack([prediction, reference]))[:, None, None]
    diagonal = float(np.linalg.norm(np.multiply(reference.shape, spacing)))
    surface, distance = (0.0, diagonal) if there else (math.nan, math.nan)
    if there and found:
        surface, distance = _surfaces(prediction, reference, spacing, tolerance)
    return {
        "dice": float(dice_per_class(both[0], both[1])[0, 0]),
        measure: volume(prediction, voxel),
        f"{measure}_reference": volume(reference, voxel),
        "surface_dice": surface,
        "hd95_mm": min(distance, diagonal),
        "missed": float(there and not found),
        "invented": float(found and not there),
        "components": float(components(prediction)),
    }


def _surfaces(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float], tolerance: float
) -> tuple[float, float]:
    """Surface Dice and HD95 in the box that holds both masks, with a voxel of air around it."""
    union = prediction | reference
    box = []
    for axis in range(union.ndim):
        places = np.flatnonzero(union.any(tuple(a for a in range(union.ndim) if a != axis)))
        box.append(slice(int(places[0]), int(places[-1]) + 1))
    one, other = (torch.from_numpy(np.pad(mask[tuple(box)], 1)) for mask in (prediction, reference))
    sizes = [float(size) for size in spacing]
    _, distances, _ = get_edge_surface_distance(one, other, spacing=sizes, symmetric=True)
    both_ways = [np.asarray(ways) for ways in distances]
    close = sum(int((ways <= tolerance).sum()) for ways in both_ways) / sum(map(len, both_ways))
    # torch's quantile, which MONAI's own metric asks, stops at 16 million points of a surface
    return close, max(float(np.percentile(ways, PERCENTILE)) for ways in both_ways)


def _check(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float], tolerance: float) -> None:
    if prediction.shape != reference.shape or prediction.dtype != bool or reference.dtype != bool:
        raise ValueError(
            f"prediction is {prediction.dtype} {prediction.shape} and reference {reference.dtype} {reference.shape}; "
            "give two bool masks of one shape."
        )
    if len(spacing) != reference.ndim or reference.ndim not in (2, 3) or not all(0 < s < math.inf for s in spacing):
        raise ValueError(f"spacing={tuple(spacing)} is none of {reference.ndim} axes; give a positive size in mm each.")
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance={tolerance} is no distance; give mm, 0 or more.")
