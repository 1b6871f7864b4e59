"""Photographs of the fundus: Messidor's four grades of diabetic retinopathy, or whether there is any."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from medadv.benchmarks.data.collection import Collection, ImageFiles, read_table, tables


def _grades(files: ImageFiles) -> pd.DataFrame | None:
    """Grades 0 to 3 from the annotation tables of the twelve bases."""
    parts = []
    for path in tables(files.root, r"annotation.*\.(csv|xls|xlsx)"):
        table = read_table(path, ("Image name", "Retinopathy grade"))
        if odd := sorted(set(table["Retinopathy grade"]) - set("0123")):
            raise ValueError(f"{path.name} holds the retinopathy grade {odd[0]!r}; grades are 0, 1, 2 and 3.")
        grade = table["Retinopathy grade"].astype(int)
        parts.append(pd.DataFrame({"name": table["Image name"], "split": "", "label": grade}))
    return pd.concat(parts, ignore_index=True) if parts else None


def _any(files: ImageFiles) -> pd.DataFrame | None:
    table = _grades(files)
    return None if table is None else table.assign(label=(table["label"] > 0).astype(int))


_FOUR = Collection(
    name="messidor-grades",
    folder="messidor",
    layout="the bases' tables (Annotation*.xls, or saved as .csv) with the image name and the retinopathy grade, and "
    "the images in any folders",
    form="label",
    classes=("no retinopathy", "grade 1", "grade 2", "grade 3"),
    annotations=_grades,
    reading={"mode": "RGB", "low": 0, "high": 255, "scale_to_unit": True, "resize": (299, 299)},
    source=(
        "Messidor, kindly provided by its partners (Decenciere et al., Image Analysis and Stereology 33(3), 2014; "
        "adcis.net); research and teaching, on request."
    ),
)
ROWS = (
    replace(_FOUR, name="messidor-binary", classes=("no retinopathy", "retinopathy"), annotations=_any, stem="bin"),
    _FOUR,
)
