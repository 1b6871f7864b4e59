"""Faster copies of a network for the search of an attack: half precision, channels last, batch norms folded."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from medadv.names import unknown_name

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)
_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
_EXACT = 1e-9  # relative, in float64


@dataclass(frozen=True)
class Acceleration:
    """How a network computes where its logits are no verdict.

    Attributes:
        folded: batch norms in eval mode become part of the convolutions before them; exact but for rounding.
        channels_last: the memory layout that some convolutions are faster in; exact but for rounding.
        dtype: the type of ``torch.autocast``; None: that of the network.

    Example:
        >>> Acceleration(folded=True, dtype=torch.bfloat16).name
        'folded+bfloat16'
    """

    folded: bool = False
    channels_last: bool = False
    dtype: torch.dtype | None = None

    @property
    def name(self) -> str:
        """In words, the parts joined by ``+``."""
        parts = {"folded": self.folded, "channels-last": self.channels_last, "bfloat16": self.dtype is not None}
        return "+".join(part for part, wanted in parts.items() if wanted) or "none"

    @property
    def needs_copy(self) -> bool:
        """Whether a copy of the network is made."""
        return self.folded or self.channels_last


NONE = Acceleration()
ACCELERATIONS = {
    one.name: one
    for one in (Acceleration(*parts) for parts in product((False, True), (False, True), (None, torch.bfloat16)))
}


def acceleration_of(name: str | None) -> Acceleration:
    """An acceleration by name.

    Raises:
        ValueError: an unknown one.

    Example:
        >>> acceleration_of("channels-last").channels_last
        True
    """
    if name is None:
        return NONE
    if name not in ACCELERATIONS:
        raise unknown_name("acceleration", name, ACCELERATIONS)
    return ACCELERATIONS[name]


@contextmanager
def unaccelerated(estimator: Any) -> Iterator[None]:
    """Runs the block with gradients of the network itself, whatever the attacks of an estimator are accelerated by."""
    before, estimator.acceleration = estimator.acceleration, NONE
    try:
        yield
    finally:
        estimator.acceleration = before


class SearchNetwork:
    """A network as a search sees it; the network itself is never changed.

    A copy is made when it is first needed and again after weights or modes of the network have changed.

    Args:
        network: the network, in float32.
        how: what is done to be faster.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
        >>> fast = SearchNetwork(network, ACCELERATIONS["folded+channels-last"])
        >>> x = torch.rand(2, 1, 8, 8)
        >>> torch.allclose(fast(x), network(x), atol=1e-5)
        True
    """

    def __init__(self, network: nn.Module, how: Acceleration) -> None:
        self.network = network
        self.how = how
        self._state: Hashable = None
        self._copy: nn.Module | None = None

    def __call__(self, z: Tensor) -> Any:
        """The network's output, in whatever type it computes in.

        Raises:
            ValueError: batch norms that can't be folded.
        """
        network = self._current(z) if self.how.needs_copy else self.network
        if self.how.channels_last:
            z = z.contiguous(memory_format=_LAYOUTS[z.ndim])
        if self.how.dtype is None:
            return network(z)
        with torch.autocast(z.device.type, self.how.dtype):
            return network(z)

    def _current(self, z: Tensor) -> nn.Module:
        state = _state_of(self.network)
        if self._copy is None or state != self._state:
            self._copy = folded(self.network, z[:1].detach()) if self.how.folded else _copied(self.network)
            if self.how.channels_last:
                self._copy.to(memory_format=_LAYOUTS[z.ndim])  # type: ignore[call-overload]
            self._state = state
        return self._copy


def _state_of(network: nn.Module) -> Hashable:
    """Equal as long as a copy of the network is still one."""
    tensors = [*network.parameters(), *network.buffers()]
    versions = tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
    return versions, tuple(module.training for module in network.modules())


def _copied(network: nn.Module) -> nn.Module:
    twin = copy.deepcopy(network).requires_grad_(False)
    for mine, theirs in zip(twin.modules(), network.modules(), strict=True):
        mine.training = theirs.training
    return twin


def folded(network: nn.Module, z: Tensor) -> nn.Module:
    """A copy whose batch norms are part of the convolutions before them, proved in float64 to be the same function.

    Args:
        network: the network; it runs once, on ``z``.
        z: images ``(1, C, *S)``.

    Raises:
        ValueError: no batch norm follows a convolution, one is in training mode, or the folded network is another one.
    """
    if any(isinstance(module, _BATCH_NORMS) and module.training for module in network.modules()):
        raise ValueError("batch norms in training mode depend on the batch and can't be folded; call .eval() on them.")
    pairs = _pairs(network, z)
    if not pairs:
        raise ValueError("no batch norm of the network directly follows a convolution; there is nothing to fold.")
    dtype = next(network.parameters()).dtype
    twin = _copied(network).double()
    before = _outputs(twin, z.double())
    for convolution, norm in pairs:
        _fold_pair(twin, convolution, norm)
    after = _outputs(twin, z.double())
    if not all(_same(a, b) for a, b in zip(before, after, strict=True)):
        raise ValueError(
            "folding its batch norms changes what the network answers, as what a convolution gives them is used "
            "elsewhere too; leave 'folded' out."
        )
    return twin.to(dtype)


def _pairs(network: nn.Module, z: Tensor) -> list[tuple[str, str]]:
    """Names of convolutions and of the batch norms that see their output, both called once."""
    made: dict[int, tuple[str, Tensor]] = {}
    calls: dict[str, int] = {}
    found: list[tuple[str, str]] = []

    def watch(name: str, module: nn.Module) -> Callable[..., None]:
        def hook(_: nn.Module, given: tuple[Any, ...], output: Any) -> None:
            calls[name] = calls.get(name, 0) + 1
            if type(module) in _CONVOLUTIONS:
                made[id(output)] = name, output  # kept alive, so that no other tensor gets its id
            elif id(given[0]) in made:
                found.append((made[id(given[0])][0], name))

        return hook

    watched = [
        (name, module) for name, module in network.named_modules() if type(module) in (*_CONVOLUTIONS, *_BATCH_NORMS)
    ]
    handles = [module.register_forward_hook(watch(name, module)) for name, module in watched]
    try:
        with torch.no_grad():
            network(z)
    finally:
        for handle in handles:
            handle.remove()
    return [pair for pair in found if calls[pair[0]] == calls[pair[1]] == 1]


def _fold_pair(twin: nn.Module, convolution: str, norm: str) -> None:
    conv: Any = twin.get_submodule(convolution)
    bn: Any = twin.get_submodule(norm)
    if bn.running_mean is None:
        return  # normalises by the batch even in eval mode
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias,
        transpose="Transpose" in type(conv).__name__,
    )  # fmt: skip
    conv.requires_grad_(False)
    parent, _, name = norm.rpartition(".")
    setattr(twin.get_submodule(parent), name, nn.Identity())


def _outputs(network: nn.Module, z: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return _tensors(network(z))


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _same(a: Tensor, b: Tensor) -> bool:
    scale = float(a.abs().max()) or 1.0
    return bool((a - b).abs().max() <= _EXACT * scale)
