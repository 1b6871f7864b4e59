"""What MONAI's networks return becomes logits ``(N, C, *S)``, or is refused with a sentence that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from monai.networks import nets
from torch import nn

from medadv import Multiclass, Multilabel
from medadv.adapters import MonaiClassifier, MonaiMultilabelClassifier, MonaiSegmenter
from medadv.adapters.heads import logits_of

every_rank = pytest.mark.parametrize("dims", [2, 3])


def batch(dims: int, size: int, cases: int = 2) -> np.ndarray:
    return np.random.default_rng(0).random((cases, 1, *(size,) * dims), dtype=np.float32)


def shaped(output: Any) -> Any:
    """A network's first tensor, or the last where that is the finest."""
    return output if isinstance(output, torch.Tensor) else output[0]


def dynunet(dims: int) -> nn.Module:
    return nets.DynUNet(
        dims,
        1,
        2,
        kernel_size=[3, 3, 3],
        strides=[1, 2, 2],
        upsample_kernel_size=[2, 2],
        filters=[4, 8, 8],
        deep_supervision=True,
        deep_supr_num=1,
    )


# name -> (network, image size, which entry is the finest prediction)
SEGMENTERS: dict[str, tuple[Callable[[int], nn.Module], int, Callable[[Any], torch.Tensor]]] = {
    "UNet": (lambda d: nets.UNet(d, 1, 2, (4, 8), (2,)), 8, shaped),
    "AttentionUnet": (lambda d: nets.AttentionUnet(d, 1, 2, (4, 8), (2,)), 8, shaped),
    "SegResNet": (
        lambda d: nets.SegResNet(d, init_filters=8, in_channels=1, blocks_down=(1, 1), blocks_up=(1,)),
        8,
        shaped,
    ),
    "SegResNetDS": (
        lambda d: nets.SegResNetDS(
            d, init_filters=4, out_channels=2, blocks_down=(1, 1, 1), dsdepth=2, norm="instance"
        ),
        8,
        shaped,
    ),
    "SegResNetVAE": (
        lambda d: nets.SegResNetVAE((8,) * d, 4, spatial_dims=d, init_filters=8, blocks_down=(1, 1), blocks_up=(1,)),
        8,
        shaped,
    ),
    "DynUNet": (dynunet, 8, shaped),
    "BasicUNetPlusPlus": (lambda d: nets.BasicUNetPlusPlus(d, 1, 2, features=(2,) * 6), 32, lambda o: o[-1]),
    "BasicUNetPlusPlus, deep supervision": (
        lambda d: nets.BasicUNetPlusPlus(d, 1, 2, features=(2,) * 6, deep_supervision=True),
        32,
        lambda o: o[-1],
    ),
}


@every_rank
@pytest.mark.parametrize("name", SEGMENTERS)
def test_segmentation_networks_give_their_finest_prediction(name: str, dims: int) -> None:
    make, size, finest = SEGMENTERS[name]
    torch.manual_seed(0)
    network = make(dims)
    estimator = MonaiSegmenter(network, (1, *(size,) * dims), decision=Multiclass(2, background=0))
    x = batch(dims, size)
    logits = estimator.predict(x)
    assert logits.shape == (2, 2, *(size,) * dims)
    with torch.no_grad():
        expected = finest(network.eval()(torch.from_numpy(x)))
    np.testing.assert_allclose(logits, expected.numpy(), rtol=1e-4, atol=1e-5)
    gradient = estimator.loss_gradient(x, (x[:, 0] > 0.5).astype(int))
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


@every_rank
@pytest.mark.parametrize("name", ["SegResNetDS", "SegResNetVAE", "DynUNet", "BasicUNetPlusPlus, deep supervision"])
def test_networks_with_several_outputs_in_training_can_be_fitted(name: str, dims: int) -> None:
    make, size, _ = SEGMENTERS[name]
    torch.manual_seed(0)
    estimator = MonaiSegmenter(make(dims), (1, *(size,) * dims), decision=Multiclass(2, background=0))
    x = batch(dims, size)
    before = estimator.predict(x)
    estimator.fit(x, (x[:, 0] > 0.5).astype(int), batch_size=2, nb_epochs=1)
    assert np.abs(estimator.predict(x) - before).max() > 0


CLASSIFIERS: dict[str, tuple[Callable[[int], nn.Module], int]] = {
    "ResNet": (
        lambda d: nets.ResNet(
            "basic", [1] * 4, [4] * 4, spatial_dims=d, n_input_channels=1, num_classes=3, conv1_t_size=3
        ),
        16,
    ),
    "DenseNet": (lambda d: nets.DenseNet(d, 1, 3, init_features=4, growth_rate=2, block_config=(1, 1), bn_size=1), 16),
}


@every_rank
@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classification_networks(name: str, kind: str, dims: int) -> None:
    make, size = CLASSIFIERS[name]
    torch.manual_seed(0)
    shape = (1, *(size,) * dims)
    estimator: Any = (
        MonaiClassifier(make(dims), shape, decision=Multiclass(3))
        if kind == "multiclass"
        else MonaiMultilabelClassifier(make(dims), shape, decision=Multilabel(3))
    )
    y = np.array([0, 2]) if kind == "multiclass" else np.array([[0, 1, 1], [1, 0, 0]])
    assert estimator.predict(batch(dims, size)).shape == (2, 3)
    assert np.abs(estimator.loss_gradient(batch(dims, size), y)).max() > 0


@every_rank
def test_vit_with_a_classification_head(dims: int) -> None:
    pytest.importorskip("einops")
    network = nets.ViT(
        1,
        (8,) * dims,
        (4,) * dims,
        hidden_size=12,
        mlp_dim=12,
        num_layers=1,
        num_heads=2,
        classification=True,
        num_classes=3,
        spatial_dims=dims,
    )
    estimator = MonaiClassifier(network, (1, *(8,) * dims), decision=Multiclass(3))
    assert estimator.predict(batch(dims, 8)).shape == (2, 3)
    assert np.abs(estimator.class_gradient(batch(dims, 8))).max() > 0


@every_rank
def test_unetr(dims: int) -> None:
    pytest.importorskip("einops")
    network = nets.UNETR(1, 2, (16,) * dims, feature_size=2, hidden_size=12, mlp_dim=12, num_heads=2, spatial_dims=dims)
    estimator = MonaiSegmenter(network, (1, *(16,) * dims), decision=Multiclass(2))
    x = batch(dims, 16, 1)
    assert estimator.predict(x).shape == (1, 2, *(16,) * dims)
    assert np.abs(estimator.loss_gradient(x, (x[:, 0] > 0.5).astype(int))).max() > 0


class Returning(nn.Module):
    """Pools the image into logits and returns them as told."""

    def __init__(self, outputs: int, returned: Callable[[torch.Tensor], Any], segments: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, outputs + 1)[1:])
        self.returned = returned
        self.segments = segments

    def forward(self, x: torch.Tensor) -> Any:
        seen = x if self.segments else x.flatten(2).mean(2)
        return self.returned(seen * self.weight.view(1, -1, *[1] * (seen.ndim - 2)))


# how a classifier may hand over its three logits -> the head needed
RETURNED: dict[str, tuple[Callable[[torch.Tensor], Any], Any]] = {
    "tensor": (lambda z: z, None),
    "ViT's tuple of logits and hidden states": (lambda z: (z, [z[:, :2], z[:, :2]]), None),
    "list with another tensor": (lambda z: [z, z.sum(1)], None),
    "dict": (lambda z: {"features": z.repeat(1, 4), "logits": z}, None),
    "maps of one pixel": (lambda z: z[:, :, None, None], None),
    "volumes of one voxel": (lambda z: z[:, :, None, None, None], None),
    "key": (lambda z: {"main": z, "auxiliary": 0 * z}, "main"),
    "index": (lambda z: [0 * z, z], 1),
    "last": (lambda z: [0 * z, z], -1),
    "function": (lambda z: {"a": [0 * z, z]}, lambda output: output["a"][1]),
}


@every_rank
@pytest.mark.parametrize("case", RETURNED)
def test_logits_are_found_in_what_a_classifier_returns(case: str, dims: int) -> None:
    returned, head = RETURNED[case]
    estimator = MonaiClassifier(Returning(3, returned), (1, *(4,) * dims), decision=Multiclass(3), head=head)
    x = batch(dims, 4)
    expected = x.reshape(2, -1).mean(1)[:, None] * estimator.network.weight.detach().numpy()
    np.testing.assert_allclose(estimator.predict(x), expected, rtol=1e-5, atol=1e-6)
    assert np.abs(estimator.class_gradient(x, label=2)).max() > 0


@every_rank
@pytest.mark.parametrize("returned", [lambda z: z[:, 0], lambda z: z, lambda z: z[:, :, None, None]])
def test_one_logit_in_every_shape(returned: Callable[[torch.Tensor], Any], dims: int) -> None:
    estimator = MonaiClassifier(Returning(1, returned), (1, *(4,) * dims), decision=Multilabel(1))
    assert estimator.predict(batch(dims, 4)).shape == (2, 2)
    assert np.abs(estimator.loss_gradient(batch(dims, 4), np.array([0, 1]))).max() > 0


def coarse(z: torch.Tensor) -> torch.Tensor:
    return nn.functional.avg_pool2d(z, 2)


@pytest.mark.parametrize(
    ("returned", "head"),
    [
        (lambda z: [z, coarse(z)], None),
        (lambda z: [coarse(z), z], None),
        (lambda z: torch.stack([z, 0 * z], 1), None),
        (lambda z: {"segmentation": z, "boundary": z[:, :1]}, None),
        (lambda z: {"segmentation": z, "other": 0 * z}, "segmentation"),
        (lambda z: (z, torch.tensor(0.0)), None),
    ],
)
def test_logits_are_found_in_what_a_segmenter_returns(returned: Callable[[torch.Tensor], Any], head: Any) -> None:
    network = Returning(2, returned, segments=True)
    estimator = MonaiSegmenter(network, (1, 8, 8), decision=Multiclass(2), head=head)
    x = batch(2, 8)
    np.testing.assert_allclose(estimator.predict(x), x * network.weight.detach().numpy()[:, None, None], rtol=1e-6)


REFUSED: dict[str, tuple[Callable[[torch.Tensor], Any], Any, str]] = {
    "several fit": (
        lambda z: [z, z],
        None,
        r"returns 0: \(2, 3\), 1: \(2, 3\), of which several fit logits \(N, 3, \*\(\)\); pass head= with the index",
    ),
    "none fits": (
        lambda z: {"a": z[:, :2], "b": z.sum(1)},
        None,
        r"returns 'a': \(2, 2\), 'b': \(2,\), of which none fits",
    ),
    "no tensor at all": (lambda z: "logits", None, "returns str, of which none fits"),
    "nothing": (lambda z: None, None, "returns NoneType, of which none fits"),
    "too many classes": (
        lambda z: z.repeat(1, 2),
        None,
        r"output is \(2, 6\), but the decision needs logits \(N, 3, \*\(\)\); check the number of classes",
    ),
    "a map where a vector is needed": (
        lambda z: z[:, :, None, None].repeat(1, 1, 2, 2),
        None,
        r"is \(2, 3, 2, 2\), but",
    ),
    "a key that is not there": (
        lambda z: {"main": z},
        "logits",
        r"head='logits' picks nothing from the network's output, which holds 'main': \(2, 3\)",
    ),
    "an index that is not there": (lambda z: [z], 4, "head=4 picks nothing from the network's output"),
    "a head that picks a wrong one": (lambda z: [z, z[:, :2]], 1, r"output is \(2, 2\), but the decision needs logits"),
    "a head that picks a list": (lambda z: [[z]], 0, "output is list, but the decision needs logits"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_ambiguous_and_unfitting_outputs_are_refused(case: str) -> None:
    returned, head, message = REFUSED[case]
    estimator = MonaiClassifier(Returning(3, returned), (1, 4, 4), decision=Multiclass(3), head=head)
    with pytest.raises(ValueError, match=message):
        estimator.predict(batch(2, 4))


def test_a_prediction_of_another_size_is_refused() -> None:
    # HoVerNet: 256 x 256 in, 164 x 164 out
    network = Returning(2, lambda z: {"nucleus_prediction": z[..., 2:-2, 2:-2]}, segments=True)
    estimator = MonaiSegmenter(network, (1, 8, 8), decision=Multiclass(2))
    with pytest.raises(ValueError, match=r"'nucleus_prediction': \(2, 2, 4, 4\), of which none fits .*\(8, 8\)"):
        estimator.predict(batch(2, 8))


def test_a_segmentation_network_as_classifier_is_refused() -> None:
    estimator = MonaiClassifier(nets.UNet(2, 1, 2, (4, 8), (2,)), (1, 8, 8), decision=Multiclass(2))
    with pytest.raises(ValueError, match=r"output is \(2, 2, 8, 8\), but the decision needs logits \(N, 2, \*\(\)\)"):
        estimator.predict(batch(2, 8))


def test_a_stack_is_only_read_as_deep_supervision_where_its_shape_says_so() -> None:
    stack = torch.arange(2 * 3 * 2 * 4 * 4).view(2, 3, 2, 4, 4)
    torch.testing.assert_close(logits_of(stack, 2, (4, 4)), stack[:, 0])
    torch.testing.assert_close(logits_of(stack, 3, (2, 4, 4)), stack)
