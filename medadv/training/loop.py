"""The training loop that estimators and benchmarks share."""

from __future__ import annotations

import copy
import hashlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from medadv.numbers import whole_number
from medadv.training.base import Preparation, Recipe, TrainingBatch, batch_of, check_weights
from medadv.training.checkpoint import digest, load_checkpoint, save_checkpoint
from medadv.training.recipes import NATURAL
from medadv.training.updates import Updater
from medadv.training.validation import Validation


@dataclass
class History:
    """What a training did.

    Attributes:
        loss: mean training loss of each epoch.
        seconds: time of each epoch without its validation.
        validation: score of each epoch that was looked at, by its number from 0.
        best_epoch: the epoch whose weights were kept; None: the last, as nothing was looked at.
    """

    loss: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    validation: dict[int, float] = field(default_factory=dict)
    best_epoch: int | None = None


def train(
    estimator: Any,
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
    validation: Validation | None = None,
    weight_perturbation: float | None = None,
    amp: bool = False,
    checkpoint: str | Path | None = None,
    progress: bool = False,
    description: str = "training",
) -> History:
    """Trains an estimator's network in place.

    Args:
        estimator: a medadv estimator.
        x: images ``(N, C, *S)`` in the estimator's units.
        y: reference in any usual form.
        recipe: how the network is made robust, see :data:`medadv.training.RECIPES`.
        optimizer: default: Adam with ``learning_rate``.
        learning_rate: of the default optimizer; peak of the ``"one-cycle"`` schedule.
        schedule: ``"constant"`` or ``"one-cycle"`` (torch's OneCycleLR over all updates).
        flip_axis: spatial axis along which every second case, drawn anew each epoch, is mirrored.
        batch_size: cases per update.
        epochs: passes over the data.
        seed: of shuffling and of the attacks' random starts; None draws one from torch's generator.
        validation: the weights of the epoch with the best score on these cases are kept; None: those of the last.
        weight_perturbation: gamma of adversarial weight perturbation, see
            :class:`~medadv.training.weights.WeightPerturbation`; None: none.
        amp: mixed precision (bfloat16 on a CPU, float16 with a scaled loss on a GPU).
        checkpoint: file that is written after each epoch; a training that finds its own there goes on from it.
        progress: a bar with the time left, on a terminal only.
        description: label of the bar.

    Returns:
        Losses, times and validation scores of the epochs.

    Raises:
        ValueError: numbers that are not positive, references that don't fit the images, a loss that is not finite, or
            a checkpoint of another training.

    Example:
        >>> import torch
        >>> from medadv.adapters import MonaiClassifier
        >>> from medadv.decisions import Multiclass
        >>> from medadv.training import RECIPES, Validation, train
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
        >>> estimator = MonaiClassifier(net, (1, 4, 4), decision=Multiclass(2))
        >>> x, y = torch.rand(8, 1, 4, 4), torch.tensor([0, 1] * 4)
        >>> held_out = Validation(torch.rand(4, 1, 4, 4), [0, 1, 0, 1], eps="4/255", steps=2)
        >>> history = train(estimator, x, y, recipe=RECIPES["trades"](eps="4/255", steps=2), epochs=2, seed=0,
        ...                 validation=held_out)
        >>> len(history.loss), sorted(history.validation)
        (2, [0, 1])
    """
    for name, value in (("batch_size", batch_size), ("epochs", epochs)):
        whole_number(name, value, 1)
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule {schedule!r} is unknown; choose {' or '.join(map(repr, SCHEDULES))}.")
    check_weights(weight_perturbation=weight_perturbation or 0.0)
    if flip_axis is not None and not 0 <= flip_axis < x.ndim - 2:
        raise ValueError(f"flip_axis={flip_axis} is no spatial axis; give 0 to {x.ndim - 3}.")
    seed = int(torch.randint(2**31, (1,))) if seed is None else seed
    data = batch_of(estimator, x, y, range(len(x)))
    settings: dict[str, Any] = {
        "learning_rate": learning_rate, "schedule": schedule, "flip_axis": flip_axis, "batch_size": batch_size,
        "epochs": epochs, "seed": seed, "amp": amp,
    }  # fmt: skip
    fingerprint, resumed = {}, None
    if checkpoint is not None:
        fingerprint = {
            **settings, "recipe": recipe.described(), "weight_perturbation": weight_perturbation,
            "optimizer": "Adam" if optimizer is None else type(optimizer).__name__,
            "data": digest(data.x, data.target, data.valid),
        }  # fmt: skip
        resumed = load_checkpoint(Path(checkpoint), fingerprint)

    def natural_twin() -> Any:
        twin = copy.deepcopy(estimator)
        if resumed is None:  # else its weights are in the checkpoint
            train(twin, x, y, progress=progress, description=f"{description}: helper", **settings)
        return twin

    step = recipe.step(Preparation(estimator, seed, natural_twin))
    optimizer = optimizer or torch.optim.Adam(estimator.model.parameters(), lr=learning_rate)
    per_epoch = len(_batches(len(x), batch_size, seed, 0))
    scheduler = SCHEDULES[schedule](optimizer, learning_rate, epochs * per_epoch * step.replays)
    run = _Run(estimator, Updater(step, optimizer, scheduler, weight_perturbation, amp), validation, batch_size, seed)
    begun = 0 if resumed is None else run.load(resumed)
    quiet = not (progress and sys.stderr.isatty())
    with tqdm(total=epochs * per_epoch, initial=begun * per_epoch, desc=description, disable=quiet) as bar:
        for epoch in range(begun, epochs):
            run.epoch(_epoch_of(data, epoch, batch_size, seed, flip_axis, estimator.segments), bar)
            if validation is not None and validation.due(epoch, epochs):
                run.look(epoch)
            if checkpoint is not None:
                save_checkpoint(Path(checkpoint), {"fingerprint": fingerprint, "epoch": epoch, **run.state()})
    return run.finish()


class _Run:
    """Epochs, the looks at the validation cases between them, and the best weights so far."""

    def __init__(
        self, estimator: Any, update: Updater, validation: Validation | None, batch_size: int, seed: int
    ) -> None:
        self.estimator = estimator
        self.update = update
        self.validation = validation
        self.batch_size = batch_size
        self.seed = seed
        self.history = History()
        self.best: dict[str, Tensor] | None = None

    def epoch(self, batches: Iterator[TrainingBatch], bar: Any) -> None:
        """All updates of an epoch."""
        began, losses = time.perf_counter(), []
        for batch in batches:
            losses.append(self.update(batch))
            bar.update()
        self.history.loss.append(sum(losses) / len(losses))
        self.history.seconds.append(time.perf_counter() - began)
        bar.set_postfix(loss=f"{self.history.loss[-1]:.3f}")

    def look(self, epoch: int) -> None:
        """Scores the weights on the validation cases; of equally good ones the later are kept."""
        assert self.validation is not None
        score = self.validation.score(self.estimator, self.batch_size, self.seed)
        best = max(self.history.validation.values(), default=-1.0)
        self.history.validation[epoch] = score
        if score >= best:
            self.history.best_epoch = epoch
            self.best = copy.deepcopy(self.estimator.model.state_dict())

    def finish(self) -> History:
        """The best weights, in inference mode."""
        if self.best is not None:
            self.estimator.model.load_state_dict(self.best)
        self.estimator.model.eval()
        return self.history

    def state(self) -> dict[str, Any]:
        """What has to be kept to go on after an interruption."""
        return {
            **self.update.state(),
            "history": vars(self.history),
            "best": self.best,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all(),
        }

    def load(self, state: dict[str, Any]) -> int:
        """Goes on from :meth:`state`; returns the next epoch."""
        self.update.load(state)
        self.history, self.best = History(**state["history"]), state["best"]
        torch.set_rng_state(state["random"])
        torch.cuda.set_rng_state_all(state["random_cuda"])
        return int(state["epoch"]) + 1


def _epoch_of(
    data: TrainingBatch, epoch: int, batch_size: int, seed: int, flip_axis: int | None, segments: bool
) -> Iterator[TrainingBatch]:
    """The batches of an epoch, shuffled and mirrored."""
    for number, rows in enumerate(_batches(len(data), batch_size, seed, epoch)):
        batch = _rows(data, rows, epoch)
        yield batch if flip_axis is None else _mirrored(batch, segments, flip_axis, (seed, epoch, number))


def _rows(data: TrainingBatch, rows: Tensor, epoch: int) -> TrainingBatch:
    """Some of the cases, on the device of the references; each has another name in every epoch."""
    place = data.target.device
    there = rows.to(place)
    ids = tuple(f"{epoch}-{row}" for row in rows.tolist())
    return TrainingBatch(data.x[rows].to(place), data.target[there], data.valid[there], ids)


def _batches(count: int, batch_size: int, seed: int, epoch: int) -> list[Tensor]:
    """Shuffled row numbers; a last batch of one case joins its neighbour, as batch norm can't train on it."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 100_003 + epoch))
    parts = list(order.split(batch_size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def _coins(count: int, key: tuple[int, ...]) -> Tensor:
    """A fair coin per case, bool ``(N,)``."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
    return torch.rand(count, generator=generator) < 0.5


def _mirrored(batch: TrainingBatch, segments: bool, axis: int, key: tuple[int, ...]) -> TrainingBatch:
    """A fair half of the cases mirrored along a spatial axis, with their masks."""
    rows, dims = _coins(len(batch), key), batch.x.ndim - 2

    def mirror(values: Tensor) -> Tensor:
        chosen = rows.to(values.device).view(-1, *[1] * (values.ndim - 1))
        return torch.where(chosen, values.flip(values.ndim - dims + axis), values)

    if not segments:
        return replace(batch, x=mirror(batch.x))
    return replace(batch, x=mirror(batch.x), target=mirror(batch.target), valid=mirror(batch.valid))


def _one_cycle(optimizer: torch.optim.Optimizer, peak: float, updates: int) -> Any:
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=peak, total_steps=updates)


SCHEDULES: dict[str, Callable[[torch.optim.Optimizer, float, int], Any]] = {
    "constant": lambda optimizer, peak, updates: None,
    "one-cycle": _one_cycle,
}
