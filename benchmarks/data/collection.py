"""Public collections of 2D images in the layouts in which people have them; files are found by name."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd

from medadv.benchmarks.data.base import Dataset
from medadv.benchmarks.data.images import PLANE_SUFFIXES
from medadv.benchmarks.data.reading import options_of, read_dataset
from medadv.benchmarks.data.splits import SplitOptions, settle
from medadv.benchmarks.data.survey_splits import split_table
from medadv.decisions import Decision, Multiclass, Multilabel

_MASK_FOLDERS = ("mask", "masks", "lung masks", "target", "targets")


class ImageFiles:
    """The 2D images beneath a folder by name without suffix; those in folders of masks apart."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._found: tuple[dict[str, list[Path]], dict[str, list[Path]]] = ({}, {})
        # not Path.rglob: a data root may hold links to where the files are
        for top, folders, files in os.walk(root, followlinks=True):
            folders.sort()
            parts = [part.lower() for part in Path(top).relative_to(root).parts]
            is_mask = any(part in _MASK_FOLDERS for part in parts)
            if not is_mask and any("mask" in part for part in parts):
                continue  # masks of something else, such as infections
            for file in sorted(files):
                if file.lower().endswith(PLANE_SUFFIXES):
                    self._found[is_mask].setdefault(Path(file).stem, []).append(Path(top) / file)

    @property
    def images(self) -> list[Path]:
        """All images outside folders of masks."""
        return [path for paths in self._found[False].values() for path in paths]

    def image(self, name: str) -> Path | None:
        """The image of this name, with or without suffix; None: there is none."""
        return self._one(self._found[False], name)

    def mask(self, name: str) -> Path | None:
        """The mask of this name, in a folder of masks or beside the images."""
        return self._one(self._found[True], name) or self._one(self._found[False], name)

    def _one(self, found: Mapping[str, list[Path]], name: str) -> Path | None:
        stem = name[: -len(Path(name).suffix)] if name.lower().endswith(PLANE_SUFFIXES) else name
        paths = found.get(stem, [])
        if len(paths) > 1:
            raise ValueError(
                f"{name} is at {paths[0].relative_to(self.root)} and at {paths[1].relative_to(self.root)}; leave one."
            )
        return paths[0] if paths else None


@dataclass(frozen=True)
class Collection:
    """A row of the table of collections.

    Attributes:
        name: of the data set.
        folder: folder inside ``data_root`` that holds it, or ``data_root`` itself does.
        part: folder inside that one that alone is used, if it is there.
        layout: what must be in it, one sentence.
        form: what a case's reference is: ``"label"``, ``"labels"`` or ``"mask"``.
        classes: names in the order of the numbers.
        annotations: the source's own tables and folders as ``name``, ``split`` (``""``: none) and ``label`` or
            ``mask``; None: there are none.
        stem: what follows train and test in the names of the survey's split files.
        codes: class number in those files -> class number here; None: the same.
        patient: regular expression whose group is the patient in an image's name; None: the source names none.
        reading: how its files are read.
        limits: default ``max_train`` and ``max_test``.
        source: origin and licence.
    """

    name: str
    folder: str
    layout: str
    form: str
    classes: tuple[str, ...]
    annotations: Callable[[ImageFiles], pd.DataFrame | None]
    source: str
    part: str | None = None
    stem: str = ""
    codes: Mapping[int, int] | None = None
    patient: str | None = None
    reading: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)

    @property
    def decision(self) -> Decision:
        """The decision that these classes make."""
        if self.form == "labels":
            return Multilabel(len(self.classes))
        return Multiclass(len(self.classes), background=0 if self.form == "mask" else None)


@dataclass(frozen=True, kw_only=True)
class CollectionOptions(SplitOptions):
    """How a collection is read and split; see also :class:`~medadv.benchmarks.data.splits.SplitOptions`.

    Args:
        split_files: split files in the survey's forms (:mod:`medadv.benchmarks.data.survey_splits`), relative to the
            collection's folder: a file by split, or a folder with files of the survey's names.
        skip_missing: leave out cases whose image is not there (part of a collection was fetched) instead of refusing.
    """

    split_files: str | Mapping[str, str] | None = None
    skip_missing: bool = False


def load_collection(row: Collection, *, seed: int = 0, data_root: str | Path | None = None, **options: Any) -> Dataset:
    """Reads a collection.

    Only the images that are used are read, one by one, and kept at the size asked for.

    Args:
        row: which.
        seed: decides what is dealt, carved and cut.
        data_root: folder with the collection, or with a folder of its name.
        options: of :class:`CollectionOptions`.

    Raises:
        FileNotFoundError: annotations or images are missing.
        ValueError: annotations, splits or options that can't be right.
    """
    given = options_of(CollectionOptions, {**row.reading, **row.limits, **options}, row.name)
    given = replace(given, classes=row.classes)
    if data_root is None:
        raise FileNotFoundError(f"{row.name} needs its files ({row.layout}); give their folder as data_root.")
    root = Path(data_root)
    for folder in (row.folder, row.part):
        root = root / folder if folder and (root / folder).is_dir() else root
    files = ImageFiles(root)
    table, notes = _find(row, _cases(row, files, given), files, given)
    if row.patient is not None:
        table["patient"] = [_patient(row, name) for name in table["id"]]
    else:
        notes.append(
            "The source names no patients: two images of one may be in two splits, and intervals count images."
        )
    everything = len(table)
    table, more = settle(table, given, name=row.name, seed=seed)
    if len(table) < everything and (given.max_train or given.max_test):
        more = (*more, f"{len(table):,} of {everything:,} cases are used.")
    decision = None if row.form == "mask" else row.decision
    data = read_dataset(table, given, name=row.name, source=row.source, decision=decision, notes=(*notes, *more))
    return replace(data, notes=(*data.notes, *_copies(data)))


def _cases(row: Collection, files: ImageFiles, given: CollectionOptions) -> pd.DataFrame:
    own = row.annotations(files)
    if given.split_files is None:
        if own is None:
            raise FileNotFoundError(f"{files.root} holds no {row.name}, which is: {row.layout}; or give split_files.")
        if (twice := own["name"].duplicated()).any():
            raise ValueError(f"the annotations of {row.name} name {own['name'][twice].iloc[0]} twice; leave one.")
        return own
    listed = split_table(
        files.root, given.split_files, form=row.form, stem=row.stem, classes=row.classes, codes=row.codes
    )
    if own is not None and row.form != "mask":
        _compare(row, listed, own)
    return listed


def _compare(row: Collection, listed: pd.DataFrame, own: pd.DataFrame) -> None:
    """Refuses split files that contradict the source: a turned-round code would train and test the wrong question."""
    truth = {Path(name).stem: label for name, label in zip(own["name"], own["label"], strict=True)}
    both = [
        (name, label) for name, label in zip(listed["name"], listed["label"], strict=True) if Path(name).stem in truth
    ]
    wrong = [(name, label) for name, label in both if truth[Path(name).stem] != label]
    if wrong:
        name, label = wrong[0]
        raise ValueError(
            f"{len(wrong):,} of {len(both):,} labels in split_files contradict the source's annotations, such as that "
            f"of {name}: {_named(row, label)} against {_named(row, truth[Path(name).stem])}; correct either."
        )


def _named(row: Collection, label: int | Sequence[int]) -> str:
    if isinstance(label, Sequence):
        return ", ".join(name for name, there in zip(row.classes, label, strict=True) if there) or "none"
    return row.classes[label]


def _find(
    row: Collection, table: pd.DataFrame, files: ImageFiles, given: CollectionOptions
) -> tuple[pd.DataFrame, list[str]]:
    """The paths of every case; what has none is refused, or left out where that is asked for."""
    table = table.rename(columns={"name": "id"})
    table["image"] = pd.Series([files.image(name) for name in table["id"]], dtype=object)
    there = table["image"].notna()
    if row.form == "mask":
        table["mask"] = pd.Series([files.mask(name) for name in table["mask"]], dtype=object)
        there &= table["mask"].notna()
    missing = int((~there).sum())
    if missing and (not given.skip_missing or missing == len(table)):
        what = "image or mask" if row.form == "mask" else "image"
        raise FileNotFoundError(
            f"{missing:,} of {len(table):,} cases of {row.name} have no {what} beneath {files.root}, such as "
            f"{table['id'][~there].iloc[0]}; fetch them, or give skip_missing=True to go without them."
        )
    return table[there].reset_index(drop=True), [f"{missing:,} cases without files left out."] if missing else []


def _copies(data: Dataset) -> Iterator[str]:
    """A note if test images are in training as well: collections hold copies under other names."""
    seen = {sha256(image.tobytes()).digest() for image in data.train.x}
    if copies := sum(sha256(image.tobytes()).digest() in seen for image in data.test.x):
        yield f"{copies:,} of {len(data.test):,} test images are in training too, pixel by pixel, under other names."


def _patient(row: Collection, name: str) -> str:
    found = re.match(row.patient or "", name)
    if found is None:
        raise ValueError(f"{name} doesn't begin with a patient as names of {row.name} do; correct the name.")
    return found[1]


def read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Columns of a CSV or Excel table as text, found whatever their case and outer blanks.

    Raises:
        ValueError: a column is missing.
        ImportError: pandas lacks what reads Excel files.
    """
    if path.suffix.lower() == ".csv":
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    else:
        try:
            table = pd.read_excel(path, dtype=str, keep_default_na=False)
        except ImportError as error:
            raise ImportError(
                f"{path.name} is an Excel file ({error}); or save it as CSV under the same name."
            ) from error
    names = {str(name).strip().lower(): name for name in table.columns}
    if missing := [column for column in columns if column.lower() not in names]:
        raise ValueError(
            f"{path.name} has no column {', '.join(missing)}; it has {', '.join(map(str, table.columns))}."
        )
    return pd.DataFrame({column: table[names[column.lower()]].str.strip() for column in columns})


def tables(root: Path, pattern: str) -> list[Path]:
    """Files beneath ``root`` whose name matches a regular expression, in order."""
    wanted = re.compile(pattern, re.IGNORECASE)
    walked = os.walk(root, followlinks=True)
    return sorted(Path(top) / file for top, _, files in walked for file in files if wanted.fullmatch(file))
