"""Volumes named by a datalist: lists, labels, patients, voxel sizes and channels; the Decathlon only on request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medadv.benchmarks.data import SPLITS, load, names
from medadv.benchmarks.data.medmnist import SIZES, STEMS
from medadv.benchmarks.data.volumes import DATALISTS, DECATHLON
from medadv.decisions import Multiclass

LABELS = {"0": "background", "1": "organ", "2": "tumour"}


def volume(
    path: Path, value: int = 0, shape: tuple[int, ...] = (8, 6, 4), spacing: tuple[float, ...] = (1, 1, 2)
) -> np.ndarray:
    """A box of ``value`` in the middle of 0."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros(shape, dtype=np.int16)
    array[2:6, 2:4, 1:3] = value
    nib.save(nib.Nifti1Image(array, np.diag([*spacing, 1.0])), path)
    return array


def case(root: Path, stem: str, number: int = 2, **geometry: Any) -> dict[str, str]:
    volume(root / "imagesTr" / f"{stem}.nii.gz", 100, **geometry)
    volume(root / "labelsTr" / f"{stem}.nii.gz", number, **{**geometry, "shape": geometry.get("shape", (8, 6, 4))[:3]})
    return {"image": f"./imagesTr/{stem}.nii.gz", "label": f"./labelsTr/{stem}.nii.gz"}


def datalist(root: Path, file: str = "dataset.json", **content: Any) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(content))
    return root


PLAIN = {"window": (0, 100), "unit": "HU"}


def sizes(data: Any) -> list[int]:
    return [len(getattr(data, split)) for split in SPLITS]


def test_names() -> None:
    assert {"datalist/btcv", "datalist/acdc", "datalist/hecktor", "datalist/abdomenct-1k", "datalist"} <= set(names())
    assert {row.name for row in DECATHLON} <= set(names()) and len(DECATHLON) == 10
    assert all(row.source.endswith(".") for row in (*DATALISTS, *DECATHLON))


def test_three_lists(tmp_path: Path) -> None:
    training, validation, test = ([case(tmp_path, f"{part}{i}") for i in range(2)] for part in ("a", "b", "c"))
    datalist(tmp_path, training=training, validation=validation, test=test, labels=LABELS)
    data = load("datalist", data_root=tmp_path, spacing="header", **PLAIN)
    assert sizes(data) == [2, 2, 2] and data.test.ids == ("c0.nii.gz", "c1.nii.gz") and data.notes == ()
    assert data.classes == ("background", "organ", "tumour") and data.decision == Multiclass(3, background=0)
    assert data.spacing == pytest.approx((1, 1, 2)) and data.intensity.budget("10 HU").eps == 10
    assert ((data.test.x[:, 0] == 100) == (data.test.y == 2)).all() and data.test.y.sum() == 2 * 2 * 16


def test_an_unlabelled_test_list_gives_way_to_validation(tmp_path: Path) -> None:
    training, validation = ([case(tmp_path, f"{part}{i}") for i in range(n)] for part, n in (("a", 5), ("b", 2)))
    for test in (["./imagesTs/c.nii.gz"], [{"image": "./imagesTs/c.nii.gz"}]):
        datalist(tmp_path, training=training, validation=validation, test=test, labels=LABELS)
        data = load("datalist", data_root=tmp_path, **PLAIN)
        assert sizes(data) == [4, 1, 2] and set(data.test.ids) == {"b0.nii.gz", "b1.nii.gz"}
        assert "The list for test has no labels and is left out (1)." in data.notes
        assert "The validation list is used as test." in data.notes


def test_one_list_is_dealt_by_patient(tmp_path: Path) -> None:
    frames = [case(tmp_path, f"patient{who:03d}_frame{frame:02d}") for who in range(10) for frame in (1, 12)]
    datalist(tmp_path, training=frames)
    data = load("datalist", data_root=tmp_path, patient=r"patient\d+", **PLAIN)
    assert sizes(data) == [14, 2, 4] and len(set(data.test.patients or ())) == 2
    (tmp_path / "dataset.json").rename(tmp_path / "dataset_acdc_140_20_.json")
    acdc = load("datalist/acdc", data_root=tmp_path, crop=(8, 6, 4), resize=None)
    assert acdc.test.patients == data.test.patients and acdc.classes[1] == "right ventricle"


def test_planted_overlap_between_lists_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "hecktor"
    train = [case(root, f"{who}_ct") for who in ("CHUM-001", "CHUM-002", "MDA-003", "MDA-004")]
    test = [case(root, "CHUM-002b_ct"), case(root, "MDA-005_ct")]
    datalist(root, "dataset_hecktor.json", train=train, test=test)
    options = {"pixdim": None, "crop": (8, 8, 4)}
    with pytest.raises(ValueError, match=r"datalist/hecktor shares 1 patient between train and test \(of 2 in test\)"):
        load("datalist/hecktor", data_root=tmp_path, **options)
    data = load("datalist/hecktor", data_root=tmp_path, split="published", **options)
    assert sizes(data) == [2, 1, 2] and data.classes == ("background", "primary tumour", "lymph nodes")
    assert data.intensity.low == -1024 and data.intensity.window == (-175, 250)


def test_nnunet_folders(tmp_path: Path) -> None:
    for i in range(4):
        volume(tmp_path / "imagesTr" / f"la_{i}_0000.nii.gz", 10)
        volume(tmp_path / "imagesTr" / f"la_{i}_0001.nii.gz", 20)
        volume(tmp_path / "labelsTr" / f"la_{i}.nii.gz", 1)
    datalist(tmp_path, channel_names={"0": "T1", "1": "T2"}, labels={"background": 0, "atrium": 1}, numTraining=4,
             file_ending=".nii.gz")  # fmt: skip
    both = load("datalist", data_root=tmp_path, channels="all", **PLAIN)
    assert both.train.x.shape[1:] == (2, 8, 6, 4) and both.classes == ("background", "atrium")
    assert [both.train.x[0, channel].max() for channel in (0, 1)] == [10, 20]
    one = load("datalist", data_root=tmp_path, channels=1, **PLAIN)
    assert one.train.x.shape[1] == 1 and one.train.x.max() == 20
    with pytest.raises(ValueError, match="la_0_0000.nii.gz is one of 2 files of its image; say which with channels"):
        load("datalist", data_root=tmp_path, **PLAIN)


def test_volumes_with_channels(tmp_path: Path) -> None:
    cases = [case(tmp_path, f"a{i}", shape=(8, 6, 4, 2)) for i in range(4)]
    datalist(tmp_path, training=cases, labels=LABELS)
    assert load("datalist", data_root=tmp_path, channels="all", **PLAIN).train.x.shape[1:] == (2, 8, 6, 4)
    assert load("datalist", data_root=tmp_path, channels=1, **PLAIN).train.x.shape[1:] == (1, 8, 6, 4)
    with pytest.raises(ValueError, match="has 2 channels, counted from 0, and channels=2 is asked for"):
        load("datalist", data_root=tmp_path, channels=2, **PLAIN)
    with pytest.raises(ValueError, match="one three-dimensional volume a file"):
        load("datalist", data_root=tmp_path, **PLAIN)


def test_voxels_are_brought_to_one_size(tmp_path: Path) -> None:
    fine = [case(tmp_path, f"a{i}", shape=(16, 12, 4), spacing=(0.5, 0.5, 2)) for i in range(2)]
    coarse = [case(tmp_path, f"b{i}") for i in range(2)]
    datalist(tmp_path, training=[*fine, *coarse], labels=LABELS)
    with pytest.raises(ValueError, match="images have shapes .*give crop or resize"):
        load("datalist", data_root=tmp_path, **PLAIN)
    data = load("datalist", data_root=tmp_path, pixdim=(1, 1, 2), **PLAIN)
    assert data.train.x.shape[1:] == (1, 8, 6, 4) and data.spacing == pytest.approx((1, 1, 2))
    ids = [name for split in SPLITS for name in getattr(data, split).ids]
    volumes = [(y > 0).sum() for split in SPLITS for y in getattr(data, split).y]
    assert dict(zip(ids, volumes, strict=True)) == {"a0.nii.gz": 4, "a1.nii.gz": 4, "b0.nii.gz": 16, "b1.nii.gz": 16}
    padded = load("datalist", data_root=tmp_path, pixdim=(1, 1, 2), crop=(10, 6, 4), fill=-1024, **PLAIN)
    assert padded.train.x[:, :, 0].max() == -1024 == padded.intensity.low and padded.spacing == data.spacing
    mixed = load("datalist", data_root=tmp_path, crop=(8, 6, 4), spacing="header", **PLAIN)
    assert mixed.spacing is None and mixed.notes[-1].startswith("Voxel sizes differ between cases")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"training": []}, "has neither lists of cases nor nnU-Net's file_ending"),
        ({"training": [{"image": "a.nii.gz"}]}, "names no case with an image and a label"),
        ({"training": [{"image": "a.nii.gz", "label": "b.nii.gz"}, {"image": "c.nii.gz"}]}, "some cases of the list"),
        ({"training": [{"image": 7, "label": "b.nii.gz"}]}, "is no case; give image and label as file names"),
        ({"training": [{"image": "../a.nii.gz", "label": "b.nii.gz"}]}, "leads out of"),
        ({part: [{"image": "a.nii.gz", "label": "b.nii.gz"}] for part in ("training", "test")},
         "names a.nii.gz twice"),
        ({"training": [{"image": f"{i}.nii.gz", "label": "b.nii.gz"} for i in "abcd"], "labels": {"0": "x", "2": "y"}},
         "must number classes from 0 without gaps"),
        ({"training": [{"image": f"{i}.nii.gz", "label": "b.nii.gz"} for i in "abcd"], "labels": {"all": [0, 1]}},
         "must number classes from 0 without gaps"),
    ],
)  # fmt: skip
def test_datalists_are_refused(tmp_path: Path, content: dict[str, Any], sentence: str) -> None:
    datalist(tmp_path, **content)
    with pytest.raises(ValueError, match=sentence):
        load("datalist", data_root=tmp_path)


def test_missing_and_broken_datalists(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="give the folder that holds them as data_root"):
        load("datalist/btcv")
    with pytest.raises(
        FileNotFoundError, match="there is no dataset_synapse_18_12.json or dataset_0.json or dataset.json"
    ):
        load("datalist/btcv", data_root=tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match="dataset.json is no JSON"):
        load("datalist", data_root=tmp_path)
    (tmp_path / "dataset.json").write_text("[]")
    with pytest.raises(ValueError, match="holds a list; a datalist is an object"):
        load("datalist", data_root=tmp_path)
    with pytest.raises(ValueError, match="option colour is none of datalist; accepted are datalist, patient"):
        load("datalist", data_root=tmp_path, colour=1)
    datalist(tmp_path, training=[case(tmp_path, f"a{i}") for i in range(4)])
    with pytest.raises(ValueError, match=r"a0.nii.gz of datalist names no patient as 'nobody'"):
        load("datalist", data_root=tmp_path, patient="nobody")


# --- the Decathlon ----------------------------------------------------------------------------------------------


def spleen(folder: Path) -> None:
    root = folder / "Task09_Spleen"
    cases = [case(root, f"spleen_{i}", 1) for i in range(10)]
    datalist(root, training=cases, test=["./imagesTs/spleen_11.nii.gz"], labels={"0": "background", "1": "spleen"})


def test_decathlon(tmp_path: Path) -> None:
    spleen(tmp_path / "decathlon")
    options = {"crop": (8, 6, 4), "pixdim": None}
    data = load("decathlon/Task09_Spleen", data_root=tmp_path, **options)
    assert sizes(data) == [7, 1, 2] and data.classes == ("background", "spleen") and "CC BY-SA" in data.source
    assert data.intensity.unit == "HU" and "Split dealt by patient (seed 0)." in data.notes
    inside = load("decathlon/Task09_Spleen", data_root=tmp_path / "decathlon", **options)
    assert inside.sha256 == data.sha256


def test_decathlon_is_fetched_on_request_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Path]] = []

    def fetch(url: str, filepath: Path, output_dir: Path, **check: str) -> None:
        assert check == {"hash_val": "410d4a301da4e5b2f6f86ec3ddba524e", "hash_type": "md5"}
        asked.append((url, filepath))
        spleen(output_dir)

    monkeypatch.setattr("medadv.benchmarks.data.volumes.download_and_extract", fetch)
    with pytest.raises(
        FileNotFoundError, match=r"unpack https://.*Task09_Spleen.tar there or give the option download=True"
    ):
        load("decathlon/Task09_Spleen", data_root=tmp_path)
    assert not asked
    for _ in range(2):
        load("decathlon/Task09_Spleen", data_root=tmp_path, download=True, crop=(8, 6, 4), pixdim=None)
    assert len(asked) == 1 and asked[0][1] == tmp_path / "decathlon" / "Task09_Spleen.tar"

    def offline(*_: Any, **__: Any) -> None:
        raise RuntimeError("no route to host")

    monkeypatch.setattr("medadv.benchmarks.data.volumes.download_and_extract", offline)
    with pytest.raises(ConnectionError, match="no route to host.*unpack it by hand"):
        load("decathlon/Task10_Colon", data_root=tmp_path, download=True)


# --- sizes of MedMNIST ------------------------------------------------------------------------------------------


def medmnist(path: Path, shape: tuple[int, ...]) -> None:
    parts = {"train": 4, "val": 2, "test": 2}
    images = {f"{part}_images": np.zeros((count, *shape), dtype=np.uint8) for part, count in parts.items()}
    np.savez(path, **images, **{f"{part}_labels": np.arange(count)[:, None] % 2 for part, count in parts.items()})


def test_medmnist_sizes(tmp_path: Path) -> None:
    assert len(STEMS) == 18 and {f"medmnist/{stem}" for stem in STEMS} <= set(names())
    for size in SIZES[""]:
        medmnist(tmp_path / f"breastmnist{'' if size == 28 else f'_{size}'}.npz", (size, size))
        assert load("medmnist/breastmnist", data_root=tmp_path, size=size).train.x.shape == (4, 1, size, size)
    medmnist(tmp_path / "organmnist3d_64.npz", (64, 64, 64))
    assert load("medmnist/organmnist3d", data_root=tmp_path, size=64).train.x.shape == (4, 1, 64, 64, 64)
    for stem, size in (("organmnist3d", 128), ("breastmnist", 32), ("mymnist", 64), ("breastmnist_64", 64)):
        with pytest.raises(ValueError, match=f"medmnist/{stem} has no size {size}; sizes of the 2D sets are 28, 64"):
            load(f"medmnist/{stem}", data_root=tmp_path, size=size)
    with pytest.raises(FileNotFoundError, match=r"files/pathmnist_224.npz"):
        load("medmnist/pathmnist", data_root=tmp_path, size=224)
    with pytest.raises(ValueError, match="option colour is none of MedMNIST's; accepted are seed, data_root"):
        load("medmnist/pathmnist", colour=1)
