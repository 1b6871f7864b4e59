"""Is the default answer strong enough? The ensemble ``robust`` against attacks that are not its members."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from medadv.benchmarks.evaluate import NO_ATTACK, WORST_CASE
from medadv.benchmarks.store import require_files
from medadv.benchmarks.trust import is_own

ENSEMBLE, TWICE = "robust", "robust-2x"
TOLERANCE = 0.01
_KEY = ["task", "model", "training", "train_seed", "threat", "eps"]


def strength_table(leaderboard: pd.DataFrame, cases: pd.DataFrame) -> pd.DataFrame:
    """What ``robust`` leaves beside what all other attacks of the same run leave together, per case.

    Args:
        leaderboard: of a run whose attacks hold ``robust``, others, and ``robust-2x`` (twice its restarts).
        cases: its scores per case.

    Returns:
        A row per model and budget: mean score left by ``robust``, by the per-case worst of the others, by twice the
        restarts; ``gap``: how much more ``robust`` leaves than the others; ``holds``: the gap is at most 0.01 (Dice) or
        one case (images); the strongest other attack, passes and seconds.

    Raises:
        ValueError: the run has no ``robust`` or nothing to compare it with.
    """
    if not is_own(leaderboard[leaderboard.attack != WORST_CASE]).all():
        raise ValueError("the run has rows: worst-case, where no attack stands alone; run it with rows: every.")
    beside = [ENSEMBLE, TWICE, WORST_CASE, NO_ATTACK, "noise"]
    others = cases[~cases.attack.isin(beside)]
    if not (cases.attack == ENSEMBLE).any() or others.empty:
        raise ValueError(
            f"the run holds attacks {', '.join(sorted(set(cases.attack)))}; it needs {ENSEMBLE!r} and attacks to "
            "compare it with."
        )
    rows = []
    for key, found in cases[cases.attack == ENSEMBLE].groupby(_KEY, sort=False, dropna=False):
        same = _like(others, key)
        if same.empty:
            continue
        worst = same.groupby("case").adversarial.min().reindex(found.case).to_numpy()
        board = _like(leaderboard, key).set_index("attack")
        left, tried = found.adversarial.mean(), float(np.nanmean(worst))
        twice = board.adversarial.get(TWICE, np.nan)
        rest = board.drop(index=[name for name in beside if name in board.index])
        one = TOLERANCE if board.metric.iloc[0] == "dice" else max(TOLERANCE, 1 / len(found))
        rows.append({
            **dict(zip(_KEY, key, strict=True)), "eps_fraction": board.eps_fraction.iloc[0], "n_cases": len(found),
            "metric": board.metric.iloc[0], "clean": board.clean.iloc[0], "robust": left, "others": tried,
            "gap": left - tried, "holds": bool(left - tried <= one + 1e-9),
            "strongest_other": rest.adversarial.idxmin(),
            "robust_2x": twice, "change_2x": left - twice,
            "forward_passes": board.forward_passes[ENSEMBLE], "backward_passes": board.backward_passes[ENSEMBLE],
            "seconds": board.seconds[ENSEMBLE], "others_seconds": rest.seconds.sum(),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _like(table: pd.DataFrame, key: tuple[object, ...]) -> pd.DataFrame:
    """Rows of the same model, threat and budget."""
    same = np.ones(len(table), dtype=bool)
    for name, value in zip(_KEY, key, strict=True):
        column = table[name].to_numpy()
        same &= np.isclose(column.astype(float), float(str(value))) if name == "eps" else column == value
    return table[same]


def read_strength(folder: Path) -> pd.DataFrame:
    """:func:`strength_table` of a run's folder."""
    require_files(folder, ("leaderboard.csv", "cases.csv"))
    return strength_table(pd.read_csv(folder / "leaderboard.csv"), pd.read_csv(folder / "cases.csv"))
