"""The parts of a suite: models, trainings, attacks with their surrogates, defences."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from medadv.attacks import recipe_of
from medadv.attacks.recipes import COMMON_OPTIONS
from medadv.names import unknown_name
from medadv.training import RECIPES, Recipe

ALL = "all"


class Strict(BaseModel):
    """Part of a suite: what is misspelt is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSpec(Strict):
    """A network by name and arguments, trained by the suite or loaded from a checkpoint.

    Arguments that the data decide on (rank, channels, number of logits, size of the image) may be left out.
    ``cam_layer`` names the layer whose class-activation map the report shows (default: found by itself); images only.
    """

    name: str
    network: str
    args: dict[str, Any] = Field(default_factory=dict)
    checkpoint: Path | None = None
    cam_layer: str | None = None


class ValidationSpec(Strict):
    """How the epoch whose weights are kept is chosen on the validation cases: by the score under the recipe's budget.

    A recipe without a budget, such as natural training, is chosen by the clean score.
    """

    steps: int = Field(10, ge=1)
    every: int = Field(1, ge=1)
    cases: int | None = Field(None, ge=1)


class TrainingSpec(Strict):
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


class SurrogateSpec(Strict):
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


class AttackSpec(Strict):
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


class DefenceSpec(Strict):
    """A defence of trained models; ``name`` is that of the detector or preprocessor (default: the defence's title).

    ``attacks`` are titles of the task's attacks that it has to stand, unaware of it and adapted to it (default: all
    that can be adapted); ``trainings`` the models that get it (default: all).
    """

    kind: Literal["detector", "preprocessor", "smoothing"]
    name: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    attacks: list[str] | None = Field(None, min_length=1)
    trainings: list[str] | None = Field(None, min_length=1)
