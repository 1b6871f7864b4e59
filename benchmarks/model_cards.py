"""A model's entry beside its numbers: who made it, of what, under which licence, and how robust it was found."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

CARD_VERSION = 1
ENDING = ".card.json"


class _Strict(BaseModel):
    # a number is a number: "0.86" is refused
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _Interval(_Strict):
    """A mean score of all cases with its 95 % interval; None where nothing was scored."""

    score: float | None = Field(ge=0, le=1)
    ci_low: float | None = Field(None, ge=0, le=1)
    ci_high: float | None = Field(None, ge=0, le=1)
    ci_unit: Literal["patient", "case"] | None = None

    @model_validator(mode="after")
    def _ordered(self) -> _Interval:
        low, high = self.ci_low, self.ci_high
        if (low is None) != (high is None):
            raise ValueError("ci_low and ci_high go together; give both or neither.")
        if low is not None and high is not None and self.score is not None and not low <= self.score <= high:
            raise ValueError(f"the score {self.score:.4g} is outside its interval {low:.4g} to {high:.4g}.")
        return self


class Clean(_Interval):
    """The score on images as they are."""


class WorstCase(_Interval):
    """The score under attack, per case the worst over all attacks of one threat set and budget."""

    threat: str = Field(min_length=1)
    region: str = Field("all", min_length=1)
    eps: float | None = Field(description="the budget in the unit; null where the threat has none")
    unit: str
    eps_fraction: float | None = Field(None, description="the budget as a share of the intensity window")
    attacks: list[str] = Field(min_length=1)
    n_unscored: int = Field(0, ge=0)
    flags: list[str] = Field(default_factory=list)


class Result(_Strict):
    """What a model scored on one task."""

    suite: str
    task: str = Field(min_length=1)
    dataset: str = Field(min_length=1)
    metric: str = Field(min_length=1)
    n_cases: int = Field(ge=1)
    image_blind: float | None = Field(None, ge=0, le=1, description="what a constant diagnosis scores that never looks")
    clean: Clean
    worst_cases: list[WorstCase] = Field(min_length=1)


class Architecture(_Strict):
    """A network by the name of its class, with the arguments it was built with."""

    network: str = Field(min_length=1)
    arguments: dict[str, Any] = Field(default_factory=dict)
    parameters: int | None = Field(None, ge=0, description="how many numbers its weights are")


class Training(_Strict):
    """How the weights came to be."""

    recipe: str = Field(min_length=1)
    options: dict[str, Any] = Field(default_factory=dict)
    epochs: int | None = Field(None, ge=1)
    seed: int | None = None
    starts_from: str | None = Field(None, description="the training whose weights came before; null: random ones")
    description: str = ""


class Data(_Strict):
    """What a model was trained on."""

    name: str = Field(min_length=1)
    sha256: str = Field(description="SHA-256, 64 hexadecimal digits")
    licence: str = Field(min_length=1)
    source: str = ""

    @field_validator("sha256")
    @classmethod
    def _digest(cls, value: str) -> str:
        return _checked_hash(value)


class ModelCard(_Strict):
    """The entry of one set of weights.

    Example:
        >>> sorted(ModelCard.model_json_schema()["required"])[:4]
        ['architecture', 'card_version', 'contact', 'data']
    """

    card_version: Literal[1]
    name: str = Field(min_length=1)
    architecture: Architecture
    weights_sha256: str = Field(description="SHA-256, 64 hexadecimal digits")
    training: Training
    data: Data
    licence: str = Field(min_length=1, description="of the weights, such as an SPDX name, or 'not published'")
    contact: str = Field(description="a link: https:// or mailto:")
    medadv_version: str = Field(min_length=1)
    results: list[Result] = Field(min_length=1)
    notes: str = ""

    @field_validator("weights_sha256")
    @classmethod
    def _digest(cls, value: str) -> str:
        return _checked_hash(value)

    @field_validator("contact")
    @classmethod
    def _link(cls, value: str) -> str:
        # it becomes a link on a page, so nothing that a browser would run
        if not re.fullmatch(r"(https?://|mailto:)[^\s\"'<>]+", value):
            raise ValueError(f"{value!r} is no link; write https://... or mailto:....")
        return value


def _checked_hash(value: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", value):
        raise ValueError(f"{value!r} is no SHA-256; it has 64 digits of 0-9 and a-f.")
    return value


def schema() -> dict[str, Any]:
    """The JSON schema of a card."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **ModelCard.model_json_schema()}


def problems(path: Path) -> tuple[ModelCard | None, list[str]]:
    """A card, and a sentence for each thing that is wrong with it: one of the two is empty."""
    try:
        text = path.read_text(encoding="utf-8")
        json.loads(text)
    except (OSError, ValueError) as error:
        return None, [f"{path.name}: it can't be read as JSON ({' '.join(str(error).split())})."]
    try:
        return ModelCard.model_validate_json(text), []
    except ValidationError as error:
        return None, [f"{path.name}: {_sentence(one)}" for one in error.errors()]


def read_card(path: str | Path) -> ModelCard:
    """A card from its file.

    Raises:
        ValueError: a sentence for each thing that is wrong.
    """
    card, wrong = problems(Path(path))
    if card is None:
        raise ValueError(" ".join(wrong))
    return card


_KINDS = {
    "missing": "is missing.", "extra_forbidden": "is no field of a card.", "string_too_short": "is empty; fill it in.",
    "too_short": "is empty; give at least one.", "float_type": "is no number (write it without quotes).",
    "int_type": "is no whole number (write it without quotes).", "string_type": "is no text (write it in quotes).",
}  # fmt: skip


def _sentence(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"]) or "the card"
    message = _KINDS.get(error["type"]) or f"{error['msg'].removeprefix('Value error, ')}"
    if error["type"] in _KINDS:
        return f"{place} {message}"
    return f"{place}: {message}{'' if message.endswith('.') else '.'}"


def contradictions(card: ModelCard, results: Sequence[Result]) -> list[str]:
    """Where a card says something else than what a table holds of the same weights.

    Args:
        card: of a model.
        results: of its weights, as :func:`~medadv.benchmarks.card_drafts.results_of` reads them from a table.
    """
    known = {result.task: result for result in results}
    found = []
    for told in card.results:
        measured = known.get(told.task)
        if measured is None:
            continue
        pairs = [("clean", told.clean.score, measured.clean.score)]
        worst = {(w.threat, w.region, w.eps): w.score for w in measured.worst_cases}
        pairs += [
            (f"{w.threat} at {w.eps:.4g}" if w.eps is not None else w.threat, w.score, worst[w.threat, w.region, w.eps])
            for w in told.worst_cases
            if (w.threat, w.region, w.eps) in worst
        ]
        for name, claimed, true in pairs:
            same = claimed is true if claimed is None or true is None else math.isclose(claimed, true, abs_tol=5e-4)
            if not same:
                found.append(f"{told.task}, {name}: the card says {claimed}, the table {true}")
    return found
