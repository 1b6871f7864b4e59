"""Sliding-window inference with the exact gradient to the image, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from monai.inferers import SliceInferer, SlidingWindowInferer, SlidingWindowInfererAdapt
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from medadv.adapters.deployed import DeployedModel
from medadv.adapters.window_geometry import Windows
from medadv.decisions import Decision
from medadv.intensities import Intensity
from medadv.victims import Loss, ModuleVictim

Predictor = Callable[[Tensor], Tensor]
WINDOW_MEMORY = 2 * 1024**3
_EXACT = (SlidingWindowInferer, SlidingWindowInfererAdapt, SliceInferer)


@dataclass
class ExactWindows:
    """The blended logits of an inferer, differentiable in the images alone, and how many passes that took.

    Attributes:
        inferer: the sliding-window inferer.
        memory: bytes of activations that may be kept between the two directions; windows beyond it are run again.
        forward_passes: over all windows; one more where windows had to run again.
    """

    inferer: SlidingWindowInferer
    memory: int
    forward_passes: int = field(default=0, init=False)

    def __call__(self, images: Tensor, predict: Predictor) -> Tensor:
        """Images ``(N, C, *S)`` -> logits ``(N, K, *S)``.

        Args:
            images: ``(N, C, *S)``.
            predict: windows ``(B, C, *R)`` -> logits ``(B, K, *R)``.
        """
        if isinstance(self.inferer, SliceInferer):
            predict = self._of_slices(predict)
        return _Blended.apply(images, Windows(self.inferer, images), predict, self)  # type: ignore[no-any-return]

    def _of_slices(self, predict: Predictor) -> Predictor:
        """Windows are one voxel thick along an axis that the network does not see."""
        inferer: Any = self.inferer
        inferer.roi_size = list(inferer.orig_roi_size)  # as SliceInferer does when it is called
        inferer.roi_size.insert(inferer.spatial_dim, 1)
        return lambda window: inferer.network_wrapper(predict, window)


class _Blended(torch.autograd.Function):
    """Blended logits; the gradient goes through one group of windows at a time."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, windows: Windows, predict: Predictor, exact: ExactWindows) -> Tensor:
        ctx.windows, ctx.predict, ctx.exact, ctx.images = windows, predict, exact, images
        ctx.kept, ctx.proof = {}, None
        padded = windows.pad(images)
        blended, spare, size = images.new_zeros(0), exact.memory, 0
        for number, group in enumerate(windows.groups):
            leaf = windows.cut(padded, group)
            if spare >= max(size, 1):
                if size:
                    with torch.enable_grad():
                        logits = predict(leaf.requires_grad_())
                else:  # the groups after the first are not larger
                    logits, size = _measured(predict, leaf)
                ctx.kept[number], spare = (leaf, logits), spare - size
            else:
                with torch.no_grad():
                    logits = predict(leaf)
                ctx.proof = ctx.proof or (number, logits)
            if not number:
                blended = images.new_zeros(len(images), logits.shape[1], *windows.padded)
            windows.add(blended, group, (logits.detach() * windows.importance).split(1))
        exact.forward_passes += 1
        blended /= windows.weights
        return blended[windows.inside]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        windows: Windows = ctx.windows
        padded = windows.pad(ctx.images)
        grad = windows.spread(grad)
        found = torch.zeros_like(padded)
        ctx.exact.forward_passes += len(ctx.kept) < len(windows.groups)
        for number, group in enumerate(windows.groups):
            leaf, logits = ctx.kept.pop(number, None) or _again(ctx, number, windows.cut(padded, group))
            if not logits.requires_grad:  # cut off from the image: no direction, and attacks tell so
                return torch.full_like(ctx.images, torch.nan), None, None, None
            (inward,) = torch.autograd.grad(logits, leaf, windows.weighed(grad, group))
            windows.add(found, group, inward.split(1))
        return windows.unpad(found, ctx.images), None, None, None


def _measured(predict: Predictor, leaf: Tensor) -> tuple[Tensor, int]:
    """Logits with their graph, and the bytes that are held with them beside the weights and the windows."""
    held: dict[int, int] = {}

    def see(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        logits = predict(leaf.requires_grad_())
    return logits, sum(held.values()) + logits.nbytes


def _again(ctx: Any, number: int, leaf: Tensor) -> tuple[Tensor, Tensor]:
    """Runs a group a second time, now with its graph."""
    with torch.enable_grad():
        logits = ctx.predict(leaf.requires_grad_())
    if ctx.proof is not None and ctx.proof[0] == number:
        (_, first), ctx.proof = ctx.proof, None
        if not torch.allclose(first, logits, rtol=1e-3, atol=1e-3 * float(first.abs().max())):
            raise ValueError(
                "the model answers the same window differently each time, so windows can't run twice; raise "
                "window_memory= until the activations of all windows are kept."
            )
    return leaf, logits


class WindowedVictim(ModuleVictim):
    """A deployed model with a sliding-window inferer: the same logits, exact input gradients, bounded memory.

    The output is blended first; then the gradient of the loss to it goes back through the windows one group at a time,
    each weighed as it was blended, where autograd through MONAI's inferer copies the gradient of all logits once per
    window. Windows whose activations fit into ``memory`` run once, all others twice.

    Args:
        module: the deployed model, or a view of it.
        decision, intensity, segments: as for :class:`~medadv.victims.ModuleVictim`.
        memory: bytes of activations that may be kept.

    Raises:
        ValueError: on differentiating a model whose batch norm is in training mode, as windows would change each other.

    Example:
        >>> import torch
        >>> from monai.inferers import SlidingWindowInferer
        >>> from medadv import Intensity, Multiclass
        >>> from medadv.adapters.deployed import DeployedModel
    from medadv.adapters.window_geometry import Windows
        >>> net = torch.nn.Conv2d(1, 2, 3, padding=1)
        >>> model = DeployedModel(net, channels=2, segments=True, inferer=SlidingWindowInferer((8, 8), overlap=0.5))
        >>> victim = WindowedVictim(model.eval(), Multiclass(2), Intensity(0, 1), segments=True, memory=0)
        >>> _, _, grad = victim.differentiate(torch.rand(1, 1, 16, 16), lambda z: z[:, 1].flatten(1).sum(1))
        >>> grad.shape, victim.passes
        (torch.Size([1, 1, 16, 16]), Passes(forward=2, backward=1))
    """

    def __init__(
        self,
        module: nn.Module,
        decision: Decision,
        intensity: Intensity,
        *,
        segments: bool,
        memory: int = WINDOW_MEMORY,
    ) -> None:
        super().__init__(module, decision, intensity, segments=segments)
        self.memory = memory

    def differentiate(self, x: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        learning = {name: layer for name, layer in self.module.named_modules() if layer.training}
        for name, layer in learning.items():
            if isinstance(layer, _BatchNorm):
                raise ValueError(
                    f"batch norm {name!r} is in training mode, so windows change each other's logits; call eval()."
                )
        if learning:  # dropout that is left on, say: only one pass knows its masks
            return super().differentiate(x, loss)
        with exact_windows(self.module, self.memory) as exact:
            result = super().differentiate(x, loss)
        self.passes.forward += exact.forward_passes - 1
        return result


def sliding_inferer_of(module: nn.Module) -> SlidingWindowInferer | None:
    """The inferer of a deployed model (or a view of it), if its windows can be differentiated one by one."""
    inferer: Any = _deployed(module).inferer
    plain = type(inferer) in _EXACT and not inferer.with_coord and inferer.device is None and inferer.sw_device is None
    return inferer if plain else None


@contextmanager
def exact_windows(module: nn.Module, memory: int) -> Iterator[ExactWindows]:
    """Context in which a deployed model's logits are differentiable in the images alone, window by window."""
    deployed = _deployed(module)
    assert isinstance(deployed.inferer, SlidingWindowInferer)
    deployed.blend = exact = ExactWindows(deployed.inferer, memory)
    try:
        yield exact
    finally:
        deployed.blend = None


def _deployed(module: nn.Module) -> DeployedModel:
    return next(part for part in module.modules() if isinstance(part, DeployedModel))
