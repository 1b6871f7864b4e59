"""Suites: what a benchmark runs, as a validated YAML file."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, PositiveFloat, ValidationError, field_validator, model_validator

from medadv.adapters.acceleration import acceleration_of
from medadv.benchmarks.corruptions import chosen
from medadv.benchmarks.defence_kinds import check_defence
from medadv.benchmarks.suite_parts import (
    ALL,
    AttackSpec,
    DefenceSpec,
    ModelSpec,
    Strict,
    SurrogateSpec,
    TrainingSpec,
    ValidationSpec,
)
from medadv.names import unknown_name

AUTO = "auto"
CHECKPOINT = "checkpoint"
SUITES = resources.files("medadv.benchmarks") / "suites"


_OTHER = {"model": "name", "attack": "title", "task": "name"}


def _check_differ(kind: str, names: list[str]) -> None:
    """Refuses names that stand twice, as tables and files could not tell them apart."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{kind} {twice[0]!r} stands twice; give one of them another {_OTHER[kind]}.")


class TaskSpec(Strict):
    """Data, the models trained on them, and the attacks, corruptions and defences they are tried with.

    ``resources`` are what a Dask worker has to have free for a cell, such as ``{gpu: 1, memory: 16}``.
    """

    name: str
    data: str
    data_options: dict[str, Any] = Field(default_factory=dict)
    test_cases: int | None = Field(None, ge=1)
    models: list[ModelSpec] = Field(min_length=1)
    trainings: dict[str, TrainingSpec] = Field(min_length=1)
    attacks: list[AttackSpec] = Field(min_length=1)
    corruptions: str | list[str] = Field(default_factory=list)
    defences: dict[str, DefenceSpec] = Field(default_factory=dict)
    batch_size: int = Field(32, ge=1)
    train_seeds: list[int] | None = Field(None, min_length=1)
    resources: dict[str, PositiveFloat] = Field(default_factory=dict)

    @field_validator("corruptions")
    @classmethod
    def _known_corruptions(cls, corruptions: str | list[str]) -> str | list[str]:
        chosen(corruptions)
        return corruptions

    @model_validator(mode="after")
    def _defences_fit(self) -> TaskSpec:
        titles = [attack.title or attack.name for attack in self.attacks]
        for title, defence in self.defences.items():
            try:
                check_defence(defence.kind, defence.name or title, defence.options)
                for kind, given, known in (
                    ("attack", defence.attacks, titles), ("training", defence.trainings, self.trainings),
                ):  # fmt: skip
                    for name in given or ():
                        if name not in known:
                            raise unknown_name(kind, name, known)
            except ValueError as error:
                raise ValueError(f"defence {title!r}: {error}") from None
        return self

    @model_validator(mode="after")
    def _surrogates_exist(self) -> TaskSpec:
        models = {model.name: trainings_of(self, model) for model in self.models}
        for attack in self.attacks:
            if attack.surrogate is None:
                continue
            model, training = attack.surrogate.model, attack.surrogate.training
            if model not in (None, ALL, *models):
                raise ValueError(f"surrogate: {unknown_name('model', model, [ALL, *models])}")
            known = {name for key, names in models.items() if model in (None, ALL, key) for name in names}
            if training not in (ALL, *known):
                raise ValueError(f"surrogate: {unknown_name('training', training, [ALL, *known])}")
        return self

    @model_validator(mode="after")
    def _names_differ(self) -> TaskSpec:
        for kind, names in (
            ("model", [model.name for model in self.models]),
            ("attack", [attack.label for attack in self.attacks]),
        ):
            _check_differ(kind, names)
        taken = [name for name in (*(model.name for model in self.models), *self.trainings) if name == ALL]
        if taken:
            raise ValueError(f"{ALL!r} means all models or trainings; give another name.")
        return self

    @model_validator(mode="after")
    def _earlier_trainings_exist(self) -> TaskSpec:
        done: list[str] = []
        for name, training in self.trainings.items():
            for use, earlier in training.earlier.items():
                if earlier not in done:
                    raise ValueError(f"training {name!r} has {use}: {earlier}, which does not come before it.")
            done.append(name)
        return self


class Suite(Strict):
    """A whole benchmark.

    Attributes:
        hd95: ask for the Hausdorff distance of segmentations, which takes time on volumes.
        bands: how many bands of frequencies the energy of each perturbation is told for (``bands.csv``).
        diagnostics: checks of each model (``diagnostics.csv``): ``basic``, a few passes and a short attack on 4 to 8
            cases; ``full``, also short attacks with more steps, more starts, on scores and off the storage grid;
            ``none``. Checks that read the table alone always run.
        rows: ``every`` attack on every case, or the ``worst-case`` for fewer passes, with endpoints left out
            (:func:`~medadv.benchmarks.economy.worst_case_outcomes`).
        acceleration: form of each network that attacks compute gradients in, by a name of
            :data:`~medadv.adapters.acceleration.ACCELERATIONS`, or ``auto``: what
            :func:`~medadv.adapters.calibration.calibrate` chooses. The network itself judges in any case.
    """

    name: str
    description: str = ""
    budgets: list[str | float] = Field(min_length=1)
    train_seeds: list[int] = Field(default=[0], min_length=1)
    seed: int = 0
    threads: int | None = Field(None, ge=1)
    needs_data_root: bool = False
    hd95: bool = False
    bands: int | None = Field(None, ge=2)
    diagnostics: Literal["basic", "full", "none"] = "basic"
    rows: Literal["every", "worst-case"] = "every"
    acceleration: str = "none"
    tasks: list[TaskSpec] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_differ(self) -> Suite:
        _check_differ("task", [task.name for task in self.tasks])
        return self

    @field_validator("acceleration")
    @classmethod
    def _known_acceleration(cls, name: str) -> str:
        if name != AUTO:
            acceleration_of(name)
        return name

    @model_validator(mode="after")
    def _rows_suffice(self) -> Suite:
        defended = [task.name for task in self.tasks if task.defences]
        if self.rows != "every" and defended:
            raise ValueError(
                f"rows: {self.rows} leaves cases alone, but the defences of task {defended[0]!r} are shown the images "
                "of every case; use rows: every."
            )
        return self

    @model_validator(mode="after")
    def _budgets_are_all_served(self) -> Suite:
        budgets = [str(eps) for eps in self.budgets]
        positive = {eps for eps in budgets if not re.match(r"\s*0*\.?0*\s*([^\d\s.]|$)", eps)}
        for task in self.tasks:
            for attack in task.attacks:
                unknown = [eps for eps in attack.per_budget if eps not in budgets]
                missing = sorted(positive - set(attack.per_budget)) if attack.per_budget else []
                if unknown or missing:
                    problem = f"no budget of the suite is {unknown[0]!r}" if unknown else f"{missing[0]!r} is missing"
                    raise ValueError(
                        f"per_budget of {attack.label!r} in task {task.name!r}: {problem}; give all of "
                        f"{', '.join(budgets)} in the same words."
                    )
        return self


def trainings_of(task: TaskSpec, model: ModelSpec) -> dict[str, TrainingSpec | None]:
    """What is done to a model: its trainings, or nothing if it comes with weights."""
    if model.checkpoint is not None:
        return {CHECKPOINT: None}
    return dict(task.trainings)


def suite_names() -> list[str]:
    """Names of the suites that come with medadv."""
    return sorted(Path(entry.name).stem for entry in SUITES.iterdir() if entry.name.endswith(".yaml"))


def load_suite(name_or_path: str | Path) -> Suite:
    """A suite by name, or from a YAML file of your own.

    Raises:
        ValueError: an unknown name, a file that is no YAML, or a key or value that a suite does not have; the message
            names it.

    Example:
        >>> [task.name for task in load_suite("quick").tasks]
        ['lesion-class-2d', 'lesions-2d', 'lesions-3d']
    """
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ValueError(
                f"suite file {str(path)!r} does not exist; give a file or one of {', '.join(suite_names())}."
            )
        return parse_suite(path.read_text(encoding="utf-8"), str(path))
    if str(name_or_path) not in suite_names():
        raise unknown_name("suite", str(name_or_path), suite_names())
    return parse_suite((SUITES / f"{name_or_path}.yaml").read_text(encoding="utf-8"), str(name_or_path))


def parse_suite(text: str, origin: str) -> Suite:
    """A suite from YAML text; ``origin`` is how errors call it."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"suite {origin!r} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ValueError(
            f"suite {origin!r} holds {type(data).__name__}; a suite is a mapping with name, budgets and tasks."
        )
    data.pop("shared", None)  # a place for YAML anchors
    try:
        return Suite.model_validate(data)
    except ValidationError as error:
        raise ValueError(f"suite {origin!r}: {_sentence(error)}") from None


_MODELS = (Suite, TaskSpec, ModelSpec, TrainingSpec, ValidationSpec, AttackSpec, SurrogateSpec, DefenceSpec)
_KEYS = {key for model in _MODELS for key in model.model_fields}


def _sentence(error: ValidationError) -> str:
    """The first problem, as one sentence that says where and what."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{place}: {unknown_name('key', first['loc'][-1], _KEYS)}"
    more = f" ({error.error_count() - 1} more problems)" if error.error_count() > 1 else ""
    return f"{place}: {first['msg'].removeprefix('Value error, ')}{more}"
