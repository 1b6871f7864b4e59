"""Drafts a model card from a finished run: everything that the run knows, and blanks for what only its maker knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch

import medadv
from medadv.benchmarks.evaluate import IMAGE_BLIND, NO_ATTACK, WORST_CASE
from medadv.benchmarks.leaderboard import Leaderboard
from medadv.benchmarks.model_cards import CARD_VERSION, Clean, Result, WorstCase
from medadv.benchmarks.store import read_run
from medadv.names import unknown_name


def draft(
    folder: str | Path, label: str, *, name: str = "", licence: str = "", contact: str = "", data_licence: str = ""
) -> dict[str, Any]:
    """A card as JSON holds it; what is not given is blank, and reading it says so.

    Args:
        folder: of a finished run.
        label: which weights: ``TASK-MODEL-TRAINING-SEED``, as the files in ``models/`` are called.
        name: of the model; default: the label.
        licence: of the weights.
        contact: a link.
        data_licence: of the data the model was trained on.

    Raises:
        ValueError: no finished run, or no such weights.
    """
    folder = Path(folder)
    board = read_run(folder)
    if label not in labels(board):
        raise unknown_name("model", label, labels(board))
    task, model, training, seed = labels(board)[label]
    spec: dict[str, Any] = next(
        (one for one in board.meta.get("suite", {}).get("tasks", ()) if one["name"] == task), {}
    )
    network: dict[str, Any] = next((one for one in spec.get("models", ()) if one["name"] == model), {})
    made = spec.get("trainings", {}).get(training, {})
    data = board.meta.get("data", {}).get(task, {})
    return {
        "card_version": CARD_VERSION,
        "name": name or label,
        "architecture": {
            "network": network.get("network", ""), "arguments": network.get("args", {}),
            "parameters": _parameters(folder / "models" / f"{label}.pt"),
        },
        "weights_sha256": board.meta["weights"][label],
        "training": {
            "recipe": made.get("recipe", training), "options": made.get("options", {}), "epochs": made.get("epochs"),
            "seed": seed, "starts_from": made.get("warm_start"), "description": "",
        },
        "data": {
            "name": data.get("name", ""), "sha256": data.get("sha256", ""), "licence": data_licence,
            "source": data.get("source", ""),
        },
        "licence": licence,
        "contact": contact,
        "medadv_version": board.meta.get("versions", {}).get("medadv", medadv.__version__),
        "results": [result.model_dump(mode="json") for result in results_of(board, label)],
        "notes": "",
    }  # fmt: skip


def labels(board: Leaderboard) -> dict[str, tuple[str, str, str, int | None]]:
    """Task, model, training and seed of each set of weights that the table has rows of, by its label."""
    weights = board.meta.get("weights", {})
    rows = board.frame[board.frame.model != IMAGE_BLIND].drop_duplicates(["task", "model", "training", "train_seed"])
    found = {}
    for task, model, training, seed in zip(rows.task, rows.model, rows.training, rows.train_seed, strict=True):
        number = None if pd.isna(seed) else int(seed)
        if (label := f"{task}-{model}-{training}-{number}") in weights:
            found[label] = (str(task), str(model), str(training), number)
    return found


def results_of(board: Leaderboard, label: str) -> list[Result]:
    """What a table says of a set of weights: clean, and the worst case of each threat set and budget."""
    task, model, training, seed = labels(board)[label]
    of_task = board.frame[board.frame.task == task]
    seeds = of_task.train_seed.isna() if seed is None else of_task.train_seed == seed
    rows = of_task[(of_task.model == model) & (of_task.training == training) & seeds]
    clean = rows[rows.attack == NO_ATTACK].iloc[0]
    blind = of_task[of_task.model == IMAGE_BLIND]
    worst = [_worst_case(row, rows) for _, row in rows[rows.attack == WORST_CASE].iterrows()]
    if not worst:
        return []
    return [
        Result(
            suite=str(clean.suite) if pd.notna(clean.suite) else "", task=task, dataset=str(clean.dataset),
            metric=str(clean.metric), n_cases=int(clean.n_cases),
            image_blind=_number(blind.adversarial.iloc[0]) if len(blind) else None,
            clean=Clean(**_interval(clean)), worst_cases=worst,
        )
    ]  # fmt: skip


def _worst_case(row: pd.Series, rows: pd.DataFrame) -> WorstCase:
    same = (rows.threat == row.threat) & (rows.region == row.region) & (rows.eps == row.eps)
    attacks = rows[same & (rows.attack != WORST_CASE)].attack
    return WorstCase(
        **_interval(row), threat=str(row.threat), region=str(row.region), eps=_number(row.eps), unit=str(row.unit),
        eps_fraction=_number(row.eps_fraction), attacks=[str(attack) for attack in attacks] or ["not told"],
        n_unscored=int(row.n_unscored), flags=str(row["flags"]).split(";") if pd.notna(row["flags"]) else [],
    )  # fmt: skip


def _interval(row: pd.Series) -> dict[str, Any]:
    # a bound that rounding left just beside its mean is no other number
    score, low, high = (_number(row[name]) for name in ("adversarial", "ci_low", "ci_high"))
    if score is not None and low is not None and high is not None:
        low, high = min(low, score), max(high, score)
    return {"score": score, "ci_low": low, "ci_high": high, "ci_unit": row.ci_unit if low is not None else None}


def _number(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)


def _parameters(path: Path) -> int | None:
    """How many numbers a file of weights holds; None where it is not there."""
    if not path.is_file():
        return None
    state = torch.load(path, map_location="cpu", weights_only=True)
    return sum(value.numel() for value in state.values())
