"""What networks return, brought to one tensor of logits ``(N, C, *S)``.

MONAI's networks return tensors, but also lists (BasicUNetPlusPlus, also in eval mode), tuples (ViT with a
classification head, SegResNetVAE), stacks of deep-supervision outputs (DynUNet in training) and dicts (HoVerNet).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Head = int | str | Callable[[Any], Tensor] | None

# where the finest prediction stands when several have the same shape
_FINEST: dict[str, int] = {"BasicUNetPlusPlus": -1, "SegResNetDS": 0, "SegResNetDS2": 0}


def head_for(network: torch.nn.Module, head: Head) -> Head:
    """The head given by the user, or what is known of this class of network."""
    if head is not None:
        return head
    return _FINEST.get(type(network).__name__)


def logits_of(output: Any, channels: int, spatial: tuple[int, ...], head: Head = None) -> Tensor:
    """Picks the logits from what a network returned.

    Args:
        output: tensor, list, tuple or dict.
        channels: number C of logits of the decision.
        spatial: spatial shape S the logits must have; ``()`` for an image-level model.
        head: index, key or function that picks the logits where the output alone does not tell.

    Returns:
        Logits ``(N, C, *S)``.

    Raises:
        ValueError: no entry fits, or several do.

    Example:
        >>> import torch
        >>> logits_of((torch.zeros(2, 3), [torch.zeros(1)]), 3, ()).shape
        torch.Size([2, 3])
    """
    if callable(head):
        return _require(head(output), channels, spatial)
    if isinstance(output, Tensor):
        return _require(_finest_of_stack(output, channels, spatial), channels, spatial)
    entries = _tensors(output)
    if head is not None:
        try:
            entry = output[head]
        except (LookupError, TypeError):
            raise ValueError(
                f"head={head!r} picks nothing from the network's output, which holds {_shapes(entries, output)}."
            ) from None
        return _require(entry, channels, spatial)
    fitting = {name: fit for name, entry in entries.items() if (fit := _fit(entry, channels, spatial)) is not None}
    if len(fitting) != 1:
        problem = "several fit" if fitting else "none fits"
        raise ValueError(
            f"the network returns {_shapes(entries, output)}, of which {problem} logits (N, {channels}, *{spatial}); "
            "pass head= with the index, the key or a function that picks them."
        )
    return next(iter(fitting.values()))


def _tensors(output: Any) -> dict[Any, Tensor]:
    if isinstance(output, Mapping):
        return {key: value for key, value in output.items() if isinstance(value, Tensor)}
    if isinstance(output, Sequence):
        return {index: value for index, value in enumerate(output) if isinstance(value, Tensor)}
    return {}


def _shapes(entries: dict[Any, Tensor], output: Any) -> str:
    return ", ".join(f"{name!r}: {tuple(entry.shape)}" for name, entry in entries.items()) or type(output).__name__


def _finest_of_stack(output: Tensor, channels: int, spatial: tuple[int, ...]) -> Tensor:
    """DynUNet in training stacks its deep-supervision outputs on dimension 1, the finest first."""
    if spatial and output.ndim == len(spatial) + 3 and tuple(output.shape[2:]) == (channels, *spatial):
        return output[:, 0]
    return output


def _fit(entry: Tensor, channels: int, spatial: tuple[int, ...]) -> Tensor | None:
    """``entry`` as logits of the wanted shape, or None."""
    if tuple(entry.shape[1:]) == (channels, *spatial):
        return entry
    pooled = not spatial and entry.ndim > 2 and entry.shape[1] == channels and set(entry.shape[2:]) == {1}
    if pooled:  # fully convolutional classifiers leave 1 x 1 maps
        return entry.flatten(1)
    squeezed = channels == 1 and not spatial and entry.ndim == 1
    return entry[:, None] if squeezed else None


def _require(entry: Any, channels: int, spatial: tuple[int, ...]) -> Tensor:
    fit = _fit(entry, channels, spatial) if isinstance(entry, Tensor) else None
    if fit is None:
        shape = tuple(entry.shape) if isinstance(entry, Tensor) else type(entry).__name__
        raise ValueError(
            f"the network's output is {shape}, but the decision needs logits (N, {channels}, *{spatial}); check the "
            "number of classes, or pass head= to pick the right output."
        )
    return fit
