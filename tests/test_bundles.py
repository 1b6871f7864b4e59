"""Bundles load as deployed models: as MONAI would build them, with the decision, the names and the unit they mean."""

from __future__ import annotations

import json
import sys

import bundle_layouts as layouts
import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer, SlidingWindowInferer
from monai.networks.nets import UNet
from monai.transforms import Activationsd, AsDiscreted, Compose, ConcatItemsd, LoadImaged
from PIL import Image

from medadv import Intensity, Multiclass, Multilabel
from medadv.adapters import BundleError, Deployment, from_bundle

EXPECTED = {
    "ct_segmentation": (Multiclass(2, background=0), True, "HU", ("background", "spleen")),
    "brain_regions": (Multilabel(3, 0.4), True, "", ("Tumor core", "Whole tumor", "Enhancing tumor")),
    "photo_classes": (Multiclass(2), False, "", ("in body", "out body")),
    "one_logit": (Multilabel(1), False, "", ("metastasis",)),
    "nuclei_with_mask": (Multiclass(4), False, "", ("Other", "Inflammatory", "Epithelial", "Spindle-Shaped")),
    "flat_template": (Multiclass(4, background=0), True, "", ("background", "category 1", "category 2", "category 3")),
    "renal_structures": (
        Multilabel(6, scored=(1, 2, 3, 4, 5)), True, "HU",
        ("background", "artery", "vein", "ureter", "neoplasm", "parenchyma"),
    ),
    "slices": (Multiclass(4, background=0), True, "", ("background", "lv_pool", "myocardium", "rv_pool")),
}  # fmt: skip
INPUTS = {
    "ct_segmentation": (1, 20, 18, 16), "brain_regions": (4, 16, 16, 20), "photo_classes": (3, 32, 32),
    "one_logit": (3, 32, 32), "nuclei_with_mask": (4, 32, 32), "flat_template": (1, 16, 16, 16),
    "renal_structures": (1, 16, 16, 16), "slices": (1, 16, 16, 3),
}  # fmt: skip


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Each readable layout, written once."""
    folder = tmp_path_factory.mktemp("bundles")
    return {name: layout(folder / name) for name, layout in layouts.READABLE.items()}


def monai_parser(root):
    """MONAI's parser of the bundle's inference config, on this processor."""
    (path,) = (root / "configs").glob("inference.*")
    parser = layouts.ConfigParser(layouts.ConfigParser.load_config_file(path))
    parser["bundle_root"], parser["device"] = str(root), torch.device("cpu")
    parser["postprocessing"]["transforms"] = [
        part for part in parser["postprocessing"]["transforms"] if part["_target_"] != "SaveImaged"
    ]
    if parser["network_def"]["_target_"] == "EfficientNetBN":
        parser["network_def"]["pretrained"] = False
    return parser


def outputs(deployment: Deployment, x: torch.Tensor) -> torch.Tensor:
    inferer = SimpleInferer() if deployment.inferer is None else deployment.inferer
    with torch.no_grad():
        return inferer(x, deployment.network)


@pytest.mark.parametrize("name", layouts.READABLE)
def test_a_published_layout_says_how_its_logits_become_a_diagnosis(bundles, name):
    deployment = from_bundle(bundles[name])
    assert (deployment.decision, deployment.segments, deployment.unit, deployment.labels) == EXPECTED[name]
    assert deployment.intensity is None and deployment.name == name and not deployment.network.training


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("name", layouts.READABLE)
def test_network_inferer_and_postprocessing_are_monais(bundles, name, trust, monkeypatch):
    if name == "one_logit" and trust:
        pytest.skip("trusted, it would fetch its pretrained weights")
    deployment = from_bundle(bundles[name], trust=trust)
    parser = monai_parser(bundles[name])
    saved = torch.load(bundles[name] / "models" / "model.pt", weights_only=True)
    network = parser.get_parsed_content("network").eval()
    network.load_state_dict(saved.get("model", saved))
    x = torch.randn(1, *INPUTS[name], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = parser.get_parsed_content("inferer")(x, network)
    got = outputs(deployment, x)
    assert torch.equal(got, expected)

    steps = Compose([t for t in deployment.postprocessing if type(t).__name__ != "Invertd"])
    theirs = [t for t in parser.get_parsed_content("postprocessing").transforms if type(t).__name__ != "Invertd"]
    case = {"pred": expected[0], "label": torch.zeros(1, *expected.shape[2:])}
    assert torch.equal(torch.as_tensor(steps({"pred": got[0]})["pred"]), torch.as_tensor(Compose(theirs)(case)["pred"]))


def write_image(path, name, rng):
    """A stored image of the shape that a layout reads."""
    if name in ("photo_classes", "nuclei_with_mask"):
        Image.fromarray(rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(path / "image.png")
        Image.fromarray(rng.integers(0, 2, (40, 36), dtype=np.uint8)).save(path / "label.png")
        return {"image": path / "image.png", "label": path / "label.png"}
    array = rng.integers(-200, 300, (16, 14, 10)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([-1.0, -2.0, 1.5, 1.0])), path / "image.nii.gz")
    return {"image": [path / "image.nii.gz"] * 4 if name == "brain_regions" else path / "image.nii.gz"}


@pytest.mark.parametrize("name", [name for name in layouts.READABLE if name != "one_logit"])
def test_preprocessing_of_a_file_is_monais(bundles, name, tmp_path):
    files = write_image(tmp_path, name, np.random.default_rng(0))
    deployment = from_bundle(bundles[name])
    expected = monai_parser(bundles[name]).get_parsed_content("preprocessing")(dict(files))["image"]
    got = Compose(list(deployment.preprocessing))(dict(files))["image"]
    assert isinstance(got, MetaTensor) or name == "nuclei_with_mask"
    assert torch.equal(torch.as_tensor(got), torch.as_tensor(expected))


def test_a_prediction_is_inverted_by_the_transforms_that_ran(bundles, tmp_path):
    files = write_image(tmp_path, "ct_segmentation", np.random.default_rng(0))
    deployment = from_bundle(bundles["ct_segmentation"])
    case = Compose(list(deployment.preprocessing))(dict(files))
    case["pred"] = MetaTensor(torch.randn(2, *case["image"].shape[1:]), meta=case["image"].meta)
    found = Compose(list(deployment.postprocessing))(case)["pred"]
    assert found.shape == (1, 16, 14, 10) and set(found.unique().tolist()) == {0, 1}


def test_a_second_file_is_joined_and_not_attacked(bundles):
    deployment = from_bundle(bundles["nuclei_with_mask"])
    assert (deployment.image_key, deployment.extra_keys, deployment.fixed_channels) == ("image", ("label",), ())
    assert deployment.label_key == "reference" and deployment.reference == ()


def test_channels_stored_with_the_image_that_are_none_are_named(tmp_path):
    root = layouts.clicks(tmp_path / "clicks")
    assert from_bundle(root, preprocessing=[]).fixed_channels == (3, 4)
    joined = [LoadImaged(["image", "clicks"]), ConcatItemsd(["image", "clicks"], name="image")]
    deployment = from_bundle(root, preprocessing=joined)
    assert deployment.extra_keys == ("clicks",) and deployment.fixed_channels == ()


@pytest.mark.parametrize("joined", [[ConcatItemsd(["artery", "vein"], name="image")], []])
def test_one_of_several_files_is_attacked(bundles, joined):
    steps = [LoadImaged(["artery", "vein", "label"]), *joined]
    with pytest.raises(BundleError, match="reads artery, vein.*, none called 'image'; pass image_key="):
        from_bundle(bundles["slices"], preprocessing=steps)
    deployment = from_bundle(bundles["slices"], preprocessing=steps, image_key="vein")
    assert (deployment.image_key, deployment.extra_keys, deployment.input_key) == ("vein", ("artery",), "image")
    alone = from_bundle(bundles["slices"], preprocessing=[LoadImaged("scan")])
    assert (alone.image_key, alone.extra_keys, alone.input_key) == ("scan", (), "scan")


@pytest.mark.parametrize(("name", "label", "expected"), [
    ("brain_regions", [1, 2, 4, 0], [[1, 0, 1, 0], [1, 1, 1, 0], [0, 0, 1, 0]]),
    ("renal_structures", [0, 1, 5, 6], [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0],
                                        [0, 0, 0, 1]]),
])  # fmt: skip
def test_labels_come_to_the_form_of_the_decision(bundles, name, label, expected):
    deployment = from_bundle(bundles[name])
    stored = {deployment.label_key: torch.tensor(label).reshape(1, 4, 1, 1)}
    found = Compose(list(deployment.reference))(stored)[deployment.label_key]
    assert torch.as_tensor(found).flatten(1).int().tolist() == expected
    target, valid = deployment.decision.canonical(torch.as_tensor(found)[None], (4, 1, 1))
    assert valid.all() and target.shape == (1, len(expected), 4, 1, 1)


def change(root, edit, stem="inference"):
    """Edits a config of a bundle in place."""
    path = root / "configs" / f"{stem}.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    return root


def test_a_step_on_image_and_label_is_taken_for_the_label_alone(tmp_path):
    root = layouts.photo_classes(tmp_path / "b")
    steps = [{"_target_": "LoadImaged", "keys": ["image", "seg"]},
             {"_target_": "ScaleIntensityd", "keys": ["image", "seg"]}]  # fmt: skip
    change(root, lambda c: c.update(val_preprocessing=steps), "train")
    deployment = from_bundle(root)
    assert deployment.label_key == "seg"
    (step,) = deployment.reference
    assert step({"seg": torch.tensor([[0.0, 255.0]]), "image": "left alone"})["seg"].tolist() == [[0, 1]]


@pytest.mark.parametrize("steps", [
    [{"_target_": "Lambdad", "keys": "label", "func": "$lambda x: x > 0"}], "$make_transforms()",
])  # fmt: skip
def test_labels_that_pass_code_are_refused_once_there_is_a_label(tmp_path, steps):
    root = change(layouts.photo_classes(tmp_path / "b"), lambda c: c.update(val_preprocessing=steps), "train")
    deployment = from_bundle(root)
    (step,) = deployment.reference
    with pytest.raises(BundleError, match="train.json: val_preprocessing.* pass reference="):
        step({"label": torch.ones(1, 2)})
    assert from_bundle(root, reference=[]).reference == ()


def test_what_is_passed_is_not_looked_for(tmp_path):
    parts = ("network_def", "network", "preprocessing", "postprocessing", "inferer")
    root = change(layouts.ct_segmentation(tmp_path / "b"), lambda c: c.update(dict.fromkeys(parts, "$code()")))
    network = UNet(3, 1, 3, (4, 8), (2,))
    given = {
        "network": network, "inferer": SlidingWindowInferer((8, 8, 8)), "decision": Multiclass(3),
        "intensity": Intensity(-1024, 3071, "HU"), "head": 0, "labels": ("a", "b", "c"), "device": "cpu",
    }  # fmt: skip
    before, after = [LoadImaged("image")], [Activationsd("pred", softmax=True), AsDiscreted("pred", argmax=True)]
    deployment = from_bundle(root, preprocessing=before, postprocessing=after, reference=[], segments=True, **given)
    for name, value in given.items():
        assert getattr(deployment, name) is value
    assert deployment.preprocessing == tuple(before) and deployment.postprocessing == tuple(after)
    with pytest.raises(BundleError, match="2 labels are given for 3 logits"):
        from_bundle(root, preprocessing=before, postprocessing=after, **{**given, "labels": ("a", "b")})


def test_thresholds_count_although_the_steps_around_them_are_replaced(tmp_path):
    root = layouts.brain_regions(tmp_path / "b")
    merge = {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x.argmax(0)"}
    change(root, lambda c: c["postprocessing"]["transforms"].insert(2, merge))
    with pytest.raises(
        BundleError, match="inference.json: postprocessing::transforms::2 names 'Lambdad'.*postprocessing="
    ):
        from_bundle(root)
    deployment = from_bundle(root, postprocessing=[])
    assert deployment.postprocessing == () and deployment.decision == Multilabel(3, 0.4)


@pytest.mark.parametrize(("part", "key", "value", "message"), [
    ("network", "network_def", {"_target_": "UNet", "act": "$torch.nn.ReLU"}, "network_def::act is code"),
    ("network", "network_def", "$monai.networks.nets.UNet(2, 1, 1)", "network_def is code"),
    ("network", "network_def", {"_target_": "scripts.net.Net"}, "network_def names 'scripts.net.Net'"),
    ("network", "network_def", {"_target_": "UNet", "spatial_dims": 3}, "network_def can't be built as UNet"),
    ("network", "network_def", {"_target_": "LoadImaged", "keys": "image"}, "names 'LoadImaged', no network"),
    ("network", "network_def", {"_target_": "UNet", "_mode_": "callable"}, "_mode_ is 'callable'"),
    ("network", "network_def", {"_target_": "UNet", "_requires_": "@run"}, "_requires_ asks"),
    ("network", "network_def", {"_target_": "UNet", "in_channels": "@absent"}, "refers to 'absent'"),
    ("network", "network_def", {"_target_": ["UNet"]}, "is no name of a class"),
    ("preprocessing", "preprocessing", {"_target_": "Compose", "transforms": "$code()"}, "transforms is code"),
    ("preprocessing", "preprocessing", {"_target_": "Compose", "transforms": [], "lazy": True}, "lazy"),
    ("preprocessing", "preprocessing", [{"_target_": "LoadImaged", "keys": "image", "_disabled_": "$code()"}],
     "_disabled_ is code"),
    ("preprocessing", "preprocessing", [{"_target_": "RandFlipd", "keys": "image"}], "names 'RandFlipd'"),
    ("preprocessing", "preprocessing", 3, "is no chain of transforms but int"),
    ("inferer", "inferer", {"_target_": "scripts.inferer.Mine"}, "inferer names 'scripts.inferer.Mine'"),
    ("inferer", "inferer", {"_target_": "SlidingWindowInferer", "roi_size": "$(96,) * 3"}, "roi_size is code"),
])  # fmt: skip
def test_a_part_that_is_not_data_is_refused_by_its_key(tmp_path, part, key, value, message):
    root = change(layouts.ct_segmentation(tmp_path / "b"), lambda c: c.update({key: value}))
    with pytest.raises(BundleError) as caught:
        from_bundle(root)
    assert message in str(caught.value) and f"pass {part}= or trust=True." in str(caught.value)
    assert "\n" not in str(caught.value)


def test_disabled_transforms_are_left_out(tmp_path):
    def edit(content):
        content["off"] = "true"
        content["preprocessing"]["transforms"][2]["_disabled_"] = True
        content["preprocessing"]["transforms"][3]["_disabled_"] = "@off"

    deployment = from_bundle(change(layouts.ct_segmentation(tmp_path / "b"), edit))
    names = [type(step).__name__ for step in deployment.preprocessing]
    assert names == ["LoadImaged", "EnsureChannelFirstd", "ScaleIntensityRanged", "EnsureTyped"]


@pytest.mark.parametrize(("after", "loss", "message"), [
    ([{"_target_": "Activationsd", "keys": "pred", "sigmoid": True}], None, "2 logits .* sigmoid in .* and no loss"),
    ([{"_target_": "Activationsd", "keys": "pred", "softmax": True},
      {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5}], None, "softmax and threshold 0.5"),
    ([{"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.0}], None, "threshold 0.0"),
    ([], {"_target_": "torch.nn.L1Loss"}, "no activation in the postprocessing and L1Loss in training"),
    ([], {"_target_": "DiceLoss", "sigmoid": "$code()"}, "b: train.json: loss::sigmoid is code"),
])  # fmt: skip
def test_an_undecided_bundle_is_refused(tmp_path, after, loss, message):
    root = layouts.photo_classes(tmp_path / "b")
    change(root, lambda c: c.update(postprocessing=after))
    change(root, lambda c: c.update(loss=loss), "train")
    with pytest.raises(BundleError, match=f"{message}.*decision="):
        from_bundle(root)


@pytest.mark.parametrize(("loss", "expected"), [
    ({"_target_": "DiceLoss", "softmax": True, "to_onehot_y": True}, Multiclass(2)),
    ({"_target_": "DeepSupervisionLoss", "loss": {"_target_": "DiceFocalLoss", "sigmoid": True}}, Multilabel(2)),
    ({"_target_": "FocalLoss", "use_softmax": True}, Multiclass(2)),
    ({"_target_": "torch.nn.BCEWithLogitsLoss"}, Multilabel(2)),
])  # fmt: skip
def test_the_loss_decides_where_the_postprocessing_does_not(tmp_path, loss, expected):
    root = layouts.photo_classes(tmp_path / "b")
    change(root, lambda c: c.update(postprocessing=[]))
    assert from_bundle(change(root, lambda c: c.update(loss=loss), "train")).decision == expected


def test_metadata_that_contradicts_the_modality_gives_no_unit(tmp_path):
    def edit(modality, form):
        def apply(content):
            content["network_data_format"]["inputs"]["image"].update(modality=modality, format=form)

        return apply

    root = layouts.ct_segmentation(tmp_path / "b")
    for modality, form, unit in (("MRI", "hounsfield", ""), ("CT", "magnitude", "HU"), ("", "hounsfield", "HU"),
                                 ("", "magnitude", "")):  # fmt: skip
        assert from_bundle(change(root, edit(modality, form), "metadata")).unit == unit


def test_metadata_may_be_missing_or_odd(tmp_path):
    root = layouts.ct_segmentation(tmp_path / "b")
    odd = {"network_data_format": {"inputs": [], "outputs": {"pred": 3}}}
    (root / "configs" / "metadata.json").write_text(json.dumps(odd))
    deployment = from_bundle(root)
    assert (deployment.segments, deployment.decision, deployment.labels) == (True, Multiclass(2, background=0), ())
    (root / "configs" / "metadata.json").unlink()
    assert from_bundle(root).unit == ""
    classifier = layouts.photo_classes(tmp_path / "c")
    (classifier / "configs" / "metadata.json").unlink()
    with pytest.raises(BundleError, match="image or of each voxel; pass segments="):
        from_bundle(classifier)
    assert from_bundle(classifier, segments=False).decision == Multiclass(2)


def test_a_bundle_without_inference_is_read_from_its_validation(tmp_path):
    root = layouts.ct_segmentation(tmp_path / "b")
    (root / "configs" / "inference.json").unlink()
    deployment = from_bundle(root)
    assert isinstance(deployment.inferer, SlidingWindowInferer) and deployment.decision == Multiclass(2, background=0)
    assert [type(step).__name__ for step in deployment.preprocessing][-1] == "ScaleIntensityRanged"
    loader = deployment.preprocessing[0]
    assert loader.allow_missing_keys, "a scan without a label is read too"


def test_an_argument_that_monai_dropped_is_left_out_with_a_warning(tmp_path):
    network = {"_target_": "SwinUNETR", "img_size": 32, "in_channels": 1, "out_channels": 2, "feature_size": 12,
               "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]}  # fmt: skip
    root = change(layouts.ct_segmentation(tmp_path / "b"), lambda c: c.update(network_def=network))
    with pytest.warns(UserWarning, match="SwinUNETR has no img_size any more"), pytest.raises(BundleError) as caught:
        from_bundle(root)
    assert "model.pt does not fit SwinUNETR" in str(caught.value)


@pytest.mark.parametrize("wrap", [
    lambda state: state, lambda state: {"model": state}, lambda state: {"state_dict": state, "epoch": 3},
    lambda state: {f"module.{key}": value for key, value in state.items()},
])  # fmt: skip
def test_weights_are_found_in_the_usual_checkpoints(tmp_path, wrap):
    network = UNet(3, 1, 2, (4, 8), (2,), num_res_units=1, norm="batch")
    root = layouts.ct_segmentation(tmp_path / "b", network=network, checkpoint=wrap)
    for deployment in (from_bundle(root), from_bundle(root, weights=network.state_dict())):
        for key, value in network.state_dict().items():
            assert torch.equal(deployment.network.state_dict()[key], value)


def test_weights_that_do_not_fit_say_which(tmp_path):
    root = layouts.ct_segmentation(tmp_path / "b", network=torch.nn.Linear(2, 2))
    with pytest.raises(
        BundleError, match=r"model.pt does not fit .*UNet: \d+ missing \(.*2 unexpected \(weight, bias\).*weights="
    ):
        from_bundle(root)
    torch.save({"epoch": 3}, root / "models" / "model.pt")
    with pytest.raises(BundleError, match=r"holds no state dict \(but epoch\).*weights="):
        from_bundle(root)
    (root / "models" / "model.pt").unlink()
    with pytest.raises(BundleError, match="b: there is no file 'models/model.pt'; pass weights="):
        from_bundle(root)


NET = """
import torch
{top}
class Net(torch.nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(outputs))
    def forward(self, x):
        {lazy}
        return x.mean((2, 3, 4), keepdim=True) * 0 + self.scale.view(1, -1, 1, 1, 1) * VALUE + x * 0
"""


def scripted(root, value, *, lazy):
    """A bundle whose network takes a number from another module of its scripts, when imported or when run."""
    line = "from scripts.numbers import VALUE"
    source = NET.format(top="" if lazy else line, lazy=line if lazy else "")
    network = torch.nn.ParameterDict({"scale": torch.ones(2)})
    scripts = {"__init__.py": "", "numbers.py": f"VALUE = {value}", "net.py": source}
    root = layouts.ct_segmentation(root, network=network, scripts=scripts)
    return change(root, lambda c: c.update(network_def={"_target_": "scripts.net.Net", "outputs": "$1 + 1"}))


@pytest.mark.parametrize("lazy", [False, True])
def test_scripts_of_one_bundle_do_not_reach_another(tmp_path, lazy, monkeypatch):
    stranger = type(sys)("scripts")
    monkeypatch.setitem(sys.modules, "scripts", stranger)
    path = list(sys.path)
    first = from_bundle(scripted(tmp_path / "a", 1, lazy=lazy), trust=True)
    second = from_bundle(scripted(tmp_path / "b", 2, lazy=lazy), trust=True)
    x = torch.zeros(1, 1, 16, 16, 16)
    assert [outputs(d, x).unique().tolist() for d in (first, second, first)] == [[1.0], [2.0], [1.0]]
    assert sys.modules["scripts"] is stranger and "scripts.net" not in sys.modules and sys.path == path
    assert not list(tmp_path.rglob("__pycache__"))


def test_trust_evaluates_and_reports_what_fails(tmp_path):
    root = change(layouts.ct_segmentation(tmp_path / "b"), lambda c: c["network_def"].update(out_channels="$len('ab')"))
    with pytest.raises(BundleError, match="network_def::out_channels is code"):
        from_bundle(root)
    assert from_bundle(root, trust=True).decision == Multiclass(2, background=0)
    change(root, lambda c: c.update(inferer="$1 / 0"))
    with pytest.raises(BundleError, match=r"inference.json: inferer fails \(ZeroDivisionError.*; pass inferer=\."):
        from_bundle(root, trust=True)


def test_what_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(BundleError, match="is no bundle; give the folder that holds configs/"):
        from_bundle(tmp_path)
    (tmp_path / "configs").mkdir()
    with pytest.raises(BundleError, match="holds no configs/inference.json"):
        from_bundle(tmp_path)
