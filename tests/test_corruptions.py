"""Natural corruptions: worse with severity, drawn per case, in range, and anatomy stays in place."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medadv.benchmarks.corruptions import CORRUPTIONS, GROUPS, SEVERITIES, chosen, corrupted
from medadv.intensities import Intensity

CT = Intensity(-1024, 3071, unit="HU", window=(-175, 250), grid=(1, 0))
SHAPES = {2: (48, 40), 3: (32, 28, 12)}
PLAIN = Intensity(0, 1)


def phantom(dims: int, intensity: Intensity = PLAIN, cases: int = 2) -> torch.Tensor:
    """Smooth bodies with a darker and a brighter organ, off the middle, none like another."""
    shape = SHAPES[dims]
    axes = np.meshgrid(*[np.linspace(-1, 1, size) for size in shape], indexing="ij")
    images = []
    for case in range(cases):
        image = np.zeros(shape)
        for place, size, level in ((0.1, 0.5, 0.6), (-0.25, 0.18, -0.3), (0.35, 0.15, 0.35)):
            distance = sum(((a - place - 0.03 * case) / size) ** 2 for a in axes)
            image += level / (1 + np.exp(6 * (distance - 1).clip(max=50)))
        images.append(image.clip(0, 1))
    low, high = intensity.window or (intensity.lows[0], intensity.highs[0])
    x = torch.from_numpy((low + (high - low) * np.stack(images)[:, None]).astype(np.float32))
    return intensity.snap(x)


def run(x, name, severity, intensity=PLAIN, **changes):
    return corrupted(x, name, severity, intensity, **{"ids": ["a", "b"], **changes})


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severity_is_distance(name, dims):
    x = phantom(dims)
    distances = [(run(x, name, severity) - x).square().flatten(1).mean(1).sqrt() for severity in SEVERITIES]
    for mild, severe in zip([torch.zeros(2), *distances], distances):
        assert (severe > mild).all(), distances
    assert (distances[-1] > 0.008).all() and (distances[0] < 0.15).all()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ["motion", "ghosting", "spike", "gibbs", "blur", "low-resolution"])
def test_anatomy_stays_where_it_is(name, dims):
    x = phantom(dims)
    z = run(x, name, 5)
    for before, after in zip(x, z):
        spectra = [torch.fft.fftn(image[0] - image.mean()) for image in (before, after)]
        correlation = torch.fft.ifftn(spectra[0].conj() * spectra[1]).real
        assert int(correlation.argmax()) == 0  # no shift fits better than none
    if name != "spike":  # stripes weigh on both sides of the body
        assert float((centroid(z) - centroid(x)).abs().max()) < 0.5


def centroid(x):
    """Centre of mass of each image, in voxels, ``(dims, N)``."""
    mass = x[:, 0].double()
    places = torch.meshgrid(*[torch.arange(size) for size in mass.shape[1:]], indexing="ij")
    return torch.stack([(mass * place).flatten(1).sum(1) / mass.flatten(1).sum(1) for place in places])


@pytest.mark.parametrize("intensity", [PLAIN, Intensity(-3.0, 2.5), CT])
@pytest.mark.parametrize("dims", [2, 3])
def test_images_stay_in_range_and_on_the_grid_of_their_file(intensity, dims):
    x = phantom(dims, intensity)
    for name in GROUPS["any-modality" if intensity.unit else "all"]:
        for severity in (1, 5):
            z = run(x, name, severity, intensity)
            intensity.check(z)
            assert z.dtype == x.dtype and not torch.equal(z, x)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_case_draws_from_its_seed_and_id_alone(name):
    x = phantom(2)
    whole = run(x, name, 3)
    assert torch.equal(corrupted(x[1:], name, 3, PLAIN, ids=["b"]), whole[1:])
    assert torch.equal(run(x, name, 3), whole)
    same = x[:1].expand(2, -1, -1, -1).contiguous()
    drawn = name in ("motion", "ghosting", "spike", "bias-field", "rician", "gaussian-noise")
    two = run(same, name, 3)
    assert torch.equal(two[0], two[1]) != drawn
    assert torch.equal(run(x, name, 3, seed=1), whole) != (drawn)


def test_global_generators_are_left_alone():
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    for name in CORRUPTIONS:
        run(phantom(2), name, 1)
    assert torch.equal(torch.get_rng_state(), before[0]) and (np.random.get_state()[1] == before[1]).all()


def test_blur_and_resolution_are_the_same_in_mm_along_all_axes():
    thin = torch.zeros(1, 1, 33, 33, 11)
    thin[..., 16, 16, 5] = 1
    z = corrupted(thin, "blur", 3, PLAIN, ids=["a"], spacing=(1.0, 1.0, 3.0))[0, 0]
    in_plane = z[:, 16, 5] / z[16, 16, 5]
    across = z[16, 16, :] / z[16, 16, 5]
    assert float(across[6]) == pytest.approx(float(in_plane[19]), abs=0.03)  # 3 mm away in both directions
    slices = torch.rand(1, 1, 16, 16, 6)
    coarse = corrupted(slices, "low-resolution", 5, PLAIN, ids=["a"], spacing=(1.0, 1.0, 5.0))
    means = slices.mean((2, 3))
    torch.testing.assert_close(coarse.mean((2, 3)), means, atol=0.05, rtol=0)  # thick slices were not mixed


def test_rician_noise_brightens_a_dark_ground_and_gaussian_does_not_until_cut_off():
    x = torch.zeros(1, 1, 64, 64)
    sigma = CORRUPTIONS["rician"].severities[4]
    z = corrupted(x, "rician", 5, PLAIN, ids=["a"])
    assert float(z.mean()) == pytest.approx(sigma * np.sqrt(np.pi / 2), rel=0.03)
    grey = corrupted(x + 0.5, "gaussian-noise", 5, PLAIN, ids=["a"])
    assert float(grey.mean()) == pytest.approx(0.5, abs=0.01) and float(grey.std()) == pytest.approx(sigma, rel=0.05)


def test_gamma_is_of_the_window_and_leaves_what_is_outside():
    x = torch.tensor([-1024.0, -175.0, 37.0, 250.0, 2000.0]).view(1, 1, 1, 5)
    z = corrupted(x, "gamma-darker", 4, CT, ids=["a"])[0, 0, 0]
    assert z[[0, 1, 3, 4]].tolist() == [-1024, -175, 250, 2000]
    assert float(z[2]) == pytest.approx(-175 + 425 * (212 / 425) ** 2, abs=0.6)


def test_bad_input_is_refused():
    x = phantom(2)
    for do, words in (
        (lambda: run(x, "blurr", 1), "corruption 'blurr' is unknown; did you mean 'blur'"),
        (lambda: run(x, "blur", 6), "severity=6 is none"), (lambda: run(x, "blur", True), "severity=True"),
        (lambda: run(x, "blur", 1, ids=["a"]), "1 ids for 2 images"),
        (lambda: run(x, "blur", 1, spacing=(1.0,)), "must be 2 sizes above 0"),
        (lambda: run(phantom(2, CT), "motion", 1, CT), "happens in MR, and the images are in HU"),
        (lambda: chosen(["all", "blur"]), "'blur' stands twice"), (lambda: chosen("mri"), "'mri' is unknown"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            do()
