"""Runs a suite: data, training, attacks, leaderboard."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm.auto import tqdm

from medadv.benchmarks.baselines import image_blind_diagnosis, image_blind_endpoints, image_blind_scores
from medadv.benchmarks.bench import TargetBench, TaskBench
from medadv.benchmarks.cell_store import Cell, now_in
from medadv.benchmarks.data.base import Cases, Dataset
from medadv.benchmarks.distribution import Cluster, fair_share
from medadv.benchmarks.evaluate import IMAGE_BLIND, NO_ATTACK
from medadv.benchmarks.figures import Gallery
from medadv.benchmarks.galleries import write_galleries
from medadv.benchmarks.jobs import RunSettings, compute
from medadv.benchmarks.leaderboard import Leaderboard
from medadv.benchmarks.leaderboard_rows import Entry
from medadv.benchmarks.models import Estimator, weights_sha256
from medadv.benchmarks.outcomes import Evaluation, Failure, Outcome, Planned, reason_of
from medadv.benchmarks.pictures import SideBySide, attacked, worst_cases
from medadv.benchmarks.report import write_report
from medadv.benchmarks.store import (
    adversarial_file,
    check_same_suite,
    prepare_folder,
    provenance,
    write_adversarials,
    write_tables,
    write_weights,
)
from medadv.benchmarks.suites import Suite, TaskSpec, load_suite
from medadv.benchmarks.survey_render import write_survey
from medadv.benchmarks.trainings import Networks, Trained
from medadv.benchmarks.trials import Corruption, Trial, evaluate_estimator

T = TypeVar("T")


def evaluate(
    estimator: Estimator,
    data: Dataset | tuple[Any, Any],
    attacks: Sequence[str | tuple[str, dict[str, Any]] | Planned],
    budgets: Sequence[float | str],
    *,
    model: str = "model",
    batch_size: int = 32,
    seed: int = 0,
    hd95: bool = False,
    corruptions: str | Sequence[str] = (),
    metrics: Mapping[str, Any] | None = None,
    rows: str = "every",
) -> Leaderboard:
    """Attacks a trained estimator and returns its leaderboard, without training anything.

    Args:
        estimator: a medadv estimator.
        data: a :class:`~medadv.benchmarks.data.Dataset`, whose test cases are attacked, or a pair of images
            ``(N, C, *S)`` and references.
        attacks: names of the catalogue, (name, options), or :class:`~medadv.benchmarks.outcomes.Planned`.
        budgets: such as ``["1/255", "4/255"]``.
        model: how the table calls the model.
        batch_size: cases at once.
        seed: of the attacks and corruptions.
        hd95: of a segmenter also the 95th percentile of the Hausdorff distance, which takes time on volumes.
        corruptions: natural corruptions to run beside the attacks, by name, or ``"all"``.
        metrics: of a segmenter also metrics of ``monai.metrics``, such as
            ``{"hd95": HausdorffDistanceMetric(percentile=95)}``, as endpoints of each case and class;
            :meth:`~medadv.benchmarks.leaderboard.Leaderboard.endpoint_summary` has their means, with the cases counted
            that are unscored or infinite.
        rows: ``"every"`` attack on every case, or the ``"worst-case"`` for fewer passes
            (:func:`~medadv.benchmarks.economy.worst_case_outcomes`).

    Example:
        >>> import numpy as np, torch
        >>> from medadv.adapters import MonaiClassifier
        >>> from medadv.decisions import Multiclass
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, 2))
        >>> estimator = MonaiClassifier(net, (1, 12, 12), decision=Multiclass(2))
        >>> x = np.random.default_rng(0).random((6, 1, 12, 12), dtype=np.float32)
        >>> board = evaluate(estimator, (x, np.array([0, 1, 0, 1, 0, 1])), ["fgsm"], ["4/255"])
        >>> board.frame.attack.tolist()
        ['none', 'noise', 'fgsm', 'worst-case']
    """
    dataset = data if isinstance(data, Dataset) else _as_dataset(estimator, *data)
    planned = [
        attack if isinstance(attack, Planned) else Planned(attack) if isinstance(attack, str) else Planned(*attack)
        for attack in attacks
    ]
    result = evaluate_estimator(
        estimator, dataset, planned, budgets, batch_size=batch_size, seed=seed, hd95=hd95, corruptions=corruptions,
        metrics=metrics, rows=rows,
    )  # fmt: skip
    board = Leaderboard(
        meta={**provenance(), "rows": rows, "weights_sha256": {model: weights_sha256(estimator.network)}}
    )
    board.add(Entry("", dataset.name, model, "given", None, seed), result)
    return board


def _as_dataset(estimator: Estimator, x: Any, y: Any) -> Dataset:
    images = torch.as_tensor(x, dtype=torch.float32).cpu().numpy()
    spatial = images.shape[2:] if estimator.segments else ()
    target, _ = estimator.decision.canonical(y, spatial)
    nothing = Cases(images[:0], target[:0].cpu().numpy(), ())
    return Dataset(
        name="given", task="segmentation" if estimator.segments else "classification", decision=estimator.decision,
        intensity=estimator.intensity, classes=tuple(f"class {c}" for c in range(estimator.decision.channels)),
        train=nothing, validation=nothing,
        test=Cases(images, target.cpu().numpy(), tuple(f"case-{i:04d}" for i in range(len(images)))),
    )  # fmt: skip


def run_suite(
    suite: str | Path | Suite,
    *,
    out: str | Path,
    data_root: str | Path | None = None,
    save_adversarials: bool = False,
    progress: bool = True,
    threads: int | None = None,
    force: bool = False,
    keep_stale: bool = False,
    cluster: Cluster | None = None,
) -> Leaderboard:
    """Runs a suite and writes its tables and report.

    Every result is kept in ``cells/`` of the folder under a hash of all that decides it, as soon as it is there: a run
    that was interrupted, or whose suite has changed, goes on with the same call and computes what is missing. What
    raises becomes a row of the leaderboard with its reason in column ``error``; the rest goes on.

    Args:
        suite: a name of :func:`~medadv.benchmarks.suites.suite_names`, a YAML file, or a validated suite.
        out: folder for ``leaderboard.csv``, ``cases.csv``, ``endpoints.csv``, ``diagnostics.csv``,
            ``leaderboard.meta.json``, ``survey.csv``, ``survey.tex``, ``training_cost.csv``, ``report.html``,
            ``models/``, ``cells/`` and, where the suite asks for it, ``transfer.csv`` and ``bands.csv``.
        data_root: where the data sets named by the suite are.
        save_adversarials: also write the worst-case images to ``adversarials/``.
        progress: progress bars with the time left, on a terminal.
        threads: of each cell, which they belong to: sums over other numbers of threads differ in the last digits;
            default: those of the suite, else of torch, and of local workers a fair share of these.
        force: compute everything again.
        keep_stale: take results that other versions of the libraries have computed, and flag their rows ``stale``.
        cluster: Dask workers that compute the cells; default: this process.

    Returns:
        The leaderboard.

    Raises:
        ValueError: an unknown suite, data that are missing, a folder that can't be written or holds another suite.
    """
    plan = suite if isinstance(suite, Suite) else load_suite(suite)
    if plan.needs_data_root and data_root is None:
        raise ValueError(f"suite {plan.name!r} needs data of your own; give their folder with --data-root.")
    if threads is not None and threads < 1:
        raise ValueError(f"threads={threads} can't compute anything; give 1 or more.")
    folder = prepare_folder(Path(out))
    check_same_suite(folder, plan)
    settings = RunSettings(
        plan, folder, data_root, threads=threads or plan.threads or fair_share(cluster), keep_stale=keep_stale,
        since=now_in(folder) if force else 0.0, keep_images=save_adversarials,
    )  # fmt: skip
    with settings.threaded():
        run = _Run(settings, save_adversarials, progress)
        if cluster is not None:
            run.failed = compute(settings, cluster, bars=run.bars)
        for task in plan.tasks:
            run.task(task)
            run.write()
    return run.board


class _Run:
    """One run of a suite: its tables and pictures, made of the results of its cells."""

    def __init__(self, settings: RunSettings, save: bool, progress: bool) -> None:
        self.settings = settings
        self.suite = settings.suite
        self.folder = settings.folder
        self.save = save
        self.bars = progress and sys.stderr.isatty()
        self.store = settings.store()
        self.store.tidy()
        self.galleries: list[Gallery] = []
        self.failed: dict[str, str] = {}  # what workers could not compute, and why, by the hash of the cell
        told = {**provenance(), "suite": self.suite.model_dump(mode="json")}
        self.board = Leaderboard(meta={**told, "data": {}, "weights": {}})

    def task(self, task: TaskSpec) -> None:
        """Trains and attacks all models of one task."""
        bench = self.settings.bench(task.name, self.store, bars=self.bars)
        data, meta = bench.data, self.board.meta
        meta["data"][task.name] = {
            "name": data.name, "sha256": bench.sha256, "source": data.source, "notes": data.notes,
        }  # fmt: skip
        bench.check_defences()
        self._image_blind(task, data)
        for seed in bench.seeds:
            compared = {
                model.name: SideBySide(f"{task.name}-{model.name}-{seed}", model.cam_layer) for model in task.models
            }
            networks = bench.networks(seed)
            known = {name: self.failed.get(networks.cell(name).config) for name in networks.names}
            networks.failed.update({name: reason for name, reason in known.items() if reason is not None})
            for name in networks.names:
                self._target(bench, name, seed, compared[name[0]])
            for pictures in compared.values():
                self.galleries += pictures.galleries()
            bench.release(seed)

    def _image_blind(self, task: TaskSpec, data: Dataset) -> None:
        cases = data.test.take(task.test_cases)
        blind = Entry(self.suite.name, task.name, IMAGE_BLIND, "none", None, self.suite.seed)
        constant = image_blind_diagnosis(data)
        endpoints = image_blind_endpoints(data, cases, constant, hd95=self.suite.hd95)
        self.board.add_image_blind(blind, data, cases, image_blind_scores(data, cases, constant), endpoints)

    def _target(self, bench: TaskBench, name: Trained, seed: int, compared: SideBySide) -> None:
        """One trained model, undefended and behind each defence."""
        flags = ("single-train-seed",) if len(bench.seeds) == 1 else ()
        entry = Entry(self.suite.name, bench.task.name, *name, seed, self.suite.seed, flags)
        networks = bench.networks(seed)
        try:
            target = bench.target(name, seed)
        except Exception as error:  # whatever a training raises, the other models go on
            self._lost(bench, entry, "training", error)
            return
        self._describe(networks, name)
        if target.calibration is not None:
            told = self.board.meta.setdefault("acceleration", {})
            told[target.label] = json.loads(target.calibration.to_json(orient="records"))
        try:
            result = self._evaluated(target)
        except Exception as error:  # of the clean images; those of attacks and checks are rows of their own
            self._lost(bench, entry, "evaluation", error)
            return
        self.board.add(entry, result)
        if attacked(result):
            if result.segments:
                self.galleries.append(worst_cases(_label(entry), result))
            compared.add(name[1], target.estimator, result)
        self._save_images(entry, result)
        self._defended(target, entry)
        if not result.failures:
            target.prune(result)

    def _lost(self, bench: TaskBench, entry: Entry, what: str, error: Exception) -> None:
        """The one row of a model of which nothing else can be told."""
        reason = reason_of(error)
        self._tell(f"{what} of {_label(entry)}", reason)
        self.board.add_failures(entry, bench.data, bench.cases, [Failure(NO_ATTACK, f"{what} failed: {reason}")])

    def _describe(self, networks: Networks, name: Trained) -> None:
        network, label = networks[name], networks.label(name)
        if "recipe" in network.told:
            self.board.meta.setdefault("training", {})[label] = network.told
        self.board.meta["weights"][label] = network.sha256
        write_weights(network.estimator.network, self.folder / "models" / f"{label}.pt")

    def _evaluated(self, target: TargetBench) -> Evaluation:
        with tqdm(total=len(target.schedule.all), desc=f"attack {target.label}", disable=not self.bars) as bar:

            def outcome_of(trial: Trial | Corruption) -> Outcome | Failure:
                bar.set_postfix_str(trial.label)
                found = self._attempted(target.cell(trial), lambda: target.with_images(trial))
                bar.update()
                return trial.failed(found, target.estimator.intensity) if isinstance(found, str) else found

            if target.economical:
                worst = self._attempted(target.worst_cell, target.worst_cases)
                if isinstance(worst, str):
                    return target.without_attacks(worst)
                result = target.worst_evaluation(worst, outcome_of)
            else:
                result = target.evaluation(outcome_of)
        found = self._attempted(target.findings_cell, target.findings)
        if isinstance(found, str):
            result.failures.append(Failure("diagnostics", found))
        else:
            result.findings = found
        return result

    def _attempted(self, cell: Cell, compute: Callable[[], T]) -> T | str:
        """A result, or why there is none."""
        if cell.config in self.failed:
            return self.failed[cell.config]
        try:
            return compute()
        except Exception as error:  # whatever a cell raises, the others go on
            self.failed[cell.config] = reason_of(error)
            self._tell(cell.label, self.failed[cell.config])
            return self.failed[cell.config]

    @staticmethod
    def _tell(what: str, reason: str) -> None:
        print(f"medadv: {what} failed: {reason}", file=sys.stderr)

    def _defended(self, target: TargetBench, entry: Entry) -> None:
        for title in target.defences:
            behind = replace(entry, training=f"{entry.training}+{title}")
            try:
                self._behind(target, title, behind)
            except Exception as error:  # whatever a defence raises, the others go on
                self._lost(target.bench, behind, "defence", error)

    def _behind(self, target: TargetBench, title: str, entry: Entry) -> None:
        """One model behind one defence."""
        trials = target.behind(title)
        found: list[Outcome] = []
        failures: list[Failure] = []
        for trial in target.schedule.attacks:
            if trials.concerned(trial.planned):
                made = self._attempted(target.defended_cell(title, trial), partial(target.defended, title, trial))
                if isinstance(made, str):
                    failures.append(trial.failed(made, target.estimator.intensity))
                else:
                    found += made
        defended = trials.evaluation(found, failures)
        self.board.add(entry, defended)
        self.board.meta.setdefault("defences", {})[_label(entry)] = {
            **trials.evaluator.defence.facts, "attacks": [attack.label for attack in trials.attacks],
        }  # fmt: skip
        self._save_images(entry, defended)

    def _save_images(self, entry: Entry, result: Evaluation) -> None:
        for outcome in result.outcomes if self.save else ():
            if outcome.images is not None:
                name = adversarial_file(_label(entry), outcome.threat, outcome.region, outcome.eps)
                write_adversarials(self.folder / "adversarials" / name, result.cases.ids, outcome.images)

    def write(self) -> None:
        """Writes the tables, the survey's tables and the report of all tasks so far."""
        write_tables(self.board, self.folder)
        write_galleries(self.galleries, self.folder)
        write_survey(self.board, self.folder)
        write_report(self.board, self.galleries, self.folder / "report.html")


def _label(entry: Entry) -> str:
    return f"{entry.task}-{entry.model}-{entry.training}-{entry.train_seed}"
