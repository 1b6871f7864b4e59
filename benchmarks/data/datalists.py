"""Volumes named by a datalist: ``dataset.json`` of the Decathlon, of MONAI's tutorials or of nnU-Net."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from medadv.benchmarks.data.base import Dataset
from medadv.benchmarks.data.folder import inside
from medadv.benchmarks.data.reading import options_of, read_dataset
from medadv.benchmarks.data.splits import SplitOptions, settle

_KEYS = {"train": ("training", "train"), "validation": ("validation", "val"), "test": ("test", "testing")}


@dataclass(frozen=True)
class Volumes:
    """A row of the table of datalists.

    Attributes:
        name: of the data set.
        folder: folder inside ``data_root`` that holds it, or ``data_root`` itself does.
        datalists: names its datalist goes by, the first that is there is read.
        classes: names in the order of the class numbers, where the datalist states no labels.
        patient: regular expression that finds the patient in an image's file name; None: every file is one's own.
        reading: how its files are read.
        limits: default ``max_train`` and ``max_test``.
        source: origin and licence.
    """

    name: str
    folder: str
    datalists: tuple[str, ...] = ("dataset.json",)
    classes: tuple[str, ...] | None = None
    patient: str | None = None
    reading: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class DatalistOptions(SplitOptions):
    """How a datalist is read and split; see also :class:`~medadv.benchmarks.data.splits.SplitOptions`.

    Args:
        datalist: the file, relative to the data set's folder; None: the names its row knows.
        patient: regular expression that finds the patient in an image's file name; None: every file is one's own.
    """

    datalist: str | None = None
    patient: str | None = None


def load_datalist(row: Volumes, *, seed: int = 0, data_root: str | Path | None = None, **options: Any) -> Dataset:
    """Reads the volumes of a datalist.

    The lists ``training``, ``validation`` and ``test`` are the published split as far as their cases have labels. A
    test list without labels is left out, and the validation list takes its place; what is missing then is carved from
    the training cases. nnU-Net's file without lists stands for all of ``imagesTr`` and ``labelsTr``.

    Args:
        row: which, and its defaults.
        seed: decides what is dealt, carved and cut.
        data_root: folder with the data set, or with a folder of its name.
        options: of :class:`DatalistOptions`.

    Raises:
        FileNotFoundError: the datalist or a file is missing.
        ValueError: a datalist, a split or an option that can't be right.
    """
    given = options_of(DatalistOptions, {"patient": row.patient, **row.reading, **row.limits, **options}, row.name)
    if data_root is None:
        raise FileNotFoundError(f"{row.name} needs its files; give the folder that holds them as data_root.")
    root = Path(data_root)
    root = root / row.folder if (root / row.folder).is_dir() else root
    path = _datalist(root, row, given)
    content = _json(path)
    table, notes = _table(path.parent, path, content)
    table["patient"] = [_patient(given.patient, name, row.name) for name in table["id"]]
    table, more = settle(table, given, name=row.name, seed=seed)
    # what the file says of its own labels comes before what is usual: one name stands for several sets of organs
    given = replace(given, classes=given.classes or _labels(path, content) or row.classes)
    return read_dataset(table, given, name=row.name, source=row.source, notes=(*notes, *more))


def _datalist(root: Path, row: Volumes, given: DatalistOptions) -> Path:
    names = row.datalists if given.datalist is None else (given.datalist,)
    paths = [inside(root, ".", name) for name in names]
    for path in paths:
        if path.is_file():
            return path
    raise FileNotFoundError(f"{row.name}: there is no {' or '.join(names)} in {root}; give data_root or datalist.")


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is no JSON ({error}); repair it.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds a {type(content).__name__}; a datalist is an object with lists of cases.")
    return content


def _labels(path: Path, content: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Class names in their order from ``{"0": name}`` or nnU-Net's ``{name: 0}``."""
    labels = content.get("labels")
    if not labels:
        return None
    try:
        pairs = [(int(key), value) if str(key).isdigit() else (int(value), key) for key, value in labels.items()]
    except (AttributeError, TypeError, ValueError):
        pairs = []
    if sorted(number for number, _ in pairs) != list(range(len(pairs))) or len(pairs) < 2:
        raise ValueError(
            f"labels of {path.name} must number classes from 0 without gaps, one class each; got {labels}."
        )
    return tuple(str(name) for _, name in sorted(pairs))


def _table(root: Path, path: Path, content: Mapping[str, Any]) -> tuple[pd.DataFrame, list[str]]:
    """``id``, ``image``, ``mask`` and ``split`` of all cases that have labels."""
    lists = {split: next((content[key] for key in keys if key in content), None) for split, keys in _KEYS.items()}
    if not any(lists.values()):
        lists["train"] = _nnunet(root, path, content)
    rows: dict[str, list[tuple[Any, Path]]] = {}
    notes = []
    for split, items in ((split, items or []) for split, items in lists.items()):
        labelled = [_item(root, path, item) for item in items if isinstance(item, Mapping) and item.get("label")]
        if labelled and len(labelled) < len(items):
            raise ValueError(
                f"{path.name}: some cases of the list for {split} have a label and some not; give one list."
            )
        rows[split] = labelled
        if items and not labelled:
            notes.append(f"The list for {split} has no labels and is left out ({len(items)}).")
    if not any(rows.values()):
        raise ValueError(
            f"{path.name} names no case with an image and a label; its lists are training, validation, test."
        )
    if not rows["test"] and rows["validation"]:
        rows["test"], rows["validation"] = rows["validation"], []
        notes.append("The validation list is used as test.")
    published = len([split for split in rows if rows[split]]) > 1
    table = pd.DataFrame(
        [(split if published else "", *case) for split, cases in rows.items() for case in cases],
        columns=["split", "image", "mask"],
    )
    table.insert(0, "id", [_first(image).name for image in table["image"]])
    if (twice := table["image"].map(_first).duplicated()).any():
        raise ValueError(f"{path.name} names {table['id'][twice].iloc[0]} twice; give each image one place.")
    if table["id"].duplicated().any():  # one name in folders of several patients
        table["id"] = [_first(image).relative_to(root).as_posix() for image in table["image"]]
    return table, notes


def _first(image: Path | tuple[Path, ...]) -> Path:
    return image[0] if isinstance(image, tuple) else image


def _item(root: Path, path: Path, item: Mapping[str, Any]) -> tuple[Any, Path]:
    image, label = item.get("image"), item.get("label")
    names: list[Any] = image if isinstance(image, list) else [image]
    if not names or not all(isinstance(name, str) for name in [*names, label]):
        raise ValueError(f"{path.name}: {json.dumps(dict(item))[:120]} is no case; give image and label as file names.")
    paths = tuple(inside(root, ".", name) for name in names)
    return paths if len(paths) > 1 else paths[0], inside(root, ".", str(label))


def _nnunet(root: Path, path: Path, content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Cases of nnU-Net's folders: ``labelsTr/<case>`` with ``imagesTr/<case>_0000`` and so on, one file a channel."""
    ending, channels = content.get("file_ending"), content.get("channel_names") or content.get("modality") or {}
    if not ending or not channels:
        raise ValueError(f"{path.name} has neither lists of cases nor nnU-Net's file_ending and channel_names.")
    cases = sorted(file.name.removesuffix(ending) for file in (root / "labelsTr").glob(f"*{ending}"))
    return [
        {
            "image": [f"imagesTr/{case}_{channel:04d}{ending}" for channel in range(len(channels))],
            "label": f"labelsTr/{case}{ending}",
        }
        for case in cases
    ]


def _patient(pattern: str | None, name: str, dataset: str) -> str:
    if pattern is None:
        return name
    found = re.search(pattern, name)
    if found is None:
        raise ValueError(f"{name} of {dataset} names no patient as {pattern!r} finds it; give the right patient.")
    return found[0]
