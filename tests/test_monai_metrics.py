"""Metrics of monai.metrics in the tables: per case and class, with what is unscored or infinite counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from builders import setting
from monai.metrics import (
    AbsoluteVolumeDifferenceMetric,
    CalibrationErrorMetric,
    ConfusionMatrixMetric,
    CumulativeIterationMetric,
    DiceMetric,
    GeneralizedDiceScore,
    HausdorffDistanceMetric,
    MeanIoU,
    MSEMetric,
    ROCAUCMetric,
    SurfaceDiceMetric,
    SurfaceDistanceMetric,
)

from medadv.benchmarks import evaluate
from medadv.benchmarks.monai_metrics import MonaiMetrics, summary
from medadv.decisions import Multiclass, Multilabel

CLASSES = ("background", "liver", "tumour")
METRICS = {
    "dice": (DiceMetric(), CLASSES), "iou": (MeanIoU(include_background=False), CLASSES[1:]),
    "hd95": (HausdorffDistanceMetric(percentile=95), CLASSES[1:]), "asd": (SurfaceDistanceMetric(), CLASSES[1:]),
    "nsd": (SurfaceDiceMetric([1.0, 1.0]), CLASSES[1:]), "volume": (AbsoluteVolumeDifferenceMetric(), CLASSES),
    "gdice": (GeneralizedDiceScore(), CLASSES),
}  # fmt: skip


def masks(decision, cases=4, spatial=(12, 10)):
    generator = torch.Generator().manual_seed(0)
    shape = (cases, *spatial) if isinstance(decision, Multiclass) else (cases, 3, *spatial)
    bound = 3 if isinstance(decision, Multiclass) else 2
    return tuple(torch.randint(0, bound, shape, generator=generator) for _ in range(2))


def computed(metric, decision, hard, target, spacing=None, classes=CLASSES):
    found = MonaiMetrics({"m": metric}, decision, classes, segments=True, spacing=spacing)
    return found(hard, target, torch.ones_like(target, dtype=torch.bool)), found


@pytest.mark.parametrize("spacing", [None, (2.0, 0.5)])
@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("decision", [Multiclass(3, background=0), Multilabel(3)], ids=["classes", "labels"])
def test_values_are_what_the_metric_buffers(name, decision, spacing):
    metric, classes = METRICS[name]
    if isinstance(decision, Multilabel) and getattr(metric, "include_background", True) is False:
        pytest.skip("it would leave out the first label, see below")
    hard, target = masks(decision)
    metric.reset()
    values, _ = computed(metric, decision, hard, target, spacing)
    options = {"spacing": list(spacing)} if spacing and name in ("hd95", "asd", "nsd") else {}
    theirs = metric(decision.one_hot(hard).float(), decision.one_hot(target).float(), **options)
    metric.reset()
    unit = ("_mm" if spacing else "_voxels") if name in ("hd95", "asd") else ""
    labels = ["m"] if name == "gdice" else [f"m{unit}:{label}" for label in classes]  # which is over all classes
    assert list(values) == labels
    np.testing.assert_allclose(np.stack(list(values.values()), 1), theirs.reshape(len(hard), -1).double())


def test_the_metric_given_is_not_touched():
    metric = DiceMetric()
    decision = Multiclass(3, background=0)
    hard, target = masks(decision)
    metric(decision.one_hot(hard[:1]).float(), decision.one_hot(target[:1]).float())
    computed(metric, decision, hard, target)
    assert len(metric.get_buffer()) == 1


def test_ignored_voxels_do_not_count():
    decision = Multiclass(3, background=0)
    hard, target = masks(decision)
    valid = torch.ones_like(target, dtype=torch.bool)
    valid[..., :5] = False
    table = MonaiMetrics({"m": DiceMetric(include_background=False)}, decision, CLASSES, segments=True)
    alone, _ = computed(DiceMetric(include_background=False), decision, hard[..., 5:], target[..., 5:])
    for name, values in table(hard, target, valid).items():
        np.testing.assert_allclose(values, alone[name])


def test_a_missed_structure_is_infinite_an_absent_one_unscored_and_both_are_counted():
    decision = Multiclass(3, background=0)
    target = torch.zeros(3, 8, 8, dtype=torch.int64)
    target[:2, 2:5, 2:5] = 1  # the third case has no liver, none has a tumour
    hard = target.clone()
    hard[0] = 0  # missed
    values, table = computed(HausdorffDistanceMetric(), decision, hard, target)
    before, _ = computed(HausdorffDistanceMetric(), decision, target, target)
    np.testing.assert_array_equal(values["m_voxels:liver"], [np.inf, 0, np.nan])
    rows = table.rows(["a", "b", "c"], before, values).assign(attack="pgd")
    assert (rows.reference == 0).all()
    found = summary(rows, ["attack"]).set_index("endpoint")
    liver, tumour = found.loc["m_voxels:liver"], found.loc["m_voxels:tumour"]
    assert (liver.n_cases, liver.clean_infinite, liver.clean_unscored) == (3, 0, 1)
    assert (liver.adversarial_infinite, liver.adversarial_unscored, liver.adversarial) == (1, 1, 0.0)
    assert tumour.adversarial_unscored == 3 and np.isnan(tumour.adversarial)  # MONAI aggregates this to 0


def test_evaluate_writes_them_as_endpoints_of_every_attack_and_of_the_worst_case():
    case = setting("voxel-class", cases=4)
    metrics = {"iou": MeanIoU(), "hd95": HausdorffDistanceMetric(percentile=95)}
    board = evaluate(case.estimator, (case.x, case.y), ["pgd-dice"], [0.2], metrics=metrics)
    ours = board.endpoints[board.endpoints.endpoint.str.match("(iou|hd95)")]
    assert set(ours.endpoint) == {f"iou:class {c}" for c in range(3)} | {f"hd95_voxels:class {c}" for c in (1, 2)}
    assert set(ours.attack) == {"none", "noise", "pgd-dice", "worst-case"}
    clean = ours[(ours.attack == "none") & (ours.endpoint == "iou:class 1")].clean.to_numpy()
    said = case.decision.one_hot(torch.from_numpy(case.estimator.predict(case.x)).argmax(1)).float()
    truth = case.decision.one_hot(torch.from_numpy(case.y)).float()
    np.testing.assert_allclose(clean, MeanIoU()(said, truth)[:, 1].numpy(), rtol=1e-6)
    worst = board.cases[board.cases.attack == "worst-case"].set_index("case").worst_attack
    for name, attack in worst.items():
        pair = [ours[(ours.case == name) & (ours.attack == a)].adversarial.to_numpy() for a in (attack, "worst-case")]
        np.testing.assert_array_equal(*pair)
    means = board.endpoint_summary()
    row = means[(means.attack == "pgd-dice") & (means.endpoint == "iou:class 1")].iloc[0]
    expected = ours[(ours.attack == "pgd-dice") & (ours.endpoint == "iou:class 1")].adversarial
    assert row.adversarial == pytest.approx(expected.mean()) and row.n_cases == 4 and row.adversarial < row.clean


def test_a_metric_of_ones_own_serves():
    class Share(CumulativeIterationMetric):
        """Share of the voxels that are predicted."""

        def _compute_tensor(self, y_pred, y=None, **kwargs):
            return y_pred.flatten(2).mean(2)

        def aggregate(self):
            return self.get_buffer()

    decision = Multiclass(3, background=0)
    hard, target = masks(decision)
    values, table = computed(Share(), decision, hard, target)
    np.testing.assert_allclose(values["m:liver"], (hard == 1).flatten(1).float().mean(1), rtol=1e-6)
    assert np.isnan(table.rows(list("abcd"), values, values).reference).all()


@pytest.mark.parametrize(("metric", "message"), [
    (ROCAUCMetric(), r"'m' \(ROCAUCMetric\) has no number per case and class of a hard segmentation; give one of Dice"),
    (CalibrationErrorMetric(), "no number per case and class"), (MSEMetric(), "no number per case and class"),
    (ConfusionMatrixMetric(), "no number per case and class"), ("dice", r"'m' \(str\) has no number per case"),
])  # fmt: skip
def test_metrics_of_something_else_are_refused(metric, message):
    with pytest.raises(TypeError, match=message):
        MonaiMetrics({"m": metric}, Multiclass(3, background=0), CLASSES, segments=True)


def test_metrics_that_would_leave_out_a_label_or_compare_images_are_refused():
    for decision in (Multilabel(3), Multiclass(3)):
        with pytest.raises(ValueError, match="leaves out the first class, which is no background here; build it with"):
            MonaiMetrics({"hd": HausdorffDistanceMetric()}, decision, CLASSES, segments=True)
    case = setting("class")
    with pytest.raises(TypeError, match="'dice' compares segmentations, but this model gives one diagnosis per image"):
        evaluate(case.estimator, (case.x, case.y), ["fgsm"], [0.1], metrics={"dice": DiceMetric()})
