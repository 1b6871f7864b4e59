"""Tables in the survey's form: measures against MONAI and scikit-learn, layout, and what they are written as."""

from __future__ import annotations

import io
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_iou
from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score

from medadv import metrics
from medadv.benchmarks import Leaderboard, figures
from medadv.benchmarks import data as datasets
from medadv.benchmarks.baselines import image_blind_diagnosis, image_blind_endpoints
from medadv.benchmarks.cli import main
from medadv.benchmarks.data.base import Cases, Dataset
from medadv.benchmarks.endpoints import Diagnosis
from medadv.benchmarks.leaderboard_rows import COLUMNS
from medadv.benchmarks.run import run_suite
from medadv.benchmarks.store import read_run, write_tables
from medadv.benchmarks.suites import Suite
from medadv.benchmarks.survey import metrics_of, survey_rows, survey_table, training_cost
from medadv.benchmarks.survey_endpoints import INVENTED, MISSED, SurveyMeasures, hausdorff95
from medadv.benchmarks.survey_render import FORMATS, latex_escaped, rendered, survey_tables
from medadv.decisions import Multiclass, Multilabel
from medadv.intensities import Intensity


def blobs(dims: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.rand(2, 3, *(9, 7, 6)[:dims], generator=generator) < 0.3 for _ in range(2))


@pytest.mark.parametrize("dims", [2, 3])
def test_iou_per_class_is_monais(dims):
    prediction, reference = blobs(dims, 0)
    reference[0, 1] = False
    theirs = compute_iou(prediction.float(), reference.float(), ignore_empty=True)
    assert theirs.isnan().sum() == 1
    assert torch.allclose(metrics.iou_per_class(prediction, reference), theirs, equal_nan=True)


@pytest.mark.parametrize("spacing", [None, (2.0, 1.0, 0.5)])
@pytest.mark.parametrize("dims", [2, 3])
def test_hd95_is_monais_where_both_are_there(dims, spacing):
    prediction, reference = blobs(dims, 1)
    step = None if spacing is None else spacing[:dims]
    theirs = compute_hausdorff_distance(
        prediction.float(), reference.float(), include_background=True, percentile=95, spacing=step
    )
    assert torch.allclose(hausdorff95(prediction, reference, step), theirs)


def test_hd95_of_a_shifted_square_is_its_shift_in_mm():
    square = torch.zeros(1, 1, 40, 40, dtype=torch.bool)
    square[..., 10:20, 10:20] = True
    assert hausdorff95(square.roll(4, 2), square, (1.5, 1.0)).item() == pytest.approx(6)


@pytest.mark.parametrize("whole", [True, False])
def test_a_missed_or_an_invented_structure_counts_the_diagonal_and_none_at_all_counts_nothing(whole):
    mask = torch.full((1, 1, 3, 4), whole)
    if not whole:
        mask[..., 1, 1] = True
    nothing = torch.zeros_like(mask)
    assert hausdorff95(nothing, mask, (3.0, 3.0)).item() == 15
    assert hausdorff95(mask, nothing).item() == 5
    assert hausdorff95(nothing, nothing).isnan().all()
    assert hausdorff95(mask, mask).item() == 0


def voxel_measures(hard, target, valid=None, **options):
    decision = Multiclass(3, background=0, ignore_index=options.pop("ignore_index", None))
    target = torch.as_tensor(target)
    valid = torch.ones_like(target, dtype=torch.bool) if valid is None else torch.as_tensor(valid)
    diagnosis = Diagnosis(torch.as_tensor(hard, dtype=torch.uint8), None, np.zeros(len(target)), None)
    return SurveyMeasures(decision, True, **options)(diagnosis, target, valid)


def test_voxel_measures_are_over_present_classes_and_count_what_has_no_distance():
    target = np.zeros((3, 3, 4), dtype=np.int64)
    hard = target.copy()
    target[0, 0, :2], hard[0, 0, :1] = 1, 1  # half found
    target[1, 0, 0], hard[1, 2, 2] = 1, 2  # missed, another one invented
    found = voxel_measures(hard, target, hd95=True)
    np.testing.assert_allclose(found["miou"], [0.5, 0, np.nan])
    np.testing.assert_allclose(found["hd95_voxels"], [1, 5, np.nan], rtol=0.06)  # the third case has nothing to see
    assert found[MISSED].tolist() == [0, 1, 0] and found[INVENTED].tolist() == [0, 1, 0]
    assert set(voxel_measures(hard, target)) == {"miou"}


def test_voxels_that_are_to_be_ignored_do_not_count():
    target = np.zeros((1, 3, 4), dtype=np.int64)
    target[0, 0, 0] = 1
    hard = target.copy()
    hard[0, 2, 3] = 1
    valid = np.ones(target.shape, dtype=bool)
    assert voxel_measures(hard, target, valid)["miou"].item() == 0.5
    valid[0, 2, 3] = False
    assert voxel_measures(hard, target, valid)["miou"].item() == 1


def test_regions_are_each_measured_on_their_own_valid_voxels():
    target = torch.zeros(1, 2, 3, 4, dtype=torch.int64)
    target[0, :, 0, :2] = 1
    hard = target.clone()
    hard[0, 0, 0, 0] = 0  # half of the first region
    hard[0, 1, 2, 3] = 1  # one voxel too many in the second, where it does not count
    valid = torch.ones_like(target, dtype=torch.bool)
    valid[0, 1, 2, 3] = False
    survey = SurveyMeasures(Multilabel(2), True, (2.0, 2.0), True)
    found = survey(Diagnosis(hard.to(torch.uint8), None, np.zeros(1), None), target, valid)
    assert found["miou"].item() == 0.75 and found["hd95_mm"].item() == pytest.approx(1, rel=0.06)


def image_measures(decision, hard, scores, target, valid=None):
    target = torch.as_tensor(target)
    valid = torch.ones_like(target, dtype=torch.bool) if valid is None else torch.as_tensor(valid)
    diagnosis = Diagnosis(torch.as_tensor(hard, dtype=torch.uint8), scores, np.zeros(len(target)), None)
    return {name: value.item() for name, value in SurveyMeasures(decision, False)(diagnosis, target, valid).items()}


def test_macro_measures_of_classes_are_those_of_scikit_learn_over_the_classes_that_are_there():
    rng = np.random.default_rng(0)
    target, scores = rng.integers(0, 3, 60), rng.normal(size=(60, 4))  # class 3 is in no reference
    hard = scores.argmax(1)
    assert (hard == 3).any()
    ours = image_measures(Multiclass(4), hard, scores, target)
    settings = {"labels": [0, 1, 2], "average": "macro", "zero_division": 0}
    assert ours["macro_recall"] == pytest.approx(recall_score(target, hard, **settings))
    assert ours["macro_precision"] == pytest.approx(precision_score(target, hard, **settings))
    assert ours["macro_f1"] == pytest.approx(f1_score(target, hard, **settings))
    assert ours["macro_auc"] == pytest.approx(roc_auc_score(np.eye(3)[target], scores[:, :3], average="macro"))
    assert ours["macro_classes"] == 3


def test_macro_measures_of_labels_are_those_of_scikit_learn():
    rng = np.random.default_rng(1)
    target, scores = rng.integers(0, 2, (50, 3)), rng.normal(size=(50, 3))
    hard = (scores > 0).astype(int)
    ours = image_measures(Multilabel(3), hard, scores, target)
    assert ours["macro_recall"] == pytest.approx(recall_score(target, hard, average="macro"))
    assert ours["macro_precision"] == pytest.approx(precision_score(target, hard, average="macro"))
    assert ours["macro_f1"] == pytest.approx(f1_score(target, hard, average="macro"))
    assert ours["macro_auc"] == pytest.approx(roc_auc_score(target, scores, average="macro"))


def test_labels_of_a_case_that_are_to_be_ignored_do_not_count():
    rng = np.random.default_rng(2)
    target, scores, valid = rng.integers(0, 2, (40, 2)), rng.normal(size=(40, 2)), rng.random((40, 2)) < 0.7
    hard = (scores > 0).astype(int)
    ours = image_measures(Multilabel(2), hard, scores, np.where(valid, target, 0), valid)
    parts = [(target[valid[:, c], c], hard[valid[:, c], c], scores[valid[:, c], c]) for c in range(2)]
    assert ours["macro_f1"] == pytest.approx(np.mean([f1_score(truth, said) for truth, said, _ in parts]))
    assert ours["macro_auc"] == pytest.approx(np.mean([roc_auc_score(truth, score) for truth, _, score in parts]))


def test_a_class_that_is_never_said_has_precision_0_and_one_class_alone_no_auc():
    never = image_measures(Multiclass(2), [0, 0], np.array([[1.0, -1], [1, -1]]), [0, 1])
    assert never["macro_precision"] == 0.25 and never["macro_recall"] == 0.5
    alone = image_measures(Multiclass(2), [0, 0], np.array([[1.0, -1], [1, -1]]), [0, 0])
    assert alone["macro_recall"] == 1 and math.isnan(alone["macro_auc"])


@pytest.mark.parametrize("decision", [Multiclass(2), Multilabel(1)])
def test_the_image_blind_row_of_one_logit_is_that_of_two_classes(decision):
    y = np.array([1, 1, 1, 0])
    shaped = y if decision.exclusive else y[:, None].astype(np.uint8)
    x = np.zeros((4, 1, 8, 8), dtype=np.float32)
    train, test = (Cases(x, shaped, tuple(f"{tag}{i}" for i in range(4))) for tag in "ab")
    names = ("no", "yes")[-decision.channels :]
    nothing = Cases(x[:0], shaped[:0], ())
    data = Dataset("grey", "classification", decision, Intensity(0, 1), names, train, nothing, test)
    rows = image_blind_endpoints(data, test, image_blind_diagnosis(data)).set_index("endpoint")
    assert rows.adversarial["macro_recall"] == 0.5 and rows.adversarial["macro_auc"] == 0.5
    assert rows.adversarial["macro_precision"] == pytest.approx(0.375)


KEY = {"suite": "s", "dataset": "d", "task": "t_1", "model": "net"}
CASES = 4


def board(seeds: int = 1) -> Leaderboard:
    """Scores known by hand: natural .9 clean, .1 under attack, robust .8 and .6, image-blind .5; seeds add .02 each."""
    rows, endpoints = [], []

    def add(model, training, seed, attack, threat, eps, value):
        words = {**KEY, "model": model, "training": training, "train_seed": seed, "attack": attack, "threat": threat}
        words |= {"eps": eps, "unit": "1"}
        filled = {**words, "dims": 2, "n_cases": CASES, "n_unscored": 1, "metric": "dice", "adversarial": value}
        rows.append({**dict.fromkeys(COLUMNS, 0), **filled, "eps_fraction": eps})
        for case in range(CASES):
            absent = case == 0
            for name, number in (("miou", np.nan if absent else value / 2), ("hd95_mm", 10 * (1 - value)),
                                 (MISSED, float(not absent))):  # fmt: skip
                endpoints.append({**words, "case": f"c{case}", "endpoint": name, "clean": 0.0, "adversarial": number})

    add("image-blind", "none", None, "none", "none", 0.0, 0.5)
    for seed in range(seeds):
        for training, clean, broken in (("natural", 0.9, 0.1), ("pgd_at", 0.8, 0.6)):
            more = 0.02 * seed
            add("net", training, seed, "none", "none", 0.0, clean + more)
            for eps in (2 / 255, 8 / 255):
                for attack in ("pgd & co", "noise"):
                    add("net", training, seed, attack, "linf", eps, clean if attack == "noise" else broken + more)
                add("net", training, seed, "worst-case", "linf", eps, broken + more)
            add("net", training, seed, "bend", "deformation", 1.0, broken + more)
            add("net", training, seed, "worst-case", "deformation", 1.0, broken + more)
    meta = {
        "training": {
            f"t_1-net-{name}-0": {**KEY, "training": name, "train_seed": 0, "recipe": recipe, "epochs": 5,
                                  "seconds_per_epoch": seconds}
            for name, recipe, seconds in (("natural", "natural", 2.0), ("pgd_at", "pgd-at", 7.0))
        }
    }  # fmt: skip
    return Leaderboard(pd.DataFrame(rows, columns=list(COLUMNS)), pd.DataFrame(), pd.DataFrame(endpoints), meta)


def test_columns_are_clean_noise_attacks_and_worst_cases_by_budget():
    table = survey_table(survey_rows(board()), "t_1", "dice")
    assert table.columns.tolist() == [
        ("clean", ""), ("noise", "2/255"), ("noise", "8/255"), ("pgd & co", "2/255"), ("pgd & co", "8/255"),
        ("bend", "1"), ("worst-case linf", "2/255"), ("worst-case linf", "8/255"), ("worst-case deformation", "1"),
    ]  # fmt: skip
    assert table.index.tolist() == [("image-blind", "none"), ("net", "natural"), ("net", "pgd_at")]
    assert table.loc[("net", "natural")].tolist() == [0.9, 0.9, 0.9, *[0.1] * 6]


def test_the_image_blind_row_is_in_every_column_but_where_the_anatomy_moves():
    table = survey_table(survey_rows(board()), "t_1", "dice")
    blind = table.loc[("image-blind", "none")]
    moved = [column for column in table.columns if "bend" in column[0] or "deformation" in column[0]]
    assert blind[moved].isna().all() and (blind.drop(moved) == 0.5).all()


def test_measures_are_averaged_over_the_cases_that_count_and_structures_are_summed():
    rows = survey_rows(board())
    assert metrics_of(rows, "t_1") == ["dice", "miou", "hd95_mm", MISSED]
    clean = rows[(rows.training == "natural") & (rows.attack == "none")].set_index("metric")
    assert clean.value.to_dict() == pytest.approx({"dice": 0.9, "miou": 0.45, "hd95_mm": 1.0, MISSED: 3.0})
    assert clean.n_counted.to_dict() == {"dice": 3, "miou": 3, "hd95_mm": 4, MISSED: 4}


def test_training_seeds_are_averaged_and_their_spread_is_shown():
    rows = survey_rows(board(seeds=3))
    mean, spread = (survey_table(rows, "t_1", "dice", statistic=name) for name in ("mean", "std"))
    assert mean["clean"].loc[("net", "natural")].item() == pytest.approx(0.92)
    assert spread["clean"].loc[("net", "natural")].item() == pytest.approx(0.02)
    cells = survey_tables(board(seeds=3), "dice")[0].cells
    assert cells.loc[("net", "natural"), ("clean", "")] == "0.920 ± 0.020"
    assert cells.loc[("image-blind", ""), ("clean", "")] == "0.500"


@pytest.mark.parametrize(
    ("metric", "clean", "attacked"), [("dice", "natural", "pgd_at"), ("hd95_mm", "natural", "pgd_at")]
)
def test_the_best_training_of_each_column_is_bold_whether_high_or_low_is_good(metric, clean, attacked):
    bold = survey_tables(board(), metric)[0].bold
    assert bold[("clean", "")].loc["net"].to_dict() == {name: name == clean for name in ("natural", "pgd_at")}
    assert bold[("pgd & co", "8/255")].loc["net"].to_dict() == {
        name: name == attacked for name in ("natural", "pgd_at")
    }
    assert not bold.loc[("image-blind", "")].any()


def test_training_cost_is_relative_to_natural_training_of_the_same_model():
    cost = training_cost(board())
    assert cost.relative.tolist() == [1.0, 3.5] and cost.recipe.tolist() == ["natural", "pgd-at"]
    alone = board()
    del alone.meta["training"]["t_1-net-natural-0"]
    assert training_cost(alone).relative.isna().all()
    assert training_cost(Leaderboard()).empty


@pytest.mark.parametrize("style", FORMATS)
def test_a_board_that_is_read_again_gives_the_same_tables(style, tmp_path):
    first = board(seeds=2)
    write_tables(first, tmp_path)
    (tmp_path / "cases.csv").write_text("case\nc0\n")
    assert rendered(read_run(tmp_path), style) == rendered(first, style)


def test_latex_escapes_every_special_character_once():
    assert latex_escaped(r"a_b & 5% #1 {x} ~^ \y $") == (
        r"a\_b \& 5\% \#1 \{x\} \textasciitilde{}\textasciicircum{} \textbackslash{}y \$"
    )


def test_latex_tables_are_whole():
    text = rendered(board(seeds=2), "latex")
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 5
    assert r"\multicolumn{2}{c}{pgd \& co}" in text and r"pgd\_at" in text and r"$\pm$" in text and "±" not in text
    assert re.search(r"\\textbf\{0\.910 \$\\pm\$ 0\.014\}", text)
    for tabular in re.findall(r"\\begin\{tabular\}.*?\\end\{tabular\}", text, re.DOTALL):
        columns = len(re.match(r"\\begin\{tabular\}\{([lr]+)\}", tabular).group(1))
        for line in tabular.splitlines():
            if line.endswith(r"\\"):
                merged = sum(int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", line))
                assert len(re.findall(r"(?<!\\)&", line)) + 1 + merged == columns, line
    assert not re.search(r"(?<!\\)[_%#]", re.sub(r"\\label\{.*?\}|^%.*$|\{%$", "", text, flags=re.MULTILINE))


def test_html_escapes_names():
    tampered = board()
    for table in (tampered.frame, tampered.endpoints):
        table["attack"] = table.attack.replace("pgd & co", "<b>pgd</b>")
    text = rendered(tampered, "html", "dice")
    assert "&lt;b&gt;pgd" in text and "<b>pgd" not in text


def test_a_metric_or_task_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="metric of this run 'miuo' is unknown; did you mean 'miou'"):
        rendered(board(), "latex", "miuo")
    with pytest.raises(ValueError, match="format 'latx' is unknown; did you mean 'latex'"):
        rendered(board(), "latx")
    with pytest.raises(ValueError, match="task 't_2' is unknown; did you mean 't_1'"):
        survey_table(survey_rows(board()), "t_2", "dice")


def test_the_command_reads_a_finished_run(tmp_path, capsys):
    write_tables(board(), tmp_path)
    (tmp_path / "cases.csv").write_text("case\nc0\n")
    assert main(["tables", str(tmp_path), "--metric", "dice"]) == 0
    rows = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert set(rows.metric) == {"dice"} and len(rows) == len(board().frame)
    assert main(["tables", str(tmp_path), "--metric", "training-cost", "--format", "latex"]) == 0
    assert "3.50" in capsys.readouterr().out
    assert main(["tables", str(tmp_path / "nothing")]) == 2
    assert "give the folder of a finished run" in capsys.readouterr().err


def tiny_suite(**changes) -> Suite:
    images = {
        "name": "lesion-class", "data": "embedded-lesion-class-2d", "data_options": {"subjects": [8, 2, 8]},
        "test_cases": 8,
        "models": [{"name": "net", "network": "DenseNet", "args": {
            "spatial_dims": 2, "in_channels": 1, "out_channels": 2, "init_features": 4, "growth_rate": 2,
            "block_config": [1, 1]}}],
        "trainings": {"natural": {"epochs": 1, "batch_size": 100},
                      "pgd-at": {"recipe": "pgd-at", "options": {"eps": "4/255", "steps": 1}, "epochs": 1,
                                 "batch_size": 100, "warm_start": "natural"}},
        "attacks": [{"name": "fgsm"}],
    }  # fmt: skip
    voxels = {
        **images, "name": "lesions", "data": "embedded-lesions-3d", "data_options": {"subjects": [4, 2, 3]},
        "test_cases": 3,
        "models": [{"name": "unet", "network": "UNet", "args": {
            "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [2, 4], "strides": [2]}}],
        "trainings": {"natural": {"epochs": 1, "batch_size": 50}},
    }  # fmt: skip
    return Suite.model_validate({"name": "tiny", "budgets": ["8/255"], "tasks": [images, voxels], **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    pytest.importorskip("nilearn", reason="the embedded data need nilearn (extra 'bench')")
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "png_bytes", lambda figure: b"")  # figures take longest
        return folder, run_suite(tiny_suite(hd95=True), out=folder)


def test_a_run_writes_the_tables_of_all_its_tasks(run):
    folder, result = run
    rows = pd.read_csv(folder / "survey.csv")
    image, voxel = (set(rows[rows.task == task].metric) for task in ("lesion-class", "lesions"))
    assert image == {"accuracy", "macro_recall", "macro_precision", "macro_f1", "macro_auc", "macro_classes"}
    assert voxel == {"dice", "miou", "hd95_mm", MISSED, INVENTED}
    blind = rows[rows.model == "image-blind"].set_index("metric").value
    assert {*image, *voxel} == set(blind.index) and blind["macro_auc"] == 0.5
    assert set(rows.attack) == {"none", "noise", "fgsm", "worst-case"}
    assert np.isfinite(rows[rows.metric == "hd95_mm"].value).all()
    assert (folder / "survey.tex").read_text() == rendered(read_run(folder), "latex") == rendered(result, "latex")
    cost = pd.read_csv(folder / "training_cost.csv")
    assert cost.training.tolist() == ["natural", "pgd-at", "natural"] and (cost.seconds_per_epoch > 0).all()


def test_a_suite_of_clean_images_alone_has_tables_and_no_sheets(monkeypatch, tmp_path):
    y = np.zeros((4, 8, 8), dtype=np.int64)
    y[:, 2:5, 2:5] = 1
    splits = [Cases(y[:, None].astype(np.float32), y, tuple(f"{tag}{i}" for i in range(4))) for tag in "abc"]
    data = Dataset("d", "segmentation", Multiclass(2, background=0), Intensity(0, 1), ("no", "yes"), *splits)
    monkeypatch.setattr(datasets, "load", lambda name, **options: data)
    task = tiny_suite().tasks[1].model_dump()
    task["models"][0]["args"]["spatial_dims"] = 2
    result = run_suite(tiny_suite(budgets=["0"], tasks=[task]), out=tmp_path)
    assert survey_table(survey_rows(result), "lesions", "miou").columns.tolist() == [("clean", "")]
    assert "side by side" not in (tmp_path / "report.html").read_text()


def test_measures_of_a_worst_case_are_those_of_the_attack_that_was_worst(run):
    _, result = run
    worst = result.cases[(result.cases.task == "lesions") & (result.cases.attack == "worst-case")]
    for name in ("miou", "hd95_mm", MISSED, INVENTED):
        rows = result.endpoints[(result.endpoints.task == "lesions") & (result.endpoints.endpoint == name)]
        values = rows.set_index(["attack", "case"]).adversarial
        chosen = [values[attack, case] for attack, case in zip(worst.worst_attack, worst.case, strict=True)]
        np.testing.assert_array_equal(values["worst-case"].loc[worst.case], chosen)


def test_the_report_shows_tables_and_trainings_side_by_side(run):
    folder, _ = run
    report = (folder / "report.html").read_text()
    for words in ("lesion-class: macro F1", "lesions: HD95 in mm", "Cost of training", "Class-activation maps",
                  "Trainings side by side", "lesion-class-net-0, linf, eps 8/255"):  # fmt: skip
        assert words in report, words
    assert "no class-activation map" not in report
