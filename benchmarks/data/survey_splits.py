"""Split files in the forms of a survey's release (Dong et al., arXiv 2303.14133): names with labels, codes or masks.

Three forms, all comma-separated:

- ``name,label`` without a header: a class number per image;
- a header with the labels' names, then ``name,b0010...``: one digit per label of the header;
- ``image,mask`` without a header: two file names.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from medadv.benchmarks.data.base import SPLITS
from medadv.benchmarks.data.folder import inside
from medadv.benchmarks.data.images import PLANE_SUFFIXES
from medadv.names import unknown_name

FORMS = {"label": "name,label", "labels": "name,b0010... under a header of labels", "mask": "image,mask"}
_CODE = re.compile(r"b[01]+")


@dataclass(frozen=True)
class SplitFile:
    """What a split file holds.

    Attributes:
        form: one of :data:`FORMS`.
        names: image files.
        values: a class number, a tuple of 0 and 1, or a mask file per image.
        labels: names of the labels in the order of the codes (``form="labels"``).
    """

    form: str
    names: tuple[str, ...]
    values: tuple[Any, ...]
    labels: tuple[str, ...] = ()


def read_split_file(path: Path) -> SplitFile:
    """Reads one file, whichever form it has.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that none of the forms has, or an image named twice.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no split file {path}; give split_files relative to data_root.")
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [(number, [cell.strip() for cell in row]) for number, row in enumerate(csv.reader(file), 1) if any(row)]
    if not rows:
        raise ValueError(f"{path.name} is empty; its forms are {'; '.join(FORMS.values())}.")
    header: tuple[str, ...] = ()
    if not _is_image(rows[0][1][0]):
        header, rows = tuple(rows[0][1]), rows[1:]
    form = _form(path, header, rows)
    values = tuple(_value(path, form, header, number, row) for number, row in rows)
    names = tuple(row[0] for _, row in rows)
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"{path.name} names {twice} twice; give each image one line.")
    return SplitFile(form, names, values, header)


def _is_image(cell: str) -> bool:
    return cell.lower().endswith(PLANE_SUFFIXES)


def _form(path: Path, header: tuple[str, ...], rows: Sequence[tuple[int, list[str]]]) -> str:
    second = rows[0][1][1] if rows and len(rows[0][1]) > 1 else ""
    if _CODE.fullmatch(second) and header:
        return "labels"
    if second.isdigit() and not header:
        return "label"
    if _is_image(second) and not header:
        return "mask"
    first = ",".join(header or (rows[0][1] if rows else ()))
    raise ValueError(f"{path.name} begins with {first[:80]!r}, {second!r}; its forms are {'; '.join(FORMS.values())}.")


def _value(path: Path, form: str, header: tuple[str, ...], number: int, row: list[str]) -> Any:
    if len(row) == 2 and _is_image(row[0]):
        if form == "label" and row[1].isdigit():
            return int(row[1])
        if form == "labels" and _CODE.fullmatch(row[1]) and len(row[1]) == len(header) + 1:
            return tuple(map(int, row[1][1:]))
        if form == "mask" and _is_image(row[1]):
            return row[1]
    digits = f" with {len(header)} digits" if form == "labels" else ""
    raise ValueError(f"{path.name}, line {number}: {','.join(row)[:80]!r} is not {FORMS[form]}{digits}; correct it.")


def split_table(
    root: Path,
    split_files: str | Path | Mapping[str, str | Path],
    *,
    form: str,
    stem: str,
    classes: Sequence[str],
    codes: Mapping[int, int] | None = None,
) -> pd.DataFrame:
    """The cases of split files.

    Args:
        root: folder that the files are relative to.
        split_files: file by split (``"validation"`` may be missing), or a folder with ``train<stem>.csv``,
            ``test<stem>.csv`` and maybe ``validation<stem>.csv``.
        form: the one the data set needs.
        stem: what follows the split's name in the release.
        classes: of the data set.
        codes: class number of the file -> class number of the data set; None: the same.

    Returns:
        ``name``, ``split`` and ``label`` or ``mask`` per case.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: another form, unknown codes or labels, or an image in two splits.
    """
    parts = []
    for split, path in _paths(root, split_files, stem).items():
        read = read_split_file(path)
        if read.form != form:
            raise ValueError(f"{path.name} holds {FORMS[read.form]}; this data set needs {FORMS[form]}.")
        values = list(read.values) if form == "mask" else _numbers(path, read, classes, codes)
        parts.append(pd.DataFrame({"name": read.names, "split": split, "mask" if form == "mask" else "label": values}))
    table = pd.concat(parts, ignore_index=True)
    if (twice := table["name"].duplicated()).any():
        raise ValueError(f"{table['name'][twice].iloc[0]} is in two split files; leave it in one.")
    return table


def _paths(root: Path, given: str | Path | Mapping[str, str | Path], stem: str) -> dict[str, Path]:
    if isinstance(given, Mapping):
        if unknown := sorted(set(given) - set(SPLITS)):
            raise unknown_name("split", unknown[0], SPLITS)
        paths = {split: inside(root, ".", str(given[split])) for split in SPLITS if split in given}
    else:
        folder = inside(root, ".", str(given))
        paths = {split: folder / f"{split}{stem}.csv" for split in SPLITS}
        if not paths["validation"].is_file():
            del paths["validation"]
    if lacking := [split for split in ("train", "test") if split not in paths]:
        raise ValueError(f"split_files names no file for {', '.join(lacking)}; give train and test, maybe validation.")
    return paths


def _numbers(path: Path, read: SplitFile, classes: Sequence[str], codes: Mapping[int, int] | None) -> list[Any]:
    if read.form == "label":
        known = dict(codes or {number: number for number in range(len(classes))})
        for name, value in zip(read.names, read.values, strict=True):
            if value not in known:
                accepted = ", ".join(f"{code} ({classes[number]})" for code, number in known.items())
                raise ValueError(f"{path.name}: label {value} of {name} is unknown; accepted are {accepted}.")
        return [known[value] for value in read.values]
    if sorted(read.labels) != sorted(classes):
        odd = sorted(set(read.labels) ^ set(classes)) or [read.labels[0]]
        raise ValueError(f"{path.name}: label {odd[0]!r} is not in both; the labels are {', '.join(classes)}.")
    order = [read.labels.index(name) for name in classes]
    return [tuple(value[place] for place in order) for value in read.values]
