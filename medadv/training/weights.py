"""Adversarial weight perturbation: the loss is lowered where weights a little off make it worst."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from medadv.training.base import check_weights


class WeightPerturbation:
    """AWP (arXiv 2004.05884): every layer's weights move by ``gamma`` of their norm along the loss's gradient.

    An add-on to every recipe: one more forward and backward pass per update. Biases and norms' scales stay. The paper
    takes its step on a copy of the network, so running statistics are not counted twice here either.

    Args:
        gamma: length of the step as a share of each layer's weights; .005 to .01 in the paper.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> x, before = torch.ones(1, 2), layer.weight.detach().clone()
        >>> with WeightPerturbation(0.1).worst(layer, lambda: layer(x).sum()):
        ...     moved = (layer.weight.detach() - before).norm() / before.norm()
        >>> round(float(moved), 4), torch.equal(layer.weight.detach(), before)
        (0.1, True)
    """

    def __init__(self, gamma: float) -> None:
        check_weights(weight_perturbation=gamma)
        self.gamma = gamma

    @contextmanager
    def worst(self, model: nn.Module, loss: Callable[[], Tensor]) -> Iterator[None]:
        """Inside, the weights are those at which ``loss`` is worse; on leaving they are as before, bit for bit."""
        weights = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
        buffers = [(b, b.detach().clone()) for b in model.buffers()]
        # the same dropout in both passes, and no trace of the first
        devices = sorted({p.device.index or 0 for p in weights if p.device.type == "cuda"})
        with torch.random.fork_rng(devices=devices):
            grads = torch.autograd.grad(loss(), weights, allow_unused=True)
        kept = [weight.detach().clone() for weight in weights]
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
            for weight, grad in zip(weights, grads, strict=True):
                if grad is not None:
                    weight.add_(grad, alpha=float(self.gamma * weight.norm() / (grad.norm() + 1e-12)))
        try:
            yield
        finally:
            with torch.no_grad():
                for weight, value in zip(weights, kept, strict=True):
                    weight.copy_(value)
