"""Square and SimBA against closed forms, the papers' algorithms written out for one case, and torchattacks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torchattacks
from builders import setting
from networks import BrightnessSegmenter, bright_boxes
from scipy import fft
from torch import nn

from medadv.adapters import MonaiClassifier, MonaiSegmenter
from medadv.attacks import CATALOGUE, create
from medadv.decisions import Multiclass
from medadv.intensities import Intensity
from medadv.objectives import CrossEntropy
from medadv.problem import Problem
from medadv.search import SimBA, Square
from medadv.search.square import window_share
from medadv.search.windows import Region, low_frequencies_first, twin_pyramids
from medadv.threats import BALLS, CaseRandom, LInfBall
from medadv.victims import ModuleVictim

UNIT = Intensity(0, 1)
SHAPES = {2: (2, 7, 9), 3: (2, 5, 6, 4)}  # two channels, no two sides alike
NAMES = [name for name, row in CATALOGUE.items() if row.access == "score"]


class Wavy(nn.Module):
    """A small model with hills whose loss is easily written in numpy, too."""

    def __init__(self, features: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.inner = nn.Parameter(torch.randn(8, features, generator=generator, dtype=torch.float64) / 2)
        self.outer = nn.Parameter(torch.randn(3, 8, generator=generator, dtype=torch.float64))

    def forward(self, x):
        return torch.sin(x.flatten(1) @ self.inner.T) @ self.outer.T

    def by_hand(self, label: int):
        """Image -> cross-entropy of a label."""
        inner, outer = self.inner.detach().numpy(), self.outer.detach().numpy()

        def loss(x):
            z = outer @ np.sin(inner @ x.ravel())
            return np.log(np.exp(z).sum()) - z[label]

        return loss


def wavy_case(dims, seed=0):
    shape = SHAPES[dims]
    x = np.random.default_rng(seed).random((3, *shape))
    return Wavy(int(np.prod(shape)), seed), x, np.arange(3)


def search_of(search, net, x, labels, eps, norm, ids=None, mask=None):
    """What a search finds by loss alone."""
    victim = ModuleVictim(net, Multiclass(3), UNIT, segments=False)
    tensor, target = torch.from_numpy(x), torch.from_numpy(labels)
    threat = BALLS[norm](tensor, UNIT.budget(eps), UNIT, mask)
    problem = Problem(victim, CrossEntropy(victim.decision), threat, target, target >= 0, keep="loss")
    search.run(problem, list(range(len(x)) if ids is None else ids))
    return problem


def share_by_hand(p, step, steps):
    at = step * 10000 / steps
    for limit, halvings in (
        (10, 0),
        (50, 1),
        (200, 2),
        (500, 3),
        (1000, 4),
        (2000, 5),
        (4000, 6),
        (6000, 7),
        (8000, 8),
    ):
        if at <= limit:
            return p / 2**halvings
    return p / 2**9


def draws_by_hand(random, steps, count):
    """All random numbers of the steps of one case, from chunks of 64."""
    chunks, step = [], 1
    while step < steps:
        size = min(64, steps - step)
        chunks.append(random.uniform(torch.empty(1, size, count, dtype=torch.float64))[0].numpy())
        step += size
    return np.concatenate(chunks)


def square_linf_by_hand(loss, x, eps, steps, p_init, seed, case):
    """The L-inf attack for one case: losses accepted, and the image."""
    random, (channels, *shape) = CaseRandom(seed, [case]), x.shape
    low, high = np.maximum(x - eps, 0), np.minimum(x + eps, 1)
    stripes = random.uniform(torch.empty(1, channels, shape[-1], dtype=torch.float64))[0].numpy() >= 0.5
    stripes = stripes.reshape(channels, *[1] * (len(shape) - 1), shape[-1])
    best = np.where(np.broadcast_to(stripes, x.shape), high, low)
    losses = [loss(best)]
    for step, draw in enumerate(draws_by_hand(random, steps, len(shape) + channels)):
        side = max(round((share_by_hand(p_init, step, steps) * np.prod(shape)) ** (1 / len(shape))), 1)
        window = [slice(None)]
        for size, u in zip(shape, draw):
            length = min(side, size)
            first = int(u * (size - length + 1))
            window.append(slice(first, first + length))
        window = tuple(window)
        bright = (draw[len(shape) :] >= 0.5).reshape(-1, *[1] * len(shape))
        new = np.where(bright, high[window], low[window])
        if (new == best[window]).all():
            new = np.where(bright, low[window], high[window])
        trial = best.copy()
        trial[window] = new
        if loss(trial) > losses[-1]:
            best = trial
            losses.append(loss(trial))
    return losses, best


@pytest.mark.parametrize("dims", [2, 3])
def test_square_linf_is_the_papers_algorithm_for_each_case(dims):
    net, x, labels = wavy_case(dims)
    eps, steps, seed = 0.15, 150, 4
    problem = search_of(Square(steps, 1, seed), net, x, labels, eps, np.inf, ids=["a", "b", "c"])
    for i, case in enumerate("abc"):
        losses, image = square_linf_by_hand(net.by_hand(i), x[i], eps, steps, 0.8, seed, case)
        assert len(losses) > 10 and np.all(np.diff(losses) > 0)
        assert np.allclose(problem.best.x[i], image, rtol=0, atol=1e-12)
        assert float(problem.best.loss[i]) == pytest.approx(losses[-1], abs=1e-9)


def pyramids_by_hand(sides, axis):
    """The pyramids of arXiv 1912.00049 laid up box by box, as its authors do."""

    def pyramid(sizes):
        heights = np.zeros(sizes)
        for layer in range(max(size // 2 + 1 for size in sizes)):
            box = tuple(slice(max(size // 2 - layer, 0), size // 2 + layer + 1) for size in sizes)
            heights[box] += 1 / (layer + 1) ** 2
        return heights / max(np.sqrt((heights**2).sum()), 1e-300)

    first, rest = list(sides), list(sides)
    first[axis], rest[axis] = sides[axis] // 2, sides[axis] - sides[axis] // 2
    both = np.concatenate([pyramid(first), -pyramid(rest)], axis)
    return both / np.sqrt((both**2).sum())


@pytest.mark.parametrize("sides", [(3, 3), (1, 1), (5, 5), (8, 8), (5, 3), (3, 3, 3), (5, 5, 4), (1, 1, 1)])
def test_pyramids_are_those_of_the_paper(sides):
    for axis in range(len(sides)):
        assert np.allclose(twin_pyramids(sides, axis), pyramids_by_hand(sides, axis), rtol=0, atol=1e-12)


def square_l2_by_hand(loss, x, start, eps, steps, p_init, random):
    """The L2 attack for one case from its start; ``random`` stands behind the draws of the start."""
    channels, *shape = x.shape
    dims = len(shape)
    axes = tuple(range(1, dims + 1))

    def norm(values):
        return np.sqrt((values**2).sum(axis=axes, keepdims=True))

    delta, losses = start, [loss(x + start)]
    for step, draw in enumerate(draws_by_hand(random, steps, 2 * dims + 1 + channels)):
        side = max(round((share_by_hand(p_init, step, steps) * np.prod(shape)) ** (1 / dims)), 3)
        sides = [min(side + (side % 2 == 0), size) for size in shape]
        windows = []
        for part in (draw[:dims], draw[dims : 2 * dims]):
            firsts = [int(u * (size - length + 1)) for u, size, length in zip(part, shape, sides)]
            windows.append((slice(None), *[slice(a, a + b) for a, b in zip(firsts, sides)]))
        first, second = windows
        union = np.zeros(x.shape, dtype=bool)
        union[first] = union[second] = True
        signs = np.where(draw[2 * dims + 1 :] >= 0.5, 1, -1).reshape(-1, *[1] * dims)
        new = signs * pyramids_by_hand(sides, int(draw[2 * dims] * dims))
        new = new + delta[first] / np.maximum(norm(delta[first]), 1e-300)
        available = max(eps**2 - (delta**2).sum(), 0) / channels + norm(delta * union) ** 2
        new = new / norm(new) * np.sqrt(available)
        trial = delta.copy()
        trial[second] = 0
        trial[first] = new
        trial = np.clip(trial / np.sqrt((trial**2).sum()) * eps, -x, 1 - x)
        if loss(x + trial) > losses[-1]:
            delta = trial
            losses.append(loss(x + trial))
    return losses, x + delta


@pytest.mark.parametrize("dims", [2, 3])
def test_square_l2_is_the_papers_algorithm_for_each_case(dims):
    net, x, labels = wavy_case(dims, 1)
    eps, steps = 1.0, 100
    search = Square(steps, 1, 0)
    problem = search_of(search, net, x, labels, eps, 2)
    for i in range(3):
        random = CaseRandom(0, [i])
        start = search.first(problem.threat.subset(torch.tensor([i])), random)[0].numpy()
        losses, image = square_l2_by_hand(net.by_hand(i), x[i], start, eps, steps, 0.8, random)
        assert len(losses) > 5
        assert np.allclose(problem.best.x[i], image, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(1, 10, 14), (2, 11, 10, 12), (1, 3, 4)])
def test_the_l2_start_is_a_grid_of_pyramids_on_the_sphere(shape):
    x = torch.full((2, *shape), 0.5, dtype=torch.float64)
    threat = BALLS[2.0](x, UNIT.budget(0.1), UNIT)
    start = Square(10).first(threat, CaseRandom(0, range(2)))
    assert torch.allclose(start.flatten(1).norm(dim=1), torch.tensor(0.1, dtype=torch.float64), rtol=1e-9)
    side = max(min(shape[1:]) // 5, 1)
    corner = tuple(slice((size % side) // 2, (size % side) // 2 + side) for size in shape[1:])
    for image, channel in itertools.product(start, range(shape[0])):
        tile = image[channel][corner] / image[channel][corner].norm()
        pyramids = [sign * twin_pyramids((side,) * len(corner), a) for a in range(len(corner)) for sign in (1, -1)]
        assert any(torch.allclose(tile, pyramid, atol=1e-9) for pyramid in pyramids)


@pytest.mark.parametrize("steps", [10, 333, 10000])
def test_windows_shrink_after_the_papers_shares_of_the_queries(steps):
    assert all(window_share(0.8, step, steps) == share_by_hand(0.8, step, steps) for step in range(steps))


def linear_case(dims, seed=0):
    shape = (1, 6, 5) if dims == 2 else (1, 4, 3, 5)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(shape, generator=generator, dtype=torch.float64)
    x = torch.rand(3, *shape, generator=generator, dtype=torch.float64)
    net = nn.Sequential(nn.Flatten(), nn.Linear(weights.numel(), 2)).double()
    with torch.no_grad():
        net[1].weight.copy_(torch.stack([-weights.flatten() / 2, weights.flatten() / 2]))
        net[1].bias.zero_()
    return weights, x, MonaiClassifier(net, shape, decision=Multiclass(2))


@pytest.mark.parametrize("dims", [2, 3])
def test_linf_attacks_near_the_corner_of_a_linear_model(dims):
    weights, x, estimator = linear_case(dims)
    optimum = (((x + 0.1 * weights.sign()).clamp(0, 1) - x) * weights).flatten(1).sum(1)
    for name, options, share in (("square", {}, 0.95), ("simba-dct", {"freq_dims": 1.0, "eps_step": 0.025}, 0.78)):
        attack = create(name, estimator, eps=0.1, max_iter=300, keep="loss", objective="margin", **options)
        gain = ((attack.perturb(x, [0, 0, 0]) - x) * weights).flatten(1).sum(1)
        assert bool((gain >= share * optimum).all()) and bool((gain <= optimum + 1e-9).all()), name


@pytest.mark.parametrize("dims", [2, 3])
def test_simba_in_l2_nears_the_optimum_of_a_linear_model(dims):
    weights, x, estimator = linear_case(dims)
    estimator = MonaiClassifier(
        estimator.network, tuple(x.shape[1:]), decision=Multiclass(2), intensity=Intensity(-9, 9)
    )
    attack = create("simba-dct", estimator, eps=0.8, norm=2, eps_step=0.1, freq_dims=1.0, max_iter=300, keep="loss")
    gain = ((attack.perturb(x, [0, 0, 0]) - x) * weights).flatten(1).sum(1)
    assert bool((gain >= 0.95 * 0.8 * weights.norm()).all())


@pytest.mark.parametrize("norm", [np.inf, 2])
@pytest.mark.parametrize("dims", [2, 3])
def test_simba_is_the_papers_loop_over_scipys_basis(dims, norm):
    net, x, labels = wavy_case(dims, 2)
    eps, step_size, steps = (0.1, 0.04, 120) if norm == np.inf else (0.7, 0.2, 120)
    search = SimBA(steps, 0, 3, step_size, 0.25)
    problem = search_of(search, net, x, labels, eps, norm)
    order = search.walk(problem.threat, torch.zeros_like(problem.threat.x), CaseRandom(3, range(3))).order
    for i in range(3):
        loss, axes = net.by_hand(i), tuple(range(1, dims + 1))
        delta, last, queries, vectors, kept = np.zeros_like(x[i]), loss(x[i]), 1, iter(order[i].tolist()), 0
        while queries < steps:
            one = np.zeros_like(delta)
            one[tuple(next(vectors))] = 1
            wave = fft.idctn(one, axes=axes, norm="ortho")
            wave = step_size * wave / (np.abs(wave).max() if norm == np.inf else 1)
            for trial in (delta + wave, delta - wave):
                trial = np.clip(trial, -x[i], 1 - x[i])
                if norm == np.inf:
                    trial = np.clip(trial, -eps, eps)
                else:
                    trial = trial * min(1, eps / np.sqrt((trial**2).sum()))
                queries += 1
                if loss(x[i] + trial) > last:
                    delta, last, kept = trial, loss(x[i] + trial), kept + 1
                    break
                if queries == steps:
                    break
        assert kept > 10
        assert np.allclose(problem.best.x[i], x[i] + delta, rtol=0, atol=1e-9)


@pytest.mark.parametrize("extent", [(8, 6), (5, 4, 6)])
@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_every_frequency_comes_once_and_low_ones_first(extent, share):
    bands = list(low_frequencies_first(extent, 2, share))
    everything = torch.cat(bands).tolist()
    assert sorted(everything) == [list(place) for place in itertools.product(range(2), *map(range, extent))]
    widths = np.ceil(share * np.array(extent))
    for number, band in enumerate(bands):
        assert (np.floor(band[:, 1:].numpy() / widths).max(1) == number).all()


def test_every_case_draws_its_own_order_and_starts_again_when_all_is_used_up():
    x = torch.rand(3, 1, 4, 3, generator=torch.Generator().manual_seed(0))
    threat = LInfBall(x, UNIT.budget(0.1), UNIT)
    order = SimBA(31, step_size=0.1, freq_dims=0.5).walk(threat, torch.zeros_like(x), CaseRandom(0, range(3))).order
    assert order.shape == (3, 30, 3)
    for case in order.tolist():
        for part in (case[:12], case[12:24]):
            assert len(set(map(tuple, part))) == 12
            assert all(max(row[1:]) < 2 for row in part[:4])
    assert not torch.equal(order[0], order[1])


@pytest.mark.parametrize("keep", ["score", "loss"])
@pytest.mark.parametrize("name", NAMES)
def test_queries_are_what_the_network_saw_of_each_case(name, keep):
    case = setting("voxel-class" if "dice" in name else "class", cases=4)
    seen = np.zeros(4, dtype=int)

    def count(module, inputs):
        # the cases are told apart by which image a proposal is near to
        for image in inputs[0].numpy():
            seen[np.abs(case.x - image).reshape(4, -1).max(1).argmin()] += 1

    case.net.register_forward_pre_hook(count)
    attack = create(name, case.estimator, eps="16/255", max_iter=25, num_random_init=2, keep=keep)
    attack.generate(case.x, case.y)
    assert np.array_equal(attack.queries, seen)
    if keep == "loss":
        assert (seen == 50).all()
    elif "dice" not in name:
        assert seen.min() < 25
    # a batch shrinks, but no pass is made twice
    assert max(seen) <= attack.passes.forward <= 50


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("norm", [np.inf, 2])
def test_survivors_go_on_as_if_alone(name, norm):
    case = setting("class" if "dice" not in name else "voxel-class", dtype=np.float64, cases=5)
    attack = create(
        name, case.estimator, eps=0.02 if norm == np.inf else 0.1, norm=norm, max_iter=60, num_random_init=2
    )
    whole, queries = attack.generate(case.x, case.y), attack.queries
    for i in range(3):
        alone = attack.generate(case.x[i : i + 1], case.y[i : i + 1], ids=[i])
        assert np.allclose(alone[0], whole[i], rtol=0, atol=1e-9) and attack.queries[0] == queries[i]
    attack.set_params(batch_size=2)
    assert np.allclose(attack.generate(case.x, case.y), whole, rtol=0, atol=1e-9)
    assert np.array_equal(attack.queries, queries)


@pytest.mark.parametrize("name", NAMES)
def test_more_restarts_never_hurt_and_the_first_is_the_single_run(name):
    case = setting("voxel-class", dtype=np.float64)
    options = {"eps": "4/255", "max_iter": 30, "keep": "score"}
    one, three = (create(name, case.estimator, num_random_init=n, **options).generate(case.x, case.y) for n in (1, 3))
    assert (case.scores(three) <= case.scores(one)).all()


def test_a_case_at_the_floor_asks_once():
    case = setting("class", cases=3)
    attack = create("simba-dct", case.estimator, eps="8/255", max_iter=20)
    attack.generate(case.x, (case.y + 1) % 3)
    assert attack.queries.tolist() == [1, 1, 1] and attack.passes.forward == 1


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ["square-dice", "simba-dct-dice"])
def test_dice_falls_to_nothing_where_voxels_stand_on_the_edge(name, dims):
    x, mask = bright_boxes(dims)
    estimator = MonaiSegmenter(BrightnessSegmenter(dims), x.shape[1:], decision=Multiclass(2, background=0))
    x_adv = create(name, estimator, eps=0.05, max_iter=400).generate(x, mask)
    found = estimator.predict(x_adv).argmax(1)
    dice = 2 * (found * mask).reshape(2, -1).sum(1) / (found + mask).reshape(2, -1).sum(1)
    assert (dice <= (0.05 if name == "square-dice" else 0.5)).all()


@pytest.mark.parametrize("norm", [np.inf, 2])
@pytest.mark.parametrize("name", NAMES)
def test_a_small_region_is_searched_in_windows_of_its_own_size(name, norm):
    case = setting("voxel-class", 3, cases=3, dtype=np.float64)
    mask = np.zeros(case.x.shape, dtype=bool)
    mask[0, :, 1:3, 2:4, 1:3] = mask[1, :, 4:6, 0:3, 3] = True  # nothing may change in the third
    attack = create(name, case.estimator, eps=0.1, norm=norm, max_iter=30, keep="loss")
    x_adv = attack.generate(case.x, case.y, mask=mask)
    assert np.array_equal(x_adv[~mask], case.x[~mask]) and np.array_equal(x_adv[2], case.x[2])
    change = np.abs(x_adv - case.x)
    assert all(change[i][mask[i]].max() > 0.01 for i in (0, 1))


def test_the_region_is_the_masks_bounding_box():
    x = torch.zeros(3, 2, 6, 7)
    mask = torch.zeros_like(x, dtype=torch.bool)
    mask[0, 0, 2, 3] = mask[0, 1, 4, 1] = mask[1, 1, 0:5, 6] = True
    region = Region.of(LInfBall(x, UNIT.budget(0.1), UNIT, mask))
    assert region.origin.tolist() == [[2, 1], [0, 6], [0, 0]]
    assert region.extent.tolist() == [[3, 3], [5, 1], [6, 7]]
    corners = [region.corners(torch.full((3, 2), u), region.sides(0.3)) for u in (0.0, 0.999999)]
    assert torch.equal(corners[0], region.origin)
    assert torch.equal(corners[1] + region.sides(0.3), region.origin + region.extent)


@pytest.mark.parametrize("eps", [0.01, 0.3, 2.0])
@pytest.mark.parametrize("name", ["square", "simba-dct"])
def test_the_l2_budget_holds_strictly_and_is_used_in_float32(name, eps):
    case = setting("class", dtype=np.float32, cases=4, channels=2, intensity=Intensity(-1.7, 2.3))
    options = {"eps_step": eps} if name == "simba-dct" else {}
    attack = create(name, case.estimator, eps=eps, norm=2, max_iter=50, keep="loss", **options)
    x_adv = attack.generate(case.x, case.y)
    length = np.sqrt(((x_adv.astype(np.float64) - case.x) ** 2).reshape(4, -1).sum(1))
    assert (length <= eps).all() and (length >= 0.9 * eps).all()
    assert x_adv.min() >= np.float32(-1.7) and x_adv.max() <= np.float32(2.3)


@pytest.mark.parametrize(("name", "options", "message"), [
    ("square", {"p_init": 0}, "p_init=0 is no share"), ("square", {"p_init": 1.5}, r"\(0, 1\]"),
    ("square", {"p_init": "a"}, "p_init='a'"), ("square-dice", {"p_init": float("nan")}, "p_init=nan"),
    ("simba-dct", {"freq_dims": 0}, "freq_dims=0 is no share"), ("simba-dct", {"freq_dims": 2}, r"\(0, 1\]"),
    ("simba-dct-dice", {"freq_dims": True}, "freq_dims=True"), ("square", {"max_iter": 0}, "max_iter=0"),
    ("square", {"num_random_init": -1}, "num_random_init=-1"), ("simba-dct", {"objective": "dice"}, "compares voxels"),
])  # fmt: skip
def test_bad_options_are_refused(name, options, message):
    case = setting("voxel-class" if "-dice" in name else "class")
    with pytest.raises(ValueError, match=message):
        create(name, case.estimator, eps=0.1, **options)


@pytest.mark.parametrize(("name", "option"), [("square", "eps_step"), ("simba-dct", "p_init")])
def test_options_of_the_other_attack_are_refused(name, option):
    with pytest.raises(TypeError, match=option):
        create(name, setting("class").estimator, eps=0.1, **{option: 0.1})


class Stripes(nn.Module):
    """Two convolutions with a fixed random filter bank; three classes."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.layers = nn.Sequential(
                nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(),
                nn.Linear(8 * 25, 3),
            )  # fmt: skip

    def forward(self, x):
        return 5 * self.layers(x)


def test_square_breaks_no_fewer_cases_than_torchattacks_with_the_same_queries():
    net = Stripes().eval()
    x = torch.rand(80, 1, 14, 14, generator=torch.Generator().manual_seed(0))
    eps, queries = 0.1, 60
    estimator = MonaiClassifier(net, (1, 14, 14), decision=Multiclass(3))
    attack = create("square", estimator, eps=eps, max_iter=queries + 1, batch_size=80)  # its start is a query, too
    with torch.no_grad():
        y = net(x).argmax(1)
        theirs = (net(torchattacks.Square(net, eps=eps, n_queries=queries)(x, y)).argmax(1) != y).double().mean()
        ours = (net(attack.perturb(x, y)).argmax(1) != y).double().mean()
    assert 0.1 < theirs < 0.9 and ours < 1
    # twice the largest standard error a difference of two shares of 80 can have
    assert ours >= theirs - 2 * (2 * 0.25 / 80) ** 0.5
