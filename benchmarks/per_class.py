"""Each class on its own: means with intervals, and the cases counted that no mean can show."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from medadv.benchmarks.endpoints import ALL_CASES, CLASS_DICE
from medadv.benchmarks.statistics import amount_interval, mean_interval

KEYS = ("dataset", "task", "model", "training", "train_seed", "attack", "threat", "region", "eps", "unit")
COLUMNS = (
    *KEYS, "class", "measure", "n_cases", "n_absent", "n_unscored", "n_infinite", "clean", "adversarial", "ci_low",
    "ci_high", "ci_unit", "flags",
)  # fmt: skip
RECALL, TRUE_NEGATIVES = "recall", "true_negative_rate"
_SHARES = (CLASS_DICE, "lesion_sensitivity", "specificity", RECALL, TRUE_NEGATIVES)


def per_class(endpoints: pd.DataFrame, cases: pd.DataFrame) -> pd.DataFrame:
    """Endpoints of each class, model and attack.

    Of images it adds, at the model's own decision, ``recall`` (of the cases that have the class) and
    ``true_negative_rate`` (of those that have not). Measures over all cases at once, such as the AUC, have no interval.

    Args:
        endpoints: rows of ``endpoints.csv``.
        cases: rows of ``cases.csv``, for the patients.

    Returns:
        Rows of :data:`COLUMNS`. ``n_absent`` cases have no such value, as the class is not in their reference (or, of
        specificity and false positives, is in it); ``n_unscored`` have none (NaN) and ``n_infinite`` an infinite one
        under attack. The means are over the rest; the interval is of ``adversarial``, resampling patients.
    """
    of_class = endpoints[endpoints.endpoint.str.contains(":")] if len(endpoints) else endpoints
    if not len(of_class):
        return pd.DataFrame(columns=list(COLUMNS))
    measure, name = (of_class.endpoint.str.partition(":")[part] for part in (0, 2))
    table = of_class.assign(measure=measure, **{"class": name})
    table = pd.concat([table[table.measure != "score"], *_decided(table[table.measure == "score"])], ignore_index=True)
    totals = cases.groupby(list(KEYS), dropna=False).case.nunique()
    keys = ["dataset", "task", "case"]
    table = table.merge(cases.drop_duplicates(keys)[[*keys, "patient"]], on=keys, how="left")
    rows = []
    for key, group in table.groupby([*KEYS, "class", "measure"], sort=False, dropna=False):
        total = int(totals.get(key[: len(KEYS)], len(group)))
        rows.append({**dict(zip([*KEYS, "class", "measure"], key)), **_row(group, key[-1], total)})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _decided(scores: pd.DataFrame) -> list[pd.DataFrame]:
    """Whether each image was told to have the class, right or wrong, from scores that are 0 at the decision."""
    has = scores.reference == 1
    told = {side: (scores[side] > 0).where(scores[side].notna()).astype(float) for side in ("clean", "adversarial")}
    wrong = {side: 1 - values for side, values in told.items()}
    return [
        scores.assign(measure=RECALL, **told)[has],
        scores.assign(measure=TRUE_NEGATIVES, **wrong)[~has],
    ]


def _row(group: pd.DataFrame, measure: str, total: int) -> dict[str, Any]:
    cohort = (group.case == ALL_CASES).all()
    after = group.adversarial.to_numpy(float)
    finite = np.isfinite(after)
    row: dict[str, Any] = {
        "n_cases": total, "n_absent": 0 if cohort else total - len(group), "n_unscored": int(np.isnan(after).sum()),
        "n_infinite": int(np.isinf(after).sum()), "clean": _mean(group.clean.to_numpy(float)),
        "adversarial": _mean(after), "ci_low": np.nan, "ci_high": np.nan, "ci_unit": "", "flags": "",
    }  # fmt: skip
    if cohort or not finite.any():
        return row
    owners = group.patient.where(group.patient.notna(), "").astype(str)
    patients = None if (owners == "").any() else owners[finite].tolist()
    interval = (mean_interval if measure in _SHARES else amount_interval)(after[finite], patients)
    flag = "ci-bound" if interval.bound else "ci-undefined" if np.isnan(interval.low) else ""
    return {**row, "ci_low": interval.low, "ci_high": interval.high, "ci_unit": interval.unit, "flags": flag}


def _mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else np.nan
