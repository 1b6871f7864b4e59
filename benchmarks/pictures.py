"""Pictures of what attacks did: overlays of segmentations, class-activation maps, trainings side by side."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from medadv.benchmarks.activation_maps import ActivationMaps, NoFeatureMapError
from medadv.benchmarks.endpoints import signed_scores
from medadv.benchmarks.evaluate import WORST_CASE, class_names
from medadv.benchmarks.figures import ACTIVATION, OVERLAYS, WORST, Gallery, Panel, sheet
from medadv.benchmarks.models import Estimator
from medadv.benchmarks.outcomes import Evaluation, Outcome

_SHOWN = 3
_REFERENCE, _DIAGNOSIS = "#3ddc55", "#ff4040"


def attacked(result: Evaluation) -> bool:
    """Whether there is any worst case to show; a suite may ask for the clean images alone."""
    return any(outcome.attack == WORST_CASE for outcome in result.outcomes)


def strongest(result: Evaluation) -> Outcome:
    """The worst case at the largest budget of the first threat set."""
    worst = [outcome for outcome in result.outcomes if outcome.attack == WORST_CASE]
    return max((outcome for outcome in worst if outcome.threat == worst[0].threat), key=lambda outcome: outcome.eps)


def hardest_hit(result: Evaluation, count: int = _SHOWN) -> list[int]:
    """Cases with the largest fall of the score in :func:`strongest`."""
    fall = np.nan_to_num(result.clean.scores - strongest(result).scores, nan=-1.0)
    return [int(case) for case in np.argsort(-fall, kind="stable")[:count]]


def worst_cases(title: str, result: Evaluation) -> Gallery:
    """The cases with the largest fall of Dice at the largest budget: clean, perturbation, adversarial.

    The reference is outlined in green, the model's diagnosis in red; of volumes the slice with most reference is shown.
    """
    outcome = strongest(result)
    rows = []
    for case in hardest_hit(result):
        clean, adversarial = overlays(result, outcome, case)
        change = adversarial.picture - clean.picture
        reach = float(np.abs(change).max()) or 1.0
        words = f"change, at most {reach:.3g} {result.data.intensity.unit}"
        rows.append([clean, Panel(words, change, (-reach, reach), "coolwarm"), adversarial])
    return Gallery(WORST, _captioned(title, outcome), sheet(rows))


def _captioned(title: str, outcome: Outcome) -> str:
    size = f"{outcome.fraction * 255:.3g}/255" if outcome.threat == "linf" else f"{outcome.eps:.3g}"
    return f"{title}, {outcome.threat}, eps {size}"


def overlays(result: Evaluation, outcome: Outcome, case: int) -> tuple[Panel, Panel]:
    """One case of a segmentation, clean and adversarial, with reference and diagnosis outlined."""
    assert outcome.images is not None
    pictures = [result.cases.x[case, 0], outcome.images[case, 0]]
    hard = [part.diagnosis.hard[case].numpy() for part in (result.clean, outcome)]
    moved = result.cases.y[case] if outcome.reference is None else outcome.reference[0][case].numpy()
    masks = [_any_foreground(result, labels) for labels in (result.cases.y[case], moved, *hard)]
    if pictures[0].ndim == 3:
        where = int(masks[0].sum(axis=(0, 1)).argmax())
        pictures, masks = ([volume[..., where] for volume in volumes] for volumes in (pictures, masks))
    limits = (float(pictures[0].min()), float(pictures[0].max()))
    titles = (
        f"{result.cases.ids[case]}: Dice {result.clean.scores[case]:.2f}",
        f"{_attack_on(outcome, case)}: Dice {outcome.scores[case]:.2f}",
    )
    clean, adversarial = (
        Panel(title, picture, limits, outlines=((reference, _REFERENCE), (found, _DIAGNOSIS)))
        for title, picture, reference, found in zip(titles, pictures, masks[:2], masks[2:], strict=True)
    )
    return clean, adversarial


def _attack_on(outcome: Outcome, case: int) -> str:
    return outcome.worst_attack[case] if outcome.worst_attack else outcome.attack


def _any_foreground(result: Evaluation, hard: np.ndarray) -> np.ndarray:
    """Union of all foreground classes of one case, ``S``."""
    decision = result.data.decision
    if decision.exclusive:
        return np.isin(hard, decision.foreground)
    return np.asarray(hard.astype(bool).any(0))


@dataclass
class SideBySide:
    """The same cases under each training of a model: clean above adversarial, a column per training.

    The cases are those the first training lost most of. Images get class-activation maps of the class that was
    diagnosed, in volumes in the slice where the first training's clean map is most active; segmentations get overlays.

    Attributes:
        title: of the caption.
        layer: of the class-activation map; None: found by itself.
    """

    title: str
    layer: str | None = None
    _cases: list[int] = field(default_factory=list)
    _slices: dict[int, int] = field(default_factory=dict)
    _columns: dict[str, list[tuple[Panel, Panel]]] = field(default_factory=dict)
    _caption: str = ""
    _section: str = OVERLAYS
    _note: str = ""

    def add(self, training: str, estimator: Estimator, result: Evaluation) -> None:
        """Keeps the pictures of one training, not its images."""
        outcome = strongest(result)
        if not self._columns:
            self._cases = hardest_hit(result)
            self._caption = _captioned(self.title, outcome)
            self._section = OVERLAYS if result.segments else ACTIVATION
        try:
            maps = None if result.segments else self._maps(estimator, result)
            self._columns[training] = [
                overlays(result, outcome, case) if maps is None else self._activation(maps, result, outcome, case)
                for case in self._cases
            ]
        except NoFeatureMapError as error:
            self._note = f"no class-activation map of {training}: {error}."

    def galleries(self) -> list[Gallery]:
        """The sheet, or the note why there is none; empty where nothing was added."""
        if self._note:
            return [Gallery(self._section, self._caption, note=self._note)]
        if not self._columns:
            return []
        rows = []
        for number in range(len(self._cases)):
            for state in (0, 1):
                rows.append([
                    Panel(f"{training}\n{panel.title}", panel.picture, panel.limits, panel.colours, panel.outlines,
                          panel.heat)
                    for training, pairs in self._columns.items() for panel in [pairs[number][state]]
                ])  # fmt: skip
        return [Gallery(self._section, self._caption, sheet(rows))]

    def _maps(self, estimator: Estimator, result: Evaluation) -> _Maps:
        x = torch.from_numpy(result.cases.x[:1])
        return _Maps(estimator, ActivationMaps(estimator, x, self.layer), class_names(result.data, estimator.decision))

    def _activation(self, maps: _Maps, result: Evaluation, outcome: Outcome, case: int) -> tuple[Panel, Panel]:
        assert outcome.images is not None
        images = [result.cases.x[case], outcome.images[case]]
        names, heats = zip(*(maps(image) for image in images), strict=True)
        pictures, heats = [image[0] for image in images], list(heats)
        if pictures[0].ndim == 3:
            where = self._slices.setdefault(case, _most_active(heats[0]))
            pictures, heats = ([volume[..., where] for volume in volumes] for volumes in (pictures, heats))
        limits = (float(pictures[0].min()), float(pictures[0].max()))
        truth = maps.reference(result.cases.y[case])
        titles = (f"{result.cases.ids[case]}, {truth}: {names[0]}", f"{_attack_on(outcome, case)}: {names[1]}")
        clean, adversarial = (
            Panel(title, picture, limits, heat=heat)
            for title, picture, heat in zip(titles, pictures, heats, strict=True)
        )
        return clean, adversarial


@dataclass(frozen=True)
class _Maps:
    """The class that is diagnosed in an image, and what speaks for it."""

    estimator: Estimator
    maps: ActivationMaps
    names: tuple[str, ...]

    def __call__(self, image: np.ndarray) -> tuple[str, np.ndarray]:
        logits = torch.from_numpy(self.estimator.predict(image[None]))
        channel = int(signed_scores(self.estimator.decision, logits)[0].argmax())
        return self.names[channel], self.maps(torch.from_numpy(image)[None], channel)

    def reference(self, y: np.ndarray) -> str:
        """The reference of a case in words."""
        if self.estimator.decision.exclusive:
            return self.names[int(y.reshape(-1)[0])]
        return " + ".join(self.names[label] for label in np.flatnonzero(y == 1)) or "no label"


def _most_active(heat: np.ndarray) -> int:
    """The slice of a volume ``(H, W, D)`` with most heat; the middle one where there is none."""
    activity = heat.sum(axis=(0, 1))
    return int(activity.argmax()) if activity.any() else heat.shape[-1] // 2
