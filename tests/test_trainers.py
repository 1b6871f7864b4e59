"""MONAI's trainer with every recipe: the updates of medadv's own loop, in one process and in several."""

from __future__ import annotations

import copy

import pytest
import torch
from builders import setting
from monai.handlers import CheckpointLoader, CheckpointSaver, MeanDice, from_engine
from monai.transforms import AsDiscreted
from test_pipelines import by_hand, loader
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from medadv.adapters import MonaiSegmenter, engines
from medadv.adapters.evaluators import AdversarialEvaluator
from medadv.adapters.trainers import AdversarialTrainer
from medadv.attacks import create
from medadv.training import RECIPES

pytest.importorskip("ignite", reason="MONAI's trainers need pytorch-ignite")

DEVICE = torch.device("cpu")
BALL = {"eps": 0.05, "steps": 1}
OPTIONS = {
    "natural": {}, "fast": {"eps": 0.05}, "free": {"eps": 0.05, "replays": 2}, "mpadvt": {},
    "vaft": {"steps": 1}, "bias-field": {"steps": 1}, "maadvt": {"steps": 1},
    "attack": {"attack": "pgd-dice", "eps": 0.05, "options": {"max_iter": 1}},
}  # fmt: skip


def recipe_of(name, case):
    helper = {"helper": copy.deepcopy(case.estimator)} if name == "hat" else {}
    return RECIPES[name](**{**OPTIONS.get(name, BALL), **helper})


def quiet(case):
    """Without dropout and with batch norm as in inference, so that nothing but the cases decides."""
    case.net.drop.p = 0.0
    case.net.norm.eval()
    case.net.norm.train = lambda mode=True: case.net.norm
    return case


def trainer(case, recipe, *, epochs=1, size=2, **options):
    optimizer = torch.optim.SGD(case.net.parameters(), lr=0.01)
    return AdversarialTrainer(
        DEVICE, epochs, options.pop("data", loader(case, size)), case.estimator, optimizer, recipe,
        **{"seed": 3, "decollate": False, **options},
    )  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_as_it_does_by_hand(name):
    ours, theirs = (setting("voxel-class", cases=4) for _ in range(2))
    before = ours.net.last.weight.detach().clone()
    torch.manual_seed(7)
    by_hand(ours, recipe_of(name, ours))
    torch.manual_seed(7)
    engine = trainer(theirs, recipe_of(name, theirs))
    engine.run()
    assert engine.state.iteration == 2 and torch.isfinite(engine.state.output["loss"])
    assert torch.equal(ours.net.last.weight, theirs.net.last.weight)
    assert not torch.equal(before, theirs.net.last.weight)


@pytest.mark.parametrize("name", ["free", "hat"])
def test_a_training_goes_on_from_the_files_of_checkpoint_saver(name, tmp_path):
    whole, first, second = (quiet(setting("voxel-class", cases=4)) for _ in range(3))

    def parts(case, engine):
        return {"net": case.net, "optimizer": engine.optimizer, "trainer": engine, "recipe": engine.update}

    trainer(whole, recipe_of(name, whole), epochs=2).run()
    begun = trainer(first, recipe_of(name, first))
    CheckpointSaver(str(tmp_path), parts(first, begun), save_final=True, final_filename="last.pt").attach(begun)
    begun.run()
    with torch.no_grad():
        second.net.last.weight.zero_()
    resumed = trainer(second, recipe_of(name, second), epochs=2)
    CheckpointLoader(str(tmp_path / "last.pt"), parts(second, resumed)).attach(resumed)
    resumed.run()
    assert resumed.state.epoch == 2 and torch.equal(whole.net.last.weight, second.net.last.weight)
    assert not torch.equal(first.net.last.weight, second.net.last.weight)


@pytest.fixture
def one_process(tmp_path):
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("name", ["pgd-at", "trades", "free"])
@pytest.mark.parametrize("wrapped", ["model", "network"])
def test_a_network_wrapped_for_several_processes_trains_as_it_does_alone(name, wrapped, one_process):
    alone, ours = (setting("voxel-class", cases=4) for _ in range(2))
    torch.manual_seed(7)
    trainer(alone, recipe_of(name, alone), epochs=2, weight_perturbation=0.01).run()
    torch.manual_seed(7)
    network = DistributedDataParallel(getattr(ours.estimator, wrapped))
    trainer(ours, recipe_of(name, ours), epochs=2, network=network, weight_perturbation=0.01).run()
    for key, value in alone.net.state_dict().items():
        assert torch.equal(value, ours.net.state_dict()[key]), key


def of_two(rank, folder, name, accumulated):
    """One of two processes, which has every second case."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    case = quiet(setting("voxel-class", cases=4))
    items = loader(case).dataset[rank::2]
    network = DistributedDataParallel(case.estimator.model)
    data = torch.utils.data.DataLoader(items, batch_size=1)
    recipe = recipe_of(name, case)
    trainer(case, recipe, data=data, network=network, accumulation_steps=accumulated).run()
    torch.save(case.net.state_dict(), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_train_what_one_does_on_the_batches_of_both(tmp_path):
    multiprocessing.spawn(of_two, (str(tmp_path), "trades", 2), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    alone = quiet(setting("voxel-class", cases=4))
    begun = copy.deepcopy(alone.net.state_dict())
    trainer(alone, recipe_of("trades", alone), accumulation_steps=2).run()
    for key, value in alone.net.state_dict().items():
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], value, msg=key)
    assert not torch.allclose(first["last.weight"], begun["last.weight"])


@pytest.mark.parametrize(("changes", "message"), [
    ({"loss_function": print}, "takes no loss_function=: the loss is the recipe's"),
    ({"inferer": print}, "takes no inferer="), ({"iteration_update": print}, "takes no iteration_update="),
    ({"compile": True}, "takes no compile=: compile the network before the estimator is made"),
])  # fmt: skip
def test_arguments_that_a_recipe_leaves_no_room_for_are_refused(changes, message):
    with pytest.raises(TypeError, match=message):
        trainer(setting("voxel-class"), RECIPES["natural"](), **changes)


def test_networks_that_are_not_the_estimators_are_refused(one_process):
    case, other = setting("voxel-class"), setting("voxel-class")
    with pytest.raises(ValueError, match=r"network of AdversarialTrainer \(Net\) is not that of the estimator"):
        trainer(case, RECIPES["natural"](), network=other.net)
    inside = DistributedDataParallel(other.net)
    other.estimator = MonaiSegmenter(inside, case.estimator.input_shape, decision=case.decision)
    with pytest.raises(ValueError, match="wrapped in DistributedDataParallel before the estimator was made"):
        trainer(other, RECIPES["natural"]())
    with pytest.raises(ValueError, match="HAT needs a naturally trained network; give helper="):
        trainer(case, RECIPES["hat"](eps=0.05))


def test_without_ignite_the_way_to_install_it_is_named(monkeypatch):
    monkeypatch.setattr(engines, "HAS_IGNITE", False)
    with pytest.raises(ImportError, match=r"pip install 'medadv\[engines\]'"):
        trainer(setting("class"), RECIPES["natural"]())


def test_an_evaluator_takes_the_wrapped_network(one_process):
    case = setting("voxel-class")
    attack = create("pgd-dice", case.estimator, eps=0.1, max_iter=2)
    found = []
    for network in (case.estimator.model, DistributedDataParallel(case.estimator.model)):
        metric = MeanDice(output_transform=from_engine(["pred", "label"]), num_classes=3)
        hard = AsDiscreted("pred", argmax=True)
        engine = AdversarialEvaluator(
            DEVICE, loader(case), network, attack=attack, postprocessing=hard, key_val_metric={"dice": metric},
            prepare_batch=lambda batch, *_, **__: (batch["image"], batch["label"][:, None]),
        )  # fmt: skip
        engine.run()
        found.append(engine.state.metrics)
    assert found[0] == found[1] and found[0]["dice_robust"] < found[0]["dice"]
