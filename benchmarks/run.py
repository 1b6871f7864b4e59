"""Runs a suite: data, training, attacks, leaderboard."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from medadv.benchmarks import data as datasets
from medadv.benchmarks.baselines import image_blind_scores
from medadv.benchmarks.crafting import NO_BOX, SEMI_WHITE_BOX, Memory, Surrogate
from medadv.benchmarks.data.base import Cases, Dataset
from medadv.benchmarks.evaluate import IMAGE_BLIND, Evaluation, Planned, evaluate_estimator
from medadv.benchmarks.figures import Gallery, worst_cases
from medadv.benchmarks.leaderboard import Entry, Leaderboard
from medadv.benchmarks.models import Estimator, build_estimator, weights_sha256
from medadv.benchmarks.report import write_report
from medadv.benchmarks.store import prepare_folder, provenance, write_adversarials, write_tables, write_weights
from medadv.benchmarks.suites import ModelSpec, Suite, TaskSpec, TrainingSpec, load_suite, trainings_of
from medadv.training import train

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
        seed: of the attacks.

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
    result = evaluate_estimator(estimator, dataset, planned, budgets, batch_size=batch_size, seed=seed)
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
            ``report.html``, ``models/`` and, where the suite asks for it, ``transfer.csv`` and ``bands.csv``.
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
        self.board.add_image_blind(blind, data, cases, image_blind_scores(data, cases))
        for seed in task.train_seeds or self.suite.train_seeds:
            trained = self._train_all(task, data, seed)
            # images made on one model wait here until all others have seen them
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=".replayed-") as waiting:
                memory = Memory(Path(waiting))
                for target in trained:
                    self._evaluate(task, target, trained, memory, data, seed)

    def _train_all(self, task: TaskSpec, data: Dataset, seed: int) -> dict[Trained, Estimator]:
        """All models of a task by name of model and training."""
        found: dict[Trained, Estimator] = {}
        for model in task.models:
            own: dict[str, Estimator] = {}
            for name, training in trainings_of(task, model).items():
                own[name] = self._train(task, model, name, training, data, seed, own)
            found.update({(model.name, name): estimator for name, estimator in own.items()})
        return found

    def _train(
        self, task: TaskSpec, model: ModelSpec, name: str, spec: TrainingSpec | None, data: Dataset, seed: int,
        trained: dict[str, Estimator],
    ) -> Estimator:  # fmt: skip
        estimator = build_estimator(model, data, seed=seed)
        label = f"{task.name}-{model.name}-{name}-{seed}"
        if spec is not None:
            if spec.warm_start is not None:
                estimator.network.load_state_dict(trained[spec.warm_start].network.state_dict())
            settings = spec.model_dump(exclude={"recipe", "options", "warm_start"})
            history = train(
                estimator,
                torch.from_numpy(data.train.x),
                _reference(estimator, data.train),
                recipe=spec.built(),
                seed=seed,
                progress=self.progress,
                description=f"train {label}",
                **settings,
            )
            self.board.meta.setdefault("training_loss", {})[label] = [round(loss, 4) for loss in history]
        self.board.meta["weights"][label] = weights_sha256(estimator.network)
        write_weights(estimator.network, self.folder / "models" / f"{label}.pt")
        return estimator

    def _evaluate(
        self, task: TaskSpec, target: Trained, trained: dict[Trained, Estimator], memory: Memory, data: Dataset,
        seed: int,
    ) -> None:  # fmt: skip
        estimator, (model, name) = trained[target], target
        attacks = planned_attacks(task, target, trained, memory)
        once = sum(attack.has_own_budget for attack in attacks)
        budgets = sum(estimator.intensity.budget(eps).eps > 0 for eps in self.suite.budgets)
        total = budgets * (len(attacks) - once + 1) + once
        with tqdm(total=total, desc=f"attack {task.name} {model} {name}", disable=not self.progress) as bar:

            def on_attack(done: str) -> None:
                bar.set_postfix_str(done)
                bar.update()

            result = evaluate_estimator(
                estimator, data, attacks, self.suite.budgets, batch_size=task.batch_size, seed=self.suite.seed,
                test_cases=task.test_cases, keep_images=True, bands=self.suite.bands, on_attack=on_attack,
            )  # fmt: skip
        flags = ("single-train-seed",) if len(task.train_seeds or self.suite.train_seeds) == 1 else ()
        entry = Entry(self.suite.name, task.name, model, name, seed, self.suite.seed, flags)
        self.board.add(entry, result)
        self._keep_images(entry, result)

    def _keep_images(self, entry: Entry, result: Evaluation) -> None:
        label = f"{entry.task}-{entry.model}-{entry.training}-{entry.train_seed}"
        if result.segments:
            self.galleries.append(worst_cases(label, result))
        for outcome in result.outcomes if self.save else ():
            if outcome.images is not None:
                region = "" if outcome.region == "all" else f"-{outcome.region}"
                path = self.folder / "adversarials" / f"{label}-{outcome.threat}{region}-{outcome.eps:.5g}.npz"
                write_adversarials(path, result.cases.ids, outcome.images)

    def write(self) -> None:
        """Writes tables and report of all tasks so far."""
        write_tables(self.board, self.folder)
        write_report(self.board, self.galleries, self.folder / "report.html")


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


def _reference(estimator: Estimator, cases: Cases) -> Any:
    return cases.y.reshape(len(cases)) if not estimator.segments and estimator.decision.exclusive else cases.y
