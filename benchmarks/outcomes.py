"""What is to be run and what came of it: an attack that is planned, its outcome, and all outcomes of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from medadv.attacks import recipe_of
from medadv.benchmarks.crafting import NEEDS, Surrogate
from medadv.benchmarks.data.base import Cases, Dataset
from medadv.benchmarks.endpoints import Diagnosis
from medadv.diagnostics import Finding
from medadv.victims import Passes


@dataclass(frozen=True)
class Planned:
    """An attack to run.

    Attributes:
        name: in the catalogue.
        options: of the attack.
        title: how the tables call it; default: its name, and that of the surrogate.
        per_budget: further options at single budgets, by the words of the budget.
        surrogate: a model on which the images are made; None: the one that is attacked.
        region: ``"all"``, or ``"foreground"`` or ``"background"`` of the reference: where the image may change.
        wanted: of a targeted attack, the class it wants (images) or the label it wants erased (voxels).
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    per_budget: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    surrogate: Surrogate | None = None
    region: str = "all"
    wanted: int | None = None

    @property
    def label(self) -> str:
        """How the tables call it."""
        return self.title or (self.name if self.surrogate is None else f"{self.name} from {self.surrogate.name}")

    @property
    def has_own_budget(self) -> bool:
        """Whether it runs once at a budget of its own: one it was given, or that of a threat that is no ball."""
        return "eps" in self.options or recipe_of(self.name).threat is not None


@dataclass
class Outcome:
    """What one attack did at one budget.

    Attributes:
        attack: name in the catalogue, ``"none"`` or ``"worst-case"``.
        access: what the attacker needed: one of :data:`medadv.benchmarks.crafting.NEEDS`.
        threat: threat set.
        surrogate: the model its images were made on; ``"none"``: the one that is attacked.
        region: where the image might change; ``targeted``: whether a diagnosis was wanted.
        success: share of the cases in which it was given, and the rule in words; None: by the scores.
        band_shares: ``(N, B)`` share of the perturbation's energy per band of frequencies, or None.
        settings: steps, restarts, keep of the attack.
        eps: budget in data units; ``fraction``: as a share of the window.
        scores: ``(N,)`` hard score per case, NaN where unscored.
        linf, l2_rms, ssim: size of the perturbation per case, ``(N,)``; in data units, and structural similarity.
        diagnosis: the model's output.
        endpoints: rows of :class:`~medadv.benchmarks.endpoints.EndpointTable` and
            :class:`~medadv.benchmarks.survey_endpoints.SurveyMeasures`.
        measures: the values of the latter.
        verdict: what a defence said of each image, ``(N,)``; None without one.
        flags: what the table is to say of this row.
        unit: of ``eps``; None: that of the images.
        reference: target and validity its images are scored against, where a threat moved or covered anatomy.
        passes, seconds: what it cost; ``queries``: how often the model was asked about each case, ``(N,)``.
        n_attacked: how many cases it ran on; None: all.
        reused: what of other attacks or budgets is in its numbers, such as ``"carried=3;earlier=12"``; empty: nothing.
    """

    attack: str
    access: str
    threat: str
    settings: dict[str, Any]
    eps: float
    fraction: float
    scores: np.ndarray
    linf: np.ndarray
    l2_rms: np.ndarray
    ssim: np.ndarray
    diagnosis: Diagnosis
    endpoints: pd.DataFrame
    passes: Passes = field(default_factory=Passes)
    queries: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    seconds: float = 0.0
    reference: tuple[Tensor, Tensor] | None = None
    unit: str | None = None
    worst_attack: list[str] | None = None
    images: np.ndarray | None = None
    surrogate: str = "none"
    region: str = "all"
    targeted: bool = False
    success: tuple[float, str] | None = None
    band_shares: np.ndarray | None = None
    measures: dict[str, np.ndarray] = field(default_factory=dict)
    verdict: np.ndarray | None = None
    flags: tuple[str, ...] = ()
    n_attacked: int | None = None
    reused: str = ""

    @property
    def threat_set(self) -> tuple[str, str, float]:
        """What attacks share a worst case in: threat, region and budget."""
        return self.threat, self.region, self.eps


def joint_facts(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What is told of the worst case over several outcomes of one threat set: what all of them needed and cost."""
    first = outcomes[0]
    surrogates = {outcome.surrogate for outcome in outcomes if outcome.access != "none"} or {"none"}
    settings = {name: max(outcome.settings[name] for outcome in outcomes) for name in ("steps", "restarts")}
    passes = [outcome.passes for outcome in outcomes]
    return {
        "access": max((outcome.access for outcome in outcomes), key=NEEDS.index), "threat": first.threat,
        "surrogate": surrogates.pop() if len(surrogates) == 1 else "several", "region": first.region,
        "targeted": all(outcome.targeted for outcome in outcomes), "settings": {**settings, "keep": "score"},
        "eps": first.eps, "unit": first.unit, "fraction": first.fraction,
        "passes": Passes(sum(each.forward for each in passes), sum(each.backward for each in passes)),
        "queries": np.sum([outcome.queries for outcome in outcomes], axis=0),
        "seconds": sum(outcome.seconds for outcome in outcomes),
        "flags": tuple(dict.fromkeys(flag for outcome in outcomes for flag in outcome.flags)),
    }  # fmt: skip


@dataclass(frozen=True)
class Failure:
    """An attack that raised.

    Attributes:
        attack: how the tables call it.
        reason: the error, one sentence.
        access: what the attacker would have needed.
        eps: the budget in data units, NaN where it was one of its own; ``fraction``: as a share of the window.
    """

    attack: str
    reason: str
    access: str = "none"
    eps: float = np.nan
    fraction: float = np.nan


def reason_of(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}".removesuffix(": ")


@dataclass
class Evaluation:
    """All outcomes of one estimator on the test cases of a data set, and the attacks that raised."""

    data: Dataset
    cases: Cases
    segments: bool
    outcomes: list[Outcome]
    findings: list[Finding]
    failures: list[Failure] = field(default_factory=list)

    @property
    def clean(self) -> Outcome:
        """The outcome without an attack."""
        return self.outcomes[0]
