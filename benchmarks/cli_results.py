"""Commands on results that are there: ``medadv report``, ``merge``, ``verify``, ``card``, ``site``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_commands(commands: Any) -> None:
    """Adds the commands to those of the parser."""
    report = commands.add_parser("report", help="write report.html of a finished run again, from its tables")
    report.add_argument("run", type=Path, help="folder of a run")
    merge = commands.add_parser("merge", help="merge runs and leaderboards into one folder")
    merge.add_argument("sources", type=Path, nargs="+", help="folders of runs, or CSV files of leaderboards")
    merge.add_argument("--out", type=Path, required=True, help="folder for the merged results")
    merge.add_argument(
        "--keep", choices=("first", "last", "all"), help="of sources that contradict each other; default: refuse them"
    )


def report(given: argparse.Namespace) -> int:
    """``medadv report``."""
    from medadv.benchmarks.galleries import read_galleries
    from medadv.benchmarks.report import write_report
    from medadv.benchmarks.store import read_run

    board, galleries = read_run(given.run), read_galleries(given.run)
    write_report(board, galleries, given.run / "report.html")
    print(given.run / "report.html" if galleries else f"{given.run / 'report.html'} (the run has no pictures)")
    return 0


def merge(given: argparse.Namespace) -> int:
    """``medadv merge``."""
    from medadv.benchmarks.merge import merge, write_merged

    merged = merge(given.sources, keep=given.keep)
    folder = write_merged(merged, given.out)
    for note in merged.notes:
        print(note)
    print(f"{len(merged.board.frame)} rows\n{folder / 'leaderboard.csv'}\n{folder / 'report.html'}")
    return 0


COMMANDS = {"report": report, "merge": merge}
