"""Tasks on synthetic head scans: lesions and tissues to segment, lesions to detect and to name; 2D and 3D."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version

import numpy as np

from medadv.benchmarks.data.anatomy import KINDS, TISSUES, Recipe, Subject, make_subject
from medadv.benchmarks.data.base import SPLITS, Cases, Dataset
from medadv.benchmarks.data.cache import Arrays, cached
from medadv.decisions import Decision, Multiclass, Multilabel
from medadv.intensities import Intensity

GENERATOR = 1  # raise when the same options give other images, so that no stale cache is used

_SOURCE = (
    "Synthetic subjects deformed from the ICBM 2009a (MNI152) average brain in nilearn's wheel "
    "(Fonov et al., NeuroImage 54, 2011; free to use and redistribute with its copyright notice)."
)


@dataclass(frozen=True)
class Cohort(Recipe):
    """How many subjects there are and what is taken from each; see :class:`Recipe` for how they look.

    Args:
        subjects: number of subjects in train, validation and test.
        slices: axial slices taken from a subject; 0 takes the whole volume.
        healthy_every: in the segmentation of lesions every so many-th subject has none; 0: all have some.
        smallest: least lesion of a kind in a case that counts as having it, in voxels.
    """

    subjects: tuple[int, int, int] = (80, 16, 40)
    slices: int = 0
    healthy_every: int = 10
    smallest: int = 8


_PLANE = Cohort(size=(64, 64, 24), spacing=3, superior=16, subjects=(100, 20, 40), slices=3, smallest=12)
_VOLUME = Cohort(
    size=(32, 40, 32), spacing=4, superior=8, subjects=(60, 12, 40), contrast=0.16, radius=(9.0, 15.0), lesions=(3, 6)
)


@dataclass(frozen=True)
class Task:
    """What is asked of a cohort.

    Attributes:
        kind: ``"segmentation"`` or ``"classification"``.
        classes: names in the order of the decision.
        truth: what a reference is made of: ``"lesion"``, ``"tissue"``, ``"present"``, ``"kind"`` or ``"findings"``.
    """

    kind: str
    classes: tuple[str, ...]
    truth: str

    @property
    def decision(self) -> Decision:
        """The decision that these classes make."""
        if self.truth == "findings":
            return Multilabel(len(self.classes))
        return Multiclass(len(self.classes), background=0 if self.kind == "segmentation" else None)


TASKS = {
    "lesions": Task("segmentation", ("background", "lesion"), "lesion"),
    "tissue": Task("segmentation", TISSUES, "tissue"),
    "lesion-class": Task("classification", ("no lesion", "lesion"), "present"),
    "lesion-kind": Task("classification", ("no lesion", *KINDS), "kind"),
    "findings": Task("classification", KINDS, "findings"),
}
NAMES = tuple(f"embedded-{task}-{dims}d" for task in TASKS for dims in (2, 3))


def load_embedded(name: str, *, seed: int = 0, **options: object) -> Dataset:
    """Makes one of :data:`NAMES`, or reads it from the cache.

    Args:
        name: for example ``"embedded-lesions-2d"``.
        seed: decides every subject.
        options: any field of :class:`Cohort`, for example ``contrast=0.1`` or ``subjects=(20, 5, 10)``.

    Raises:
        ValueError: an option that is none, or a value no cohort can have.
    """
    task_name, dims = name.removeprefix("embedded-").rsplit("-", 1)
    task, cohort = TASKS[task_name], _cohort(_PLANE if dims == "2d" else _VOLUME, options)
    key = {
        "generator": GENERATOR,
        "task": task_name,
        "seed": seed,
        "cohort": asdict(cohort),
        "monai": version("monai"),
        "nilearn": version("nilearn"),
    }
    arrays = cached(name, key, lambda: _build(task, cohort, seed))
    train, validation, test = (_cases(arrays, split) for split in SPLITS)
    return Dataset(
        name=name,
        task=task.kind,
        decision=task.decision,
        intensity=Intensity(0.0, 1.0),
        classes=task.classes,
        train=train,
        validation=validation,
        test=test,
        spacing=(float(cohort.spacing),) * (2 if cohort.slices else 3),
        source=_SOURCE,
    )


def _cohort(default: Cohort, options: dict[str, object]) -> Cohort:
    known = [field.name for field in fields(Cohort)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(
            f"option {', '.join(unknown)} is none of the embedded data's; accepted are {', '.join(known)}."
        )
    # YAML and JSON know lists only
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    cohort = replace(default, **plain)  # type: ignore[arg-type]
    if bool(cohort.slices) != bool(default.slices):
        raise ValueError("slices=0 means whole volumes; give at least 1 in a 2D task and nothing in a 3D task.")
    if len(cohort.subjects) != 3 or min(cohort.subjects) < 1:
        raise ValueError(f"subjects={cohort.subjects} must be three numbers of at least 1: train, validation, test.")
    if not isinstance(cohort.spacing, int) or cohort.spacing < 1 or len(cohort.size) != 3:
        raise ValueError(
            f"spacing={cohort.spacing}, size={cohort.size} make no volume; give whole mm and three numbers of voxels."
        )
    return cohort


def _build(task: Task, cohort: Cohort, seed: int) -> Arrays:
    arrays: Arrays = {}
    first = 0
    for split, count in zip(SPLITS, cohort.subjects, strict=True):
        subjects = [_subject_rows(task, cohort, seed, first + index) for index in range(count)]
        # first one slice of every subject, then the next: the first n cases are of as many patients as possible
        rows = [row for turn in zip(*subjects, strict=True) for row in turn]
        first += count
        images, truths, ids, patients = zip(*rows, strict=True)
        label_type = np.uint8 if task.truth == "findings" else np.int64
        arrays[f"{split}_x"] = np.stack(images)[:, None].astype(np.float32)
        arrays[f"{split}_y"] = np.stack(truths).astype(label_type)
        arrays[f"{split}_ids"] = np.array(ids)
        arrays[f"{split}_patients"] = np.array(patients)
    return arrays


def _cases(arrays: Arrays, split: str) -> Cases:
    ids, patients = (tuple(arrays[f"{split}_{part}"].tolist()) for part in ("ids", "patients"))
    return Cases(arrays[f"{split}_x"], arrays[f"{split}_y"], ids, patients)


Row = tuple[np.ndarray, np.ndarray, str, str]


def _subject_rows(task: Task, cohort: Cohort, seed: int, index: int) -> list[Row]:
    """The cases of one subject; another is made where lesions found no room."""
    patient = f"subject{index:04d}"
    for attempt in range(20):
        state, choice = np.random.SeedSequence([seed, index, attempt]).generate_state(2)
        rng = np.random.default_rng(choice)
        kinds = _kinds(task, cohort, index, rng)
        subject = make_subject(cohort, kinds, int(state))
        if not cohort.slices:
            if _usable(task, subject.lesions, kinds, cohort.smallest):
                return [(subject.image, _truth(task, subject.tissue, subject.lesions), patient, patient)]
            continue
        rows = list(_slices(task, cohort, subject, kinds, rng))
        if len(rows) == cohort.slices:
            return [(image, truth, f"{patient}-z{z:02d}", patient) for image, truth, z in rows]
    raise ValueError(
        f"no subject with {', '.join(kinds) or 'no'} lesions of at least {cohort.smallest} voxels in "
        f"{cohort.slices or 1} case(s) came up in 20 attempts; give a greater radius, more lesions, fewer slices or a "
        "lesser smallest."
    )


def _kinds(task: Task, cohort: Cohort, index: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Kinds of lesions that a subject has; balanced over the subjects of a split where the task is to find them."""
    if task.truth == "tissue":
        return ()
    if task.truth == "present":
        return (KINDS[0],) if index % 2 else ()
    if task.truth == "kind":
        turn = index % (len(KINDS) + 1)
        return (KINDS[turn - 1],) if turn else ()
    if task.truth == "findings":
        return tuple(kind for kind in KINDS if rng.random() < 0.5)
    # counted, not drawn, so that the first n cases of a split hold their share of negative cases
    return () if cohort.healthy_every and index % cohort.healthy_every == cohort.healthy_every - 1 else (KINDS[0],)


def _slices(
    task: Task, cohort: Cohort, subject: Subject, kinds: tuple[str, ...], rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Up to ``cohort.slices`` axial slices at least 3 apart: image, truth, index."""
    depth = cohort.size[2]
    margin = depth // 6  # the deformation carries emptiness into the outermost slices
    taken: list[int] = []
    for z in rng.permutation(np.arange(margin, depth - margin)).tolist():
        if len(taken) == cohort.slices:
            return
        if min((abs(z - other) for other in taken), default=depth) < 3:
            continue
        image, tissue, lesions = (_axial(part, z) for part in (subject.image, subject.tissue, subject.lesions))
        if _usable(task, lesions, kinds, cohort.smallest):
            taken.append(z)
            yield image, _truth(task, tissue, lesions), z


def _axial(volume: np.ndarray, z: int) -> np.ndarray:
    """Slice ``z`` as radiology shows it: front of the head in the first row; columns run from left to right."""
    return volume[:, ::-1, z].T


def _usable(task: Task, lesions: np.ndarray, kinds: tuple[str, ...], smallest: int) -> bool:
    """Whether the truth is beyond doubt: each kind is absent or large enough to be seen."""
    areas = np.bincount(lesions.ravel(), minlength=len(KINDS) + 1)[1:]
    if ((areas > 0) & (areas < smallest)).any():
        return False
    return task.truth == "findings" or bool((areas > 0).any()) == bool(kinds)


def _truth(task: Task, tissue: np.ndarray, lesions: np.ndarray) -> np.ndarray:
    if task.truth == "tissue":
        return tissue
    if task.truth == "lesion":
        return (lesions > 0).astype(np.int64)
    present = np.array([(lesions == code).any() for code in range(1, len(KINDS) + 1)])
    if task.truth == "findings":
        return present.astype(np.uint8)
    return np.asarray(present.any() if task.truth == "present" else lesions.max())
