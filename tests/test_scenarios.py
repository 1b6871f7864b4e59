"""What the attacker knows: images made on the target, on its undefended twin, on other models; and what tables say."""

from __future__ import annotations

import copy
import inspect

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from builders import setting

from medadv.adapters import MonaiClassifier, MonaiSegmenter
from medadv.attacks import create, recipe_of
from medadv.benchmarks import crafting, evaluate, figures, run_suite
from medadv.benchmarks.crafting import Seen, Surrogate
from medadv.benchmarks.data.base import Cases, Dataset
from medadv.benchmarks.evaluate import Planned
from medadv.benchmarks.models import build_network, networks
from medadv.benchmarks.replays import planned_attacks
from medadv.benchmarks.suites import Suite, load_suite, parse_suite
from medadv.dct import band_shares, dct_matrix
from medadv.decisions import Multiclass, Multilabel
from medadv.intensities import Intensity

STEPS = {"2/255": {"eps_step": "0.5/255", "max_iter": 2}, "8/255": {"eps_step": "4/255", "max_iter": 3}}
SURROGATES = """
- {name: noise}
- {name: pgd-ce, title: pgd, per_budget: *steps}
- {name: pgd-ce, title: pgd, per_budget: *steps, surrogate: {model: all, training: all}}
- {name: apgd-dice, title: semi-white-box, options: {max_iter: 2}, surrogate: natural}
- {name: square-dice, options: {max_iter: 3}}
- {name: pgd-dice, title: outside, options: {max_iter: 2}, region: background}
- {name: pgd-ce, title: erased, options: {max_iter: 2}, wanted: 1}
"""


def suite(dims: int, attacks: str = SURROGATES) -> Suite:
    unet = {"network": "UNet", "args": {"channels": [4, 8], "strides": [2]}}
    task = {
        "name": "lesions",
        "data": f"embedded-lesions-{dims}d",
        "data_options": {"subjects": [2, 1, 2]},
        "test_cases": 2,
        "models": [
            {"name": "a", **unet},
            {"name": "b", "network": "UNet", "args": {"channels": [4, 6], "strides": [2]}},
        ],
        "trainings": {
            "natural": {"epochs": 1},
            "pgd-at": {"recipe": "pgd-at", "options": {"eps": "2/255", "steps": 1}, "epochs": 1},
        },
    }
    written = yaml.safe_dump({
        "name": "tiny", "budgets": [0, "2/255", "8/255"], "bands": 4, "diagnostics": "none", "tasks": [task],
    })  # fmt: skip
    lines = ["  attacks:", *(f"  {line}" for line in attacks.strip().splitlines())]
    return parse_suite("shared: {steps: &steps " + yaml.safe_dump(STEPS, default_flow_style=True).strip() + "}\n"
                       + written + "\n".join(lines), "tiny")  # fmt: skip


@pytest.fixture(scope="module", params=[2, 3])
def run(request, tmp_path_factory):
    """A suite of two models and two trainings, and how often each attack was run on each model."""
    made: list[tuple[int, str, object]] = []
    original = crafting.craft

    def counted(estimator, order, seen):
        made.append((id(estimator), order.name, order.options["eps"]))
        return original(estimator, order, seen)

    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crafting, "craft", counted)
        patch.setattr(figures, "png_bytes", lambda figure: b"")  # figures take longest
        board = run_suite(suite(request.param), out=folder)
    return board, folder, made


def rows(board, **where):
    frame = board.frame
    for column, value in where.items():
        frame = frame[frame[column] == value]
    return frame


def test_every_surrogate_meets_every_target_but_itself(run):
    board, _, _ = run
    pairs = {f"{model}/{training}" for model in "ab" for training in ("natural", "pgd-at")}
    for target in pairs:
        model, training = target.split("/")
        shown = rows(board, model=model, training=training, eps=8 / 255)
        shown = shown[shown.attack.str.startswith("pgd from ")]
        assert set(shown.surrogate) == pairs - {target}
        assert (shown.attack == "pgd from " + shown.surrogate).all()
    assert (
        rows(board, attack="semi-white-box").surrogate == rows(board, attack="semi-white-box").model + "/natural"
    ).all()
    assert set(rows(board, attack="semi-white-box").training) == {"pgd-at"}


def test_images_are_made_once_per_surrogate(run):
    _, _, made = run
    assert len(made) == len(set(made)) == 2 * (4 + 2)  # the whole matrix and two natural twins, at two budgets


def test_access_says_what_the_attacker_needs(run):
    board, _, _ = run
    expected = {"noise": "none", "pgd": "white-box", "square-dice": "score", "semi-white-box": "semi-white-box",
                "outside": "white-box", "erased": "white-box", "none": "none"}  # fmt: skip
    for attack, access in expected.items():
        assert set(rows(board, attack=attack).access) == {access}
    replayed = board.frame[board.frame.attack.str.startswith("pgd from ")]
    twins = (replayed.surrogate == replayed.model + "/natural") & (replayed.training == "pgd-at")
    assert set(replayed[twins].access) == {"semi-white-box"} and set(replayed[~twins].access) == {"transfer"}
    assert not replayed.queries.any() and replayed.backward_passes.all()


def test_regions_are_threat_sets_of_their_own_and_targets_are_told(run):
    board, _, _ = run
    assert set(rows(board, attack="outside").region) == {"background"} and set(rows(board, attack="pgd").region) == {
        "all"
    }
    worst = rows(board, attack="worst-case", model="a", training="natural", eps=8 / 255)
    assert sorted(worst.region) == ["all", "background"]
    erased = rows(board, attack="erased")
    assert erased.targeted.all() and erased.success_rule.str.startswith("label 1 erased").all()
    assert not board.frame[board.frame.attack != "erased"].targeted.any()
    own = board.cases[(board.cases.model == "a") & (board.cases.training == "natural") & (board.cases.eps > 0)]
    tried = own[~own.attack.isin(["worst-case"])].groupby(["region", "eps", "case"]).adversarial.min()
    found = own[own.attack == "worst-case"].set_index(["region", "eps", "case"]).adversarial
    pd.testing.assert_series_equal(found.sort_index(), tried.sort_index())


def test_options_of_a_budget_are_used_at_that_budget(run):
    board, _, _ = run
    steps = rows(board, attack="pgd").groupby("eps_fraction").steps.agg(set)
    assert steps.to_list() == [{2}, {3}]


def test_transfer_matrix_has_all_pairs_and_the_white_box_diagonal(run):
    board, folder, _ = run
    table = pd.read_csv(folder / "transfer.csv")
    pairs = ["a/natural", "a/pgd-at", "b/natural", "b/pgd-at"]
    square = table[(table.attack == "pgd") & np.isclose(table.eps, 8 / 255)].set_index("surrogate").loc[pairs, pairs]
    assert square.notna().all().all()
    for target in pairs:
        model, training = target.split("/")
        own = rows(board, model=model, training=training, eps=8 / 255)
        assert square.loc[target, target] == pytest.approx(own[own.attack == "pgd"].adversarial.item())
        other = own[own.attack == "pgd from a/natural"]
        assert target == "a/natural" or square.loc["a/natural", target] == pytest.approx(other.adversarial.item())


def test_bands_of_each_perturbation_sum_to_one(run):
    board, folder, _ = run
    table = pd.read_csv(folder / "bands.csv")
    assert set(table.band) == {0, 1, 2, 3} and "none" not in set(table.attack)
    sums = table.groupby(["model", "training", "attack", "region", "eps", "case"]).share.sum()
    np.testing.assert_allclose(sums, 1)
    assert len(sums) == (board.cases.eps > 0).sum()


@pytest.mark.parametrize("shape", [(12, 9), (8, 6, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_pure_cosine_lies_in_its_band(shape, dtype):
    for wave in [(0,) * len(shape), (3, 4, 2)[: len(shape)], tuple(size - 1 for size in shape)]:
        x = torch.ones(shape, dtype=dtype)
        for axis, (k, size) in enumerate(zip(wave, shape, strict=True)):
            x = x * dct_matrix(size, x)[k].view(-1, *[1] * (len(shape) - axis - 1))
        radius = np.sqrt(np.mean([(k / size) ** 2 for k, size in zip(wave, shape, strict=True)]))
        shares = band_shares(torch.stack([x, 3 * x])[:, None], 5)
        assert torch.allclose(shares[:, int(5 * radius)], torch.ones(2, dtype=torch.float64), atol=1e-6)
    noise = torch.randn(2, 3, *shape, dtype=dtype)
    assert torch.allclose(band_shares(noise, 5).sum(1), torch.ones(2, dtype=torch.float64))
    assert band_shares(torch.zeros(1, 1, *shape)).isnan().all()
    with pytest.raises(ValueError, match="bands=0"):
        band_shares(noise, 0)


def test_what_is_replayed_is_the_surrogates_attack_kept_by_loss():
    mine, theirs = setting("voxel-class", seed=1), setting("voxel-class")
    order = crafting.Order("pgd", {"eps": 0.1, "max_iter": 3, "seed": 0})
    seen = Seen(theirs.x, theirs.canonical()[0], "abc", theirs.decision, segments=True)
    made = Surrogate("mine", mine.estimator).craft(theirs.estimator, order, seen)
    own = create("pgd", mine.estimator, keep="loss", **order.options).generate(theirs.x, theirs.y, ids="abc")
    assert np.array_equal(made.images, own) and made.facts["settings"]["keep"] == "loss"
    assert order.replayed.options["keep"] == "loss" and "keep" not in crafting.Order("robust", {}).replayed.options
    with pytest.raises(ValueError, match="must mean the same"):
        Surrogate("image", setting("class").estimator).craft(theirs.estimator, order, seen)


class Brightness(torch.nn.Module):
    """Class 1 (of each voxel, or of the image) above a grey value of a half."""

    def __init__(self, voxels: bool) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(30.0))
        self.voxels = voxels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logit = self.gain * (x - 0.5)
        logit = logit if self.voxels else logit.flatten(1).mean(1, keepdim=True)
        return torch.cat([-logit, logit], 1)


@pytest.mark.parametrize("voxels", [False, True])
def test_a_wanted_diagnosis_is_what_is_reached_and_counted(voxels):
    # every second image is bright and of class 1; its voxels can be dimmed or brightened across the boundary
    bright = np.array([1, 0, 1, 0])
    x = np.where(bright[:, None, None, None] == 1, 0.52, 0.48) * np.ones((4, 1, 6, 6))
    y = np.repeat(bright, 36).reshape(4, 6, 6) if voxels else bright
    kind, decision = (MonaiSegmenter, Multiclass(2, background=0)) if voxels else (MonaiClassifier, Multiclass(2))
    estimator = kind(Brightness(voxels), (1, 6, 6), decision=decision)
    plans = [Planned("pgd", {"max_iter": 4}, "to-1", wanted=1)]
    frame = evaluate(estimator, (x.astype(np.float32), y), plans, ["1/255", "8/255"]).frame
    found = frame[frame.attack == "to-1"].success_rate.tolist()
    assert found == [0.0, 1.0] and frame[frame.attack == "to-1"].targeted.all()
    assert not frame[frame.attack == "worst-case"].targeted.any()  # noise wants nothing
    with pytest.raises(ValueError, match="targeted=True alone would lead the model to the reference"):
        evaluate(estimator, (x.astype(np.float32), y), [("pgd", {"targeted": True})], ["1/255"])
    seen = Seen(x, torch.from_numpy(np.array(y)), "abcd", decision, voxels)
    if voxels:
        assert seen.mask("foreground").reshape(4, -1).all(1).tolist() == [True, False, True, False]
        assert np.array_equal(seen.mask("foreground"), ~seen.mask("background"))
    else:
        with pytest.raises(ValueError, match="region='foreground' is that of a reference per voxel"):
            seen.mask("foreground")
        with pytest.raises(ValueError, match="one class of several that exclude each other"):
            Seen(x, torch.zeros(4, 2), "abcd", Multilabel(2), segments=False).wanted(1)


def test_a_worst_case_needs_what_its_greatest_attack_needs():
    x, y = np.full((2, 1, 6, 6), 0.51, dtype=np.float32), np.array([1, 1])
    mine, twin = (MonaiClassifier(Brightness(False), (1, 6, 6), decision=Multiclass(2)) for _ in range(2))
    replay = Planned("fgsm", surrogate=Surrogate("twin", twin))
    for plans, access, source in [
        ([], "none", "none"),
        ([replay], "transfer", "twin"),
        ([replay, Planned("square", {"max_iter": 2})], "score", "several"),
        ([Planned("square", {"max_iter": 2})], "score", "none"),
        ([replay, Planned("fgsm")], "white-box", "several"),
    ]:
        worst = evaluate(mine, (x, y), plans, ["4/255"]).frame.set_index("attack").loc["worst-case"]
        assert (worst.access, worst.surrogate) == (access, source)


def test_an_attack_at_its_own_budget_joins_the_worst_case_of_that_budget():
    x, y = np.full((2, 1, 6, 6), 0.51, dtype=np.float32), np.array([1, 1])
    mine = MonaiClassifier(Brightness(False), (1, 6, 6), decision=Multiclass(2))
    plans = [Planned("fgsm", {"eps": eps}, title=f"fgsm at {eps}") for eps in ("4/255", "12/255")]
    frame = evaluate(mine, (x, y), plans, ["4/255", "8/255"]).frame
    attacks = ["none", "noise", "worst-case", "noise", "worst-case", "fgsm at 4/255", "fgsm at 12/255", "worst-case"]
    assert frame.attack.tolist() == attacks
    worst = frame[frame.attack == "worst-case"]
    assert (worst.eps * 255).round().tolist() == [4, 8, 12]
    assert worst.adversarial.tolist() == [0, 1, 0] and worst.access.tolist() == ["white-box", "none", "white-box"]


def test_ignored_voxels_stay_ignored_under_attack(monkeypatch):
    case = setting("voxel-class", ignore_index=9)
    y = case.y.copy()
    y[:, :4] = 9
    images = Cases(case.x, y, ("p", "q", "r"))
    nothing = Cases(case.x[:0], y[:0], ())
    data = Dataset("d", "segmentation", case.decision, Intensity(0, 1), tuple("abc"), nothing, nothing, images)
    asked = []
    monkeypatch.setattr(crafting, "create", lambda name, estimator, **options: asked.append(name) or Recorder(
        create(name, estimator, **options), asked))  # fmt: skip
    evaluate(case.estimator, data, ["fgsm"], ["4/255"])
    assert all((given[:, :4] == 9).all() for given in asked if isinstance(given, np.ndarray)) and len(asked) == 4


class Recorder:
    """An attack that notes the reference it gets."""

    def __init__(self, attack, asked) -> None:
        self.attack, self.asked = attack, asked

    def generate(self, x, y, **options):
        self.asked.append(y)
        return self.attack.generate(x, y, **options)

    def __getattr__(self, name):
        return getattr(self.attack, name)


def refused(message: str, attack: str) -> None:
    with pytest.raises(ValueError, match=message):
        suite(2, f"- {attack}")


def test_scenarios_that_cannot_be_right_are_refused_before_anything_runs():
    refused("training 'naturl' is unknown; did you mean 'natural'", "{name: fgsm, surrogate: naturl}")
    refused("model 'c' is unknown", "{name: fgsm, surrogate: {model: c}}")
    refused("'noise' looks at no model", "{name: noise, surrogate: natural}")
    refused("name the attack that is run there", "{name: transfer}")
    refused("'8/255' is missing", '{name: pgd, per_budget: {"2/255": {max_iter: 2}}}')
    refused("no budget of the suite is '4/255'", '{name: pgd, per_budget: {"4/255": {max_iter: 2}}}')
    refused("max_itr", '{name: pgd, per_budget: {"2/255": {max_itr: 2}, "8/255": {}}}')
    refused("runs once, at its own budget", '{name: vafa, per_budget: {"2/255": {max_iter: 2}}}')
    refused("eps is the budget itself", '{name: pgd, per_budget: {"2/255": {eps: 1}, "8/255": {}}}')
    refused("give wanted:, the class", "{name: pgd, options: {targeted: true}}")
    refused("'fab' has no direction", "{name: fab, wanted: 1}")
    refused("Input should be 'all', 'foreground' or 'background'", "{name: pgd, region: lung}")
    refused(
        "attack 'fgsm from natural' stands twice",
        "{name: fgsm, surrogate: natural}\n- {name: fgsm, surrogate: natural}",
    )
    written = suite(2).model_dump(mode="json")
    for path, message in (
        (("models", 1, "name"), "model 'a' stands twice"),
        (("models", 0, "name"), "'all' means all"),
    ):
        changed = copy.deepcopy(written)
        changed["tasks"][0][path[0]][path[1]]["name"] = message.split("'")[1]
        with pytest.raises(ValueError, match=message):
            parse_suite(yaml.safe_dump(changed), "mine")


PUBLISHED = ("survey-classification", "survey-segmentation", "volumetric", "rog")


@pytest.mark.parametrize("name", PUBLISHED)
def test_attacks_and_networks_of_the_published_settings_exist_for_their_tasks(name):
    plan = load_suite(name)
    dims, kind = (2, "classification") if name == "survey-classification" else (2, "segmentation")
    if name in ("volumetric", "rog"):
        dims = 3
    labels = {attack.label for task in plan.tasks for attack in task.attacks}
    assert {"noise", "robust"} <= labels
    for task in plan.tasks:
        for attack in task.attacks:
            row = recipe_of(attack.name)
            assert kind in row.tasks and dims in row.ranks
    shape = {"spatial_dims": dims, "in_channels": 1, "out_channels": 3, "num_classes": 3, "img_size": (96,) * dims}
    for model in plan.tasks[0].models:
        taken = inspect.signature(networks()[model.network]).parameters
        with torch.device("cpu" if model.network == "SwinUNETR" else "meta"):  # it reads a number off a tensor
            network = build_network(model.network, {**{k: v for k, v in shape.items() if k in taken}, **model.args})
        assert sum(p.numel() for p in network.parameters()) > 1e6


def test_published_step_sizes_of_each_budget():
    for name, titles in (
        ("survey-classification", ("pgd-20", "semi-pgd-20")),
        ("survey-segmentation", ("pgd-20-dice",)),
    ):
        attacks = {attack.label: attack for attack in load_suite(name).tasks[0].attacks}
        for title in titles:
            steps = [Intensity(0, 1).budget(o["eps_step"]).eps for o in attacks[title].per_budget.values()]
            assert np.allclose(np.array(steps) * 255, [0.5, 0.5, 1, 2])
    steps = [Intensity(0, 255).budget(o["eps_step"]).fraction
             for o in load_suite("survey-classification").tasks[0].attacks[3].per_budget.values()]  # fmt: skip
    assert np.allclose(steps, [0.0015, 0.0015, 0.003, 0.003])


def test_one_model_has_each_other_one_as_a_surrogate():
    task = load_suite("survey-classification").tasks[0]
    names = [(model.name, training) for model in task.models for training in task.trainings]
    trained = dict.fromkeys(names)
    for target in names:
        plans = [plan for plan in planned_attacks(task, target, trained, crafting.Memory()) if plan.surrogate]
        assert len([plan for plan in plans if plan.title.startswith("pgd-20 from ")]) == len(names) - 1
        assert len([plan for plan in plans if plan.title.startswith("semi-")]) == (4 if target[1] != "natural" else 0)
