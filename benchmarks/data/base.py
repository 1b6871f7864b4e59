"""What a data set is: cases with their truth, split by patient, and what their grey values and labels mean."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

from medadv.decisions import Decision
from medadv.intensities import Intensity

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Cases:
    """Images and their reference, one row a case.

    Attributes:
        x: images, float32, shape ``(N, C, *S)``, in the units of the data set's :class:`Intensity`.
        y: reference in the decision's canonical form: ``(N, *S)`` int64 for ``Multiclass``,
            ``(N, L, *S)`` uint8 for ``Multilabel`` (``S`` empty for image-level tasks).
        ids: one name per case, unique in the data set.
        patients: the patient of each case, or None where the source does not say.
    """

    x: np.ndarray
    y: np.ndarray
    ids: tuple[str, ...]
    patients: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        lengths = {len(self.x), len(self.y), len(self.ids), len(self.patients or self.ids)}
        if len(lengths) != 1:
            raise ValueError(
                f"images, references, ids and patients differ in number ({len(self.x)}, {len(self.y)}, "
                f"{len(self.ids)}, {len(self.patients or self.ids)}); give one of each per case."
            )

    def __len__(self) -> int:
        return len(self.x)

    def take(self, count: int | None) -> Cases:
        """The first ``count`` cases (all where None)."""
        if count is None or count >= len(self):
            return self
        patients = None if self.patients is None else self.patients[:count]
        return Cases(self.x[:count], self.y[:count], self.ids[:count], patients)


@dataclass(frozen=True)
class Dataset:
    """A task on data: three splits that share no patient, the decision asked for, and the meaning of the grey values.

    Attributes:
        name: how suites call it.
        task: ``"classification"`` or ``"segmentation"``.
        decision: how logits become the diagnosis; its class order is that of ``classes``.
        intensity: range, unit, window and storage grid of ``x``.
        classes: a name per class (Multiclass) or label (Multilabel).
        spacing: size of a voxel in mm per axis, or None where unknown; volumes are then given in voxels.
        source: where it comes from and its licence, one sentence.
    """

    name: str
    task: str
    decision: Decision
    intensity: Intensity
    classes: tuple[str, ...]
    train: Cases
    validation: Cases
    test: Cases
    spacing: tuple[float, ...] | None = None
    source: str = ""
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        owners: dict[str, str] = {}
        for split in SPLITS:
            cases: Cases = getattr(self, split)
            for patient in set(cases.patients or cases.ids):
                if owners.setdefault(patient, split) != split:
                    raise ValueError(
                        f"patient {patient!r} of {self.name} is in {owners[patient]} and in {split}; "
                        "split by patient, or the score of a memorised patient is reported as skill."
                    )

    @property
    def dims(self) -> int:
        """Spatial dimensions of the images: 2 or 3."""
        return self.train.x.ndim - 2

    @property
    def sha256(self) -> str:
        """Hash of all images, references and ids, for the leaderboard's provenance."""
        digest = hashlib.sha256()
        for split in SPLITS:
            cases: Cases = getattr(self, split)
            digest.update(np.ascontiguousarray(cases.x).tobytes())
            digest.update(np.ascontiguousarray(cases.y).tobytes())
            digest.update("\n".join(cases.ids).encode())
        return digest.hexdigest()
