"""The matrix: every attack against every kind of model, on tiny models with a known break: right, or refused."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from medadv.attacks import CatalogueAttack, FrameworkAttack, Recipe, create, recipes
from medadv.benchmarks.matrix_settings import SETTINGS, Setting
from medadv.benchmarks.toys import EPS, KINDS, Toy, toy
from medadv.search import RandomDraws

CLEARLY = 0.1
RIGHT, REFUSED, NO_SUCCESS, WRONG, ERROR = "right", "refused", "no success", "wrong", "error"
COLUMNS = ("attack", "dims", "model", "verdict", "reason", "clean", "noise", "adversarial", "seconds")


def _steps(row: Recipe) -> dict[str, Any]:
    """Few steps: the break is near."""
    few = {"white-box": 10, "score": 300, "decision": 10}.get(row.access, 10)
    return {"max_iter": few} if "max_iter" in row.all_options else {}


def budget_of(norm: float | None, case: Toy) -> float | None:
    """A budget that holds the known break: :data:`EPS` per voxel, and half as much spread evenly in a summed norm."""
    if norm is None:
        return None
    size = case.x[0].size
    return EPS if norm == np.inf else EPS / 2 * size ** (1 / norm)


def try_attack(name: str, case: Toy, row: Recipe | None = None) -> dict[str, Any]:
    """One cell of the matrix: a row of :data:`COLUMNS`."""
    row = row or recipes()[name]
    began = time.perf_counter()
    cell: dict[str, Any] = {"attack": name, "dims": case.dims, "model": case.kind}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cell |= _judged(name, row, case)
    except (ValueError, TypeError) as refusal:
        cell |= _refusal(refusal)
    except Exception as error:
        cell |= {"verdict": ERROR, "reason": f"{type(error).__name__}: {error}"}
    return {**cell, "seconds": time.perf_counter() - began}


def _refusal(error: Exception) -> dict[str, Any]:
    """A refusal comes from medadv; the same kind of exception from inside another library is an error."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = "" if trace is None else trace.tb_frame.f_globals.get("__name__", "")
    verdict = REFUSED if module.startswith("medadv") else ERROR
    return {"verdict": verdict, "reason": f"{'' if verdict == REFUSED else module + ': '}{error}"}


def _judged(name: str, row: Recipe, case: Toy) -> dict[str, Any]:
    setting = SETTINGS.get(name, Setting())
    options = {**_steps(row), **setting.options, **setting.build(case)}
    eps = options.pop("eps", budget_of(row.norms[0] if row.norms else None, case))
    attack = create(name, case.estimator, eps=eps, **options)
    before = _state(case)
    x_adv = attack.generate(case.x, case.wanted if attack.targeted else case.y)
    faults = [*_faults(attack, case, x_adv), *([] if _state(case) == before else ["the model was changed"])]
    clean, noise = _score(case, attack, case.x), _noise_score(attack, case)
    adversarial = _score(case, attack, x_adv, attack)
    scores = {"clean": clean, "noise": noise, "adversarial": adversarial}
    if faults:
        return {"verdict": WRONG, "reason": "; ".join(faults), **scores}
    gained = adversarial - noise if attack.targeted else noise - adversarial
    if row.access == "none" or gained > CLEARLY:
        return {"verdict": RIGHT, "reason": "a baseline" if row.access == "none" else "", **scores}
    return {"verdict": NO_SUCCESS, "reason": setting.unsuccessful, **scores}


def _state(case: Toy) -> list[Any]:
    """What an attack must leave as it found it."""
    model = case.estimator.model
    return [
        [module.training for module in model.modules()],
        [(p.requires_grad, p.grad is None) for p in model.parameters()],
        [value.double().sum().item() for value in model.state_dict().values()],
        torch.random.get_rng_state().tolist(),
        int(np.random.get_state()[2]),  # type: ignore[arg-type, index]
    ]


def _faults(attack: CatalogueAttack, case: Toy, x_adv: np.ndarray) -> list[str]:
    """Guarantees that do not hold, in words."""
    if x_adv.shape != case.x.shape or x_adv.dtype != case.x.dtype:
        return [f"shape or type changed to {x_adv.shape} {x_adv.dtype}"]
    faults = [] if np.isfinite(x_adv).all() else ["not finite"]
    if x_adv.min() < 0 or x_adv.max() > 1:
        faults.append("outside the intensity range")
    kind, budget = attack.threat_kind, attack.budget
    if kind is not None and kind.norm is not None and budget is not None:
        moved = np.abs(x_adv.astype(np.float64) - case.x).reshape(len(x_adv), -1)
        size = moved.max(1) if kind.norm == np.inf else (moved**kind.norm).sum(1) ** (1 / kind.norm)
        if size.max() > budget.eps * (1 + 1e-6) + 1e-7:
            faults.append(f"budget exceeded: {size.max():g} of {budget.eps:g}")
    return faults


def _noise_score(attack: CatalogueAttack, case: Toy) -> float:
    """Score of a random member of the attack's own threat set, or of uniform noise of :data:`EPS`."""
    kind, budget = attack.threat_kind, attack.budget
    if isinstance(attack, FrameworkAttack) and kind is not None and kind.norm is None:
        options = {name: getattr(attack, name) for name in attack.recipe.all_options}
        options |= {"num_random_init": 1} if "num_random_init" in options else {}
        drawn = replace(attack.recipe, search=lambda twin: RandomDraws(0, 1, twin.seed), keep="last")
        twin: CatalogueAttack = FrameworkAttack(case.estimator, drawn, eps=attack.eps, **options)
    else:
        norm, eps = (np.inf, EPS) if kind is None or kind.norm is None or budget is None else (kind.norm, budget.eps)
        twin = create("noise", case.estimator, eps=eps, norm=norm)
    return _score(case, attack, twin.generate(case.x, case.y), twin)


def _score(case: Toy, attack: CatalogueAttack, x: np.ndarray, made_by: CatalogueAttack | None = None) -> float:
    """Mean hard score against what the attack is about; where a threat moves the reference, against the moved one."""
    decision = case.estimator.decision
    spatial = case.x.shape[2:] if case.estimator.segments else ()
    target, valid = decision.canonical(case.wanted if attack.targeted else case.y, spatial)
    if made_by is not None and made_by.reference is not None and not attack.targeted:
        target, valid = (torch.from_numpy(part) for part in made_by.reference)
    return float(decision.score(torch.from_numpy(case.estimator.predict(x)), target, valid).nanmean())


def matrix(names: Sequence[str] | None = None, dims: Sequence[int] = (2, 3), progress: bool = True) -> pd.DataFrame:
    """Every attack against every kind of tiny model.

    Args:
        names: rows of the catalogue; default: all, with those of torchattacks and ART.
        dims: ranks to try.
        progress: a bar on a terminal.

    Returns:
        A row per cell, columns :data:`COLUMNS`. The verdict is ``right`` (clearly below what noise of the same size
        does, within budget, the model left as found), ``refused`` with the reason, ``no success`` with the reason where
        one is known, ``wrong`` (a guarantee does not hold) or ``error`` (an exception that is no refusal).
    """
    rows = recipes()
    cases = [toy(kind, rank) for rank in dims for kind in KINDS]
    chosen = list(rows) if names is None else list(names)
    cells = []
    with tqdm(total=len(chosen) * len(cases), disable=not (progress and sys.stderr.isatty())) as bar:
        for name in chosen:
            for case in cases:
                bar.set_postfix_str(name)
                cells.append(try_attack(name, case))
                bar.update()
    return pd.DataFrame(cells, columns=list(COLUMNS))


def unexplained(table: pd.DataFrame) -> pd.DataFrame:
    """The cells that may not be there: errors, wrong results, and failures without a reason."""
    silent = (table.verdict == NO_SUCCESS) & (table.reason == "")
    return table[table.verdict.isin([WRONG, ERROR]) | silent]


def summary(table: pd.DataFrame) -> str:
    """Verdicts and their counts, in one line."""
    counts = table.verdict.value_counts()
    share = (table.verdict == NO_SUCCESS).mean()
    parts = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    return f"{len(table)} cells: {parts}; without success {share:.1%}"
