"""MONAI's dictionary transforms around an attack: cases and batches, meta data, random draws, workers."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from builders import setting
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor, list_data_collate
from monai.transforms import Compose, EnsureTyped, Flipd, Invertd, Rotate90d, ScaleIntensityRanged

from medadv.adapters import transforms
from medadv.adapters.counterparts import case_names, counterpart
from medadv.adapters.transforms import Adversariald, RandAdversariald
from medadv.attacks import create
from medadv.decisions import as_plain_tensor

EPS = 0.1


def attack_on(case, name="pgd", **options):
    return create(name, case.estimator, **{"eps": EPS, "max_iter": 2, "num_random_init": 1, **options})


def items(case):
    return [
        {
            "image": MetaTensor(torch.from_numpy(x), meta={"filename_or_obj": f"case{i}.nii"}),
            "label": torch.as_tensor(y)[None] if np.ndim(y) else int(y),
        }
        for i, (x, y) in enumerate(zip(case.x, case.y))
    ]


@pytest.mark.parametrize("kind", ["class", "labels", "voxel-class", "voxel-labels"])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_case_and_a_batch_become_what_the_attack_gives_them(kind, dims):
    case = setting(kind, dims, dtype=np.float64, cases=3)
    data = [{"image": item["image"], "label": torch.from_numpy(case.y)[i]} for i, item in enumerate(items(case))]
    transform = Adversariald("image", attack_on(case), clean_key="clean")
    single = [transform(item) for item in data]
    batch = transform(list_data_collate(data))
    names = [f"case{i}.nii" for i in range(3)]
    expected = attack_on(case).perturb(torch.from_numpy(case.x), case.y, ids=names)
    for i, found in enumerate(single):
        assert torch.equal(as_plain_tensor(found["image"]), expected[i])
        assert torch.equal(found["clean"], data[i]["image"]) and found["label"] is data[i]["label"]
        assert 0 < (found["image"] - found["clean"]).abs().max() <= EPS
    assert torch.equal(as_plain_tensor(batch["image"]), expected)
    assert torch.equal(as_plain_tensor(batch["clean"]), torch.from_numpy(case.x))


def test_arrays_tensors_and_meta_tensors_stay_what_they_are():
    case = setting("voxel-class")
    transform = Adversariald(["image", "other"], attack_on(case), allow_missing_keys=True)
    found = {}
    for kind, image in (
        ("numpy", case.x[0]), ("tensor", torch.from_numpy(case.x[0])), ("meta", MetaTensor(torch.from_numpy(case.x[0])))
    ):  # fmt: skip
        found[kind] = transform({"image": image, "label": case.y[0][None]})["image"]
        assert type(found[kind]) is type(image) and found[kind].dtype == image.dtype
        np.testing.assert_array_equal(np.asarray(found[kind]), np.asarray(found["numpy"]))


def test_meta_data_and_applied_operations_stay_so_that_a_pipeline_can_be_inverted():
    case = setting("voxel-class")
    stored = torch.from_numpy(case.x[0]) * 100
    affine = torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0], dtype=torch.float64))
    image = MetaTensor(stored.flip(1).rot90(-1, (1, 2)), affine=affine, meta={"filename_or_obj": "scan.nii"})
    turned = Compose([
        EnsureTyped("image"), Rotate90d("image", k=1), Flipd("image", spatial_axis=0),
        ScaleIntensityRanged("image", 0, 100, 0, 1),
    ])  # fmt: skip
    full = Compose([*turned.transforms, Adversariald("image", attack_on(case), clean_key="clean")])
    plain, found = turned({"image": image}), full({"image": image, "label": case.y[0][None]})
    assert found["image"].meta["filename_or_obj"] == "scan.nii"
    assert torch.equal(found["image"].affine, plain["image"].affine)
    assert [op["class"] for op in found["image"].applied_operations] == ["Rotate90", "Flip"]
    back = Invertd("image", full, orig_keys="image", nearest_interp=False)(dict(found))["image"]
    assert back.shape == image.shape and torch.allclose(back.affine, affine)
    moved = (as_plain_tensor(back) - as_plain_tensor(image) / 100).abs()
    torch.testing.assert_close(moved.amax(), (found["image"] - found["clean"]).as_tensor().abs().amax())
    assert 0 < moved.max() <= EPS + 1e-6


def test_the_draws_are_of_the_case_not_of_its_place():
    case = setting("voxel-class", dtype=np.float64)
    transform = Adversariald("image", attack_on(case))
    data = items(case)
    forward = [transform(item)["image"] for item in data]
    for number in (2, 0):
        assert torch.equal(transform(data[number])["image"], forward[number])
    renamed = MetaTensor(data[0]["image"].as_tensor(), meta={"filename_or_obj": "other.nii"})
    assert not torch.equal(transform({**data[0], "image": renamed})["image"], forward[0])


def test_a_mask_the_models_own_diagnosis_and_a_wanted_one_serve():
    case = setting("voxel-class", dtype=np.float64)
    item = items(case)[0]
    mask = torch.zeros_like(item["image"].as_tensor(), dtype=torch.bool)
    mask[..., :3] = True
    moved = Adversariald("image", attack_on(case), mask_key="mask")({**item, "mask": mask})["image"] - item["image"]
    assert (moved[~mask] == 0).all() and (moved[mask] != 0).any()
    image, y = torch.from_numpy(case.x[:1]), case.estimator.predict(case.x[:1]).argmax(1)
    names = case_names(item["image"][None])
    own = Adversariald("image", attack_on(case), label_key=None)({"image": item["image"]})["image"]
    assert torch.equal(as_plain_tensor(own), attack_on(case).perturb(image, y, ids=names)[0])
    wanted = torch.zeros(1, *image.shape[2:], dtype=torch.int64)
    targeted = Adversariald("image", attack_on(case, targeted=True), label_key="wanted")
    found = targeted({"image": item["image"], "wanted": wanted})["image"]
    given = attack_on(case, targeted=True).perturb(image, wanted, ids=names)[0]
    assert torch.equal(as_plain_tensor(found), given)


def test_an_augmentation_attacks_with_its_probability_and_draws_anew():
    case = setting("voxel-class", cases=1)
    item = items(case)[0]
    transform = RandAdversariald("image", attack_on(case, max_iter=1), 0.4, clean_key="clean")
    found = [transform.set_random_state(7)(item)] + [transform(item) for _ in range(199)]
    changed = [not torch.equal(one["image"], item["image"]) for one in found]
    assert 0.3 < np.mean(changed) < 0.5  # 0.4 +- 3 standard deviations
    assert all(torch.equal(one["clean"], item["image"]) for one in found)
    attacked = [one["image"] for one, other in zip(found, changed) if other]
    assert not torch.equal(attacked[0], attacked[1])
    again = [transform.set_random_state(7)(item)["image"]] + [transform(item)["image"] for _ in range(5)]
    assert all(torch.equal(a, b["image"]) for a, b in zip(again, found))


def test_caches_loaders_and_spawned_workers_take_it():
    case = setting("voxel-class", cases=4)
    expected = [Adversariald("image", attack_on(case))(item)["image"] for item in items(case)]
    case.estimator.model.train()
    transform = pickle.loads(pickle.dumps(Adversariald("image", attack_on(case))))
    cached = CacheDataset(items(case), transform, num_workers=4, progress=False)
    assert transform.attack.estimator.model.training  # threads do not restore each other's flags
    loaded = DataLoader(Dataset(items(case), Adversariald("image", attack_on(case))), batch_size=1, num_workers=1)
    for i, batch in enumerate(loaded):
        assert torch.equal(cached[i]["image"], expected[i]) and torch.equal(batch["image"][0], expected[i])
        assert batch["image"].meta["filename_or_obj"] == [f"case{i}.nii"]


def test_a_network_on_a_gpu_is_refused_in_a_worker(monkeypatch):
    case = setting("voxel-class")
    transform = Adversariald("image", attack_on(case))
    monkeypatch.setattr(transforms, "get_worker_info", lambda: object())
    monkeypatch.setattr(type(transform.attack.victim), "device", torch.device("cuda"))
    with pytest.raises(RuntimeError, match="is on cuda, which workers of a DataLoader can't use; give num_workers=0"):
        transform(items(case)[0])


def test_what_can_not_be_right_is_refused():
    case = setting("voxel-class")
    item = items(case)[0]
    with pytest.raises(TypeError, match="attack is of type str; give one made by medadv.attacks.create"):
        Adversariald("image", "pgd")
    with pytest.raises(ValueError, match="clean_key='clean' keeps one image, but there are 2 keys"):
        Adversariald(["image", "second"], attack_on(case), clean_key="clean")
    with pytest.raises(ValueError, match=r"shape \(8, 6\); give a case \(C, \*S\) or a batch .* 2 spatial dimensions"):
        Adversariald("image", attack_on(case))({**item, "image": item["image"][0]})
    for name in ("deformation", "patch"):
        moving = create(name, case.estimator, max_iter=2)
        with pytest.raises(ValueError, match=f"'{name}' moves or covers what the labels show"):
            Adversariald("image", moving)(item)
        assert Adversariald("image", moving, label_key=None)(item)["image"].shape == item["image"].shape
    with pytest.raises(KeyError):
        Adversariald("image", attack_on(case))({"image": item["image"]})


def test_a_counterpart_is_like_the_images_it_is_of():
    case = setting("class")
    images = MetaTensor(torch.from_numpy(case.x), meta={"filename_or_obj": ["a", "b", "c"]})
    found = counterpart(attack_on(case), images, case.y)
    assert isinstance(found, MetaTensor) and found.meta["filename_or_obj"] == ["a", "b", "c"]
    assert found.dtype == images.dtype
