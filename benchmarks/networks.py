"""Networks that benchmarks name and MONAI has not, from MONAI's blocks, for images and for volumes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Act, Conv, Norm, Pool
from monai.networks.nets import ResNet, resnet18
from torch import Tensor, nn
from torch.nn import functional as F


def _normed(dims: int, inputs: int, outputs: int, act: str | None = "relu6", **settings: Any) -> Convolution:
    """Convolution without bias, batch norm, activation."""
    return Convolution(
        dims, inputs, outputs, adn_ordering="NA" if act else "N", act=act, norm="batch", bias=False, **settings
    )


class InvertedResidual(nn.Module):
    """Widen by 1x1, filter each channel by 3x3, narrow by 1x1 without activation; added to the input where it fits.

    Args:
        spatial_dims: 2 or 3.
        in_channels, out_channels: of the narrow ends.
        stride: of the 3x3 filter.
        expansion: how much wider the middle is; 1 leaves the widening out.
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = in_channels * expansion
        widen = [] if expansion == 1 else [_normed(spatial_dims, in_channels, wide, kernel_size=1)]
        self.added = stride == 1 and in_channels == out_channels
        self.layers = nn.Sequential(
            *widen,
            _normed(spatial_dims, wide, wide, strides=stride, groups=wide),
            _normed(spatial_dims, wide, out_channels, act=None, kernel_size=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.added else self.layers(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 (arXiv 1801.04381) for images and volumes; 3.5 million parameters in 2D with 1000 classes.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the image.
        out_channels: number of logits.
        stem_stride: of the first convolution; 1 for images of few pixels.
        dropout_prob: before the last layer.

    Example:
        >>> net = MobileNetV2(spatial_dims=2, in_channels=3, out_channels=1000)
        >>> sum(p.numel() for p in net.parameters())
        3504872
    """

    # expansion, channels, blocks, stride of the first block
    STAGES = (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    )  # fmt: skip
    LAST = 1280

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, *, stem_stride: int = 2, dropout_prob: float = 0.2
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [_normed(spatial_dims, in_channels, 32, strides=stem_stride)]
        width = 32
        for expansion, channels, blocks, stride in self.STAGES:
            for block in range(blocks):
                layers.append(InvertedResidual(spatial_dims, width, channels, stride if block == 0 else 1, expansion))
                width = channels
        layers.append(_normed(spatial_dims, width, self.LAST, kernel_size=1))
        self.features = nn.Sequential(*layers)
        self.head = _pooled_head(spatial_dims, self.LAST, out_channels, dropout_prob)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def _pooled_head(dims: int, channels: int, outputs: int, dropout_prob: float = 0.0) -> nn.Sequential:
    return nn.Sequential(
        Pool["adaptiveavg", dims](1), nn.Flatten(), nn.Dropout(dropout_prob), nn.Linear(channels, outputs)
    )


class PreActivation(nn.Module):
    """Norm, ReLU, 3x3, norm, ReLU, 3x3, added to the input, or to its 1x1 image where channels or size change.

    Args:
        spatial_dims: 2 or 3.
        in_channels, out_channels: of the block.
        stride: of its first convolution.
        dropout_prob: between the convolutions.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, stride: int, dropout_prob: float
    ) -> None:
        super().__init__()
        conv = Conv["conv", spatial_dims]
        self.before = _norm_relu(spatial_dims, in_channels)
        self.layers = nn.Sequential(
            conv(in_channels, out_channels, 3, stride, 1, bias=False),
            _norm_relu(spatial_dims, out_channels),
            nn.Dropout(dropout_prob),
            conv(out_channels, out_channels, 3, 1, 1, bias=False),
        )
        changes = stride != 1 or in_channels != out_channels
        self.shortcut = conv(in_channels, out_channels, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        active = self.before(x)
        # a shortcut with weights sees what the first convolution sees
        return self.layers(active) + (x if self.shortcut is None else self.shortcut(active))


def _norm_relu(dims: int, channels: int) -> nn.Sequential:
    return nn.Sequential(Norm["batch", dims](channels), Act["relu"](inplace=True))


class WideResNet(nn.Module):
    """Wide residual network (arXiv 1605.07146) for images and volumes; WRN-28-10 has 36.5 million parameters in 2D.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the image.
        out_channels: number of logits.
        depth: convolutions in all, ``6 n + 4``.
        widen_factor: how many times wider than 16, 32, 64 channels.
        stem_stride: of the first convolution; 1 as published for 32 x 32 pixels.
        dropout_prob: inside the blocks.

    Raises:
        ValueError: a depth that is not ``6 n + 4``.

    Example:
        >>> net = WideResNet(spatial_dims=2, in_channels=3, out_channels=10)
        >>> sum(p.numel() for p in net.parameters())
        36479194
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        depth: int = 28,
        widen_factor: int = 10,
        stem_stride: int = 1,
        dropout_prob: float = 0.0,
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth={depth} is no depth of a wide residual network; give 6 n + 4, such as 28.")
        layers: list[nn.Module] = [Conv["conv", spatial_dims](in_channels, 16, 3, stem_stride, 1, bias=False)]
        width = 16
        for stage in range(3):
            channels = 16 * 2**stage * widen_factor
            for block in range((depth - 4) // 6):
                stride = 2 if stage and block == 0 else 1
                layers.append(PreActivation(spatial_dims, width, channels, stride, dropout_prob))
                width = channels
        self.features = nn.Sequential(*layers, _norm_relu(spatial_dims, width))
        self.head = _pooled_head(spatial_dims, width, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class SegNet(nn.Module):
    """SegNet (arXiv 1511.00561) for images and volumes: VGG16's convolutions, and their mirror image on unpooled maps.

    What the encoder pools by the maximum the decoder puts back where it came from. 29.4 million parameters in 2D.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the image.
        out_channels: number of logits per voxel.
        channels: of each level.
        convolutions: of each level.

    Raises:
        ValueError: not as many ``channels`` as ``convolutions``.

    Example:
        >>> import torch
        >>> net = SegNet(spatial_dims=3, in_channels=1, out_channels=2, channels=(4, 8), convolutions=(1, 1))
        >>> net(torch.zeros(1, 1, 9, 8, 7)).shape
        torch.Size([1, 2, 9, 8, 7])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        channels: Sequence[int] = (64, 128, 256, 512, 512),
        convolutions: Sequence[int] = (2, 2, 3, 3, 3),
    ) -> None:
        super().__init__()
        if len(channels) != len(convolutions) or not channels:
            raise ValueError(
                f"channels={tuple(channels)} and convolutions={tuple(convolutions)} differ in number; give one of each "
                "per level."
            )
        levels = range(len(channels))
        own = [[channels[level]] * convolutions[level] for level in levels]
        above = [in_channels, *channels[:-1]]
        self.pool = Pool["max", spatial_dims](2, return_indices=True)
        self.unpool = {2: F.max_unpool2d, 3: F.max_unpool3d}[spatial_dims]
        self.encoder = nn.ModuleList(_convolutions(spatial_dims, [above[level], *own[level]]) for level in levels)
        # mirrored; the last convolution of the top level gives the logits
        mirrored = [[*own[level], above[level]] if level else own[level] for level in reversed(levels)]
        self.decoder = nn.ModuleList(_convolutions(spatial_dims, widths) for widths in mirrored)
        self.logits = Conv["conv", spatial_dims](channels[0], out_channels, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = []
        for level in self.encoder:
            before = level(x)
            x, places = self.pool(before)
            pooled.append((places, before.shape[2:]))
        for level, (places, size) in zip(self.decoder, reversed(pooled), strict=True):
            x = level(self.unpool(x, places, [2] * len(size), output_size=list(size)))
        return self.logits(x)


def _convolutions(dims: int, widths: Sequence[int]) -> nn.Sequential:
    pairs = zip(widths[:-1], widths[1:], strict=True)
    return nn.Sequential(*(Convolution(dims, a, b, adn_ordering="NA", act="relu", norm="batch") for a, b in pairs))


def resnet_18(spatial_dims: int, in_channels: int, out_channels: int, **settings: Any) -> ResNet:
    """MONAI's ResNet18 with the stem of the published one (arXiv 1512.03385), 11.7 million parameters in 2D.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the image.
        out_channels: number of logits.
        **settings: of :class:`monai.networks.nets.ResNet`, such as ``conv1_t_stride``.

    Example:
        >>> sum(p.numel() for p in resnet_18(2, 3, 1000).parameters())
        11689512
    """
    published = {"conv1_t_stride": 2, "bias_downsample": False}
    shape = {"spatial_dims": spatial_dims, "n_input_channels": in_channels, "num_classes": out_channels}
    return resnet18(**{**published, **settings, **shape})


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "ResNet18": resnet_18,
    "MobileNetV2": MobileNetV2,
    "WideResNet": WideResNet,
    "SegNet": SegNet,
}
