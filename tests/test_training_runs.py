"""Trainings as a whole: crafting leaves the model alone, resuming, choosing an epoch, mixed precision, bad input."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from builders import setting
from monai.data import MetaTensor
from networks import changes, state

from medadv.training import RECIPES, Recipe, Validation, loop, train
from medadv.training.adversarial import NaturalStep
from medadv.training.base import batch_of

SMALL = {
    "natural": {}, "pgd-at": {"eps": 0.1, "steps": 2}, "fast": {"eps": 0.1}, "free": {"eps": 0.1, "replays": 2},
    "trades": {"eps": 0.1, "steps": 2}, "mart": {"eps": 0.1, "steps": 2}, "hat": {"eps": 0.1, "steps": 2},
    "mpadvt": {"most_steps": 3}, "maadvt": {}, "vaft": {"steps": 2}, "bias-field": {"steps": 2},
    "attack": {"attack": "kspace", "options": {"max_iter": 2}, "clean_share": 0.5},
}  # fmt: skip
CRAFTING = [name for name in SMALL if name not in ("natural", "free", "hat")]


def recipe_of(name):
    return RECIPES[name](**SMALL[name])


def test_every_recipe_is_tested():
    assert set(SMALL) == set(RECIPES)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", [*CRAFTING, "free"])
def test_crafting_leaves_the_model_as_it_was_and_no_case_sees_another(name, dims):
    case = setting("voxel-class", dims, dtype=np.float64)
    case.net.train()
    batch = batch_of(case.estimator, torch.from_numpy(case.x), case.y, "abc")
    step, before, random = recipe_of(name).prepare(case.estimator), state(case.net), torch.get_rng_state()
    crafted = step.craft(batch)
    assert changes(before, state(case.net)) == [] and torch.equal(torch.get_rng_state(), random)
    assert (name == "free") == torch.equal(crafted, batch.x)  # whose perturbation begins at zero
    # statistics of the batch would couple the cases
    for place, name in enumerate("abc"):
        alone = batch_of(case.estimator, batch.x[place : place + 1], case.y[place : place + 1], name)
        torch.testing.assert_close(step.craft(alone)[0], crafted[place])


class Stopped(Exception):
    pass


def run(path, name, monkeypatch, stop_after=None, seed=0, **options):
    """A training of four epochs with all that has a state; its estimator and history."""
    case = setting("voxel-class", cases=7)
    held_out = setting("voxel-class", cases=3, seed=1)
    torch.manual_seed(seed)
    saved = []

    def save(file, content):
        loop_save(file, content)
        saved.append(content["epoch"])
        if stop_after is not None and len(saved) == stop_after:
            raise Stopped

    loop_save = loop.save_checkpoint
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", save)
        settings = {"epochs": 4, "batch_size": 3, "seed": 1, "schedule": "one-cycle", "flip_axis": 1,
                    "validation": Validation(torch.from_numpy(held_out.x), held_out.y, eps=0.05, steps=1),
                    "learning_rate": 1e-2, "recipe": recipe_of(name), "checkpoint": path, **options}  # fmt: skip
        try:
            history = train(case.estimator, torch.from_numpy(case.x), case.y, **settings)
        except Stopped:
            history = None
    return case.estimator, history, saved


@pytest.mark.parametrize("name", ["natural", "free", "trades", "hat"])
@pytest.mark.parametrize("gamma", [None, 0.01])
def test_going_on_from_a_checkpoint_is_equal_to_the_last_bit(name, gamma, tmp_path, monkeypatch):
    whole, history, saved = run(tmp_path / "whole.pt", name, monkeypatch, weight_perturbation=gamma)
    assert saved == [0, 1, 2, 3]
    path = tmp_path / "parts.pt"
    assert run(path, name, monkeypatch, stop_after=2, weight_perturbation=gamma)[1] is None
    resumed, again, saved = run(path, name, monkeypatch, seed=99, weight_perturbation=gamma)
    assert saved == [2, 3]
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key
    assert again.loss == history.loss and again.validation == history.validation
    assert again.best_epoch == history.best_epoch and len(again.seconds) == 4


@pytest.mark.parametrize(("changed", "message"), [
    ({"recipe": recipe_of("natural")}, "recipe was .TRADES.* and is now .Natural.*"),
    ({"recipe": RECIPES["trades"](eps=0.2, steps=2)}, "recipe was .*eps=0.1.* and is now .*eps=0.2.*"),
    ({"learning_rate": 1e-3}, "learning_rate was 0.01 and is now 0.001"), ({"epochs": 5}, "epochs was 4 and is now 5"),
    ({"weight_perturbation": 0.01}, "weight_perturbation was None and is now 0.01"),
])  # fmt: skip
def test_a_checkpoint_of_another_training_is_refused(changed, message, tmp_path, monkeypatch):
    run(tmp_path / "a.pt", "trades", monkeypatch, stop_after=1)
    with pytest.raises(ValueError, match=f"is of another training: {message}; give another file, or remove it"):
        run(tmp_path / "a.pt", "trades", monkeypatch, **changed)


def test_a_checkpoint_of_other_data_and_of_another_optimizer_is_refused(tmp_path):
    case = setting("class")
    x, options = torch.from_numpy(case.x), {"epochs": 2, "seed": 0, "checkpoint": tmp_path / "a.pt"}
    train(case.estimator, x, case.y, **options)
    with pytest.raises(ValueError, match="another training: data was "):
        train(case.estimator, x / 2, case.y, **options)
    sgd = torch.optim.SGD(case.estimator.model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="another training: optimizer was 'Adam' and is now 'SGD'"):
        train(case.estimator, x, case.y, optimizer=sgd, **options)


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2]])
def test_a_damaged_checkpoint_is_refused_and_kept(damage, tmp_path):
    case, path = setting("class"), tmp_path / "a.pt"
    train(case.estimator, torch.from_numpy(case.x), case.y, epochs=1, seed=0, checkpoint=path)
    path.write_bytes(damage(path.read_bytes()))
    left = path.read_bytes()
    with pytest.raises(ValueError, match="can't be read .*; remove it to start anew"):
        train(case.estimator, torch.from_numpy(case.x), case.y, epochs=1, seed=0, checkpoint=path)
    assert path.read_bytes() == left and list(tmp_path.iterdir()) == [path]


class Spoiling(Recipe):
    """Natural training whose last batches lead away from the reference."""

    def __init__(self, good):
        self.good, self.seen = good, 0

    def step(self, preparation):
        natural, outer = NaturalStep(preparation.estimator), self

        class Turning(NaturalStep):
            def loss(self, batch, crafted):
                outer.seen += 1
                return natural.loss(batch, crafted) * (1 if outer.seen <= outer.good else -1)

        return Turning(preparation.estimator)


@pytest.mark.parametrize("eps", [None, 0.02])
def test_the_weights_of_the_best_epoch_on_validation_are_kept(eps):
    case = setting("voxel-class", cases=4)
    x, weights = torch.from_numpy(case.x), []
    held_out = Validation(x, case.y, eps=eps, steps=2)

    class Kept(Validation):
        def score(self, estimator, batch_size, seed):
            weights.append(copy.deepcopy(estimator.model.state_dict()))
            return super().score(estimator, batch_size, seed)

    watching = Kept(x, case.y, eps=eps, steps=2)
    history = train(
        case.estimator, x, case.y, recipe=Spoiling(3), epochs=6, batch_size=4, seed=0, validation=watching,
        learning_rate=0.05,
    )  # fmt: skip
    scores = history.validation
    best = max(scores, key=lambda epoch: (scores[epoch], epoch))
    assert history.best_epoch == best < 5 and scores[5] < scores[best]
    for key, value in weights[best].items():
        assert torch.equal(value, case.estimator.model.state_dict()[key])
    assert held_out.score(case.estimator, 4, 0) == scores[best]


def test_validation_looks_every_few_epochs_and_at_the_last():
    case = setting("class", cases=4)
    x = torch.from_numpy(case.x)
    history = train(case.estimator, x, case.y, epochs=6, seed=0, validation=Validation(x, case.y, every=4))
    assert sorted(history.validation) == [3, 5]


@pytest.mark.parametrize("name", SMALL)
def test_mixed_precision_trains_with_weights_and_images_in_full_precision(name):
    case = setting("voxel-class", cases=4)
    before = case.net.first.weight.detach().clone()
    x, options = torch.from_numpy(case.x), {"epochs": 2, "batch_size": 2, "seed": 0, "amp": True}
    history = train(case.estimator, x, case.y, recipe=recipe_of(name), **options)
    after = case.net.first.weight
    assert np.isfinite(history.loss).all() and after.dtype == torch.float32 and not torch.equal(after, before)


@pytest.mark.parametrize("kind", ["class", "labels", "voxel-class", "voxel-labels"])
@pytest.mark.parametrize("name", SMALL)
def test_every_recipe_lowers_its_loss_or_says_why_it_is_not_for_the_model(name, kind):
    case = setting(kind, cases=8, dims=3)
    case.net.drop.p = 0.0
    recipe, x = recipe_of(name), torch.from_numpy(case.x)
    y = np.roll(case.y, 1, axis=0)  # something to learn: the network's own diagnosis is right from the start
    if name == "vaft" and "voxel" not in kind:
        with pytest.raises(ValueError, match="'vaft' compares the frequencies of maps of predictions"):
            train(case.estimator, x, y, recipe=recipe, seed=0)
        return
    history = train(case.estimator, x, y, recipe=recipe, epochs=8, batch_size=8, seed=0, learning_rate=0.03)
    assert min(history.loss[-2:]) < history.loss[0]


WRONG = [
    ("pgd-at", {"steps": 0}, "steps=0 must be a whole number of at least 1"),
    ("pgd-at", {"steps": 1.5}, "steps=1.5 must be a whole number"),
    ("pgd-at", {"norm": 1}, "norm=1 is not supported in training; choose inf or 2"),
    ("pgd-at", {"eps": "4/0"}, "no positive denominator"), ("pgd-at", {"eps_step": -1}, "eps=-1 must be finite"),
    ("pgd-at", {"eps": "10 HU"}, "the data have no unit"),
    ("fast", {"stride": 0}, "stride=0 must be above 0 and at most 2 budgets"),
    ("fast", {"stride": 2.5}, "stride=2.5 must be above 0"),
    ("free", {"replays": 0}, "replays=0 must be a whole number of at least 1"),
    ("free", {"replays": True}, "replays=True must be a whole number"), ("free", {"eps": -1}, "eps=-1 must be finite"),
    ("trades", {"beta": -1}, "beta=-1 must be a finite number of at least 0"),
    ("mart", {"lam": float("nan")}, "lam=nan must be a finite number"),
    ("hat", {"h": -1}, "h=-1 must be a finite number"), ("hat", {"gamma": "1"}, "gamma='1' must be a finite number"),
    ("hat", {"helper": "natural"}, "helper='natural' is the name of a training, which only a suite knows"),
    ("mpadvt", {"clean_share": 1}, "clean_share=1 must be at least 0 and below 1"),
    ("mpadvt", {"least_eps": 0.05}, "least_eps=0.05 is above most_eps='0.04/1'; swap them"),
    ("mpadvt", {"most_steps": 0}, "steps=0 must be a whole number"),
    ("vaft", {"weight": -1}, "weight=-1 must be a finite number"),
    ("vaft", {"block": 1}, "block=1 must be a whole number of at least 2"),
    ("vaft", {"steps": 0}, "max_iter=0 must be a whole number"),
    ("vaft", {"eps": "a"}, "no limit for quantisation steps"),
    ("bias-field", {"eps": 1.0}, "eps=1.0 is no limit for a bias field; give a number from 0 to below 1"),
    ("bias-field", {"clean_share": -0.1}, "clean_share=-0.1 must be at least 0"),
    ("bias-field", {"control_points": 3}, "control_points=3 makes no cubic spline"),
    ("attack", {"attack": "pdg"}, "attack 'pdg' is unknown; did you mean 'pgd'"),
    ("attack", {"attack": "dag"}, "attack 'dag' is no search of one threat set and can't be trained on"),
    ("attack", {"attack": "deformation", "options": {"max_iter": 1}}, "'deformation' moves or covers what"),
    ("attack", {"attack": "pgd", "eps": 0.1, "keep": "best"}, "keep='best' is unknown"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "message"), WRONG)
def test_recipes_that_cannot_work_are_refused_in_a_sentence(name, options, message):
    case = setting("voxel-class", cases=2)
    needed = {} if name in ("mpadvt", "maadvt", "vaft", "bias-field", "attack") else {"eps": 0.1}
    with pytest.raises(ValueError, match=message) as caught:
        train(case.estimator, torch.from_numpy(case.x), case.y, recipe=RECIPES[name](**{**needed, **options}), epochs=1)
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize(("options", "message"), [
    ({"weight_perturbation": -0.1}, "weight_perturbation=-0.1 must be a finite number of at least 0"),
    ({"epochs": 1.5}, "epochs=1.5 must be a whole number"), ({"batch_size": True}, "batch_size=True must be a whole"),
])  # fmt: skip
def test_settings_that_cannot_work_are_refused_before_anything_runs(options, message):
    case = setting("class")
    case.net.forward = None  # calling it would raise a TypeError
    recipe = RECIPES["hat"](eps=0.1)
    with pytest.raises(ValueError, match=message):
        train(case.estimator, torch.from_numpy(case.x), case.y, recipe=recipe, **{"epochs": 2, **options})


@pytest.mark.parametrize(("images", "message"), [
    (lambda x: x * 4 - 2, "outside the intensity range 0.0 to 1.0"), (lambda x: x * torch.nan, "NaN or infinite"),
    (lambda x: x[:, :, 0], "2 spatial dimensions"), (lambda x: (x * 9).long(), "dtype torch.int64"),
    (lambda x: x[:0], "the batch is empty"),
])  # fmt: skip
def test_images_the_attack_would_misread_are_refused_in_every_form_of_training(images, message):
    case = setting("class")
    x, recipe = images(torch.from_numpy(case.x)), RECIPES["pgd-at"](eps=0.1)
    with pytest.raises(ValueError, match=message):
        train(case.estimator, x, case.y, recipe=recipe)
    with pytest.raises(ValueError, match=message):
        recipe.prepare(case.estimator)(x, case.y)
    if len(x):
        with pytest.raises(ValueError, match=message):
            train(case.estimator, torch.from_numpy(case.x), case.y, validation=Validation(x, case.y), epochs=1)


def test_metatensors_are_trained_on_as_plain_tensors():
    plain, meta = setting("voxel-class"), setting("voxel-class")
    losses = []
    for case, wrap in ((plain, torch.as_tensor), (meta, MetaTensor)):
        torch.manual_seed(0)
        losses.append(
            RECIPES["vaft"](steps=2).prepare(case.estimator)(wrap(torch.from_numpy(case.x)), case.y, ids="abc")
        )
    assert type(losses[1]) is torch.Tensor and torch.equal(*losses)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"every": 0}, "every=0 epochs must be at least 1"),
    ({"x": torch.zeros(0, 1, 8, 6)}, "there are no validation cases"),
])  # fmt: skip
def test_validation_that_cannot_choose_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Validation(**{"x": torch.zeros(2, 1, 8, 6), "y": [0, 1], **arguments})


def test_free_training_of_images_of_another_size_begins_anew():
    case = setting("voxel-class")
    step = RECIPES["free"](eps=0.1).prepare(case.estimator)
    step(torch.from_numpy(case.x), case.y).backward()
    wider = torch.rand(3, 1, 8, 10)
    crafted = step.craft(batch_of(case.estimator, wider, np.zeros((3, 8, 10), dtype=int)))
    assert torch.equal(crafted, wider)
