"""Directives that put tables and help texts made from the code into pages written by hand."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from extension.pages import cell, shown, table
from medadv.adapters.art_preprocessors import PREPROCESSORS, REFUSED
from medadv.attacks.recipes import COMMON_OPTIONS
from medadv.benchmarks import load_suite, suite_names
from medadv.benchmarks.cli import parser
from medadv.benchmarks.corruptions import CORRUPTIONS, GROUPS
from medadv.benchmarks.data import COLLECTIONS
from medadv.benchmarks.data.volumes import DATALISTS, DECATHLON
from medadv.benchmarks.leaderboard_rows import COLUMNS
from medadv.diagnostics import CHECKS
from medadv.feature_detectors import FEATURE_DETECTORS
from medadv.objectives import OBJECTIVES
from medadv.threats import THREATS
from medadv.training import RECIPES


def threats() -> str:
    """What the attacker may change."""
    lines = (
        (f"`{kind.name}`", cell(kind.summary), "required" if kind.eps is None else f"`{kind.eps}`",
         ", ".join(f"`{option}={shown(value)}`" for option, value in kind.options.items()),
         " and ".join(f"{rank}D" for rank in kind.ranks))
        for kind in THREATS.values()
    )  # fmt: skip
    return table(("threat", "what it allows", "eps", "options", "images"), lines)


def objectives() -> str:
    """What the attacker maximises."""
    lines = ((f"`{name}`", _first_line(kind)) for name, kind in OBJECTIVES.items())
    return table(("objective", "what it is"), lines)


def suites() -> str:
    """The suites that come with medadv."""
    lines = []
    for name in suite_names():
        suite = load_suite(name)
        tasks = ", ".join(task.name for task in suite.tasks)
        lines.append((f"`{name}`", cell(suite.description), tasks, ", ".join(map(str, suite.budgets))))
    return table(("suite", "what it is", "tasks", "budgets"), lines)


def recipes() -> str:
    """How a network is made robust."""
    lines = []
    for name, kind in RECIPES.items():
        options = [f.name if f.default is MISSING else f"{f.name}={shown(f.default)}" for f in fields(kind)]  # type: ignore[arg-type]
        link = f"{{py:class}}`{name} <{kind.__module__}.{kind.__name__}>`"
        lines.append((link, _first_line(kind), ", ".join(f"`{option}`" for option in options)))
    return table(("recipe", "what it is", "options"), lines)


def common_options() -> str:
    """Options that every attack takes."""
    return ", ".join(f"`{name}`" for name in COMMON_OPTIONS)


def _first_line(kind: type) -> str:
    return cell((inspect.getdoc(kind) or "").partition("\n\n")[0].replace("``", "`"))


def columns() -> str:
    """Columns of a leaderboard."""
    return ", ".join(f"`{name}`" for name in COLUMNS)


def collections() -> str:
    """Collections of 2D images and the layouts they are read in."""
    lines = (
        (f"`{name}`", cell(", ".join(row.classes)), cell(f"`{row.folder}/`: {row.layout}"), cell(row.source))
        for name, row in COLLECTIONS.items()
    )
    return table(("name", "classes", "files", "source"), lines)


def volumes() -> str:
    """Volumes with a datalist."""
    lines = (
        (f"`{row.name}`", cell(", ".join((row.classes or ("of the datalist",))[row.classes is not None :])),
         f"`{row.folder}/{row.datalists[0]}`", _reading(row.reading), cell(row.source))
        for row in (*DATALISTS, *DECATHLON)
    )  # fmt: skip
    return table(("name", "classes", "datalist", "read with", "source"), lines)


def _reading(reading: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}={value}`" for name, value in reading.items() if name in ("pixdim", "crop", "window"))


def corruptions() -> str:
    """Natural corruptions and their severities."""
    lines = []
    for row in CORRUPTIONS.values():
        groups = ", ".join(f"`{group}`" for group, names in GROUPS.items() if row.name in names)
        levels = ", ".join(f"{value:g}" for value in row.severities)
        lines.append((f"`{row.name}`", row.summary, row.transform, levels, row.parameter, groups))
    return table(("corruption", "what happens", "MONAI's transform", "severities 1 to 5", "parameter", "groups"), lines)


def detectors() -> str:
    """Detectors on activations."""
    lines = (
        (
            f"`{name}`",
            kind.summary,
            f"[{kind.reference}](https://arxiv.org/abs/{kind.reference})",
            _options(kind.options),
        )
        for name, kind in FEATURE_DETECTORS.items()
    )  # fmt: skip
    return table(("detector", "its score", "paper", "options"), lines)


def preprocessors() -> str:
    """ART's preprocessors that are right for medical images."""
    lines = (
        (f"`{row.name}`", f"`{row.defence}`", row.summary, row.in_3d, "EOT and BPDA" if row.random else "BPDA",
         _options(row.options))
        for row in PREPROCESSORS.values()
    )  # fmt: skip
    return table(("preprocessor", "of ART", "what it does", "volumes", "adaptive attack", "options"), lines)


def refused_preprocessors() -> str:
    """ART's others, with the reason."""
    return table(("of ART", "reason"), ((f"`{name}`", reason) for name, reason in REFUSED.items()))


def diagnostics() -> str:
    """Checks of a robustness number."""
    lines = (
        (f"`{row.name}`", f"`{row.flag}`", cell(row.looks_at), f"{row.limit:g}", row.level) for row in CHECKS.values()
    )
    return table(("check", "flag", "evidence", "flagged above", "level"), lines)


def advice() -> str:
    """What to do where a check fails."""
    lines = ((f"`{row.name}`", cell(row.advice), f"`{row.call}`") for row in CHECKS.values())
    return table(("check", "what to do", "attack to run"), lines)


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}={shown(value)}`" for name, value in options.items())


TABLES: dict[str, Callable[[], str]] = {
    "threats": threats, "objectives": objectives, "suites": suites, "columns": columns,
    "common-options": common_options, "recipes": recipes, "collections": collections, "volumes": volumes,
    "corruptions": corruptions, "detectors": detectors, "diagnostics": diagnostics, "advice": advice,
    "preprocessors": preprocessors, "refused-preprocessors": refused_preprocessors,
}  # fmt: skip


class MadeTable(SphinxDirective):
    """A table by name."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(TABLES[self.arguments[0]]())


class CommandHelp(SphinxDirective):
    """The help of a command; without a name, of the program."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        text = help_of(self.arguments[0] if self.arguments else None)
        return [nodes.literal_block(text, text, language="text")]


def help_of(command: str | None) -> str:
    """What ``medadv COMMAND --help`` prints."""
    top = parser()
    if command is None:
        return top.format_help()
    return commands()[command].format_help()


def commands() -> dict[str, argparse.ArgumentParser]:
    """The commands of the program by name."""
    for action in parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}
