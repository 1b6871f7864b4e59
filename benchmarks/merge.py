"""Leaderboards of several places as one: schema checked, versions compared, duplicates explained, nothing silent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from medadv.benchmarks.figures import Gallery
from medadv.benchmarks.galleries import write_galleries
from medadv.benchmarks.leaderboard import Leaderboard
from medadv.benchmarks.leaderboard_rows import COLUMNS
from medadv.benchmarks.merged_meta import differences, merged_meta, meta_without, renamed_meta
from medadv.benchmarks.report import write_report
from medadv.benchmarks.sources import COST, MODEL_KEY, ROW_KEY, Source, keys_of, read_sources, told
from medadv.benchmarks.store import prepare_folder, write_tables
from medadv.files import write_text

Keep = Literal["first", "last", "all"]
_TABLES = tuple(part.name for part in fields(Leaderboard) if part.name != "meta")
_TOLD = 3
_OF_CASES = ("case", "patient", "clean", "adversarial", "linf", "l2_rms", "ssim", "worst_attack")
_OF_ENDPOINTS = ("case", "endpoint", "reference", "clean", "adversarial")
_HOW = "give --keep first or --keep last to take one of the two, or --keep all to have both under two names"


@dataclass
class Merged:
    """What came of a merge.

    Attributes:
        board: all tables; ``meta["merged"]`` holds the provenance of each source, ``meta["notes"]`` the notes.
        galleries: all pictures.
        notes: a sentence for each difference, duplicate and choice.
    """

    board: Leaderboard
    galleries: list[Gallery] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def merge(paths: Sequence[str | Path], *, keep: Keep | None = None) -> Merged:
    """Merges runs and leaderboards.

    A row that two sources have with the same numbers stands once. Of a network that two sources have with different
    numbers, and of a task that is of other data or other cases, all rows are taken from one source (a worst case
    belongs to the attacks beside it), or both stand there under two names.

    Args:
        paths: folders of finished runs, and CSV files of leaderboards (these have no scores per case).
        keep: what of contradicting sources is taken: ``"first"`` or ``"last"`` in the order given, or ``"all"``: the
            later one under another name. None: they are refused.

    Raises:
        ValueError: fewer than two sources, another schema, a table that is no leaderboard, or contradicting sources
            without ``keep``.
    """
    if len(paths) < 2:
        raise ValueError(f"{len(paths)} source to merge; give at least two runs or leaderboards.")
    sources = read_sources([Path(path) for path in paths])
    notes = [*(note for source in sources for note in source.notes), *differences(sources)]
    sources = _settle_tasks(sources, keep, notes)
    sources = _settle_networks(sources, keep, notes)
    tables = _joined(sources, notes)
    board = Leaderboard(**tables, meta=merged_meta(sources, notes, keep))
    galleries = [gallery for source in sources for gallery in source.galleries]
    distinct = list({(g.section, g.title, g.picture, g.note): g for g in galleries}.values())
    return Merged(board, distinct, notes)


def write_merged(merged: Merged, out: Path) -> Path:
    """Writes a folder that holds what a run's folder does, but for weights and images; ``merge.txt`` has the notes.

    Raises:
        ValueError: a folder that holds results already.
    """
    if (out / "leaderboard.csv").exists():
        raise ValueError(f"{str(out)!r} holds results already; give another folder with --out.")
    folder = prepare_folder(out)
    write_tables(merged.board, folder)
    write_galleries(merged.galleries, folder)
    write_text(folder / "merge.txt", "".join(f"{note}\n" for note in merged.notes))
    write_report(merged.board, merged.galleries, folder / "report.html")
    return folder


def _settle_tasks(sources: list[Source], keep: Keep | None, notes: list[str]) -> list[Source]:
    """Sources whose tasks of one name are of the same data and cases."""
    settled: list[Source] = []
    for source in sources:
        for task in dict.fromkeys(source.board.frame.task):
            for earlier in list(settled):
                if task not in set(earlier.board.frame.task):
                    continue
                reason = _another_task(earlier.board, source.board, task)
                if not reason:
                    continue
                what = f"task {task!r} of {source.name!r} {reason} than that of {earlier.name!r}"
                if keep is None:
                    raise ValueError(f"{what}, so their scores can't stand in one table; {_HOW}.")
                if keep == "first":
                    source = _without(source, ["task"], {task})
                elif keep == "last":
                    settled[settled.index(earlier)] = _without(earlier, ["task"], {task})
                else:
                    source = _renamed(source, ["task"], {task}, "task")
                notes.append(f"{what}: {_choice(keep, earlier.name, source.name)}.")
                if keep != "last":
                    break
        settled.append(source)
    return settled


def _another_task(a: Leaderboard, b: Leaderboard, task: str) -> str:
    """Why two tasks of one name are not the same; empty if they are, as far as it is known."""
    first, second = (board.meta.get("data", {}).get(task, {}).get("sha256") for board in (a, b))
    if first and second and first != second:
        return f"is of other data (sha256 {second[:8]}, not {first[:8]})"
    for column in ("dataset", "metric", "n_cases", "empty_policy"):
        mine, other = (sorted(set(board.frame[board.frame.task == task][column].dropna())) for board in (a, b))
        if mine != other:
            return f"has another {column} ({', '.join(map(str, other))}, not {', '.join(map(str, mine))})"
    return ""


def _settle_networks(sources: list[Source], keep: Keep | None, notes: list[str]) -> list[Source]:
    """Sources whose networks of one name don't contradict each other."""
    settled: list[Source] = []
    for source in sources:
        for earlier in list(settled):
            for network, what in _contradictions(earlier, source):
                if keep is None:
                    raise ValueError(f"{what}; {_HOW}.")
                if keep == "first":
                    source = _without(source, MODEL_KEY, {network})
                elif keep == "last":
                    place = next(i for i, known in enumerate(settled) if known.name == earlier.name)
                    settled[place] = _without(settled[place], MODEL_KEY, {network})
                else:
                    source = _renamed(source, MODEL_KEY, {network}, "model")
                notes.append(f"{what}: {_choice(keep, earlier.name, source.name)}.")
        settled.append(source)
    return settled


def _contradictions(a: Source, b: Source) -> list[tuple[str, str]]:
    """Key of each network of both sources with rows that differ, and what differs."""
    found = []
    left, right = (source.board.frame.set_index(keys_of(source.board.frame, ROW_KEY)) for source in (a, b))
    shared = left.index.intersection(right.index)
    left, right = left.loc[shared], right.loc[shared]
    compared = [column for column in left.columns if column not in COST]
    unlike = pd.DataFrame({name: keys_of(left, [name]) != keys_of(right, [name]) for name in compared})
    hit = unlike.any(axis=1).to_numpy(bool)
    for network, rows in left[hit].groupby(keys_of(left[hit], MODEL_KEY), sort=False):
        first, twins = rows.iloc[0], right.loc[rows.index]
        column = unlike.columns[unlike.loc[rows.index[0]].to_numpy(bool)][0]
        most = (rows.adversarial - twins.adversarial).abs().max()
        found.append((str(network), (
            f"{a.name!r} and {b.name!r} differ in {len(rows)} {'row' if len(rows) == 1 else 'rows'} of one network, "
            f"such as {told(first)}: {column} {first[column]} and {twins[column].iloc[0]} (largest difference of "
            f"'adversarial' {most:.3g})"
        )))  # fmt: skip
    return found


def _choice(keep: Keep, first: str, last: str) -> str:
    return {
        "first": f"those of {first!r} were kept",
        "last": f"those of {last!r} were kept",
        "all": f"both were kept, those of {last!r} marked '@ {last}'",
    }[keep]


def _without(source: Source, columns: list[str], keys: set[str]) -> Source:
    """A source without the rows, and the pictures, of some tasks or networks."""
    frame = source.board.frame
    gone = frame[keys_of(frame, columns).isin(keys)]
    labels = set(_labels(gone))
    whole_tasks = gone if columns == ["task"] else None
    board = _tables(source.board, lambda table: table[~keys_of(table, columns).isin(keys)])
    board.meta = meta_without(board.meta, labels, set() if whole_tasks is None else keys)
    return replace(
        source, board=board, galleries=[g for g in source.galleries if not _is_of(g.title, labels, whole_tasks)]
    )


def _renamed(source: Source, columns: list[str], keys: set[str], column: str) -> Source:
    """A source with its name added to the task or model of some rows, in provenance and pictures too."""
    frame = source.board.frame
    old = frame[keys_of(frame, columns).isin(keys)]
    new = old.assign(**{column: old[column] + f" @ {source.name}"})

    def rename(table: pd.DataFrame) -> pd.DataFrame:
        hit = keys_of(table, columns).isin(keys)
        return table.assign(**{column: table[column].where(~hit, table[column] + f" @ {source.name}")})

    names = dict(zip(_labels(old), _labels(new), strict=True))
    tasks = dict(zip(old.task, new.task, strict=True)) if column == "task" else {}
    board = _tables(source.board, rename)
    board.meta = renamed_meta(board.meta, names, tasks)
    galleries = [
        replace(g, figure=None, drawn=g.picture, title=names.get(label, label) + g.title[len(label):])
        if (label := g.title.partition(",")[0]) in names else g
        for g in source.galleries
    ]  # fmt: skip
    return replace(source, board=board, galleries=galleries)


def _labels(frame: pd.DataFrame) -> list[str]:
    """How provenance and pictures call the network of each row."""
    seeds = ["None" if pd.isna(seed) else f"{seed:g}" for seed in frame.train_seed]
    return [f"{t}-{m}-{r}-{s}" for t, m, r, s in zip(frame.task, frame.model, frame.training, seeds, strict=True)]


def _is_of(title: str, labels: set[str], of_tasks: pd.DataFrame | None) -> bool:
    """Whether a picture is of one of some networks, or shows the trainings of a task side by side."""
    label = title.partition(",")[0]
    if label in labels or of_tasks is None:
        return label in labels
    return any(label.startswith(f"{task}-{model}-") for task, model in set(zip(of_tasks.task, of_tasks.model)))


def _tables(board: Leaderboard, change: Any) -> Leaderboard:
    """A board with each of its tables changed; what is empty has nothing to change."""
    changed = {name: change(table) if len(table := getattr(board, name)) else table for name in _TABLES}
    return replace(board, **{name: table.reset_index(drop=True) for name, table in changed.items()})


def _joined(sources: list[Source], notes: list[str]) -> dict[str, Any]:
    """All tables below each other; rows that an earlier source has as well stand once."""
    kept: dict[str, list[pd.DataFrame]] = {name: [] for name in _TABLES}
    origin: dict[str, str] = {}
    detailed: list[pd.DataFrame] = []  # rows whose scores per case are there already
    for source in sources:
        frame = source.board.frame
        keys = keys_of(frame, ROW_KEY)
        twice = frame[keys.isin(set(origin))]
        if len(twice):
            names = dict.fromkeys(f"{r.task} {r.model} {r.training}" for r in twice.itertuples())
            shown = ", ".join(list(names)[:_TOLD]) + (f" and {len(names) - _TOLD} more" if len(names) > _TOLD else "")
            others = ", ".join(repr(name) for name in dict.fromkeys(origin[key] for key in keys if key in origin))
            notes.append(f"{len(twice)} rows of {source.name!r} are those of {others} and stand once: {shown}.")
        kept["frame"].append(frame[~keys.isin(set(origin))])
        for name in kept.keys() - {"frame"}:
            kept[name].append(_not_in(getattr(source.board, name), detailed))
        detailed.append(source.board.cases)
        origin |= {key: source.name for key in keys if key not in origin}
    return {name: _stacked(tables, name) for name, tables in kept.items()}


def _not_in(table: pd.DataFrame, others: list[pd.DataFrame]) -> pd.DataFrame:
    """Rows of a table whose row of the leaderboard, or whose network where it names no attack, is in no other table."""
    columns = [column for column in ROW_KEY if column in table]
    for other in others:
        if len(table) and len(other):
            table = table[~keys_of(table, columns).isin(set(keys_of(other, columns)))]
    return table


def _stacked(tables: list[pd.DataFrame], name: str) -> pd.DataFrame:
    filled = [table for table in tables if len(table)]
    if filled:
        return pd.concat(filled, ignore_index=True)
    # a CSV needs its columns to be read back
    columns = {"frame": COLUMNS, "cases": [*ROW_KEY, *_OF_CASES], "endpoints": [*ROW_KEY, *_OF_ENDPOINTS]}
    return pd.DataFrame(columns=list(columns.get(name, ())))
