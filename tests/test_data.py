"""Data sets: what is made is what is stated, what is read is what is stored, and what can't be right is refused."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from medadv.benchmarks.data import SPLITS, Cases, Dataset, load, names
from medadv.benchmarks.data.anatomy import KINDS, TISSUES, WHITE_MATTER_LEVEL, Recipe, make_subject
from medadv.benchmarks.data.cache import cache_folder
from medadv.benchmarks.data.embedded import NAMES
from medadv.benchmarks.data.medmnist import download_medmnist
from medadv.decisions import Multiclass, Multilabel
from medadv.intensities import Intensity

SMALL = Recipe(size=(32, 40, 24), spacing=4, superior=8, radius=(9.0, 15.0))
FEW = {"subjects": (2, 1, 1)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDADV_CACHE", str(tmp_path / "cache"))


def splits(data: Dataset) -> Iterator[Cases]:
    return (getattr(data, split) for split in SPLITS)


# --- the registry -----------------------------------------------------------------------------------------------


def test_unknown_name_says_the_nearest() -> None:
    with pytest.raises(ValueError, match="'embedded-lesion-2d' is unknown; did you mean 'embedded-lesions-2d'"):
        load("embedded-lesion-2d")
    with pytest.raises(ValueError, match="data set .* is unknown; choose one of"):
        load("?")


def test_names_are_known() -> None:
    assert {
        "embedded-lesions-2d",
        "medmnist/pneumoniamnist",
        "medmnist/adrenalmnist3d",
        "cxr-lung",
        "acdc",
        "folder",
    } <= set(names())
    assert len(NAMES) == 10


# --- subjects ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_lesions_lie_in_white_matter_with_the_stated_contrast(kind: str) -> None:
    recipe = replace(SMALL, noise=(0.0, 0.0), bias=0.0, contrast=0.15, contrast_jitter=0.1)
    healthy, ill = make_subject(recipe, (), seed=5), make_subject(recipe, (kind,), seed=5)
    inside = ill.lesions > 0
    assert inside.sum() > 20
    assert set(np.unique(ill.lesions)) == {0, KINDS.index(kind) + 1}
    assert (ill.tissue[inside] == TISSUES.index("white matter")).all()
    assert (ill.tissue == healthy.tissue).all()
    difference = ill.image - healthy.image
    assert (difference[~inside] == 0).all()
    assert np.abs(difference[inside]).min() >= 0.15 * 0.9 - 1e-6
    assert np.abs(difference[inside]).max() <= 0.15 * 1.1 + 1e-6
    if kind != "ring":
        assert (np.sign(difference[inside]) == (1 if kind == "bright" else -1)).all()


def test_tissues_have_the_grey_values_of_t1() -> None:
    subject = make_subject(SMALL, (), seed=3)
    other, grey, white = (float(np.median(subject.image[subject.tissue == label])) for label in (1, 2, 3))
    assert other < grey < white
    assert white == pytest.approx(WHITE_MATTER_LEVEL, abs=0.06)


def test_subjects_differ_and_repeat() -> None:
    first, again, second = (make_subject(SMALL, ("bright",), seed=seed) for seed in (1, 1, 2))
    assert (first.image == again.image).all() and (first.lesions == again.lesions).all()
    assert np.abs(first.image - second.image).mean() > 0.01


def test_global_random_state_is_left_alone() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    make_subject(SMALL, ("bright",), seed=1)
    assert (torch.rand(1), np.random.rand()) == expected


# --- embedded data sets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_embedded_is_what_it_states(name: str) -> None:
    data = load(name, seed=1, **FEW)
    dims = int(name[-2])
    assert data.name == name and data.dims == dims and len(data.spacing or ()) == dims
    assert data.intensity == Intensity(0.0, 1.0)
    assert len(data.classes) == data.decision.channels
    for cases in splits(data):
        assert cases.x.dtype == np.float32 and cases.x.shape[1] == 1
        data.intensity.check(torch.as_tensor(cases.x))
        spatial = cases.x.shape[2:] if data.task == "segmentation" else ()
        data.decision.canonical(cases.y, spatial)
        assert cases.y.dtype == (np.uint8 if isinstance(data.decision, Multilabel) else np.int64)
        assert cases.patients is not None
    assert len(data.train) == 2 * (3 if dims == 2 else 1)
    patients = [set(cases.patients or ()) for cases in splits(data)]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 4


def test_classes_are_balanced_and_first_cases_are_of_different_patients() -> None:
    data = load("embedded-lesion-class-2d", subjects=(2, 1, 3))
    assert np.bincount(data.train.y).tolist() == [3, 3]
    assert len(set((data.test.patients or ())[:3])) == 3
    kinds = load("embedded-lesion-kind-3d", subjects=(4, 1, 1))
    assert np.bincount(kinds.train.y).tolist() == [1, 1, 1, 1]


def test_every_tenth_subject_is_healthy() -> None:
    data = load("embedded-lesions-3d", subjects=(10, 1, 1))
    ill = (data.train.y > 0).reshape(10, -1).any(1)
    assert ill.tolist() == [True] * 9 + [False]
    assert (load("embedded-lesions-3d", subjects=(10, 1, 1), healthy_every=0).train.y > 0).reshape(10, -1).any(1).all()


def test_same_seed_same_data_whatever_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load("embedded-lesions-3d", seed=3, subjects=(1, 1, 1))
    other = load("embedded-lesions-3d", seed=4, subjects=(1, 1, 1))
    monkeypatch.setenv("MEDADV_CACHE", str(tmp_path / "another"))
    again = load("embedded-lesions-3d", seed=3, subjects=(1, 1, 1))
    assert first.sha256 == again.sha256 != other.sha256


def test_cache_is_used_and_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    first = load("embedded-lesions-3d", subjects=(1, 1, 1))
    (file,) = cache_folder().iterdir()
    whole = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("medadv.benchmarks.data.embedded.make_subject", lambda *_: pytest.fail("not read from the cache"))
        assert load("embedded-lesions-3d", subjects=(1, 1, 1)).sha256 == first.sha256
    for broken in (b"", b"no archive", whole[: len(whole) // 2], whole[:900] + bytes(64) + whole[964:]):
        file.write_bytes(broken)
        assert load("embedded-lesions-3d", subjects=(1, 1, 1)).sha256 == first.sha256
        assert [entry.name for entry in cache_folder().iterdir()] == [file.name]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"colour": 1}, "option colour is none of the embedded data's; accepted are size"),
        ({"subjects": (1, 0, 1)}, "three numbers of at least 1"),
        ({"slices": 0}, "slices=0 means whole volumes"),
        ({"spacing": 1.5}, "whole mm"),
        ({"smallest": 10_000, "size": (64, 64, 12), **FEW}, "no subject with bright lesions of at least 10000 voxels"),
    ],
)
def test_embedded_refuses(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        load("embedded-lesions-2d", **options)


def test_without_nilearn_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medadv.benchmarks.data.anatomy.optional_import", lambda _: (None, False))
    with pytest.raises(ImportError, match=r"pip install medadv\[bench\]"):
        make_subject(replace(SMALL, size=(8, 8, 8)), (), seed=0)


# --- MedMNIST ---------------------------------------------------------------------------------------------------


def write_medmnist(path: Path, shape: tuple[int, ...], labels: int = 1, classes: int = 2, **changes: Any) -> Path:
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for part, count in (("train", 12), ("val", 4), ("test", 6)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        arrays[f"{part}_labels"] = (np.arange(count * labels) % classes).reshape(count, labels).astype(np.uint8)
    arrays.update(changes)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


@pytest.mark.parametrize(
    ("shape", "expected"), [((28, 28), (1, 28, 28)), ((28, 28, 3), (3, 28, 28)), ((28, 28, 28), (1, 28, 28, 28))]
)
def test_medmnist_shapes(tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    path = write_medmnist(tmp_path / "medmnist" / "mymnist.npz", shape, classes=3)
    data = load("medmnist/mymnist", data_root=tmp_path)
    stored = np.load(path)["train_images"]
    assert data.train.x.shape == (12, *expected) and data.train.x.dtype == np.float32
    image = np.moveaxis(stored[0], -1, 0) if shape[-1] == 3 else stored[:1].reshape(expected)
    assert (np.rint(data.train.x[0] * 255) == image).all()
    assert data.decision == Multiclass(3) and data.train.y.tolist() == [0, 1, 2] * 4
    assert data.train.patients is None and data.intensity == Intensity(0, 1)


def test_medmnist_with_several_labels(tmp_path: Path) -> None:
    write_medmnist(tmp_path / "chestmnist.npz", (28, 28), labels=5)
    data = load("medmnist/chestmnist", data_root=tmp_path)
    assert data.decision == Multilabel(5) and data.test.y.shape == (6, 5) and data.test.y.dtype == np.uint8


def test_medmnist_subset_is_fixed_by_the_seed(tmp_path: Path) -> None:
    write_medmnist(tmp_path / "a.npz", (28, 28))
    one, same, other = (load("medmnist/a", data_root=tmp_path, seed=s, max_train=5, max_test=3) for s in (0, 0, 1))
    assert one.train.ids == same.train.ids != other.train.ids
    assert (len(one.train), len(one.validation), len(one.test)) == (5, 3, 3)


def test_medmnist_refuses(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="give the folder that holds it as data_root"):
        load("medmnist/pneumoniamnist")
    with pytest.raises(FileNotFoundError, match=r"neither at .*pneumoniamnist.npz nor at .*zenodo.org.*download=True"):
        load("medmnist/pneumoniamnist", data_root=tmp_path)
    with pytest.raises(ValueError, match="no MedMNIST file name"):
        load("medmnist/../secret", data_root=tmp_path)
    (tmp_path / "a.npz").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"a.npz is no npz archive"):
        load("medmnist/a", data_root=tmp_path)
    write_medmnist(tmp_path / "a.npz", (28, 28), val_labels=None)
    with pytest.raises(ValueError, match="lacks val_labels"):
        load("medmnist/a", data_root=tmp_path)
    write_medmnist(tmp_path / "a.npz", (28, 28), train_labels=np.array([[object()]] * 12))
    with pytest.raises(ValueError, match="can't be read"):
        load("medmnist/a", data_root=tmp_path)
    write_medmnist(tmp_path / "a.npz", (28, 28), train_images=np.zeros((12, 28, 28)))
    with pytest.raises(ValueError, match="train_images are float64"):
        load("medmnist/a", data_root=tmp_path)
    write_medmnist(tmp_path / "a.npz", (28, 28), train_labels=np.zeros(12))
    with pytest.raises(ValueError, match="float64 labels of shape"):
        load("medmnist/a", data_root=tmp_path)


def test_medmnist_download_is_whole_or_nothing(tmp_path: Path) -> None:
    content = write_medmnist(tmp_path / "source" / "a.npz", (28, 28)).read_bytes()
    asked: list[str] = []

    def opener(url: str, timeout: float) -> io.BytesIO:
        asked.append(url)
        return io.BytesIO(content)

    path = download_medmnist("pneumoniamnist", tmp_path / "medmnist", opener)
    assert asked == ["https://zenodo.org/records/10519652/files/pneumoniamnist.npz?download=1"]
    assert path.read_bytes() == content
    content = content[:500]
    with pytest.raises(ValueError, match="no npz archive"):
        download_medmnist("bloodmnist", tmp_path / "medmnist", opener)

    def offline(url: str, timeout: float) -> io.BytesIO:
        raise OSError("no route to host")

    with pytest.raises(ConnectionError, match="no route to host.*put it at"):
        download_medmnist("bloodmnist", tmp_path / "medmnist", offline)
    assert [entry.name for entry in (tmp_path / "medmnist").iterdir()] == ["pneumoniamnist.npz"]


# --- folders ----------------------------------------------------------------------------------------------------

PLANE = np.arange(6 * 8, dtype=np.uint8).reshape(6, 8) * 5  # 6 rows, 8 columns: no two corners alike


def write_table(root: Path, rows: list[str], header: str = "image,label,split") -> None:
    root.mkdir(exist_ok=True)
    (root / "cases.csv").write_text("\n".join([header, *rows]) + "\n")


def three(suffix: str, labels: tuple[str, ...] = ("a", "b", "a")) -> list[str]:
    return [f"{s}.{suffix},{label},{s}" for s, label in zip(("train", "val", "test"), labels, strict=True)]


@pytest.mark.parametrize("suffix", ["png", "tif", "tiff", "bmp", "jpg"])
def test_plane_images_are_rows_by_columns(tmp_path: Path, suffix: str) -> None:
    for stem in ("train", "val", "test"):
        Image.fromarray(PLANE).save(tmp_path / f"{stem}.{suffix}", **({"quality": 100} if suffix == "jpg" else {}))
    write_table(tmp_path, three(suffix))
    data = load("folder", data_root=tmp_path, csv="cases.csv", low=0, high=255)
    assert data.train.x.shape == (1, 1, 6, 8)
    assert np.abs(data.train.x[0, 0] - PLANE).max() <= (3 if suffix == "jpg" else 0)
    assert data.classes == ("a", "b") and (data.train.y.tolist(), data.validation.y.tolist()) == ([0], [1])


def test_colour_images_and_sixteen_bits(tmp_path: Path) -> None:
    colour = np.stack([PLANE, PLANE[::-1], PLANE[:, ::-1]], -1)
    for stem in ("train", "val", "test"):
        Image.fromarray(colour).save(tmp_path / f"{stem}.png")
        Image.fromarray(PLANE.astype(np.uint16) * 200).save(tmp_path / f"{stem}.tif")
    write_table(tmp_path, three("png"))
    assert (load("folder", data_root=tmp_path, csv="cases.csv").test.x[0] == np.moveaxis(colour, -1, 0)).all()
    write_table(tmp_path, three("tif"))
    data = load("folder", data_root=tmp_path, csv="cases.csv")
    assert (data.test.x[0, 0] == PLANE.astype(np.float32) * 200).all()
    assert data.intensity == Intensity(0, float(PLANE.max()) * 200)


def test_volumes_are_reoriented_with_their_masks(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).integers(0, 900, (6, 8, 4)).astype(np.int16)
    mask = (volume > 450).astype(np.uint8) * 2
    flipped = np.diag([-1.0, 1.0, 1.0, 1.0])
    (tmp_path / "m").mkdir()
    for stem, image_affine in (("train", np.eye(4)), ("val", flipped), ("test", flipped)):
        nib.save(nib.Nifti1Image(volume, image_affine), tmp_path / f"{stem}.nii.gz")
        nib.save(nib.Nifti1Image(mask, image_affine), tmp_path / "m" / f"{stem}.nii.gz")
    write_table(tmp_path, ["train,p1,train", "val,p2,val", "test,p3,test"], "image,who,split")
    options = {"csv": "cases.csv", "pattern": "{}.nii.gz", "mask_column": "image", "mask_folder": "m"}
    data = load(
        "folder", data_root=tmp_path, **options, patient_column="who", spacing=[1, 1, 3], unit="HU", window=[0, 500]
    )
    assert (data.train.x[0, 0] == volume).all() and (data.train.y[0] == mask).all()
    assert (data.test.x[0, 0] == volume[::-1]).all() and (data.test.y[0] == mask[::-1]).all()
    assert data.decision == Multiclass(3, background=0) and data.task == "segmentation" and data.dims == 3
    assert data.intensity.budget("10 HU").eps == 10 and data.intensity.window == (0, 500)
    assert data.test.patients == ("p3",) and data.spacing == (1, 1, 3)
    halved = load("folder", data_root=tmp_path, **options, crop=(8, 8, 4), resize=(4, 4, 4), spacing=(1, 1, 3))
    assert halved.train.x.shape == (1, 1, 4, 4, 4) and halved.spacing == (2, 2, 3)
    padded = np.pad(volume, ((1, 1), (0, 0), (0, 0)), constant_values=volume.min()).astype(np.float32)
    assert np.allclose(halved.train.x[0, 0], padded.reshape(4, 2, 4, 2, 4).mean((1, 3)))
    assert set(np.unique(halved.train.y)) <= {0, 2}


def test_masks_by_value_and_unit_scale(tmp_path: Path) -> None:
    mask = np.where(PLANE > 100, 255, 0).astype(np.uint8)
    (tmp_path / "masks").mkdir()
    for stem in ("train", "val", "test"):
        Image.fromarray(PLANE).save(tmp_path / f"{stem}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{stem}.png")
    write_table(tmp_path, three("png"))
    options = {"csv": "cases.csv", "mask_column": "image", "mask_folder": "masks", "low": 0, "high": 255}
    data = load("folder", data_root=tmp_path, **options, scale_to_unit=True, mask_values={"0": 0, 255: 1})
    assert (data.test.y[0] == mask // 255).all() and data.classes == ("background", "class 1")
    assert data.intensity == Intensity(0, 1) and np.allclose(data.test.x[0, 0], PLANE / 255)
    window = load(
        "folder", data_root=tmp_path, **options, mask_values={0: 0, 255: 1}, window="percentiles"
    ).intensity.window
    assert window == pytest.approx(np.percentile(PLANE, (0.5, 99.5)))
    with pytest.raises(ValueError, match="train.png holds 255; accepted are 0 to 1"):
        load("folder", data_root=tmp_path, **options, classes=("background", "lung"))
    with pytest.raises(ValueError, match="train.png holds 0; accepted are 1, 255"):
        load("folder", data_root=tmp_path, **options, mask_values={1: 0, 255: 1})
    Image.fromarray(mask.T).save(tmp_path / "masks" / "val.png")
    with pytest.raises(ValueError, match=r"val.png has shape \(6, 8\) and its mask val.png \(8, 6\)"):
        load("folder", data_root=tmp_path, **options, mask_values={0: 0, 255: 1})


def test_palette_masks_give_their_indices(tmp_path: Path) -> None:
    mask = Image.fromarray((PLANE > 100).astype(np.uint8)).convert("P")
    mask.putdata((PLANE > 100).astype(np.uint8).ravel().tolist())
    for stem in ("train", "val", "test"):
        Image.fromarray(PLANE).save(tmp_path / f"{stem}.png")
        mask.save(tmp_path / f"{stem}_m.png")
    rows = [f"{s}.png,{s}_m.png,{s}" for s in ("train", "val", "test")]
    write_table(tmp_path, rows, "image,mask,split")
    data = load("folder", data_root=tmp_path, csv="cases.csv", mask_column="mask", classes=("background", "organ"))
    assert (data.test.y[0] == (PLANE > 100)).all()


def test_several_labels_per_image(tmp_path: Path) -> None:
    for stem in ("train", "val", "test"):
        Image.fromarray(PLANE).save(tmp_path / f"{stem}.png")
    write_table(tmp_path, three("png", ("oedema; effusion", "", "effusion")))
    data = load("folder", data_root=tmp_path, csv="cases.csv", decision="multilabel")
    assert data.classes == ("effusion", "oedema") and data.decision == Multilabel(2)
    assert [cases.y.tolist() for cases in splits(data)] == [[[1, 1]], [[0, 0]], [[1, 0]]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for stem in ("train", "val", "test"):
        Image.fromarray(PLANE).save(tmp_path / f"{stem}.png")
    Image.fromarray(PLANE.T).save(tmp_path / "turned.png")
    Image.fromarray(PLANE).convert("P").save(tmp_path / "palette.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no image")
    (tmp_path / "notes.txt").write_text("text")
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 2)), np.eye(4)), tmp_path / "series.nii.gz")
    nib.save(nib.Nifti1Image(np.full((4, 4, 4), np.nan), np.eye(4)), tmp_path / "nan.nii.gz")
    write_table(tmp_path, three("png"))
    return tmp_path


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("missing.png,a,train", "there is no file .*missing.png"),
        ("broken.png,a,train", "broken.png can't be read as an image"),
        ("palette.png,a,train", "palette.png can't be read as an image .*mode is P"),
        ("notes.txt,a,train", "notes.txt is of no known kind; accepted are .png"),
        ("series.nii.gz,a,train", "one three-dimensional volume a file"),
        ("nan.nii.gz,a,train", "nan.nii.gz holds NaN"),
        ("../train.png,a,train", "leads out of"),
        ("/etc/hostname,a,train", "leads out of"),
        ("turned.png,a,train", "images have shapes .*give crop or resize"),
        ("train.png,a,train", "names train.png twice"),
        ("turned.png,a,holdout", "names the split 'holdout'; accepted are train"),
    ],
)
def test_folder_refuses_a_row(folder: Path, row: str, sentence: str) -> None:
    write_table(folder, [*three("png"), row])
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        load("folder", data_root=folder, csv="cases.csv")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "option csv is missing; accepted are csv"),
        ({"csv": "cases.csv", "colour": 1}, "option colour is none of a folder's"),
        ({"csv": "other.csv"}, "there is no table .*other.csv"),
        ({"csv": "../cases.csv"}, "leads out of"),
        ({"csv": "cases.csv", "label_column": "finding"}, "has no column finding; it has image, label, split"),
        ({"csv": "cases.csv", "classes": ("a", "c")}, "label 'b' of val.png is none of the classes a, c"),
        ({"csv": "cases.csv", "decision": "ordinal"}, "choose 'multiclass' or 'multilabel'"),
        ({"csv": "cases.csv", "decision": "multilabel", "mask_column": "image"}, "one class per voxel"),
        ({"csv": "cases.csv", "scale_to_unit": True}, "scale_to_unit needs low and high"),
        ({"csv": "cases.csv", "window": "auto"}, "window='auto' can't be read"),
        ({"csv": "cases.csv", "resize": (4, 4, 4)}, "doesn't fit images of 2 axes"),
        ({"csv": "cases.csv", "low": 0, "high": 100}, "outside the intensity range"),
    ],
)
def test_folder_refuses_an_option(folder: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        load("folder", data_root=folder, **options)


def test_folder_refuses_shared_patients_empty_splits_and_no_root(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="give it as data_root"):
        load("folder", csv="cases.csv")
    write_table(folder, three("png")[:2])
    with pytest.raises(ValueError, match="no case in test"):
        load("folder", data_root=folder, csv="cases.csv")
    write_table(folder, [f"{s}.png,a,{s},p1" for s in ("train", "val", "test")], "image,label,split,patient")
    with pytest.raises(ValueError, match="patient 'p1' of folder is in train and in validation"):
        load("folder", data_root=folder, csv="cases.csv", patient_column="patient", classes=("a", "b"))


# --- real data --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sizes", "shape", "decision"),
    [
        ("cxr-lung", (78, 26, 26), (1, 128, 128), Multiclass(2, background=0)),
        ("acdc", (10, 5, 5), (1, 96, 96, 12), Multiclass(4, background=0)),
        ("medmnist/pneumoniamnist", (4708, 524, 624), (1, 28, 28), Multiclass(2)),
        ("medmnist/adrenalmnist3d", (1188, 98, 298), (1, 28, 28, 28), Multiclass(2)),
    ],
)
def test_real_data(name: str, sizes: tuple[int, ...], shape: tuple[int, ...], decision: Multiclass) -> None:
    root = os.environ.get("MEDADV_DATA")
    if not root:
        pytest.skip("MEDADV_DATA names no folder with real data")
    data = load(name, data_root=root)
    assert tuple(map(len, splits(data))) == sizes
    assert data.train.x.shape[1:] == shape and data.decision == decision
    if data.task == "segmentation":
        assert all(set(np.unique(case)) == set(range(decision.channels)) for case in data.test.y)
