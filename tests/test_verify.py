"""A table is confirmed by what is stored, and whatever was tampered with is found."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from finished import tiny_run
from test_leaderboard import segmentation, tiny_suite

from medadv.benchmarks import data as datasets
from medadv.benchmarks.cli import main
from medadv.benchmarks.statistics import mean_interval
from medadv.benchmarks.verify import NOT_STORED, RIGHT, SAME_MACHINE, WRONG, default_tolerance, verify

IMAGES = "adversarials/discs-unet-natural-0-linf-0.031373.npz"


@pytest.fixture
def run(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "load", lambda name, **options: segmentation(2))
    return shutil.copytree(finished, tmp_path / "run")


def test_what_failed_in_the_run_is_not_stored(run):
    frame = pd.read_csv(run / "leaderboard.csv")
    lost = frame.iloc[[-2]].assign(attack="square", adversarial=np.nan, n_unscored=12, error="MemoryError")
    pd.concat([frame, lost]).to_csv(run / "leaderboard.csv", index=False)
    table = verify(run)
    assert table.verdict.iloc[-1] == NOT_STORED and "failed in the run" in table.reason.iloc[-1]
    assert table.verdict.value_counts().to_dict() == {RIGHT: 5, NOT_STORED: 5}


def wrong(table):
    return table[table.verdict == WRONG].reset_index(drop=True)


def test_what_was_stored_is_confirmed(run, capsys):
    table = verify(run)
    assert table.verdict.value_counts().to_dict() == {RIGHT: 5, NOT_STORED: 4}
    confirmed = table[table.verdict == RIGHT]
    assert confirmed.attack.tolist() == ["none", "none", "worst-case", "none", "worst-case"]
    np.testing.assert_array_equal(confirmed.found, confirmed.table)
    assert main(["verify", str(run), "--out", str(run / "verified.csv")]) == 0
    printed = capsys.readouterr().out
    assert "4 rows are the mean of the cases beside it, no more: only images of worst cases are kept." in printed
    assert "5 right, 4 not stored (scores may differ by 1e-06 as a mean over cases)" in printed
    assert len(pd.read_csv(run / "verified.csv")) == 9


def resave(run, change):
    with np.load(run / IMAGES) as saved:
        ids, images = saved["ids"], saved["images"]
    ids, images = change(ids, images.copy())
    np.savez_compressed(run / IMAGES, ids=ids, images=images)


def test_a_voxel_beyond_the_budget_is_found(run):
    def beyond(ids, images):
        images[3, 0, 4, 4] = segmentation(2).test.x[3, 0, 4, 4] + 9 / 255
        return ids, images

    resave(run, beyond)
    (row,) = wrong(verify(run)).itertuples()
    assert (row.training, row.attack) == ("natural", "worst-case") and "case 'c3' is 0.0352" in row.reason
    assert main(["verify", str(run)]) == 1


def mended(images):
    """One voxel as it was: within the budget, and the score may well be the same."""
    images[2, 0, 0, 0] = segmentation(2).test.x[2, 0, 0, 0]
    return images


@pytest.mark.parametrize(("change", "reason"), [
    (lambda ids, images: (ids, np.where(images > 0.52, 2.0, images).astype("f4")), "outside the intensity range"),
    (lambda ids, images: (ids[::-1], images), "its cases are not those of the data"),
    (lambda ids, images: (ids, images[:, :, :8]), r"it holds float32 \(12, 1, 8, 16\), the data are float32"),
    (lambda ids, images: (ids, segmentation(2).test.x), "of case 'c0' is 0, cases.csv says"),
    (lambda ids, images: (ids, mended(images)), r"l2_rms of case 'c2' is .*, cases.csv says"),
])  # fmt: skip
def test_other_images_are_found(run, change, reason):
    resave(run, change)
    rows = wrong(verify(run))
    assert len(rows) == 1 and rows.reason.str.contains(reason).all()


def test_a_damaged_file_is_no_image(run):
    (run / IMAGES).write_bytes(b"PK no zip")
    assert "the file is damaged" in wrong(verify(run)).reason.item()


def test_other_weights_are_found_in_every_row_of_the_network(run):
    path = run / "models" / "discs-unet-natural-0.pt"
    state = torch.load(path, weights_only=True)
    name = next(name for name in state if name.endswith("weight"))
    state[name] = state[name] * 1.0001
    torch.save(state, path)
    rows = wrong(verify(run))
    assert set(rows.training) == {"natural"} and len(rows) == 4
    assert rows.reason.str.contains("discs-unet-natural-0.pt has sha256 .*, the run told").all()
    path.write_bytes(b"no weights")
    assert wrong(verify(run)).reason.str.contains("was refused: it is damaged").all()


def test_other_data_are_found(run, monkeypatch):
    monkeypatch.setattr(datasets, "load", lambda name, **options: segmentation(2, empty=1))
    assert len(wrong(verify(run))) == 9


def edit(path, column, value, *, attack="worst-case"):
    table = pd.read_csv(path, keep_default_na=False, dtype=str)
    hit = (table.attack == attack) & (table.training == "natural")
    table.loc[table[hit].index[0], column] = value
    table.to_csv(path, index=False)


@pytest.mark.parametrize(("column", "value", "attack", "reason"), [
    ("adversarial", "0.9", "worst-case", "adversarial is 0.9, its cases say"),
    ("adversarial", "0.9", "noise", "adversarial is 0.9, its cases say"),
    ("clean", "0.99", "pgd-dice", "clean is 0.99, its cases say"),
    ("success_rate", "0.01", "worst-case", "success_rate is 0.01, its cases say"),
    ("ci_high", "1.5", "worst-case", "ci_high is 1.5, resampling its cases gives"),
    ("n_unscored", "0", "pgd-dice", "n_unscored is 0, its cases say 2"),
])  # fmt: skip
def test_a_number_of_the_table_that_its_cases_contradict_is_found(run, column, value, attack, reason):
    edit(run / "leaderboard.csv", column, value, attack=attack)
    rows = wrong(verify(run))
    assert rows.attack.tolist() == [attack] and reason in rows.reason[0]


def forge(run, attacks, by):
    """Adds to the scores per case of some attacks, and makes means and intervals of the table agree with them."""
    cases = pd.read_csv(run / "cases.csv", keep_default_na=False, na_values=[""])
    for attack in attacks:
        hit = (cases.attack == attack) & (cases.training == "natural")
        cases.loc[hit, "adversarial"] += by
        scores = cases[hit].adversarial.to_numpy()
        interval = mean_interval(scores, list(cases[hit].patient))
        for column, value in (
            ("adversarial", np.nanmean(scores)),
            ("ci_low", interval.low),
            ("ci_high", interval.high),
        ):
            edit(run / "leaderboard.csv", column, str(value), attack=attack)
    cases.to_csv(run / "cases.csv", index=False)


def test_numbers_that_agree_among_each_other_and_not_with_the_model_are_found(run):
    forge(run, ["worst-case"], 0.015)
    assert "under pgd-dice less" in wrong(verify(run, tolerance=0.5)).reason.item(), "no worst case of its attacks"
    forge(run, ["noise", "pgd-dice"], 0.015)
    found = wrong(verify(run))
    assert found.attack.tolist() == ["worst-case"] and "case 'c0' scores" in found.reason[0]
    assert not len(wrong(verify(run, tolerance=0.02))), "a difference as small as the tolerance"


def test_a_lost_file_is_told_and_a_file_too_many_is_wrong(run):
    (run / IMAGES).rename(run / "adversarials" / "discs-other-natural-0-linf-0.5.npz")
    (run / "models" / "discs-unet-pgd-at-0.pt").unlink()
    table = verify(run)
    lost = table[table.verdict == NOT_STORED]
    assert lost.reason.str.contains(f"{IMAGES} is not there").sum() == 1
    assert lost.reason.str.contains("models/discs-unet-pgd-at-0.pt is not there").sum() == 4
    assert wrong(table).reason.tolist()[0] == (
        "no row of the table is of adversarials/discs-other-natural-0-linf-0.5.npz"
    )


def test_regions_own_budgets_defences_and_moved_anatomy(tmp_path, monkeypatch):
    attacks = [
        {"name": "fgsm"}, {"name": "pgd", "title": "inside", "options": {"max_iter": 2}, "region": "foreground"},
        {"name": "affine", "options": {"max_iter": 2}},
        {"name": "pgd", "options": {"norm": 2, "eps": 0.3, "max_iter": 2}},
    ]  # fmt: skip
    defences = {"median": {"kind": "preprocessor", "name": "spatial-smoothing", "attacks": ["fgsm"]}}
    folder = tiny_run(
        tmp_path / "run", tiny_suite(trainings={"natural": {"epochs": 2}}, attacks=attacks, defences=defences)
    )
    monkeypatch.setattr(datasets, "load", lambda name, **options: segmentation(2))
    table = verify(folder)
    assert not len(wrong(table)), wrong(table).reason.tolist()
    worst = table[table.attack == "worst-case"].set_index(["training", "threat", "region"]).verdict.to_dict()
    assert worst == {
        ("natural", "linf", "all"): RIGHT, ("natural", "linf", "foreground"): RIGHT, ("natural", "l2", "all"): RIGHT,
        ("natural", "affine", "all"): NOT_STORED, ("natural+median", "linf", "all"): RIGHT,
    }  # fmt: skip
    path = next((folder / "adversarials").glob("*-linf-foreground-*.npz"))
    with np.load(path) as saved:
        ids, images = saved["ids"], saved["images"].copy()
    images[0, 0, 0, 0] += 0.001
    np.savez_compressed(path, ids=ids, images=images)
    assert "case 'c0' changes outside its region (foreground)" in wrong(verify(folder)).reason.item()


def test_the_tolerance_is_none_on_the_machine_of_the_run_and_stated_elsewhere(run, capsys):
    meta = json.loads((run / "leaderboard.meta.json").read_text())
    assert default_tolerance(meta) == SAME_MACHINE
    meta["hardware"]["processor"] = "another"
    (run / "leaderboard.meta.json").write_text(json.dumps(meta))
    assert main(["verify", str(run)]) == 0
    assert "scores may differ by 0.01" in capsys.readouterr().out


@pytest.mark.parametrize(("change", "message"), [
    (lambda meta: meta["suite"]["tasks"][0].update(name="other"), "task 'discs' of the table is none of the suite's"),
    (lambda meta: meta.pop("suite"), "does not tell how to build its networks"),
    (lambda meta: meta.update(merged=[{"name": "a"}, {"name": "b"}]), "verify the runs it is made of: a, b"),
    (lambda meta: meta.update(schema_version=1), "has schema version 1"),
])  # fmt: skip
def test_what_can_not_be_verified_is_refused_in_one_sentence(run, change, message, capsys):
    meta = json.loads((run / "leaderboard.meta.json").read_text())
    change(meta)
    (run / "leaderboard.meta.json").write_text(json.dumps(meta))
    assert main(["verify", str(run)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert main(["verify", str(run), "--tolerance", "2"]) == 2
