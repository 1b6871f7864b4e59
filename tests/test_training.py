"""Training loops and what attacks and training refuse."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from builders import KINDS, setting
from monai.losses import TverskyLoss
from rows import attack_on, fits
from torch import nn

from medadv.adapters import MonaiClassifier
from medadv.attacks import CATALOGUE, create
from medadv.decisions import Multiclass
from medadv.objectives import SoftDice
from medadv.training import NATURAL, RECIPES, AdversarialTraining, Recipe, train
from medadv.training.base import batch_of


def toy(n=200):
    """Two features: one tells the class weakly but robustly, many others strongly but within reach of the attack."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, n)
    x = 0.5 + 0.02 * rng.standard_normal((n, 1, 8, 8))
    x += 0.02 * (2 * y - 1)[:, None, None, None]  # everywhere a little
    x[:, :, :2, :2] += 0.15 * (2 * y - 1)[:, None, None, None]  # in one corner a lot
    return x.clip(0, 1).astype(np.float32), y


def toy_model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 2))
    return MonaiClassifier(net, (1, 8, 8), decision=Multiclass(2))


def accuracy(estimator, x, y):
    return (estimator.predict(x).argmax(1) == y).mean()


@pytest.mark.parametrize("recipe", [RECIPES["natural"](), RECIPES["pgd-at"](eps=0.05, steps=3)])
def test_training_lowers_its_loss(recipe):
    x, y = toy()
    history = train(toy_model(), torch.from_numpy(x), y, recipe=recipe, epochs=8, seed=0, learning_rate=1e-2)
    assert len(history.loss) == 8 and history.loss[-1] < 0.85 * history.loss[0]


def test_adversarial_training_is_more_robust_than_natural():
    x, y = toy()
    robust = {}
    for name, recipe in (("natural", RECIPES["natural"]()), ("pgd-at", AdversarialTraining(eps=0.08, steps=5))):
        estimator = toy_model()
        train(estimator, torch.from_numpy(x), y, recipe=recipe, epochs=25, seed=0, learning_rate=1e-2)
        assert accuracy(estimator, x, y) > 0.95
        robust[name] = accuracy(estimator, create("pgd", estimator, eps=0.08, max_iter=20).generate(x, y), y)
    assert robust["pgd-at"] > robust["natural"] + 0.2


class Watched(Recipe):
    """Natural training that hands every batch to a function first."""

    def __init__(self, look, recipe=NATURAL):
        self.look, self.recipe = look, recipe

    def step(self, preparation):
        step = self.recipe.step(preparation)
        craft = step.craft

        def watched(batch):
            crafted = craft(batch)
            self.look(batch, crafted)
            return crafted

        step.craft = watched
        return step


@pytest.mark.parametrize("kind", ["voxel-class", "class"])
def test_the_attack_runs_on_inference_statistics_and_the_update_on_the_crafted_batch(kind):
    case = setting(kind, cases=4)
    twin, untouched = copy.deepcopy(case.estimator), copy.deepcopy(case.net.state_dict())
    x, seen = torch.from_numpy(case.x), []

    def look(batch, crafted):
        seen.append(crafted)
        now = case.net.state_dict()
        assert all(torch.equal(value, now[name]) for name, value in untouched.items())

    options = {"epochs": 1, "batch_size": 4, "learning_rate": 1e-3}
    recipe = Watched(look, AdversarialTraining(eps=0.1, steps=3))
    train(case.estimator, x, case.y, recipe=recipe, seed=5, **options)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(5 * 100_003))
    assert 0 < float((seen[0] - x[order]).abs().max()) <= 0.1
    # the same update by hand, on the crafted batch
    y = torch.from_numpy(case.y)[order]
    twin.model.train()
    optimizer = torch.optim.Adam(twin.model.parameters(), lr=1e-3)
    torch.manual_seed(0)
    loss = twin.training_loss(twin.model(seen[0]), y, torch.ones_like(y, dtype=torch.bool))
    loss.backward()
    optimizer.step()
    for name, buffer in case.net.named_buffers():
        assert torch.equal(buffer, dict(twin.network.named_buffers())[name]), name
    assert not any(module.training for module in case.net.modules())


def test_crafting_keeps_the_training_flags():
    case = setting("voxel-class")
    case.net.train()
    case.net.norm.eval()
    step = AdversarialTraining(eps=0.1, steps=2).prepare(case.estimator)
    step.craft(batch_of(case.estimator, torch.from_numpy(case.x), case.y))
    assert case.net.training and case.net.drop.training and not case.net.norm.training


def test_ignored_voxels_reach_the_attack_of_training_as_ignored():
    case = setting("voxel-class", ignore_index=9)
    y = case.y.copy()
    y[:, :3] = 9
    seen = []
    recipe = Watched(lambda batch, crafted: seen.append(batch.valid))
    train(case.estimator, torch.from_numpy(case.x), y, recipe=recipe, epochs=1, batch_size=3, seed=0)
    assert not bool(seen[0][:, :3].any()) and bool(seen[0][:, 3:].all())


@pytest.mark.parametrize("kind", ["class", "voxel-class", "voxel-labels"])
@pytest.mark.parametrize("axis", [0, 1])
def test_mirroring_moves_images_and_masks_together_in_about_half_of_the_cases(kind, axis):
    case = setting(kind, cases=24)
    given, seen = torch.from_numpy(case.x), []

    recipe = Watched(lambda batch, crafted: seen.append((batch.x, batch.target, batch.ids)))
    train(case.estimator, given, case.y, recipe=recipe, epochs=1, batch_size=8, seed=0, flip_axis=axis)
    mirrored = 0
    for images, target, ids in seen:
        for image, reference, name in zip(images, target, ids):
            row = int(name.split("-")[1])
            flipped = torch.equal(image, given[row].flip(1 + axis))
            assert flipped or torch.equal(image, given[row])
            expected = torch.from_numpy(case.y)[row]
            if flipped and kind != "class":
                expected = expected.flip(expected.ndim - 2 + axis)
            assert torch.equal(reference, expected)
            mirrored += flipped
    assert 5 <= mirrored <= 19


def test_the_same_seed_trains_the_same_network():
    weights = []
    for seed in (1, 1, 2):
        estimator = toy_model()
        x, y = toy(40)
        train(estimator, torch.from_numpy(x), y, recipe=AdversarialTraining(eps=0.05, steps=2), epochs=2, seed=seed)
        weights.append(estimator.network[1].weight.detach().clone())
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_last_batch_of_one_case_joins_its_neighbour():
    case = setting("class", cases=5)
    seen = []
    recipe = Watched(lambda batch, crafted: seen.append(len(batch)))
    train(case.estimator, torch.from_numpy(case.x), case.y, recipe=recipe, epochs=1, batch_size=2, seed=0)
    assert seen == [2, 3]


def test_one_cycle_rises_to_its_peak_and_ends_with_small_steps_of_the_given_optimizer():
    estimator, (x, y), rates = toy_model(), toy(40), []

    class Sgd(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    optimizer = Sgd(estimator.model.parameters(), lr=1.0)
    schedule = {"schedule": "one-cycle", "learning_rate": 0.1}
    train(estimator, torch.from_numpy(x), y, optimizer=optimizer, **schedule, batch_size=4, epochs=4, seed=0)
    assert len(rates) == 40 and rates[-1] < 1e-4 and max(rates) == pytest.approx(0.1, rel=0.01)


def test_a_loss_that_is_not_finite_stops_training():
    case = setting("class")
    nn.init.constant_(case.net.last.bias, float("nan"))
    with pytest.raises(ValueError, match="training loss became nan.*lower the learning rate"):
        train(case.estimator, torch.from_numpy(case.x), case.y, seed=0)


@pytest.mark.parametrize(("options", "message"), [
    ({"epochs": 0}, "epochs=0 must be a whole number of at least 1"),
    ({"batch_size": 0}, "batch_size=0 must be a whole number of at least 1"),
    ({"schedule": "cosine"}, "schedule 'cosine' is unknown; choose 'constant' or 'one-cycle'"),
    ({"y": [0, 1]}, "2 references for 3 images"),
    ({"recipe": AdversarialTraining(eps=-1)}, "eps=-1 must be finite"),
    ({"flip_axis": 2}, "flip_axis=2 is no spatial axis; give 0 to 1"),
    ({"flip_axis": -1}, "flip_axis=-1 is no spatial"),
])  # fmt: skip
def test_training_that_cannot_work_is_refused(options, message):
    case = setting("class")
    options = {"y": case.y, "epochs": 3, "seed": 0, **options}
    with pytest.raises(ValueError, match=message):
        train(case.estimator, torch.from_numpy(case.x), options.pop("y"), **options)


CLASS, VOXELS = "class", "voxel-class"


@pytest.mark.parametrize(("kind", "name", "options", "error", "message"), [
    (CLASS, "pgd", {"stepsize": 1}, TypeError, "option of pgd 'stepsize' is unknown; did you mean .*'eps_step'"),
    (CLASS, "fgsm", {"max_iter": 3}, TypeError, "It accepts norm, targeted, batch_size, verbose, keep, seed, obj"),
    (CLASS, "apgd-ce", {"objective": "margin"}, TypeError, "option of apgd-ce 'objective' is unknown"),
    (CLASS, "pdg", {}, ValueError, "attack 'pdg' is unknown; did you mean 'pgd'"),
    (CLASS, "pgd", {"objective": "dice"}, ValueError, "compares voxels, but this model gives one diagnosis per image"),
    (CLASS, "pgd-dice", {}, ValueError, "'pgd-dice' is for segmentation, the model does classification .Multiclass."),
    (CLASS, "segpgd", {}, ValueError, "use pgd or apgd-ce"),
    (CLASS, "noise", {"targeted": True}, ValueError, "no direction and can't be targeted"),
    (CLASS, "pgd", {"max_iter": 0}, ValueError, "max_iter=0 must be a whole number of at least 1"),
    (CLASS, "pgd", {"max_iter": 2.5}, ValueError, "max_iter=2.5 must be a whole number"),
    (CLASS, "pgd", {"max_iter": True}, ValueError, "max_iter=True must be a whole number"),
    (CLASS, "pgd", {"num_random_init": -1}, ValueError, "num_random_init=-1 must be a whole number of at least 0"),
    (CLASS, "pgd", {"batch_size": 0}, ValueError, "batch_size=0"),
    (CLASS, "pgd", {"keep": "last", "num_random_init": 2}, ValueError, "one end point and can't use several"),
    (CLASS, "pgd", {"keep": "best"}, ValueError, "keep='best' is unknown; choose one of 'score', 'loss', 'last'"),
    (CLASS, "pgd", {"seed": 1.5}, ValueError, "seed=1.5 must be a whole number"),
    (CLASS, "pgd", {"norm": 3}, ValueError, "norm=3 is not supported; choose numpy.inf, 2 or 1"),
    (CLASS, "pgd", {"norm": 1}, ValueError, "attack 'pgd' is for norm inf and 2.0, got 1.0"),
    (CLASS, "pgd", {"eps": -1}, ValueError, "eps=-1 must be finite and not negative"),
    (CLASS, "pgd", {"eps": "10 HU"}, ValueError, "the data have no unit"),
    (CLASS, "pgd", {"eps_step": "1/0"}, ValueError, "no positive denominator"),
    (CLASS, "mi-fgsm", {"decay": -1.0}, ValueError, "decay=-1.0 must not be negative"),
    (VOXELS, "pgd", {"objective": "dise"}, ValueError, "did you mean 'dice'"),
    (VOXELS, "pgd", {"objective": SoftDice(Multiclass(2))}, ValueError, "the objective was made for"),
])  # fmt: skip
def test_attacks_that_cannot_work_are_refused(kind, name, options, error, message):
    case = setting(kind)
    with pytest.raises(error, match=message):
        create(name, case.estimator, **{"eps": 0.1, **options})


@pytest.mark.parametrize(("options", "arguments", "message"), [
    ({"targeted": True}, {"y": None}, "a targeted attack needs y"),
    ({}, {"mask": np.ones((8, 6))}, r"mask has shape \(8, 6\), the images \(3, 1, 8, 6\)"),
    ({}, {"mask": np.ones((2, 1, 8, 6))}, "mask has shape"),
    ({}, {"mask": np.full((1, 1, 8, 6), 0.5)}, "mask holds values other than 0 and 1"),
    ({}, {"ids": ["a", "b"]}, "2 ids for 3 images; give one per case"),
    ({}, {"y": np.zeros((2, 8, 6), dtype=int)}, "2 references for 3 images"),
    ({}, {"x": np.zeros((3, 8, 6), dtype=np.float32)}, "images have shape"),
    ({}, {"x": np.zeros((3, 2, 8, 6), dtype=np.float32)}, r"this model takes \(N, 1, \*S\)"),
    ({}, {"x": np.zeros((3, 1, 8, 6, 4), dtype=np.float32)}, "2 spatial dimensions"),
    ({}, {"x": np.zeros((0, 1, 8, 6), dtype=np.float32)}, "at least one case"),
    ({}, {"x": np.zeros((3, 1, 8, 6), dtype=np.uint8)}, "dtype uint8; convert them to float32"),
    ({}, {"x": np.zeros((3, 1, 8, 6), dtype=np.float16)}, "dtype torch.float16; convert them to float32 or float64"),
    ({}, {"x": np.full((3, 1, 8, 6), 2, dtype=np.float32)}, "outside the intensity range 0.0 to 1.0"),
    ({}, {"x": np.full((3, 1, 8, 6), np.nan, dtype=np.float32)}, "NaN or infinite"),
])  # fmt: skip
def test_calls_that_cannot_be_right_are_refused_before_the_model_runs(options, arguments, message):
    case = setting("voxel-class")
    case.net.forward = None  # calling it would raise a TypeError
    attack = create("pgd", case.estimator, eps=0.1, **options)
    with pytest.raises(ValueError, match=message):
        attack.generate(**{"x": case.x, "y": case.y, **arguments})


def test_unknown_arguments_of_generate_are_refused():
    case = setting("voxel-class")
    with pytest.raises(TypeError, match="generate does not take labels; it takes x, y, mask and ids"):
        create("pgd", case.estimator, eps=0.1).generate(case.x, labels=case.y)


def test_set_params_is_checked_and_takes_effect():
    case = setting("voxel-class")
    attack = create("pgd", case.estimator, eps=0.1, max_iter=2)
    attack.set_params(eps="2/255", max_iter=3)
    assert np.abs(attack.generate(case.x, case.y) - case.x).max() <= 2 / 255 and attack.passes.backward == 3
    with pytest.raises(ValueError, match="max_iter=0"):
        attack.set_params(max_iter=0)


def test_any_monai_loss_serves_as_objective():
    case = setting("voxel-class")
    attack = create("pgd", case.estimator, eps="8/255", max_iter=3, objective=TverskyLoss(softmax=True))
    assert case.scores(attack.generate(case.x, case.y)).mean() < case.scores(case.x).mean()


@pytest.mark.parametrize("name", CATALOGUE)
def test_attacks_have_what_art_asks_of_an_attack(name):
    case = setting(next(kind for kind in (VOXELS, *KINDS) if fits(CATALOGUE[name], kind)))
    attack = attack_on(case, name)
    assert attack.estimator is case.estimator and attack.name == name and attack.targeted is (name == "asma")
    for parameter in ("eps", "norm", "batch_size", "keep", "seed", "targeted", "verbose"):
        assert parameter in attack.attack_params and hasattr(attack, parameter)
