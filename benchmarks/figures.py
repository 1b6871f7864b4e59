"""Figures: robustness curves, and the worst cases of a segmenter with what was changed and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from medadv.benchmarks.evaluate import IMAGE_BLIND, NO_ATTACK, WORST_CASE, Evaluation, Outcome

if TYPE_CHECKING:
    from medadv.benchmarks.leaderboard import Leaderboard

_SHOWN = 3
_COLOURS = ("#0b6e99", "#c8553d", "#4a7c3a", "#7d4f9e", "#b8860b", "#555555")


def robustness_curves(board: Leaderboard) -> Figure:
    """Score against budget, a panel per task: worst case with its interval, noise dashed, image-blind dotted."""
    tasks = list(dict.fromkeys(board.frame.task))
    figure = Figure(figsize=(4.6 * max(len(tasks), 1), 3.9), layout="constrained")
    for number, task in enumerate(tasks):
        axes = figure.add_subplot(1, len(tasks), number + 1)
        rows = board.frame[board.frame.task == task]
        _curves(axes, rows)
        axes.set_title(task)
        axes.set_xlabel("budget, in 255ths of the intensity window")
        axes.set_ylabel(f"{rows.metric.iloc[0]}, mean over {rows.n_cases.iloc[0]} test cases")
        axes.set_ylim(-0.02, 1.02)
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
        np.resize(np.array(_COLOURS), 100), models.groupby(["model", "training"], sort=False), strict=False
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
class Gallery:
    """The worst cases of one model as a figure."""

    title: str
    figure: Figure


def worst_cases(title: str, result: Evaluation) -> Gallery:
    """The cases with the largest fall of Dice at the largest budget: clean, perturbation, adversarial.

    The reference is outlined in green, the model's diagnosis in red; of volumes the slice with most reference is shown.
    """
    outcome = max((o for o in result.outcomes if o.attack == WORST_CASE), key=lambda o: o.eps)
    fall = np.nan_to_num(result.clean.scores - outcome.scores, nan=-1.0)
    chosen = np.argsort(-fall)[:_SHOWN]
    figure = Figure(figsize=(9.5, 3.2 * len(chosen)), layout="constrained")
    for row, case in enumerate(chosen):
        _panels(figure, len(chosen), row, result, outcome, int(case))
    return Gallery(f"{title}, eps {outcome.fraction * 255:.3g}/255", figure)


def _panels(figure: Figure, rows: int, row: int, result: Evaluation, outcome: Outcome, case: int) -> None:
    assert outcome.images is not None
    clean, adversarial = result.cases.x[case, 0], outcome.images[case, 0]
    masks = [
        _any_foreground(result, hard)
        for hard in (
            result.cases.y[case],
            result.clean.diagnosis.hard[case].numpy(),
            outcome.diagnosis.hard[case].numpy(),
        )
    ]
    if clean.ndim == 3:
        where = int(masks[0].sum(axis=(0, 1)).argmax())
        clean, adversarial, *masks = (volume[..., where] for volume in (clean, adversarial, *masks))
    reference, before, after = masks
    change = adversarial - clean
    reach = float(np.abs(change).max()) or 1.0
    low, high = float(clean.min()), float(clean.max())
    attack = outcome.worst_attack[case] if outcome.worst_attack else outcome.attack
    panels = (
        (f"{result.cases.ids[case]}: Dice {result.clean.scores[case]:.2f}", clean, "gray", (low, high), before),
        (f"change, at most {reach:.3g} {result.data.intensity.unit}", change, "coolwarm", (-reach, reach), None),
        (f"{attack}: Dice {outcome.scores[case]:.2f}", adversarial, "gray", (low, high), after),
    )  # fmt: skip
    for column, (title, picture, colours, limits, found) in enumerate(panels):
        axes = figure.add_subplot(rows, 3, 3 * row + column + 1)
        axes.imshow(picture, cmap=colours, vmin=limits[0], vmax=limits[1], interpolation="nearest")
        axes.set_title(title, fontsize=8)
        axes.set_axis_off()
        if found is not None:
            for mask, colour in ((reference, "#3ddc55"), (found, "#ff4040")):
                if mask.any():
                    axes.contour(mask.astype(float), levels=[0.5], colors=[colour], linewidths=1.1)


def _any_foreground(result: Evaluation, hard: np.ndarray) -> np.ndarray:
    """Union of all foreground classes of one case, ``S``."""
    decision = result.data.decision
    if decision.exclusive:
        return np.isin(hard, decision.foreground)
    return np.asarray(hard.astype(bool).any(0))
