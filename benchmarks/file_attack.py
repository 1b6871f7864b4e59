"""From file to file: attacks the scans of a deployed model and writes what a clinic would see."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from monai.transforms import LoadImage
from torch import Tensor
from tqdm.auto import tqdm

from medadv.adapters.cases import Case, case_of
from medadv.adapters.deployments import Deployment
from medadv.adapters.structure_metrics import structure_metrics
from medadv.attacks import create
from medadv.benchmarks.attack_progress import Interrupted, shown
from medadv.benchmarks.case_figure import classification_figure, segmentation_figure, write_figure
from medadv.benchmarks.file_cases import FileCase
from medadv.benchmarks.store import prepare_folder, provenance
from medadv.files import write_text

TABLE = "attack.csv"


@dataclass(frozen=True, kw_only=True)
class FileAttack:
    """An attack on files, and what is measured and written.

    Args:
        deployment: the model.
        attack: name in the catalogue.
        eps: budget, see :meth:`medadv.intensities.Intensity.budget`; None: that of the attack.
        options: further options of the attack.
        storage: what adversarial images are written as; None: as the files are.
        statistics: ``"differentiated"`` or ``"frozen"``, see :func:`medadv.adapters.preprocessing.frozen`.
        tolerance: in mm, of the surface Dice.
        progress: a bar on a terminal.
    """

    deployment: Deployment
    attack: str
    eps: str | float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    storage: str | None = None
    statistics: str = "differentiated"
    tolerance: float = 1.0
    progress: bool = True

    def run(self, cases: Sequence[FileCase], out: Path) -> pd.DataFrame:
        """Attacks cases one by one and writes the table after each, so an interruption loses the present one only.

        A case that can't be read or attacked is a row with its ``error``, and the others go on.

        Args:
            cases: which files.
            out: a folder per case with the adversarial image, the predictions before and after, and a figure; and
                ``attack.csv``, ``attack.meta.json``.

        Returns:
            A row per case and structure (per case for an image-level model).

        Raises:
            Interrupted: on Ctrl-C; the message says what there is.
        """
        prepare_folder(out)
        meta = {**provenance(), "model": self.deployment.name, "attack": self.attack, "eps": self.eps,
                "options": dict(self.options), "storage": self.storage, "statistics": self.statistics,
                "tolerance_mm": self.tolerance}  # fmt: skip
        write_text(out / "attack.meta.json", json.dumps(meta, indent=2, default=str))
        rows: list[dict[str, Any]] = []
        for number, files in enumerate(tqdm(cases, desc="cases", disable=not self.progress or len(cases) < 2)):
            try:
                rows += self.one(files, out / files.name)
            except (ValueError, TypeError, OSError, RuntimeError) as error:
                rows.append({"case": files.name, "error": str(error)})
            except KeyboardInterrupt as interrupt:
                said = str(interrupt) or f"interrupted at {files.name}"
                done = f"{number} of {len(cases)} cases are finished" + (f" and in {out / TABLE}" if number else "")
                raise Interrupted(f"{said}; {done}; nothing of {files.name} counts.") from interrupt
            write_text(out / TABLE, pd.DataFrame(rows).to_csv(index=False))
        return pd.DataFrame(rows)

    def one(self, files: FileCase, folder: Path) -> list[dict[str, Any]]:
        """Attacks one case and writes its files; its rows."""
        case = case_of(
            self.deployment, files.image, files.label, extras=files.extras, storage=self.storage,
            statistics=self.statistics,
        )  # fmt: skip
        before = self.deployment.predict(files.image, files.extras)
        reference = before if case.target is None else case.target
        attack = create(self.attack, case.estimator, eps=self.eps, **self.options)
        began = time.perf_counter()
        with shown(attack, files.name, progress=self.progress):
            x = attack.generate(case.x, _as_given(reference, case), mask=_region(case, files.region))
        seconds = time.perf_counter() - began
        written = case.write(x, folder)
        after = case.judged(written)  # what counts is what the written file is worth
        budget = attack.budget
        shared = {
            "case": files.name, "model": self.deployment.name, "attack": attack.name,
            "eps": np.nan if budget is None else budget.eps, "unit": case.intensity.unit,
            "storage": str(case.scan.storage), "reference": "model" if case.target is None else "label",
            "linf": float(np.abs(x - case.x).max()), "l2_rms": float(np.sqrt(np.mean(np.square(x - case.x)))),
            "forward_passes": attack.passes.forward, "backward_passes": attack.passes.backward, "seconds": seconds,
        }  # fmt: skip
        if self.deployment.segments:
            return self._segmented(case, x, (reference, before, after), shared, folder)
        return self._classified(case, x, (reference, before, after), shared, folder)

    def _segmented(
        self, case: Case, x: np.ndarray, found: tuple[Tensor, Tensor, Tensor], shared: dict[str, Any], folder: Path
    ) -> list[dict[str, Any]]:
        decision, names = self.deployment.decision, self.deployment.names
        reference, before, after = found
        case.write_prediction(before, folder / "prediction_before")
        case.write_prediction(after, folder / "prediction_after")
        masks = [decision.one_hot(one, decision.foreground)[0].numpy() for one in found]
        structures = [names[channel] for channel in decision.foreground]
        valid = torch.ones_like(reference, dtype=torch.bool) if case.valid is None else case.valid
        scores = [float(decision.score_hard(one, reference, valid)[0]) for one in (before, after)]
        rows = []
        for place, structure in enumerate(structures):
            sides = {
                side: structure_metrics(masks[k][place], masks[0][place], case.scan.spacing, self.tolerance)
                for side, k in (("before", 1), ("after", 2))
            }
            row = {**shared, "score_before": scores[0], "score_after": scores[1], "structure": structure}
            for name in sides["before"]:
                if name.endswith("_reference"):
                    row[name] = sides["before"][name]
                else:
                    row |= {f"{name}_{side}": values[name] for side, values in sides.items()}
            rows.append(row)
        drawn = segmentation_figure(
            case.scan.values[0].numpy(), x[0], None if case.target is None else masks[0], masks[1], masks[2],
            names=structures, title=_title(shared, "Dice", scores), **_display(case),
        )  # fmt: skip
        write_figure(drawn, folder / "figure.png")
        return rows

    def _classified(
        self, case: Case, x: np.ndarray, found: tuple[Tensor, Tensor, Tensor], shared: dict[str, Any], folder: Path
    ) -> list[dict[str, Any]]:
        names, decision = self.deployment.names, case.estimator.decision
        reference, before, after = found
        sides = [decision.probabilities(torch.from_numpy(case.estimator.predict(image)))[0] for image in (case.x, x)]
        if len(names) < len(sides[0]):  # one logit is shown as two classes
            sides = [side[1:] for side in sides]
        row = {**shared, "label": _words(reference, names), "before": _words(before, names),
               "after": _words(after, names)}  # fmt: skip
        for name, (first, last) in zip(names, zip(*[side.tolist() for side in sides], strict=True), strict=True):
            row |= {f"probability_before:{name}": first, f"probability_after:{name}": last}
        drawn = classification_figure(
            case.scan.values[0].numpy(), x[0], *[side.numpy() for side in sides], names=names,
            title=f"{shared['attack']}: {row['before']} becomes {row['after']}", **_display(case),
        )  # fmt: skip
        write_figure(drawn, folder / "figure.png")
        return [row]


def _as_given(reference: Tensor, case: Case) -> np.ndarray:
    """A canonical reference in a form the estimator takes; one logit is two classes there."""
    values = reference.numpy()
    return values[:, 0] if case.estimator.decision.channels != case.deployment.decision.channels else values


def _region(case: Case, path: Path | None) -> np.ndarray | None:
    """Where the image may change: where the case allows it and, if given, inside a mask."""
    if path is None:
        return case.region
    mask: np.ndarray = np.asarray(LoadImage(image_only=True, ensure_channel_first=True)(str(path))).astype(bool)
    sides = tuple(case.scan.image.shape[1:])
    if mask.shape[1:] != sides or not mask.any():
        raise ValueError(
            f"region {path.name} has shape {mask.shape[1:]} and {int(mask.sum())} voxels; give a mask of shape {sides} "
            "with some."
        )
    inside = np.expand_dims(mask.any(0), (0, 1))
    return inside if case.region is None else inside & case.region


def _display(case: Case) -> dict[str, Any]:
    values = case.scan.values
    window = case.intensity.window or (float(values.min()), max(float(values.max()), float(values.min()) + 1e-6))
    return {"window": window, "unit": case.intensity.unit, "spacing": case.scan.spacing}


def _title(shared: Mapping[str, Any], metric: str, scores: Sequence[float]) -> str:
    budget = "" if np.isnan(shared["eps"]) else f" {shared['eps']:g} {shared['unit']}".rstrip()
    return f"{shared['case']}: {shared['attack']}{budget}, {metric} {scores[0]:.3f} before, {scores[1]:.3f} after"


def _words(diagnosis: Tensor, names: Sequence[str]) -> str:
    values = diagnosis[0]
    if values.ndim == 0:
        return names[int(values)]
    return " + ".join(name for name, given in zip(names, values.tolist(), strict=True) if given) or "none"


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """A row per structure: means over the cases that have a value, with the others counted; never dropped silently.

    Args:
        table: of :meth:`FileAttack.run`, of a segmenter.

    Returns:
        ``structure``, ``cases``, ``unscored`` (not in the reference), ``failed`` (cases with an error), the means, and
        how many were missed or invented.
    """
    failed = int(table["error"].notna().sum()) if "error" in table else 0
    rows = []
    if "structure" not in table:
        return pd.DataFrame()
    scored = table[table["structure"].notna()]
    for structure, group in scored.groupby("structure", sort=False):
        row = {"structure": structure, "cases": len(group), "unscored": int(group["dice_before"].isna().sum())}
        for column in group.columns:
            if column.startswith(("missed_", "invented_")):
                row[column] = int(group[column].sum())
            elif column.endswith(("_before", "_after")) and not column.startswith(("score_", "components_")):
                row[column] = float(group[column].mean())
        rows.append({**row, "failed": failed})
    return pd.DataFrame(rows)
