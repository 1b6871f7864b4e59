"""Trains the networks of a suite, or takes over those that an earlier start of the run has trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from medadv.benchmarks.data.base import Dataset
from medadv.benchmarks.models import Estimator, build_estimator, reference_of
from medadv.benchmarks.resume import Progress
from medadv.benchmarks.suites import TaskSpec, TrainingSpec, trainings_of
from medadv.training import Recipe, Validation, train


def train_all(
    task: TaskSpec, data: Dataset, seed: int, progress: Progress, *, bars: bool = False
) -> dict[tuple[str, str], tuple[Estimator, dict[str, Any]]]:
    """All networks of a task, by name of model and training, with what is told about each training.

    Args:
        task: what is asked for.
        data: its training cases are trained on, its validation cases choose the epoch.
        seed: of weights, shuffling and attacks.
        progress: trained networks are taken from here and left here.
        bars: progress bars.
    """
    found = {}
    for model in task.models:
        own: dict[str, Estimator] = {}
        for name, spec in trainings_of(task, model).items():
            estimator = build_estimator(model, data, seed=seed)
            label = f"{task.name}-{model.name}-{name}-{seed}"
            told = progress.load_network(label, estimator)
            if told is None:
                told = {} if spec is None else _train(estimator, label, spec, data, seed, own, progress, bars)
                told |= {"task": task.name, "model": model.name, "training": name, "train_seed": seed}
                progress.keep_network(label, estimator, told)
            own[name] = estimator
            found[model.name, name] = estimator, told
    return found


def _train(
    estimator: Estimator, label: str, spec: TrainingSpec, data: Dataset, seed: int, earlier: Mapping[str, Estimator],
    progress: Progress, bars: bool,
) -> dict[str, Any]:  # fmt: skip
    """Trains one network; returns what is told about it."""
    if spec.warm_start is not None:
        estimator.network.load_state_dict(earlier[spec.warm_start].network.state_dict())
    settings = spec.model_dump(exclude={"recipe", "options", "warm_start", "validation"})
    objects = {"helper": earlier[spec.earlier["helper"]]} if "helper" in spec.earlier else {}
    recipe = spec.built(**objects)
    history = train(
        estimator, torch.from_numpy(data.train.x), reference_of(estimator, data.train.y), recipe=recipe, seed=seed,
        validation=_validation(spec, recipe, estimator, data), checkpoint=progress.checkpoint(label), progress=bars,
        description=f"train {label}", **settings,
    )  # fmt: skip
    return {
        "recipe": spec.recipe, "epochs": spec.epochs, "seconds_per_epoch": round(float(np.median(history.seconds)), 4),
        "loss": [round(loss, 4) for loss in history.loss], "best_epoch": history.best_epoch,
        "validation": history.validation,
    }  # fmt: skip


def _validation(spec: TrainingSpec, recipe: Recipe, estimator: Estimator, data: Dataset) -> Validation | None:
    """The cases and the attack that choose an epoch."""
    if spec.validation is None:
        return None
    cases = data.validation.take(spec.validation.cases)
    if not len(cases):
        raise ValueError(f"{data.name} has no validation cases to choose an epoch by; leave validation out.")
    return Validation(
        torch.from_numpy(cases.x), reference_of(estimator, cases.y), eps=recipe.eps_trained,
        steps=spec.validation.steps, every=spec.validation.every,
    )  # fmt: skip
