"""What the page of a site draws its tables and curves from, and what there is to say about it in words."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from medadv.benchmarks.corruptions import PREFIX
from medadv.benchmarks.evaluate import IMAGE_BLIND, NO_ATTACK, WORST_CASE
from medadv.benchmarks.leaderboard_rows import COLUMNS
from medadv.benchmarks.sources import ROW_KEY, Source, keys_of
from medadv.benchmarks.survey import reference_stays
from medadv.diagnostics import CHECKS

CLEAN, BLIND, NOISE, WORST, ATTACK, CORRUPTION = "clean", "image-blind", "noise", "worst case", "attack", "corruption"
FAILED = "failed"
# columns that the page computes beside those of the table
MADE = ("run", "kind", "budget", "lost", "above_blind")

# by the words before a "=" of a flag
FLAGS = {
    "ci-bound": "Too few patients are off the floor or the ceiling for a bootstrap: the interval is a one-sided bound.",
    "single-train-seed": "One training seed: nothing is known of how much another training of the same kind differs.",
    "failed": "It raised an error, which column error tells, and has no score; the same command tries it again.",
    "without-failed": "This worst case lacks the attack named, which failed: the true one may be lower.",
    "stale": "Other versions of the libraries than those of this run have computed it.",
    **{check.flag: f"{check.looks_at[0].upper()}{check.looks_at[1:]}. {check.advice}" for check in CHECKS.values()},
}  # fmt: skip


@dataclass(frozen=True)
class Flag:
    """A flag of the table: how many rows have it, and what it means."""

    name: str
    rows: int
    meaning: str


def flags_of(cells: Iterable[str]) -> list[Flag]:
    """The flags in cells such as ``"ci-bound;not-monotone=+0.100"``, most frequent first.

    Example:
        >>> [(flag.name, flag.rows) for flag in flags_of(["ci-bound;single-train-seed", "ci-bound"])]
        [('ci-bound', 2), ('single-train-seed', 1)]
    """
    counts = Counter(flag.partition("=")[0] for cell in cells for flag in str(cell).split(";") if flag)
    unknown = "A flag of another version of medadv; its documentation says what it means."
    return [Flag(name, rows, FLAGS.get(name, unknown)) for name, rows in counts.most_common()]


def payload(runs: Sequence[Source]) -> dict[str, Any]:
    """All rows of all runs, column by column name, as the page's script reads them."""
    frames = [_extended(run.board.frame, run.name) for run in runs]
    columns = [*MADE, *COLUMNS]
    rows = [[_plain(value) for value in row] for frame in frames for row in frame[columns].itertuples(index=False)]
    return {"columns": columns, "rows": rows, "runs": [run.name for run in runs]}


def _extended(frame: pd.DataFrame, run: str) -> pd.DataFrame:
    blind = frame[frame.model == IMAGE_BLIND].groupby("task").adversarial.first()
    of_task = frame.task.map(blind) if len(blind) else pd.Series(float("nan"), index=frame.index)
    # a constant mask is scored against a reference that stays where it is
    fair = (frame.model != IMAGE_BLIND) & ((frame.metric != "dice") | frame.threat.map(reference_stays))
    return frame.assign(
        run=run,
        kind=[_kind(row) for row in frame.itertuples()],
        budget=[budget_label(row) for row in frame.itertuples()],
        lost=frame.clean - frame.adversarial,
        above_blind=(frame.adversarial - of_task).where(fair),
    )


def _kind(row: Any) -> str:
    if row.error:
        return FAILED
    if row.model == IMAGE_BLIND:
        return BLIND
    if row.attack == NO_ATTACK:
        return CLEAN
    if row.attack == WORST_CASE:
        return WORST
    if str(row.threat).startswith(PREFIX):
        return CORRUPTION
    return NOISE if row.attack == "noise" else ATTACK


def budget_label(row: Any) -> str:
    """A budget as people write it: of a window in 255ths, else in its unit.

    Args:
        row: with ``attack, threat, eps, eps_fraction, unit``.
    """
    if row.attack == NO_ATTACK:
        return CLEAN
    if _missing(row.eps):
        return "no bound"
    unit = "" if _missing(row.unit) or str(row.unit) == "1" else f" {row.unit}"
    if row.threat == "linf" and not _missing(row.eps_fraction):
        share = f"{255 * row.eps_fraction:.3g}/255"
        return f"{share} ({row.eps:.3g}{unit})" if unit else share
    return f"severity {row.eps:g}" if unit == " severity" else f"{row.eps:.3g}{unit}"


def absences(run: Source) -> list[str]:
    """What a run planned and its table does not hold, and what it could not score."""
    frame, found = run.board.frame, list(run.notes)
    for task in run.board.meta.get("suite", {}).get("tasks", ()):
        rows = frame[frame.task == task["name"]]
        if rows.empty:
            found.append(f"{run.name}: task {task['name']!r} was planned and is not in the table.")
            continue
        for model in task.get("models", ()):
            trainings = ["checkpoint"] if model.get("checkpoint") else list(task.get("trainings", ()))
            for training in trainings:
                if rows[(rows.model == model["name"]) & (rows.training == training)].empty:
                    what = f"model {model['name']!r} trained by {training!r}"
                    found.append(f"{run.name}: {what} was planned for task {task['name']!r} and is not in the table.")
    for row in run.board.failures.itertuples():
        found.append(f"{run.name}: {row.attack} on {row.model}/{row.training} of task {row.task!r} failed: {row.error}")
    frame = frame[frame.error == ""]
    for (task, count, cases), _ in frame[frame.n_unscored > 0].groupby(["task", "n_unscored", "n_cases"], sort=False):
        found.append(
            f"{run.name}: {count} of {cases} cases of task {task!r} have no score (nothing to find in their "
            "reference); they are in no mean, and endpoints.csv tells what was invented in them."
        )
    empty = int((frame.adversarial.isna()).sum())
    if empty:
        found.append(f"{run.name}: {empty} rows have no score at all; they are shown as 'not scored'.")
    return found


def repetitions(runs: Sequence[Source]) -> list[str]:
    """What stands on the page twice: rows of one run that another has as well, such as a merged one."""
    known: dict[str, str] = {}
    found = []
    for run in runs:
        keys = keys_of(run.board.frame, [*ROW_KEY, "adversarial"])
        origins = Counter(known[key] for key in keys if key in known)
        found += [
            f"{run.name}: {count} of its rows stand in {origin!r} too, and twice on this page; leave one of them out."
            for origin, count in origins.items()
        ]
        known |= {key: run.name for key in keys if key not in known}
    return found


def _plain(value: Any) -> Any:
    """A value as JSON has it; what is missing or no number is null."""
    if _missing(value):
        return None
    if hasattr(value, "item"):
        value = value.item()
    return value if not isinstance(value, float) or math.isfinite(value) else None


def _missing(value: Any) -> bool:
    return value is None or bool(pd.isna(value))


def as_json(data: Any) -> str:
    """JSON that can stand in a script element of a page: no character of it ends the element or begins another."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
