"""No check speaks up about honest convolutional networks, random or trained, of any seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from masked import KINDS, SIDES, wrapped
from torch import Tensor, nn

from medadv.diagnostics import diagnose

SETTINGS = [("class", 2), ("labels", 3), ("voxel-class", 3), ("voxel-labels", 2)]


class Convolutional(nn.Module):
    """Convolutions, batch norm, ReLU and pooling by the maximum, in float32: zero gradients, kinks and rounding."""

    def __init__(self, kind: str, dims: int) -> None:
        super().__init__()
        conv, pool, norm = (
            (nn.Conv2d, nn.MaxPool2d, nn.BatchNorm2d) if dims == 2 else (nn.Conv3d, nn.MaxPool3d, nn.BatchNorm3d)
        )
        self.voxels = kind.startswith("voxel")
        body = [conv(1, 8, 3, padding=1), norm(8), nn.ReLU(), pool(2), conv(8, 8, 3, padding=1), nn.ReLU()]
        last = conv(8, KINDS[kind].channels, 3, padding=1)
        self.body = nn.Sequential(*body, nn.Upsample(scale_factor=2), nn.Dropout(0.2), last)

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x)
        return z if self.voxels else z.flatten(2).amax(2)


def squares(kind: str, dims: int, cases: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of a box on noise, and what is to be said of them: its brightness, bands beside it, or where it is."""
    rng = np.random.default_rng(seed)
    side = SIDES[dims][0]
    x = rng.uniform(0.3, 0.5, (cases, 1, *SIDES[dims])).astype(np.float32)
    mask = np.zeros((cases, *SIDES[dims]), dtype=np.int64)
    grade, labels = rng.integers(0, 3, cases), rng.integers(0, 2, (cases, 3))
    for case in range(cases):
        corner = rng.integers(0, side // 2, dims)
        box = tuple(slice(c, c + side // 2) for c in corner)
        mask[(case, *box)] = 1
        if kind == "labels":
            for label in range(3):
                x[case, :, label * side // 3 : (label + 1) * side // 3] += 0.2 * labels[case, label]
        else:
            x[(case, 0, *box)] += 0.15 * grade[case] if kind == "class" else 0.25
    return x, grade if kind == "class" else labels if kind == "labels" else mask


def network(kind: str, dims: int, seed: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Convolutional(kind, dims)
    return wrapped(net, kind, dims, optimizer=torch.optim.Adam(net.parameters(), 5e-3))


@pytest.mark.parametrize(("kind", "dims"), SETTINGS)
@settings(max_examples=3, deadline=None, derandomize=True)
@given(seed=st.integers(0, 9999))
def test_random_networks(kind, dims, seed):
    x, _ = squares(kind, dims, 6, seed)
    findings = diagnose(network(kind, dims, seed), x, eps="8/255", level="basic", seed=seed)
    assert [finding for finding in findings if finding.flag] == []


@pytest.mark.parametrize(("kind", "dims", "seed"), [(*setting, seed) for seed, setting in enumerate(SETTINGS)])
def test_trained_networks(kind, dims, seed):
    estimator = network(kind, dims, seed)
    estimator.fit(*squares(kind, dims, 32, 1000 + seed), batch_size=8, nb_epochs=8, seed=seed)
    x, y = squares(kind, dims, 8, seed)
    findings = diagnose(estimator, x, y, eps="8/255", seed=seed)
    assert [finding for finding in findings if finding.flag] == []
