"""Natural corruptions of images at five severities (in the manner of MedMNIST-C, arXiv 2406.17536), 2D and 3D.

What a scanner, a patient or a converter does to an image without wanting to. They stand beside the adversarial rows and
belong to no worst case. Nothing moves: the reference of a corrupted image is that of the image. MONAI's transforms do
the work, run on ``(x - low) / width``, with low the least grey value of the intensity and width that of the window (of
the range where there is none); random ones are seeded from (seed, case id), the same for all severities, so that a
severer image is the same accident made worse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.config import NdarrayOrTensor
from monai.transforms import (
    AdjustContrast,
    GaussianSmooth,
    GibbsNoise,
    KSpaceSpikeNoise,
    RandBiasField,
    RandGaussianNoise,
    RandRicianNoise,
    Resize,
    ScaleIntensityFixedMean,
    ShiftIntensity,
)
from monai.transforms.utils import Fourier
from torch import Tensor

from medadv.intensities import Intensity
from medadv.names import unknown_name
from medadv.threats import CaseRandom
from medadv.threats.intensity_fields import window_of

SEVERITIES = (1, 2, 3, 4, 5)
PREFIX = "corruption:"
# the second axis of the image is the phase-encoding direction of MR
PHASE_AXIS = 2
# share of the k-space lines, those of the lowest frequencies, that are spared: they hold place and contrast
AT_REST = 0.12
SPARED = 0.02


@dataclass(frozen=True)
class Accident:
    """What one case draws and how large its voxels are.

    Attributes:
        generator: of the case; each use draws on.
        seed: for MONAI's random transforms.
        spacing: size of a voxel along each axis, in any unit.
        window: start and width of the intensity window in the units of the transformed image.
    """

    generator: torch.Generator
    seed: int
    spacing: tuple[float, ...]
    window: tuple[Tensor, Tensor]

    def uniform(self, *shape: int) -> Tensor:
        """Draws in [0, 1)."""
        return torch.rand(shape, generator=self.generator, dtype=torch.float64)


Apply = Callable[[Tensor, float, Accident], NdarrayOrTensor]


@dataclass(frozen=True)
class Corruption:
    """A row of the table.

    Attributes:
        name: as suites call it.
        summary: what happens.
        transform: MONAI's transform, or what stands in where it has none.
        severities: the parameter at severities 1 to 5.
        parameter: what it is, with its unit.
        apply: image ``(C, *S)``, parameter, accident -> image.
        mr: True if it is an accident of MR acquisition.
    """

    name: str
    summary: str
    transform: str
    severities: tuple[float, float, float, float, float]
    parameter: str
    apply: Apply
    mr: bool = False


def _lines(image: Tensor) -> Tensor:
    """Frequency of each k-space line along the phase axis, zero in the middle, in cycles per image."""
    count = image.shape[PHASE_AXIS]
    return torch.arange(count, dtype=torch.float64) - count // 2


def _in_the_middle(frequencies: Tensor, share: float) -> Tensor:
    return frequencies.abs() <= share / 2 * len(frequencies)


def _along_phase(values: Tensor, image: Tensor) -> Tensor:
    return values.view(1, *[-1 if axis == PHASE_AXIS else 1 for axis in range(1, image.ndim)])


def motion(image: Tensor, amount: float, accident: Accident) -> NdarrayOrTensor:
    """Movement between k-space lines: those of high frequency are measured of an image shifted within the plane.

    Four times, at drawn lines before and after the middle of the measurement, the patient moves from rest by ``amount``
    percent of the longest side in a drawn direction. The middle eighth of the lines is measured at rest, so anatomy
    stays where it is and gets ghosts and soft edges.
    """
    frequencies = _lines(image)
    count, dims = len(frequencies), image.ndim - 1
    cuts = (accident.uniform(4) * count).long()
    turns = accident.uniform(5) * 2 * torch.pi
    segment = torch.bucketize(torch.arange(count), cuts.sort().values, right=True)
    shift = amount / 100 * _longest(image, accident)
    k = Fourier.shift_fourier(image.double(), dims)
    read = torch.arange(image.shape[1], dtype=torch.float64) - image.shape[1] // 2
    moved = ~_in_the_middle(frequencies, AT_REST)
    along_read, along_phase = (
        moved * wave(turns[segment]) * shift / accident.spacing[axis] for axis, wave in ((0, torch.sin), (1, torch.cos))
    )
    cycles = read[:, None] / image.shape[1] * along_read + frequencies / count * along_phase
    phase = torch.exp(-2j * torch.pi * cycles).view(1, *cycles.shape, *[1] * (dims - 2))
    return Fourier.inv_shift_fourier(k * phase, dims)


def ghosting(image: Tensor, strength: float, accident: Accident) -> NdarrayOrTensor:
    """Periodic loss of signal: every second to fourth k-space line (drawn) is weaker by ``strength``.

    Only strengths change and no phase, and the lines about zero are kept, so ghosts appear beside the anatomy, which
    stays.
    """
    frequencies, dims = _lines(image), image.ndim - 1
    every = 2 + int(accident.uniform(1) * 3)
    weak = (frequencies % every == 0) & ~_in_the_middle(frequencies, SPARED)
    k = Fourier.shift_fourier(image.double(), dims)
    return Fourier.inv_shift_fourier(k * _along_phase(1 - strength * weak, image), dims)


def spike(image: Tensor, strength: float, accident: Accident) -> NdarrayOrTensor:
    """Stripes of one drawn frequency with an amplitude of ``strength``."""
    shares = 0.1 + 0.3 * accident.uniform(image.ndim - 1)
    sides = torch.where(accident.uniform(image.ndim - 1) < 0.5, -1, 1)
    places = [int(size // 2 + side * share * size) for size, share, side in zip(image.shape[1:], shares, sides)]
    return KSpaceSpikeNoise(tuple(places), math.log(strength * image[0].numel()))(image.double())


def _seeded(transform: Any, image: Tensor, accident: Accident) -> NdarrayOrTensor:
    transform.set_random_state(accident.seed)
    found: NdarrayOrTensor = transform(image)
    return found


def bias_field(image: Tensor, amount: float, accident: Accident) -> NdarrayOrTensor:
    """A smooth multiplicative field, the exponential of a polynomial of degree 3 with coefficients up to ``amount``."""
    return _seeded(RandBiasField(coeff_range=(-amount, amount), prob=1), image, accident)


def rician(image: Tensor, sigma: float, accident: Accident) -> NdarrayOrTensor:
    """The noise of MR magnitude images."""
    return _seeded(RandRicianNoise(prob=1, std=sigma, sample_std=False), image, accident)


def gaussian(image: Tensor, sigma: float, accident: Accident) -> NdarrayOrTensor:
    """Noise of the detector, in modalities other than MR."""
    return _seeded(RandGaussianNoise(prob=1, std=sigma, sample_std=False), image, accident)


def _longest(image: Tensor, accident: Accident) -> float:
    """The longest side in the unit of the spacing."""
    return max(size * step for size, step in zip(image.shape[1:], accident.spacing))


def blur(image: Tensor, amount: float, accident: Accident) -> NdarrayOrTensor:
    """Gaussian blur with a standard deviation of ``amount`` percent of the longest side, equal along all axes in mm."""
    sigma = amount / 100 * _longest(image, accident)
    return GaussianSmooth(sigma=[sigma / step for step in accident.spacing])(image)


def low_resolution(image: Tensor, zoom: float, accident: Accident) -> NdarrayOrTensor:
    """Voxels ``1 / zoom`` as large as the finest, and back by interpolation; axes that are coarser already stay."""
    finest = min(accident.spacing)
    sizes = [
        max(1, round(size * min(1.0, zoom * step / finest))) for size, step in zip(image.shape[1:], accident.spacing)
    ]
    mode = "bilinear" if image.ndim == 3 else "trilinear"
    return Resize(image.shape[1:], mode=mode)(Resize(sizes, mode=mode, anti_aliasing=True)(image))


def gibbs(image: Tensor, alpha: float, accident: Accident) -> NdarrayOrTensor:
    """Ringing at edges, as the high frequencies were not measured."""
    return GibbsNoise(alpha)(image)


def gamma(image: Tensor, exponent: float, accident: Accident) -> NdarrayOrTensor:
    """Grey values inside the window, from the image's least to its greatest, to the power of ``exponent``."""
    start, width = accident.window
    v = (image - start) / width
    inside = v.clamp(0, 1)
    # what is outside the window is not seen and keeps its distance from it
    return start + width * (AdjustContrast(exponent)(inside) + v - inside)


def contrast(image: Tensor, loss: float, accident: Accident) -> NdarrayOrTensor:
    """Grey values nearer to the image's mean by the share ``loss``."""
    return ScaleIntensityFixedMean(factor=-loss)(image)


def brightness(image: Tensor, offset: float, accident: Accident) -> NdarrayOrTensor:
    """All grey values shifted."""
    return ShiftIntensity(offset)(image)


CORRUPTIONS = {row.name: row for row in (
    Corruption("motion", "the patient moves between k-space lines, the middle ones measured at rest",
               "its Fourier (no such transform)", (0.5, 1.0, 1.5, 2.0, 3.0), "shift, % of the longest side", motion,
               mr=True),
    Corruption("ghosting", "periodic loss of signal in k-space",
               "its Fourier (no such transform)", (0.15, 0.3, 0.45, 0.6, 0.8), "share of the lines lost", ghosting,
               mr=True),
    Corruption("spike", "stripes of one frequency", "KSpaceSpikeNoise", (0.02, 0.04, 0.06, 0.09, 0.13),
               "amplitude, share of the window", spike, mr=True),
    Corruption("gibbs", "ringing at edges", "GibbsNoise", (0.4, 0.5, 0.6, 0.7, 0.8), "alpha", gibbs, mr=True),
    Corruption("bias-field", "a smooth multiplicative field", "RandBiasField", (0.1, 0.2, 0.3, 0.4, 0.6),
               "largest coefficient", bias_field, mr=True),
    Corruption("rician", "noise of MR magnitude images", "RandRicianNoise", (0.02, 0.04, 0.06, 0.09, 0.13),
               "standard deviation, share of the window", rician, mr=True),
    Corruption("gaussian-noise", "noise of the detector", "RandGaussianNoise", (0.02, 0.04, 0.06, 0.09, 0.13),
               "standard deviation, share of the window", gaussian),
    Corruption("blur", "Gaussian blur", "GaussianSmooth", (0.5, 1.0, 1.5, 2.0, 3.0),
               "standard deviation, % of the longest side", blur),
    Corruption("low-resolution", "larger voxels, interpolated back", "Resize", (0.8, 0.65, 0.5, 0.4, 0.3),
               "finest voxel's side over the new one", low_resolution),
    Corruption("gamma-darker", "gamma above 1", "AdjustContrast", (1.2, 1.4, 1.7, 2.0, 2.5), "exponent", gamma),
    Corruption("gamma-brighter", "gamma below 1", "AdjustContrast", (0.85, 0.7, 0.6, 0.5, 0.4), "exponent", gamma),
    Corruption("contrast", "less contrast about the mean", "ScaleIntensityFixedMean", (0.15, 0.3, 0.45, 0.6, 0.75),
               "share of the contrast lost", contrast),
    Corruption("brighter", "all grey values up", "ShiftIntensity", (0.05, 0.1, 0.15, 0.2, 0.3), "share of the window",
               brightness),
    Corruption("darker", "all grey values down", "ShiftIntensity", (-0.05, -0.1, -0.15, -0.2, -0.3),
               "share of the window", brightness),
)}  # fmt: skip
GROUPS = {
    "all": tuple(CORRUPTIONS),
    "any-modality": tuple(name for name, row in CORRUPTIONS.items() if not row.mr),
    "mr": tuple(name for name, row in CORRUPTIONS.items() if name != "gaussian-noise"),
}


def chosen(names: str | Sequence[str]) -> tuple[str, ...]:
    """Names of corruptions from names and groups (``"all"``, ``"any-modality"``, ``"mr"``).

    Raises:
        ValueError: an unknown name, or one that stands twice.

    Example:
        >>> chosen(["blur", "darker"]), len(chosen("all"))
        (('blur', 'darker'), 14)
    """
    found: list[str] = []
    for name in [names] if isinstance(names, str) else names:
        if name not in CORRUPTIONS and name not in GROUPS:
            raise unknown_name("corruption", name, [*CORRUPTIONS, *GROUPS])
        found += GROUPS.get(name, (name,))
    twice = sorted({name for name in found if found.count(name) > 1})
    if twice:
        raise ValueError(f"corruption {twice[0]!r} stands twice; leave one out.")
    return tuple(found)


def corrupted(
    x: Tensor,
    name: str,
    severity: int,
    intensity: Intensity,
    *,
    ids: Sequence[object],
    seed: int = 0,
    spacing: Sequence[float] | None = None,
) -> Tensor:
    """Images with a natural corruption.

    Args:
        x: images ``(N, C, *S)`` in the units of ``intensity``.
        name: a name of :data:`CORRUPTIONS`.
        severity: 1 to 5.
        intensity: of the images; what leaves its range is cut off, and values lie on its storage grid.
        ids: one id per case, for its draws.
        seed: of all draws.
        spacing: size of a voxel along each axis; None: all alike.

    Returns:
        Images like ``x``; their references stay right.

    Raises:
        ValueError: an unknown name, another severity, MR's accidents on images in HU, ids or a spacing of another
            number.

    Example:
        >>> import torch
        >>> x = torch.zeros(1, 1, 8, 8)
        >>> corrupted(x, "brighter", 2, Intensity(0, 1), ids=["a"])[0, 0, 0, :2]
        tensor([0.1000, 0.1000])
    """
    if name not in CORRUPTIONS:
        raise unknown_name("corruption", name, CORRUPTIONS)
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise ValueError(f"severity={severity!r} is none; choose a whole number from 1 to 5.")
    check_modality([name], intensity)
    if len(ids) != len(x):
        raise ValueError(f"{len(ids)} ids for {len(x)} images; give one per case.")
    steps = (1.0,) * (x.ndim - 2) if spacing is None else tuple(float(step) for step in spacing)
    if len(steps) != x.ndim - 2 or min(steps) <= 0:
        raise ValueError(f"spacing={spacing!r} must be {x.ndim - 2} sizes above 0, one per axis.")
    row = CORRUPTIONS[name]
    low, high = intensity.bounds(x)
    start, width = window_of(intensity, x)
    unit = (x - low) / width
    window = ((start - low) / width)[0], torch.ones_like(width)[0]
    cases = []
    for image, generator in zip(unit, CaseRandom(seed, [f"{name}/{case}" for case in ids]).generators):
        drawn = int(torch.randint(2**32, (1,), generator=generator))
        accident = Accident(generator, drawn, steps, window)
        cases.append(torch.as_tensor(row.apply(image, row.severities[severity - 1], accident)).as_subclass(Tensor))
    found = low + width * torch.stack([case.to(x.dtype) for case in cases])
    return torch.minimum(torch.maximum(intensity.snap(found), low), high)


def check_modality(names: Sequence[str], intensity: Intensity) -> None:
    """Refuses accidents of MR on images in Hounsfield units.

    Raises:
        ValueError: names the corruption.
    """
    wrong = [name for name in names if CORRUPTIONS[name].mr]
    if wrong and intensity.unit == "HU":
        raise ValueError(
            f"corruption {wrong[0]!r} happens in MR, and the images are in HU, so CT; choose some of "
            f"{', '.join(GROUPS['any-modality'])} (together 'any-modality')."
        )
