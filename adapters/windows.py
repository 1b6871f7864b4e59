"""Sliding-window inference with the exact gradient to the image, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from monai.inferers import SliceInferer, SlidingWindowInferer, SlidingWindowInfererAdapt
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from medadv.adapters.acceleration import SearchNetwork
from medadv.adapters.deployed import Predictor, deployed_in
from medadv.adapters.precision import DeployedVictim
from medadv.adapters.window_geometry import Windows
from medadv.decisions import Decision
from medadv.intensities import Intensity
from medadv.victims import Loss

OnWindows = Callable[[int, int], None]
WINDOW_MEMORY = 2 * 1024**3
_EXACT = (SlidingWindowInferer, SlidingWindowInfererAdapt, SliceInferer)


@dataclass
class ExactWindows:
    """The blended logits of an inferer, differentiable in the images alone, and how many passes that took.

    Attributes:
        inferer: the sliding-window inferer.
        memory: bytes of activations that may be kept between the two directions; windows beyond it are run again.
        on_windows: is told after each group of windows, in both directions, how many are done and of how many.
        forward_passes: over all windows; one more where windows had to run again.
    """

    inferer: SlidingWindowInferer
    memory: int
    on_windows: OnWindows | None = None
    forward_passes: int = field(default=0, init=False)

    def __call__(self, images: Tensor, predict: Predictor) -> Tensor:
        """Images ``(N, C, *S)`` -> logits ``(N, K, *S)``.

        Args:
            images: ``(N, C, *S)``.
            predict: windows ``(B, C, *R)`` -> logits ``(B, K, *R)``.
        """
        windows = Windows(self.inferer, images)
        if isinstance(self.inferer, SliceInferer):  # windows have an axis that the network does not see
            wrapped: Any = partial(self.inferer.network_wrapper, predict)
            predict = wrapped
        told = _Told(self.on_windows, 2 * len(windows.groups))
        return _Blended.apply(images, windows, predict, self, told)  # type: ignore[no-any-return]


class _Told:
    """Counts groups of windows, and tells."""

    def __init__(self, on_windows: OnWindows | None, total: int) -> None:
        self.on_windows, self.done, self.total = on_windows, 0, total

    def one_more(self) -> None:
        """One group is done."""
        self.done += 1
        if self.on_windows is not None:
            self.on_windows(self.done, self.total)


class _Blended(torch.autograd.Function):
    """Blended logits; the gradient goes through one group of windows at a time."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, windows: Windows, predict: Predictor, exact: ExactWindows, told: _Told
    ) -> Tensor:
        ctx.windows, ctx.predict, ctx.exact, ctx.told, ctx.images = windows, predict, exact, told, images
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
            told.one_more()
        exact.forward_passes += 1
        blended /= windows.weights
        return blended[windows.inside]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        windows: Windows = ctx.windows
        padded = windows.pad(ctx.images)
        grad = windows.spread(grad)
        found = torch.zeros_like(padded)
        ctx.exact.forward_passes += len(ctx.kept) < len(windows.groups)
        for number, group in enumerate(windows.groups):
            leaf, logits = ctx.kept.pop(number, None) or _again(ctx, number, windows.cut(padded, group))
            if not logits.requires_grad:  # cut off from the image: no direction, and attacks tell so
                return torch.full_like(ctx.images, torch.nan), None, None, None, None
            (inward,) = torch.autograd.grad(logits, leaf, windows.weighed(grad, group))
            windows.add(found, group, inward.split(1))
            del leaf, logits, inward  # else they stay while the next group runs
            ctx.told.one_more()
        return windows.unpad(found, ctx.images), None, None, None, None


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


class WindowedVictim(DeployedVictim):
    """A deployed model with a sliding-window inferer: the same logits, exact input gradients, bounded memory.

    The output is blended first; then the gradient of the loss to it goes back through the windows one group at a time,
    each weighed as it was blended, where autograd through MONAI's inferer copies the gradient of all logits once per
    window. Windows whose activations fit into ``memory`` run once, all others twice.

    Args:
        module: the deployed model, or a view of it.
        decision, intensity, segments, search: as for :class:`~medadv.adapters.precision.DeployedVictim`.
        memory: bytes of activations that may be kept.

    Attributes:
        on_windows: a function of two numbers that is called after every group of windows: how many of the present look
            at the model are done, and of how many. In a look without gradient every group counts once, with gradient
            once there and once back, whether it runs again or not. None, as at the start: nobody is told.

    Raises:
        ValueError: on differentiating a model whose batch norm is in training mode, as windows would change each other.

    Example:
        >>> import torch
        >>> from monai.inferers import SlidingWindowInferer
        >>> from medadv import Intensity, Multiclass
        >>> from medadv.adapters.deployed import DeployedModel
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
        search: SearchNetwork | None = None,
    ) -> None:
        super().__init__(module, decision, intensity, segments=segments, search=search)
        self.memory = memory
        self.on_windows: OnWindows | None = None

    def logits(self, x: Tensor) -> Tensor:
        with _watched(self.module, self.on_windows):
            return super().logits(x)

    def differentiate(self, x: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        learning = {name: layer for name, layer in self.module.named_modules() if layer.training}
        for name, layer in learning.items():
            if isinstance(layer, _BatchNorm):
                raise ValueError(
                    f"batch norm {name!r} is in training mode, so windows change each other's logits; call eval()."
                )
        if learning:  # dropout that is left on, say: only one pass knows its masks
            return super().differentiate(x, loss)
        with exact_windows(self.module, self.memory, self.on_windows) as exact:
            result = super().differentiate(x, loss)
        self.passes.forward += exact.forward_passes - 1
        return result


def sliding_inferer_of(module: nn.Module) -> SlidingWindowInferer | None:
    """The inferer of a deployed model (or a view of it), if its windows can be differentiated one by one."""
    inferer: Any = deployed_in(module).inferer
    plain = type(inferer) in _EXACT and not inferer.with_coord and inferer.device is None and inferer.sw_device is None
    return inferer if plain else None


@contextmanager
def exact_windows(module: nn.Module, memory: int, on_windows: OnWindows | None = None) -> Iterator[ExactWindows]:
    """Context in which a deployed model's logits are differentiable in the images alone, window by window."""
    deployed = deployed_in(module)
    assert isinstance(deployed.inferer, SlidingWindowInferer)
    deployed.blend = exact = ExactWindows(deployed.inferer, memory, on_windows)
    try:
        yield exact
    finally:
        deployed.blend = None


@contextmanager
def _watched(module: nn.Module, on_windows: OnWindows | None) -> Iterator[None]:
    """Context in which it is told how far MONAI's inferer has come."""
    deployed = deployed_in(module)

    def watch(images: Tensor, predict: Predictor) -> Predictor:
        assert isinstance(deployed.inferer, SlidingWindowInferer)
        told = _Told(on_windows, len(Windows(deployed.inferer, images).groups))

        def watched(window: Tensor) -> Tensor:
            logits = predict(window)
            told.one_more()
            return logits

        return watched

    deployed.watch = None if on_windows is None else watch
    try:
        yield
    finally:
        deployed.watch = None
