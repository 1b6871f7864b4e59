"""Every network the survey names, built for its data, is a model that attacks can differentiate."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medadv.attacks import create
from medadv.benchmarks.data.base import Cases, Dataset
from medadv.benchmarks.models import arguments_from_data, build_estimator, build_network
from medadv.benchmarks.networks import NETWORKS
from medadv.benchmarks.suite_parts import ModelSpec
from medadv.decisions import Decision, Multiclass, Multilabel
from medadv.diagnostics import zero_gradients
from medadv.intensities import Intensity

CLASSIFIERS = {
    "ResNet18": {},
    "DenseNet121": {"init_features": 8, "growth_rate": 4, "block_config": [2, 2]},
    "MobileNetV2": {},
    "WideResNet": {"depth": 10, "widen_factor": 1},
    "EfficientNetBN": {"model_name": "efficientnet-b0"},
    "ViT": {"patch_size": 8, "hidden_size": 24, "mlp_dim": 24, "num_layers": 2, "num_heads": 2},
}
SEGMENTERS = {
    "UNet": {"channels": [4, 8], "strides": [2]},
    "SegNet": {"channels": [4, 8], "convolutions": [2, 1]},
    "AttentionUnet": {"channels": [4, 8], "strides": [2]},
    "SegResNet": {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
    "DynUNet": {
        "kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [4, 8, 8],
        "deep_supervision": True,
    },
    "UNETR": {"feature_size": 4, "hidden_size": 24, "mlp_dim": 24, "num_heads": 2},
    "SwinUNETR": {"feature_size": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 2},
}  # fmt: skip
DECISIONS: dict[str, Decision] = {
    "binary": Multilabel(1), "classes": Multiclass(3, background=0), "labels": Multilabel(3)
}  # fmt: skip


def dataset(task: str, decision: Decision, spatial: tuple[int, ...], channels: int = 2, count: int = 3) -> Dataset:
    rng = np.random.default_rng(0)
    x = rng.random((count, channels, *spatial)).astype(np.float32)
    voxels = spatial if task == "segmentation" else ()
    if decision.exclusive:
        y = rng.integers(0, decision.channels, (count, *voxels))
    else:
        y = rng.integers(0, 2, (count, decision.channels, *voxels)).astype(np.uint8)
    splits = [Cases(x, y, tuple(f"{tag}{i}" for i in range(count))) for tag in "abc"]
    return Dataset("random", task, decision, Intensity(0, 1), tuple("xyz"[: decision.channels]), *splits)


def settled(estimator, x: np.ndarray):
    """Batch norm with the statistics of its data, as after training: with those of initialisation EfficientNet's
    signal, and so its gradient, is of the order of 1e-14."""
    for module in estimator.network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = None
    estimator.predict(x, training_mode=True)
    return estimator


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    ("task", "name", "args"),
    [("classification", *row) for row in CLASSIFIERS.items()] + [("segmentation", *row) for row in SEGMENTERS.items()],
)
def test_every_network_of_the_survey_is_built_for_its_data_and_can_be_attacked(task, name, args, dims):
    decision = DECISIONS["classes"]
    # what the strides of these two leave of smaller images is less than a kernel, or no more than a voxel
    spatial = {"SwinUNETR": (64, 32, 32), "EfficientNetBN": (32, 32, 32)}.get(name, (16, 16, 16))
    data = dataset(task, decision, spatial[:dims])
    estimator = settled(build_estimator(ModelSpec(name="net", network=name, args=args), data), data.test.x)
    x = torch.from_numpy(data.test.x)
    target, valid = decision.canonical(data.test.y, x.shape[2:] if task == "segmentation" else ())
    assert zero_gradients(estimator.victim(), x, target, valid).flag == ""
    attack = create("fgsm", estimator, eps=0.05, keep="last")
    moved = attack.generate(data.test.x, data.test.y) != data.test.x
    assert moved.reshape(len(x), -1).any(1).all()


@pytest.mark.parametrize("kind", DECISIONS)
@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_the_data_decide_on_the_shape_of_a_network(task, kind):
    decision = DECISIONS[kind]
    name = "MobileNetV2" if task == "classification" else "UNet"
    args = {} if task == "classification" else SEGMENTERS["UNet"]
    data = dataset(task, decision, (16, 16))
    estimator = build_estimator(ModelSpec(name="net", network=name, args=args), data)
    voxels = (16, 16) if task == "segmentation" else ()
    shown = (
        2 if (task, kind) == ("classification", "binary") else decision.channels
    )  # one logit is shown as two classes
    assert estimator.predict(data.test.x).shape == (3, shown, *voxels)


def test_arguments_of_the_suite_win_over_those_of_the_data():
    data = dataset("segmentation", DECISIONS["classes"], (16, 16))
    given = arguments_from_data("SegNet", data)
    assert given == {"spatial_dims": 2, "in_channels": 2, "out_channels": 3}
    spec = ModelSpec(name="net", network="SegNet", args={**SEGMENTERS["SegNet"], "in_channels": 5})
    with pytest.raises(RuntimeError, match="5 channels"):
        build_estimator(spec, data).predict(data.test.x)
    assert arguments_from_data("ViT", data)["img_size"] == (16, 16)


# of the papers or of torchvision's networks
@pytest.mark.parametrize(
    ("name", "channels", "outputs", "parameters"),
    [("MobileNetV2", 3, 1000, 3_504_872), ("WideResNet", 3, 10, 36_479_194), ("ResNet18", 3, 1000, 11_689_512)],
)
def test_networks_have_as_many_parameters_as_the_published_ones(name, channels, outputs, parameters):
    network = build_network(name, {"spatial_dims": 2, "in_channels": channels, "out_channels": outputs})
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_segnet_is_vgg16_and_its_mirror_image():
    network = NETWORKS["SegNet"](spatial_dims=2, in_channels=3, out_channels=11)
    weights = [p for name, p in network.named_parameters() if p.ndim == 4]
    assert len(weights) == 26 and sum(p.numel() for p in network.parameters()) == pytest.approx(29.45e6, rel=1e-3)
    encoder = [p for name, p in network.encoder.named_parameters() if p.ndim == 4]
    assert sum(p.numel() for p in encoder) == 14_710_464  # VGG16's convolutions


def test_segnet_puts_back_what_it_pooled_where_it_was():
    network = NETWORKS["SegNet"](spatial_dims=2, in_channels=1, out_channels=1, channels=[1], convolutions=[1]).eval()
    x = torch.zeros(1, 1, 5, 4)
    x[0, 0, 1, 2] = 1
    with torch.no_grad():
        for module in (network.encoder[0][0].conv, network.logits):
            module.weight.zero_()
            module.weight[0, 0, 1, 1] = 1
            module.bias.zero_()
        assert torch.allclose(network(x), x, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("WideResNet", {"depth": 27}, "depth=27 is no depth .* give 6 n \\+ 4"),
        ("SegNet", {"channels": [4, 8], "convolutions": [1]}, "differ in number"),
        ("MobileNetV3", {}, "network 'MobileNetV3' is unknown; did you mean 'MobileNetV2'"),
    ],
)
def test_networks_that_cannot_be_built_say_why(name, args, message):
    with pytest.raises(ValueError, match=message):
        build_network(name, {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, **args})
