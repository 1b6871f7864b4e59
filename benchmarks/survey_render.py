"""Survey tables as HTML and LaTeX, and the files that a run leaves of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pandas as pd

from medadv.benchmarks.evaluate import IMAGE_BLIND
from medadv.benchmarks.leaderboard import Leaderboard
from medadv.benchmarks.survey import metrics_of, survey_rows, survey_table, training_cost
from medadv.benchmarks.survey_endpoints import CLASSES, COUNTS
from medadv.files import write_text
from medadv.names import unknown_name

TRAINING_COST = "training-cost"
LATEX_HEAD = "% needs \\usepackage{booktabs} and \\usepackage{graphicx}\n"
_TITLES = {
    "accuracy": "accuracy",
    "label_accuracy": "share of labels that are right",
    "dice": "Dice",
    "macro_recall": "macro recall",
    "macro_precision": "macro precision",
    "macro_f1": "macro F1",
    "macro_auc": "macro AUC",
    "miou": "mIoU",
    "hd95_mm": "HD95 in mm",
    "hd95_voxels": "HD95 in voxels",
    "structures_missed": "structures missed altogether",
    "structures_invented": "structures invented",
}
_SPECIAL = str.maketrans({
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "±": r"$\pm$",
})  # fmt: skip


@dataclass(frozen=True)
class SurveyTable:
    """One table, ready to be written.

    Attributes:
        key: unique, for labels and ids.
        title: what it shows.
        note: how to read it.
        cells: text of the cells, rows and columns named.
        bold: bool like ``cells``: the best of each column.
    """

    key: str
    title: str
    note: str
    cells: pd.DataFrame
    bold: pd.DataFrame

    def html(self) -> str:
        """A ``<table class="board">``."""
        style = self.cells.style.format(escape="html").set_uuid(self.key)
        for axis in (0, 1):
            style = style.format_index(escape="html", axis=axis)
        style = style.apply(lambda _: self.bold.replace({True: "font-weight: bold", False: ""}), axis=None)
        html: str = style.to_html(table_attributes='class="board"')
        return html

    def latex(self) -> str:
        """A ``table`` with booktabs rules, shrunk to the width of the line where it is wider."""
        style = self.cells.style.format(latex_escaped)
        for axis, index in ((0, self.cells.index), (1, self.cells.columns)):
            for level in range(index.nlevels):
                style = style.format_index(latex_escaped, axis=axis, level=level)
        style = style.apply(lambda _: self.bold.replace({True: "textbf:--rwrap;", False: ""}), axis=None)
        columns = "l" * self.cells.index.nlevels + "r" * self.cells.shape[1]
        tabular = style.to_latex(hrules=True, multicol_align="c", column_format=columns, sparse_index=False)
        return (
            "\\begin{table}[htbp]\n\\centering\n"
            f"\\caption{{{latex_escaped(f'{self.title}. {self.note}')}}}\n\\label{{tab:{self.key}}}\n"
            "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%\n"
            f"{tabular.rstrip()}}}\n\\end{{table}}\n"
        )


def latex_escaped(text: object) -> str:
    r"""Text in which no character is a command of LaTeX.

    Example:
        >>> print(latex_escaped("pgd_at & 50 %"))
        pgd\_at \& 50 \%
    """
    return str(text).translate(_SPECIAL)


def survey_tables(board: Leaderboard, metric: str | None = None) -> list[SurveyTable]:
    """All tables of a board: of each task and metric, and the cost of the trainings.

    Args:
        board: of a suite.
        metric: only this one, or ``"training-cost"``.

    Raises:
        ValueError: no task has the metric.
    """
    rows = survey_rows(board)
    tasks = list(dict.fromkeys(rows.task))
    _check_metric(rows, metric)
    tables = [
        metric_table(rows, task, name) for task in tasks for name in metrics_of(rows, task) if metric in (None, name)
    ]
    cost = training_cost(board)
    return [*tables, *([cost_table(cost)] if len(cost) and metric in (None, TRAINING_COST) else [])]


def _check_metric(rows: pd.DataFrame, metric: str | None) -> None:
    known = [*(name for task in dict.fromkeys(rows.task) for name in metrics_of(rows, task)), TRAINING_COST]
    if metric is not None and metric not in known:
        raise unknown_name("metric of this run", metric, set(known))


def metric_table(rows: pd.DataFrame, task: str, metric: str) -> SurveyTable:
    """The table of one task and metric; the best training of each column is bold, image-blind aside."""
    mean, spread, seeds = (survey_table(rows, task, metric, statistic=name) for name in ("mean", "std", "count"))
    lower = metric.startswith("hd95") or metric in COUNTS
    several = bool((seeds > 1).any(axis=None))
    digits = 3 if not lower else 0 if metric in COUNTS and not several else 1
    cells = mean.map(lambda value: "–" if pd.isna(value) else f"{value:.{digits}f}")
    if several:
        cells = cells + spread.map(lambda value: "" if pd.isna(value) else f" ± {value:.{digits}f}")
    shown = mean.drop(index=IMAGE_BLIND, level="model", errors="ignore").round(digits)
    best = shown.min() if lower else shown.max()
    bold = (shown.eq(best) & (len(shown) > 1)).reindex(mean.index, fill_value=False)
    names = [(model, "" if model == IMAGE_BLIND else training) for model, training in mean.index]
    for part in (cells, bold):
        part.index = pd.MultiIndex.from_tuples(names)
        part.columns.names = [None, None]
    return SurveyTable(
        _slug(f"{task}-{metric}"), f"{task}: {_TITLES.get(metric, metric)}",
        _note(rows[rows.task == task], metric, lower=lower, several=several), cells, bold,
    )  # fmt: skip


def _note(rows: pd.DataFrame, metric: str, *, lower: bool, several: bool) -> str:
    """How to read a table: over what its numbers are, and which is good."""
    cases = int(rows.n_cases.max())
    counted = rows[rows.metric == metric].n_counted
    over = f"mean over {cases} test cases"
    if metric in COUNTS:
        over = f"sum over {cases} test cases"
    elif metric.startswith("macro"):
        classes = int(rows[rows.metric == CLASSES].value.max())
        over = f"over {cases} test cases, mean over the {classes} classes that their references hold"
        if metric == "macro_auc":
            over = f"over {cases} test cases, mean over the classes that some of their references hold and some do not"
    elif counted.min() < cases:
        least, most = int(counted.min()), int(counted.max())
        over += f", of which {least if least == most else f'{least} to {most}'} count"
    if metric.startswith("hd95"):
        over += "; a structure missed or invented counts the diagonal of the image"
    return (
        f"{over[0].upper()}{over[1:]}{', mean and standard deviation over training seeds' if several else ''}. "
        f"{'Low' if lower else 'High'} is good; the best training of each column is bold. Columns: attack and budget "
        "(k/255: of the intensity window). image-blind never looks at the image."
    )


def cost_table(cost: pd.DataFrame) -> SurveyTable:
    """The cost of training as a table."""
    cells = pd.DataFrame({
        "recipe": cost.recipe,
        "epochs": cost.epochs.map("{:.0f}".format),
        "s per epoch": cost.seconds_per_epoch.map("{:.3g}".format),
        "x natural": cost.relative.map(lambda value: "–" if pd.isna(value) else f"{value:.2f}"),
    }).set_index(pd.MultiIndex.from_frame(cost[["task", "model", "training"]], names=[None] * 3))  # fmt: skip
    note = (
        "Seconds per epoch, and their ratio to natural training of the same task and model. Epochs of a training that "
        "starts from another's weights come on top of that one's."
    )
    return SurveyTable(TRAINING_COST, "Cost of training", note, cells, cells.map(lambda _: False))


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9-]+", "-", text)


def _csv(board: Leaderboard, metric: str | None) -> str:
    if metric == TRAINING_COST:
        return str(training_cost(board).to_csv(index=False))
    rows = survey_rows(board)
    _check_metric(rows, metric)
    return str((rows if metric is None else rows[rows.metric == metric]).to_csv(index=False))


def _html(board: Leaderboard, metric: str | None) -> str:
    return "\n".join(
        f"<h3>{escape(table.title)}</h3>\n<p>{escape(table.note)}</p>\n{table.html()}"
        for table in survey_tables(board, metric)
    )


def _latex(board: Leaderboard, metric: str | None) -> str:
    return LATEX_HEAD + "\n".join(table.latex() for table in survey_tables(board, metric))


FORMATS: dict[str, Callable[[Leaderboard, str | None], str]] = {"csv": _csv, "html": _html, "latex": _latex}


def rendered(board: Leaderboard, style: str = "csv", metric: str | None = None) -> str:
    """The tables of a board as text.

    Args:
        board: of a suite.
        style: ``"csv"`` (a number a row), ``"html"`` or ``"latex"``.
        metric: only this one; ``"training-cost"`` is one of them.

    Raises:
        ValueError: an unknown style or metric.
    """
    if style not in FORMATS:
        raise unknown_name("format", style, FORMATS)
    return FORMATS[style](board, metric)


def write_survey(board: Leaderboard, folder: Path) -> None:
    """Writes ``survey.csv``, ``survey.tex`` and ``training_cost.csv``."""
    write_text(folder / "survey.csv", rendered(board))
    write_text(folder / "survey.tex", rendered(board, "latex"))
    write_text(folder / "training_cost.csv", rendered(board, "csv", TRAINING_COST))
