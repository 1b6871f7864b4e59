"""Runs a suite: data, training, attacks, leaderboard."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from medadv.benchmarks import data as datasets
from medadv.benchmarks.baselines import image_blind_diagnosis, image_blind_endpoints, image_blind_scores
from medadv.benchmarks.data.base import Cases, Dataset
from medadv.benchmarks.evaluate import IMAGE_BLIND, Evaluation, Planned, evaluate_estimator
from medadv.benchmarks.figures import Gallery
from medadv.benchmarks.leaderboard import Entry, Leaderboard
from medadv.benchmarks.models import Estimator, build_estimator, weights_sha256
from medadv.benchmarks.pictures import SideBySide, attacked, worst_cases
from medadv.benchmarks.report import write_report
from medadv.benchmarks.store import prepare_folder, provenance, write_adversarials, write_tables, write_weights
from medadv.benchmarks.suites import ModelSpec, Suite, TaskSpec, TrainingSpec, load_suite
from medadv.benchmarks.survey_render import write_survey
from medadv.training import Recipe, Validation, train


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
) -> Leaderboard:
    """Attacks a trained estimator and returns its leaderboard, without training anything.

    Args:
        estimator: a medadv estimator.
        data: a :class:`~medadv.benchmarks.data.Dataset`, whose test cases are attacked, or a pair of images
            ``(N, C, *S)`` and references.
        attacks: names of the catalogue, (name, options), or :class:`~medadv.benchmarks.evaluate.Planned`.
        budgets: such as ``["1/255", "4/255"]``.
        model: how the table calls the model.
        batch_size: cases at once.
        seed: of the attacks.
        hd95: of a segmenter also the 95th percentile of the Hausdorff distance, which takes time on volumes.

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
    result = evaluate_estimator(estimator, dataset, planned, budgets, batch_size=batch_size, seed=seed, hd95=hd95)
    board = Leaderboard(meta={**provenance(), "weights_sha256": {model: weights_sha256(estimator.network)}})
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
            ``survey.csv``, ``survey.tex``, ``training_cost.csv``, ``report.html`` and ``models/``.
        data_root: where the data sets named by the suite are.
        save_adversarials: also write the worst-case images to ``adversarials/``.
        progress: progress bars with the time left, on a terminal.

    Returns:
        The leaderboard.

    Raises:
        ValueError: an unknown suite, data that are missing, an output folder that can't be written.
    """
    plan = suite if isinstance(suite, Suite) else load_suite(suite)
    if plan.needs_data_root and data_root is None:
        raise ValueError(f"suite {plan.name!r} needs data of your own; give their folder with --data-root.")
    folder = prepare_folder(Path(out))
    if plan.threads is not None:
        torch.set_num_threads(plan.threads)
    run = _Run(plan, folder, data_root, save_adversarials, progress)
    for task in plan.tasks:
        run.task(task)
        run.write()  # after each task, so that a later one that fails takes nothing with it
    return run.board


class _Run:
    """One run of a suite: what is shared by its tasks."""

    def __init__(self, suite: Suite, folder: Path, data_root: str | Path | None, save: bool, progress: bool) -> None:
        self.suite = suite
        self.folder = folder
        self.data_root = data_root
        self.save = save
        self.progress = progress and sys.stderr.isatty()
        self.board = Leaderboard(
            meta={**provenance(), "suite": suite.model_dump(mode="json"), "data": {}, "weights": {}}
        )
        self.galleries: list[Gallery] = []

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
        blind = Entry(self.suite.name, task.name, IMAGE_BLIND, "none", None, self.suite.seed)
        constant = image_blind_diagnosis(data)
        endpoints = image_blind_endpoints(data, cases, constant, hd95=self.suite.hd95)
        self.board.add_image_blind(blind, data, cases, image_blind_scores(data, cases, constant), endpoints)
        for model in task.models:
            for seed in task.train_seeds or self.suite.train_seeds:
                trained: dict[str, Estimator] = {}
                for name, training in _trainings(task, model):
                    trained[name] = self._train(task, model, name, training, data, seed, trained)
                compared = SideBySide(f"{task.name}-{model.name}-{seed}", model.cam_layer)
                for name, estimator in trained.items():
                    result = self._evaluate(task, model, name, trained, data, seed)
                    if attacked(result):
                        compared.add(name, estimator, result)
                self.galleries += compared.galleries()

    def _train(
        self, task: TaskSpec, model: ModelSpec, name: str, spec: TrainingSpec | None, data: Dataset, seed: int,
        trained: dict[str, Estimator],
    ) -> Estimator:  # fmt: skip
        estimator = build_estimator(model, data, seed=seed)
        label = f"{task.name}-{model.name}-{name}-{seed}"
        if spec is not None:
            if spec.warm_start is not None:
                estimator.network.load_state_dict(trained[spec.warm_start].network.state_dict())
            settings = spec.model_dump(exclude={"recipe", "options", "warm_start", "validation"})
            objects = {"helper": trained[spec.earlier["helper"]]} if "helper" in spec.earlier else {}
            recipe = spec.built(**objects)
            history = train(
                estimator,
                torch.from_numpy(data.train.x),
                _reference(estimator, data.train),
                recipe=recipe,
                seed=seed,
                validation=_validation(spec, recipe, estimator, data),
                progress=self.progress,
                description=f"train {label}",
                **settings,
            )
            self.board.meta.setdefault("training", {})[label] = {
                "task": task.name, "model": model.name, "training": name, "train_seed": seed, "recipe": spec.recipe,
                "epochs": spec.epochs, "seconds_per_epoch": round(float(np.median(history.seconds)), 4),
                "best_epoch": history.best_epoch, "validation": history.validation,
            }  # fmt: skip
            self.board.meta.setdefault("training_loss", {})[label] = [round(loss, 4) for loss in history.loss]
        self.board.meta["weights"][label] = weights_sha256(estimator.network)
        write_weights(estimator.network, self.folder / "models" / f"{label}.pt")
        return estimator

    def _evaluate(
        self, task: TaskSpec, model: ModelSpec, name: str, trained: dict[str, Estimator], data: Dataset, seed: int
    ) -> Evaluation:
        estimator = trained[name]
        attacks = _attacks_on(name, task, trained)
        once = sum(attack.has_own_budget for attack in attacks)
        budgets = sum(estimator.intensity.budget(eps).eps > 0 for eps in self.suite.budgets)
        total = budgets * (len(attacks) - once + 1) + once
        with tqdm(total=total, desc=f"attack {task.name} {model.name} {name}", disable=not self.progress) as bar:

            def on_attack(done: str) -> None:
                bar.set_postfix_str(done)
                bar.update()

            result = evaluate_estimator(
                estimator, data, attacks, self.suite.budgets, batch_size=task.batch_size, seed=self.suite.seed,
                test_cases=task.test_cases, keep_images=True, hd95=self.suite.hd95, on_attack=on_attack,
            )  # fmt: skip
        flags = ("single-train-seed",) if len(task.train_seeds or self.suite.train_seeds) == 1 else ()
        entry = Entry(self.suite.name, task.name, model.name, name, seed, self.suite.seed, flags)
        self.board.add(entry, result)
        self._keep_images(entry, result)
        return result

    def _keep_images(self, entry: Entry, result: Evaluation) -> None:
        label = f"{entry.task}-{entry.model}-{entry.training}-{entry.train_seed}"
        if result.segments and attacked(result):
            self.galleries.append(worst_cases(label, result))
        for outcome in result.outcomes if self.save else ():
            if outcome.images is not None:
                path = self.folder / "adversarials" / f"{label}-{outcome.threat}-{outcome.eps:.5g}.npz"
                write_adversarials(path, result.cases.ids, outcome.images)

    def write(self) -> None:
        """Writes tables and report of all tasks so far."""
        write_tables(self.board, self.folder)
        write_survey(self.board, self.folder)
        write_report(self.board, self.galleries, self.folder / "report.html")


def _trainings(task: TaskSpec, model: ModelSpec) -> list[tuple[str, TrainingSpec | None]]:
    """What is done to a model: its trainings, or nothing if it comes with weights."""
    if model.checkpoint is not None:
        return [("checkpoint", None)]
    return list(task.trainings.items())


def _attacks_on(name: str, task: TaskSpec, trained: dict[str, Estimator]) -> list[Planned]:
    """The attacks of a task on the model of one training; a model is no surrogate of itself."""
    planned = []
    for attack in task.attacks:
        options = dict(attack.options)
        surrogate = options.get("surrogate")
        if surrogate == name or (surrogate is not None and surrogate not in trained):
            continue
        if surrogate is not None:
            options["surrogate"] = trained[surrogate]
        planned.append(Planned(attack.name, options, attack.title or ""))
    return planned


def _validation(spec: TrainingSpec, recipe: Recipe, estimator: Estimator, data: Dataset) -> Validation | None:
    """The cases and the attack that choose an epoch."""
    if spec.validation is None:
        return None
    cases = data.validation.take(spec.validation.cases)
    if not len(cases):
        raise ValueError(f"{data.name} has no validation cases to choose an epoch by; leave validation out.")
    return Validation(
        torch.from_numpy(cases.x), _reference(estimator, cases), eps=recipe.eps_trained, steps=spec.validation.steps,
        every=spec.validation.every,
    )  # fmt: skip


def _reference(estimator: Estimator, cases: Cases) -> Any:
    return cases.y.reshape(len(cases)) if not estimator.segments and estimator.decision.exclusive else cases.y
