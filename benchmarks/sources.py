"""Results as they arrive from several places: a run's folder or a leaderboard alone, checked before they are merged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from medadv.benchmarks.figures import Gallery
from medadv.benchmarks.galleries import read_galleries
from medadv.benchmarks.leaderboard import Leaderboard
from medadv.benchmarks.leaderboard_rows import COLUMNS, SCHEMA_VERSION
from medadv.benchmarks.store import read_run, read_table

MODEL_KEY = ["suite", "dataset", "task", "model", "training", "train_seed"]
ROW_KEY = [*MODEL_KEY, "attack", "threat", "region", "eps", "unit"]
# what no two runs of the same suite agree in
COST = ("seconds",)
_WORDS = (
    "suite", "dataset", "task", "model", "training", "attack", "access", "surrogate", "threat", "region", "unit",
    "keep", "metric", "empty_policy", "ci_unit", "success_rule", "reused", "flags", "error",
)  # fmt: skip
_NUMBERS = tuple(name for name in COLUMNS if name not in (*_WORDS, "targeted"))


@dataclass
class Source:
    """Results of one place.

    Attributes:
        name: how the others tell it apart.
        board: its tables; of a leaderboard alone the scores per case are empty.
        galleries: its pictures.
        notes: what was done to it on reading.
    """

    name: str
    board: Leaderboard
    galleries: list[Gallery] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_sources(paths: Sequence[Path]) -> list[Source]:
    """Reads and checks folders of runs and CSV files of leaderboards.

    Raises:
        ValueError: nothing there, another schema, or a table that is no leaderboard; the message says what to do.
    """
    return [read_source(Path(path), name) for path, name in zip(paths, distinct_names(paths), strict=True)]


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """A short name for each path: its last part, with as many parents as it takes, else a number.

    Example:
        >>> from pathlib import Path
        >>> distinct_names([Path("a/quick"), Path("b/quick"), Path("c/real.csv")])
        ['a/quick', 'b/quick', 'real']
    """
    parts = [Path(path).resolve().with_suffix("").parts if Path(path).suffix == ".csv" else Path(path).resolve().parts
             for path in paths]  # fmt: skip
    names = [part[-1] for part in parts]
    for depth in range(2, max(map(len, parts), default=0) + 1):
        twice = {name for name in names if names.count(name) > 1}
        names = ["/".join(p[-depth:]) if name in twice else name for p, name in zip(parts, names, strict=True)]
    return [f"{name} ({names[:i].count(name) + 1})" if name in names[:i] else name for i, name in enumerate(names)]


def read_source(path: Path, name: str) -> Source:
    """Reads and checks one of them; see :func:`read_sources`."""
    if path.is_dir():
        source = Source(name, _read_folder(path), read_galleries(path))
        check_version(source.board.meta.get("schema_version"), name)
        _check_meta(source.board.meta, name)
    elif path.is_file():
        source = Source(name, Leaderboard(frame=_read_csv(path)))
    else:
        raise ValueError(f"{str(path)!r} does not exist; give folders of finished runs, or CSV files of leaderboards.")
    before = len(source.board.frame)
    source.board.frame = checked(source.board.frame, name)
    if twice := before - len(source.board.frame):
        source.notes.append(f"{name!r} holds {twice} {'row' if twice == 1 else 'rows'} twice; once is enough.")
    return source


def _read_folder(path: Path) -> Leaderboard:
    try:
        return read_run(path)
    except (json.JSONDecodeError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"a table of {str(path)!r} is damaged ({reason}); give the folder as it was written."
        ) from None


def _check_meta(meta: dict[str, Any], name: str) -> None:
    """Refuses a provenance that is not built as a run's."""
    for part in ("data", "weights", "training", "versions", "hardware", "suite"):
        inner = list(meta[part].values()) if isinstance(meta.get(part), dict) else []
        if not isinstance(meta.get(part, {}), dict) or (part == "data" and not all(isinstance(d, dict) for d in inner)):
            raise ValueError(f"{part!r} in leaderboard.meta.json of {name!r} is no mapping; give it as it was written.")


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        return read_table(path)
    except (ValueError, UnicodeDecodeError) as error:  # pandas' own errors are ValueErrors
        reason = str(error).splitlines()[0]
        raise ValueError(f"{str(path)!r} is no CSV of a leaderboard ({reason}); give a leaderboard.csv.") from None


def check_version(version: Any, name: str) -> None:
    """Refuses tables of another schema.

    Raises:
        ValueError: of an earlier or later version.
    """
    if version != SCHEMA_VERSION:
        told = "no schema version" if version is None else f"schema version {version}"
        raise ValueError(
            f"{name!r} has {told} and this medadv reads version {SCHEMA_VERSION}; run its suite anew with this "
            "version, or merge it with the version that wrote it."
        )


def checked(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """A leaderboard with the columns, and the kinds of values, of :data:`~medadv.benchmarks.leaderboard_rows.COLUMNS`.

    Raises:
        ValueError: a column that is missing, unknown or of the wrong kind, or rows that contradict each other.
    """
    missing = [column for column in COLUMNS if column not in frame]
    unknown = [str(column) for column in frame if column not in COLUMNS]
    if missing or unknown:
        told = [f"lacks the columns {', '.join(missing)}"] * bool(missing)
        told += [f"has the unknown columns {', '.join(unknown)}"] * bool(unknown)
        raise ValueError(
            f"{name!r} {' and '.join(told)}; give a leaderboard of schema version {SCHEMA_VERSION}, as it was written."
        )
    frame = frame[list(COLUMNS)].copy()
    for column in _NUMBERS:
        if len(frame) and not pd.api.types.is_numeric_dtype(frame[column]):
            if not frame[column].isna().all():
                wrong = frame[column][pd.to_numeric(frame[column], errors="coerce").isna() & frame[column].notna()]
                example = wrong.iloc[0] if len(wrong) else frame[column].iloc[0]
                raise ValueError(f"column {column!r} of {name!r} holds {str(example)!r}; it is a column of numbers.")
            frame[column] = pd.to_numeric(frame[column])
    for column in ("task", "model", "training", "attack", "threat"):
        if frame[column].isna().any():
            raise ValueError(f"column {column!r} of {name!r} has empty cells; give the leaderboard as it was written.")
    return _without_doubles(frame, name)


def _without_doubles(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    same = keys_of(frame, [column for column in COLUMNS if column not in COST]).duplicated()
    frame = frame[~same].reset_index(drop=True)
    keys = keys_of(frame, ROW_KEY)
    if keys.duplicated().any():
        row = frame[keys.duplicated()].iloc[0]
        raise ValueError(
            f"{name!r} itself holds two rows with different numbers of {told(row)}; repair it, it can't be merged."
        )
    return frame


def keys_of(table: pd.DataFrame, columns: Sequence[str]) -> pd.Series:
    """One string a row that is equal where the columns are: 0 and 0.0, and what is missing, are each one value."""
    if table.empty:
        return pd.Series([], dtype=str)
    parts = [
        table[name].astype(float).map(repr) if pd.api.types.is_numeric_dtype(table[name])
        else table[name].fillna("nan").astype(str)
        for name in columns
    ]  # fmt: skip
    return pd.Series(map("\x1f".join, zip(*parts, strict=True)), index=table.index)


def told(row: pd.Series) -> str:
    """A row in words."""
    seed = "" if pd.isna(row.train_seed) else f", seed {row.train_seed:g}"
    budget = "" if pd.isna(row.eps) or not row.eps else f" at {row.eps:.4g}"
    return f"{row.task} {row.model} {row.training}{seed}, {row.attack}{budget}"
