"""Evaluates what a run stored once more, and tells whether its table says the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import ValidationError

from medadv.benchmarks import data as datasets
from medadv.benchmarks.baselines import image_blind_scores
from medadv.benchmarks.crafting import Crafted
from medadv.benchmarks.data.base import Dataset
from medadv.benchmarks.defences import build_defence
from medadv.benchmarks.defended import DefendedEvaluator
from medadv.benchmarks.evaluate import IMAGE_BLIND, NO_ATTACK, WORST_CASE, Evaluator, Planned
from medadv.benchmarks.leaderboard import Leaderboard
from medadv.benchmarks.models import build_estimator, load_checkpoint, weights_sha256
from medadv.benchmarks.sources import ROW_KEY, check_version, checked, keys_of
from medadv.benchmarks.store import adversarial_file, provenance, read_run
from medadv.benchmarks.stored_images import check_allowed, read_images
from medadv.benchmarks.suite_parts import DefenceSpec, ModelSpec
from medadv.benchmarks.survey import reference_stays
from medadv.benchmarks.table_arithmetic import contradictions
from medadv.intensities import Budget, Intensity

RIGHT, WRONG, NOT_STORED = "right", "wrong", "not stored"
SAME_MACHINE, OTHER_MACHINE = 1e-6, 0.01
_SHOWN = ["task", "model", "training", "train_seed", "attack", "threat", "region", "eps"]


@dataclass(frozen=True)
class Verdict:
    """What came of one row: right, wrong or not stored, the score that was found, and why."""

    verdict: str
    found: float = np.nan
    reason: str = ""


def default_tolerance(meta: Mapping[str, Any]) -> float:
    """How far scores may differ, as the mean over cases: not at all on the machine of the run, else by 0.01.

    Kernels of other processors, versions or numbers of threads round otherwise, and a voxel on the boundary flips.
    """
    here = provenance()
    same = all(meta.get(name) == here[name] for name in ("versions", "threads", "hardware"))
    return SAME_MACHINE if same else OTHER_MACHINE


def verify(folder: str | Path, *, data_root: str | Path | None = None, tolerance: float | None = None) -> pd.DataFrame:
    """Checks the table of a finished run against its data, its weights and its stored images.

    The data are loaded again and their hash compared, each network is built and its weights' hash compared. Clean rows,
    image-blind rows and worst cases with stored images are evaluated again; the images have to be within the budget,
    range, storage grid and region that their row claims, and as far from the clean ones as ``cases.csv`` says. All
    other rows have to be the means of their cases.

    Args:
        folder: of a run, with ``--save-adversarials`` also of its images.
        data_root: as for :func:`~medadv.benchmarks.run_suite`.
        tolerance: how far scores may differ, as the mean over cases; None: see :func:`default_tolerance`.

    Returns:
        A row per row of the leaderboard: ``task, model, training, train_seed, attack, threat, region, eps``, the score
        in the ``table`` and that ``found`` again, ``verdict`` (``right``, ``wrong`` or ``not stored``) and ``reason``;
        after these a row for each stored file that no row of the table speaks of.

    Raises:
        ValueError: no finished run, merged results, another schema, a provenance that tells no suite, or data that are
            not there.
    """
    folder = Path(folder)
    board = read_run(folder)
    if "merged" in board.meta:
        names = ", ".join(part["name"] for part in board.meta["merged"])
        raise ValueError(f"{str(folder)!r} is merged and holds no weights; verify the runs it is made of: {names}.")
    check_version(board.meta.get("schema_version"), str(folder))
    board.frame = checked(board.frame, str(folder))
    try:
        tasks = {task["name"]: _Task.told(task, board.meta) for task in board.meta["suite"]["tasks"]}
    except (KeyError, TypeError, ValidationError) as error:
        raise ValueError(
            f"{str(folder / 'leaderboard.meta.json')!r} does not tell how to build its networks "
            f"({type(error).__name__}: {str(error).splitlines()[0]}); give the folder as the run left it."
        ) from None
    unknown = sorted(set(board.frame.task) - set(tasks))
    if unknown:
        raise ValueError(
            f"task {unknown[0]!r} of the table is none of the suite's; give the folder as the run left it."
        )
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(int(board.meta.get("threads") or threads))
        chosen = default_tolerance(board.meta) if tolerance is None else tolerance
        failed = board.failures
        board.frame = board.frame[board.frame.error == ""].reset_index(drop=True)
        table = _Verification(folder, board, tasks, data_root, chosen).table()
        lost = failed[_SHOWN].assign(verdict=NOT_STORED, reason="it failed in the run and has no score")
        return pd.concat([table, lost], ignore_index=True) if len(lost) else table
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class _Task:
    """What the provenance tells of a task."""

    name: str
    seed: int
    data: str
    data_options: dict[str, Any]
    sha256: str
    test_cases: int | None
    batch_size: int
    models: dict[str, ModelSpec]
    defences: dict[str, DefenceSpec]
    budgets: list[Any]

    @classmethod
    def told(cls, task: Mapping[str, Any], meta: Mapping[str, Any]) -> _Task:
        # trainings are not read: weights are there, and a training may have come from code of another version
        models = {model["name"]: ModelSpec.model_validate({**model, "checkpoint": None}) for model in task["models"]}
        defences = {title: DefenceSpec.model_validate(spec) for title, spec in task["defences"].items()}
        own = [attack["options"]["eps"] for attack in task["attacks"] if "eps" in attack["options"]]
        return cls(
            task["name"], int(meta["suite"]["seed"]), task["data"], task["data_options"],
            meta["data"].get(task["name"], {}).get("sha256", "none"), task["test_cases"], task["batch_size"], models,
            defences, [*meta["suite"]["budgets"], *own],
        )  # fmt: skip

    def load(self, data_root: str | Path | None) -> Dataset:
        return datasets.load(self.data, seed=self.seed, data_root=data_root, **self.data_options)

    def trained(self, training: str) -> tuple[str, str | None]:
        """The training, and the defence behind it, in the words of a row."""
        title = next((title for title in self.defences if training.endswith(f"+{title}")), None)
        return (training, None) if title is None else (training.removesuffix(f"+{title}"), title)

    def budget(self, eps: float, intensity: Intensity) -> Budget:
        """A budget in the words of the suite, which know a width for each channel."""
        for words in self.budgets:
            try:
                budget = intensity.budget(words)
            except (ValueError, TypeError):  # of a threat that is no ball
                continue
            if budget.eps == eps:
                return budget
        return intensity.budget(float(eps))


class _Verification:
    """One run that is verified."""

    def __init__(
        self, folder: Path, board: Leaderboard, tasks: dict[str, _Task], data_root: str | Path | None, tolerance: float
    ) -> None:
        self.folder, self.board, self.tasks = folder, board, tasks
        self.data_root, self.tolerance = data_root, tolerance
        self.weights: dict[str, str] = board.meta.get("weights", {})
        self.keys = keys_of(board.frame, ROW_KEY)
        of_case = keys_of(board.cases, ROW_KEY)
        self.cases = {key: rows.drop_duplicates("case").set_index("case") for key, rows in board.cases.groupby(of_case)}

    def table(self) -> pd.DataFrame:
        verdicts: dict[str, Verdict] = {}
        for name, rows in self.board.frame.groupby("task", sort=False):
            verdicts |= self._task(self.tasks[str(name)], rows)
        for key, reason in contradictions(self.board.frame, self.board.cases).items():
            if verdicts[key].verdict != WRONG:
                verdicts[key] = Verdict(WRONG, verdicts[key].found, reason)
        told = [verdicts[key] for key in self.keys]
        table = self.board.frame[_SHOWN].assign(
            table=self.board.frame.adversarial, found=[v.found for v in told], verdict=[v.verdict for v in told],
            reason=[v.reason for v in told],
        )  # fmt: skip
        return pd.concat([table, pd.DataFrame(self._strays())], ignore_index=True)

    def _strays(self) -> Iterator[dict[str, Any]]:
        """Stored files that the table does not speak of."""
        known = set()
        for row in self.board.frame[self.board.frame.model != IMAGE_BLIND].itertuples():
            trained, _ = self.tasks[str(row.task)].trained(str(row.training))
            known.add(f"{_label(row, trained)}.pt")
            known.add(adversarial_file(_label(row, row.training), str(row.threat), str(row.region), float(row.eps)))  # type: ignore[arg-type]
        for path in sorted([*self.folder.glob("adversarials/*.npz"), *self.folder.glob("models/*.pt")]):
            if path.name not in known:
                yield {"verdict": WRONG, "reason": f"no row of the table is of {path.parent.name}/{path.name}"}

    def _task(self, task: _Task, rows: pd.DataFrame) -> dict[str, Verdict]:
        data = task.load(self.data_root)
        if data.sha256 != task.sha256:
            reason = f"the data have sha256 {data.sha256[:8]}, the run's {task.sha256[:8]}"
            return dict.fromkeys(self.keys[rows.index], Verdict(WRONG, reason=reason))
        found: dict[str, Verdict] = {}
        for _, of_network in rows.groupby(["model", "training", "train_seed"], sort=False, dropna=False):
            keys = list(self.keys[of_network.index])
            if of_network.model.iloc[0] == IMAGE_BLIND:
                cases = data.test.take(task.test_cases)
                found[keys[0]] = self._scored(keys[0], cases.ids, image_blind_scores(data, cases))
            else:
                evaluator = self._evaluator(task, data, of_network.iloc[0])
                for key, (_, row) in zip(keys, of_network.iterrows(), strict=True):
                    found[key] = (
                        evaluator if isinstance(evaluator, Verdict) else self._row(key, row, evaluator, task)
                    )  # fmt: skip
        return found

    def _evaluator(self, task: _Task, data: Dataset, row: pd.Series) -> Evaluator | Verdict:
        """The network of some rows as it is deployed, or why it is not that of the run."""
        trained, title = task.trained(row.training)
        name = f"{_label(row, trained)}.pt"
        path = self.folder / "models" / name
        if row.model not in task.models:
            return Verdict(WRONG, reason=f"the suite has no model {row.model!r}")
        if not path.is_file():
            return Verdict(NOT_STORED, reason=f"models/{name} is not there")
        estimator = build_estimator(task.models[row.model], data)
        try:
            load_checkpoint(estimator.network, path)
        except ValueError as error:
            return Verdict(WRONG, reason=str(error))
        digest, told = weights_sha256(estimator.network), str(self.weights.get(path.stem, "none"))
        if digest != told:
            return Verdict(WRONG, reason=f"models/{name} has sha256 {digest[:8]}, the run told {told[:8]}")
        settings: Any = {"batch_size": task.batch_size, "seed": task.seed, "test_cases": task.test_cases}
        if title is None:
            return Evaluator(estimator, data, **settings)
        spec = task.defences[title]
        defence = build_defence(spec.kind, spec.name or title, spec.options, estimator, data,
                                batch_size=task.batch_size, seed=task.seed, fitted=True)  # fmt: skip
        return DefendedEvaluator(defence, data, **settings)

    def _row(self, key: str, row: pd.Series, evaluator: Evaluator, task: _Task) -> Verdict:
        ids = evaluator.cases.ids
        if row.attack == NO_ATTACK:
            return self._scored(key, ids, evaluator.clean.scores)
        if row.attack != WORST_CASE:
            return Verdict(NOT_STORED, reason="only images of worst cases are kept")
        name = f"adversarials/{adversarial_file(_label(row, row.training), row.threat, row.region, row.eps)}"
        if not (self.folder / name).is_file():
            return Verdict(NOT_STORED, reason=f"{name} is not there")
        try:
            images = read_images(self.folder / name, evaluator)
            check_allowed(images, row, evaluator, task.budget(row.eps, evaluator.data.intensity))
        except ValueError as error:
            return Verdict(WRONG, reason=f"{name}: {error}")
        facts = {
            "access": row.access, "threat": row.threat, "settings": {}, "eps": row.eps, "fraction": row.eps_fraction,
        }  # fmt: skip
        outcome = evaluator.judge(Planned(WORST_CASE), Crafted(images, None, facts))
        for size in ("linf", "l2_rms"):
            reason = self._another_size(key, ids, size, getattr(outcome, size))
            if reason:
                return Verdict(WRONG, reason=f"{name}: {reason}")
        if evaluator.data.task == "segmentation" and not reference_stays(row.threat):
            return Verdict(NOT_STORED, reason=f"{row.threat} moves or covers the reference, which is not kept")
        return self._scored(key, ids, outcome.scores)

    def _another_size(self, key: str, ids: tuple[str, ...], name: str, sizes: np.ndarray) -> str:
        """Where images are not as far from the clean ones as ``cases.csv`` says; rounding aside, on any machine."""
        known = self.cases.get(key)
        if known is None:
            return "cases.csv has no case of it"
        told = known.reindex(ids)[name].to_numpy(float)
        off = ~np.isclose(sizes, told, rtol=1e-6, atol=1e-12)
        case = int(off.argmax())
        return (
            f"{name} of case {ids[case]!r} is {sizes[case]:.6g}, cases.csv says {told[case]:.6g}" if off.any() else ""
        )

    def _scored(self, key: str, ids: tuple[str, ...], scores: np.ndarray) -> Verdict:
        """Scores per case beside those of ``cases.csv``."""
        mean = float(np.nanmean(scores)) if np.isfinite(scores).any() else np.nan
        known = self.cases.get(key)
        if known is None or set(known.index) != set(ids):
            return Verdict(WRONG, mean, "cases.csv has other cases than the data")
        told = known.reindex(ids).adversarial.to_numpy(float)
        if (np.isnan(told) != np.isnan(scores)).any():
            return Verdict(WRONG, mean, "cases.csv leaves other cases unscored")
        gap = np.nan_to_num(np.abs(told - scores))
        if gap.mean() <= self.tolerance:
            return Verdict(RIGHT, mean)
        worst = int(gap.argmax())
        return Verdict(WRONG, mean, f"case {ids[worst]!r} scores {scores[worst]:.4g}, cases.csv says "
                                    f"{told[worst]:.4g} (mean difference {gap.mean():.2g})")  # fmt: skip


def _label(row: Any, training: str) -> str:
    return f"{row.task}-{row.model}-{training}-{row.train_seed:.0f}"
