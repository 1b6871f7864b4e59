"""The leaderboard: a row per model, attack and budget, and tables per case and endpoint beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medadv.benchmarks.data.base import Cases, Dataset
from medadv.benchmarks.evaluate import NO_ATTACK, WORST_CASE
from medadv.benchmarks.monai_metrics import summary
from medadv.benchmarks.outcomes import Evaluation, Failure, Outcome
from medadv.benchmarks.per_class import per_class
from medadv.benchmarks.rankings import over_seeds, pairs, ranks
from medadv.benchmarks.statistics import mean_interval
from medadv.benchmarks.trust import findings_of, flagged, is_own

SCHEMA_VERSION = 3
COLUMNS = (
    "suite", "dataset", "task", "dims", "n_cases", "n_unscored", "model", "training", "train_seed", "attack", "access",
    "surrogate", "threat", "region", "targeted", "eps", "unit", "eps_fraction", "steps", "restarts", "keep", "metric",
    "empty_policy", "clean", "adversarial", "ci_low", "ci_high", "ci_unit", "success_rate", "success_rule", "linf",
    "l2_rms", "ssim", "forward_passes", "backward_passes", "queries", "seconds", "seed", "n_attacked", "reused",
    "flags", "error",
)  # fmt: skip
_MODEL_KEY = ["suite", "dataset", "task", "model", "training", "train_seed"]
_ATTACK_KEY = ["attack", "threat", "region", "eps", "unit"]
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


@dataclass
class Leaderboard:
    """Rows of :data:`COLUMNS`, with a score per case and clinical endpoints beside them.

    Attributes:
        frame: the leaderboard.
        cases: a score per case and attack.
        endpoints: an endpoint per case and attack.
        bands: share of each perturbation's energy per band of frequencies, where a suite asks for it.
        diagnostics: what each check found, of each model and, where it reads scores, of each attack, threat set and
            budget (:func:`~medadv.benchmarks.trust.findings_of`).
        meta: provenance, as written to ``leaderboard.meta.json``.

    Example:
        >>> board = Leaderboard()
        >>> list(board.frame.columns[:4])
        ['suite', 'dataset', 'task', 'dims']
    """

    frame: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(COLUMNS)))
    cases: pd.DataFrame = field(default_factory=pd.DataFrame)
    endpoints: pd.DataFrame = field(default_factory=pd.DataFrame)
    meta: dict[str, Any] = field(default_factory=dict)
    bands: pd.DataFrame = field(default_factory=pd.DataFrame)
    diagnostics: pd.DataFrame = field(default_factory=pd.DataFrame)

    def add(self, entry: Entry, evaluation: Evaluation) -> None:
        """Adds all outcomes of one evaluated model."""
        rows, cases, endpoints, bands = [], [], [], []
        for outcome in evaluation.outcomes:
            row = _row(entry, evaluation, outcome)
            rows.append(row)
            key = {name: row[name] for name in (*_MODEL_KEY, *_ATTACK_KEY)}
            cases.append(_case_rows(key, evaluation, outcome))
            endpoints.append(outcome.endpoints.assign(**key)[[*key, *outcome.endpoints.columns]])
            bands.append(_band_rows(key, evaluation.cases, outcome))
        rows += [_failed_row(entry, evaluation.data, evaluation.cases, failure) for failure in evaluation.failures]
        frame = pd.DataFrame(rows, columns=list(COLUMNS))
        found = findings_of(frame[frame.error == ""], evaluation.findings)
        self._extend(flagged(frame, found, entry.flags), cases, endpoints)
        self.diagnostics = _appended(self.diagnostics, [found])
        self.bands = _appended(self.bands, bands)

    def add_failures(self, entry: Entry, data: Dataset, cases: Cases, failures: Sequence[Failure]) -> None:
        """Adds rows of what raised, with the reason in column ``error`` and no score."""
        rows = [_failed_row(entry, data, cases, failure) for failure in failures]
        frame = pd.DataFrame(rows, columns=list(COLUMNS))
        self._extend(flagged(frame, findings_of(frame, []), entry.flags), [], [])

    @property
    def failures(self) -> pd.DataFrame:
        """The rows of what raised."""
        return self.frame[self.frame.error != ""]

    def add_image_blind(
        self, entry: Entry, data: Dataset, cases: Cases, scores: np.ndarray, endpoints: pd.DataFrame | None = None
    ) -> None:
        """Adds what a model scores that never looks at the image, and its endpoints; no attack can change it."""
        row = _blind_row(entry, data, cases, scores)
        key = {name: row[name] for name in (*_MODEL_KEY, *_ATTACK_KEY)}
        table = pd.DataFrame(
            {**key, "case": cases.ids, "patient": cases.patients or "", "clean": scores, "adversarial": scores}
        )
        found = [] if endpoints is None else [endpoints.assign(**key)[[*key, *endpoints.columns]]]
        self._extend(pd.DataFrame([row], columns=list(COLUMNS)), [table], found)

    def _extend(self, frame: pd.DataFrame, cases: list[pd.DataFrame], endpoints: list[pd.DataFrame]) -> None:
        self.frame = _appended(self.frame, [frame])
        self.cases = _appended(self.cases, cases)
        self.endpoints = _appended(self.endpoints, endpoints)

    def worst_case(self) -> pd.DataFrame:
        """The rows that tell how robust a model is: clean, image-blind and the worst case per threat set and budget."""
        return self.frame[self.frame.attack.isin([WORST_CASE, NO_ATTACK])].reset_index(drop=True)

    def compare(self, baseline: str | None = "natural") -> pd.DataFrame:
        """Paired differences of worst cases: the same cases, threat set, region and budget, over all training seeds.

        Args:
            baseline: each training minus this one, of the same model; None: all pairs of models and trainings.

        Returns:
            Rows of :data:`~medadv.benchmarks.rankings.PAIR_COLUMNS`. ``ci_low`` and ``ci_high`` are of the one
            difference; ``p_holm`` is corrected by Holm for the ``family`` of all that are compared at one threat set,
            region and budget of a task. What faced other attacks stands in :meth:`not_compared` instead.
        """
        return pairs(self.frame, self.cases, baseline)[0]

    def not_compared(self, baseline: str | None = "natural") -> pd.DataFrame:
        """The pairs that :meth:`compare` leaves out, with the reason: their worst cases are not of the same attacks."""
        return pairs(self.frame, self.cases, baseline)[1]

    def ranks(self) -> pd.DataFrame:
        """Rank of each model and training by its worst case, and the best and worst rank the paired tests leave it.

        Returns:
            Rows of :data:`~medadv.benchmarks.rankings.RANK_COLUMNS`, per task, threat set, region and budget. A best
            rank is one more than how many are significantly better after Holm's correction over all pairs, so with
            95 % confidence all true ranks are between ``best_rank`` and ``worst_rank``
            (:func:`~medadv.benchmarks.paired.rank_sets`). Models that faced other attacks are ranked apart.
        """
        return ranks(self.frame, self.cases)

    def over_seeds(self) -> pd.DataFrame:
        """Mean of each model and training under each attack, with the interval of training seeds and patients.

        Returns:
            Rows with ``n_seeds, n_cases, n_unscored, mean, seed_std, ci_low, ci_high, ci_unit, flags``; one seed is
            flagged, as its interval is that of one network.
        """
        return over_seeds(self.cases)

    def per_class(self) -> pd.DataFrame:
        """Endpoints of each class under each attack, with intervals, and the cases that no mean can show counted.

        Returns:
            Rows of :data:`~medadv.benchmarks.per_class.COLUMNS`.
        """
        return per_class(self.endpoints, self.cases)

    def transfer_matrix(self) -> pd.DataFrame:
        """What each model scores on the images made on each other one: surrogates x targets.

        Returns:
            A row per attack, budget and surrogate; columns ``dataset, task, train_seed, attack, threat, region, eps,
            surrogate``, then a column ``model/training`` per target. Where the suite also runs the attack on the
            targets themselves, the diagonal holds that white-box score.
        """
        shown = self.frame[~self.frame.surrogate.isin(["none", "several"]) & (self.frame.attack != WORST_CASE)].copy()
        if shown.empty:
            return pd.DataFrame()
        shown["attack"] = [
            attack.removesuffix(f" from {source}") for attack, source in zip(shown.attack, shown.surrogate, strict=True)
        ]
        keys = ["dataset", "task", "train_seed", "attack", "threat", "region", "eps"]
        own = self.frame[(self.frame.surrogate == "none") & is_own(self.frame)].merge(
            shown[keys].drop_duplicates(), on=keys
        )
        own["surrogate"] = own.model + "/" + own.training
        both = pd.concat([shown, own], ignore_index=True)
        both["target"] = both.model + "/" + both.training
        cells = both.groupby([*keys, "surrogate", "target"], dropna=False).adversarial.first()
        return cells.unstack("target").reset_index().rename_axis(columns=None)

    def endpoint_summary(self) -> pd.DataFrame:
        """Mean endpoints of each model, attack and budget, with the cases counted that no mean can show.

        Returns:
            See :func:`~medadv.benchmarks.monai_metrics.summary`.
        """
        return summary(self.endpoints, [*_MODEL_KEY, *_ATTACK_KEY]) if len(self.endpoints) else pd.DataFrame()

    def to_csv(self, path: str | Path) -> None:
        """Writes :attr:`frame` as CSV."""
        from medadv.files import write_text

        write_text(Path(path), self.frame.to_csv(index=False))

    def to_html(self, path: str | Path | None = None) -> str:
        """The leaderboard as an HTML table; written to ``path`` if one is given."""
        from medadv.benchmarks.report import table_html
        from medadv.files import write_text

        html = table_html(self.frame)
        if path is not None:
            write_text(Path(path), html)
        return html

    def plot(self) -> Any:
        """Robustness curves, score against budget, as a matplotlib figure."""
        from medadv.benchmarks.figures import robustness_curves

        return robustness_curves(self)


def _appended(table: pd.DataFrame, more: list[pd.DataFrame]) -> pd.DataFrame:
    """A table with rows added; an empty one has no types to keep."""
    parts = [part for part in (table, *more) if not part.empty]
    return pd.concat(parts, ignore_index=True) if parts else table


def _row(entry: Entry, evaluation: Evaluation, outcome: Outcome) -> dict[str, Any]:
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


def _failed_row(entry: Entry, data: Dataset, cases: Cases, failure: Failure) -> dict[str, Any]:
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


def _blind_row(entry: Entry, data: Dataset, cases: Cases, scores: np.ndarray) -> dict[str, Any]:
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


def _case_rows(key: dict[str, Any], evaluation: Evaluation, outcome: Outcome) -> pd.DataFrame:
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


def _band_rows(key: dict[str, Any], cases: Cases, outcome: Outcome) -> pd.DataFrame:
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
