"""Sliding-window inference with the exact gradient to the image, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from monai.data.utils import compute_importance_map, dense_patch_slices, get_valid_patch_size
from monai.inferers import SliceInferer, SlidingWindowInferer, SlidingWindowInfererAdapt
from monai.utils import ensure_tuple_rep, fall_back_tuple
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from medadv.adapters.deployed import DeployedModel
from medadv.decisions import Decision
from medadv.intensities import Intensity
from medadv.victims import Loss, ModuleVictim

Predictor = Callable[[Tensor], Tensor]
WINDOW_MEMORY = 2 * 1024**3
Place = tuple[slice, ...]
_ALL = slice(None)
_EXACT = (SlidingWindowInferer, SlidingWindowInfererAdapt, SliceInferer)


class Windows:
    """Where the windows of an inferer lie in a batch of images, and how their logits are blended.

    The geometry is that of MONAI's ``sliding_window_inference``: images smaller than a window are padded on both sides,
    windows overlap by a share of their side, the last one of an axis is moved back inside, and logits are the mean of
    all windows weighted by an importance map.

    Args:
        inferer: a sliding-window inferer of MONAI.
        like: images ``(N, C, *S)``.

    Attributes:
        groups: the windows that run together, each as an index into ``(N, K, *P)``.
        importance: weight of each voxel of a window, ``(1, 1, *R)``.
        weights: sum of the importance of all windows over each voxel of a padded image, ``(1, 1, *P)``.
    """

    def __init__(self, inferer: SlidingWindowInferer, like: Tensor) -> None:
        sides = tuple(like.shape[2:])
        dims = len(sides)
        self.window = tuple(fall_back_tuple(inferer.roi_size, sides))
        self.padded = tuple(max(pair) for pair in zip(sides, self.window, strict=True))
        before = [(wide - side) // 2 for wide, side in zip(self.padded, sides, strict=True)]
        self.inside = (_ALL, _ALL, *(slice(b, b + side) for b, side in zip(before, sides, strict=True)))
        self.padding = [
            part for b, wide, side in reversed(list(zip(before, self.padded, sides, strict=True)))
            for part in (b, wide - side - b)
        ]  # fmt: skip
        self.mode, self.fill = str(getattr(inferer.padding_mode, "value", inferer.padding_mode)), inferer.cval
        strides = [
            side if side == wide else max(int(side * (1 - overlap)), 1)
            for side, wide, overlap in zip(
                self.window, self.padded, ensure_tuple_rep(inferer.overlap, dims), strict=True
            )
        ]
        places = dense_patch_slices(self.padded, self.window, strides)
        windows: list[Place] = [(slice(case, case + 1), _ALL, *place) for case in range(len(like)) for place in places]
        size = inferer.sw_batch_size
        self.groups = [windows[first : first + size] for first in range(0, len(windows), size)]
        self.importance = self._importance(inferer, like)
        self.weights = like.new_zeros(1, 1, *self.padded)
        self.add(self.weights, windows[: len(places)], [self.importance] * len(places))

    def _importance(self, inferer: SlidingWindowInferer, like: Tensor) -> Tensor:
        # what the inferer has computed beforehand, it uses
        known = inferer.roi_weight_map if get_valid_patch_size(self.padded, self.window) == self.window else None
        if known is None:
            known = compute_importance_map(
                self.window, mode=inferer.mode, sigma_scale=inferer.sigma_scale, device=like.device, dtype=like.dtype
            )
        known = torch.as_tensor(known).to(like)
        return known[None, None] if known.ndim == len(self.window) else known

    def pad(self, images: Tensor) -> Tensor:
        """Images ``(N, C, *S)`` made at least as large as a window, differentiable."""
        if not any(self.padding):
            return images
        value = self.fill if self.mode == "constant" else None
        return F.pad(images, self.padding, mode=self.mode, value=value)

    def unpad(self, padded: Tensor, images: Tensor) -> Tensor:
        """The gradient to images of which ``padded`` is that to :meth:`pad`."""
        if not any(self.padding):
            return padded
        leaf = images.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(self.pad(leaf), leaf, padded)[0]

    def spread(self, grad: Tensor) -> Tensor:
        """The gradient to ``(N, K, *P)`` of which ``grad`` is what lies inside the images."""
        if not any(self.padding):
            return grad
        wide = grad.new_zeros(*grad.shape[:2], *self.padded)
        wide[self.inside] = grad
        return wide

    def shares(self, group: Sequence[Place]) -> Tensor:
        """How much each voxel of the windows of a group counts in the blended logits, ``(B, 1, *R)``."""
        places: list[Place] = [(_ALL, *place[1:]) for place in group]
        return self.importance / self.cut(self.weights, places)

    @staticmethod
    def cut(padded: Tensor, group: Sequence[Place]) -> Tensor:
        """The windows of a group out of ``(N, K, *P)``, as a batch ``(B, K, *R)``."""
        return torch.cat([padded[place] for place in group])

    @staticmethod
    def add(padded: Tensor, group: Sequence[Place], windows: Sequence[Tensor]) -> None:
        """Adds windows ``(1, K, *R)`` to ``(N, K, *P)`` where they belong."""
        for place, window in zip(group, windows, strict=True):
            padded[place] += window


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
        blended, spare, size = images.new_zeros(0), exact.memory, 1
        for number, group in enumerate(windows.groups):
            leaf = windows.cut(padded, group)
            if spare >= size:
                logits, size = _with_graph(predict, leaf)
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
            weighed = windows.cut(grad, group) * windows.shares(group)
            if not logits.requires_grad:  # cut off from the image: no direction, and attacks tell so
                return torch.full_like(ctx.images, torch.nan), None, None, None
            windows.add(found, group, torch.autograd.grad(logits, leaf, weighed)[0].split(1))
        return windows.unpad(found, ctx.images), None, None, None


def _with_graph(predict: Predictor, leaf: Tensor) -> tuple[Tensor, int]:
    """Logits with their graph, and the bytes it holds beside the weights and the windows."""
    held: dict[int, int] = {}

    def see(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        logits = predict(leaf.requires_grad_())
    return logits, sum(held.values())


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
