"""Robust training inside MONAI's SupervisedTrainer: the same updates, events and options as its own."""

from __future__ import annotations

import copy

import pytest
import torch
from builders import setting
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from torch.utils.data import DataLoader

from medadv.adapters import engines
from medadv.adapters.pipelines import robust_update
from medadv.training import RECIPES
from medadv.training.base import batch_of
from medadv.training.updates import Updater

pytest.importorskip("ignite", reason="MONAI's trainers need pytorch-ignite")

RECIPE = {
    "natural": {}, "pgd-at": {"eps": 0.05, "steps": 2}, "trades": {"eps": 0.05, "steps": 2},
    "free": {"eps": 0.05, "replays": 2}, "vaft": {"steps": 2}, "bias-field": {"steps": 2},
}  # fmt: skip


def loader(case, size=2):
    labels = torch.from_numpy(case.y)
    items = [{"image": torch.from_numpy(x), "label": y} for x, y in zip(case.x, labels)]
    return DataLoader(items, batch_size=size)


def trainer(case, recipe, *, update=None, epochs=1, size=2, **options):
    optimizer = torch.optim.SGD(case.net.parameters(), lr=0.01)
    return SupervisedTrainer(**{
        "device": torch.device("cpu"), "max_epochs": epochs, "train_data_loader": loader(case, size),
        "network": case.estimator.model, "optimizer": optimizer, "loss_function": None, "decollate": False,
        "iteration_update": update or robust_update(case.estimator, recipe, seed=3), **options,
    })  # fmt: skip


def by_hand(case, recipe, epochs=1, size=2):
    step, optimizer = recipe.prepare(case.estimator, seed=3), torch.optim.SGD(case.net.parameters(), lr=0.01)
    iteration = 0
    for _ in range(epochs):
        for batch in loader(case, size):
            iteration += 1
            for _ in range(step.replays):
                ids = [f"{iteration}-{place}" for place in range(len(batch["image"]))]
                optimizer.zero_grad()
                step(batch["image"], batch["label"], ids=ids).backward()
                optimizer.step()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", RECIPE)
def test_an_epoch_of_the_trainer_is_the_same_updates_by_hand(name, dims):
    ours, theirs = (setting("voxel-class", dims, cases=5) for _ in range(2))
    recipe = RECIPES[name](**RECIPE[name])
    torch.manual_seed(7)
    by_hand(ours, recipe, epochs=2)
    before = copy.deepcopy(theirs.net.state_dict())
    torch.manual_seed(7)
    trainer(theirs, recipe, epochs=2).run()
    for key, value in ours.net.state_dict().items():
        assert torch.equal(value, theirs.net.state_dict()[key]), key
    assert not torch.equal(before["first.weight"], theirs.net.state_dict()["first.weight"])


@pytest.mark.parametrize(("name", "replays"), [("trades", 1), ("free", 2)])
def test_events_fire_in_order_and_find_what_monais_own_iteration_shows(name, replays):
    case = setting("class", cases=2)
    engine, seen = trainer(case, RECIPES[name](**RECIPE[name])), []
    for event in IterationEvents:
        if event in (IterationEvents.INNER_ITERATION_STARTED, IterationEvents.INNER_ITERATION_COMPLETED):
            continue  # of MONAI's sliding-window trainings
        engine.add_event_handler(event, lambda e, event=event: seen.append((event.name, sorted(e.state.output))))
    engine.run()
    with_prediction = ["image", "label", "pred"]
    each = [("FORWARD_COMPLETED", with_prediction), ("LOSS_COMPLETED", ["image", "label", "loss", "pred"]),
            ("BACKWARD_COMPLETED", ["image", "label", "loss", "pred"])]  # fmt: skip
    names = [event for event, _ in seen]
    assert names == [event for event, _ in each] * replays + ["MODEL_COMPLETED"]
    assert seen[0] == each[0] and seen[1] == each[1]
    output = engine.state.output
    assert output["pred"].shape == (2, 3) and output["loss"].ndim == 0 and output["image"].shape == case.x.shape


def test_the_prediction_is_of_the_clean_images_where_the_loss_has_both():
    case = setting("class", cases=2)
    case.net.drop.p = 0.0
    engine = trainer(case, RECIPES["trades"](eps=0.05, steps=1), update=None)
    twin = copy.deepcopy(case.net).train()
    engine.run()
    torch.testing.assert_close(engine.state.output["pred"], twin(torch.from_numpy(case.x)))


def test_weights_perturbed_on_the_way_give_the_updates_of_medadvs_own_loop():
    ours, theirs = (setting("class", cases=2) for _ in range(2))
    ours.net.drop.p = theirs.net.drop.p = 0.0  # a loader draws from the generator that dropout draws from
    recipe = RECIPES["pgd-at"](eps=0.05, steps=1)
    update = robust_update(theirs.estimator, recipe, seed=3, weight_perturbation=0.05)
    trainer(theirs, recipe, update=update).run()
    optimizer = torch.optim.SGD(ours.net.parameters(), lr=0.01)
    own = Updater(recipe.prepare(ours.estimator, seed=3), optimizer, weight_perturbation=0.05)
    own(batch_of(ours.estimator, torch.from_numpy(ours.x), ours.y, ["1-0", "1-1"]))
    assert torch.equal(ours.net.first.weight, theirs.net.first.weight)


def test_gradients_of_several_batches_are_accumulated():
    case, whole = setting("class", cases=4), setting("class", cases=4)
    for net in (case.net, whole.net):
        net.drop.p = 0.0
        net.norm.eval()
        net.norm.train = lambda mode=True, norm=net.norm: norm
    trainer(case, RECIPES["natural"](), accumulation_steps=2).run()
    trainer(whole, RECIPES["natural"](), size=4).run()
    torch.testing.assert_close(case.net.first.weight, whole.net.first.weight)


def test_mixed_precision_gives_a_prediction_of_half_precision_and_trains():
    case = setting("class", cases=4)
    before = case.net.first.weight.detach().clone()
    engine = trainer(case, RECIPES["pgd-at"](eps=0.05, steps=1), amp=True)
    engine.run()
    assert engine.state.output["pred"].dtype == torch.bfloat16
    assert case.net.first.weight.dtype == torch.float32 and not torch.equal(case.net.first.weight, before)


def test_a_reference_with_a_channel_and_a_prepare_batch_of_ones_own_are_honoured():
    case, plain = setting("voxel-class", cases=2), setting("voxel-class", cases=2)

    def prepare(batch, device, non_blocking, **kwargs):
        assert non_blocking is True
        return batch["image"].to(device), batch["label"][:, None].float()

    torch.manual_seed(0)
    trainer(case, RECIPES["natural"](), prepare_batch=prepare, non_blocking=True).run()
    torch.manual_seed(0)
    trainer(plain, RECIPES["natural"]()).run()
    assert torch.equal(case.net.last.weight, plain.net.last.weight)


def test_the_state_of_a_recipe_is_part_of_a_checkpoint():
    case = setting("class", cases=2)
    update = robust_update(case.estimator, RECIPES["free"](eps=0.05), seed=3)
    trainer(case, None, update=update).run()
    again = robust_update(case.estimator, RECIPES["free"](eps=0.05), seed=3)
    again.load_state_dict(update.state_dict())
    batch = batch_of(case.estimator, torch.from_numpy(case.x), case.y)
    assert torch.equal(again.step.craft(batch), update.step.craft(batch))
    assert not torch.equal(again.step.craft(batch), batch.x)


def test_a_trainer_that_does_not_fit_the_estimator_is_refused():
    case, other = setting("class", cases=4), setting("class", cases=4)
    natural = robust_update(case.estimator, RECIPES["natural"]())
    with pytest.raises(ValueError, match=r"network of SupervisedTrainer \(Net\) is not that of the est"):
        trainer(case, None, update=natural, network=other.net).run()
    free = robust_update(case.estimator, RECIPES["free"](eps=0.05))
    with pytest.raises(ValueError, match="replays each batch 4 times .* accumulation_steps=2 batches; set it to 1"):
        trainer(case, None, update=free, accumulation_steps=2).run()
    with pytest.raises(ValueError, match="further arguments for the network"):
        trainer(case, None, update=natural, prepare_batch=lambda batch, *_, **__: (*batch.values(), (1,), {})).run()
    with pytest.raises(ValueError, match="no label"):
        trainer(case, None, update=natural, prepare_batch=lambda batch, *_, **__: (batch["image"], None)).run()
    with pytest.raises(ValueError, match="HAT needs a naturally trained network; give helper="):
        robust_update(case.estimator, RECIPES["hat"](eps=0.05))


def test_without_ignite_the_way_to_install_it_is_named(monkeypatch):
    monkeypatch.setattr(engines, "HAS_IGNITE", False)
    with pytest.raises(ImportError, match=r"pip install 'medadv\[engines\]'"):
        robust_update(setting("class").estimator, RECIPES["natural"]())
