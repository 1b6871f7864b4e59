"""Models beside each other: paired differences of their worst cases, corrected for being many, and rank sets."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from medadv.benchmarks.crafting import NEEDS
from medadv.benchmarks.crossed import seeds_interval
from medadv.benchmarks.evaluate import IMAGE_BLIND, WORST_CASE
from medadv.benchmarks.paired import holm, paired_test, rank_sets

SIGNIFICANT = 0.05
ONE_SEED = "single-train-seed"
# cases of two models are compared only where all of these are the same
SAME = ["dataset", "task", "threat", "region", "eps", "unit"]
MODEL = ["model", "training"]
PAIR_COLUMNS = (
    *SAME, *MODEL, "against_model", "against_training", "n_seeds", "n_cases", "n_unscored", "mean", "against_mean",
    "difference", "ci_low", "ci_high", "ci_unit", "p", "p_holm", "family", "significant", "flags",
)  # fmt: skip
RANK_COLUMNS = (
    *SAME, *MODEL, "n_models", "n_seeds", "n_cases", "n_unscored", "mean", "ci_low", "ci_high", "ci_unit", "rank",
    "best_rank", "worst_rank", "flags",
)  # fmt: skip
# what fits on a terminal
SHORT = (
    "task", "model", "training", "threat", "region", "eps", "n_seeds", "n_cases", "difference", "ci_low", "ci_high",
    "p_holm", "flags",
)  # fmt: skip
_STEPS = ("steps", "restarts")
Faced: TypeAlias = frozenset[tuple[Any, ...]]


@dataclass(frozen=True)
class Scores:
    """Scores of one model and training under one threat set and budget.

    Attributes:
        name: model and training.
        table: ``(K, N)``: a row per training seed, a column per case.
        patients: of the cases; None where they have none.
        faced: what attacked it (see :func:`faced_by`).
    """

    name: tuple[str, str]
    table: pd.DataFrame
    patients: list[str] | None
    faced: Faced

    @property
    def one_seed(self) -> bool:
        """Whether it is about a single trained network."""
        return len(self.table) == 1 and self.name[0] != IMAGE_BLIND


def faced_by(rows: pd.DataFrame) -> Faced:
    """The attacks behind a worst case: name, access, steps and restarts of each.

    Of one attack that was also tried with less knowledge (of a defence, or on a surrogate) the form that knows most
    counts, so that a defended model whose attackers all look through its defence faces what an undefended one does.
    """
    strongest: dict[str, tuple[Any, ...]] = {}
    for row in rows[rows.attack != WORST_CASE].itertuples():
        base = str(row.attack).removesuffix(f" from {row.surrogate}").removesuffix(" (unaware)")
        base = base.removesuffix(" (adaptive)")
        found = (base, row.access, *(None if pd.isna(n := getattr(row, name)) else int(n) for name in _STEPS))
        if base not in strongest or _knows(strongest[base][1]) < _knows(row.access):
            strongest[base] = found
    return frozenset(strongest.values())


def _knows(access: object) -> int:
    return NEEDS.index(str(access)) if access in NEEDS else -1


def groups(frame: pd.DataFrame, cases: pd.DataFrame) -> Iterator[tuple[tuple[Hashable, ...], list[Scores]]]:
    """Per data set, task, threat set, region and budget the scores of all models under the worst case."""
    if not len(cases):
        return
    worst, rows = cases[cases.attack == WORST_CASE], frame.groupby([*SAME, *MODEL], dropna=False)
    attacks = {key: faced_by(part) for key, part in rows}
    for same, group in worst.groupby(SAME, sort=False, dropna=False):
        yield (
            same,
            [
                scores_of(part, name, attacks.get((*same, *name), frozenset()))
                for name, part in group.groupby(MODEL, sort=False, dropna=False)
            ],
        )


def scores_of(part: pd.DataFrame, name: tuple[str, str], faced: Faced) -> Scores:
    """The scores of one model's rows of ``cases.csv``."""
    rows = part.assign(train_seed=part.train_seed.map(lambda seed: -1 if pd.isna(seed) else int(seed)))
    # an attack listed twice under one title has two scores: the worse counts
    table = rows.groupby(["train_seed", "case"]).adversarial.min().unstack("case")
    table = table[list(dict.fromkeys(rows.case))]
    owners = rows.drop_duplicates("case").patient
    owners = owners.where(owners.notna(), "").astype(str)
    return Scores(name, table.astype(float), None if (owners == "").any() else owners.tolist(), faced)


def obstacle(a: Scores, b: Scores) -> str:
    """Why two models can't be compared; empty where they can."""
    if set(a.table.columns) != set(b.table.columns):
        common = len(set(a.table.columns) & set(b.table.columns))
        return f"other cases ({common} of {a.table.shape[1]} and {b.table.shape[1]} in common)"
    if not set(a.table.index) & set(b.table.index):
        return "no training seed in common"
    if a.faced != b.faced:
        return f"other attacks: {_only(a.faced, b.faced)} against {_only(b.faced, a.faced)}"
    return ""


def _only(mine: Faced, theirs: Faced) -> str:
    words = [
        f"{attack} ({access}, {steps} steps, {restarts} restarts)" for attack, access, steps, restarts in mine - theirs
    ]
    return ", ".join(sorted(words)) or "none"


def compared(a: Scores, b: Scores) -> dict[str, Any]:
    """Columns of the comparison of two models that can be compared, over the seeds that both have."""
    seeds = [seed for seed in a.table.index if seed in b.table.index]
    mine, theirs = a.table.loc[seeds], b.table.loc[seeds, a.table.columns]
    found = paired_test(mine.to_numpy(), theirs.to_numpy(), a.patients)
    used = (mine.notna() & theirs.notna()).all().to_numpy()
    left = len(set(a.table.index) ^ set(b.table.index))
    flags = [*([ONE_SEED] if len(seeds) == 1 else []), *([f"seeds-left-out={left}"] if left else [])]
    return {
        "n_seeds": found.seeds, "n_cases": found.cases, "n_unscored": found.unscored,
        "mean": float(mine.to_numpy()[:, used].mean()) if used.any() else np.nan,
        "against_mean": float(theirs.to_numpy()[:, used].mean()) if used.any() else np.nan,
        "difference": found.difference, "ci_low": found.interval.low, "ci_high": found.interval.high,
        "ci_unit": found.interval.unit, "p": found.p,
        "flags": ";".join([*flags, *(["ci-bound"] if found.interval.bound else [])]),
    }  # fmt: skip


def corrected(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A family of comparisons with Holm's correction."""
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row.update(p_holm=float(p), family=len(rows), significant=bool(p < SIGNIFICANT))
    return rows


def pairs(frame: pd.DataFrame, cases: pd.DataFrame, baseline: str | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Comparisons of all pairs, or of each training with a baseline of the same model; and what can't be compared.

    Returns:
        Rows of :data:`PAIR_COLUMNS`, and rows ``*SAME, model, training, against_model, against_training, reason``.
    """
    rows: list[dict[str, Any]] = []
    apart: list[dict[str, Any]] = []
    for same, models in groups(frame, cases):
        family = []
        for a, b in _wanted(models, baseline):
            key = dict(zip([*SAME, *MODEL, "against_model", "against_training"], [*same, *a.name, *b.name]))
            reason = obstacle(a, b)
            if reason:
                apart.append({**key, "reason": reason})
            else:
                family.append({**key, **compared(a, b)})
        rows += corrected(family)
    columns = [*SAME, *MODEL, "against_model", "against_training"]
    return pd.DataFrame(rows, columns=list(PAIR_COLUMNS)), pd.DataFrame(apart, columns=[*columns, "reason"])


def _wanted(models: list[Scores], baseline: str | None) -> list[tuple[Scores, Scores]]:
    if baseline is None:
        return list(combinations(models, 2))
    base = {scores.name[0]: scores for scores in models if scores.name[1] == baseline}
    return [(other, base[other.name[0]]) for other in models if other.name[1] != baseline and other.name[0] in base]


def ranks(frame: pd.DataFrame, cases: pd.DataFrame) -> pd.DataFrame:
    """Ranks of the models of each task by the worst case, with the best and worst that the tests leave.

    Models that faced other attacks are ranked apart. See :meth:`~medadv.benchmarks.leaderboard.Leaderboard.ranks`.
    """
    rows: list[dict[str, Any]] = []
    for same, models in groups(frame, cases):
        apart: list[list[Scores]] = []
        for scores in models:
            like = next((found for found in apart if not obstacle(found[0], scores)), None)
            if like is None:
                apart.append([scores])
            else:
                like.append(scores)
        for found in apart:
            rows += _ranked(dict(zip(SAME, same)), found)
    return pd.DataFrame(rows, columns=list(RANK_COLUMNS))


def _ranked(key: dict[str, Any], models: list[Scores]) -> list[dict[str, Any]]:
    better = np.zeros((len(models), len(models)), dtype=bool)
    tested = [(i, j) for i, j in combinations(range(len(models)), 2) if not obstacle(models[i], models[j])]
    for (i, j), row in zip(tested, corrected([compared(models[i], models[j]) for i, j in tested]), strict=True):
        winner, loser = (i, j) if row["difference"] > 0 else (j, i)
        better[winner, loser] = row["significant"]
    means = [float(np.nanmean(scores.table.to_numpy())) if scores.table.notna().any(axis=None) else np.nan
             for scores in models]  # fmt: skip
    place = pd.Series(means).rank(ascending=False, method="min")
    rows = []
    for scores, mean, rank, (best, worst) in zip(models, means, place, rank_sets(better), strict=True):
        rows.append({
            **key, **dict(zip(MODEL, scores.name)), "n_models": len(models), **summed_up(scores), "mean": mean,
            "rank": rank, "best_rank": int(best), "worst_rank": int(worst),
        })  # fmt: skip
    return sorted(rows, key=lambda row: row["rank"])


def summed_up(scores: Scores) -> dict[str, Any]:
    """Counts and interval of one model's mean over seeds and cases."""
    values = scores.table.to_numpy()
    interval = seeds_interval(values, scores.patients)
    flags = [ONE_SEED] if scores.one_seed else []
    return {
        "n_seeds": len(values), "n_cases": values.shape[1], "n_unscored": int(np.isnan(values).any(0).sum()),
        "ci_low": interval.low, "ci_high": interval.high, "ci_unit": interval.unit,
        "flags": ";".join([*flags, *(["ci-bound"] if interval.bound else [])]),
    }  # fmt: skip


def over_seeds(cases: pd.DataFrame) -> pd.DataFrame:
    """Each model and training under each attack, over its training seeds.

    See :meth:`~medadv.benchmarks.leaderboard.Leaderboard.over_seeds`.
    """
    keys = [*SAME, "attack", *MODEL]
    rows = []
    if len(cases):
        for key, part in cases.groupby(keys, sort=False, dropna=False):
            named = dict(zip(keys, key))
            scores = scores_of(part, (str(named["model"]), str(named["training"])), frozenset())
            values = scores.table.to_numpy()
            known = values[:, ~np.isnan(values).any(0)]
            facts = summed_up(scores)
            means = known.mean(1) if known.size else np.full(len(values), np.nan)
            spread = float(means.std(ddof=1)) if len(means) > 1 else np.nan
            rows.append({**named, **facts, "mean": float(means.mean()), "seed_std": spread})
    columns = [*keys, "n_seeds", "n_cases", "n_unscored", "mean", "seed_std", "ci_low", "ci_high", "ci_unit", "flags"]
    return pd.DataFrame(rows, columns=columns)
