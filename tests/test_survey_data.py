"""The survey's collections in the layouts in which people have them, made small by the tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medadv.benchmarks.data import COLLECTIONS, SPLITS, Dataset, load, names
from medadv.benchmarks.data.chest import FINDINGS
from medadv.decisions import Multiclass, Multilabel
from medadv.intensities import Intensity

SMALL = {"resize": (8, 8)}


def picture(path: Path, value: int, mode: str = "RGB", size: tuple[int, int] = (12, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode in "LP" else (value,) * len(mode)).save(path)


def half_mask(path: Path, mode: str = "L", size: tuple[int, int] = (12, 10)) -> None:
    """Left half background, right half foreground."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.new("L", size, 0)
    mask.paste(255, (size[0] // 2, 0, size[0], size[1]))
    mask.convert(mode).save(path)


def lines(path: Path, *rows: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n")


def everything(data: Dataset) -> dict[str, Any]:
    """Reference by case over all splits."""
    return {name: y.tolist() for split in SPLITS for name, y in zip(getattr(data, split).ids, getattr(data, split).y)}


# --- the layouts ------------------------------------------------------------------------------------------------


def messidor(root: Path) -> dict[str, int]:
    grades = {f"2005110{i}_5{i}000_0100_PP.tif": i % 4 for i in range(10)}
    for base, part in (("Base11", slice(0, 5)), ("Base12", slice(5, 10))):
        rows = [f"{name},Service Ophtalmologie,{grade},0" for name, grade in list(grades.items())[part]]
        header = "Image name,Ophthalmologic department,Retinopathy grade,Risk of macular edema "
        lines(root / "messidor" / base / f"Annotation_{base}.csv", header, *rows)
        for name in list(grades)[part]:
            picture(root / "messidor" / base / name, 10 * grades[name])
    return grades


def isic(root: Path) -> dict[str, int]:
    labels = {}
    for part, count in (("Training", 6), ("Validation", 3), ("Test_v2", 3)):
        rows = []
        for i in range(count):
            name = f"ISIC_{len(labels):07d}"
            labels[name] = i % 3
            picture(root / "isic2017" / f"ISIC-2017_{part}_Data" / f"{name}.jpg", 100)
            picture(root / "isic2017" / f"ISIC-2017_{part}_Data" / f"{name}_superpixels.png", 7)
            half_mask(root / "isic2017" / f"ISIC-2017_{part}_Part1_GroundTruth" / f"{name}_segmentation.png")
            rows.append(f"{name},{float(i % 3 == 1)},{float(i % 3 == 2)}")
        lines(root / "isic2017" / f"ISIC-2017_{part}_Part3_GroundTruth.csv",
              "image_id,melanoma,seborrheic_keratosis", *rows)  # fmt: skip
    return labels


def chestxray(root: Path, patients: int = 12) -> dict[str, str]:
    """Two images a patient, every third patient without a finding, every second image RGBA as some of NIH's are."""
    cells = {}
    for who in range(1, patients + 1):
        for visit in range(2):
            name = f"{who:08d}_{visit:03d}.png"
            cells[name] = "No Finding" if who % 3 == 0 else "Mass|Edema" if visit else "Hernia"
            folder = root / "chestxray14" / f"images_{1 + who % 2:03d}" / "images"
            picture(folder / name, who, "RGBA" if visit else "L")
    rows = [f"{name},{cell},0,{int(name[:8])},60,F,PA" for name, cell in cells.items()]
    header = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
    lines(root / "chestxray14" / "Data_Entry_2017.csv", header, *rows)
    return cells


def lists(root: Path, cells: dict[str, str], test_from: int) -> None:
    lines(root / "chestxray14" / "train_val_list.txt", *(name for name in cells if int(name[:8]) < test_from))
    lines(root / "chestxray14" / "test_list.txt", *(name for name in cells if int(name[:8]) >= test_from))


def covid_qu_ex(root: Path) -> None:
    for whole in ("Lung Segmentation Data", "Infection Segmentation Data"):
        for split, count in (("Train", 3), ("Val", 1), ("Test", 2)):
            for i in range(count):
                for kind, name in (("COVID-19", f"covid_{split}{i}"), ("Normal", f"Normal ({split}{i})")):
                    folder = root / "covid-qu-ex" / whole / whole / split / kind
                    picture(folder / "images" / f"{name}.png", 40, "L")
                    half_mask(folder / "lung masks" / f"{name}.png")
                    half_mask(folder / "infection masks" / f"{name}.png")


def covid_radiography(root: Path) -> None:
    for kind in ("COVID", "Viral Pneumonia"):
        for i in range(6):
            picture(root / "covid-radiography" / kind / "images" / f"{kind}-{i}.png", 40, "L" if i else "RGB", (30, 30))
            half_mask(root / "covid-radiography" / kind / "masks" / f"{kind}-{i}.png", "RGB", (26, 26))
        lines(root / "covid-radiography" / f"{kind}.metadata.csv", "FILE NAME,FORMAT")


# --- what they are read as --------------------------------------------------------------------------------------


def test_names_and_rows() -> None:
    assert set(COLLECTIONS) <= set(names())
    assert {"messidor-binary", "messidor-grades", "isic2017-binary", "isic2017", "isic2017-lesion", "chestxray14",
            "chestxray14-binary", "covid-qu-ex-lungs", "covid-radiography-lungs"} == set(COLLECTIONS)  # fmt: skip
    assert all(row.source.endswith(".") and row.layout and row.decision.channels == len(row.classes)
               for row in COLLECTIONS.values())  # fmt: skip


def test_messidor(tmp_path: Path) -> None:
    grades = messidor(tmp_path)
    data = load("messidor-grades", data_root=tmp_path, **SMALL)
    assert everything(data) == grades and data.decision == Multiclass(4)
    assert data.train.x.shape == (7, 3, 8, 8) and data.intensity == Intensity(0, 1)
    for case, grade in zip(data.train.x, data.train.y, strict=True):
        assert np.allclose(case, 10 * grade / 255)
    assert data.train.patients is None and any("names no patients" in note for note in data.notes)
    binary = load("messidor-binary", data_root=tmp_path / "messidor", **SMALL)
    assert everything(binary) == {name: int(grade > 0) for name, grade in grades.items()}
    assert binary.classes == ("no retinopathy", "retinopathy")


def test_messidor_in_excel_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grades = messidor(tmp_path)
    for csv in (tmp_path / "messidor").rglob("*.csv"):
        csv.rename(csv.with_suffix(".xls"))
    monkeypatch.setattr(pd, "read_excel", pd.read_csv)
    assert everything(load("messidor-grades", data_root=tmp_path, **SMALL)) == grades

    def lacking(*_: Any, **__: Any) -> None:
        raise ImportError("Missing optional dependency 'xlrd'. Use pip or conda to install xlrd.")

    monkeypatch.setattr(pd, "read_excel", lacking)
    with pytest.raises(ImportError, match=r"Annotation_Base11.xls is an Excel file .*xlrd.* save it as CSV"):
        load("messidor-grades", data_root=tmp_path)


def test_isic(tmp_path: Path) -> None:
    labels = isic(tmp_path)
    data = load("isic2017", data_root=tmp_path, **SMALL)
    assert everything(data) == labels and data.classes == ("nevus", "melanoma", "seborrheic keratosis")
    assert [len(getattr(data, split)) for split in SPLITS] == [6, 3, 3] and data.train.x.shape == (6, 3, 8, 8)
    binary = load("isic2017-binary", data_root=tmp_path, **SMALL)
    assert everything(binary) == {name: int(label > 0) for name, label in labels.items()}
    lesion = load("isic2017-lesion", data_root=tmp_path, **SMALL)
    assert [len(getattr(lesion, split)) for split in SPLITS] == [6, 3, 3] and lesion.test.ids == data.test.ids
    assert lesion.decision == Multiclass(2, background=0)
    assert (lesion.test.y == [[0] * 4 + [1] * 4] * 8).all()


def test_chestxray14(tmp_path: Path) -> None:
    cells = chestxray(tmp_path)
    data = load("chestxray14", data_root=tmp_path, **SMALL)
    assert data.decision == Multilabel(14) and data.train.y.dtype == np.uint8
    found = {name: {FINDINGS[i] for i in np.flatnonzero(y)} for name, y in everything(data).items()}
    assert found == {name: set(cell.split("|")) - {"No Finding"} for name, cell in cells.items()}
    binary = load("chestxray14-binary", data_root=tmp_path, **SMALL)
    assert everything(binary) == {name: int(cell != "No Finding") for name, cell in cells.items()}
    assert binary.classes == ("no finding", "finding") and binary.notes == ("Split dealt by patient (seed 0).",)
    for cases in (getattr(binary, split) for split in SPLITS):
        assert cases.x.shape[1:] == (1, 8, 8) and cases.patients == tuple(name[:8] for name in cases.ids)
        assert np.allclose(cases.x[:, 0, 0, 0], [int(who) / 255 for who in cases.patients])
    assert load("chestxray14-binary", data_root=tmp_path, seed=1, **SMALL).test.ids != binary.test.ids


def test_nih_lists_are_the_split_and_are_checked(tmp_path: Path) -> None:
    cells = chestxray(tmp_path)
    lists(tmp_path, cells, test_from=10)
    data = load("chestxray14", data_root=tmp_path, **SMALL)
    assert set(data.test.patients or ()) == {f"{who:08d}" for who in (10, 11, 12)}
    assert data.notes == ("Validation: 10% of the training patients (seed 0).",)
    folder, moved = tmp_path / "chestxray14", ("00000001_000.png", "00000002_001.png")
    lines(folder / "test_list.txt", *(name for name in cells if int(name[:8]) >= 10), *moved)
    lines(folder / "train_val_list.txt", *(name for name in cells if int(name[:8]) < 10 and name not in moved))
    with pytest.raises(ValueError, match=r"shares 2 patients between train and test \(of 5 in test\).*split='patient'"):
        load("chestxray14", data_root=tmp_path, **SMALL)
    kept = load("chestxray14", data_root=tmp_path, split="published", **SMALL)
    assert set(kept.test.ids) >= set(moved) and len(kept.test) == 8
    assert "2 cases of theirs taken out" in kept.notes[0]
    dealt = load("chestxray14", data_root=tmp_path, split="patient", **SMALL)
    assert sum(len(getattr(dealt, split)) for split in SPLITS) == len(cells)
    (tmp_path / "chestxray14" / "test_list.txt").unlink()
    with pytest.raises(FileNotFoundError, match="holds no test_list.txt to the other list"):
        load("chestxray14", data_root=tmp_path)


def test_covid_qu_ex_reads_lungs_and_not_infections(tmp_path: Path) -> None:
    covid_qu_ex(tmp_path)
    data = load("covid-qu-ex-lungs", data_root=tmp_path, **SMALL)
    assert [len(getattr(data, split)) for split in SPLITS] == [6, 2, 4]
    assert data.train.x.shape == (6, 1, 8, 8) and (data.train.y == [[0] * 4 + [1] * 4] * 8).all()
    inside = tmp_path / "covid-qu-ex" / "Lung Segmentation Data"
    assert load("covid-qu-ex-lungs", data_root=inside, **SMALL).sha256 == data.sha256


def test_covid_radiography_fits_smaller_masks(tmp_path: Path) -> None:
    covid_radiography(tmp_path)
    data = load("covid-radiography-lungs", data_root=tmp_path, **SMALL)
    assert sum(len(getattr(data, split)) for split in SPLITS) == 12
    assert (data.train.y == [[0] * 4 + [1] * 4] * 8).all()
    with pytest.raises(ValueError, match=r"has shape \(30, 30\) and its mask .* \(26, 26\)"):
        load("covid-radiography-lungs", data_root=tmp_path, fit_masks=False)


# --- the survey's split files over them -------------------------------------------------------------------------


def test_split_files_give_names_labels_and_split(tmp_path: Path) -> None:
    grades = messidor(tmp_path)
    order = list(grades)
    for kind, of in (("", lambda grade: grade), ("bin", lambda grade: int(grade > 0))):
        lines(
            tmp_path / "messidor" / "meta" / f"train{kind}.csv", *(f"{name},{of(grades[name])}" for name in order[3:])
        )
        lines(tmp_path / "messidor" / "meta" / f"test{kind}.csv", *(f"{name},{of(grades[name])}" for name in order[:3]))
    for name in ("messidor-grades", "messidor-binary"):
        data = load(name, data_root=tmp_path, split_files="meta", **SMALL)
        assert sorted(data.test.ids) == sorted(order[:3]) and len(data.validation) == 1
        assert everything(data) == everything(load(name, data_root=tmp_path, **SMALL))


def test_split_files_need_no_annotations(tmp_path: Path) -> None:
    """As the survey's users have them: all images in img/, all masks in target/."""
    for i in range(6):
        picture(tmp_path / "img" / f"ISIC_{i:07d}.jpg", 100)
        half_mask(tmp_path / "target" / f"ISIC_{i:07d}_segmentation.png")
    for kind, cell in (("", "2"), ("Seg", None)):
        for split, rows in (("train", range(4)), ("test", range(4, 6))):
            cells = [f"ISIC_{i:07d}.jpg,{cell or f'ISIC_{i:07d}_segmentation.png'}" for i in rows]
            lines(tmp_path / f"{split}{kind}.csv", *cells)
    assert load("isic2017", data_root=tmp_path, split_files=".", **SMALL).train.y.tolist() == [2, 2, 2]
    lesion = load("isic2017-lesion", data_root=tmp_path, split_files=".", **SMALL)
    assert lesion.test.ids == ("ISIC_0000004.jpg", "ISIC_0000005.jpg") and lesion.test.y.mean() == 0.5
    with pytest.raises(FileNotFoundError, match="holds no isic2017, which is: ISIC-2017_"):
        load("isic2017", data_root=tmp_path)


def test_the_released_chest_split_shares_patients(tmp_path: Path) -> None:
    """Images dealt without regard to patients, 1 for no finding: as released."""
    cells = chestxray(tmp_path)
    first = [name for name in cells if name.endswith("_000.png")]
    second = [name for name in cells if name.endswith("_001.png")]
    header = ",".join(reversed(FINDINGS))
    code = {
        name: "b" + "".join(str(int(f in cell.split("|"))) for f in reversed(FINDINGS)) for name, cell in cells.items()
    }
    meta = tmp_path / "chestxray14" / "meta"
    for split, part in (("train", [*first, *second[:8]]), ("test", second[8:])):
        lines(meta / f"{split}bin.csv", *(f"{name},{int(cells[name] == 'No Finding')}" for name in part))
        lines(meta / f"{split}MultiLabel_1w.csv", header, *(f"{name},{code[name]}" for name in part))
    for name in ("chestxray14-binary", "chestxray14"):
        with pytest.raises(
            ValueError, match=rf"split of {name} shares 4 patients between train and test \(of 4 in test"
        ):
            load(name, data_root=tmp_path, split_files="meta", **SMALL)
        dealt = load(name, data_root=tmp_path, split_files="meta", split="patient", **SMALL)
        assert everything(dealt) == everything(load(name, data_root=tmp_path, **SMALL))
        kept = load(name, data_root=tmp_path, split_files="meta", split="published", **SMALL)
        assert sorted(kept.test.ids) == sorted(second[8:])
        assert len(kept.train) + len(kept.validation) == 16 and "4 cases of theirs taken out" in kept.notes[0]


def test_labels_that_contradict_the_source_are_refused(tmp_path: Path) -> None:
    cells = chestxray(tmp_path)
    for split, part in (("train", slice(0, 18)), ("test", slice(18, 24))):
        rows = [f"{name},{int(cell != 'No Finding')}" for name, cell in list(cells.items())[part]]
        lines(tmp_path / "chestxray14" / f"{split}bin.csv", *rows)
    sentence = r"24 of 24 labels in split_files contradict .* 00000001_000.png: no finding against finding"
    with pytest.raises(ValueError, match=sentence):
        load("chestxray14-binary", data_root=tmp_path, split_files=".", **SMALL)


# --- limits, missing files and what can't be right --------------------------------------------------------------


def test_only_what_is_used_is_read(tmp_path: Path) -> None:
    isic(tmp_path)
    data = load("isic2017", data_root=tmp_path, max_train=2, max_test=1, **SMALL)
    assert [len(getattr(data, split)) for split in SPLITS] == [2, 1, 1] and "4 of 12 cases are used." in data.notes
    for name in set(everything(load("isic2017", data_root=tmp_path, **SMALL))) - set(everything(data)):
        next((tmp_path / "isic2017").rglob(f"{name}.jpg")).write_bytes(b"broken")
    assert load("isic2017", data_root=tmp_path, max_train=2, max_test=1, **SMALL).sha256 == data.sha256


def test_missing_images_are_refused_or_left_out(tmp_path: Path) -> None:
    chestxray(tmp_path)
    for path in (tmp_path / "chestxray14" / "images_001" / "images").iterdir():
        path.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"12 of 24 cases of chestxray14 have no image beneath .*skip_missing=True"
    ):
        load("chestxray14", data_root=tmp_path)
    data = load("chestxray14", data_root=tmp_path, skip_missing=True, **SMALL)
    assert len(everything(data)) == 12 and data.notes[0] == "12 cases without files left out."


def test_copies_under_other_names_are_counted(tmp_path: Path) -> None:
    for i in range(6):
        picture(tmp_path / "img" / f"ISIC_{i:07d}.png", 10 * i if i < 5 else 20)
    lines(tmp_path / "test.csv", *(f"ISIC_{i:07d}.png,1" for i in (4, 5)))
    lines(tmp_path / "validation.csv", "ISIC_0000000.png,0")
    lines(tmp_path / "train.csv", *(f"ISIC_{i:07d}.png,0" for i in range(1, 4)))
    data = load("isic2017", data_root=tmp_path, split_files=".", **SMALL)
    assert data.notes[-1] == "1 of 2 test images are in training too, pixel by pixel, under other names."


def test_a_name_at_two_places_is_refused(tmp_path: Path) -> None:
    isic(tmp_path)
    picture(tmp_path / "isic2017" / "more" / "ISIC_0000000.png", 9)
    with pytest.raises(
        ValueError, match=r"ISIC_0000000 is at .*ISIC_0000000.jpg and at more.ISIC_0000000.png; leave one"
    ):
        load("isic2017", data_root=tmp_path)


@pytest.mark.parametrize(
    ("make", "name", "file", "old", "new", "sentence"),
    [
        (messidor, "messidor-grades", "Annotation_Base11.csv", "Retinopathy grade", "Grade",
         "Annotation_Base11.csv has no column Retinopathy grade; it has Image name"),
        (messidor, "messidor-binary", "Annotation_Base11.csv", "Ophtalmologie,2", "Ophtalmologie,4",
         "holds the retinopathy grade '4'; grades are 0, 1, 2 and 3"),
        (messidor, "messidor-grades", "Annotation_Base11.csv", "20051101_51000", "20051100_50000",
         "annotations of messidor-grades name 20051100_50000_0100_PP.tif twice"),
        (isic, "isic2017", "ISIC-2017_Training_Part3_GroundTruth.csv", "1.0,0.0", "1.0,1.0", "and 1 for one at most"),
        (isic, "isic2017", "ISIC-2017_Test_v2_Part3_GroundTruth.csv", "1.0,0.0", "yes,0.0", "must hold 0 or 1"),
        (chestxray, "chestxray14", "Data_Entry_2017.csv", "Hernia", "Hiccups",
         "label 'Hiccups' of 00000001_000.png is unknown; they are Atelectasis"),
        (chestxray, "chestxray14", "Data_Entry_2017.csv", "Mass|Edema", "Mass|No Finding", "or No Finding alone"),
        (chestxray, "chestxray14", "Data_Entry_2017.csv", "Hernia,0,7,", "Hernia,0,8,",
         "says patient 8 of 00000007_000.png, whose name says another"),
        (chestxray, "chestxray14", "Data_Entry_2017.csv", "00000004_000", "chest_4",
         "whose name says another|doesn't begin with a patient"),
    ],
)  # fmt: skip
def test_annotations_are_refused(
    tmp_path: Path, make: Callable[[Path], Any], name: str, file: str, old: str, new: str, sentence: str
) -> None:
    make(tmp_path)
    path = next(tmp_path.rglob(file))
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=sentence):
        load(name, data_root=tmp_path)


@pytest.mark.parametrize("name", COLLECTIONS)
def test_nothing_there_says_what_is_expected(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"{name} needs its files .*give their folder as data_root"):
        load(name)
    with pytest.raises(FileNotFoundError, match=f"holds no {name}, which is: "):
        load(name, data_root=tmp_path)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"colour": 1}, "option colour is none of messidor-grades; accepted are split_files, skip_missing"),
        ({"split": "published"}, "messidor-grades comes with no split of its own"),
        ({"mode": "CMYK"}, "mode='CMYK' is none; choose 'L'"),
        ({"resize": (4, 4, 4)}, "doesn't fit images of 2 axes"),
        ({"pixdim": (1, 1)}, "is for volumes whose files state a voxel size"),
        ({"spacing": "files"}, "spacing='files' can't be read"),
        ({"split_files": "../meta"}, "leads out of"),
    ],
)
def test_options_are_refused(tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    messidor(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        load("messidor-grades", data_root=tmp_path, **options)


@pytest.mark.parametrize("name", COLLECTIONS)
def test_real_collections(name: str) -> None:
    root = Path(os.environ.get("MEDADV_DATA", "none")) / COLLECTIONS[name].folder
    if not root.is_dir():
        pytest.skip(f"MEDADV_DATA names no folder with {COLLECTIONS[name].folder}")
    data = load(name, data_root=root, max_train=8, max_test=4)
    assert len(data.train) == 8 and data.decision == COLLECTIONS[name].decision
