"""Robust metrics in MONAI's evaluators: those of the adversarial images, by the evaluator's own post-processing."""

from __future__ import annotations

import copy
import csv
import logging

import nibabel
import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from builders import SIDE, Net, setting
from monai.data import DataLoader as MonaiLoader
from monai.data import MetaTensor
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.handlers import CheckpointSaver, MeanDice, MetricsSaver, StatsHandler, ValidationHandler, from_engine
from monai.inferers import SlidingWindowInferer
from monai.transforms import AsDiscrete, AsDiscreted, Compose, Invertd, Rotate90d, SaveImaged
from torch.utils.data import DataLoader

from medadv.adapters import MonaiSegmenter, engines
from medadv.adapters.counterparts import case_names
from medadv.adapters.evaluators import AdversarialEvaluator, RobustMetrics
from medadv.attacks import create
from medadv.decisions import Multiclass

Events = pytest.importorskip("ignite.engine", reason="MONAI's evaluators need pytorch-ignite").Events
Accuracy = pytest.importorskip("ignite.metrics").Accuracy

DEVICE = torch.device("cpu")
SHOWN = from_engine(["pred", "label"])


def dice(**options):
    return MeanDice(output_transform=SHOWN, **options)


def loader(case, size=2, key="image"):
    items = [{key: torch.from_numpy(x), "label": torch.from_numpy(y)[None]} for x, y in zip(case.x, case.y)]
    return DataLoader(items, batch_size=size)


def settings(case, **changes):
    hard = Compose([AsDiscreted("pred", argmax=True, to_onehot=3), AsDiscreted("label", to_onehot=3)])
    return {
        "device": DEVICE, "val_data_loader": loader(case), "network": case.estimator.model, "postprocessing": hard,
        "key_val_metric": {"val_mean_dice": dice()}, **changes,
    }  # fmt: skip


def attack_on(case, **options):
    return create("pgd-dice", case.estimator, **{"eps": 0.1, "max_iter": 3, **options})


def evaluator(case, attack=None, **changes):
    return AdversarialEvaluator(**settings(case, attack=attack or attack_on(case), **changes))


def by_hand(case, attack, x=None):
    """MONAI's Dice of each case, clean or adversarial, with no engine at all."""
    metric = MeanDice().metric_fn
    images = torch.from_numpy(case.x)
    if attack is not None:
        images = attack.perturb(images, case.y, ids=case_names(images))
    with torch.no_grad():
        logits = case.estimator.model.eval()(images)
    hard = AsDiscrete(argmax=True, to_onehot=3)
    return metric([hard(z) for z in logits], [AsDiscrete(to_onehot=3)(torch.from_numpy(y)[None]) for y in case.y])


@pytest.mark.parametrize("dims", [2, 3])
def test_one_run_gives_the_metric_of_clean_and_of_adversarial_images(dims):
    case = setting("voxel-class", dims, cases=5)
    clean, robust = by_hand(case, None), by_hand(case, attack_on(case))
    case.estimator.model.train()
    engine = evaluator(case)
    engine.run()
    found = engine.state.metrics
    assert found["val_mean_dice"] == pytest.approx(clean.mean().item(), abs=1e-6)
    assert found["val_mean_dice_robust"] == pytest.approx(robust.mean().item(), abs=1e-6)
    assert found["val_mean_dice_robust"] < found["val_mean_dice"] - 0.1
    torch.testing.assert_close(engine.state.metric_details["val_mean_dice_robust"], robust)
    assert case.net.training and all(p.grad is None and p.requires_grad for p in case.net.parameters())


def test_the_handler_gives_the_same_in_a_plain_evaluator_wherever_it_stands(tmp_path, caplog):
    case = setting("voxel-class", cases=4)
    expected = evaluator(case)
    expected.run()
    robust = RobustMetrics(attack_on(case), {"val_mean_dice_robust": dice()})
    saver = MetricsSaver(str(tmp_path), metric_details="*", summary_ops="*", batch_transform=lambda batch: [{}, {}])
    engine = SupervisedEvaluator(**settings(case, val_handlers=[saver, StatsHandler(name="printed"), robust]))
    logging.getLogger("printed").addHandler(caplog.handler)  # MONAI's loggers don't propagate
    with caplog.at_level(logging.INFO, logger="printed"):
        engine.run()
    logging.getLogger("printed").removeHandler(caplog.handler)
    assert engine.state.metrics == expected.state.metrics
    assert "val_mean_dice_robust: " in caplog.text and "val_mean_dice: " in caplog.text
    rows = dict(csv.reader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert {name: float(value) for name, value in rows.items()} == engine.state.metrics
    raw = list(csv.DictReader((tmp_path / "val_mean_dice_robust_raw.csv").read_text().splitlines()))
    details = engine.state.metric_details["val_mean_dice_robust"]
    assert [float(row["class1"]) for row in raw] == pytest.approx(details[:, 1].tolist(), abs=1e-4)
    assert (tmp_path / "val_mean_dice_robust_summary.csv").exists()


def test_names_and_the_best_model_follow_the_robust_key_metric_or_the_clean_one():
    case = setting("voxel-class")
    for robust, name in ((True, "val_mean_dice_worst"), (False, "val_mean_dice")):
        more = {"no_background": dice(include_background=False)}
        engine = evaluator(case, additional_metrics=more, suffix="_worst", key_is_robust=robust)
        engine.run()
        names = {"val_mean_dice", "no_background"}
        assert set(engine.state.metrics) == names | {f"{known}_worst" for known in names}
        assert engine.state.key_metric_name == name and engine.state.best_metric == engine.state.metrics[name]


def test_a_training_keeps_the_checkpoint_of_the_best_robust_metric(tmp_path):
    case = setting("voxel-class")
    saver = CheckpointSaver(str(tmp_path), {"net": case.net}, save_key_metric=True, key_metric_filename="best.pt")
    validator = evaluator(case, val_handlers=[saver])
    trainer = SupervisedTrainer(
        DEVICE, 2, loader(case), case.estimator.model, torch.optim.SGD(case.net.parameters(), 0.0),
        lambda output, target: torch.nn.functional.cross_entropy(output, target[:, 0]),
        train_handlers=[ValidationHandler(1, validator)],
    )  # fmt: skip
    seen = []
    validator.add_event_handler(Events.EPOCH_COMPLETED, lambda e: seen.append(e.state.metrics["val_mean_dice_robust"]))
    trainer.run()
    assert len(seen) == 2 and (tmp_path / "best.pt").exists()
    assert validator.state.best_metric == max(seen) and validator.state.best_metric_epoch == 1 + int(np.argmax(seen))


def test_clean_output_is_as_in_monai_and_adversarial_output_goes_to_handlers_of_its_own(tmp_path):
    case = setting("voxel-class", cases=2)
    plain = SupervisedEvaluator(**settings(case))
    plain.run()
    saver = MetricsSaver(str(tmp_path))
    engine = evaluator(case, adversarial_handlers=[saver])
    engine.run()
    for ours, theirs in zip(engine.state.output, plain.state.output, strict=True):
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    shown = engine.robust.engine.state.output
    for i, (adversarial, clean) in enumerate(zip(shown, engine.state.output, strict=True)):
        moved = (adversarial["image"] - torch.from_numpy(case.x[i])).abs().max()
        assert 0 < moved <= 0.1 + 1e-6
        assert adversarial["pred"].shape == clean["pred"].shape and not torch.equal(adversarial["pred"], clean["pred"])
    assert "val_mean_dice_robust" in (tmp_path / "metrics.csv").read_text()


@pytest.mark.parametrize("decollate", [True, False])
def test_meta_data_and_post_processing_with_invert_and_saved_files(decollate, tmp_path):
    turn = Compose([Rotate90d(["image", "label"], k=1)])
    side, net = (6, 6), torch.nn.Conv2d(1, 3, 1)  # class 0, 1, 2 as the image grows
    with torch.no_grad():
        net.weight.copy_(torch.tensor([-20.0, 0.0, 20.0]).view(3, 1, 1, 1))
        net.bias.copy_(torch.tensor([7.0, 0.0, -14.0]))
    estimator = MonaiSegmenter(net, (1, *side), decision=Multiclass(3, background=0))
    noise = torch.Generator().manual_seed(0)
    items = []
    for number in range(2):
        image = MetaTensor(torch.rand(1, *side, generator=noise), meta={"filename_or_obj": f"scan{number}.nii.gz"})
        items.append(turn({"image": image, "label": (image > 0.5).long() + (image > 0.8)}))
    seen = []
    post = [AsDiscreted(["pred", "label"], argmax=[True, False], to_onehot=3)]
    if decollate:
        post += [
            lambda data: (seen.append(data["pred"].applied_operations), data)[1],
            Invertd("pred", turn, orig_keys="image"),
            SaveImaged("pred", output_dir=tmp_path, output_postfix="seg", separate_folder=False, print_log=False),
        ]
    engine = AdversarialEvaluator(
        DEVICE, MonaiLoader(items, batch_size=2), net, decollate=decollate,
        attack=create("pgd-dice", estimator, eps=0.3, max_iter=3),
        postprocessing=Compose(post if decollate else []), key_val_metric={"dice": dice(num_classes=3)},
    )  # fmt: skip
    engine.run()
    if not decollate:
        assert engine.state.output["pred"].shape == engine.robust.engine.state.output["pred"].shape == (2, 3, *side)
        assert isinstance(engine.robust.engine.state.output["image"], MetaTensor)
        return
    assert len(seen) == 4 and all(len(operations) == 1 for operations in seen)
    for number, (clean, robust) in enumerate(zip(engine.state.output, engine.robust.engine.state.output, strict=True)):
        kept = torch.from_numpy(nibabel.load(tmp_path / f"scan{number}_seg.nii.gz").get_fdata()).movedim(-1, 0).float()
        saved = clean["pred"].as_tensor()
        assert torch.equal(kept.reshape(saved.shape), saved) and not torch.equal(saved, robust["pred"].as_tensor())


def test_draws_depend_on_the_file_or_on_the_values_of_a_case_alone():
    images = torch.rand(3, 1, 4, 4)
    named = MetaTensor(images, meta={"filename_or_obj": ["a.nii", "b.nii", "c.nii"]})
    assert case_names(named) == ["a.nii", "b.nii", "c.nii"]
    names = case_names(images)
    assert len(set(names)) == 3 and case_names(images[[2, 0]]) == [names[2], names[0]]
    one = MetaTensor(images[:1], meta={"filename_or_obj": "a.nii"})
    assert case_names(one) == ["a.nii"] and case_names(MetaTensor(images)) == names


@pytest.mark.parametrize("size", [1, 3])
def test_the_batch_a_case_is_in_changes_nothing(size):
    case = setting("voxel-class", cases=4, dtype=np.float64)
    found = []
    for batch in (size, 2):
        engine = evaluator(case, attack_on(case, num_random_init=1), val_data_loader=loader(case, batch))
        engine.run()
        found.append(engine.state.metric_details["val_mean_dice_robust"])
    assert torch.equal(*found)


def test_what_prepare_batch_non_blocking_and_the_modes_of_autograd_say_is_honoured():
    case = setting("voxel-class")
    expected = evaluator(case)
    expected.run()

    def prepare(batch, device, non_blocking, **kwargs):
        assert non_blocking is True
        return batch["scan"].to(device), batch["label"].to(device)

    engine = evaluator(case, val_data_loader=loader(case, key="scan"), prepare_batch=prepare, non_blocking=True)
    with torch.no_grad():
        engine.run()
    assert engine.state.metrics == expected.state.metrics


@pytest.mark.filterwarnings("ignore:User provided device_type")
def test_on_a_cpu_mixed_precision_is_none_as_in_monai():
    case = setting("voxel-class")
    precise, mixed = evaluator(case), evaluator(case, amp=True)
    precise.run()
    mixed.run()
    assert mixed.state.metrics == precise.state.metrics


def test_a_sliding_window_of_the_evaluator_or_of_the_model_is_the_same():
    case = setting("voxel-class")
    window = {"roi_size": (4, 4), "sw_batch_size": 2, "overlap": 0.5, "mode": "gaussian"}
    estimator = MonaiSegmenter(case.net, (1, *SIDE[2]), decision=case.decision, inferer=SlidingWindowInferer(**window))
    attack = create("pgd-dice", estimator, eps=0.1, max_iter=2)
    same = SlidingWindowInferer(**{**window, "roi_size": [4, 4], "sw_batch_size": 4})
    inside = evaluator(case, attack, network=estimator.model)
    outside = evaluator(case, attack, network=case.net, inferer=same)
    inside.run()
    outside.run()
    for name, value in inside.state.metrics.items():
        assert outside.state.metrics[name] == pytest.approx(value, abs=1e-6)
    for wrong, network, message in [
        (SlidingWindowInferer(**{**window, "overlap": 0.25}), case.net, "or other settings; give the estimator"),
        (None, case.net, "SimpleInferer, the estimator that is attacked with SlidingWindowInferer"),
        (same, estimator.model, "has its inferer inside, and SlidingWindowInferer would run around it"),
    ]:
        with pytest.raises(ValueError, match=message):
            evaluator(case, attack, network=network, inferer=wrong).run()


def test_a_compiled_network_is_attacked_as_it_is():
    case = setting("voxel-class")
    expected, engine = evaluator(case), evaluator(case, compile=True, compile_kwargs={"backend": "eager"})
    expected.run()
    engine.run()
    assert engine.state.metrics == pytest.approx(expected.state.metrics, abs=1e-6)


def test_every_epoch_is_attacked_anew_and_handlers_are_told():
    case = setting("voxel-class")
    told = []

    class Listener:
        def attach(self, engine):
            for event in ("STARTED", "EPOCH_STARTED", "ITERATION_COMPLETED", "EPOCH_COMPLETED", "COMPLETED"):
                engine.add_event_handler(Events[event], lambda e, event=event: told.append((event, e.state.epoch)))

    engine = evaluator(case, adversarial_handlers=[Listener()])
    for epoch in (1, 2):
        engine.run(epoch)
    each = ["STARTED", "EPOCH_STARTED", "ITERATION_COMPLETED", "ITERATION_COMPLETED", "EPOCH_COMPLETED", "COMPLETED"]
    assert [event for event, _ in told] == each * 2
    assert [epoch for event, epoch in told if event == "EPOCH_COMPLETED"] == [1, 2]
    assert len(engine.state.metric_details["val_mean_dice_robust"]) == 3


def test_a_loader_of_unknown_length_gives_the_same():
    case = setting("voxel-class")
    batches = list(loader(case))
    expected, engine = evaluator(case), evaluator(case, val_data_loader=(copy.copy(batch) for batch in batches))
    expected.run()
    engine.run()
    assert engine.state.metrics == expected.state.metrics
    assert engine.state.best_metric == engine.state.metrics["val_mean_dice_robust"]


def test_the_engine_is_as_before_if_post_processing_fails():
    case = setting("voxel-class", cases=2)
    engine = evaluator(case)
    engine.add_event_handler(IterationEvents.MODEL_COMPLETED, lambda e: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.run()
    output = engine.state.output
    assert isinstance(output, dict) and torch.equal(output["image"], torch.from_numpy(case.x))


@pytest.mark.parametrize(("changes", "message"), [
    ({"mode": "train"}, "mode='train', attacks on a network in inference mode"),
    ({"prepare_batch": lambda batch, *_, **__: (batch["image"], batch["label"], (1,), {})}, "takes images alone"),
    ({"network": Net(2, 3, voxels=True)}, r"network of AdversarialEvaluator \(Net\) is not that of the estimator"),
    ({"key_val_metric": None}, "key_val_metric is empty"), ({"suffix": ""}, "suffix is empty"),
])  # fmt: skip
def test_an_evaluator_that_can_not_be_right_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        evaluator(setting("voxel-class"), **changes).run()


def test_attacks_and_metrics_that_do_not_fit_are_refused():
    case = setting("voxel-class")
    with pytest.raises(ValueError, match="a targeted attack needs the diagnosis wanted"):
        evaluator(case, attack_on(case, targeted=True))
    with pytest.raises(TypeError, match=r"attack is of type str; give one made by medadv.attacks.create"):
        evaluator(case, "pgd")
    with pytest.raises(TypeError, match="takes no iteration_update="):
        evaluator(case, iteration_update=print)
    with pytest.raises(ValueError, match="'deformation' moves or covers what the labels show"):
        evaluator(case, create("deformation", case.estimator, max_iter=2)).run()
    shared = dice()
    robust = RobustMetrics(attack_on(case), {"robust": shared})
    with pytest.raises(ValueError, match="metric 'robust' is one of the evaluator's own"):
        SupervisedEvaluator(**settings(case, key_val_metric={"dice": shared}, val_handlers=[robust]))
    with pytest.raises(TypeError, match="are of a SupervisedEvaluator, not of SupervisedTrainer"):
        robust.attach(object.__new__(SupervisedTrainer))
    stock = PyTorchClassifier(torch.nn.Flatten(), torch.nn.CrossEntropyLoss(), (1, 8, 6), 48, clip_values=(0, 1))
    with pytest.raises(TypeError, match="PyTorchClassifier is no estimator of medadv"):
        evaluator(case, create("fgsm", stock, eps=0.1), network=stock.model).run()
    windowed = MonaiSegmenter(case.net, (1, *SIDE[2]), decision=case.decision, input_transform=lambda x: 2 * x)
    with pytest.raises(ValueError, match="input_transform that the evaluator's network would not see"):
        evaluator(case, create("fgsm", windowed, eps=0.1), network=case.net).run()


def test_without_ignite_the_way_to_install_it_is_named(monkeypatch):
    monkeypatch.setattr(engines, "HAS_IGNITE", False)
    case = setting("voxel-class")
    with pytest.raises(ImportError, match=r"pip install 'medadv\[engines\]'"):
        evaluator(case)


def test_metrics_of_ignite_and_of_classifiers_serve_as_well():
    case = setting("class", cases=6)
    attack = create("pgd", case.estimator, eps=0.2, max_iter=3)
    items = [{"image": torch.from_numpy(x), "label": y} for x, y in zip(case.x, torch.from_numpy(case.y))]
    accuracy = Accuracy(output_transform=lambda output: (output["pred"], output["label"]))
    engine = AdversarialEvaluator(
        DEVICE, DataLoader(items, batch_size=4), case.estimator.model, attack=attack, decollate=False,
        key_val_metric={"accuracy": accuracy},
    )  # fmt: skip
    engine.run()
    images = torch.from_numpy(case.x)
    adversarial = attack.perturb(images, case.y, ids=case_names(images)).numpy()
    expected = {"accuracy": case.scores(case.x).mean(), "accuracy_robust": case.scores(adversarial).mean()}
    assert engine.state.metrics == pytest.approx(expected) and expected["accuracy_robust"] < 1
