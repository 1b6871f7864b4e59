"""The rows of a leaderboard, and of the tables of cases and bands beside it: one outcome in columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from medadv.benchmarks.data.base import Cases, Dataset
from medadv.benchmarks.evaluate import NO_ATTACK
from medadv.benchmarks.outcomes import Evaluation, Failure, Outcome
from medadv.benchmarks.statistics import mean_interval

SCHEMA_VERSION = 3
COLUMNS = (
    "suite", "dataset", "task", "dims", "n_cases", "n_unscored", "model", "training", "train_seed", "attack", "access",
    "surrogate", "threat", "region", "targeted", "eps", "unit", "eps_fraction", "steps", "restarts", "keep", "metric",
    "empty_policy", "clean", "adversarial", "ci_low", "ci_high", "ci_unit", "success_rate", "success_rule", "linf",
    "l2_rms", "ssim", "forward_passes", "backward_passes", "queries", "seconds", "seed", "n_attacked", "reused",
    "flags", "error",
)  # fmt: skip
# what tells rows apart, in the tables of cases and endpoints too
KEY = (
    "suite", "dataset", "task", "model", "training", "train_seed", "attack", "threat", "region", "eps", "unit",
)  # fmt: skip
DICE_SUCCESS = 0.5


@dataclass(frozen=True)
class Entry:
    """Who is evaluated: the words of the first columns."""

    suite: str
    task: str
    model: str
    training: str
    train_seed: int | None
    seed: int = 0
    flags: tuple[str, ...] = ()


def key_of(row: dict[str, Any]) -> dict[str, Any]:
    """The columns of :data:`KEY`."""
    return {name: row[name] for name in KEY}


def row_of(entry: Entry, evaluation: Evaluation, outcome: Outcome) -> dict[str, Any]:
    """What one attack did at one budget, or what the model does without one."""
    data, cases, clean = evaluation.data, evaluation.cases, evaluation.clean
    scored = ~np.isnan(outcome.scores)
    interval = mean_interval(outcome.scores, cases.patients)
    success, rule = outcome.success or success_of(clean.scores, outcome.scores, data, evaluation.segments)
    queries = int(outcome.queries.max(initial=0)) if outcome.access in ("score", "decision") else 0
    return {
        **_described(entry, data, cases, evaluation.segments),
        "n_unscored": int((~scored).sum()),
        "attack": outcome.attack, "access": outcome.access, "surrogate": outcome.surrogate,
        "threat": outcome.threat, "region": outcome.region, "targeted": outcome.targeted,
        "eps": outcome.eps, "eps_fraction": outcome.fraction, **outcome.settings,
        "unit": (evaluation.data.intensity.unit if outcome.unit is None else outcome.unit) or "1",
        "clean": _mean(clean.scores), "adversarial": _mean(outcome.scores),
        "ci_low": interval.low, "ci_high": interval.high, "ci_unit": interval.unit,
        "success_rate": success, "success_rule": rule,
        "linf": float(outcome.linf.max()), "l2_rms": float(outcome.l2_rms.mean()), "ssim": float(outcome.ssim.mean()),
        "forward_passes": outcome.passes.forward, "backward_passes": outcome.passes.backward, "queries": queries,
        "seconds": round(outcome.seconds, 3), "n_attacked": _attacked(outcome, len(cases)), "reused": outcome.reused,
        "flags": ";".join([*(["ci-bound"] if interval.bound else []), *outcome.flags]), "error": "",
    }  # fmt: skip


def failed_row(entry: Entry, data: Dataset, cases: Cases, failure: Failure) -> dict[str, Any]:
    """What raised: no score, and the reason."""
    return {
        **_described(entry, data, cases, data.task == "segmentation"),
        "n_unscored": len(cases), "attack": failure.attack, "access": failure.access, "surrogate": "none",
        "threat": "none", "region": "all", "targeted": False, "eps": failure.eps, "eps_fraction": failure.fraction,
        "n_attacked": 0, "reused": "", "flags": "failed", "error": failure.reason,
    }  # fmt: skip


def _attacked(outcome: Outcome, cases: int) -> int:
    """How many cases an attack ran on."""
    if outcome.attack == NO_ATTACK:
        return 0
    return cases if outcome.n_attacked is None else outcome.n_attacked


def _described(entry: Entry, data: Dataset, cases: Cases, segments: bool) -> dict[str, Any]:
    return {
        "suite": entry.suite, "dataset": data.name, "task": entry.task, "dims": data.dims, "n_cases": len(cases),
        "model": entry.model, "training": entry.training, "train_seed": entry.train_seed,
        "unit": data.intensity.unit or "1", "metric": metric_name(data, segments),
        "empty_policy": data.decision.empty if segments else "n/a", "seed": entry.seed,
    }  # fmt: skip


def metric_name(data: Dataset, segments: bool) -> str:
    """What the scores of a data set are."""
    if segments:
        return "dice"
    return "accuracy" if data.decision.exclusive else "label_accuracy"


def blind_row(entry: Entry, data: Dataset, cases: Cases, scores: np.ndarray) -> dict[str, Any]:
    """What a model scores that never looks at the image."""
    interval = mean_interval(scores, cases.patients)
    return {
        **_described(entry, data, cases, data.task == "segmentation"),
        "n_unscored": int(np.isnan(scores).sum()),
        "attack": NO_ATTACK, "access": "none", "surrogate": "none", "threat": "none", "region": "all",
        "targeted": False,
        "eps": 0.0, "eps_fraction": 0.0, "steps": 0, "restarts": 0, "keep": "last",
        "clean": _mean(scores), "adversarial": _mean(scores),
        "ci_low": interval.low, "ci_high": interval.high, "ci_unit": interval.unit,
        "success_rate": 0.0, "success_rule": "no attack changes a model that does not look",
        "linf": 0.0, "l2_rms": 0.0, "ssim": 1.0, "forward_passes": 0, "backward_passes": 0, "queries": 0,
        "seconds": 0.0, "n_attacked": 0, "reused": "", "flags": "ci-bound" if interval.bound else "", "error": "",
    }  # fmt: skip


def success_of(clean: np.ndarray, adversarial: np.ndarray, data: Dataset, segments: bool) -> tuple[float, str]:
    """Share of the cases that were right at first and are not any more, and the rule in words.

    Images: all right before, something wrong after. Voxels: Dice below half of the case's clean Dice (the rule of
    arXiv 2107.04263, per case).
    """
    if segments:
        right = clean > 0
        fallen = adversarial < DICE_SUCCESS * clean
        rule = f"dice < {DICE_SUCCESS} x clean dice of the case"
    else:
        right = clean == 1
        fallen = adversarial < 1
        rule = "right -> wrong" if data.decision.exclusive else "all labels right -> any wrong"
    return (float(fallen[right].mean()) if right.any() else np.nan), rule


def case_rows(key: dict[str, Any], evaluation: Evaluation, outcome: Outcome) -> pd.DataFrame:
    """A row per case: its scores and the size of its perturbation."""
    cases = evaluation.cases
    return pd.DataFrame(
        {
            **key,
            "case": cases.ids,
            "patient": cases.patients or "",
            "clean": evaluation.clean.scores,
            "adversarial": outcome.scores,
            "linf": outcome.linf,
            "l2_rms": outcome.l2_rms,
            "ssim": outcome.ssim,
            "worst_attack": outcome.worst_attack or "",
        }
    )


def band_rows(key: dict[str, Any], cases: Cases, outcome: Outcome) -> pd.DataFrame:
    """Rows ``case, band, low, high, share``; bands as shares of the greatest frequency."""
    if outcome.band_shares is None:
        return pd.DataFrame()
    count = outcome.band_shares.shape[1]
    band = np.tile(np.arange(count), len(cases))
    return pd.DataFrame(
        {
            **key, "case": np.repeat(cases.ids, count), "band": band, "low": band / count, "high": (band + 1) / count,
            "share": outcome.band_shares.ravel(),
        }
    )  # fmt: skip


def _mean(scores: np.ndarray) -> float:
    return float(np.nanmean(scores)) if (~np.isnan(scores)).any() else np.nan
