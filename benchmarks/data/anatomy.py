"""Synthetic head scans with their truth: the MNI152 template deformed into subjects, lesions grown in white matter.

No wheel ships labelled medical images, but nilearn's wheel carries the MNI152 average brain (T1 and probability maps of
grey and white matter). From it MONAI's random transforms make any number of different "subjects" whose truth is known
exactly, which is what a benchmark needs that must run everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from monai.transforms import Rand3DElastic, RandBiasField, RandGaussianNoise, ResizeWithPadOrCrop
from monai.utils import optional_import
from scipy import ndimage
from torch.nn.functional import avg_pool3d

TISSUES = ("background", "other brain", "grey matter", "white matter")
KINDS = ("bright", "dark", "ring")
WHITE_MATTER_LEVEL = 0.6  # median grey value of white matter; leaves room above for bright lesions
_MIN_LESION_VOXELS = 4


@dataclass(frozen=True)
class Recipe:
    """How subjects look. All lengths in mm, all grey values on the scale 0 to 1.

    Args:
        size: voxels per axis of the subject's volume (right, anterior, superior).
        spacing: edge of a voxel; a whole number, because the 1 mm template is averaged over whole voxels.
        superior: how far the volume's centre lies above the centre of the brain.
        contrast: by how much a lesion differs from white matter.
        contrast_jitter: relative spread of the contrast from lesion to lesion.
        radius: least and greatest radius of a lesion.
        lesions: least and greatest number of lesions of a kind in a subject that has any.
        noise: least and greatest standard deviation of the noise.
        bias: greatest coefficient of the multiplicative bias field.
        tissue_spread: relative spread of each tissue's grey value between subjects.
        deformation: greatest displacement of the elastic deformation before smoothing, in voxels.
    """

    size: tuple[int, int, int]
    spacing: int
    superior: int = 0
    contrast: float = 0.14
    contrast_jitter: float = 0.1
    radius: tuple[float, float] = (6.0, 12.0)
    lesions: tuple[int, int] = (3, 6)
    noise: tuple[float, float] = (0.005, 0.015)
    bias: float = 0.03
    tissue_spread: float = 0.03
    deformation: float = 120.0


@dataclass(frozen=True)
class Subject:
    """One synthetic scan: arrays of ``Recipe.size``.

    Attributes:
        image: T1-like grey values, float32 in [0, 1].
        tissue: index into :data:`TISSUES`, int64.
        lesions: index into :data:`KINDS` plus one where there is a lesion, else 0; int64.
    """

    image: np.ndarray
    tissue: np.ndarray
    lesions: np.ndarray


def make_subject(recipe: Recipe, kinds: tuple[str, ...], seed: int) -> Subject:
    """Makes one subject.

    Args:
        recipe: how subjects look.
        kinds: kinds of lesions it has; empty for a healthy subject. The same seed gives the same anatomy, bias and
            noise whatever the kinds are.
        seed: decides everything random.

    Returns:
        The subject with its truth.
    """
    maps = _deformed_template(recipe, seed)
    grey, white = maps[1], maps[2]
    tissue = _tissue_classes(maps)
    rng = np.random.default_rng([seed, 1])
    image = _tissue_contrast(maps, recipe, np.random.default_rng([seed, 2]))
    lesions = np.zeros(recipe.size, dtype=np.int64)
    room = (white > 0.5) & (white > grey)
    for kind in kinds:
        for _ in range(int(rng.integers(recipe.lesions[0], recipe.lesions[1] + 1))):
            _add_lesion(image, lesions, room, kind, recipe, rng)
    return Subject(_acquire(image, recipe, seed), tissue, lesions)


@lru_cache(maxsize=4)
def _template(size: tuple[int, int, int], spacing: int, superior: int) -> torch.Tensor:
    """T1, grey and white matter of the template, centred on the brain and averaged to ``spacing``: ``(3, *size)``."""
    datasets, found = optional_import("nilearn.datasets")
    if not found:
        raise ImportError(
            "the embedded data are made from the brain template in nilearn, which is not installed; "
            "run `pip install medadv[bench]` or `pip install nilearn`."
        )
    loaders = (datasets.load_mni152_template, datasets.load_mni152_gm_template, datasets.load_mni152_wm_template)
    maps = np.stack([np.asarray(load(resolution=1).dataobj, dtype=np.float32) for load in loaders])
    inside = np.argwhere(maps[0] > 0)
    low, high = inside.min(0), inside.max(0) + 1
    brain = maps[:, low[0] : high[0], low[1] : high[1], low[2] : high[2]]
    # padding above by twice the shift moves the centre of what is cut out up by the shift
    shifted = np.pad(brain, ((0, 0), (0, 0), (0, 0), (max(0, -2 * superior), max(0, 2 * superior))))
    framed = ResizeWithPadOrCrop([n * spacing for n in size])(torch.as_tensor(shifted))
    coarse = avg_pool3d(torch.as_tensor(np.asarray(framed)), spacing)
    coarse[0] *= WHITE_MATTER_LEVEL / coarse[0][coarse[2] > 0.8].median()
    return coarse


def _deformed_template(recipe: Recipe, seed: int) -> np.ndarray:
    # at 4 mm a displacement of 120 white-noise voxels, smoothed over 6 to 7, moves tissue by 3 to 8 mm
    scale = 4 / recipe.spacing
    elastic = Rand3DElastic(
        sigma_range=(6 * scale, 7 * scale),
        magnitude_range=(recipe.deformation * scale / 2, recipe.deformation * scale),
        prob=1.0,
        rotate_range=(0.08, 0.08, 0.12),
        scale_range=(0.06, 0.06, 0.06),
        padding_mode="zeros",
    )
    elastic.set_random_state(seed)
    return np.asarray(elastic(_template(recipe.size, recipe.spacing, recipe.superior)), dtype=np.float32)


def _tissue_classes(maps: np.ndarray) -> np.ndarray:
    t1, grey, white = maps
    inside = t1 > 0.1
    other = np.clip(1 - grey - white, 0, 1)
    classes = np.stack([other, grey, white]).argmax(0) + 1
    return np.where(inside, classes, 0).astype(np.int64)


def _tissue_contrast(maps: np.ndarray, recipe: Recipe, rng: np.random.Generator) -> np.ndarray:
    """T1 with a grey value of its own per tissue; the factors blend with the tissue maps, so no edge is cut."""
    t1, grey, white = maps
    factors = 1 + recipe.tissue_spread * rng.uniform(-1, 1, size=3)
    blend = factors[0] * (1 - grey - white) + factors[1] * grey + factors[2] * white
    return (t1 * blend).astype(np.float32)


def _add_lesion(
    image: np.ndarray, lesions: np.ndarray, room: np.ndarray, kind: str, recipe: Recipe, rng: np.random.Generator
) -> None:
    """Grows one lesion inside ``room`` (in place); none where no room is left."""
    free = room & ~ndimage.binary_dilation(lesions > 0, iterations=2)
    depth = ndimage.distance_transform_edt(free)
    # seeds lie at least half a voxel inside, so that lesions are not slivers along the cortex
    seeds = np.argwhere(depth > 1)
    radius = rng.uniform(*recipe.radius) / recipe.spacing
    strength = recipe.contrast * (1 + recipe.contrast_jitter * rng.uniform(-1, 1))
    if not len(seeds):
        return
    grown = _grow(free, seeds[rng.integers(len(seeds))], radius, rng)
    if grown.sum() < _MIN_LESION_VOXELS:
        return
    lesions[grown] = KINDS.index(kind) + 1
    sign = np.full(grown.sum(), -1.0 if kind == "dark" else 1.0, dtype=np.float32)
    if kind == "ring":
        core = ndimage.distance_transform_edt(grown)[grown]
        sign[core > 1] = -1.0
    image[grown] += strength * sign


def _grow(free: np.ndarray, seed: np.ndarray, radius: float, rng: np.random.Generator) -> np.ndarray:
    """The connected part of ``free`` around ``seed`` within an irregular radius."""
    reach = int(np.ceil(radius * 1.5)) + 1
    box = tuple(slice(max(0, s - reach), s + reach + 1) for s in seed)
    local = free[box]
    centre = seed - np.array([b.start for b in box])
    distance = np.sqrt(sum((axis - c) ** 2 for axis, c in zip(np.indices(local.shape), centre, strict=True)))
    rough = ndimage.gaussian_filter(rng.standard_normal(local.shape), 1.5)
    within = distance <= radius * (1 + 0.25 * rough / max(float(rough.std()), 1e-6))
    parts, _ = ndimage.label(within & local)
    grown = np.zeros_like(free)
    if parts[tuple(centre)]:
        grown[box] = parts == parts[tuple(centre)]
    return grown


def _acquire(image: np.ndarray, recipe: Recipe, seed: int) -> np.ndarray:
    """What the scanner adds: a smooth multiplicative bias field and noise; clipped to [0, 1]."""
    signal: np.ndarray | torch.Tensor = torch.as_tensor(image)[None]
    if recipe.bias:
        field = RandBiasField(degree=2, coeff_range=(-recipe.bias, recipe.bias), prob=1.0)
        field.set_random_state(seed)
        signal = field(signal)
    std = float(np.random.default_rng([seed, 3]).uniform(*recipe.noise))
    if std:
        noise = RandGaussianNoise(prob=1.0, mean=0.0, std=std, sample_std=False)
        noise.set_random_state(seed)
        signal = noise(signal)
    return np.asarray(signal[0]).clip(0, 1).astype(np.float32)
