"""Whether a leaderboard says what its scores per case say: every mean, size and worst case is computed again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from medadv.benchmarks.evaluate import NO_ATTACK, WORST_CASE
from medadv.benchmarks.leaderboard_rows import DICE_SUCCESS
from medadv.benchmarks.sources import MODEL_KEY, ROW_KEY, keys_of
from medadv.benchmarks.statistics import mean_interval

# a CSV holds every digit, so only the order of a sum may differ
ROUNDING = 1e-9
# versions of scipy may resample otherwise
_RESAMPLING = 0.01


def contradictions(frame: pd.DataFrame, cases: pd.DataFrame) -> dict[str, str]:
    """What is wrong with the rows of a leaderboard, by their key (:func:`~medadv.benchmarks.sources.keys_of`).

    Args:
        frame: the leaderboard.
        cases: a score per case and attack.

    Returns:
        A reason for each row that its cases contradict, or that is no worst case of the attacks beside it.
    """
    of_row = dict(tuple(cases.groupby(keys_of(cases, ROW_KEY), sort=False))) if len(cases) else {}
    found = {}
    for key, row in zip(keys_of(frame, ROW_KEY), frame.itertuples(index=False)):
        reason = _row(row, of_row.get(key))
        if reason:
            found[key] = reason
    for key, reason in _worst_cases(frame, of_row).items():
        found.setdefault(key, reason)
    return found


def _row(row: Any, cases: pd.DataFrame | None) -> str:
    if cases is None:
        return "cases.csv has no case of it"
    if len(cases) != row.n_cases or cases.case.duplicated().any():
        return f"n_cases is {row.n_cases}, cases.csv has {cases.case.nunique()} cases in {len(cases)} rows"
    expected = {
        "n_unscored": cases.adversarial.isna().sum(), "clean": cases.clean.mean(),
        "adversarial": cases.adversarial.mean(),
    }  # fmt: skip
    if "linf" in cases and cases.linf.notna().all():
        expected |= {"linf": cases.linf.max(), "l2_rms": cases.l2_rms.mean(), "ssim": cases.ssim.mean()}
    if row.success_rule in _RULES:
        expected["success_rate"] = _RULES[row.success_rule](cases)
    for name, value in expected.items():
        told = getattr(row, name)
        if not np.isclose(told, value, rtol=ROUNDING, atol=ROUNDING, equal_nan=True):
            return f"{name} is {told:.6g}, its cases say {value:.6g}"
    return _interval(row, cases)


def _interval(row: Any, cases: pd.DataFrame) -> str:
    patients = None if cases.patient.isna().all() else list(cases.patient)
    interval = mean_interval(cases.adversarial.to_numpy(float), patients)
    for name, value in (("ci_low", interval.low), ("ci_high", interval.high)):
        told = getattr(row, name)
        if not np.isclose(told, value, rtol=0, atol=_RESAMPLING, equal_nan=True):
            return f"{name} is {told:.4g}, resampling its cases gives {value:.4g}"
    return ""


def _of_voxels(cases: pd.DataFrame) -> float:
    return _share((cases.adversarial < DICE_SUCCESS * cases.clean)[cases.clean > 0])


def _of_images(cases: pd.DataFrame) -> float:
    return _share((cases.adversarial < 1)[cases.clean == 1])


def _share(fallen: pd.Series) -> float:
    return float(fallen.mean()) if len(fallen) else float("nan")


# of the rules that scores per case decide on, by the words of success_rule
_RULES: dict[str, Callable[[pd.DataFrame], float]] = {
    f"dice < {DICE_SUCCESS} x clean dice of the case": _of_voxels,
    "right -> wrong": _of_images,
    "all labels right -> any wrong": _of_images,
}


def _worst_cases(frame: pd.DataFrame, of_row: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """Rows of worst cases in which some case is better off than under one of the attacks of the same set."""
    found = {}
    sets = [*MODEL_KEY, "threat", "region", "eps", "unit"]
    scores = {key: cases.drop_duplicates("case").set_index("case").adversarial for key, cases in of_row.items()}
    for _, rows in frame[frame.attack != NO_ATTACK].groupby(keys_of(frame[frame.attack != NO_ATTACK], sets)):
        keys = keys_of(rows, ROW_KEY)
        for worst in keys[rows.attack == WORST_CASE]:
            for key, attack in zip(keys, rows.attack, strict=True):
                if key in scores and worst in scores and key != worst:
                    one, other = scores[worst].align(scores[key], join="inner")
                    better = one[one > other + ROUNDING]
                    if len(better):
                        found[worst] = f"case {better.index[0]!r} scores {better.iloc[0]:.4g}, under {attack} less"
    return found
