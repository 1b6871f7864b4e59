"""The commands: ``medadv bench``, ``attack``, ``suites``, ``attacks``, ``tables``, ``strength``, ``cost``, and more.

Those on results that are there are in :mod:`~medadv.benchmarks.cli_results`.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pandas as pd

from medadv.attacks import catalogue, recipe_of
from medadv.benchmarks import cli_results


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="medadv", description="How robust is a medical imaging model?")
    commands = top.add_subparsers(dest="command", required=True)
    bench = commands.add_parser("bench", help="run a benchmark suite and write its leaderboard and report")
    bench.add_argument("--suite", default="quick", help="name of a suite (see 'medadv suites') or a YAML file")
    bench.add_argument("--out", type=Path, help="folder for the results; default: runs/SUITE-DATE")
    bench.add_argument("--data-root", type=Path, help="folder with data of your own, for suites that need them")
    bench.add_argument("--save-adversarials", action="store_true", help="also save the worst-case images")
    _add_computing(bench)
    _add_attack(commands.add_parser("attack", help="attack scans of a MONAI bundle or network, from file to file"))
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
    instead.add_argument(
        "--reuse", action="store_true", help="count passes of worst cases alone, and time accelerated searches, instead"
    )
    instead.add_argument("--scheduling", action="store_true", help="time cells on Dask workers instead")
    cli_results.add_commands(commands)
    return top


def _add_computing(bench: argparse.ArgumentParser) -> None:
    how = bench.add_argument_group("how it is computed")
    where = how.add_mutually_exclusive_group()
    where.add_argument("--workers", type=int, metavar="N", help="Dask workers on this machine; default: no Dask")
    where.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster, such as tcp://10.0.0.1:8786")
    how.add_argument("--resources", action="append", default=[], metavar="NAME=AMOUNT", help="of each of --workers")
    how.add_argument("--threads", type=int, metavar="N", help="of each cell; default: the suite's, or a fair share")
    again = how.add_mutually_exclusive_group()
    again.add_argument("--force", action="store_true", help="compute what is there already again")
    again.add_argument("--keep-stale", action="store_true", help="take what other versions of the libraries computed")


def _add_attack(attack: argparse.ArgumentParser) -> None:
    model = attack.add_argument_group("the model")
    given = model.add_mutually_exclusive_group(required=True)
    given.add_argument("--bundle", type=Path, help="folder of a MONAI bundle")
    given.add_argument("--network", type=Path, help="JSON or YAML file that describes a network as bundles do")
    model.add_argument("--checkpoint", type=Path, help="weights; needed with --network")
    model.add_argument("--trust", action="store_true", help="run the code that the bundle holds")
    model.add_argument("--decision", choices=("softmax", "sigmoid"), help="of --network, where its file does not say")
    model.add_argument("--window", type=float, nargs=2, metavar=("LOW", "HIGH"),
                       help="of --network without preprocessing: values that become 0 to 1")  # fmt: skip
    model.add_argument("--unit", help="of --network: unit of the stored values, such as HU")
    cases = attack.add_argument_group("the cases")
    several = cases.add_mutually_exclusive_group(required=True)
    several.add_argument("--image", type=Path, nargs="+", help="file, DICOM folder, a file per channel, or a folder")
    several.add_argument("--datalist", type=Path, help="JSON list of cases")
    cases.add_argument("--section", help="which list of the datalist")
    cases.add_argument("--label", help="segmentation file (of --image FOLDER: folder), or numbers of the diagnosis")
    cases.add_argument("--extra", action="append", default=[], metavar="KEY=FILE", help="a mask the network sees")
    cases.add_argument("--region", type=Path, help="mask of where the image may change")
    what = attack.add_argument_group("the attack")
    what.add_argument("--attack", default="pgd-dice", help="name (see 'medadv attacks'); default: pgd-dice")
    what.add_argument("--eps", help="budget, such as '10 HU' or '8/255'")
    what.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="such as max_iter=40")
    what.add_argument("--storage", help="dtype of the adversarial image, such as int16; default: as the file")
    what.add_argument("--statistics", choices=("differentiated", "frozen"), default="differentiated")
    what.add_argument("--tolerance", type=float, default=1.0, help="of the surface Dice, in mm; default: 1")
    attack.add_argument("--out", type=Path, required=True, help="folder for the results")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; 0 if it worked, 2 with one sentence on stderr if what was asked for can't be right."""
    given = parser().parse_args(arguments)
    try:
        return _COMMANDS[given.command](given)
    except (ValueError, TypeError, OSError) as error:
        print(f"medadv: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"medadv: {str(interrupt) or 'interrupted.'}", file=sys.stderr)
        return 130


def _bench(given: argparse.Namespace) -> int:
    from medadv.benchmarks.distribution import cluster_given
    from medadv.benchmarks.rankings import SHORT
    from medadv.benchmarks.report import summary
    from medadv.benchmarks.run import run_suite

    name = Path(given.suite).stem
    out = given.out or Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    cluster = cluster_given(given)
    board = run_suite(
        given.suite, out=out, data_root=given.data_root, save_adversarials=given.save_adversarials, cluster=cluster,
        threads=given.threads, force=given.force, keep_stale=given.keep_stale,
    )  # fmt: skip
    with pd.option_context("display.width", 200, "display.max_columns", 50, "display.precision", 3):
        print(summary(board).to_string(index=False))
        print("\npaired difference of the worst case to natural training, 95 % interval, Holm-corrected p:")
        print(board.compare()[list(SHORT)].to_string(index=False))
    print(f"\n{out / 'leaderboard.csv'}\n{out / 'report.html'}")
    if len(board.failures):
        print(f"medadv: {len(board.failures)} rows failed, see column error; the same command tries them again.",
              file=sys.stderr)  # fmt: skip
    return 1 if len(board.failures) else 0


def _attack(given: argparse.Namespace) -> int:
    from medadv.benchmarks.file_attack import TABLE, FileAttack, summary
    from medadv.benchmarks.file_options import cases_given, deployment_given, named_values

    warnings.filterwarnings("ignore", module=r"monai\.")  # of arguments that the bundle chose
    deployment = deployment_given(given)
    attack = FileAttack(
        deployment=deployment, attack=recipe_of(given.attack).name, eps=given.eps,
        options=named_values("--option", given.option), storage=given.storage, statistics=given.statistics,
        tolerance=given.tolerance,
    )  # fmt: skip
    table = attack.run(cases_given(given, deployment), given.out)
    shown = summary(table)
    with pd.option_context("display.width", 200, "display.max_columns", 50, "display.precision", 3):
        print((shown if len(shown) else table).T.to_string(header=False))
    print(f"\n{given.out / TABLE}")
    failed = table[table["error"].notna()] if "error" in table else table.iloc[:0]
    for row in failed.itertuples():
        print(f"medadv: {row.case}: {row.error}", file=sys.stderr)
    return 1 if len(failed) else 0


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
    from medadv.benchmarks.cost_acceleration import acceleration_costs
    from medadv.benchmarks.cost_reuse import reuse_costs
    from medadv.benchmarks.cost_scheduling import scheduling_costs
    from medadv.benchmarks.cost_table import attack_costs
    from medadv.benchmarks.cost_training import training_costs
    from medadv.benchmarks.cost_windows import window_costs

    if given.pairs is not None and given.pairs < 2:
        raise ValueError(f"--pairs {given.pairs} says nothing about time; give at least 2.")
    if given.reuse:
        table = acceleration_costs()
        _print(reuse_costs())
    elif given.scheduling:
        table = scheduling_costs()
    elif given.windows:
        table = window_costs(runs=given.pairs or 3)
    elif given.training is not None:
        table = training_costs(given.training, given.pairs or 5)
    elif given.attacks is not None:
        table = attack_costs([recipe_of(name).name for name in given.attacks] or None, given.pairs or 5)
    else:
        table = cost_table(given.pairs or 30)
    _print(table)
    return 0


def _print(table: pd.DataFrame) -> None:
    with pd.option_context("display.width", 200, "display.max_columns", 50, "display.precision", 3):
        print(table.to_string(index=False))


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
    "bench": _bench, "attack": _attack, "suites": _suites, "attacks": _attacks, "tables": _tables,
    "strength": _strength, "cost": _cost, **cli_results.COMMANDS,
}  # fmt: skip
