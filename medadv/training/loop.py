"""The training loop that estimators and benchmarks share."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from medadv.decisions import Decision
from medadv.training.recipes import NATURAL, Recipe


class Trainable(Protocol):
    """What the loop needs of an estimator."""

    decision: Decision
    segments: bool

    @property
    def model(self) -> nn.Module:
        """The deployed model."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it is."""
        ...

    def training_loss(self, output: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Mean loss of a batch."""
        ...


def train(
    estimator: Trainable,
    x: Tensor,
    y: Any,
    *,
    recipe: Recipe = NATURAL,
    optimizer: torch.optim.Optimizer | None = None,
    learning_rate: float = 1e-3,
    schedule: str = "constant",
    flip_axis: int | None = None,
    batch_size: int = 16,
    epochs: int = 20,
    seed: int | None = None,
    progress: bool = False,
    description: str = "training",
) -> list[float]:
    """Trains an estimator's network in place.

    Args:
        estimator: a medadv estimator.
        x: images ``(N, C, *S)`` in the estimator's units.
        y: reference in any usual form.
        recipe: what each batch is replaced by before the update, see :mod:`medadv.training.recipes`.
        optimizer: default: Adam with ``learning_rate``.
        learning_rate: of the default optimizer; peak of the ``"one-cycle"`` schedule.
        schedule: ``"constant"`` or ``"one-cycle"`` (torch's OneCycleLR over all updates).
        flip_axis: spatial axis along which every second case, drawn anew each epoch, is mirrored.
        batch_size: cases per update.
        epochs: passes over the data.
        seed: of shuffling and of the attacks' random starts; None draws one from torch's generator.
        progress: a bar with the time left, on a terminal only.
        description: label of the bar.

    Returns:
        Mean training loss of each epoch.

    Raises:
        ValueError: numbers that are not positive, references that don't fit the images, or a loss that is not finite.
    """
    for name, value in (("batch_size", batch_size), ("epochs", epochs)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    if flip_axis is not None and not 0 <= flip_axis < x.ndim - 2:
        raise ValueError(f"flip_axis={flip_axis} is no spatial axis; give 0 to {x.ndim - 3}.")
    target, valid = estimator.decision.canonical(
        y, tuple(x.shape[2:]) if estimator.segments else (), device=estimator.device
    )
    if len(target) != len(x):
        raise ValueError(f"{len(target)} references for {len(x)} images; give one per case.")
    # an attack gets the reference as it was given, with what is to be ignored still marked
    ignored = estimator.decision.ignore_index
    marked = target if ignored is None else torch.where(valid, target, ignored)
    model = estimator.model
    seed = int(torch.randint(2**31, (1,))) if seed is None else seed
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=learning_rate)
    updates = epochs * len(list(_batches(len(x), batch_size, seed, 0)))
    scheduler = _scheduler(schedule, optimizer, learning_rate, updates)
    craft = recipe.crafter(estimator, seed)
    history = []
    with tqdm(total=updates, desc=description, disable=not (progress and sys.stderr.isatty())) as bar:
        for epoch in range(epochs):
            losses = []
            for step, rows in enumerate(_batches(len(x), batch_size, seed, epoch)):
                images, reference = x[rows].to(estimator.device), marked[rows]
                if flip_axis is not None:
                    mirrored = _coins(len(rows), (seed, epoch, step))
                    images, reference = _mirrored(images, reference, mirrored, flip_axis, estimator.segments)
                images = craft(images, reference, [f"{epoch}-{row}" for row in rows.tolist()])
                losses.append(_update(estimator, optimizer, images, reference))
                if scheduler is not None:
                    scheduler.step()
                bar.update()
            history.append(sum(losses) / len(losses))
            bar.set_postfix(loss=f"{history[-1]:.3f}")
    model.eval()
    return history


def _update(estimator: Trainable, optimizer: torch.optim.Optimizer, images: Tensor, reference: Tensor) -> float:
    """One step of the optimizer in train mode; returns the loss before it."""
    target, valid = estimator.decision.canonical(reference, tuple(images.shape[2:]) if estimator.segments else ())
    estimator.model.train()
    optimizer.zero_grad()
    loss = estimator.training_loss(estimator.model(images), target, valid)
    if not bool(torch.isfinite(loss)):
        raise ValueError(f"the training loss became {loss.item()}; lower the learning rate.")
    loss.backward()
    optimizer.step()
    return loss.item()


def _batches(count: int, batch_size: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """Shuffled row numbers; a last batch of one case joins its neighbour, as batch norm can't train on it."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 100_003 + epoch))
    parts = list(order.split(batch_size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return iter(parts)


def _coins(count: int, key: tuple[int, ...]) -> Tensor:
    """A fair coin per case, bool ``(N,)``."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
    return torch.rand(count, generator=generator) < 0.5


def _mirrored(x: Tensor, y: Tensor, rows: Tensor, axis: int, segments: bool) -> tuple[Tensor, Tensor]:
    """The chosen rows mirrored along a spatial axis, with their masks."""

    def mirror(values: Tensor) -> Tensor:
        chosen = rows.to(values.device).view(-1, *[1] * (values.ndim - 1))
        return torch.where(chosen, values.flip(values.ndim - (x.ndim - 2) + axis), values)

    return mirror(x), mirror(y) if segments else y


def _scheduler(name: str, optimizer: torch.optim.Optimizer, peak: float, updates: int) -> Any:
    if name == "constant":
        return None
    if name == "one-cycle":
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=peak, total_steps=updates)
    raise ValueError(f"schedule {name!r} is unknown; choose 'constant' or 'one-cycle'.")
