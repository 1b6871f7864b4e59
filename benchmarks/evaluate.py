"""Evaluates one estimator against attacks and budgets: one outcome per attack and budget, with scores per case."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from monai.metrics import SSIMMetric
from torch import Tensor

from medadv.benchmarks.corruptions import PREFIX, corrupted
from medadv.benchmarks.crafting import Crafted, Order, Seen, craft
from medadv.benchmarks.data.base import Dataset
from medadv.benchmarks.endpoints import Diagnosis, EndpointTable, diagnose, validation_thresholds, worst_margins
from medadv.benchmarks.models import Estimator, reference_of
from medadv.benchmarks.monai_metrics import MonaiMetrics
from medadv.benchmarks.outcomes import Outcome, Planned, joint_facts
from medadv.benchmarks.survey_endpoints import SurveyMeasures
from medadv.dct import band_shares
from medadv.decisions import Decision
from medadv.diagnostics import Finding, Probe, run_checks
from medadv.diagnostics.probe import spread
from medadv.intensities import Intensity
from medadv.targets import target_success
from medadv.victims import Victim

WORST_CASE = "worst-case"
NO_ATTACK = "none"
IMAGE_BLIND = "image-blind"
_PROBED_CASES = 8


class Evaluator:
    """Runs attacks on an estimator and reads the result off the original model, in float32 and eval mode.

    Args:
        estimator: a medadv estimator.
        data: its test cases are attacked, its validation cases fix thresholds.
        batch_size: cases at once.
        seed: of the attacks.
        test_cases: only the first so many test cases.
        hd95: of segmentations also the 95th percentile of the Hausdorff distance.
        bands: how many bands of frequencies the energy of each perturbation is told for; None: not told.
        metrics: of ``monai.metrics``, by name, that become endpoints of each case.
        clean: gives the outcome without an attack, from one kept before or by what it is called with.
    """

    def __init__(
        self, estimator: Estimator, data: Dataset, *, batch_size: int = 32, seed: int = 0,
        test_cases: int | None = None, hd95: bool = False, bands: int | None = None,
        metrics: Mapping[str, Any] | None = None,
        clean: Callable[[Callable[[], Outcome]], Outcome] = lambda make: make(),
    ) -> None:  # fmt: skip
        self.estimator = estimator
        self.data = data
        self.cases = data.test.take(test_cases)
        self.batch_size = batch_size
        self.seed = seed
        self.bands = bands
        self.decision = estimator.decision
        spatial = self.cases.x.shape[2:] if estimator.segments else ()
        self.target, self.valid = self.decision.canonical(reference_of(estimator, self.cases.y), spatial)
        self.x = torch.from_numpy(self.cases.x)
        ignored = self.decision.ignore_index
        marked = self.target if ignored is None else torch.where(self.valid, self.target, ignored)
        train = data.train.x, reference_of(estimator, data.train.y)
        self.seen = Seen(self.cases.x, marked, self.cases.ids, self.decision, estimator.segments, train)
        estimator.intensity.check(self.x)
        self.table = self._endpoint_table()
        self.survey = SurveyMeasures(self.decision, estimator.segments, data.spacing, hd95)
        self.library = MonaiMetrics(
            metrics or {}, self.decision, class_names(data, self.decision), segments=estimator.segments,
            spacing=data.spacing,
        )  # fmt: skip
        self.clean = clean(self._clean)

    def _endpoint_table(self) -> EndpointTable:
        spacing = self.data.spacing
        thresholds: Sequence[float] = ()
        validation = self.data.validation
        if not self.estimator.segments and len(validation):
            target, _ = self.decision.canonical(reference_of(self.estimator, validation.y))
            thresholds = validation_thresholds(self.decision, self._logits(torch.from_numpy(validation.x)), target)
        unit, scale = {2: ("mm2", 1.0), 3: ("ml", 1e-3)}[self.data.dims]
        return EndpointTable(
            self.decision,
            class_names(self.data, self.decision),
            self.target,
            self.cases.ids,
            self.estimator.segments,
            voxel_volume=1.0 if spacing is None else float(np.prod(spacing)) * scale,
            volume_unit="voxels" if spacing is None else unit,
            thresholds=thresholds,
        )

    def _logits(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.estimator.predict(x.numpy(), batch_size=self.batch_size))

    def _outcome(
        self,
        x_adv: Tensor,
        clean: Outcome | None,
        *,
        reference: tuple[Tensor, Tensor] | None = None,
        **facts: Any,
    ) -> Outcome:
        """Scores images by the model as it is deployed, batch by batch."""
        scores, parts = [], []
        target, valid = reference or (self.target, self.valid)
        for rows in torch.arange(len(x_adv)).split(self.batch_size):
            logits = self._logits(x_adv[rows])
            scores.append(self.decision.score(logits, target[rows], valid[rows]))
            parts.append(diagnose(self.decision, logits, target[rows], segments=self.estimator.segments))
        diagnosis = _joined(parts)
        measures = self._measures(diagnosis, target, valid)
        moved = (x_adv - self.x).double()
        shares = None if self.bands is None or clean is None else band_shares(moved, self.bands).numpy()
        moved = moved.flatten(1)
        return Outcome(
            scores=torch.cat(scores).double().numpy(),
            linf=moved.abs().amax(1).numpy(),
            l2_rms=moved.square().mean(1).sqrt().numpy(),
            ssim=structural_similarity(x_adv, self.x, self.estimator.intensity),
            diagnosis=diagnosis,
            endpoints=self._endpoints(clean, diagnosis, measures, target),
            measures=measures,
            reference=reference,
            band_shares=shares,
            **facts,
        )

    def _measures(self, diagnosis: Diagnosis, target: Tensor, valid: Tensor) -> dict[str, np.ndarray]:
        return {**self.survey(diagnosis, target, valid), **self.library(diagnosis.hard, target, valid)}

    def _endpoints(
        self, clean: Outcome | None, diagnosis: Diagnosis, measures: dict[str, np.ndarray], target: Tensor
    ) -> pd.DataFrame:
        """Endpoints beside those of the clean images; None: these are the clean images."""
        before, measured = (diagnosis, measures) if clean is None else (clean.diagnosis, clean.measures)
        own = {name: values for name, values in measures.items() if name not in self.library.names}
        rows = [self.survey.rows(self.cases.ids, measured, own), self.library.rows(self.cases.ids, measured, measures)]
        return pd.concat([self.table(before, diagnosis, target), *rows], ignore_index=True)

    def _clean(self) -> Outcome:
        settings = {"steps": 0, "restarts": 0, "keep": "last"}
        return self._outcome(
            self.x, None, attack=NO_ATTACK, access="none", threat="none", settings=settings, eps=0.0, fraction=0.0
        )

    def findings(self, level: str = "basic", budgets: Sequence[float | str] = ()) -> list[Finding]:
        """The checks that look at the model itself, on a few cases.

        Args:
            level: of :func:`~medadv.diagnostics.run_checks`, or ``"none"``.
            budgets: of the suite; attacks of the checks run at the middle one.
        """
        if level == "none":
            return []
        seen, deployed = self._diagnosed()
        # of few cases fewer, so that checks stay a small part of a suite's time
        rows = spread(len(self.x), min(_PROBED_CASES, max(_PROBED_CASES // 2, len(self.x) // 5)))
        x, target, valid = (part[rows].to(seen.device) for part in (self.x, self.target, self.valid))
        eps = budgets[len(budgets) // 2] if budgets else None
        options: dict[str, Any] = {"batch_size": self.batch_size, "seed": self.seed}
        return run_checks(Probe(seen, x, target, valid, eps=eps, deployed=deployed, **options), level)

    def _diagnosed(self) -> tuple[Victim, Victim]:
        """What is differentiated, and what is deployed."""
        victim = self.estimator.victim()
        return victim, victim

    @property
    def attacked(self) -> Any:
        """The model as the attacker sees it."""
        return self.estimator

    def attack(self, planned: Planned, eps: float | str | None = None, *, keep_images: bool = False) -> Outcome:
        """Runs one attack at one budget; None: its own."""
        return self.judge(planned, self.craft(planned, eps), keep_images=keep_images)

    def craft(self, planned: Planned, eps: float | str | None = None) -> Crafted:
        """The images of one attack at one budget; None: its own. Statistics it needs are of the training cases."""
        order = self.order(planned, eps)
        if planned.surrogate is None:
            return craft(self.attacked, order, self.seen)
        return planned.surrogate.craft(self.estimator, order, self.seen)

    def order(self, planned: Planned, eps: float | str | None) -> Order:
        """What is run for one attack at one budget; None: its own."""
        common = {"eps": eps, "batch_size": self.batch_size, "seed": self.seed}
        options = {**common, **planned.options, **planned.per_budget.get(str(eps), {})}
        return Order(planned.name, options, planned.region, planned.wanted)

    def judge(self, planned: Planned, made: Crafted, *, keep_images: bool = False, **changes: Any) -> Outcome:
        """Scores the images of an attack; ``changes`` are facts that differ from what the attack says of itself."""
        source = "none" if planned.surrogate is None else planned.surrogate.name
        facts = {"attack": planned.label, "surrogate": source, **made.facts, **changes}
        outcome = self._outcome(torch.from_numpy(made.images), self.clean, reference=made.reference, **facts)
        if planned.wanted is not None:
            outcome.success = self._reached(outcome.diagnosis.hard, planned.wanted)
        outcome.images = made.images if keep_images else None
        return outcome

    def corrupt(self, name: str, severity: int) -> Outcome:
        """Scores images with a natural corruption; nobody attacks, so it belongs to no worst case."""
        start = time.perf_counter()
        images = corrupted(
            self.x, name, severity, self.estimator.intensity, ids=self.cases.ids, seed=self.seed,
            spacing=self.data.spacing,
        )  # fmt: skip
        return self._outcome(
            images,
            self.clean,
            attack=name,
            access="none",
            threat=f"{PREFIX}{name}",
            settings={"steps": 0, "restarts": 0, "keep": "last"},
            eps=float(severity),
            unit="severity",
            fraction=np.nan,
            queries=np.zeros(len(images), dtype=np.int64),
            seconds=time.perf_counter() - start,
        )

    def _reached(self, hard: Tensor, label: int) -> tuple[float, str]:
        """Share of the cases, of those not so diagnosed at first, that get the diagnosis wanted; and the rule."""
        wanted, clean = self.seen.wanted(label), self.clean.diagnosis.hard
        if not self.estimator.segments:
            open_cases = clean.long() != label
            given, rule = hard.long() == label, f"not class {label} -> class {label}"
        else:
            open_cases = self.decision.one_hot(clean, (label,)).flatten(1).any(1)
            now, before = hard.to(wanted.dtype), clean.to(wanted.dtype)
            given = target_success(now, wanted, before, self.decision, label).success
            rule = f"label {label} erased by half or more, no other changed by more than 0.05"
        return (float(given[open_cases].double().mean()) if bool(open_cases.any()) else np.nan), rule

    def worst_cases(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """A worst case for each threat set, region and budget."""
        groups: dict[tuple[str, str, float], list[Outcome]] = {}
        for outcome in outcomes:
            groups.setdefault(outcome.threat_set, []).append(outcome)
        return [self.worst_case(group) for group in groups.values()]

    def worst_case(self, outcomes: Sequence[Outcome]) -> Outcome:
        """Per case the worst over several attacks of one threat set, region and budget; its access is the greatest.

        Endpoints are those of the image with the worst score; scores of classes (and the AUC made of them) take per
        case and class the smallest signed margin over all attacks.
        """
        first = outcomes[0]
        chosen = np.stack([self.ranking(outcome) for outcome in outcomes]).argmin(0)
        diagnosis = first.diagnosis
        for number, outcome in enumerate(outcomes):
            diagnosis = diagnosis.merged(outcome.diagnosis, torch.from_numpy(chosen == number))
        if not self.estimator.segments:
            truth = self.decision.one_hot(self.target).numpy()
            diagnosis = replace(diagnosis, scores=worst_margins([o.diagnosis for o in outcomes], truth))

        cases = torch.arange(len(chosen))
        references = [outcome.reference or (self.target, self.valid) for outcome in outcomes]
        target, valid = (torch.stack(parts)[torch.from_numpy(chosen), cases] for parts in zip(*references, strict=True))

        def pick(name: str) -> np.ndarray:
            return _picked([getattr(outcome, name) for outcome in outcomes], chosen)

        measures = (
            {name: _picked([o.measures[name] for o in outcomes], chosen) for name in first.measures}
            if self.estimator.segments
            else self.survey(diagnosis, target, valid)
        )
        images = None
        if all(o.images is not None for o in outcomes):
            images = np.stack([outcomes[i].images[row] for row, i in enumerate(chosen)])  # type: ignore[index]
        return Outcome(
            attack=WORST_CASE,
            **joint_facts(outcomes),
            scores=pick("scores"),
            linf=pick("linf"),
            l2_rms=pick("l2_rms"),
            ssim=pick("ssim"),
            band_shares=None if self.bands is None else pick("band_shares"),
            diagnosis=diagnosis,
            endpoints=self._endpoints(self.clean, diagnosis, measures, target),
            measures=measures,
            reference=(target, valid),
            worst_attack=[outcomes[i].attack for i in chosen],
            images=images,
        )

    def ranking(self, outcome: Outcome) -> np.ndarray:
        """What makes an image the worst of its case: its score, or in a negative case how much is invented."""
        hits = self.decision.one_hot(outcome.diagnosis.hard)[:, self.decision.foreground].flatten(1).sum(1).numpy()
        return np.where(np.isnan(outcome.scores), -hits, outcome.scores)


def _picked(values: Sequence[np.ndarray], chosen: np.ndarray) -> np.ndarray:
    """Of each case ``(N,)`` the value of the attack that was chosen for it."""
    picked: np.ndarray = np.stack(values)[chosen, np.arange(len(chosen))]
    return picked


def class_names(data: Dataset, decision: Decision) -> tuple[str, ...]:
    """A name for each channel of a decision on the data; a network with one logit is shown as two classes."""
    return data.classes if len(data.classes) == decision.channels else (f"no {data.classes[0]}", *data.classes)


def _joined(parts: Sequence[Diagnosis]) -> Diagnosis:
    def join(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else np.concatenate(values)

    return Diagnosis(torch.cat([p.hard for p in parts]), join("scores"), join("brier"), join("probabilities"))


def structural_similarity(x_adv: Tensor, x: Tensor, intensity: Intensity) -> np.ndarray:
    """Mean structural similarity per case ``(N,)``, over the intensity window.

    In 2D gaussian windows of 11 pixels, in 3D uniform ones of 7 voxels, smaller where the image is.
    """
    dims = x.ndim - 2
    smallest = min(x.shape[2:])
    window = min(11 if dims == 2 else 7, smallest if smallest % 2 else smallest - 1)
    kernel = "gaussian" if dims == 2 else "uniform"
    metric = SSIMMetric(spatial_dims=dims, data_range=max(intensity.widths), kernel_type=kernel, win_size=window)
    values = [torch.as_tensor(metric(a[None].float(), b[None].float())).flatten()[0] for a, b in zip(x_adv, x)]
    return torch.stack(values).double().numpy()
