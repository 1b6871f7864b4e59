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
from medadv.benchmarks.leaderboard_rows import (
    COLUMNS,
    KEY,
    Entry,
    band_rows,
    blind_row,
    case_rows,
    failed_row,
    key_of,
    row_of,
)
from medadv.benchmarks.monai_metrics import summary
from medadv.benchmarks.outcomes import Evaluation, Failure
from medadv.benchmarks.per_class import per_class
from medadv.benchmarks.rankings import over_seeds, pairs, ranks
from medadv.benchmarks.trust import findings_of, flagged, is_own


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
            row = row_of(entry, evaluation, outcome)
            rows.append(row)
            key = key_of(row)
            cases.append(case_rows(key, evaluation, outcome))
            endpoints.append(outcome.endpoints.assign(**key)[[*key, *outcome.endpoints.columns]])
            bands.append(band_rows(key, evaluation.cases, outcome))
        rows += [failed_row(entry, evaluation.data, evaluation.cases, failure) for failure in evaluation.failures]
        frame = pd.DataFrame(rows, columns=list(COLUMNS))
        found = findings_of(frame[frame.error == ""], evaluation.findings)
        self._extend(flagged(frame, found, entry.flags), cases, endpoints)
        self.diagnostics = _appended(self.diagnostics, [found])
        self.bands = _appended(self.bands, bands)

    def add_failures(self, entry: Entry, data: Dataset, cases: Cases, failures: Sequence[Failure]) -> None:
        """Adds rows of what raised, with the reason in column ``error`` and no score."""
        rows = [failed_row(entry, data, cases, failure) for failure in failures]
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
        row = blind_row(entry, data, cases, scores)
        key = key_of(row)
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
        return summary(self.endpoints, list(KEY)) if len(self.endpoints) else pd.DataFrame()

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
