"""Faster forms of a network for the search: the same function, or refused; what judges is never touched."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from monai.networks.nets import DenseNet121, SegResNet, UNet
from test_leaderboard import segmentation, tiny_suite
from torch import nn

from medadv.adapters import MonaiClassifier, MonaiSegmenter, calibrate
from medadv.adapters.acceleration import ACCELERATIONS, NONE, SearchNetwork, folded
from medadv.adapters.deployed import deployed_in
from medadv.attacks import create
from medadv.benchmarks import data as datasets
from medadv.benchmarks import run_suite
from medadv.benchmarks.evaluate import Evaluator
from medadv.benchmarks.suites import Suite
from medadv.decisions import Multiclass


def trained_statistics(network: nn.Module) -> nn.Module:
    """Batch norms that do something."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.running_mean, module.weight, module.bias):
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator))
            module.running_var.data.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
    return network.eval()


def unet(dims: int) -> nn.Module:
    torch.manual_seed(0)
    return trained_statistics(UNet(dims, 1, 2, (4, 8, 8), (2, 2), norm="batch", num_res_units=1))


def densenet(dims: int) -> nn.Module:
    torch.manual_seed(0)
    return trained_statistics(DenseNet121(dims, 1, 2, init_features=8, growth_rate=4, block_config=(2, 2)))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("build", [unet, densenet])
def test_folded_is_the_same_function_to_the_last_digits_of_float64(build, dims):
    network = build(dims).double()
    x = torch.rand(2, 1, *[16] * dims, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    twin = folded(network, x[:1])
    norms = [sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in n.modules()) for n in (network, twin)]
    assert norms[1] < norms[0], "some were folded"
    with torch.no_grad():
        found, expected = twin(x), network(x)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-12


@pytest.mark.parametrize("name", [name for name in ACCELERATIONS if name != "none"])
@pytest.mark.parametrize("dims", [2, 3])
def test_gradients_agree_and_the_network_is_left_alone(name, dims):
    network = unet(dims)
    before = copy.deepcopy(network.state_dict())
    decision = Multiclass(2, background=0)
    x = torch.rand(2, 1, *[16] * dims, generator=torch.Generator().manual_seed(3))
    y = (x[:, 0] > 0.5).long()
    grads = []
    for how in (None, name):
        estimator = MonaiSegmenter(network, tuple(x.shape[1:]), decision=decision)
        estimator.acceleration = how
        grads.append(gradient(estimator, x, y).double().flatten(1))
    theirs, mine = grads
    cosine = torch.nn.functional.cosine_similarity(mine, theirs, dim=1)
    assert cosine.min() > (0.98 if "bfloat16" in name else 1 - 1e-6)
    after = network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(p.is_contiguous() for p in network.parameters()) and not any(m._forward_hooks for m in network.modules())


def gradient(estimator, x, y):
    victim = estimator.victim()
    target, valid = estimator.referred(x, y)
    with victim.attacked():
        return victim.differentiate(x, lambda z: estimator.loss_objective(z, target, valid=valid))[2]


def test_weights_that_change_leave_no_stale_copy():
    network = unet(2)
    fast = SearchNetwork(network, ACCELERATIONS["folded"])
    x = torch.rand(1, 1, 16, 16)
    first = fast(x)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.1)
    second = fast(x)
    assert not torch.allclose(first, second) and torch.allclose(second, network(x), atol=1e-5)
    kept = fast._copy
    fast(x)
    assert fast._copy is kept, "made once for the same weights"


class Elsewhere(nn.Module):
    """The convolution's output is used beside its batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2)

    def forward(self, x):
        z = self.conv(x)
        return z + self.norm(z)


@pytest.mark.parametrize(("network", "words"), [
    (trained_statistics(Elsewhere()), "is used elsewhere too"),
    (nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2)).train(), "training mode"),
    (nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 2, 3, padding=1)).eval(), "nothing to fold"),
])  # fmt: skip
def test_what_can_not_be_folded_is_refused(network, words):
    with pytest.raises(ValueError, match=words):
        SearchNetwork(network, ACCELERATIONS["folded"])(torch.rand(1, 1, 8, 8))


def test_names_that_do_not_exist_and_half_precision_of_other_types_are_refused():
    estimator = MonaiSegmenter(unet(2), (1, 16, 16), decision=Multiclass(2, background=0))
    with pytest.raises(ValueError, match="acceleration 'fold' is unknown.*folded"):
        estimator.acceleration = "fold"
    estimator.network.double()
    with pytest.raises(ValueError, match=r"parameters in torch.float64"):
        estimator.acceleration = "bfloat16"


@pytest.mark.parametrize("dims", [2, 3])
def test_the_image_that_is_kept_is_the_worst_by_the_network_itself(dims):
    x = np.random.default_rng(0).random((2, 1, *[16] * dims), dtype=np.float32)
    y = (x[:, 0] > 0.5).astype(int)
    estimator = MonaiSegmenter(unet(dims), x.shape[1:], decision=Multiclass(2, background=0))
    exact = create("pgd-dice", estimator, eps=0.05, max_iter=4)
    expected = estimator.decision.score(torch.from_numpy(estimator.predict(exact.generate(x, y))),
                                        *estimator.decision.canonical(y, y.shape[1:]))  # fmt: skip
    estimator.acceleration = "folded+channels-last"
    fast = create("pgd-dice", estimator, eps=0.05, max_iter=4)
    found = estimator.decision.score(torch.from_numpy(estimator.predict(fast.generate(x, y))),
                                     *estimator.decision.canonical(y, y.shape[1:]))  # fmt: skip
    assert (found - expected).abs().max() < 0.01
    assert deployed_in(estimator.model).search is None


class Coarse(nn.Module):
    """Its gradient is lost in half precision: small differences of large numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(1, 2, 1)

    def forward(self, x):
        large = self.last(x) * 4096
        return torch.sin(large) if large.dtype == torch.float32 else torch.sin(large.float())


def test_calibration_chooses_the_fastest_that_agrees_and_leaves_the_estimator_as_it_was():
    torch.manual_seed(0)
    x = torch.rand(3, 1, 16, 16)
    estimator = MonaiSegmenter(Coarse().eval(), (1, 16, 16), decision=Multiclass(2, background=0))
    found = calibrate(estimator, x, (x[:, 0] > 0.5).long(), candidates=["bfloat16", "folded", "channels-last"])
    table = found.table.set_index("acceleration")
    assert table.refused["bfloat16"].startswith("its gradients differ (cosine")
    assert "nothing to fold" in table.refused["folded"]
    assert table.refused["none"] == table.refused["channels-last"] == ""
    assert table.cosine["none"] == pytest.approx(1) and table.speed_up["none"] == 1
    assert found.chosen in (NONE, ACCELERATIONS["channels-last"]) and estimator.acceleration == NONE
    with pytest.raises(ValueError, match="rounds=0 measure nothing"):
        calibrate(estimator, x, x[:, 0] > 0.5, rounds=0)


def test_sliding_windows_are_accelerated_too():
    from monai.inferers import SlidingWindowInferer

    x = torch.rand(1, 1, 24, 24)
    y = (x[:, 0] > 0.5).long()
    grads = []
    for how in (None, "folded+channels-last"):
        estimator = MonaiSegmenter(unet(2), (1, 24, 24), decision=Multiclass(2, background=0),
                                   inferer=SlidingWindowInferer((16, 16), overlap=0.5))  # fmt: skip
        estimator.acceleration = how
        grads.append(gradient(estimator, x, y))
    assert torch.allclose(*grads, atol=1e-6 * float(grads[0].abs().max()) + 1e-9, rtol=1e-3)


def test_half_precision_and_layout_of_a_network_without_batch_norm():
    torch.manual_seed(0)
    network = SegResNet(3, 8, 1, 2, blocks_down=(1, 1), blocks_up=(1,)).eval()
    estimator = MonaiSegmenter(network, (1, 8, 8, 8), decision=Multiclass(2, background=0))
    x = torch.rand(1, 1, 8, 8, 8)
    table = calibrate(estimator, x, (x[:, 0] > 0.5).long(), rounds=1).table.set_index("acceleration")
    assert (table.refused[[name for name in table.index if "folded" in name]] != "").all()
    assert (table.cosine[["bfloat16", "channels-last"]] > 0.98).all()


def test_classifiers_have_it_as_well():
    estimator = MonaiClassifier(densenet(2), (1, 16, 16), decision=Multiclass(2))
    estimator.acceleration = "folded"
    x = np.random.default_rng(0).random((2, 1, 16, 16), dtype=np.float32)
    assert create("fgsm", estimator, eps=0.1).generate(x, np.array([0, 1])).shape == x.shape


@pytest.mark.parametrize("wanted", ["auto", "folded+channels-last"])
def test_a_suite_searches_in_a_form_that_belongs_to_its_cells(wanted, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "load", lambda name, **options: segmentation(2))
    task = tiny_suite(trainings={"natural": {"epochs": 1}}).tasks[0].model_dump()
    task["models"][0]["args"]["norm"] = "batch"
    suite = Suite.model_validate({**tiny_suite().model_dump(), "tasks": [task], "acceleration": wanted})
    board = run_suite(suite, out=tmp_path)
    assert board.failures.empty
    told = board.meta.get("acceleration", {})
    if wanted == "auto":
        (rows,) = told.values()
        assert {row["acceleration"] for row in rows} == set(ACCELERATIONS) and sum(row["chosen"] for row in rows) == 1
    else:
        assert not told
    crafted = []
    monkeypatch.setattr(Evaluator, "craft", lambda *given: crafted.append(given))
    again = run_suite(suite, out=tmp_path)
    assert not crafted and again.meta.get("acceleration", {}) == told, "the choice is kept, not timed again"


def test_an_acceleration_that_does_not_exist_is_refused_by_the_suite():
    with pytest.raises(ValueError, match="acceleration 'fast' is unknown"):
        Suite.model_validate({**tiny_suite().model_dump(), "acceleration": "fast"})
