"""ART's preprocessing defences, where they are right for medical images in 2D and 3D; others are refused.

ART reads five axes as video, with the first spatial axis as time, and some of its defences expect channels last or grey
values in [0, 1]. Here they run on the intensity window as [0, 1], and those for pictures on the planes of the first
two spatial axes, channel by channel and slice by slice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from art.defences import preprocessor as defences
from torch import Tensor

from medadv.intensities import Intensity
from medadv.names import check_options, unknown_name
from medadv.threats.intensity_fields import window_of

Run = Callable[..., np.ndarray]


@dataclass(frozen=True)
class ArtPreprocessor:
    """A row of the table.

    Attributes:
        name: how it is called here.
        defence: ART's class.
        summary: what it does.
        reference: paper id.
        options: what it accepts, with defaults; grey values in shares of the window.
        run: ``(values, **options) -> values`` on float32 in [0, 1]: planes ``(M, 1, H, W)``, or images of any rank.
        planes: True if it works on planes, in 3D slice by slice along the last axis.
        random: True if it draws; an attacker then needs expectation over its draws.
    """

    name: str
    defence: str
    summary: str
    reference: str
    options: Mapping[str, Any]
    run: Run
    planes: bool = False
    random: bool = False

    @property
    def in_3d(self) -> str:
        """How it treats volumes."""
        return "slice by slice" if self.planes else "voxel by voxel"


def _squeezed(u: np.ndarray, bit_depth: int) -> np.ndarray:
    return defences.FeatureSqueezing(clip_values=(0.0, 1.0), bit_depth=bit_depth)(u)[0]


def _noised(u: np.ndarray, sigma: float) -> np.ndarray:
    noise = defences.GaussianAugmentation(
        sigma=sigma, augmentation=False, clip_values=(0.0, 1.0), apply_fit=False, apply_predict=True
    )
    return noise(u)[0]


def _compressed(u: np.ndarray, quality: int) -> np.ndarray:
    # given shares of 1, ART cuts decimals off, which darkens an image by half a grey value
    jpeg = defences.JpegCompression(clip_values=(0, 255), quality=quality, channels_first=True)
    return jpeg(np.rint(u * 255))[0] / 255


def _median(u: np.ndarray, window_size: int) -> np.ndarray:
    return defences.SpatialSmoothing(window_size=window_size, channels_first=True, clip_values=(0.0, 1.0))(u)[0]


def _less_varied(u: np.ndarray, prob: float, lamb: float, max_iter: int) -> np.ndarray:
    # of other norms ART's gradient is not that of its function (twice it for 2), so its search stops or runs away
    smaller = defences.TotalVarMin(prob=prob, norm=1, lamb=lamb, max_iter=max_iter, clip_values=(0.0, 1.0))
    return smaller(u.transpose(0, 2, 3, 1))[0].transpose(0, 3, 1, 2)


PREPROCESSORS = {row.name: row for row in (
    ArtPreprocessor("feature-squeezing", "FeatureSqueezing", "fewer grey values", "1704.01155", {"bit_depth": 5},
                    _squeezed),
    ArtPreprocessor("spatial-smoothing", "SpatialSmoothing", "median of a square of pixels", "1704.01155",
                    {"window_size": 3}, _median, planes=True),
    ArtPreprocessor("jpeg", "JpegCompression", "JPEG and back, each channel as grey values", "1608.00853",
                    {"quality": 50}, _compressed, planes=True),
    ArtPreprocessor("total-variation", "TotalVarMin", "random pixels kept, the total variation made small",
                    "1711.00117", {"prob": 0.3, "lamb": 0.5, "max_iter": 10}, _less_varied, planes=True, random=True),
    ArtPreprocessor("gaussian-noise", "GaussianAugmentation", "Gaussian noise added", "1707.06728", {"sigma": 0.05},
                    _noised, random=True),
)}  # fmt: skip

_AT_TRAINING = "changes images or labels while a network is trained, so it is no defence of a trained one"
_NO_IMAGE = "is for {}, not for images"
REFUSED = {
    "SpatialSmoothingPyTorch": "needs kornia; 'spatial-smoothing' is the same filter",
    "ThermometerEncoding": "turns each channel into many, so a network must have been trained behind it",
    "PixelDefend": "needs a PixelCNN trained on two-dimensional pictures",
    "Cutout": _AT_TRAINING, "CutoutPyTorch": _AT_TRAINING, "CutMix": _AT_TRAINING, "CutMixPyTorch": _AT_TRAINING,
    "Mixup": _AT_TRAINING, "MixupPyTorch": _AT_TRAINING, "LabelSmoothing": _AT_TRAINING,
    "Resample": _NO_IMAGE.format("sound"), "Mp3Compression": _NO_IMAGE.format("sound"),
    "Mp3CompressionPyTorch": _NO_IMAGE.format("sound"), "VideoCompression": _NO_IMAGE.format("video"),
    "VideoCompressionPyTorch": _NO_IMAGE.format("video"),
}  # fmt: skip


def preprocessor_of(name: str) -> ArtPreprocessor:
    """The row of a preprocessor.

    Raises:
        ValueError: an unknown name, or one of ART's that is not right for medical images, with the reason.
    """
    if name in REFUSED:
        raise ValueError(f"ART's {name} {REFUSED[name]}; choose one of {', '.join(PREPROCESSORS)}.")
    if name not in PREPROCESSORS:
        raise unknown_name("preprocessor", name, PREPROCESSORS)
    return PREPROCESSORS[name]


def art_preprocessor(name: str, intensity: Intensity, **options: Any) -> Callable[[Tensor], Tensor]:
    """One of ART's preprocessing defences as a transform of images ``(N, C, H, W)`` or ``(N, C, H, W, D)``.

    Values are cut off at the intensity window (where there is none, at the range), in which the defence works. It has
    no gradient: put it before a model with :func:`medadv.adaptive.bpda`, random ones inside
    :func:`medadv.adaptive.eot`.

    Args:
        name: a name of :data:`PREPROCESSORS`.
        intensity: of the images.
        **options: of the defence.

    Raises:
        ValueError: an unknown name, or one of ART's that is not right for medical images, with the reason; a value that
            ART refuses.
        TypeError: an option that the defence does not have.

    Example:
        >>> import torch
        >>> squeeze = art_preprocessor("feature-squeezing", Intensity(0, 1), bit_depth=1)
        >>> squeeze(torch.tensor([[[[0.2, 0.7]]]]))
        tensor([[[[0., 1.]]]])
    """
    row = preprocessor_of(name)
    check_options(name, options, row.options)
    settings = {**row.options, **options}
    row.run(np.zeros((1, 1, 8, 8), dtype=np.float32), **settings)  # ART says what is wrong now and not in the end

    def preprocessed(x: Tensor) -> Tensor:
        start, width = window_of(intensity, x)
        u = ((x - start) / width).clamp(0, 1).to(torch.float32)
        values = row.run(_planes_of(u) if row.planes else u.cpu().numpy(), **settings)
        found = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(x.device, x.dtype)
        return start + width * (_from_planes(found, x) if row.planes else found)

    return preprocessed


def _planes_of(u: Tensor) -> np.ndarray:
    """``(N, C, H, W)`` or ``(N, C, H, W, D)`` -> planes ``(M, 1, H, W)``."""
    slices = u.movedim(-1, 2) if u.ndim == 5 else u
    return np.ascontiguousarray(slices.reshape(-1, 1, *u.shape[2:4]).cpu().numpy())


def _from_planes(planes: Tensor, like: Tensor) -> Tensor:
    """The way back."""
    if like.ndim == 4:
        return planes.reshape(like.shape)
    n, c, h, w, d = like.shape
    return planes.reshape(n, c, d, h, w).movedim(2, -1)
