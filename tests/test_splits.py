"""Splits: no patient on two sides, published files in the forms of the survey's release, planted overlaps found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medadv.benchmarks.data import SPLITS
from medadv.benchmarks.data.splits import SplitOptions, settle, shared_patients
from medadv.benchmarks.data.survey_splits import read_split_file, split_table


def cohort(patients: int = 40, images: int = 3, split: str = "") -> pd.DataFrame:
    owners = [f"p{i:03d}" for i in range(patients) for _ in range(images)]
    return pd.DataFrame({"id": [f"{who}_{i}" for i, who in enumerate(owners)], "patient": owners, "split": split})


def published(**sides: str) -> pd.DataFrame:
    """A case per letter: its patient."""
    rows = [(f"{split}-{i}", who, split) for split, owners in sides.items() for i, who in enumerate(owners)]
    return pd.DataFrame(rows, columns=["id", "patient", "split"])


def settled(table: pd.DataFrame, seed: int = 0, **options: Any) -> tuple[pd.DataFrame, tuple[str, ...]]:
    return settle(table, SplitOptions(**options), name="mine", seed=seed)


def sides(table: pd.DataFrame) -> dict[str, list[str]]:
    return {split: sorted(table["patient"][table["split"] == split]) for split in SPLITS}


# --- dealing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_dealt_patients_are_apart_in_the_usual_proportions(seed: int) -> None:
    table, notes = settled(cohort(), seed=seed)
    assert not shared_patients(table)
    assert [table["patient"][table["split"] == split].nunique() for split in SPLITS] == [28, 4, 8]
    assert len(table) == 120 and notes == (f"Split dealt by patient (seed {seed}).",)


def test_dealing_depends_on_the_seed_and_not_on_the_order_of_rows() -> None:
    first, _ = settled(cohort())
    turned, _ = settled(cohort().iloc[::-1].reset_index(drop=True))
    other, _ = settled(cohort(), seed=1)
    assert sides(first) == sides(turned) != sides(other)


def test_without_patients_every_case_is_its_own() -> None:
    table, notes = settled(cohort().drop(columns="patient"))
    assert table["split"].value_counts().to_dict() == {"train": 84, "test": 24, "validation": 12}
    assert notes == ("Split dealt by case (seed 0).",)


def test_a_planted_overlap_is_counted_and_refused() -> None:
    table = published(train="aabbccdde", validation="fa", test="ghabb")
    assert shared_patients(table) == {("train", "validation"): {"a"}, ("train", "test"): {"a", "b"},
                                      ("validation", "test"): {"a"}}  # fmt: skip
    with pytest.raises(
        ValueError,
        match=r"published split of mine shares 1 patient between train and validation .of 2 "
        r"in validation., 2 patients between train and test .of 4 in test.*split='patient'.*'published'",
    ):
        settled(table)  # fmt: skip


def test_published_keeps_test_and_takes_shared_patients_out_of_what_comes_before() -> None:
    table, notes = settled(published(train="aabbccdde", validation="fa", test="ghabb"), split="published")
    assert sides(table) == {"train": [*"ccdde"], "validation": ["f"], "test": [*"abbgh"]}
    assert "2 patients between train and test (of 4 in test)" in notes[0]
    assert notes[0].endswith("5 cases of theirs taken out of what comes before.")


def test_patient_deals_anew_in_the_published_proportions() -> None:
    table = cohort(100, 1, "train")
    table.loc[60:, "split"], table.loc[80:, "split"] = "validation", "test"
    table.loc[99, "patient"] = "p000"
    got, _ = settled(table, split="patient")
    assert not shared_patients(got) and len(got) == 100
    assert [len(side) for side in sides(got).values()] == pytest.approx([60, 20, 20], abs=2)


def test_a_clean_published_split_stays_and_validation_is_carved_by_patient() -> None:
    table = cohort(20, 3, "train")
    table.loc[45:, "split"] = "test"
    got, notes = settled(table)
    assert sides(got)["test"] == sides(table)["test"] and not shared_patients(got)
    assert len(set(sides(got)["validation"])) == 2 and notes == ("Validation: 10% of the training patients (seed 0).",)


def test_cases_in_no_published_split_are_left_out_and_said() -> None:
    table = published(train="aabc", validation="d", test="e")
    table.loc[0, "split"] = ""
    got, notes = settled(table)
    assert len(got) == 5 and notes == ("1 case in no published split left out.",)


def test_limits_draw_by_the_seed() -> None:
    few, _ = settled(cohort(), max_train=7, max_test=3)
    assert few["split"].value_counts().to_dict() == {"train": 7, "validation": 3, "test": 3}
    assert set(few["id"]) < set(settled(cohort())[0]["id"])
    assert list(few["id"]) == list(settled(cohort(), max_train=7, max_test=3)[0]["id"])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"split": "publisht"}, "split 'publisht' is unknown; did you mean 'published'"),
        ({"split": "published"}, "mine comes with no split of its own; give split_files"),
        ({"max_train": 0}, "max_train=0 leaves no case"),
        ({"max_test": 2.5}, "max_test=2.5 leaves no case"),
    ],
)
def test_split_options_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        settled(cohort(), **options)


def test_too_few_patients_are_refused() -> None:
    with pytest.raises(ValueError, match="mine has too few patients"):
        settled(cohort(2))
    with pytest.raises(ValueError, match="mine has too few patients for train and validation"):
        settled(published(train="aa", test="b"))
    with pytest.raises(ValueError, match="mine has no case in train"):
        settled(published(train="a", validation="b", test="a"), split="published")


# --- the survey's files -----------------------------------------------------------------------------------------


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\r\n".join(lines) + "\r\n")
    return path


def test_the_three_forms(tmp_path: Path) -> None:
    label = read_split_file(write(tmp_path / "a.csv", "x_1.tif,1", "x_2.tif,0"))
    assert (label.form, label.names, label.values) == ("label", ("x_1.tif", "x_2.tif"), (1, 0))
    labels = read_split_file(write(tmp_path / "b.csv", "Mass,Edema,Hernia", "1_0.png,b010", "1_1.png,b000"))
    assert (labels.form, labels.labels, labels.values) == (
        "labels",
        ("Mass", "Edema", "Hernia"),
        ((0, 1, 0), (0, 0, 0)),
    )
    mask = read_split_file(write(tmp_path / "c.csv", "Viral Pneumonia-3.png,Viral Pneumonia-3.png"))
    assert (mask.form, mask.names, mask.values) == ("mask", ("Viral Pneumonia-3.png",), ("Viral Pneumonia-3.png",))


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ((), "is empty; its forms are name,label"),
        (("image,label", "a.png,0"), "begins with 'image,label'"),
        (("a.png",), "begins with 'a.png', ''"),
        (("a.png,0", "b.png,benign"), "line 2: 'b.png,benign' is not name,label"),
        (("a.png,0", "b.png,1,2"), "line 2: 'b.png,1,2' is not name,label"),
        (("a.png,0", "b.png,b01"), "line 2: 'b.png,b01' is not name,label"),
        (("Mass,Edema", "a.png,b01", "b.png,b011"), "line 3: 'b.png,b011' .* with 2 digits"),
        (("Mass,Edema", "a.png,b02"), "begins with 'Mass,Edema', 'b02'"),
        (("a.png,b01",), "begins with 'a.png,b01', 'b01'"),
        (("a.png,m.png", "b.png,1"), "line 2: 'b.png,1' is not image,mask"),
        (("a.png,0", "a.png,1"), "names a.png twice"),
    ],
)
def test_a_line_of_no_form_is_refused(tmp_path: Path, lines: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        read_split_file(write(tmp_path / "x.csv", *lines) if lines else _touch(tmp_path / "x.csv"))


def _touch(path: Path) -> Path:
    path.write_text("")
    return path


THREE = {"form": "label", "stem": "bin", "classes": ("normal", "ill")}


def test_split_files_by_name_or_by_folder(tmp_path: Path) -> None:
    write(tmp_path / "meta" / "trainbin.csv", "a.png,1", "b.png,0")
    write(tmp_path / "meta" / "testbin.csv", "c.png,1")
    table = split_table(tmp_path, "meta", **THREE)
    assert table.to_dict("list") == {"name": ["a.png", "b.png", "c.png"], "split": ["train", "train", "test"],
                                     "label": [1, 0, 1]}  # fmt: skip
    write(tmp_path / "v.csv", "d.png,0")
    files = {"train": "meta/trainbin.csv", "validation": "v.csv", "test": "meta/testbin.csv"}
    assert split_table(tmp_path, files, **THREE)["split"].tolist() == ["train", "train", "validation", "test"]
    turned = split_table(tmp_path, "meta", **THREE, codes={0: 1, 1: 0})
    assert turned["label"].tolist() == [0, 1, 0]


def test_labels_come_in_the_order_of_the_data_set(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", "Mass,Edema", "a.png,b10")
    write(tmp_path / "test.csv", "Edema,Mass", "b.png,b10")
    table = split_table(tmp_path, ".", form="labels", stem="", classes=("Edema", "Mass"))
    assert table["label"].tolist() == [(0, 1), (1, 0)]


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"train": "a.csv"}, "names no file for test"),
        ({"train": "a.csv", "tets": "b.csv"}, "split 'tets' is unknown; did you mean 'test'"),
        ({"train": "a.csv", "test": "none.csv"}, "there is no split file .*none.csv"),
        ({"train": "a.csv", "test": "../b.csv"}, "leads out of"),
        ({"train": "a.csv", "test": "odd.csv"}, r"label 2 of d.png is unknown; accepted are 0 \(normal\), 1 \(ill\)"),
        ({"train": "a.csv", "test": "again.csv"}, "a.png is in two split files"),
        ({"train": "a.csv", "test": "mask.csv"}, "mask.csv holds image,mask; this data set needs name,label"),
        ("nowhere", "there is no split file .*trainbin.csv"),
    ],
)
def test_split_files_are_refused(tmp_path: Path, files: Any, sentence: str) -> None:
    write(tmp_path / "a.csv", "a.png,1", "b.png,0")
    write(tmp_path / "odd.csv", "d.png,2")
    write(tmp_path / "again.csv", "a.png,1")
    write(tmp_path / "mask.csv", "e.png,e_m.png")
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        split_table(tmp_path, files, **THREE)


def test_unknown_labels_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", "Mass,Oedema", "a.png,b10")
    write(tmp_path / "test.csv", "Mass,Oedema", "b.png,b10")
    with pytest.raises(ValueError, match="label 'Edema' is not in both; the labels are Mass, Edema"):
        split_table(tmp_path, ".", form="labels", stem="", classes=("Mass", "Edema"))


def test_large_files_are_read_and_checked_fast(tmp_path: Path) -> None:
    names = [f"{i // 4:08d}_{i % 4:03d}.png" for i in range(20_000)]
    draw = np.random.default_rng(0).permutation(20_000)
    for split, rows in (("train", draw[:16_000]), ("test", draw[16_000:])):
        write(tmp_path / f"{split}bin.csv", *(f"{names[row]},{row % 2}" for row in rows))
    table = split_table(tmp_path, ".", **THREE).rename(columns={"name": "id"})
    table["patient"] = table["id"].str[:8]
    owners = [set(table["patient"][table["split"] == split]) for split in ("train", "test")]
    with pytest.raises(ValueError, match=f"shares {len(owners[0] & owners[1]):,} patients between train and test"):
        settled(table)
