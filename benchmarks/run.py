"""Runs a suite: data, training, attacks, leaderboard."""

from __future__ import annotations

import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from medadv.benchmarks import data as datasets
from medadv.benchmarks.baselines import image_blind_diagnosis, image_blind_endpoints, image_blind_scores
from medadv.benchmarks.corruptions import check_modality, chosen
from medadv.benchmarks.crafting import NO_BOX, SEMI_WHITE_BOX, Memory, Surrogate
from medadv.benchmarks.data.base import Cases, Dataset
from medadv.benchmarks.defences import Defended, build_defence
from medadv.benchmarks.defended import DefenceTrials, DefendedEvaluator, attacks_through
from medadv.benchmarks.evaluate import IMAGE_BLIND, Evaluation, Planned, evaluate_estimator
from medadv.benchmarks.leaderboard import Entry, Leaderboard
from medadv.benchmarks.models import Estimator, build_estimator, weights_sha256
from medadv.benchmarks.pictures import SideBySide, attacked, worst_cases
from medadv.benchmarks.report import write_report
from medadv.benchmarks.resume import begin
from medadv.benchmarks.store import prepare_folder, provenance, write_adversarials
from medadv.benchmarks.suites import Suite, TaskSpec, load_suite
from medadv.benchmarks.survey_render import write_survey
from medadv.benchmarks.trainings import train_all

Trained = tuple[str, str]  # names of model and training


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
) -> Leaderboard:
    """Runs a suite and writes its tables and report.

    Args:
        suite: a name of :func:`~medadv.benchmarks.suites.suite_names`, a YAML file, or a validated suite.
        out: folder for ``leaderboard.csv``, ``cases.csv``, ``endpoints.csv``, ``leaderboard.meta.json``,
            ``survey.csv``, ``survey.tex``, ``training_cost.csv``, ``report.html``, ``models/`` and, where the suite
            asks for it, ``transfer.csv`` and ``bands.csv``. Where it holds the same run, interrupted, that goes on:
            finished tasks and trained networks are taken over.
        data_root: where the data sets named by the suite are.
        save_adversarials: also write the worst-case images to ``adversarials/``.
        progress: progress bars with the time left, on a terminal.

    Returns:
        The leaderboard.

    Raises:
        ValueError: an unknown suite, data that are missing, a folder that can't be written or holds another run.
    """
    plan = suite if isinstance(suite, Suite) else load_suite(suite)
    if plan.needs_data_root and data_root is None:
        raise ValueError(f"suite {plan.name!r} needs data of your own; give their folder with --data-root.")
    folder = prepare_folder(Path(out))
    if plan.threads is not None:
        torch.set_num_threads(plan.threads)
    run = _Run(plan, folder, data_root, save_adversarials, progress)
    left = [task for task in plan.tasks if task.name not in run.progress.tasks]
    for task in left:
        run.task(task)
        run.progress.keep_task(task.name, run.board)  # so that a later one that fails takes nothing with it
        run.write()
    if not left:
        run.write()
    return run.board


class _Run:
    """One run of a suite: what is shared by its tasks."""

    def __init__(self, suite: Suite, folder: Path, data_root: str | Path | None, save: bool, progress: bool) -> None:
        self.suite = suite
        self.folder = folder
        self.data_root = data_root
        self.save = save
        self.bars = progress and sys.stderr.isatty()
        self.progress, self.board = begin(suite, folder)

    def task(self, task: TaskSpec) -> None:
        """Trains and attacks all models of one task."""
        data = datasets.load(task.data, seed=self.suite.seed, data_root=self.data_root, **task.data_options)
        cases = data.test.take(task.test_cases)
        self.board.meta["data"][task.name] = {
            "name": data.name,
            "sha256": data.sha256,
            "source": data.source,
            "notes": data.notes,
        }
        check_modality(chosen(task.corruptions), data.intensity)
        self._try_defences(task, data)
        blind = Entry(self.suite.name, task.name, IMAGE_BLIND, "none", None, self.suite.seed)
        constant = image_blind_diagnosis(data)
        endpoints = image_blind_endpoints(data, cases, constant, hd95=self.suite.hd95)
        self.board.add_image_blind(blind, data, cases, image_blind_scores(data, cases, constant), endpoints)
        for seed in task.train_seeds or self.suite.train_seeds:
            trained = self._train_all(task, data, seed)
            compared = {
                model.name: SideBySide(f"{task.name}-{model.name}-{seed}", model.cam_layer) for model in task.models
            }
            # images made on one model wait here until all others have seen them
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=".replayed-") as waiting:
                memory = Memory(Path(waiting))
                for target, estimator in trained.items():
                    result = self._evaluate(task, target, trained, memory, data, seed)
                    if attacked(result):
                        compared[target[0]].add(target[1], estimator, result)
            for pictures in compared.values():
                self.progress.galleries += pictures.galleries()

    def _train_all(self, task: TaskSpec, data: Dataset, seed: int) -> dict[Trained, Estimator]:
        """All models of a task by name of model and training."""
        networks = train_all(task, data, seed, self.progress, bars=self.bars)
        for (model, name), (_, told) in networks.items():
            label = f"{task.name}-{model}-{name}-{seed}"
            if "recipe" in told:
                self.board.meta.setdefault("training", {})[label] = told
            self.board.meta["weights"][label] = self.progress.networks[label]["sha256"]
        return {target: estimator for target, (estimator, _) in networks.items()}

    def _defence(self, task: TaskSpec, title: str, estimator: Estimator, data: Dataset, *, fitted: bool) -> Defended:
        spec = task.defences[title]
        return build_defence(
            spec.kind, spec.name or title, spec.options, estimator, data, batch_size=task.batch_size,
            seed=self.suite.seed, fitted=fitted,
        )  # fmt: skip

    def _try_defences(self, task: TaskSpec, data: Dataset) -> None:
        """Refuses defences that can't be right before anything is trained."""
        own = [attack for attack in task.attacks if attack.surrogate is None]
        attacks = [Planned(attack.name, attack.options, attack.title or "", wanted=attack.wanted) for attack in own]
        for title, spec in task.defences.items():
            for model in task.models:
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # of a network that has learned nothing
                        defence = self._defence(task, title, build_estimator(model, data), data, fitted=False)
                    attacks_through(defence, attacks, spec.attacks)
                except (TypeError, ValueError) as error:
                    raise ValueError(f"task {task.name!r}, defence {title!r}, model {model.name!r}: {error}") from None

    def _trials(
        self, task: TaskSpec, training: str, estimator: Estimator, data: Dataset, attacks: list[Planned]
    ) -> DefenceTrials:
        """The defences of one trained model."""
        evaluators, through = {}, {}
        for title, spec in task.defences.items():
            if spec.trainings is None or training in spec.trainings:
                defence = self._defence(task, title, estimator, data, fitted=True)
                through[title] = attacks_through(defence, attacks, spec.attacks)
                evaluators[title] = DefendedEvaluator(
                    defence, data, batch_size=task.batch_size, seed=self.suite.seed, test_cases=task.test_cases,
                    hd95=self.suite.hd95,
                )  # fmt: skip
        return DefenceTrials(evaluators, through, keep_images=self.save)

    def _evaluate(
        self, task: TaskSpec, target: Trained, trained: dict[Trained, Estimator], memory: Memory, data: Dataset,
        seed: int,
    ) -> Evaluation:  # fmt: skip
        estimator, (model, name) = trained[target], target
        attacks = planned_attacks(task, target, trained, memory)
        once = sum(attack.has_own_budget for attack in attacks)
        budgets = sum(estimator.intensity.budget(eps).eps > 0 for eps in self.suite.budgets)
        total = budgets * (len(attacks) - once + 1) + once + len(chosen(task.corruptions))
        trials = self._trials(task, name, estimator, data, attacks)
        with tqdm(total=total, desc=f"attack {task.name} {model} {name}", disable=not self.bars) as bar:

            def on_attack(done: str) -> None:
                bar.set_postfix_str(done)
                bar.update()

            result = evaluate_estimator(
                estimator, data, attacks, self.suite.budgets, batch_size=task.batch_size, seed=self.suite.seed,
                test_cases=task.test_cases, keep_images=True, hd95=self.suite.hd95, bands=self.suite.bands,
                corruptions=task.corruptions, rows=self.suite.rows, on_attack=on_attack, on_images=trials.see,
            )  # fmt: skip
        flags = ("single-train-seed",) if len(task.train_seeds or self.suite.train_seeds) == 1 else ()
        entry = Entry(self.suite.name, task.name, model, name, seed, self.suite.seed, flags)
        self.board.add(entry, result)
        self._keep_images(entry, result)
        for title, defended in trials.evaluations().items():
            behind = replace(entry, training=f"{name}+{title}")
            self.board.add(behind, defended)
            self.board.meta.setdefault("defences", {})[_label(behind)] = {
                **trials.evaluators[title].defence.facts,
                "attacks": [attack.label for attack in trials.attacks[title]],
            }
            self._save_images(behind, defended)
        return result

    def _keep_images(self, entry: Entry, result: Evaluation) -> None:
        if result.segments and attacked(result):
            self.progress.galleries.append(worst_cases(_label(entry), result))
        self._save_images(entry, result)

    def _save_images(self, entry: Entry, result: Evaluation) -> None:
        for outcome in result.outcomes if self.save else ():
            if outcome.images is not None:
                region = "" if outcome.region == "all" else f"-{outcome.region}"
                path = self.folder / "adversarials" / f"{_label(entry)}-{outcome.threat}{region}-{outcome.eps:.5g}.npz"
                write_adversarials(path, result.cases.ids, outcome.images)

    def write(self) -> None:
        """Writes the survey's tables and the report of all tasks so far."""
        write_survey(self.board, self.folder)
        write_report(self.board, self.progress.galleries, self.folder / "report.html")


def _label(entry: Entry) -> str:
    return f"{entry.task}-{entry.model}-{entry.training}-{entry.train_seed}"


def planned_attacks(
    task: TaskSpec, target: Trained, trained: Mapping[Trained, Estimator], memory: Memory
) -> list[Planned]:
    """The attacks of a task on one model, one for each surrogate where there are several.

    Args:
        task: what is asked for.
        target: model and training that are attacked.
        trained: all models of the task.
        memory: of images that were made on surrogates.
    """
    planned = []
    for spec in task.attacks:
        plain = Planned(spec.name, spec.options, spec.title or "", spec.per_budget, None, spec.region, spec.wanted)
        sources = [] if spec.surrogate is None else spec.surrogate.sources(target, trained)
        for source in sources:
            access = SEMI_WHITE_BOX if _undefended_twin(task, source, target) else NO_BOX
            surrogate = Surrogate("/".join(source), trained[source], access, memory)
            planned.append(replace(plain, title=spec.label_of(source), surrogate=surrogate))
        planned += [plain] if spec.surrogate is None else []
    return planned


def _undefended_twin(task: TaskSpec, source: Trained, target: Trained) -> bool:
    """Whether a surrogate is the target's network, trained without a defence."""
    spec = task.trainings.get(source[1])
    return source[0] == target[0] and spec is not None and spec.recipe == "natural"
