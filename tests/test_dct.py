"""The DCT against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import fft

from medadv.dct import dct, idct


@pytest.mark.parametrize("shape", [(2, 1, 7, 8), (2, 1, 4, 5, 6), (1, 2, 32, 32, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dct_equals_scipy_and_inverts(shape, dtype):
    x = 255 * torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    axes = range(2, len(shape))
    coefficients = dct(x, axes)
    expected = fft.dctn(x.double().numpy(), axes=list(axes), norm="ortho")
    tolerance = 1e-9 if dtype == torch.float64 else 2e-2 * 255 / 100
    assert np.abs(coefficients.numpy() - expected).max() < tolerance
    assert (idct(dct(x / 255, axes), axes) - x / 255).abs().max() < 1e-5


def test_a_transform_first_made_in_inference_mode_can_be_differentiated_later():
    with torch.inference_mode():
        dct(torch.rand(1, 1, 13, 17), (2, 3))
    x = torch.rand(1, 1, 13, 17, requires_grad=True)
    dct(x, (2, 3)).square().sum().backward()
    assert torch.allclose(x.grad, 2 * x.detach(), atol=1e-5)
