"""Where the windows of a sliding-window inferer lie in an image, and how much each counts in the blended logits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from monai.data.utils import compute_importance_map, dense_patch_slices, get_valid_patch_size
from monai.inferers import SliceInferer, SlidingWindowInferer
from monai.utils import ensure_tuple_rep, fall_back_tuple
from torch import Tensor
from torch.nn import functional as F

Place = tuple[slice, ...]
_ALL = slice(None)


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
    """

    def __init__(self, inferer: SlidingWindowInferer, like: Tensor) -> None:
        if isinstance(inferer, SliceInferer):  # as it does itself when it is called
            slices: Any = inferer
            slices.roi_size = list(slices.orig_roi_size)
            slices.roi_size.insert(slices.spatial_dim, 1)
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
        self._of_one_case = windows[: len(places)]
        self.importance = self._importance(inferer, like)

    @cached_property
    def weights(self) -> Tensor:
        """Sum of the importance of all windows over each voxel of a padded image, ``(1, 1, *P)``."""
        weights = self.importance.new_zeros(1, 1, *self.padded)
        self.add(weights, self._of_one_case, [self.importance] * len(self._of_one_case))
        return weights

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

    def weighed(self, grad: Tensor, group: Sequence[Place]) -> Tensor:
        """The gradient to the windows of a group, ``(B, K, *R)``, of that to the blended logits, ``(N, K, *P)``."""
        windows = grad.new_empty(len(group), grad.shape[1], *self.window)
        for window, place in zip(windows.split(1), group, strict=True):
            inside: Place = (_ALL, *place[1:])
            torch.div(grad[place], self.weights[inside], out=window)
        return windows.mul_(self.importance)

    @staticmethod
    def cut(padded: Tensor, group: Sequence[Place]) -> Tensor:
        """The windows of a group out of ``(N, K, *P)``, as a batch ``(B, K, *R)``."""
        return torch.cat([padded[place] for place in group])

    @staticmethod
    def add(padded: Tensor, group: Sequence[Place], windows: Sequence[Tensor]) -> None:
        """Adds windows ``(1, K, *R)`` to ``(N, K, *P)`` where they belong."""
        for place, window in zip(group, windows, strict=True):
            padded[place] += window
