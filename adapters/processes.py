"""Gradients and buffers of a network that several processes train, each on its own batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed, nn


def average_gradients(module: nn.Module, group: Any = None) -> None:
    """Replaces every gradient by its mean over the processes; a weight that has one nowhere keeps none.

    ``DistributedDataParallel`` does this for one forward pass per backward pass; recipes take several, some of them in
    inference mode.

    Args:
        module: the network, with the same weights in all processes.
        group: processes; None: all.
    """
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    if not weights:
        return
    there = torch.tensor([float(weight.grad is not None) for weight in weights], device=weights[0].device)
    distributed.all_reduce(there, group=group)
    count = distributed.get_world_size(group)
    for weight, holders in zip(weights, there.tolist(), strict=True):
        if holders:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            distributed.all_reduce(weight.grad, group=group)
            weight.grad /= count


def share_buffers(module: nn.Module, group: Any = None) -> None:
    """Gives all processes the buffers (running statistics) of the first.

    Args:
        module: the network.
        group: processes; None: all.
    """
    source = 0 if group is None else distributed.get_global_rank(group, 0)
    for buffer in module.buffers():
        distributed.broadcast(buffer, source, group=group)
