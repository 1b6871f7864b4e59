"""Leaderboards of several runs beside each other: what both measured is compared case by case, the rest is listed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pandas as pd

from medadv.benchmarks.evaluate import IMAGE_BLIND, NO_ATTACK, WORST_CASE
from medadv.benchmarks.leaderboard_rows import COLUMNS as BOARD_COLUMNS
from medadv.benchmarks.leaderboard_rows import SCHEMA_VERSION
from medadv.benchmarks.rankings import MODEL, SAME, Scores, compared, corrected, faced_by, obstacle, scores_of
from medadv.benchmarks.store import read_table
from medadv.files import write_text

COLUMNS = (
    "a", "b", *SAME, "attack", *MODEL, "against_model", "against_training", "n_seeds", "n_cases", "n_unscored", "mean",
    "against_mean", "difference", "ci_low", "ci_high", "ci_unit", "p", "p_holm", "family", "significant", "flags",
    "not_compared",
)  # fmt: skip
SHORT = (
    "task", "attack", "threat", "region", "eps", *MODEL, "n_seeds", "n_cases", "n_unscored", "mean", "against_mean",
    "difference", "ci_low", "ci_high", "p_holm", "flags",
)  # fmt: skip
UNVERIFIED = "data-unverified"
_CASE_COLUMNS = (*SAME, *MODEL, "train_seed", "attack", "case", "patient", "adversarial")
_BASE = [*SAME, "attack"]
_ROUNDING = 1e-6
_KINDS = ("metric", "empty_policy")


@dataclass(frozen=True)
class Board:
    """A leaderboard as it is read for a comparison.

    Attributes:
        name: how the comparison calls it.
        frame, cases: as in :class:`~medadv.benchmarks.leaderboard.Leaderboard`.
        meta: of ``leaderboard.meta.json``; empty where there is none.
    """

    name: str
    frame: pd.DataFrame
    cases: pd.DataFrame
    meta: dict[str, Any]

    def sha256(self, task: str) -> str | None:
        """Hash of the data of a task, where it is known."""
        return (self.meta.get("data", {}).get(task) or {}).get("sha256")

    def kinds(self) -> dict[tuple[Any, ...], set[tuple[Any, ...]]]:
        """What the scores of each data set and task are."""
        groups = self.frame.groupby(["dataset", "task"], sort=False)
        return {key: set(part[list(_KINDS)].itertuples(index=False, name=None)) for key, part in groups}

    def scores(self) -> dict[tuple[Any, ...], Scores]:
        """By what was done (:data:`SAME` and the attack), model and training."""
        rows = self.frame.groupby([*SAME, *MODEL], sort=False, dropna=False)
        attacks: dict[Any, pd.DataFrame] = dict(iter(rows))
        found = {}
        for key, part in self.cases.groupby([*_BASE, *MODEL], sort=False, dropna=False):
            same, attack, (model, training) = key[: len(SAME)], key[len(SAME)], key[len(_BASE) :]
            name = (str(model), str(training))
            around = attacks.get((*same, *name), self.frame.iloc[:0])
            faced = faced_by(around if attack == WORST_CASE else around[around.attack == attack])
            found[key] = scores_of(part, name, faced)
        return found


def read_board(path: str | Path) -> Board:
    """Reads a leaderboard with its ``cases.csv``, and ``leaderboard.meta.json`` where there is one.

    Args:
        path: folder of a run, or a CSV file of a leaderboard. Beside ``mine.csv`` are ``mine.cases.csv`` (else
            ``cases.csv``) and ``mine.meta.json`` (else ``leaderboard.meta.json``).

    Raises:
        ValueError: a file is missing, no leaderboard, or of another schema.
    """
    given = Path(path)
    table = given / "leaderboard.csv" if given.is_dir() else given
    shared = {"cases.csv": "cases.csv", "meta.json": "leaderboard.meta.json"}
    files = {name: _beside(table, name, default) for name, default in shared.items()}
    for file in (table, files["cases.csv"]):
        if not file.is_file():
            raise ValueError(
                f"{str(file)!r} is not there; give the folder of a run, or a leaderboard with cases.csv beside it."
            )
    frame, cases = _read(table, BOARD_COLUMNS), _read(files["cases.csv"], _CASE_COLUMNS)
    meta = json.loads(files["meta.json"].read_text(encoding="utf-8")) if files["meta.json"].is_file() else {}
    version = meta.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{str(path)!r} is of schema {version}, and only schema {SCHEMA_VERSION} can be compared; run the suite "
            "again with this version of medadv."
        )
    return Board(str(path), frame, _belonging(frame, cases, files["cases.csv"]), meta)


def _beside(table: Path, name: str, default: str) -> Path:
    """A file of a leaderboard: ``mine.cases.csv`` of ``mine.csv`` where there is one, else that of the folder."""
    own = table.with_suffix(f".{name}")
    return own if own.is_file() else table.parent / default


def _belonging(frame: pd.DataFrame, cases: pd.DataFrame, file: Path) -> pd.DataFrame:
    """The cases of the rows of a leaderboard, once it is sure that they are of this one."""
    keys = [*_BASE, *MODEL, "train_seed"]
    frame = frame[frame.error == ""]  # what has failed has no cases
    means = cases.groupby(keys, dropna=False).agg(told=("adversarial", "mean")).reset_index()
    both = frame.merge(means, on=keys, how="left", indicator="found")
    wrong = (both.found != "both") | ((both.adversarial - both.told).abs() > _ROUNDING)
    if wrong.any():
        row = both[wrong].iloc[0]
        raise ValueError(
            f"{str(file)!r} does not hold the scores of {int(wrong.sum())} rows of its leaderboard, such as "
            f"{row.model}/{row.training} under {row.attack!r}; give both files of the same run."
        )
    return cases.merge(frame[keys].drop_duplicates(), on=keys)


def _read(path: Path, needed: Sequence[str]) -> pd.DataFrame:
    try:
        table = read_table(path)
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is no table ({error}); give a leaderboard that medadv wrote.") from None
    missing = [name for name in needed if name not in table]
    if missing:
        raise ValueError(
            f"{str(path)!r} has no column {', '.join(missing)}, so it is of another schema than {SCHEMA_VERSION}; give "
            "a leaderboard that this version of medadv wrote."
        )
    return table


def compare_boards(boards: Sequence[Board], *, models: str | None = None) -> pd.DataFrame:
    """Compares leaderboards two by two, each earlier one minus each later one.

    Two rows are compared where data set (and its hash), cases, threat set, region, budget and attack are the same, a
    worst case where all attacks behind it are. P-values are Holm-corrected over all comparisons of the result.

    Args:
        boards: two or more.
        models: ``"same"``: a model and training with that of the same name; ``"all"``: all of the one with all of the
            other, clean and by the worst case only; None: the same where two boards share any, else all.

    Returns:
        Rows of :data:`COLUMNS`: first the comparisons, then the rows that have none, with the reason in
        ``not_compared`` (image-blind rows aside).

    Raises:
        ValueError: fewer than two boards, scores of another metric, or nothing that can be compared.
    """
    if models not in (None, "same", "all"):
        raise ValueError(f"models={models!r} is unknown; choose 'same' or 'all'.")
    if len(boards) < 2:
        raise ValueError("one leaderboard has nothing to be compared with; give two or more.")
    rows: list[dict[str, Any]] = []
    alone: list[dict[str, Any]] = []
    for a, b in combinations(boards, 2):
        _check_kinds(a, b)
        found, left = _two(a, b, models)
        rows += found
        alone += left
    if not rows:
        reasons = pd.Series([row["not_compared"] for row in alone]).value_counts()
        told = "; ".join(f"{reason} ({count} rows)" for reason, count in reasons.items()) or "no rows"
        raise ValueError(
            f"nothing can be compared: {told}; give runs of the same data, cases, attacks, threat sets and budgets."
        )
    table = pd.DataFrame([*corrected(rows), *alone], columns=list(COLUMNS))
    return table.astype(dict.fromkeys(("n_seeds", "n_cases", "n_unscored", "family"), "Int64"))


def _check_kinds(a: Board, b: Board) -> None:
    mine, theirs = a.kinds(), b.kinds()
    for key in mine:
        if key in theirs and mine[key] != theirs[key]:
            words = [
                " and ".join("/".join(map(str, kind)) for kind in sorted(kinds)) for kinds in (mine[key], theirs[key])
            ]
            raise ValueError(
                f"task {key[1]!r} is scored by {words[0]} in {a.name} and by {words[1]} in {b.name}; only scores of "
                "one metric and policy can be compared."
            )


def _two(a: Board, b: Board, models: str | None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    mine, theirs = (
        {key: scores for key, scores in board.scores().items() if key[-2] != IMAGE_BLIND} for board in (a, b)
    )
    shared = {_named(key) for key in mine} & {_named(key) for key in theirs}
    same = models == "same" or (models is None and bool(shared))
    rows: list[dict[str, Any]] = []
    reasons: dict[tuple[str, Any], str] = {}
    met: set[tuple[str, Any]] = set()
    for one, other in _couples(mine, theirs, same):
        reason = _other_data(a, b, one[1]) or obstacle(mine[one], theirs[other])
        for side, key in ((a.name, one), (b.name, other)):
            if reason:
                reasons.setdefault((side, key), reason)
            else:
                met.add((side, key))
        if not reason:
            rows.append(_row(a, b, one, other, compared(mine[one], theirs[other])))
    alone = []
    for board, beside, table in ((a, b, mine), (b, a, theirs)):
        for key in table:
            if (board.name, key) not in met and (same or key[len(SAME)] in (NO_ATTACK, WORST_CASE)):
                reason = reasons.get((board.name, key), f"only in {board.name}")
                alone.append({**_keys(key), "a": board.name, "b": beside.name, "not_compared": reason})
    return rows, alone


def _named(key: tuple[Any, ...]) -> tuple[Any, ...]:
    """Data set, task, model and training."""
    return (*key[:2], *key[-2:])


def _couples(mine: dict[Any, Scores], theirs: dict[Any, Scores], same: bool) -> list[tuple[Any, Any]]:
    if same:
        return [(key, key) for key in mine if key in theirs]
    count = len(_BASE)
    return [
        (one, other) for one, other in product(mine, theirs)
        if one[:count] == other[:count] and one[len(SAME)] in (NO_ATTACK, WORST_CASE)
    ]  # fmt: skip


def _other_data(a: Board, b: Board, task: str) -> str:
    mine, theirs = a.sha256(task), b.sha256(task)
    return f"other data (sha256 {mine[:8]} and {theirs[:8]})" if mine and theirs and mine != theirs else ""


def _keys(key: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip([*_BASE, *MODEL], key))


def _row(a: Board, b: Board, one: Any, other: Any, found: dict[str, Any]) -> dict[str, Any]:
    known = a.sha256(one[1]) and b.sha256(one[1])
    flags = ";".join(flag for flag in (found["flags"], "" if known else UNVERIFIED) if flag)
    against = dict(zip(("against_model", "against_training"), other[-2:]))
    return {"a": a.name, "b": b.name, **_keys(one), **against, **found, "flags": flags, "not_compared": ""}


def described(table: pd.DataFrame) -> str:
    """A comparison as text: the pairs of leaderboards, and how many rows of each were not compared, and why."""
    text = []
    fair = table[table.not_compared == ""]
    for (a, b), part in fair.groupby(["a", "b"], sort=False):
        columns = list(SHORT)
        if (part.model != part.against_model).any() or (part.training != part.against_training).any():
            at = columns.index("n_seeds")
            columns[at:at] = ["against_model", "against_training"]
        text.append(f"{a} minus {b}, the same cases in pairs, 95 % interval, Holm-corrected p of {len(fair)}:")
        text.append(part[columns].fillna({"flags": ""}).to_string(index=False))
    alone = table[table.not_compared != ""]
    if len(alone):
        text.append(f"\nnot compared: {len(alone)} rows")
        for (reason, task), part in alone.groupby(["not_compared", "task"], sort=False):
            names = ", ".join(dict.fromkeys(f"{row.model}/{row.training}" for row in part.itertuples()))
            attacks = ", ".join(dict.fromkeys(part.attack))
            text.append(f"  {len(part)} of {task}: {reason}: {names}; {attacks}")
    return "\n".join(text)


def write_comparison(table: pd.DataFrame, path: Path) -> None:
    """Writes a comparison, rows that were not compared included, as CSV."""
    write_text(path, table.to_csv(index=False))
