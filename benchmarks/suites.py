"""Suites: what a benchmark runs, as a validated YAML file."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, ValidationError, field_validator, model_validator

from medadv.adapters.acceleration import acceleration_of
from medadv.attacks import recipe_of
from medadv.attacks.recipes import COMMON_OPTIONS
from medadv.benchmarks.corruptions import chosen
from medadv.benchmarks.defence_kinds import check_defence
from medadv.names import unknown_name
from medadv.training import RECIPES, Recipe

SUITES = resources.files("medadv.benchmarks") / "suites"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSpec(_Strict):
    """A network by name and arguments, trained by the suite or loaded from a checkpoint.

    Arguments that the data decide on (rank, channels, number of logits, size of the image) may be left out.
    ``cam_layer`` names the layer whose class-activation map the report shows (default: found by itself); images only.
    """

    name: str
    network: str
    args: dict[str, Any] = Field(default_factory=dict)
    checkpoint: Path | None = None
    cam_layer: str | None = None


class ValidationSpec(_Strict):
    """How the epoch whose weights are kept is chosen on the validation cases: by the score under the recipe's budget.

    A recipe without a budget, such as natural training, is chosen by the clean score.
    """

    steps: int = Field(10, ge=1)
    every: int = Field(1, ge=1)
    cases: int | None = Field(None, ge=1)


class TrainingSpec(_Strict):
    """How a network is trained.

    ``helper`` among the options is the name of a training that comes before.
    """

    recipe: str = "natural"
    options: dict[str, Any] = Field(default_factory=dict)
    epochs: int = Field(20, ge=1)
    batch_size: int = Field(16, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    schedule: Literal["constant", "one-cycle"] = "one-cycle"
    flip_axis: int | None = Field(None, ge=0, le=2)
    warm_start: str | None = None
    validation: ValidationSpec | None = None
    weight_perturbation: float | None = Field(None, gt=0)
    amp: bool = False

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

    @property
    def earlier(self) -> dict[str, str]:
        """The trainings that have to come before, by what they are needed for."""
        needed = {"warm_start": self.warm_start, "helper": self.options.get("helper")}
        return {use: name for use, name in needed.items() if name is not None}

    def built(self, **objects: Any) -> Recipe:
        """The recipe with its options; ``objects`` take the place of names."""
        try:
            return RECIPES[self.recipe](**{**self.options, **objects})
        except TypeError as error:
            raise ValueError(f"training recipe {self.recipe!r} can't be built with {self.options}: {error}") from None


ALL = "all"
AUTO = "auto"
CHECKPOINT = "checkpoint"


class SurrogateSpec(_Strict):
    """Which trained models of the task an attack's images are made on, to be shown to all others.

    Attributes:
        model: name of a model, ``"all"``, or None: the same network as the target's.
        training: name of a training, or ``"all"``.
    """

    model: str | None = None
    training: str = "natural"

    def sources(self, target: tuple[str, str], trained: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """The (model, training) pairs meant for a target, which is no surrogate of itself."""
        model = target[0] if self.model is None else self.model
        return [
            pair for pair in trained if pair != target and model in (ALL, pair[0]) and self.training in (ALL, pair[1])
        ]

    @property
    def is_one(self) -> bool:
        """Whether it is at most one model for each target."""
        return ALL not in (self.model, self.training)


class AttackSpec(_Strict):
    """An attack of the catalogue with its options, and how the tables call it (default: its name).

    Attributes:
        per_budget: further options at single budgets of the suite, such as
            ``{"1/255": {eps_step: "0.5/255"}, "8/255": {eps_step: "2/255"}}``; all budgets or none.
        surrogate: a training of the same network (``natural``) or ``{model: ..., training: ...}``, each by name or
            ``all``: the images are made there and only shown to the target.
        region: ``all``, or ``foreground`` or ``background`` of the reference: where the image may change.
        wanted: makes it targeted: the class it wants (images) or the label it wants erased (voxels).
    """

    name: str
    options: dict[str, Any] = Field(default_factory=dict)
    title: str | None = None
    per_budget: dict[str, dict[str, Any]] = Field(default_factory=dict)
    surrogate: SurrogateSpec | None = None
    region: Literal["all", "foreground", "background"] = "all"
    wanted: int | None = Field(None, ge=0)

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return recipe_of(name).name

    @field_validator("surrogate", mode="before")
    @classmethod
    def _training(cls, surrogate: Any) -> Any:
        return {"training": surrogate} if isinstance(surrogate, str) else surrogate

    @model_validator(mode="after")
    def _accepted(self) -> AttackSpec:
        row = recipe_of(self.name)
        for options in (self.options, *self.per_budget.values()):
            try:
                row.check_options({k: v for k, v in options.items() if k not in (*COMMON_OPTIONS, "eps")})
            except TypeError as error:
                raise ValueError(str(error)) from None
            if options.get("targeted"):
                raise ValueError("targeted needs a diagnosis; give wanted:, the class (images) or the label to erase.")
        if self.wanted is not None and not row.directed:
            raise ValueError(f"attack {self.name!r} has no direction; leave wanted out.")
        if self.per_budget and (row.threat is not None or "eps" in self.options):
            raise ValueError(f"attack {self.name!r} runs once, at its own budget; leave per_budget out.")
        if any("eps" in options for options in self.per_budget.values()):
            raise ValueError("per_budget holds what goes with a budget; eps is the budget itself, leave it out.")
        return self

    @model_validator(mode="after")
    def _replayable(self) -> AttackSpec:
        if recipe_of(self.name).access == "transfer":
            raise ValueError(
                f"attack {self.name!r} needs a model; name the attack that is run there, with surrogate: beside it."
            )
        if self.surrogate is not None and recipe_of(self.name).access == "none":
            raise ValueError(f"attack {self.name!r} looks at no model; leave surrogate out.")
        return self

    @property
    def label(self) -> str:
        """How the tables call it; where there are several surrogates, the beginning of that."""
        source = self.surrogate
        if source is None or (self.title and source.is_one):
            return self.title or self.name
        return f"{self.title or self.name} from {'/'.join(filter(None, (source.model, source.training)))}"

    def label_of(self, source: tuple[str, str]) -> str:
        """How the tables call it with one surrogate, a (model, training)."""
        assert self.surrogate is not None
        return self.label if self.surrogate.is_one else f"{self.title or self.name} from {'/'.join(source)}"


_OTHER = {"model": "name", "attack": "title", "task": "name"}


def _check_differ(kind: str, names: list[str]) -> None:
    """Refuses names that stand twice, as tables and files could not tell them apart."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{kind} {twice[0]!r} stands twice; give one of them another {_OTHER[kind]}.")


class DefenceSpec(_Strict):
    """A defence of trained models; ``name`` is that of the detector or preprocessor (default: the defence's title).

    ``attacks`` are titles of the task's attacks that it has to stand, unaware of it and adapted to it (default: all
    that can be adapted); ``trainings`` the models that get it (default: all).
    """

    kind: Literal["detector", "preprocessor", "smoothing"]
    name: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    attacks: list[str] | None = Field(None, min_length=1)
    trainings: list[str] | None = Field(None, min_length=1)


class TaskSpec(_Strict):
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


class Suite(_Strict):
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
