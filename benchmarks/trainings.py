"""The networks of a task, each trained once: whatever a store of cells has is taken from there."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medadv.benchmarks.cell_store import Cell, CellStore
from medadv.benchmarks.data.base import Dataset
from medadv.benchmarks.models import Estimator, build_estimator, reference_of, weights_sha256
from medadv.benchmarks.outcomes import reason_of
from medadv.benchmarks.store import weights_bytes
from medadv.benchmarks.suite_parts import ModelSpec, TrainingSpec
from medadv.benchmarks.suites import TaskSpec, trainings_of
from medadv.training import Recipe, Validation, train

Trained = tuple[str, str]  # names of model and training


class TrainingFailedError(ValueError):
    """There is no such network, as its training has raised; the message says what."""


@dataclass(frozen=True)
class Network:
    """A trained network.

    Attributes:
        estimator: as an attacker sees it.
        told: what is told about its training.
        settings: all that decides what it answers, for cells that depend on it.
        stale: whether other versions have trained it.
    """

    estimator: Estimator
    told: dict[str, Any]
    settings: dict[str, Any]
    stale: bool = False

    @property
    def sha256(self) -> str:
        """Hash of its weights."""
        return str(self.settings["weights"])


@dataclass
class Networks:
    """The networks of a task for one training seed, trained or loaded when they are asked for.

    Attributes:
        task: what is asked for.
        data: its training cases are trained on, its validation cases choose the epoch.
        data_settings: all that decides the data, for the cells.
        seed: of weights, shuffling and attacks.
        store: where trained networks are kept.
        bars: show progress bars.
        failed: why there is no such network; what has failed is not tried again.
    """

    task: TaskSpec
    data: Dataset
    data_settings: dict[str, Any]
    seed: int
    store: CellStore
    bars: bool = False
    failed: dict[Trained, str] = field(default_factory=dict)
    _known: dict[Trained, Network] = field(default_factory=dict)

    @property
    def names(self) -> list[Trained]:
        """Model and training of each, those that others start from first."""
        return [(model.name, name) for model in self.task.models for name in trainings_of(self.task, model)]

    @property
    def estimators(self) -> Mapping[Trained, Estimator]:
        """The networks as an attacker sees them; each is trained or loaded when it is asked for."""
        return _Estimators(self)

    def needs(self, name: Trained) -> list[Trained]:
        """The networks that a training starts from or is helped by."""
        spec = self._specs(name)[1]
        return [] if spec is None else [(name[0], earlier) for earlier in spec.earlier.values()]

    def epochs(self, name: Trained) -> int:
        """How long a network is trained."""
        spec = self._specs(name)[1]
        return 0 if spec is None else spec.epochs

    def label(self, name: Trained) -> str:
        """How files call a network."""
        return f"{self.task.name}-{name[0]}-{name[1]}-{self.seed}"

    def __getitem__(self, name: Trained) -> Network:
        if name in self.failed:
            raise TrainingFailedError(self.failed[name])
        if name not in self._known:
            try:
                self._known[name] = self._network(name)
            except Exception as error:  # whatever a training raises, the others go on
                self.failed[name] = reason_of(error)
                raise TrainingFailedError(self.failed[name]) from error
        return self._known[name]

    def settings_of(self, name: Trained) -> dict[str, Any]:
        """All that decides what a network answers; of one whose training has failed, what was to decide it."""
        return {"failed": self.cell(name).config} if name in self.failed else self[name].settings

    def _specs(self, name: Trained) -> tuple[ModelSpec, TrainingSpec | None]:
        model = next(model for model in self.task.models if model.name == name[0])
        return model, trainings_of(self.task, model)[name[1]]

    def cell(self, name: Trained) -> Cell:
        """The cell of a training."""
        model, spec = self._specs(name)
        return Cell("training", f"training of {self.label(name)}", {
            "data": self.data_settings, "network": model.network, "args": model.args, "seed": self.seed,
            "training": None if spec is None else spec.model_dump(mode="json"), "threads": torch.get_num_threads(),
            "earlier": [self.cell(earlier).config for earlier in self.needs(name)],
            "device": "cuda" if torch.cuda.is_available() else "cpu",
        })  # fmt: skip

    def _network(self, name: Trained) -> Network:
        model, spec = self._specs(name)
        estimator = build_estimator(model, self.data, seed=self.seed)
        told: dict[str, Any] = {"task": self.task.name, "model": name[0], "training": name[1], "train_seed": self.seed}
        if spec is not None:
            told = {**self._trained(name, spec, estimator), **told}
        settings = {"network": model.network, "args": model.args, "weights": weights_sha256(estimator.network)}
        return Network(estimator, told, settings, stale=self.store.is_stale(self.cell(name)))

    def _trained(self, name: Trained, spec: TrainingSpec, estimator: Estimator) -> dict[str, Any]:
        """Gives the estimator its trained weights; returns what is told about the training."""
        cell = self.cell(name)
        checkpoint = self.store.path(cell, "checkpoint")

        def trained() -> dict[str, Any]:
            earlier = {training: self[model, training].estimator for model, training in self.needs(name)}
            told = _train(
                estimator, self.label(name), spec, self.data, self.seed, earlier, checkpoint=checkpoint, bars=self.bars
            )
            return {"told": told, "weights": np.frombuffer(weights_bytes(estimator.network), dtype=np.uint8)}

        kept = self.store.result(cell, trained)
        estimator.network.load_state_dict(torch.load(io.BytesIO(kept["weights"].tobytes()), weights_only=True))
        checkpoint.unlink(missing_ok=True)
        return dict(kept["told"])


class _Estimators(Mapping[Trained, Estimator]):
    def __init__(self, networks: Networks) -> None:
        self._networks = networks

    def __getitem__(self, name: Trained) -> Estimator:
        return self._networks[name].estimator

    def __iter__(self) -> Iterator[Trained]:
        return iter(self._networks.names)

    def __len__(self) -> int:
        return len(self._networks.names)


def _train(
    estimator: Estimator, label: str, spec: TrainingSpec, data: Dataset, seed: int, earlier: dict[str, Estimator],
    *, checkpoint: Path, bars: bool,
) -> dict[str, Any]:  # fmt: skip
    """Trains one network; returns what is told about it."""
    if spec.warm_start is not None:
        estimator.network.load_state_dict(earlier[spec.warm_start].network.state_dict())
    settings = spec.model_dump(exclude={"recipe", "options", "warm_start", "validation"})
    objects = {"helper": earlier[spec.earlier["helper"]]} if "helper" in spec.earlier else {}
    recipe = spec.built(**objects)
    history = train(
        estimator, torch.from_numpy(data.train.x), reference_of(estimator, data.train.y), recipe=recipe, seed=seed,
        validation=_validation(spec, recipe, estimator, data), checkpoint=checkpoint, progress=bars,
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
