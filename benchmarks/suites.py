"""Suites: what a benchmark runs, as a validated YAML file."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from medadv.attacks import recipe_of
from medadv.attacks.recipes import COMMON_OPTIONS
from medadv.names import unknown_name
from medadv.training import RECIPES, Recipe

SUITES = resources.files("medadv.benchmarks") / "suites"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSpec(_Strict):
    """A network by name and arguments, trained by the suite or loaded from a checkpoint.

    Arguments that the data decide on (rank, channels, number of logits, size of the image) may be left out.
    """

    name: str
    network: str
    args: dict[str, Any] = Field(default_factory=dict)
    checkpoint: Path | None = None


class TrainingSpec(_Strict):
    """How a network is trained."""

    recipe: str = "natural"
    options: dict[str, Any] = Field(default_factory=dict)
    epochs: int = Field(20, ge=1)
    batch_size: int = Field(16, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    schedule: Literal["constant", "one-cycle"] = "one-cycle"
    flip_axis: int | None = Field(None, ge=0, le=2)
    warm_start: str | None = None

    @field_validator("recipe")
    @classmethod
    def _known(cls, recipe: str) -> str:
        if recipe not in RECIPES:
            raise unknown_name("training recipe", recipe, RECIPES)
        return recipe

    @model_validator(mode="after")
    def _buildable(self) -> TrainingSpec:
        self.built()
        return self

    def built(self) -> Recipe:
        """The recipe with its options."""
        try:
            return RECIPES[self.recipe](**self.options)
        except TypeError as error:
            raise ValueError(f"training recipe {self.recipe!r} can't be built with {self.options}: {error}") from None


class AttackSpec(_Strict):
    """An attack of the catalogue with its options, and how the tables call it (default: its name).

    ``surrogate`` among the options is the name of another training of the same task.
    """

    name: str
    options: dict[str, Any] = Field(default_factory=dict)
    title: str | None = None

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return recipe_of(name).name

    @model_validator(mode="after")
    def _accepted(self) -> AttackSpec:
        try:
            recipe_of(self.name).check_options(
                {k: v for k, v in self.options.items() if k not in (*COMMON_OPTIONS, "eps")}
            )
        except TypeError as error:
            raise ValueError(str(error)) from None
        return self


class TaskSpec(_Strict):
    """Data, the models trained on them, and the attacks they have to stand."""

    name: str
    data: str
    data_options: dict[str, Any] = Field(default_factory=dict)
    test_cases: int | None = Field(None, ge=1)
    models: list[ModelSpec] = Field(min_length=1)
    trainings: dict[str, TrainingSpec] = Field(min_length=1)
    attacks: list[AttackSpec] = Field(min_length=1)
    batch_size: int = Field(32, ge=1)
    train_seeds: list[int] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _surrogates_exist(self) -> TaskSpec:
        for attack in self.attacks:
            surrogate = attack.options.get("surrogate")
            if surrogate is not None and surrogate not in self.trainings:
                raise ValueError(f"surrogate: {unknown_name('training', surrogate, self.trainings)}")
        return self

    @model_validator(mode="after")
    def _titles_differ(self) -> TaskSpec:
        titles = [attack.title or attack.name for attack in self.attacks]
        twice = sorted({title for title in titles if titles.count(title) > 1})
        if twice:
            raise ValueError(f"attack {twice[0]!r} stands twice; give one of them another title.")
        return self

    @model_validator(mode="after")
    def _warm_starts_exist(self) -> TaskSpec:
        done: list[str] = []
        for name, training in self.trainings.items():
            if training.warm_start is not None and training.warm_start not in done:
                raise ValueError(
                    f"training {name!r} starts from {training.warm_start!r}, which does not come before it."
                )
            done.append(name)
        return self


class Suite(_Strict):
    """A whole benchmark."""

    name: str
    description: str = ""
    budgets: list[str | float] = Field(min_length=1)
    train_seeds: list[int] = Field(default=[0], min_length=1)
    seed: int = 0
    threads: int | None = Field(None, ge=1)
    needs_data_root: bool = False
    tasks: list[TaskSpec] = Field(min_length=1)


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


_KEYS = {key for model in (Suite, TaskSpec, ModelSpec, TrainingSpec, AttackSpec) for key in model.model_fields}


def _sentence(error: ValidationError) -> str:
    """The first problem, as one sentence that says where and what."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{place}: {unknown_name('key', first['loc'][-1], _KEYS)}"
    more = f" ({error.error_count() - 1} more problems)" if error.error_count() > 1 else ""
    return f"{place}: {first['msg'].removeprefix('Value error, ')}{more}"
