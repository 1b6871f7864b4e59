"""Class-activation maps: on the right layer, of the right class, the model left as it was; trainings side by side."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from monai.networks.nets import DenseNet, ResNet, ViT
from monai.visualize import GradCAM
from torch import nn

from medadv.adapters import MonaiClassifier, MonaiMultilabelClassifier
from medadv.benchmarks.activation_maps import ActivationMaps, NoFeatureMapError
from medadv.benchmarks.data.base import Cases, Dataset
from medadv.benchmarks.models import build_estimator
from medadv.benchmarks.outcomes import Planned
from medadv.benchmarks.pictures import SideBySide
from medadv.benchmarks.suite_parts import ModelSpec
from medadv.benchmarks.trials import evaluate_estimator
from medadv.decisions import Multiclass, Multilabel
from medadv.intensities import Intensity


class Pooled(nn.Module):
    """Two feature maps, what is bright and what is dark, pooled and weighted."""

    def __init__(self, dims: int, outputs: int = 2) -> None:
        super().__init__()
        self.conv = (nn.Conv2d, nn.Conv3d)[dims - 2](1, 2, 1)
        self.act = nn.ReLU(inplace=True)
        self.out = nn.Linear(2, outputs)
        self.conv.weight.data = torch.tensor([1.0, -1.0]).view(2, *[1] * (dims + 1))
        self.conv.bias.data = torch.tensor([-0.5, 0.5])
        self.out.weight.data = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        if outputs == 1:
            self.out.weight.data = torch.tensor([[1.0, -1.0]])
        self.out.bias.data.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.act(self.conv(x)).flatten(2).mean(2))


def half_bright(dims: int) -> torch.Tensor:
    x = torch.zeros(1, 1, *(8,) * dims)
    x[..., 5:] = 1.0
    return x


def classifier(network: nn.Module, dims: int, decision=Multiclass(2), size: int = 8) -> MonaiClassifier:
    return MonaiClassifier(network, (1, *(size,) * dims), decision=decision)


@pytest.mark.parametrize("decision", [Multiclass(2), Multilabel(1)])
@pytest.mark.parametrize("dims", [2, 3])
def test_each_class_has_the_map_of_what_speaks_for_it(dims, decision):
    x = half_bright(dims)
    maps = ActivationMaps(classifier(Pooled(dims, decision.channels), dims, decision), x)
    assert maps.layer == "act"
    bright = x[0, 0].numpy()
    np.testing.assert_allclose(maps(x, 1), bright, atol=1e-6)
    np.testing.assert_allclose(maps(x, 0), 1 - bright, atol=1e-6)


def test_a_label_has_the_map_of_its_own():
    x = half_bright(2)
    estimator = MonaiMultilabelClassifier(Pooled(2), (1, 8, 8), decision=Multilabel(2))
    np.testing.assert_allclose(ActivationMaps(estimator, x)(x, 1), x[0, 0].numpy(), atol=1e-6)


def resnet(dims: int) -> nn.Module:
    torch.manual_seed(0)
    return ResNet("basic", [1, 1, 1, 1], [4, 4, 8, 8], spatial_dims=dims, n_input_channels=1, num_classes=2,
                  conv1_t_size=3, conv1_t_stride=1, no_max_pool=True)  # fmt: skip


def densenet(dims: int) -> nn.Module:
    return DenseNet(dims, 1, 2, init_features=4, growth_rate=2, block_config=(1, 1))


@pytest.mark.parametrize(
    ("network", "layer"), [(resnet(2), "layer4"), (resnet(3), "layer4"), (densenet(2), "class_layers.relu")]
)
def test_the_layer_is_the_last_feature_map_before_the_pooling(network, layer):
    dims = 3 if any(isinstance(part, nn.Conv3d) for part in network.modules()) else 2
    x = torch.rand(1, 1, *(32,) * dims)
    maps = ActivationMaps(classifier(network, dims, size=32), x)
    assert maps.layer == layer
    theirs = GradCAM(copy.deepcopy(network).eval(), layer, postprocessing=lambda values: values)(x, class_idx=1)[
        0, 0
    ].detach()
    strongest = theirs.max()
    np.testing.assert_allclose(maps(x, 1), theirs / strongest if strongest > 0 else theirs, rtol=1e-4, atol=1e-6)


def test_another_layer_can_be_named():
    x = torch.rand(1, 1, 32, 32)
    assert ActivationMaps(classifier(resnet(2), 2, size=32), x, "layer3")(x, 0).shape == (32, 32)
    with pytest.raises(NoFeatureMapError, match="its layer 'fc' gives no feature map"):
        ActivationMaps(classifier(resnet(2), 2, size=32), x, "fc")


def test_networks_without_a_feature_map_are_refused():
    vit = ViT(1, (16, 16), (4, 4), hidden_size=12, mlp_dim=12, num_layers=1, num_heads=2, classification=True,
              num_classes=2, spatial_dims=2)  # fmt: skip
    flat = nn.Sequential(nn.Flatten(), nn.Linear(256, 2))
    for network in (vit, flat):
        with pytest.raises(NoFeatureMapError, match="no convolution with a feature map"):
            ActivationMaps(classifier(network, 2, size=16), torch.rand(1, 1, 16, 16))


def test_the_model_is_left_as_it_was():
    network = densenet(2)
    estimator = classifier(network, 2, size=32)
    network.train()
    network.requires_grad_(False)
    before = [getattr(part, "inplace", None) for part in network.modules()]
    x = torch.rand(1, 1, 32, 32)
    ActivationMaps(estimator, x)(x, 0)
    assert [getattr(part, "inplace", None) for part in network.modules()] == before and True in before
    assert all(part.training for part in network.modules())
    assert not any(part._forward_hooks or part._backward_hooks for part in estimator.model.modules())
    assert not any(weight.requires_grad or weight.grad is not None for weight in network.parameters())


def grey(dims: int) -> Dataset:
    """Images whose class is whether their last third is bright."""
    y = np.arange(4) % 2
    x = np.full((4, 1, *(8,) * dims), 0.48, dtype=np.float32)
    x[..., 5:] += 0.04 * y.reshape(-1, *[1] * (dims + 1)).astype(np.float32)
    splits = [Cases(x, y, tuple(f"{tag}{i}" for i in range(4))) for tag in "abc"]
    return Dataset("grey", "classification", Multiclass(2), Intensity(0, 1), ("dark", "bright"), *splits)


@pytest.mark.parametrize("dims", [2, 3])
def test_trainings_stand_side_by_side_on_the_same_cases_and_slices(dims):
    data = grey(dims)
    compared = SideBySide("task-net-0")
    for training, gain in (("natural", 1.0), ("robust", 2.0)):
        network = Pooled(dims)
        network.out.weight.data *= gain
        estimator = classifier(network, dims)
        compared.add(training, estimator, evaluate_estimator(
            estimator, data, [Planned("fgsm")], ["2/255", "16/255"], keep_images=True))  # fmt: skip
    (gallery,) = compared.galleries()
    assert gallery.section == "activation" and gallery.title == "task-net-0, linf, eps 16/255" and not gallery.note
    titles = [axes.get_title() for axes in gallery.figure.axes]
    assert len(titles) == 3 * 2 * 2  # cases, clean and adversarial, trainings
    cases = [[title.split("\n")[1].split(":")[0] for title in titles[row : row + 2]] for row in (0, 4, 8)]
    assert all(one == other for one, other in cases) and len({one for one, _ in cases}) == 3
    assert titles[0].startswith("natural\nc") and titles[1].startswith("robust\nc")
    pictures = [axes.images[0].get_array() for axes in gallery.figure.axes]
    assert all(picture.shape == (8, 8) for picture in pictures)
    np.testing.assert_array_equal(pictures[0], pictures[1])


def test_a_network_without_feature_map_leaves_a_note_instead_of_a_figure():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    estimator = classifier(network, 2)
    compared = SideBySide("task-flat-0")
    compared.add("natural", estimator, evaluate_estimator(
        estimator, grey(2), [Planned("fgsm")], ["2/255"], keep_images=True))  # fmt: skip
    (gallery,) = compared.galleries()
    assert gallery.figure is None and "no class-activation map of natural: it has no convolution" in gallery.note


def test_a_layer_that_a_network_does_not_have_is_refused_before_training():
    args = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
    spec = {"name": "net", "network": "DenseNet121", "args": args}
    with pytest.raises(ValueError, match="layer of DenseNet121 'class_layers.rleu' is unknown; did you mean"):
        build_estimator(ModelSpec(**spec, cam_layer="class_layers.rleu"), grey(2))
    unet = ModelSpec(name="net", network="UNet", args={**args, "channels": [2, 4], "strides": [2]}, cam_layer="model")
    x, y = np.zeros((1, 1, 8, 8), dtype=np.float32), np.zeros((1, 8, 8), dtype=np.int64)
    splits = [Cases(x, y, (tag,)) for tag in "abc"]
    voxels = Dataset("v", "segmentation", Multiclass(2, background=0), Intensity(0, 1), ("no", "yes"), *splits)
    with pytest.raises(ValueError, match="cam_layer='model' is for images; leave it out for"):
        build_estimator(unet, voxels)
