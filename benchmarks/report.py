"""The report: one self-contained HTML page with curves, tables, overlays and where it all comes from."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from medadv.benchmarks.evaluate import NO_ATTACK, WORST_CASE
from medadv.benchmarks.figures import SECTIONS, Gallery, png, robustness_curves
from medadv.benchmarks.leaderboard import Leaderboard
from medadv.benchmarks.rankings import pairs
from medadv.benchmarks.survey_render import survey_tables
from medadv.benchmarks.trust import SCOPE
from medadv.files import write_text

_TEMPLATES = resources.files("medadv.benchmarks") / "templates"
_NOISE = "noise at the largest"
_PAIRS = (
    "task", "model", "training", "against_training", "threat", "region", "budget", "n_seeds", "n_cases", "n_unscored",
    "difference", "ci_low", "ci_high", "ci_unit", "p", "p_holm", "family", "flags",
)  # fmt: skip
_RANKS = (
    "task", "threat", "region", "budget", "model", "training", "n_seeds", "n_cases", "n_unscored", "mean", "ci_low",
    "ci_high", "rank", "best_rank", "worst_rank", "n_models", "flags",
)  # fmt: skip
_SCORES = ("mean", "clean", "adversarial", "ci_low", "ci_high", "success_rate", "ssim", "difference", _NOISE)


def write_report(board: Leaderboard, galleries: Sequence[Gallery], path: Path) -> None:
    """Writes ``report.html``: opens in any browser, asks for nothing from the network."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((_TEMPLATES / "report.html").read_text(encoding="utf-8"))
    suite = board.meta.get("suite", {})
    comparison, apart = pairs(board.frame, board.cases, "natural")
    write_text(
        path,
        template.render(
            title=f"medadv: {suite.get('name', 'evaluation')}",
            description=suite.get("description", ""),
            summary=_html(summary(board)),
            curves=png(robustness_curves(board)),
            comparison=_html(_readable_budget(comparison, board, _PAIRS)),
            apart=_html(apart) if len(apart) else "",
            ranks=_html(_readable_budget(board.ranks(), board, _RANKS)),
            surveys=survey_tables(board),
            table=table_html(board.frame),
            doubts=_html(doubted) if len(doubted := doubts(board.diagnostics)) else "",
            findings=_html(board.diagnostics) if len(board.diagnostics) else "",
            trainings=_html(trainings) if len(trainings := trainings_of(suite)) else "",
            galleries={section: _shown(galleries, section) for section in SECTIONS},
            data=board.meta.get("data", {}),
            meta=board.meta,
        ),
    )


def _shown(galleries: Sequence[Gallery], section: str) -> list[tuple[str, str, str]]:
    """Caption, picture and note of each gallery of a section."""
    chosen = [gallery for gallery in galleries if gallery.section == section]
    return [(gallery.title, gallery.picture, gallery.note) for gallery in chosen]


def summary(board: Leaderboard) -> pd.DataFrame:
    """Per task and model: clean, then the worst case of each budget, over images that may change everywhere."""
    rows = board.frame[board.frame.attack.isin([WORST_CASE, NO_ATTACK]) & (board.frame.region == "all")].copy()
    rows["budget"] = [
        "clean" if attack == NO_ATTACK else f"{255 * share:.3g}/255"
        for attack, share in zip(rows.attack, rows.eps_fraction, strict=True)
    ]
    rows["threat"] = rows.threat.where(rows.threat != "none", "")
    keys = ["task", "metric", "model", "training"]
    table = rows.pivot_table(index=keys, columns="budget", values="adversarial", aggfunc="mean", sort=False)
    noise = board.frame[board.frame.attack == "noise"]
    if len(noise):
        largest = noise[noise.eps_fraction == noise.groupby("task").eps_fraction.transform("max")]
        table[_NOISE] = largest.groupby(keys, sort=False).adversarial.mean()
    return table.reset_index().rename_axis(columns=None)


def doubts(diagnostics: pd.DataFrame) -> pd.DataFrame:
    """What failed, of which rows, on what evidence, and the attack to run: a row per finding with a flag."""
    if not len(diagnostics):
        return pd.DataFrame()
    shown = ["task", "model", "training", "train_seed", *SCOPE, "flag", "evidence", "numbers", "advice", "call"]
    failed = diagnostics[diagnostics["flag"].fillna("") != ""]
    table: pd.DataFrame = failed[shown].astype(dict.fromkeys(SCOPE, object)).fillna("")
    return table


def trainings_of(suite: dict[str, Any]) -> pd.DataFrame:
    """How the models of a suite were trained: a row per task and training."""
    rows = [
        {
            "task": task["name"],
            "training": name,
            **{key: value for key, value in spec.items() if key not in ("recipe", "options", "warm_start")},
            "recipe": " ".join([spec["recipe"], *(f"{key}={value}" for key, value in spec["options"].items())]),
            "starts from": spec["warm_start"] or "random weights",
        }
        for task in suite.get("tasks", ())
        for name, spec in task["trainings"].items()
    ]
    return pd.DataFrame(rows)


def table_html(frame: pd.DataFrame) -> str:
    """A leaderboard as an HTML table with rounded numbers; flags in words are kept."""
    return _html(frame)


def _readable_budget(table: pd.DataFrame, board: Leaderboard, columns: Sequence[str]) -> pd.DataFrame:
    """Chosen columns, the budget as a share of the intensity window where it has one."""
    if not len(table):
        return pd.DataFrame(columns=list(columns))
    shares = board.frame.drop_duplicates(["dataset", "eps", "unit"]).set_index(["dataset", "eps", "unit"]).eps_fraction
    keys = zip(table.dataset, table.eps, table.unit, strict=True)
    budgets = [
        f"{eps:.4g} {unit}" if pd.isna(share := shares[(dataset, eps, unit)]) else f"{255 * share:.3g}/255"
        for dataset, eps, unit in keys
    ]
    return table.assign(budget=budgets)[list(columns)]


def _html(table: pd.DataFrame) -> str:
    digits = {
        column: (lambda value: f"{value:.3f}") if _is_score(str(column)) else (lambda value: f"{value:.4g}")
        for column in table.select_dtypes("number").columns
    }
    table = table.where(table.notna(), float("nan"))  # None of a run is what an empty cell of its CSV is
    return table.to_html(classes="board", index=False, na_rep="", border=0, formatters=digits)


def _is_score(column: str) -> bool:
    return column in _SCORES or "/255" in column
