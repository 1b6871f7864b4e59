"""Commands on results that are there: ``medadv compare``, ``report``, ``merge``, ``verify``, ``card``, ``site``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd


def add_commands(commands: Any) -> None:
    """Adds the commands to those of the parser."""
    compare = commands.add_parser("compare", help="compare leaderboards of several runs, case by case")
    compare.add_argument("boards", type=Path, nargs="+", metavar="RUN", help="folder of a run, or its leaderboard.csv")
    compare.add_argument(
        "--models", choices=("same", "all"),
        help="pair models of the same name, or all of one with all of the other; default: the same if there are any",
    )  # fmt: skip
    compare.add_argument("--out", type=Path, help="CSV file for the comparison")
    report = commands.add_parser("report", help="write report.html of a finished run again, from its tables")
    report.add_argument("run", type=Path, help="folder of a run")
    merge = commands.add_parser("merge", help="merge runs and leaderboards into one folder")
    merge.add_argument("sources", type=Path, nargs="+", help="folders of runs, or CSV files of leaderboards")
    merge.add_argument("--out", type=Path, required=True, help="folder for the merged results")
    merge.add_argument(
        "--keep", choices=("first", "last", "all"), help="of sources that contradict each other; default: refuse them"
    )
    verify = commands.add_parser("verify", help="evaluate the stored images of a run again and confirm its table")
    verify.add_argument("run", type=Path, help="folder of a run, best made with --save-adversarials")
    verify.add_argument("--data-root", type=Path, help="folder with data of your own, for suites that need them")
    verify.add_argument(
        "--tolerance", type=float, help="by how much scores may differ, as a mean over cases; default: 1e-6 on the "
        "machine of the run, else 0.01",
    )  # fmt: skip
    verify.add_argument("--out", type=Path, help="CSV with a row for each row of the leaderboard")
    card = commands.add_parser("card", help="draft a model card from a run, check cards, or print their schema")
    card.add_argument("run", type=Path, nargs="?", help="folder of a run")
    card.add_argument("--model", help="weights of the run: TASK-MODEL-TRAINING-SEED, as in its folder models/")
    card.add_argument("--out", type=Path, help="file of the card, such as unet.card.json")
    card.add_argument("--name", default="", help="of the model; default: as --model")
    card.add_argument("--licence", default="", help="of the weights, such as Apache-2.0")
    card.add_argument("--contact", default="", help="a link: https://... or mailto:...")
    card.add_argument("--data-licence", default="", help="of the data it was trained on")
    instead = card.add_mutually_exclusive_group()
    instead.add_argument("--check", type=Path, nargs="+", metavar="FILE", help="tell what is wrong with cards instead")
    instead.add_argument("--schema", action="store_true", help="print the JSON schema instead")
    site = commands.add_parser("site", help="make a web page of results: one file, sortable, filterable, no network")
    site.add_argument("results", type=Path, help="folder of runs and model cards, or that of one run")
    site.add_argument("--out", type=Path, required=True, help="file that ends in .html, or a folder for index.html")
    site.add_argument("--title", default="", help="of the page")


def compare(given: argparse.Namespace) -> int:
    """``medadv compare``."""
    from medadv.benchmarks.comparison import compare_boards, described, read_board, write_comparison

    table = compare_boards([read_board(path) for path in given.boards], models=given.models)
    with pd.option_context("display.width", 250, "display.max_columns", 50, "display.precision", 3):
        print(described(table))
    if given.out is not None:
        write_comparison(table, given.out)
        print(f"\n{given.out}")
    return 0


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


def verify(given: argparse.Namespace) -> int:
    """``medadv verify``; 0 only if something was stored and all of it is confirmed."""
    import pandas as pd

    from medadv.benchmarks.store import read_run
    from medadv.benchmarks.verify import NOT_STORED, RIGHT, WRONG, default_tolerance, verify
    from medadv.files import write_text

    if given.tolerance is not None and not 0 <= given.tolerance <= 1:
        raise ValueError(f"--tolerance {given.tolerance:g} is no difference of scores; give a number from 0 to 1.")
    table = verify(given.run, data_root=given.data_root, tolerance=given.tolerance)
    with pd.option_context("display.width", 250, "display.max_columns", 50, "display.max_colwidth", 120):
        shown = table[table.verdict != NOT_STORED].drop(columns=["region"] if (table.region == "all").all() else [])
        print(shown.to_string(index=False, na_rep="", float_format=lambda value: f"{value:.4g}"))
    for reason, count in table[table.verdict == NOT_STORED].reason.value_counts().items():
        print(f"{count} {'row is' if count == 1 else 'rows are'} the mean of the cases beside it, no more: {reason}.")
    if given.out is not None:
        write_text(given.out, table.to_csv(index=False))
    tolerance = default_tolerance(read_run(given.run).meta) if given.tolerance is None else given.tolerance
    counts = table.verdict.value_counts()
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    print(f"\n{told} (scores may differ by {tolerance:g} as a mean over cases)")
    return 0 if counts.get(RIGHT, 0) and not counts.get(WRONG, 0) else 1


def card(given: argparse.Namespace) -> int:
    """``medadv card``."""
    import json

    from medadv.benchmarks.card_drafts import draft
    from medadv.benchmarks.model_cards import ENDING, problems, schema
    from medadv.files import write_text

    if given.schema:
        print(json.dumps(schema(), indent=2))
        return 0
    if given.check:
        wrong = [sentence for path in given.check for sentence in problems(path)[1]]
        print("\n".join(wrong) or f"{len(given.check)} right")
        return 1 if wrong else 0
    if given.run is None or given.model is None or given.out is None:
        raise ValueError("a draft needs the folder of a run, --model and --out; or give --check FILE, or --schema.")
    if not given.out.name.endswith(ENDING):
        raise ValueError(f"--out {str(given.out)!r} is no name of a card; end it with {ENDING}.")
    made = draft(
        given.run, given.model, name=given.name, licence=given.licence, contact=given.contact,
        data_licence=given.data_licence,
    )  # fmt: skip
    write_text(given.out, json.dumps(made, indent=2) + "\n")
    print(given.out)
    for sentence in problems(given.out)[1]:
        print(f"still to be done: {sentence}")
    return 0


def site(given: argparse.Namespace) -> int:
    """``medadv site``; 1 if there is anything in the folder that the page can't show."""
    import sys

    from medadv.benchmarks.site import collect, write_site

    found = collect(given.results)
    path = write_site(found, given.out, title=given.title)
    for sentence in found.unread:
        print(f"medadv: not shown: {sentence}", file=sys.stderr)
    print(path)
    return 1 if found.unread else 0


COMMANDS = {
    "compare": compare, "report": report, "merge": merge, "verify": verify, "card": card, "site": site,
}  # fmt: skip
