"""From file to file: what ``medadv attack`` writes, measures and refuses."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from deployments import MODELS, Background, ct, volume

from medadv.adapters import from_bundle
from medadv.adapters.network_files import from_network_file
from medadv.benchmarks.attack_progress import Interrupted
from medadv.benchmarks.cli import main
from medadv.benchmarks.file_attack import FileAttack, summary
from medadv.benchmarks.file_cases import FileCase, cases_of_datalist, cases_of_files

EXAMPLE = Path(__file__).parents[1] / "examples" / "ct_bundle.py"
LITTLE = {"max_iter": 3}


def attack_of(name, folder, **options):
    files = MODELS[name](folder)
    made = FileAttack(
        deployment=files.deployment, attack="pgd-dice" if files.deployment.segments else "pgd", eps=files.eps,
        options={"max_iter": 6}, progress=False, **options,
    )  # fmt: skip
    image = tuple(files.image) if isinstance(files.image, list) else files.image
    return made, FileCase("case", image, files.label, files.extras)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_is_what_the_table_says(tmp_path, name):
    attack, case = attack_of(name, tmp_path)
    table = attack.run([case], tmp_path / "out")
    assert pd.read_csv(tmp_path / "out" / "attack.csv").shape == table.shape
    assert json.loads((tmp_path / "out" / "attack.meta.json").read_text())["eps"] == attack.eps
    folder = tmp_path / "out" / "case"
    assert (folder / "figure.png").stat().st_size > 10_000
    written = [path for path in sorted(folder.iterdir()) if "_adversarial" in path.name]
    assert len(written) == (2 if name == "mr" else 1)
    again = attack.deployment.predict(written if len(written) > 1 else written[0], case.extras)
    assert (table["linf"] > 0).all() and (table["forward_passes"] == 7).all()
    if attack.deployment.segments:
        assert (table["score_after"] < table["score_before"] - 0.1).all()
        stored = np.asarray(nibabel.load(folder / "prediction_after.nii.gz").dataobj)
        expected = again[0].numpy() if again[0].ndim == 3 else np.moveaxis(again[0].numpy(), 0, -1)
        assert np.array_equal(stored, expected)
        assert not table["hd95_mm_after"].isin([np.inf]).any()
    else:
        assert table["before"].item() != table["after"].item()


def test_dice_is_that_of_the_files(tmp_path):
    attack, case = attack_of("ct", tmp_path)
    table = attack.run([case], tmp_path / "out")
    reference = np.asarray(nibabel.load(case.label).dataobj) > 0
    for side in ("before", "after"):
        found = np.asarray(nibabel.load(tmp_path / "out" / "case" / f"prediction_{side}.nii.gz").dataobj) > 0
        dice = 2 * (found & reference).sum() / (found.sum() + reference.sum())
        assert table[f"dice_{side}"].item() == pytest.approx(dice, abs=1e-6)
        assert table[f"volume_ml_{side}"].item() == pytest.approx(found.sum() * 1.5 * 1.2 * 2.5 / 1000)


def test_without_a_label_the_model_is_its_own_reference(tmp_path):
    attack, case = attack_of("ct", tmp_path)
    table = attack.run([FileCase("case", case.image)], tmp_path / "out")
    assert table["reference"].item() == "model" and table["dice_before"].item() == 1 > table["dice_after"].item()


def test_a_region_confines_the_change(tmp_path):
    attack, case = attack_of("ct", tmp_path)
    attack.run([FileCase("case", case.image, case.label, region=case.label)], tmp_path / "out")
    before, after = (nibabel.load(path).get_fdata() for path in (
        case.image, tmp_path / "out" / "case" / "scan_adversarial.nii.gz"))  # fmt: skip
    organ = np.asarray(nibabel.load(case.label).dataobj) > 0
    assert (before != after)[organ].any() and not (before != after)[~organ].any()
    empty = volume(tmp_path / "empty.nii.gz", np.zeros((22, 20, 14)), "uint8")
    refused = attack.run([FileCase("case", case.image, case.label, region=empty)], tmp_path / "none")
    assert "give a mask of shape (22, 20, 14) with some" in refused["error"].item()


def test_a_case_that_fails_is_a_row_and_the_others_go_on(tmp_path):
    attack, case = attack_of("ct", tmp_path)
    broken = FileCase("broken", tmp_path / "none.nii.gz", case.label)
    table = attack.run([broken, FileCase("whole", case.image, case.label)], tmp_path / "out")
    assert table["case"].tolist() == ["broken", "whole"] and "there is no file" in table["error"].iloc[0]
    shown = summary(table)
    assert shown[["structure", "cases", "failed", "unscored"]].values.tolist() == [["organ", 1, 1, 0]]
    assert summary(table.iloc[:1].drop(columns="structure")).empty


class Impatient(Background):
    """Interrupts as Ctrl-C does, at a call."""

    calls, last = 0, 10**9

    def forward(self, x):
        self.calls += 1
        if self.calls > self.last:
            raise KeyboardInterrupt
        return super().forward(x)


def test_ctrl_c_says_what_there_is_and_leaves_whole_files_only(tmp_path):
    network = Impatient(((55 + 175) / 425,), 40.0)
    files = ct(tmp_path, network=network)
    attack = FileAttack(
        deployment=files.deployment, attack="pgd-dice", eps="10 HU", options={"max_iter": 4}, progress=False
    )
    cases = [FileCase(name, files.image, files.label) for name in ("first", "second")]
    attack.run(cases[:1], tmp_path / "counted")
    per_case, network.calls = network.calls, 0
    network.last = per_case + per_case // 2
    words = (
        r"pgd-dice on second was interrupted after \d\.\d of 5 looks at the model; score 0\.\d+ so far; 1 of 2 cases"
    )
    with pytest.raises(Interrupted, match=words):
        attack.run(cases, tmp_path / "out")
    assert pd.read_csv(tmp_path / "out" / "attack.csv")["case"].tolist() == ["first"]
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    names = ("figure.png", "prediction_after.nii.gz", "prediction_before.nii.gz", "scan_adversarial.nii.gz")
    assert found == {"attack.csv", "attack.meta.json", *(f"first/{name}" for name in names)}


def test_the_bar_shows_the_time_left(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    attack, case = attack_of("ct", tmp_path)
    FileAttack(deployment=attack.deployment, attack="pgd-dice", eps="10 HU", options=LITTLE).run(
        [case], tmp_path / "out"
    )
    said = capsys.readouterr().err
    assert "pgd-dice on case" in said and " left" in said and "score 0." in said


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The bundle of the example, hardly trained."""
    spec = importlib.util.spec_from_file_location("ct_bundle", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("work")
    module.main(folder, steps=60)
    return folder


def test_the_command_on_a_bundle(example, tmp_path, capsys):
    words = f"attack --bundle {example}/bundle --image {example}/scan.nii.gz --label {example}/organ.nii.gz"
    assert main([*words.split(), "--eps", "10 HU", "--option", "max_iter=3", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "organ" in printed and "dice_after" in printed and "attack.csv" in printed
    table = pd.read_csv(tmp_path / "attack.csv")
    assert table["unit"].item() == "HU" and table["linf"].item() == 10 and table["storage"].item() == "int16"
    assert table["score_after"].item() < table["score_before"].item()


def test_the_command_on_a_network_and_a_checkpoint(example, tmp_path):
    config = json.loads((example / "bundle" / "configs" / "inference.json").read_text())
    alone = tmp_path / "net.json"
    alone.write_text(json.dumps(config["network_def"]))
    weights = example / "bundle" / "models" / "model.pt"
    made = from_network_file(alone, weights, activation="softmax", window=(-175, 250), unit="HU")
    bundle = from_bundle(example / "bundle")
    assert made.decision == bundle.decision and made.unit == "HU" and made.name == "net"
    x = torch.rand(1, 1, 24, 24, 24)
    with torch.no_grad():
        assert torch.equal(made.network(x), bundle.network(x))
    words = (
        f"attack --network {alone} --checkpoint {weights} --image {example}/scan.nii.gz --out {tmp_path}/out --unit HU"
    )
    more = ["--decision", "softmax", "--window", "-175", "250", "--eps", "5 HU", "--option", "max_iter=1"]
    assert main([*words.split(), *more]) == 0
    (tmp_path / "full.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="has preprocessing of its own"):
        from_network_file(tmp_path / "full.json", weights, window=(0, 1))


REFUSED = {
    "no checkpoint": (["--network", "{example}/bundle/configs/inference.json", "--image", "{example}/scan.nii.gz"],
                      "--network needs --checkpoint"),
    "no image": (["--bundle", "{example}/bundle", "--image", "none.nii"], "there is no file none.nii"),
    "no bundle": (["--bundle", "none", "--image", "{example}/scan.nii.gz"], "none"),
    "window of a bundle": (["--bundle", "{example}/bundle", "--image", "{example}/scan.nii.gz", "--window", "0", "1"],
                           "--window is for --network"),
    "option": (["--bundle", "{example}/bundle", "--image", "{example}/scan.nii.gz", "--option", "max_iter"],
               "has no =; write it like --option name=value"),
    "attack": (["--bundle", "{example}/bundle", "--image", "{example}/scan.nii.gz", "--attack", "pgd-dise"],
               "did you mean 'pgd-dice'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_options_get_one_sentence(case, example, tmp_path, capsys):
    words, said = REFUSED[case]
    assert main(["attack", *(word.format(example=example) for word in words), "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err


def test_a_budget_in_another_unit_is_a_row_with_its_error(example, tmp_path, capsys):
    words = f"attack --bundle {example}/bundle --image {example}/scan.nii.gz --out {tmp_path}"
    assert main([*words.split(), "--eps", "10 mm"]) == 1
    assert "the data are in HU" in capsys.readouterr().err


def test_cases_of_a_folder_and_of_a_datalist(tmp_path):
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        for name in ("b", "a"):
            volume(tmp_path / folder / f"{name}.nii.gz", np.ones((3, 3, 3)), "uint8")
    cases = cases_of_files([tmp_path / "images"], tmp_path / "labels")
    assert [(case.name, case.label.name) for case in cases] == [("a", "a.nii.gz"), ("b", "b.nii.gz")]
    (tmp_path / "labels" / "b.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match="holds no file for b.nii.gz"):
        cases_of_files([tmp_path / "images"], tmp_path / "labels")
    items = [
        {"image": "images/a.nii.gz", "label": "labels/a.nii.gz"},
        {"image": ["images/b.nii.gz", "images/a.nii.gz"]},
    ]
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"training": [{"image": "x"}], "test": items}))
    found = cases_of_datalist(path)
    assert [case.name for case in found] == ["a", "b"] and len(found[1].image) == 2 and found[1].label is None
    assert cases_of_datalist(path, "training")[0].image == tmp_path / "x"
    for content, words in (
        ({"cases": items}, "has no list test or testing"), ([], "holds no list of cases"),
        ([{"label": "x"}], "is no case"), ([{"image": "../secret.nii"}], "leads out of"),
    ):  # fmt: skip
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=words):
            cases_of_datalist(path)
    path.write_text(json.dumps([{"image": "images/a.nii.gz"}]))
    with pytest.raises(ValueError, match="names no mask, which the model sees"):
        cases_of_datalist(path, extra_keys=("mask",))
