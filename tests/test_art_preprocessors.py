"""ART's preprocessing defences on medical images: right axes, right grey values, else refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from art.defences import preprocessor as defences
from art.defences.preprocessor.variance_minimization import TotalVarMin
from scipy.ndimage import median_filter

from medadv.adapters.art_preprocessors import PREPROCESSORS, REFUSED, art_preprocessor
from medadv.intensities import Intensity

CT = Intensity(-1024, 3071, unit="HU", window=(-175, 250))
SHAPES = {2: (2, 2, 24, 16), 3: (2, 1, 16, 12, 5)}


def images(dims: int, intensity: Intensity = Intensity(0, 1)) -> torch.Tensor:
    low, high = intensity.window or (intensity.lows[0], intensity.highs[0])
    smooth = median_filter(np.random.default_rng(0).random(SHAPES[dims]), size=3).astype(np.float32)
    return torch.from_numpy((low + (high - low) * smooth).astype(np.float32))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("intensity", [Intensity(0, 1), Intensity(-3, 2), CT])
@pytest.mark.parametrize("name", PREPROCESSORS)
def test_images_stay_close_to_themselves_in_their_own_units(name, intensity, dims):
    x = images(dims, intensity)
    z = art_preprocessor(name, intensity)(x)
    low, high = intensity.window or (intensity.lows[0], intensity.highs[0])
    assert z.shape == x.shape and z.dtype == x.dtype and not torch.equal(z, x)
    assert z.min() >= low - 1e-3 and z.max() <= high + 1e-3
    assert float((z - x).abs().mean()) < 0.1 * (high - low)
    assert abs(float((z - x).mean())) < 0.01 * (high - low)  # no darkening


@pytest.mark.parametrize("name", [name for name, row in PREPROCESSORS.items() if not row.random])
def test_volumes_are_their_slices_and_channels_do_not_mix(name):
    x = images(3)
    transform = art_preprocessor(name, Intensity(0, 1))
    slices = torch.stack([transform(x[..., d]) for d in range(x.shape[-1])], -1)
    assert torch.equal(transform(x), slices)
    channels = torch.cat([x[..., 0], x[..., 1].flip(-1), x[..., 2]], 1)
    assert torch.equal(transform(channels)[:, :1], transform(x[..., 0]))


def test_art_alone_would_filter_the_wrong_axes_of_a_volume():
    x = images(3).numpy()
    alone = defences.SpatialSmoothing(window_size=3, channels_first=True)(x)[0]
    in_plane = median_filter(x, size=(1, 1, 3, 3, 1))
    assert np.array_equal(alone, median_filter(x, size=(1, 1, 1, 3, 3)))
    ours = art_preprocessor("spatial-smoothing", Intensity(0, 1))(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(ours, in_plane, atol=1e-6)
    assert np.abs(alone - in_plane).max() > 0.1


def test_jpeg_does_not_darken_as_it_does_alone():
    x = np.full((1, 1, 16, 16), 128.9 / 255, dtype=np.float32)
    alone = defences.JpegCompression((0, 1), quality=95, channels_first=True)(x)[0]
    ours = art_preprocessor("jpeg", Intensity(0, 1), quality=95)(torch.from_numpy(x))
    assert alone.mean() * 255 == pytest.approx(128, abs=0.3) and float(ours.mean()) * 255 == pytest.approx(129, abs=0.3)


@pytest.mark.parametrize(("norm", "right"), [(1, True), (2, False), (3, False)])
def test_why_total_variation_has_one_norm(norm, right):
    rng = np.random.default_rng(0)
    x, z, nothing = rng.random((6, 5)), rng.random(30), np.zeros((6, 5), dtype=int)
    ends = [
        [TotalVarMin._loss_func(z + step * unit, x, nothing, norm, 1.0) for step in (1e-6, -1e-6)]
        for unit in np.eye(30)
    ]
    numeric = np.array([(a - b) / 2e-6 for a, b in ends])
    assert np.allclose(TotalVarMin._deri_loss_func(z, x, nothing, norm, 1.0), numeric, atol=1e-4) == right


def test_total_variation_takes_noise_off():
    clean = np.zeros((1, 1, 32, 32), dtype=np.float32)
    clean[..., 8:24, 8:24] = 0.7
    noisy = np.clip(clean + np.random.default_rng(0).normal(0, 0.05, clean.shape), 0, 1).astype(np.float32)
    found = art_preprocessor("total-variation", Intensity(0, 1))(torch.from_numpy(noisy)).numpy()
    assert np.square(found - clean).mean() < 0.6 * np.square(noisy - clean).mean()


def test_every_image_defence_of_art_is_in_the_table_or_refused():
    ours = {row.defence for row in PREPROCESSORS.values()} | set(REFUSED)
    assert {name for name in vars(defences) if name[0].isupper()} - ours <= {
        "Preprocessor", "PreprocessorPyTorch", "PreprocessorTensorFlowV2", "SpatialSmoothingTensorFlowV2",
        "CutMixTensorFlowV2", "CutoutTensorFlowV2", "MixupTensorFlowV2",
    }  # fmt: skip


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="ART's ThermometerEncoding turns each channel into many.*choose one of"):
        art_preprocessor("ThermometerEncoding", Intensity(0, 1))
    with pytest.raises(ValueError, match="preprocessor 'jpg' is unknown; did you mean 'jpeg'"):
        art_preprocessor("jpg", Intensity(0, 1))
    with pytest.raises(TypeError, match="option of jpeg 'qualty' is unknown; did you mean 'quality'"):
        art_preprocessor("jpeg", Intensity(0, 1), qualty=3)
    with pytest.raises(ValueError, match="[Qq]uality"):
        art_preprocessor("jpeg", Intensity(0, 1), quality=0)
