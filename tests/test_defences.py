"""Corruptions and defences in suites: rows of their own, no corruption in a worst case, attacks that see defences."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from test_feature_detectors import Features4, images
from test_leaderboard import MeanGrey, discs_by_name, segmentation, segmenter, tiny_suite  # noqa: F401
from torch import nn

from medadv import metrics
from medadv.adapters import MonaiClassifier
from medadv.adaptive import bpda
from medadv.benchmarks import data as datasets
from medadv.benchmarks import evaluate, run_suite, trainings
from medadv.benchmarks.data.base import Cases, Dataset
from medadv.benchmarks.defences import build_defence
from medadv.benchmarks.defended import DefenceTrials, DefendedEvaluator, attacks_through
from medadv.benchmarks.evaluate import Evaluator
from medadv.benchmarks.leaderboard import Leaderboard
from medadv.benchmarks.leaderboard_rows import Entry
from medadv.benchmarks.outcomes import Planned
from medadv.benchmarks.trials import evaluate_estimator, schedule
from medadv.decisions import Multiclass
from medadv.intensities import Intensity


def classification(count: int = 60) -> Dataset:
    splits = []
    for seed, split in enumerate(("train", "validation", "test")):
        x, y = images(count if split != "test" else 12, seed)
        # as large as structural similarity asks for, features unchanged
        splits.append(
            Cases(np.kron(x, np.ones((1, 1, 3, 3), np.float32)), y, tuple(f"{split}{i}" for i in range(len(x))))
        )
    return Dataset("rows", "classification", Multiclass(2), Intensity(0, 1), ("low", "high"), *splits)


class Shrunk(nn.Module):
    """:class:`Features4` on images three times as large."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Features4()

    def forward(self, x):
        return self.inner(nn.functional.avg_pool2d(x, 3))


def classifier() -> MonaiClassifier:
    return MonaiClassifier(Shrunk(), (1, 12, 12), decision=Multiclass(2))


APGD = Planned("apgd-ce", {"max_iter": 60})


def trial(defences: dict, data: Dataset, estimator=None, attacks=(APGD,), budgets=("36/255",), **options):
    """Leaderboard of one model, undefended and with each defence."""
    estimator = classifier() if estimator is None else estimator
    evaluators, through = {}, {}
    for title, (kind, settings) in defences.items():
        defence = build_defence(kind, title.partition(":")[0], settings, estimator, data)
        evaluators[title] = DefendedEvaluator(defence, data, **options)
        through[title] = attacks_through(defence, attacks, None)
    board = Leaderboard()
    board.add(Entry("s", "t", "m", "natural", 0), evaluate_estimator(estimator, data, attacks, budgets, **options))
    for title, evaluator in evaluators.items():
        evaluation = behind(estimator, DefenceTrials(evaluator, through[title]), attacks, budgets, **options)
        board.add(Entry("s", "t", "m", f"natural+{title}", 0), evaluation)
    return board


def behind(estimator, trials: DefenceTrials, attacks, budgets, **options):
    """Evaluation of a defended model by the images of attacks on the undefended one."""
    undefended = Evaluator(estimator, trials.evaluator.data, **options)
    found = []
    for one in schedule(attacks, budgets, estimator.intensity).attacks:
        if trials.concerned(one.planned):
            found += trials.tried(one.planned, undefended.craft(one.planned, one.eps), one.eps)
    return trials.evaluation(found)


def rows_of(board: Leaderboard, training: str) -> pd.DataFrame:
    return board.frame[board.frame.training == training].set_index("attack")


@pytest.fixture(scope="module")
def detected():
    data = classification()
    return data, trial(
        {name: ("detector", {"layers": ["inner.layer"]}) for name in ("mahalanobis", "kde", "lid")}, data
    )


@pytest.mark.parametrize("name", ["mahalanobis", "kde", "lid"])
def test_a_detector_looks_good_until_the_attack_knows_it(detected, name):
    data, board = detected
    rows = rows_of(board, f"natural+{name}")
    assert rows.index.tolist() == ["none", "noise", "apgd-ce (unaware)", "apgd-ce (adaptive)", "worst-case"]
    assert rows.access.tolist() == ["none", "none", "gray-box", "white-box", "white-box"]
    assert rows.adversarial["apgd-ce (unaware)"] > 0.9 and rows.adversarial["apgd-ce (adaptive)"] < 0.5
    assert rows.adversarial["worst-case"] <= rows.adversarial["apgd-ce (adaptive)"]
    undefended = rows_of(board, "natural")
    assert undefended.index.tolist() == ["none", "noise", "apgd-ce", "worst-case"]
    assert undefended.adversarial["apgd-ce"] == 0
    # three weights of the detector are tried
    assert rows.backward_passes["apgd-ce (adaptive)"] == 3 * undefended.backward_passes["apgd-ce"]
    assert not rows["flags"].str.contains("adaptive-weaker").any()


@pytest.mark.parametrize("name", ["mahalanobis", "kde", "lid"])
@pytest.mark.parametrize("attack", ["apgd-ce (unaware)", "apgd-ce (adaptive)", "worst-case", "none"])
def test_endpoints_of_a_detector_are_read_off_its_scores(detected, name, attack):
    data, board = detected
    table = board.endpoints[(board.endpoints.training == f"natural+{name}") & (board.endpoints.attack == attack)]
    score = table[table.endpoint == "detector_score"]
    assert score.case.tolist() == list(data.test.ids)
    cohort = table[table.case == "all"].set_index("endpoint")
    cases = board.cases[(board.cases.training == f"natural+{name}") & (board.cases.attack == attack)]
    assert cohort.adversarial["joint_evasion"] == (cases.adversarial < 1).mean()
    assert ("detection_auc" in cohort.index) == ("rejected" in cohort.index) == (attack != "worst-case")
    if attack == "worst-case":  # over attacks only the share that got through means something
        return
    truth = np.repeat([False, True], len(score))
    expected = 0.5 if attack == "none" else metrics.auc(np.concatenate([score.clean, score.adversarial]), truth)
    assert cohort.adversarial["detection_auc"] == pytest.approx(expected)
    assert cohort.clean["rejected"] == (score.clean > 0).mean()
    assert cohort.adversarial["rejected"] == (score.adversarial > 0).mean()


def test_the_threshold_rejects_at_most_its_share_of_validation_cases():
    data = classification(100)
    for fpr in (0.05, 0.2):
        defence = build_defence("detector", "kde", {"fpr": fpr}, classifier(), data)
        verdict = defence.output(torch.from_numpy(data.validation.x), 32)[1]
        assert fpr - 0.02 < (verdict > 0).mean() <= fpr


def grey(count: int = 16, gap: float = 0.035) -> Dataset:
    splits = []
    for seed, split in enumerate("abc"):
        rng = np.random.default_rng(seed)
        y = np.arange(count) % 2
        x = (0.5 + gap * (2 * y - 1))[:, None, None, None] + rng.normal(0, 0.004, (count, 1, 12, 12))
        splits.append(Cases(x.astype(np.float32), y, tuple(f"{split}{i}" for i in range(count))))
    return Dataset("grey", "classification", Multiclass(2), Intensity(0, 1), ("dark", "bright"), *splits)


def mean_grey() -> MonaiClassifier:
    return MonaiClassifier(MeanGrey(), (1, 12, 12), decision=Multiclass(2))


@pytest.mark.parametrize(("name", "options"), [
    ("feature-squeezing", {"bit_depth": 4}), ("jpeg", {"quality": 60}), ("spatial-smoothing", {}),
    ("gaussian-noise", {"sigma": 0.02, "samples": 4}), ("total-variation", {"max_iter": 3, "samples": 2}),
])  # fmt: skip
def test_a_preprocessor_is_part_of_the_model_and_is_looked_through(name, options):
    data = grey()
    board = trial({name: ("preprocessor", options)}, data, mean_grey(), [Planned("pgd", {"max_iter": 8})], ["16/255"])
    rows = rows_of(board, f"natural+{name}")
    assert rows.index.tolist() == ["none", "noise", "pgd (unaware)", "pgd (adaptive)", "worst-case"]
    assert rows.clean["none"] == 1 and rows.adversarial["noise"] > 0.9
    assert rows.adversarial["pgd (adaptive)"] < 0.2
    assert rows.linf.max() <= 16 / 255 + 1e-9
    runs = options.get("samples", 1)
    assert rows.backward_passes["pgd (adaptive)"] == 8 * runs
    assert rows["flags"].str.contains("not-repeatable").all() == (name in ("gaussian-noise", "total-variation"))


def test_an_adaptive_attack_that_finds_less_is_flagged():
    data, estimator, pgd = grey(), mean_grey(), [Planned("pgd", {"max_iter": 8})]
    defence = build_defence("preprocessor", "feature-squeezing", {"bit_depth": 8}, estimator, data)
    defence.views = [bpda(estimator, transform=lambda x: x, backward=lambda x: 0 * x)]  # looks, and sees no direction
    trials = DefenceTrials(DefendedEvaluator(defence, data), pgd)
    board = Leaderboard()
    board.add(Entry("s", "t", "m", "natural+x", 0), behind(estimator, trials, pgd, ["14/255"]))
    rows = board.frame.set_index("attack")
    assert rows.adversarial["pgd (unaware)"] == 0 and rows.adversarial["pgd (adaptive)"] == 1
    assert rows["flags"].str.contains("adaptive-weaker=+1.000", regex=False).all()
    assert rows.adversarial["worst-case"] == 0


def test_squeezing_that_swallows_an_unaware_attack_does_not_swallow_an_aware_one():
    # with 2 grey values an image on one side of the level is all of one value: small steps change nothing
    data = grey(gap=0.03)
    squeezed = {"feature-squeezing": ("preprocessor", {"bit_depth": 1})}
    board = trial(squeezed, data, mean_grey(), [Planned("pgd", {"max_iter": 20})], ["6/255", "12/255"])
    rows = board.frame[board.frame.training == "natural+feature-squeezing"]
    assert rows[(rows.eps > 10 / 255) & (rows.attack == "pgd (adaptive)")].adversarial.item() == 0


@pytest.fixture(scope="module")
def smoothed_board():
    options = {"sigma": "25/255", "n": 60, "certificate": 400, "samples": 4}
    return grey(), trial(
        {"smoothing": ("smoothing", options)}, grey(), mean_grey(), [Planned("pgd")], ["4/255", "14/255"]
    )


def test_smoothing_votes_abstains_and_certifies(smoothed_board):
    data, board = smoothed_board
    rows = board.frame[board.frame.training == "natural+smoothing"]
    assert rows[(rows.attack == "pgd (adaptive)") & (rows.eps > 0.05)].adversarial.item() == 0
    table = board.endpoints[board.endpoints.training == "natural+smoothing"]
    radius = table[table.endpoint == "certified_radius"]
    assert radius.attack.unique().tolist() == ["none"] and len(radius) == len(data.test)
    # the mean of 144 voxels has its level sqrt(144) times as far away in L2 as in grey values
    truth = np.abs(data.test.x.reshape(len(data.test), -1).mean(1) - 0.5) * 12
    ceiling = 25 / 255 * stats.norm.ppf(0.001 ** (1 / 400))
    assert (radius.clean <= np.minimum(truth, ceiling) + 1e-9).all() and radius.clean.mean() > 0.7 * ceiling
    # no attack within its radius may turn the diagnosis: 4/255 in all voxels is 12 x 4/255 in L2
    abstained = table[(table.endpoint == "abstained") & (table.attack == "pgd (adaptive)")]
    cases = board.cases[(board.cases.training == "natural+smoothing") & (board.cases.attack == "pgd (adaptive)")]
    for eps in cases.eps.unique():
        held = (12 * eps < radius.set_index("case").clean).to_numpy()
        scores = cases[cases.eps == eps].adversarial.to_numpy()
        unsure = abstained[abstained.eps == eps].adversarial.to_numpy() == 1
        assert (scores[held & ~unsure] == 1).all() and (scores[unsure] == 0).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_segmenters_get_preprocessors_and_votes_per_voxel(dims):
    data = segmentation(dims, 6, empty=1)
    board = trial(
        {"spatial-smoothing": ("preprocessor", {}), "smoothing": ("smoothing", {"sigma": 0.01, "n": 9, "samples": 2})},
        data, segmenter(dims), [Planned("pgd-dice", {"max_iter": 4}), Planned("kspace", {"max_iter": 1})], ["10/255"],
    )  # fmt: skip
    for title in ("spatial-smoothing", "smoothing"):
        rows = rows_of(board, f"natural+{title}")
        assert rows.index.tolist() == ["none", "noise", "pgd-dice (unaware)", "pgd-dice (adaptive)", "worst-case"]
        assert rows.clean["none"] > 0.8 and rows.adversarial["worst-case"] < 0.6
        assert (rows.n_unscored == 1).all()
    assert not board.endpoints.endpoint.str.contains("certified|abstained|detect").any()


@pytest.mark.parametrize("dims", [2, 3])
def test_corruptions_have_rows_of_their_own_and_belong_to_no_worst_case(dims):
    data = segmentation(dims, 4, empty=1)
    plain = evaluate(segmenter(dims), data, ["fgsm"], ["2/255"])
    board = evaluate(segmenter(dims), data, ["fgsm"], ["2/255"], corruptions=["darker", "gamma-brighter"])
    rows = board.frame[board.frame.threat.str.startswith("corruption:")]
    assert rows.attack.tolist() == ["darker"] * 5 + ["gamma-brighter"] * 5
    assert rows.threat.tolist() == ["corruption:darker"] * 5 + ["corruption:gamma-brighter"] * 5
    assert rows.eps.tolist() == [1, 2, 3, 4, 5] * 2 and set(rows.unit) == {"severity"} and set(rows.access) == {"none"}
    assert rows.adversarial.iloc[4] == 0 and rows.linf.iloc[4] == pytest.approx(0.3, abs=1e-6)
    assert not rows["flags"].str.contains("monotone").any()
    columns = [column for column in plain.frame if column != "seconds"]
    rest = board.frame[~board.frame.threat.str.startswith("corruption:")]
    pd.testing.assert_frame_equal(rest[columns], plain.frame[columns])  # the worst case too is as it was
    assert len(board.cases) == len(plain.cases) + 10 * len(data.test)


def test_a_suite_names_corruptions_and_defences(discs_by_name, tmp_path):  # noqa: F811
    suite = tiny_suite(
        corruptions=["blur", "darker"],
        defences={"squeezed": {"kind": "preprocessor", "name": "feature-squeezing", "trainings": ["natural"]}},
    )
    board = run_suite(suite, out=tmp_path, save_adversarials=True)
    frame = board.frame
    assert board.meta["defences"] == {"discs-unet-natural+squeezed-0": {"attacks": ["pgd-dice"]}}
    saved = tmp_path / "adversarials" / f"discs-unet-natural+squeezed-0-linf-{8 / 255:.5g}.npz"
    with np.load(saved, allow_pickle=False) as file:
        assert np.abs(file["images"] - segmentation(2).test.x).max() <= 8 / 255
    assert frame.training.drop_duplicates().tolist() == ["none", "natural", "natural+squeezed", "pgd-at"]
    corrupted = frame[frame.threat.str.startswith("corruption:")]
    assert corrupted.groupby(["training", "attack"]).size().eq(5).all()
    assert set(corrupted.attack) == {"blur", "darker"}
    assert frame[frame.training == "natural+squeezed"].attack.tolist() == [
        "none", "noise", "pgd-dice (unaware)", "pgd-dice (adaptive)", "worst-case"
    ]  # fmt: skip
    assert "natural+squeezed" in (tmp_path / "report.html").read_text()


def class_suite(**changes):
    args = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "init_features": 4, "growth_rate": 2,
            "block_config": [1]}  # fmt: skip
    return tiny_suite(
        **{
            "models": [{"name": "net", "network": "DenseNet", "args": args}],
            "trainings": {"natural": {"epochs": 1}},
            "attacks": [{"name": "apgd-ce", "options": {"max_iter": 3}}],
            **changes,
        }
    )


@pytest.fixture
def rows_by_name(monkeypatch):
    monkeypatch.setattr(datasets, "load", lambda name, **options: classification())


@pytest.mark.filterwarnings("ignore:.*rests on the regularisation")
def test_a_suite_fits_what_attacks_and_detectors_need_on_training_cases(rows_by_name, tmp_path):
    suite = class_suite(
        attacks=[{"name": "apgd-ce", "options": {"max_iter": 2}},
                 {"name": "hfc", "options": {"layers": ["features.relu0", "class_layers.pool"], "max_iter": 2}}],
        defences={"lid": {"kind": "detector", "attacks": ["apgd-ce"]},
                  "mahalanobis": {"kind": "detector", "options": {"weights": 0.5}, "attacks": ["apgd-ce"]}},
    )  # fmt: skip
    board = run_suite(suite, out=tmp_path)
    frame = board.frame
    facts = board.meta["defences"]["discs-net-natural+mahalanobis-0"]
    assert facts["layers"] == ["class_layers.pool"] and facts["weights"] == [0.5] and facts["threshold"] > 0
    assert frame[frame.training == "natural"].attack.tolist() == ["none", "noise", "apgd-ce", "hfc", "worst-case"]
    for title in ("lid", "mahalanobis"):
        assert "apgd-ce (adaptive)" in set(frame[frame.training == f"natural+{title}"].attack)


@pytest.mark.parametrize(("changes", "words"), [
    ({"defences": {"lid": {"kind": "detectr"}}}, "defences.lid.kind"),
    ({"defences": {"lidd": {"kind": "detector"}}}, "defence 'lidd': detector 'lidd' is unknown; did you mean 'lid'"),
    ({"defences": {"lid": {"kind": "detector", "options": {"fprr": 1}}}}, "of the detector lid 'fprr' is unknown"),
    ({"defences": {"x": {"kind": "preprocessor", "name": "Mixup"}}}, "ART's Mixup changes images or labels while"),
    ({"defences": {"x": {"kind": "preprocessor", "name": "jpg"}}}, "preprocessor 'jpg' is unknown; did you mean"),
    ({"defences": {"jpeg": {"kind": "preprocessor", "options": {"samples": 3}}}}, "option of the preprocessor jpeg"),
    ({"defences": {"s": {"kind": "smoothing"}}}, "smoothing needs sigma"),
    ({"defences": {"lid": {"kind": "detector", "attacks": ["pgd"]}}}, "attack 'pgd' is unknown; "),
    ({"defences": {"lid": {"kind": "detector", "trainings": ["natrual"]}}}, "training 'natrual' is unknown; did you"),
    ({"corruptions": ["blurr"]}, "corruption 'blurr' is unknown; did you mean 'blur'"),
    ({"corruptions": ["all", "blur"]}, "corruption 'blur' stands twice"),
])  # fmt: skip
def test_what_a_suite_can_not_mean_is_refused_at_once(changes, words):
    with pytest.raises(ValueError, match=words):
        class_suite(**changes)


@pytest.mark.parametrize(("changes", "words"), [
    ({"attacks": [{"name": "square"}], "defences": {"jpeg": {"kind": "preprocessor"}}},
     "task 'discs', defence 'jpeg', model 'net': none of the attacks square can look through the defence"),
    ({"attacks": [{"name": "apgd-ce"}, {"name": "robust"}],
      "defences": {"kde": {"kind": "detector", "attacks": ["robust"]}}},
     "attack 'robust' can't look through the defence; choose some of apgd-ce"),
    ({"defences": {"kde": {"kind": "detector", "options": {"layers": ["none"]}}}}, "layers=.*must name submodules"),
    ({"defences": {"jpeg": {"kind": "preprocessor", "options": {"quality": 0}}}}, "[Qq]uality"),
    ({"defences": {"s": {"kind": "smoothing", "options": {"sigma": "3 HU"}}}}, "the data have no unit"),
    ({"defences": {"lid": {"kind": "detector", "options": {"neighbours": 500}}}}, "have no 500 neighbours"),
])  # fmt: skip
def test_defences_that_can_not_be_right_are_refused_before_training(
    rows_by_name, tmp_path, monkeypatch, changes, words
):
    monkeypatch.setattr(trainings, "train", lambda *given, **options: pytest.fail("it trained"))
    with pytest.raises(ValueError, match=words):
        run_suite(class_suite(**changes), out=tmp_path)


def test_detectors_refuse_voxels_and_data_without_validation_cases(discs_by_name, tmp_path):  # noqa: F811
    with pytest.raises(ValueError, match="defence 'kde'.*is for one diagnosis per image"):
        run_suite(tiny_suite(defences={"kde": {"kind": "detector"}}), out=tmp_path)
    data = classification()
    empty = Dataset(data.name, data.task, data.decision, data.intensity, data.classes, data.train,
                    Cases(data.test.x[:0], data.test.y[:0], ()), data.test)  # fmt: skip
    with pytest.raises(ValueError, match="rows has no validation cases"):
        build_defence("detector", "kde", {}, classifier(), empty)
    with pytest.raises(ValueError, match="kind of defence 'detektor' is unknown; did you mean 'detector'"):
        build_defence("detektor", "kde", {}, classifier(), data)
