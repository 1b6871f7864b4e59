"""From a trained model to the tables: what evaluate() writes is what the images say."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from medadv import metrics
from medadv.adapters import MonaiClassifier, MonaiMultilabelClassifier, MonaiSegmenter
from medadv.benchmarks import data as datasets
from medadv.benchmarks import evaluate, figures, run_suite
from medadv.benchmarks.baselines import image_blind_scores
from medadv.benchmarks.data.base import Cases, Dataset
from medadv.benchmarks.evaluate import WORST_CASE, Evaluator, Planned
from medadv.benchmarks.leaderboard import Leaderboard
from medadv.benchmarks.leaderboard_rows import COLUMNS
from medadv.benchmarks.suites import Suite
from medadv.decisions import Multiclass, Multilabel
from medadv.diagnostics import zero_gradients
from medadv.intensities import Intensity
from medadv.training import RECIPES


class Threshold(torch.nn.Module):
    """Segments what is brighter than .5; every voxel within eps of .5 can be flipped."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(20.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logit = self.gain * (x - 0.5)
        return torch.cat([-logit, logit], 1)


class MeanGrey(torch.nn.Module):
    """Class 1 where the mean grey value is above .5."""

    def __init__(self, outputs: int = 2) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(30.0))
        self.outputs = outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logit = self.gain * (x.flatten(1).mean(1, keepdim=True) - 0.5)
        return torch.cat([-logit, logit], 1) if self.outputs == 2 else logit.repeat(1, self.outputs)


def discs(dims: int, count: int, seed: int = 0, empty: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shape = (16,) * dims
    y = np.zeros((count, *shape), dtype=np.int64)
    for case in range(count - empty):
        corner = rng.integers(2, 8, dims)
        y[(case, *(slice(c, c + 6) for c in corner))] = 1
    x = np.where(y[:, None] == 1, 0.52, 0.48) + rng.uniform(-0.01, 0.01, (count, 1, *shape))
    return x.astype(np.float32), y


def segmentation(dims: int, count: int = 12, empty: int = 2) -> Dataset:
    splits = []
    for number, split in enumerate(("a", "b", "c")):
        x, y = discs(dims, count, number, empty)
        ids = tuple(f"{split}{i}" for i in range(count))
        splits.append(Cases(x, y, ids, tuple(f"{split}p{i // 2}" for i in range(count))))
    return Dataset(
        "discs", "segmentation", Multiclass(2, background=0), Intensity(0, 1), ("background", "disc"), *splits,
        spacing=(2.0,) * dims,
    )  # fmt: skip


@pytest.mark.parametrize("dims", [2, 3])
def test_moved_anatomy_is_scored_against_its_moved_reference(dims):
    # the network is a threshold, so it follows every translation: against the old reference Dice would fall, and does
    # not against the moved one
    evaluator = Evaluator(segmenter(dims), segmentation(dims, 3, empty=0))
    shift = Planned("affine", {"rotation": 0.0, "scale": 0.0, "translation": 0.3, "max_iter": 3})
    outcome = evaluator.attack(shift, 1.0, keep_images=True)
    target, _ = outcome.reference
    assert not torch.equal(target, evaluator.target)
    logits = torch.from_numpy(evaluator.estimator.predict(outcome.images))
    old = evaluator.decision.score(logits, evaluator.target, evaluator.valid)
    assert outcome.scores.mean() > 0.85 and outcome.scores.mean() > float(old.mean()) + 0.1
    found = outcome.endpoints[outcome.endpoints.endpoint == "lesion_sensitivity:disc"]
    assert (found.adversarial == 1).all()
    assert torch.equal(evaluator.worst_case([outcome]).reference[0], target)


def test_a_budget_that_is_no_grey_value_is_not_given_the_unit_of_the_image():
    data = replace(segmentation(2, 2), intensity=Intensity(0, 1, unit="HU"))
    estimator = MonaiSegmenter(Threshold(), (1, 16, 16), decision=data.decision, intensity=data.intensity)
    frame = evaluate(estimator, data, ["fgsm", ("deformation", {"eps": 0.5, "max_iter": 1})], [0.1]).frame
    units = frame.groupby("threat").unit.agg(set).to_dict()
    assert units["linf"] == {"HU"} and units["none"] == {"HU"}
    assert units["deformation"].isdisjoint({"HU"})


def test_threats_that_are_no_balls_run_once_at_their_own_budget():
    attacks = ["fgsm", ("kspace", {"max_iter": 2}), ("pgd", {"eps": 0.3, "max_iter": 2})]
    frame = evaluate(segmenter(2), segmentation(2, 3), attacks, ["1/255", "2/255"]).frame
    runs = frame[frame.attack.isin(["fgsm", "kspace", "pgd"])]
    assert sorted(runs.attack) == ["fgsm", "fgsm", "kspace", "pgd"]
    assert set(runs[runs.attack == "kspace"].threat) == {"kspace"}
    worst = frame[frame.attack == "worst-case"]
    assert sorted(worst.threat) == ["kspace", "linf", "linf", "linf"]


def segmenter(dims: int) -> MonaiSegmenter:
    return MonaiSegmenter(Threshold(), (1, *(16,) * dims), decision=Multiclass(2, background=0))


@pytest.fixture(scope="module", params=[2, 3])
def board(request):
    data = segmentation(request.param)
    return data, evaluate(segmenter(request.param), data, ["fgsm", "pgd-dice"], ["2/255", "16/255"])


def test_every_column_is_there_and_filled(board):
    _, result = board
    assert tuple(result.frame.columns) == COLUMNS
    optional = {"train_seed"}
    empty = {column for column in COLUMNS if result.frame[column].isna().any()} - optional
    assert not empty


def test_rows_are_clean_then_attacks_and_worst_case_per_budget(board):
    _, result = board
    assert result.frame.attack.tolist() == ["none", *["noise", "fgsm", "pgd-dice", "worst-case"] * 2]


def test_worst_case_is_the_worst_per_case_not_the_worst_mean(board):
    _, result = board
    cases = result.cases[result.cases.eps > 0]
    attacks = cases[cases.attack != "worst-case"].groupby(["eps", "case"]).adversarial.min()
    worst = cases[cases.attack == "worst-case"].set_index(["eps", "case"]).adversarial
    pd.testing.assert_series_equal(worst.sort_index(), attacks.sort_index())


def test_large_budget_breaks_what_noise_does_not(board):
    _, result = board
    large = result.frame[result.frame.eps_fraction > 10 / 255].set_index("attack")
    assert large.adversarial["worst-case"] < 0.05
    assert large.clean["worst-case"] == 1
    assert large.success_rate["worst-case"] == 1
    assert large.linf.max() <= 16 / 255


def test_negative_cases_are_counted_and_have_endpoints_of_their_own(board):
    data, result = board
    assert (result.frame.n_unscored == 2).all()
    size = "false_positive_area_mm2:disc" if data.dims == 2 else "false_positive_volume_ml:disc"
    rows = result.endpoints[(result.endpoints.endpoint == size) & (result.endpoints.attack == "pgd-dice")]
    assert set(rows.case) == {"c10", "c11"}
    assert (rows.clean == 0).all() and rows.adversarial.max() > 0


def test_volumes_are_in_the_units_of_the_spacing(board):
    data, result = board
    name, voxel = ("area_mm2:disc", 4.0) if data.dims == 2 else ("volume_ml:disc", 0.008)
    rows = result.endpoints[(result.endpoints.endpoint == name) & (result.endpoints.attack == "none")]
    np.testing.assert_allclose(rows.reference, 6**data.dims * voxel)
    np.testing.assert_allclose(rows.clean, rows.reference)


def test_same_call_gives_the_same_table_but_for_the_seconds(board):
    data, result = board
    again = evaluate(segmenter(data.dims), data, ["fgsm", "pgd-dice"], ["2/255", "16/255"])
    columns = [column for column in COLUMNS if column != "seconds"]
    pd.testing.assert_frame_equal(again.frame[columns], result.frame[columns])


def test_intervals_hold_the_mean(board):
    _, result = board
    assert (result.frame.ci_low <= result.frame.adversarial + 1e-12).all()
    assert (result.frame.adversarial <= result.frame.ci_high + 1e-12).all()
    assert (result.frame.ci_unit == "patient").all()


def test_csv_reads_back_equal(board, tmp_path):
    _, result = board
    result.to_csv(tmp_path / "leaderboard.csv")
    read = pd.read_csv(tmp_path / "leaderboard.csv", keep_default_na=False, na_values=[""])
    assert read.columns.tolist() == list(COLUMNS)
    np.testing.assert_array_equal(read.adversarial, result.frame.adversarial)
    assert "<table" in result.to_html(tmp_path / "board.html")
    assert result.plot().axes
    many = Leaderboard(pd.concat([result.frame.assign(task=name) for name in "abcde"]))
    grid = [panel.get_subplotspec().rowspan.start for panel in many.plot().axes]
    assert grid == [0, 0, 0, 1, 1], "more tasks than fit beside each other stand in rows"


def grey_cases(count: int = 24, labels: int = 0) -> tuple[np.ndarray, np.ndarray]:
    truth = np.arange(count) % 2
    offset = np.where(truth == 1, 0.53, 0.47) + np.linspace(-0.01, 0.01, count)
    x = np.broadcast_to(offset[:, None, None, None], (count, 1, 12, 12)).astype(np.float32)
    return np.ascontiguousarray(x), truth if not labels else np.repeat(truth[:, None], labels, 1)


def test_auc_under_attack_is_that_of_the_smallest_signed_margins():
    x, y = grey_cases()
    estimator = MonaiClassifier(MeanGrey(), (1, 12, 12), decision=Multiclass(2))
    result = evaluate(estimator, (x, y), ["pgd"], ["10/255"])
    rows = result.endpoints[result.endpoints.attack == "worst-case"].set_index("endpoint")
    scores = rows.loc["score:class 1"]
    assert rows.loc["auc:class 1"].clean == 1
    assert rows.loc["auc:class 1"].adversarial == metrics.auc(
        scores.adversarial.to_numpy(), scores.reference.to_numpy() == 1
    )
    assert rows.loc["auc:class 1"].adversarial < 0.1


def test_multilabel_scores_share_of_labels_and_counts_success_per_case():
    x, y = grey_cases(labels=3)
    estimator = MonaiMultilabelClassifier(MeanGrey(3), (1, 12, 12), decision=Multilabel(3))
    frame = evaluate(estimator, (x, y), ["pgd"], ["20/255"]).frame.set_index("attack")
    assert frame.metric["pgd"] == "label_accuracy"
    assert frame.success_rule["pgd"] == "all labels right -> any wrong"
    assert frame.clean["pgd"] == 1 and frame.adversarial["pgd"] == 0


def test_one_logit_classifier_is_scored_as_two_classes():
    x, y = grey_cases()
    estimator = MonaiClassifier(MeanGrey(1), (1, 12, 12), decision=Multilabel(1))
    frame = evaluate(estimator, (x, y), ["pgd"], ["20/255"]).frame.set_index("attack")
    assert (frame.clean["pgd"], frame.adversarial["pgd"]) == (1, 0)


def test_a_network_that_breaks_is_not_taken_for_one_without_gradients():
    class Broken(torch.nn.Module):
        def forward(self, x):
            raise RuntimeError("kernel size can't be greater than actual input size")

    estimator = MonaiClassifier(Broken(), (1, 4, 4), decision=Multiclass(2), device="cpu")
    with pytest.raises(RuntimeError, match="kernel size"):
        zero_gradients(estimator.victim(), torch.rand(1, 1, 4, 4), torch.tensor([0]), torch.tensor([True]))


def test_zero_gradients_are_flagged():
    class Quantised(MeanGrey):
        def forward(self, x):
            return super().forward((x * 255).round() / 255)

    x, y = grey_cases()
    estimator = MonaiClassifier(Quantised(), (1, 12, 12), decision=Multiclass(2))
    frame = evaluate(estimator, (x, y), ["pgd"], ["20/255"]).frame
    assert frame["flags"].str.contains("zero-gradients=1.00").all()


def test_randomised_models_are_flagged():
    class Noisy(MeanGrey):
        def forward(self, x):
            return super().forward(x + 0.01 * torch.randn_like(x))

    x, y = grey_cases()
    estimator = MonaiClassifier(Noisy(), (1, 12, 12), decision=Multiclass(2))
    assert evaluate(estimator, (x, y), ["fgsm"], ["1/255"]).frame["flags"].str.contains("not-repeatable").all()


def test_an_honest_model_has_no_model_flag():
    x, y = grey_cases()
    estimator = MonaiClassifier(MeanGrey(), (1, 12, 12), decision=Multiclass(2))
    flags = evaluate(estimator, (x, y), ["pgd"], ["4/255", "20/255"]).frame["flags"]
    assert not flags.str.contains("zero|repeat|monotone").any()


@pytest.mark.parametrize("dims", [2, 3])
def test_image_blind_mask_is_fitted_on_training_references_alone(dims):
    data = segmentation(dims)
    scores = image_blind_scores(data, data.test)
    assert np.isnan(scores).sum() == 2
    assert 0 < np.nanmean(scores) < 0.9


def test_image_blind_class_is_the_majority():
    x, y = grey_cases()
    biased = np.where(np.arange(len(y)) < 18, 1, 0)
    train, test = (
        Cases(x, labels, tuple(f"{tag}{i}" for i in range(len(x)))) for tag, labels in (("a", biased), ("b", y))
    )
    nothing = Cases(x[:0], y[:0], ())
    data = Dataset("grey", "classification", Multiclass(2), Intensity(0, 1), ("no", "yes"), train, nothing, test)
    assert image_blind_scores(data, test).tolist() == (y == 1).astype(float).tolist()


def tiny_suite(**changes) -> Suite:
    task = {
        "name": "discs",
        "data": "discs",
        "models": [{"name": "unet", "network": "UNet", "args": {
            "spatial_dims": 2, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]}}],
        "trainings": {
            "natural": {"epochs": 6, "batch_size": 4, "learning_rate": 0.02, "flip_axis": 1},
            "pgd-at": {"recipe": "pgd-at", "options": {"eps": "2/255", "steps": 2}, "epochs": 2, "batch_size": 4,
                       "warm_start": "natural"},
        },
        "attacks": [{"name": "pgd-dice", "options": {"max_iter": 3}}],
    }  # fmt: skip
    return Suite.model_validate({"name": "tiny", "budgets": [0, "8/255"], "tasks": [{**task, **changes}]})


@pytest.fixture
def discs_by_name(monkeypatch):
    monkeypatch.setattr(datasets, "load", lambda name, **options: segmentation(2))


def test_a_suite_leaves_tables_report_weights_and_adversarials(discs_by_name, tmp_path):
    result = run_suite(tiny_suite(), out=tmp_path, save_adversarials=True)
    assert result.frame.attack.tolist() == ["none", *["none", "noise", "pgd-dice", "worst-case"] * 2]
    assert result.frame.model[0] == "image-blind"
    meta = json.loads((tmp_path / "leaderboard.meta.json").read_text())
    assert meta["data"]["discs"]["sha256"] == segmentation(2).sha256
    assert {"torch", "monai", "medadv"} <= set(meta["versions"])
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [
        "discs-unet-natural-0.pt",
        "discs-unet-pgd-at-0.pt",
    ]
    report = (tmp_path / "report.html").read_text()
    assert report.count("data:image/png;base64") == 4 and "http" not in report.split("<body>")[1].split("<h2>Data")[0]
    assert "p_holm" in report and "worst_rank" in report
    compared = result.compare()
    assert compared.training.tolist() == ["pgd-at"] and compared.ci_unit.tolist() == ["patient"]


def test_saved_adversarials_and_weights_reproduce_the_table(discs_by_name, tmp_path):
    result = run_suite(tiny_suite(), out=tmp_path, save_adversarials=True)
    data = segmentation(2)
    weights = tmp_path / "models" / "discs-unet-natural-0.pt"
    again = run_suite(
        tiny_suite(models=[{**tiny_suite().tasks[0].models[0].model_dump(), "checkpoint": str(weights)}]),
        out=tmp_path / "again",
    )
    worst = result.frame[(result.frame.attack == "worst-case") & (result.frame.training == "natural")].adversarial
    assert again.frame[again.frame.attack == "worst-case"].adversarial.tolist() == worst.tolist()
    with np.load(next((tmp_path / "adversarials").glob("discs-unet-natural-0-*.npz")), allow_pickle=False) as saved:
        assert saved["ids"].tolist() == list(data.test.ids)
        assert np.abs(saved["images"] - data.test.x).max() <= 8 / 255


def test_output_folder_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ValueError, match="can't be written"):
        run_suite(tiny_suite(), out=file / "sub")


def test_suite_that_needs_data_says_so(tmp_path):
    with pytest.raises(ValueError, match="needs data of your own; give their folder with --data-root"):
        run_suite("real", out=tmp_path)


def test_a_suite_trains_by_every_recipe_with_its_helper_and_its_validation(discs_by_name, tmp_path, monkeypatch):
    eps = {"eps": "4/255"}
    options = {"attack": {"attack": "pgd", "options": {"max_iter": 1}, **eps}, "vaft": {"steps": 1}}
    options |= {name: {} for name in ("natural", "mpadvt", "maadvt", "bias-field")}
    trainings = {
        name: {
            "recipe": name, "epochs": 1, "batch_size": 4, "validation": {"steps": 1, "cases": 2},
            "options": options.get(name, eps),
        }
        for name in RECIPES
    }  # fmt: skip
    trainings["hat"]["options"] = {"eps": "4/255", "steps": 1, "helper": "natural"}
    trainings["pgd-at"]["weight_perturbation"] = 0.01
    monkeypatch.setattr(figures, "png_bytes", lambda figure: b"")
    suite = tiny_suite(trainings=trainings).model_copy(update={"diagnostics": "none"})
    board = run_suite(suite, out=tmp_path)
    trained = board.frame[board.frame.attack == WORST_CASE].training
    assert set(trained) == set(RECIPES)
    assert len({board.meta["weights"][label] for label in board.meta["weights"]}) == len(RECIPES)
