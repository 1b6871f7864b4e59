"""Tables in the form of a survey: per task, training method x attack x budget, a table for each metric.

All is read off a :class:`~medadv.benchmarks.leaderboard.Leaderboard`, so that it can be made again from the folder of a
finished run.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from medadv.benchmarks.endpoints import ALL_CASES
from medadv.benchmarks.evaluate import IMAGE_BLIND, NO_ATTACK, WORST_CASE
from medadv.benchmarks.leaderboard import Leaderboard
from medadv.benchmarks.survey_endpoints import CLASSES, COUNTS, MEASURES
from medadv.benchmarks.trust import is_own
from medadv.names import unknown_name
from medadv.threats import THREATS
from medadv.threats.base import Threat

CLEAN, NOISE = "clean", "noise"
COLUMNS = (
    "suite", "dataset", "task", "dims", "model", "training", "train_seed", "attack", "threat", "eps", "unit", "budget",
    "metric", "value", "n_cases", "n_counted",
)  # fmt: skip
_OF_IMAGES = ("accuracy", "label_accuracy", "macro_recall", "macro_precision", "macro_f1", "macro_auc")
_RUN = ["suite", "dataset", "task", "model", "training", "train_seed", "attack", "threat", "eps", "unit"]


def survey_rows(board: Leaderboard) -> pd.DataFrame:
    """Every metric of every model under every attack and budget, one number a row.

    Args:
        board: of a suite.

    Returns:
        Rows of :data:`COLUMNS`. ``value`` is the mean over cases, the sum for ``structures_missed`` and
        ``structures_invented``, and one number over all cases for ``macro_*``. ``n_counted`` is how many of ``n_cases``
        it is made of (a negative case has no mIoU).
    """
    alone = is_own(board.frame) | (board.frame.attack == WORST_CASE)  # scores of an attack are its own, or not told
    scores = board.frame[alone].rename(columns={"adversarial": "value"})
    parts = (scores.attack, scores.threat, scores.eps, scores.unit, scores.eps_fraction)
    scores = scores.assign(
        n_counted=scores.n_cases - scores.n_unscored,
        budget=[_budget(*words) for words in zip(*parts, strict=True)],
        train_seed=pd.to_numeric(scores.train_seed),
    )
    rows = pd.concat([scores[list(COLUMNS)], _measured(board, scores)], ignore_index=True)
    return rows.astype({"train_seed": "Int64", "n_cases": "int64", "n_counted": "int64"})


def _budget(attack: str, threat: str, eps: float, unit: str, share: float) -> str:
    """How a budget is written: 255ths of the window for balls of one voxel's change, else a number and its unit."""
    if attack == NO_ATTACK:
        return ""
    if threat == "linf":
        return f"{255 * share:.6g}/255"
    return "own" if np.isnan(eps) else f"{eps:.6g}" if unit in ("1", "") else f"{eps:.6g} {unit}"


def _measured(board: Leaderboard, scores: pd.DataFrame) -> pd.DataFrame:
    """The endpoints that surveys report, averaged (or counted) over cases, with the words of their row."""
    if board.endpoints.empty:
        return pd.DataFrame(columns=list(COLUMNS))
    chosen = board.endpoints[board.endpoints.endpoint.isin([*MEASURES, CLASSES])]
    chosen = chosen.assign(train_seed=pd.to_numeric(chosen.train_seed))
    groups = chosen.groupby([*_RUN, "endpoint"], sort=False, dropna=False)
    table = groups.adversarial.agg(["mean", "sum", "count"]).reset_index()
    table = table.merge(scores[[*_RUN, "dims", "budget", "n_cases"]], on=_RUN, how="left")
    cohort = chosen[chosen.case == ALL_CASES].endpoint.unique()
    table["value"] = table["mean"].where(~table.endpoint.isin(COUNTS), table["sum"])
    table["n_counted"] = table["count"].where(~table.endpoint.isin(cohort), table.n_cases)
    return table.rename(columns={"endpoint": "metric"})[list(COLUMNS)]


def metrics_of(rows: pd.DataFrame, task: str) -> list[str]:
    """Metrics that a task has, in the order of the tables."""
    return [name for name in dict.fromkeys(rows[rows.task == task].metric) if name != CLASSES]


def survey_table(rows: pd.DataFrame, task: str, metric: str, *, statistic: str = "mean") -> pd.DataFrame:
    """Training methods x (attack, budget) of one task and metric.

    Args:
        rows: of :func:`survey_rows`.
        task: a task of the suite.
        metric: one of :func:`metrics_of`.
        statistic: over training seeds, as pandas calls it: ``"mean"``, ``"std"``, ``"count"``.

    Returns:
        Rows ``(model, training)``, image-blind first; columns ``(attack, budget)``: clean, noise, the attacks, and the
        worst case of each threat set. What no attack can change, the image-blind diagnosis, is repeated in all columns
        but those of threats that move or cover the anatomy it is scored against.

    Raises:
        ValueError: an unknown task or metric.

    Example:
        >>> rows = pd.DataFrame({
        ...     "task": "t", "model": "unet", "training": ["natural", "pgd-at"], "train_seed": 0, "attack": "none",
        ...     "threat": "none", "eps": 0.0, "budget": "", "metric": "dice", "value": [0.9, 0.8]})
        >>> survey_table(rows, "t", "dice")["clean"].squeeze().tolist()
        [0.9, 0.8]
    """
    if task not in set(rows.task):
        raise unknown_name("task", task, set(rows.task))
    if metric not in metrics_of(rows, task):
        raise unknown_name(f"metric of {task}", metric, metrics_of(rows, task))
    chosen = _named(rows[(rows.task == task) & (rows.metric == metric)])
    values = chosen.groupby(["model", "training", "attack", "budget"], sort=False).value.agg(statistic)
    wide = values.unstack(["attack", "budget"])
    columns = _ordered(chosen)
    models = list(dict.fromkeys(zip(chosen.model, chosen.training, strict=True)))
    models.sort(key=lambda name: name[0] != IMAGE_BLIND)
    table = wide.reindex(index=pd.MultiIndex.from_tuples(models, names=["model", "training"]), columns=columns.index)
    for row in [name for name in models if name[0] == IMAGE_BLIND]:
        table.loc[row] = table.loc[row].where(~columns.still.to_numpy(), table.loc[row, (CLEAN, "")])
    return table


def _named(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of one table with attacks as its header calls them; worst cases of threat sets are told apart."""
    threats = rows[rows.attack == WORST_CASE].threat.unique()
    names = [
        f"{attack} {threat}" if attack == WORST_CASE and len(threats) > 1 else CLEAN if attack == NO_ATTACK else attack
        for attack, threat in zip(rows.attack, rows.threat, strict=True)
    ]
    return rows.assign(attack=names)


def _ordered(rows: pd.DataFrame) -> pd.DataFrame:
    """Columns of a table in order: index ``(attack, budget)``, ``still``: its threat leaves the reference alone."""
    columns = rows.drop_duplicates(["attack", "budget"])[["attack", "budget", "threat", "eps"]]
    names = list(dict.fromkeys(columns.attack))
    rank = {name: 3 if name.startswith(WORST_CASE) else {CLEAN: 0, NOISE: 1}.get(name, 2) for name in names}
    order = sorted(columns.itertuples(index=False), key=lambda c: (rank[c.attack], names.index(c.attack), c.eps))
    index = pd.MultiIndex.from_tuples([(c.attack, c.budget) for c in order], names=["attack", "budget"])
    images = rows.metric.isin(_OF_IMAGES).all()
    return pd.DataFrame({"still": [images or reference_stays(c.threat) for c in order]}, index=index)


def reference_stays(threat: str) -> bool:
    """Whether a threat neither moves nor covers the anatomy that a segmentation is scored against."""
    return threat not in THREATS or getattr(THREATS[threat].build, "apply_target", None) is Threat.apply_target


def training_cost(board: Leaderboard, baseline: str = "natural") -> pd.DataFrame:
    """What a training costs: seconds per epoch, and how many times those of ``baseline`` of the same task and model.

    Returns:
        Rows ``task, model, training, recipe, epochs, seconds_per_epoch, relative``, mean over training seeds;
        ``relative`` is NaN where there is no baseline to compare with.
    """
    columns = ["task", "model", "training", "recipe", "epochs", "seconds_per_epoch"]
    entries = pd.DataFrame(list(board.meta.get("training", {}).values()), columns=columns)
    keys = ["task", "model", "training", "recipe"]
    table = entries.groupby(keys, sort=False, dropna=False)[["epochs", "seconds_per_epoch"]].mean().reset_index()
    base = table[table.training == baseline].set_index(["task", "model"]).seconds_per_epoch
    wanted = pd.MultiIndex.from_frame(table[["task", "model"]])
    return table.assign(relative=table.seconds_per_epoch / base.reindex(wanted).to_numpy())
