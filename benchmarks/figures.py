"""Figures: robustness curves, and sheets of pictures with outlines or heat maps."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from medadv.benchmarks.evaluate import IMAGE_BLIND, NO_ATTACK, WORST_CASE

if TYPE_CHECKING:
    from medadv.benchmarks.leaderboard import Leaderboard

WORST, OVERLAYS, ACTIVATION = "worst", "overlays", "activation"
SECTIONS = (WORST, OVERLAYS, ACTIVATION)
COLOURS = (
    "#0b6e99", "#c8553d", "#4a7c3a", "#7d4f9e", "#b8860b", "#555555", "#3fb8af", "#e377a2", "#8c6d31", "#9fc131",
    "#1f2d86", "#ff9f40",
)  # fmt: skip
_COLUMNS = 3
_CELL, _TITLE, _GAP = 3.0, 0.36, 0.06  # inches: a panel of a sheet, the two lines above it, the space between panels
_IN_THE_PANEL = 8  # more curves have their legend beside the panel


def robustness_curves(board: Leaderboard) -> Figure:
    """Score against budget, a panel per task: worst case with its interval, noise dashed, image-blind dotted."""
    tasks = list(dict.fromkeys(board.frame.task))
    columns, height = min(max(len(tasks), 1), _COLUMNS), -(-len(tasks) // _COLUMNS) or 1
    figure = Figure(figsize=(4.6 * columns, 3.9 * height), layout="constrained")
    for number, task in enumerate(tasks):
        axes = figure.add_subplot(height, columns, number + 1)
        rows = board.frame[board.frame.task == task]
        _curves(axes, rows)
        axes.set_title(task)
        axes.set_xlabel("budget, in 255ths of the intensity window")
        axes.set_ylabel(f"{rows.metric.iloc[0]}, mean over {rows.n_cases.iloc[0]} test cases")
        axes.set_ylim(-0.02, 1.02)
        if len(axes.get_legend_handles_labels()[1]) > _IN_THE_PANEL:
            axes.legend(fontsize=5, loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)
        else:
            axes.legend(fontsize=7, loc="lower left")
        axes.grid(alpha=0.25)
    return figure


def _curves(axes: Any, rows: Any) -> None:
    blind = rows[rows.model == IMAGE_BLIND]
    if len(blind):
        axes.axhline(blind.clean.iloc[0], color="black", linestyle=":", linewidth=1, label="image-blind")
    models = rows[(rows.model != IMAGE_BLIND) & (rows.region == "all")]
    several_models = models.model.nunique() > 1
    for colour, ((model, training), group) in zip(
        np.resize(np.array(COLOURS), 100), models.groupby(["model", "training"], sort=False), strict=False
    ):
        name = f"{model} {training}" if several_models else training
        for threat in dict.fromkeys(group[group.attack == WORST_CASE].threat):
            _line(
                axes,
                group,
                group[(group.attack == WORST_CASE) & (group.threat == threat)],
                f"{name}, worst case",
                colour,
                "-",
            )
        _line(axes, group, group[group.attack == "noise"], f"{name}, noise", colour, "--")


def _line(axes: Any, group: Any, rows: Any, label: str, colour: str, style: str) -> None:
    """One curve from the clean score on; several training seeds are averaged, their widest interval is shown."""
    if rows.empty:
        return
    curve = pd.concat([group[group.attack == NO_ATTACK], rows])
    points = curve.groupby("eps_fraction").agg({"adversarial": "mean", "ci_low": "min", "ci_high": "max"})
    x = points.index.to_numpy() * 255
    axes.plot(x, points.adversarial, style, color=colour, marker="o", markersize=3, linewidth=1.4, label=label)
    if style == "-":
        axes.fill_between(x, points.ci_low, points.ci_high, color=colour, alpha=0.15, linewidth=0)


@dataclass(frozen=True)
class Panel:
    """One picture of a sheet.

    Attributes:
        title: above it.
        picture: grey values ``(H, W)``.
        limits: grey values that are black and white.
        colours: matplotlib's name of the colour map.
        outlines: masks ``(H, W)`` with the colour of their contour.
        heat: ``(H, W)`` from 0 to 1, laid over the picture; transparent where it is 0.
    """

    title: str
    picture: np.ndarray
    limits: tuple[float, float]
    colours: str = "gray"
    outlines: tuple[tuple[np.ndarray, str], ...] = ()
    heat: np.ndarray | None = None


@dataclass(frozen=True)
class Gallery:
    """A sheet of the report, or a note why there is none.

    Attributes:
        section: part of the report: :data:`SECTIONS`.
        title: its caption.
        figure: the sheet; None where ``note`` says why.
        note: a sentence.
        drawn: the sheet as a data URL, where it was drawn before.
    """

    section: str
    title: str
    figure: Figure | None = None
    note: str = ""
    drawn: str = ""

    @cached_property
    def picture(self) -> str:
        """The sheet as a data URL, drawn once although the report is written after each task; empty without one."""
        return self.drawn if self.figure is None else png(self.figure)


def png(figure: Figure) -> str:
    """A figure as a data URL."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(figure)).decode()


def png_bytes(figure: Figure, dpi: int = 110) -> bytes:
    """A figure as what a PNG file holds."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def sheet(rows: Sequence[Sequence[Panel]]) -> Figure:
    """Panels in rows and columns."""
    columns = max(len(row) for row in rows)
    wide, high = _CELL * columns, (_CELL + _TITLE) * len(rows)
    figure = Figure(figsize=(wide, high))
    # all cells are alike, so nothing has to be fitted, which takes as long as drawing
    grid = figure.add_gridspec(
        len(rows), columns, left=0.0, right=1.0, bottom=0.0, top=1 - _TITLE / high, wspace=_GAP / _CELL,
        hspace=_TITLE / _CELL,
    )  # fmt: skip
    for number, row in enumerate(rows):
        for column, panel in enumerate(row):
            _draw(figure.add_subplot(grid[number, column]), panel)
    return figure


def _draw(axes: Any, panel: Panel) -> None:
    low, high = panel.limits
    axes.imshow(panel.picture, cmap=panel.colours, vmin=low, vmax=high, interpolation="nearest")
    axes.set_title(panel.title, fontsize=8)
    axes.set_axis_off()
    if panel.heat is not None:
        axes.imshow(panel.heat, cmap="inferno", vmin=0, vmax=1, alpha=0.6 * panel.heat, interpolation="bilinear")
    for mask, colour in panel.outlines:
        outline(axes, mask, colour)


def outline(axes: Any, mask: np.ndarray, colour: str, style: str = "-", width: float = 1.1) -> None:
    """The contour of a mask ``(H, W)`` over its picture, closed where the mask touches the border; none of nothing."""
    if mask.any():
        rows, columns = (np.arange(-1, length + 1) for length in mask.shape)
        framed = np.pad(mask.astype(float), 1)
        limits = axes.axis()
        axes.contour(columns, rows, framed, levels=[0.5], colors=[colour], linestyles=[style], linewidths=width)
        axes.axis(limits)
