"""Sliding windows: the logits of MONAI's inferer, and its gradient window by window."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.inferers import PatchInferer, SimpleInferer, SliceInferer, SlidingWindowInferer, SlidingWindowSplitter
from monai.networks.nets import UNet
from torch import nn

from medadv import Intensity, Multiclass
from medadv.adapters import MonaiSegmenter
from medadv.adapters.deployed import DeployedModel
from medadv.adapters.window_geometry import Windows
from medadv.adapters.windows import WindowedVictim, sliding_inferer_of
from medadv.attacks import create
from medadv.objectives import SoftDice
from medadv.victims import ModuleVictim

DECISION, UNIT = Multiclass(3, background=0), Intensity(0, 1)
ALL_KEPT = 10**12

# inferer, image
CASES = {
    "half": ({"roi_size": (8, 8, 8), "overlap": 0.5}, (12, 12, 12)),
    "gaussian": ({"roi_size": (8, 8, 8), "overlap": 0.5, "mode": "gaussian", "sw_batch_size": 3}, (13, 12, 9)),
    "none": ({"roi_size": (4, 4, 4), "overlap": 0.0, "sw_batch_size": 4}, (8, 8, 8)),
    "quarter": ({"roi_size": (8, 8, 4), "overlap": 0.25, "mode": "gaussian", "sw_batch_size": 4}, (12, 12, 9)),
    "dense": ({"roi_size": (8, 8, 8), "overlap": 0.9, "sw_batch_size": 8}, (10, 9, 8)),
    "each axis its own": ({"roi_size": (8, 4, 4), "overlap": (0.5, 0.25, 0.0), "mode": "gaussian"}, (12, 8, 9)),
    "one window": ({"roi_size": (8, 8, 8)}, (8, 8, 8)),
    "whole axes": ({"roi_size": (8, -1, None), "overlap": 0.5}, (12, 8, 4)),
    "padded": ({"roi_size": (8, 8, 8), "overlap": 0.5, "cval": 0.4}, (5, 12, 6)),
    "padded, gaussian": ({"roi_size": (8, 8, 8), "mode": "gaussian", "sigma_scale": 0.3}, (5, 6, 7)),
    "replicated": ({"roi_size": (8, 8, 8), "padding_mode": "replicate"}, (5, 9, 6)),
    "reflected": ({"roi_size": (8, 8, 8), "padding_mode": "reflect", "sw_batch_size": 2}, (6, 7, 12)),
    "weights beforehand": ({"roi_size": (8, 8, 8), "mode": "gaussian", "cache_roi_weight_map": True}, (12, 12, 9)),
    "buffered": ({"roi_size": (8, 8, 8), "overlap": 0.5, "buffer_steps": 1}, (12, 12, 12)),
    "2D": ({"roi_size": (8, 8), "overlap": 0.5, "mode": "gaussian", "sw_batch_size": 3}, (13, 20)),
    "2D, padded": ({"roi_size": (8, 16), "padding_mode": "reflect"}, (6, 20)),
}  # fmt: skip


class Awkward(nn.Module):
    """Neither linear nor symmetric, with context across the window and a bound on its values."""

    def __init__(self, dims, channels=3, last=None):
        super().__init__()
        layer = getattr(nn, f"Conv{dims}d")
        norm = getattr(nn, f"InstanceNorm{dims}d")
        parts = [layer(1, 4, 3, padding=1), norm(4, affine=True), nn.SiLU(), layer(4, channels, 3, padding=1)]
        self.layers = nn.Sequential(*parts, *([] if last is None else [last]))

    def forward(self, x):
        return self.layers(x)


def victims(inferer, dims, network=None, memory=0, **options):
    """The windowed victim and the one that MONAI's own autograd serves."""
    torch.manual_seed(0)
    network = Awkward(dims) if network is None else network
    model = DeployedModel(network.double(), channels=3, segments=True, inferer=inferer, **options).eval()
    given = {"module": model, "decision": DECISION, "intensity": UNIT, "segments": True}
    return WindowedVictim(**given, memory=memory), ModuleVictim(**given)


def picture(shape, cases=2, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.random((cases, 1, *shape)), rng.integers(0, 3, (cases, *shape))
    return torch.from_numpy(x), torch.from_numpy(y)


def loss_on(y):
    return lambda z: SoftDice(DECISION)(z, y, valid=torch.ones_like(y, dtype=torch.bool))


def check_equal(ours, theirs, x, y):
    """The same logits, losses and gradients."""
    found, expected = (victim.differentiate(x, loss_on(y)) for victim in (ours, theirs))
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert float((one - other).norm() / other.norm()) <= 1e-12
    assert float(expected[2].norm()) > 0


@pytest.mark.parametrize("memory", [0, 200_000, ALL_KEPT])
@pytest.mark.parametrize("name", CASES)
def test_logits_and_gradient_are_those_of_autograd_through_monai(name, memory):
    options, shape = CASES[name]
    ours, theirs = victims(SlidingWindowInferer(**options), len(shape), memory=memory)
    check_equal(ours, theirs, *picture(shape))


@pytest.mark.parametrize("memory", [0, ALL_KEPT])
@pytest.mark.parametrize("last", [nn.Softmax(1), nn.ReLU(), nn.ReLU(inplace=True)])
def test_any_last_layer(last, memory):
    inferer = SlidingWindowInferer((8, 8), overlap=0.5, mode="gaussian", sw_batch_size=2)
    check_equal(*victims(inferer, 2, Awkward(2, last=last), memory), *picture((12, 13)))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("memory", [0, ALL_KEPT])
def test_slices_of_a_volume(axis, memory):
    inferer = SliceInferer(roi_size=(8, 6), spatial_dim=axis, sw_batch_size=4, overlap=0.5, mode="gaussian")
    check_equal(*victims(inferer, 2, memory=memory), *picture((8, 9, 10)))


def test_batch_norm_in_inference_mode_and_a_network_with_levels():
    torch.manual_seed(1)
    network = UNet(3, 1, 3, (4, 8), (2,), num_res_units=1, norm="batch")
    network(torch.rand(4, 1, 8, 8, 8))
    inferer = SlidingWindowInferer((8, 8, 8), overlap=0.25, mode="gaussian", sw_batch_size=2)
    check_equal(*victims(inferer, 3, network), *picture((12, 8, 10)))


def test_of_several_outputs_the_logits_are_taken():
    class Several(Awkward):
        def forward(self, x):
            z = super().forward(x)
            return {"coarse": nn.functional.avg_pool2d(z, 2), "fine": z}

    check_equal(*victims(SlidingWindowInferer((8, 8), overlap=0.5), 2, Several(2)), *picture((12, 12)))


def test_an_input_transform_is_differentiated_too():
    def standardised(x):
        axes = tuple(range(1, x.ndim))
        return (x - x.mean(axes, keepdim=True)) / x.std(axes, keepdim=True)

    inferer = SlidingWindowInferer((8, 8), overlap=0.5, mode="gaussian")
    check_equal(*victims(inferer, 2, input_transform=standardised), *picture((12, 9)))


def test_passes_are_counted_and_windows_that_fit_run_once():
    x, y = picture((12, 12, 12))
    inferer = SlidingWindowInferer((8, 8, 8), overlap=0.5, sw_batch_size=2)
    groups = len(Windows(inferer, x).groups)
    for memory, passes, runs in ((0, 2, 2 * groups), (ALL_KEPT, 1, groups), (500_000, 2, None)):
        ours, _ = victims(inferer, 3, memory=memory)
        seen = []
        ours.module.network.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        ours.differentiate(x, loss_on(y))
        assert (ours.passes.forward, ours.passes.backward) == (passes, 1)
        assert len(seen) == runs if runs else groups < len(seen) < 2 * groups
        assert ours.module.blend is None


def test_weights_get_no_gradient_and_queries_go_through_monai():
    ours, theirs = victims(SlidingWindowInferer((8, 8), overlap=0.5), 2)
    x, y = picture((12, 12))
    ours.differentiate(x, loss_on(y))
    assert all(p.grad is None for p in ours.module.parameters())
    assert torch.equal(ours.logits(x), theirs.logits(x))


def test_dropout_left_on_keeps_one_mask_per_window():
    class Dropping(Awkward):
        def __init__(self):
            super().__init__(2, last=nn.Dropout(0.5))

        def train(self, mode=True):
            super().train(mode)
            self.layers[-1].train()
            return self

    ours, theirs = victims(SlidingWindowInferer((8, 8), overlap=0.5), 2, Dropping())
    x, y = picture((12, 12))
    found = []
    for victim in (ours, theirs):
        torch.manual_seed(3)
        found.append(victim.differentiate(x, loss_on(y))[2])
    assert torch.equal(*found) and ours.passes.forward == 1


def test_a_model_that_answers_differently_each_time_is_refused_if_windows_run_twice():
    class Noisy(Awkward):
        def forward(self, x):
            return super().forward(x) + torch.randn_like(x)

    x, y = picture((12, 12))
    inferer = SlidingWindowInferer((8, 8), overlap=0.5)
    with pytest.raises(ValueError, match="differently each time.*window_memory="):
        victims(inferer, 2, Noisy(2))[0].differentiate(x, loss_on(y))
    ours, theirs = victims(inferer, 2, Noisy(2), memory=ALL_KEPT)
    found = []
    for victim in (ours, theirs):
        torch.manual_seed(3)
        found.append(victim.differentiate(x, loss_on(y))[2])
    assert torch.allclose(*found, rtol=1e-12)


def test_batch_norm_in_training_mode_is_refused():
    ours, _ = victims(SlidingWindowInferer((8, 8)), 2, nn.Sequential(nn.BatchNorm2d(1), Awkward(2)))
    ours.module.network[0].train()
    x, y = picture((12, 12))
    with pytest.raises(ValueError, match=r"batch norm 'network\.0' is in training mode"):
        ours.differentiate(x, loss_on(y))


def test_a_network_cut_off_from_the_image_has_no_direction():
    class Cut(Awkward):
        def forward(self, x):
            return super().forward(x.detach())

    network = Cut(2).requires_grad_(False)
    ours, _ = victims(SlidingWindowInferer((8, 8)), 2, network)
    x, y = picture((12, 12))
    assert ours.differentiate(x, loss_on(y))[2].isnan().all()


@pytest.mark.parametrize(
    "inferer",
    [
        None,
        SimpleInferer(),
        PatchInferer(SlidingWindowSplitter((8, 8), 0.5)),
        SlidingWindowInferer((8, 8), with_coord=True),
        SlidingWindowInferer((8, 8), device="cpu"),
        type("Own", (SlidingWindowInferer,), {})((8, 8)),
    ],
)
def test_what_is_no_plain_sliding_window_is_left_to_monai(inferer):
    estimator = MonaiSegmenter(Awkward(2), (1, 16, 16), decision=DECISION, inferer=inferer)
    assert sliding_inferer_of(estimator.model) is None and not isinstance(estimator.victim(), WindowedVictim)


@pytest.mark.parametrize("memory", [0, ALL_KEPT])
def test_attacks_go_through_the_windows(memory):
    torch.manual_seed(0)
    inferer = SlidingWindowInferer((8, 8), overlap=0.5, mode="gaussian", sw_batch_size=4)
    estimator = MonaiSegmenter(Awkward(2), (1, 12, 12), decision=DECISION, inferer=inferer, window_memory=memory)
    x, _ = picture((12, 12))
    x = x.float().numpy()
    y = estimator.predict(x).argmax(1)
    attack = create("pgd-dice", estimator, eps="8/255", max_iter=3)
    found = attack.generate(x, y)
    assert isinstance(estimator.victim(), WindowedVictim)
    assert (attack.passes.forward, attack.passes.backward) == ((4, 3) if memory else (7, 3))
    dice = estimator.decision.score(
        torch.from_numpy(estimator.predict(found)), *estimator.decision.canonical(y, (12, 12))
    )
    assert float(dice.mean()) < 0.95


@pytest.mark.parametrize("value", [-1, 1.5, "2 GB", True])
def test_memory_must_be_a_whole_number_of_bytes(value):
    with pytest.raises((ValueError, TypeError), match="window_memory"):
        MonaiSegmenter(Awkward(2), (1, 16, 16), decision=DECISION, window_memory=value)


@pytest.mark.parametrize("memory", [0, ALL_KEPT])
def test_it_is_told_how_far_a_look_has_come(memory):
    x, y = picture((12, 12))
    inferer = SlidingWindowInferer((8, 8), overlap=0.5, sw_batch_size=3)
    groups = len(Windows(inferer, x).groups)
    ours, theirs = victims(inferer, 2, memory=memory)
    told = []
    ours.on_windows = lambda done, total: told.append((done, total))
    assert torch.equal(ours.logits(x), theirs.logits(x))
    assert told == [(done, groups) for done in range(1, groups + 1)]
    told.clear()
    check_equal(ours, theirs, x, y)
    assert told == [(done, 2 * groups) for done in range(1, 2 * groups + 1)]


def test_an_attack_stopped_from_its_progress_leaves_the_model_as_found():
    estimator = MonaiSegmenter(Awkward(2), (1, 12, 12), decision=DECISION, inferer=SlidingWindowInferer((8, 8)))
    estimator.model.train()
    attack = create("pgd-dice", estimator, eps=0.1, max_iter=3)

    def stop(done, total):
        if (done, total) == (3, 8):
            raise KeyboardInterrupt

    attack.victim.on_windows = stop
    x, y = picture((12, 12))
    with pytest.raises(KeyboardInterrupt):
        attack.generate(x.float().numpy(), y)
    model = estimator.model
    assert model.blend is None and model.watch is None and model.search is None and model.training


@pytest.mark.parametrize("memory", [0, ALL_KEPT])
def test_attacks_switch_dropout_off_and_on_again(memory):
    network = nn.Sequential(Awkward(2), nn.Dropout(0.5))
    inferer = SlidingWindowInferer((8, 8), overlap=0.5)
    estimator = MonaiSegmenter(network, (1, 12, 12), decision=DECISION, inferer=inferer, window_memory=memory)
    estimator.model.train()
    x, y = picture((12, 12))
    attack = create("pgd-dice", estimator, eps=0.1, max_iter=3)
    first, again = (attack.generate(x.float().numpy(), y) for _ in range(2))
    assert np.array_equal(first, again) and all(layer.training for layer in estimator.model.modules())
    assert attack.passes.forward == (4 if memory else 7)


@pytest.mark.parametrize("memory", [0, ALL_KEPT])
def test_batch_norm_that_never_learned_statistics_sees_the_windows_that_run_together(memory):
    network = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), Awkward(2))
    inferer = SlidingWindowInferer((8, 8), overlap=0.5, sw_batch_size=3)
    check_equal(*victims(inferer, 2, network, memory), *picture((12, 12)))


def test_of_a_list_of_outputs_the_finest_is_taken():
    class Listed(Awkward):
        def forward(self, x):
            z = super().forward(x)
            return [nn.functional.avg_pool2d(z, 2), z]

    check_equal(*victims(SliceInferer(roi_size=(8, 8), spatial_dim=2), 2, Listed(2)), *picture((8, 9, 3)))


@pytest.mark.parametrize("dims", [2, 3])
def test_an_output_of_another_size_than_the_window_is_refused(dims):
    network = nn.Sequential(Awkward(dims), getattr(nn, f"AvgPool{dims}d")(2))
    x, y = picture((12,) * dims)
    for victim in victims(SlidingWindowInferer((8,) * dims), dims, network):
        with pytest.raises(ValueError, match=r"the network's output is .*needs logits \(N, 3, \*\(8, 8"):
            victim.differentiate(x, loss_on(y))
