"""Cases of deployed models: attacked as stored, written, and judged from what was written."""

from __future__ import annotations

from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from deployments import MODELS, ball, ct, volume
from monai.data import MetaTensor
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    Compose,
    ConvertToMultiChannelBasedOnBratsClassesd,
    Invertd,
    LoadImage,
    NormalizeIntensityd,
    SaveImaged,
    ScaleIntensity,
)

from medadv import Intensity, Multiclass, Multilabel
from medadv.adapters.cases import case_of
from medadv.attacks import create
from medadv.decisions import as_plain_tensor


def case_in(folder, name="ct", **options):
    files = MODELS[name](folder)
    return case_of(files.deployment, files.image, files.label, extras=files.extras, **options), files


def attacked(case, eps, **options):
    name = "pgd-dice" if case.deployment.segments else "pgd"
    attack = create(name, case.estimator, eps=eps, max_iter=6, **options)
    return attack.generate(case.x, case.y, mask=case.region)


def score_in_memory(case, x):
    victim = case.estimator.victim()
    with victim.attacked():
        prediction = victim.decision.harden(victim.logits(torch.from_numpy(x)))
    return case.score(case.deployment.decision.canonical(prediction, case.sides)[0])


@pytest.mark.parametrize("name", MODELS)
def test_what_is_written_is_worth_what_was_found(tmp_path, name):
    case, files = case_in(tmp_path, name)
    x = attacked(case, files.eps)
    eps = case.intensity.budget(files.eps)
    assert 0 < np.abs(x - case.x).max() <= eps.eps
    clean = case.score(case.deployment.predict(files.image, files.extras))
    assert clean == pytest.approx(score_in_memory(case, case.x), abs=1e-6)
    written = case.write(x, tmp_path / "out")
    found = case.score(case.judged(written))
    assert found == pytest.approx(score_in_memory(case, x), abs=1e-6)
    assert clean > 0.8 and found < clean - 0.1
    # the bytes hold the very values that were attacked
    again = case_of(files.deployment, list(written) if len(written) > 1 else written[0], extras=files.extras)
    assert np.array_equal(again.x, x)


def test_the_clean_file_is_diagnosed_as_monai_alone_does(tmp_path):
    files = ct(tmp_path)
    deployment = files.deployment
    chain = Compose(deployment.preprocessing)
    data = chain({"image": str(files.image), "label": str(files.label)})
    with torch.no_grad():
        logits = deployment.inferer(data["image"][None], deployment.network)[0]
    data["pred"] = MetaTensor(logits.as_tensor(), meta=data["image"].meta)
    after = [
        Activationsd("pred", softmax=True),
        Invertd("pred", chain, orig_keys="image", nearest_interp=False),
        AsDiscreted("pred", argmax=True),
    ]
    expected = Compose(after)(data)["pred"].as_tensor()
    assert torch.equal(deployment.predict(files.image)[0], expected[0].long())


@pytest.mark.parametrize("nearest", [True, False])
def test_postprocessing_given_is_what_judges(tmp_path, nearest):
    files = ct(tmp_path)
    chain = Compose(files.deployment.preprocessing)
    after = (
        Activationsd("pred", softmax=True),
        *([AsDiscreted("pred", argmax=True)] if nearest else []),
        Invertd("pred", chain, orig_keys="image", nearest_interp=nearest),
        *([] if nearest else [AsDiscreted("pred", argmax=True)]),
        SaveImaged("pred", output_dir=tmp_path / "never"),
    )
    deployment = replace(files.deployment, postprocessing=after)
    case = case_of(deployment, files.image, files.label)
    assert deployment.nearest is nearest
    x = attacked(case, files.eps)
    found = case.score(case.judged(case.write(x, tmp_path / "out")))
    assert found == pytest.approx(score_in_memory(case, x), abs=1e-6)
    assert not (tmp_path / "never").exists()


def test_the_image_is_in_its_units(tmp_path):
    case, _ = case_in(tmp_path)
    assert case.intensity == Intensity(-1024.0, 3071.0, "HU", window=(-175.0, 250.0), grid=(1.0, -1024.0)) or (
        case.intensity.low < -1024 and case.intensity.window == (-175.0, 250.0)
    )
    assert case.x.min() < -900 and case.intensity.budget("8/255").eps == pytest.approx(8 / 255 * 425)
    assert case.scan.spacing == pytest.approx((1.5, 1.2, 2.5))
    mr, _ = case_in(tmp_path, "mr")
    assert len(mr.intensity.lows) == 2 and mr.intensity.window is None and mr.intensity.unit == ""
    photo, _ = case_in(tmp_path, "photo")
    assert (photo.intensity.low, photo.intensity.high, photo.intensity.grid) == (0.0, 255.0, (1.0, 0.0))


def test_the_intensity_given_counts(tmp_path):
    given = Intensity(-1100, 2000, "HU", window=(0, 100))
    case, _ = case_in(tmp_path)
    files = ct(tmp_path, intensity=given)
    assert case_of(files.deployment, files.image).intensity == replace(given, grid=case.scan.grid)


def test_storage_decides_the_grid(tmp_path):
    files = ct(tmp_path)
    values = LoadImage(image_only=True)(str(files.image)).numpy()
    floats = volume(tmp_path / "float.nii.gz", values, "float32")
    loose, fixed = (case_of(files.deployment, floats, files.label, storage=s) for s in (None, "int16"))
    assert loose.intensity.grid is None and fixed.intensity.grid == (1.0, 0.0)
    for case, whole in ((loose, False), (fixed, True)):
        x = attacked(case, "2.5 HU")
        assert bool((x == np.rint(x)).all()) is whole
        found = case.score(case.judged(case.write(x, tmp_path / "out")))
        assert found == pytest.approx(score_in_memory(case, x), abs=1e-6)


def test_changes_stay_where_the_crop_is_safe(tmp_path):
    case, files = case_in(tmp_path)
    x = attacked(case, files.eps)
    assert case.region is not None and not (x != case.x)[~np.broadcast_to(case.region, x.shape)].any()


def test_a_crop_that_moved_is_refused(tmp_path):
    case, _ = case_in(tmp_path)
    changed = case.x.copy()
    changed[0, 0, 0, 0, 0] = 100
    with pytest.raises(ValueError, match="another input than the attack saw"):
        case.judged(case.write(changed, tmp_path / "out"))


def test_frozen_statistics_that_changed_are_refused(tmp_path):
    files = MODELS["mr"](tmp_path)
    held = case_of(files.deployment, files.image, files.label, statistics="frozen")
    changed = held.x.copy()
    changed[changed > 400] += 200
    with pytest.raises(ValueError, match="another input than the attack saw"):
        held.judged(held.write(changed.clip(0, held.x.max()), tmp_path / "out"))


def test_a_mask_beside_the_image_is_needed_and_stays(tmp_path):
    files = MODELS["masked"](tmp_path)
    with pytest.raises(ValueError, match="needs these files beside the image: mask; got none"):
        case_of(files.deployment, files.image, files.label)
    case = case_of(files.deployment, files.image, files.label, extras=files.extras)
    assert case.x.shape[1] == 1 and case.estimator.input_shape[0] == 1


def test_references_are_checked(tmp_path):
    files = ct(tmp_path)
    small = volume(tmp_path / "small.nii.gz", np.ones((3, 3, 3)), "uint8")
    with pytest.raises(ValueError, match=r"the label has shape \(3, 3, 3\)"):
        case_of(files.deployment, files.image, small)
    moved = LoadImage(image_only=True)(str(files.label))
    nibabel.save(nibabel.Nifti1Image(moved.numpy().astype(np.uint8), np.eye(4)), tmp_path / "moved.nii.gz")
    with pytest.raises(ValueError, match="lie in different places"):
        case_of(files.deployment, files.image, tmp_path / "moved.nii.gz")
    with pytest.raises(ValueError, match="label 1 is a number"):
        case_of(files.deployment, files.image, 1)
    photo = MODELS["photo"](tmp_path)
    with pytest.raises(ValueError, match="is a file, but the model diagnoses whole images"):
        case_of(photo.deployment, photo.image, "mask.png")
    with pytest.raises(ValueError, match="no reference"):
        case_of(files.deployment, files.image).score(torch.zeros(1))


def test_the_reference_transforms_make_the_regions(tmp_path):
    files = ct(tmp_path)
    labels = np.zeros((22, 20, 14))
    labels[ball((12, 10, 7), (5, 5, 5))] = 2
    labels[ball((12, 10, 7), (4, 4, 4))] = 1
    labels[ball((12, 10, 7), (2, 2, 2))] = 4
    path = volume(tmp_path / "brats.nii.gz", labels, "uint8")
    deployment = replace(
        files.deployment, decision=Multilabel(3), reference=(ConvertToMultiChannelBasedOnBratsClassesd("label"),)
    )
    target = case_of(deployment, files.image, path).target
    assert target.shape == (1, 3, 22, 20, 14)
    # core, whole, enhancing
    expected = [np.isin(labels, which).sum() for which in ([1, 4], [1, 2, 4], [4])]
    assert as_plain_tensor(target).sum((0, 2, 3, 4)).tolist() == [int(n) for n in expected]


def test_array_transforms_are_refused(tmp_path):
    files = ct(tmp_path, preprocessing=(ScaleIntensity(),))
    with pytest.raises(ValueError, match="ScaleIntensity is no dictionary transform"):
        case_of(files.deployment, files.image)


def test_loading_may_be_left_out(tmp_path):
    files = ct(tmp_path, preprocessing=(NormalizeIntensityd("image", 0.0, 100.0),))
    assert case_of(files.deployment, files.image).x.shape == (1, 1, 22, 20, 14)


def test_names_are_given_to_all_channels(tmp_path):
    files = ct(tmp_path)
    assert files.deployment.names == ("background", "organ")
    assert replace(files.deployment, labels=(), decision=Multiclass(3)).names == ("class 0", "class 1", "class 2")
