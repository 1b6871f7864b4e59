"""What a suite saves that asks for worst cases alone: passes of the survey's protocol, with and without reuse."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from medadv.benchmarks import data as datasets
from medadv.benchmarks.cost_training import Pass, watched
from medadv.benchmarks.data.base import Dataset
from medadv.benchmarks.evaluate import WORST_CASE
from medadv.benchmarks.models import Estimator, build_estimator, reference_of
from medadv.benchmarks.outcomes import Outcome, Planned
from medadv.benchmarks.suite_parts import ModelSpec, TrainingSpec
from medadv.benchmarks.suites import load_suite
from medadv.benchmarks.trials import evaluate_estimator
from medadv.training import train

SURVEY = "survey-classification"
DATA = "embedded-lesion-class-2d"
BUDGETS = ("1/255", "2/255", "4/255", "8/255")
# the least factor that a worst case has to save, by training
BARS = {"natural": 4.0, "pgd-at": 1.5}


def survey_attacks() -> list[Planned]:
    """The six attacks of the survey on the model itself: FGSM, PGD, CW, AutoAttack, Square, SimBA.

    Example:
        >>> [attack.label for attack in survey_attacks()]
        ['fgsm', 'pgd-20', 'cw-30', 'autoattack', 'square-5000', 'simba-dct-5000']
    """
    found = []
    for spec in load_suite(SURVEY).tasks[0].attacks:
        # noise and the ensemble "robust" stand beside the survey's; other rows replay these
        if spec.surrogate is None and spec.name not in ("noise", "robust"):
            found.append(Planned(spec.name, spec.options, spec.title or "", spec.per_budget))
    return found


def trained_models(data: Dataset, epochs: int) -> dict[str, Estimator]:
    """A small ResNet after natural training, and after PGD-AT from there."""
    shape = {"block": "basic", "layers": [1, 1, 1, 1], "block_inplanes": [8, 16, 32, 64], "conv1_t_size": 3}
    spec = ModelSpec(name="resnet", network="ResNet", args={**shape, "conv1_t_stride": 2})
    recipes = {
        "natural": TrainingSpec().built(),
        "pgd-at": TrainingSpec(recipe="pgd-at", options={"eps": "4/255", "steps": 3, "eps_step": "2/255"}).built(),
    }
    models: dict[str, Estimator] = {}
    for name, recipe in recipes.items():
        models[name] = estimator = build_estimator(spec, data, device="cpu")
        if name != "natural":
            estimator.network.load_state_dict(models["natural"].network.state_dict())
        y = reference_of(estimator, data.train.y)
        train(
            estimator, torch.from_numpy(data.train.x), y, recipe=recipe, seed=0, epochs=epochs,
            batch_size=16, learning_rate=3e-3, schedule="one-cycle", flip_axis=1,
        )  # fmt: skip
    return models


def reuse_costs(cases: int = 12, epochs: int = 15) -> pd.DataFrame:
    """The survey's six attacks at its four budgets, each on every case, and for the worst cases alone.

    Args:
        cases: of the test cases, all in one batch.
        epochs: of training.

    Returns:
        The rows of :func:`reuse_of` after natural training and PGD-AT, with the ``bar`` of ``saved_per_case``.
    """
    data = datasets.load(DATA)
    tables = []
    for training, estimator in trained_models(data, epochs).items():
        found = reuse_of(estimator, data, survey_attacks(), BUDGETS, cases, bars=sys.stderr.isatty())
        tables.append(found.assign(training=training, bar=BARS[training]))
    table = pd.concat(tables, ignore_index=True)
    return table[["training", *table.columns.drop("training")]]


def reuse_of(
    estimator: Estimator, data: Dataset, attacks: Sequence[Planned], budgets: Sequence[float | str], cases: int,
    *, bars: bool = False,
) -> pd.DataFrame:  # fmt: skip
    """Attacks on every case, and for the worst cases alone.

    Args:
        estimator: what is attacked.
        data: its test cases are attacked.
        attacks: what to run.
        budgets: above 0.
        cases: how many, all in one batch.
        bars: show progress.

    Returns:
        A row per budget: the mean worst-case score both ways, how many cases score ``higher`` where passes are saved
        (the bar: none), the attacks' forward and backward passes of a batch both ways, and ``saved``, their ratio. The
        row ``all`` holds every pass that the network ran, scoring included; ``saved_per_case`` counts each as many
        times as it has cases, as attacks go on with those that are left.
    """
    ways = tqdm(("every", "worst-case"), desc="both ways", disable=not bars)
    return _compared(*(_run(estimator, data, attacks, budgets, cases, rows) for rows in ways))


@dataclass(frozen=True)
class _Way:
    """The worst cases of a model, found in one of both ways, and all passes that ran."""

    worst: list[Outcome]
    ran: int
    ran_cases: int


def _run(
    estimator: Estimator, data: Dataset, attacks: Sequence[Planned], budgets: Sequence[float | str], cases: int,
    rows: str,
) -> _Way:  # fmt: skip
    seen: list[Pass | None] = []
    with watched([estimator.network], seen):
        result = evaluate_estimator(
            estimator, data, attacks, budgets, batch_size=cases, test_cases=cases, rows=rows, diagnostics="none"
        )
    # a pass there and back counts twice
    counted = [(1 + one.image_grad, one.cases) for one in seen if one is not None]
    return _Way(
        [outcome for outcome in result.outcomes if outcome.attack == WORST_CASE],
        sum(times for times, _ in counted),
        sum(times * cases for times, cases in counted),
    )


def _compared(every: _Way, alone: _Way) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for theirs, ours in zip(every.worst, alone.worst, strict=True):
        before, after = (one.passes.forward + one.passes.backward for one in (theirs, ours))
        rows.append({
            "eps": f"{theirs.fraction * 255:.3g}/255",
            "score_every": float(theirs.scores.mean()), "score_reused": float(ours.scores.mean()),
            "higher": int((ours.scores > theirs.scores).sum()), "passes_every": before, "passes_reused": after,
            "saved": before / after if after else np.inf,
        })  # fmt: skip
    rows.append({
        "eps": "all", "higher": sum(row["higher"] for row in rows),
        "score_every": np.mean([row["score_every"] for row in rows]),
        "score_reused": np.mean([row["score_reused"] for row in rows]),
        "passes_every": every.ran, "passes_reused": alone.ran, "saved": every.ran / alone.ran,
        "cases_every": every.ran_cases, "cases_reused": alone.ran_cases,
        "saved_per_case": every.ran_cases / alone.ran_cases,
    })  # fmt: skip
    return pd.DataFrame(rows)
