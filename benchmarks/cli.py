"""``medadv bench``, ``medadv suites``, ``medadv attacks``, ``medadv tables``, ``medadv strength``, ``medadv cost``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pandas as pd

from medadv.attacks import catalogue, recipe_of


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="medadv", description="How robust is a medical imaging model?")
    commands = top.add_subparsers(dest="command", required=True)
    bench = commands.add_parser("bench", help="run a benchmark suite and write its leaderboard and report")
    bench.add_argument("--suite", default="quick", help="name of a suite (see 'medadv suites') or a YAML file")
    bench.add_argument("--out", type=Path, help="folder for the results; default: runs/SUITE-DATE")
    bench.add_argument("--data-root", type=Path, help="folder with data of your own, for suites that need them")
    bench.add_argument("--save-adversarials", action="store_true", help="also save the worst-case images")
    commands.add_parser("suites", help="list the suites")
    attacks = commands.add_parser("attacks", help="list the attacks, or check them all on tiny models")
    attacks.add_argument("names", nargs="*", help="attacks to list or check; default: all")
    attacks.add_argument("--check", action="store_true", help="run each against every kind of tiny model")
    attacks.add_argument("--out", type=Path, default=Path("attacks.csv"), help="CSV that --check writes")
    tables = commands.add_parser("tables", help="tables of a finished run: training method x attack x budget")
    tables.add_argument("run", type=Path, help="folder of a run")
    tables.add_argument(
        "--metric", help="only this one, such as accuracy, macro_f1, miou or training-cost; default: all"
    )
    tables.add_argument("--format", choices=("csv", "html", "latex"), default="csv", help="csv: a number a row")
    strength = commands.add_parser("strength", help="compare 'robust' with the other attacks of a finished run")
    strength.add_argument("run", type=Path, help="folder of a run, such as that of the suite 'strength'")
    cost = commands.add_parser("cost", help="time pgd, attacks or training recipes beside plain passes")
    cost.add_argument(
        "--pairs", type=int, help="interleaved pairs of runs; default 30, of attacks and recipes 5, of windows 3"
    )
    instead = cost.add_mutually_exclusive_group()
    instead.add_argument(
        "--attacks", nargs="*", metavar="NAME", help="time these attacks (default: all) beside plain passes instead"
    )
    instead.add_argument(
        "--training", nargs="*", metavar="RECIPE", help="time updates by these recipes (default: all) instead"
    )
    instead.add_argument(
        "--windows", action="store_true", help="time gradients through sliding windows, and their memory, instead"
    )
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; 0 if it worked, 2 with one sentence on stderr if what was asked for can't be right."""
    given = parser().parse_args(arguments)
    try:
        return _COMMANDS[given.command](given)
    except (ValueError, TypeError, OSError) as error:
        print(f"medadv: {error}", file=sys.stderr)
        return 2


def _bench(given: argparse.Namespace) -> int:
    from medadv.benchmarks.report import summary
    from medadv.benchmarks.run import run_suite

    name = Path(given.suite).stem
    out = given.out or Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    board = run_suite(given.suite, out=out, data_root=given.data_root, save_adversarials=given.save_adversarials)
    with pd.option_context("display.width", 200, "display.max_columns", 50, "display.precision", 3):
        print(summary(board).to_string(index=False))
        print("\npaired difference of the worst case to natural training, 95 % interval:")
        print(board.compare().drop(columns=["dataset", "ci_unit"]).to_string(index=False))
    print(f"\n{out / 'leaderboard.csv'}\n{out / 'report.html'}")
    return 0


def _suites(given: argparse.Namespace) -> int:
    from medadv.benchmarks.suites import load_suite, suite_names

    for name in suite_names():
        print(f"{name}: {' '.join(load_suite(name).description.split())}")
    return 0


def _attacks(given: argparse.Namespace) -> int:
    names = [recipe_of(name).name for name in given.names]
    if given.check:
        return _check(names or None, given.out)
    table = catalogue()
    print((table[table.name.isin(names)] if names else table).to_string(index=False))
    return 0


def _check(names: list[str] | None, out: Path) -> int:
    from medadv.benchmarks.matrix import matrix, summary, unexplained
    from medadv.files import write_text

    table = matrix(names)
    write_text(out, table.to_csv(index=False))
    wrong = unexplained(table)
    with pd.option_context("display.width", 200, "display.max_columns", 50, "display.max_colwidth", 100):
        if len(wrong):
            print(wrong.to_string(index=False))
    print(f"{summary(table)}\n{out}")
    return 1 if len(wrong) else 0


def _cost(given: argparse.Namespace) -> int:
    from medadv.benchmarks.cost import cost_table
    from medadv.benchmarks.cost_table import attack_costs
    from medadv.benchmarks.cost_training import training_costs
    from medadv.benchmarks.cost_windows import window_costs

    if given.pairs is not None and given.pairs < 2:
        raise ValueError(f"--pairs {given.pairs} says nothing about time; give at least 2.")
    if given.windows:
        table = window_costs(runs=given.pairs or 3)
    elif given.training is not None:
        table = training_costs(given.training, given.pairs or 5)
    elif given.attacks is not None:
        table = attack_costs([recipe_of(name).name for name in given.attacks] or None, given.pairs or 5)
    else:
        table = cost_table(given.pairs or 30)
    with pd.option_context("display.width", 200, "display.max_columns", 50, "display.precision", 3):
        print(table.to_string(index=False))
    return 0


def _strength(given: argparse.Namespace) -> int:
    from medadv.benchmarks.strength import read_strength

    with pd.option_context("display.width", 250, "display.max_columns", 50, "display.precision", 3):
        print(read_strength(given.run).to_string(index=False))
    return 0


def _tables(given: argparse.Namespace) -> int:
    from medadv.benchmarks.store import read_run
    from medadv.benchmarks.survey_render import rendered

    print(rendered(read_run(given.run), given.format, given.metric).rstrip())
    return 0


_COMMANDS = {
    "bench": _bench, "suites": _suites, "attacks": _attacks, "tables": _tables, "strength": _strength, "cost": _cost,
}  # fmt: skip
