"""Which files make a case: one image, a folder of images, or a datalist as the Decathlon and MONAI have it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medadv.adapters.scans import PLANE_ENDINGS, VOLUME_ENDINGS
from medadv.benchmarks.data.folder import inside

_IMAGES = (*VOLUME_ENDINGS, *PLANE_ENDINGS)
# of a datalist, the first that is there
SECTIONS = ("test", "testing", "validation", "training")


@dataclass(frozen=True)
class FileCase:
    """One case.

    Attributes:
        name: of its results.
        image: file, folder of a DICOM series, or a file per channel.
        label: file of a segmentation, class number, or 0 and 1 per label; None: none.
        extras: further files the network sees, by their key.
        region: mask of where the image may change; None: everywhere.
    """

    name: str
    image: Path | tuple[Path, ...]
    label: Any = None
    extras: Mapping[str, Path] = field(default_factory=dict)
    region: Path | None = None


def stem(path: Path) -> str:
    """Name of a file without the ending of its kind.

    Example:
        >>> stem(Path("a/scan.v2.nii.gz"))
        'scan.v2'
    """
    name = path.name
    for ending in _IMAGES:
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name


def cases_of_files(
    images: Sequence[Path],
    label: Any = None,
    extras: Mapping[str, Path] | None = None,
    region: Path | None = None,
) -> list[FileCase]:
    """The cases of paths given by hand.

    Args:
        images: one file or DICOM folder, a file per channel, or one folder with an image per case.
        label: of a single case as in :class:`FileCase`; of a folder the folder of labels, under the images' names.
        extras, region: likewise files, or folders.

    Raises:
        FileNotFoundError: an image, or the label of one, is not there.
        ValueError: a folder without images.
    """
    for path in images:
        if not path.exists():
            raise FileNotFoundError(f"there is no file {path}; correct the path of the image.")
    if len(images) == 1 and images[0].is_dir():
        found = sorted(path for path in images[0].iterdir() if path.name.lower().endswith(_IMAGES))
        if found:
            return [
                FileCase(
                    stem(path), path, _beside(label, path),
                    {name: _beside(place, path) for name, place in (extras or {}).items()}, _beside(region, path),
                )
                for path in found
            ]  # fmt: skip
        if not any(path.is_file() for path in images[0].iterdir()):
            raise ValueError(f"folder {images[0]} holds no image ({', '.join(_IMAGES)}) and no DICOM series.")
    image = images[0] if len(images) == 1 else tuple(images)
    return [FileCase(stem(images[0]), image, label, dict(extras or {}), region)]


def _beside(folder: Any, image: Path) -> Any:
    """The file of an image's name in another folder."""
    if folder is None:
        return None
    found = [path for path in sorted(Path(folder).glob("*")) if stem(path) == stem(image)]
    if not found:
        raise FileNotFoundError(f"{folder} holds no file for {image.name}; names must be those of the images.")
    return found[0]


def cases_of_datalist(path: Path, section: str | None = None, extra_keys: Sequence[str] = ()) -> list[FileCase]:
    """The cases of a datalist: ``[{"image": file, "label": file}, ...]``, or an object with such lists.

    Paths are relative to the file. ``image`` may be a list, a file per channel; ``label`` a number or several.

    Args:
        path: JSON file.
        section: which list of the object; default: the first there is of :data:`SECTIONS`.
        extra_keys: keys of further files the network sees.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a datalist; the message says what is wrong.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no datalist {path}; correct its path.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is no JSON ({error}); repair it.") from error
    if isinstance(content, dict):
        names = [section] if section else [name for name in SECTIONS if content.get(name)]
        if not names or not isinstance(content.get(names[0]), list):
            known = ", ".join(str(key) for key, value in content.items() if isinstance(value, list)) or "none"
            raise ValueError(f"{path.name} has no list {section or ' or '.join(SECTIONS)}; its lists: {known}.")
        content = content[names[0]]
    if not isinstance(content, list) or not content:
        raise ValueError(f"{path.name} holds no list of cases; give [{{'image': ..., 'label': ...}}, ...].")
    return _named([_item(path, item, extra_keys) for item in content])


def _item(path: Path, item: Any, extra_keys: Sequence[str]) -> FileCase:
    given = {"image": item} if isinstance(item, str) else item
    images = given.get("image") if isinstance(given, dict) else None
    files = [images] if isinstance(images, str) else images
    if not isinstance(files, list) or not files or not all(isinstance(name, str) for name in files):
        raise ValueError(f"{path.name}: {json.dumps(item)[:120]} is no case; give image and label as file names.")
    missing = [key for key in extra_keys if not isinstance(given.get(key), str)]
    if missing:
        raise ValueError(f"{path.name}: {json.dumps(item)[:120]} names no {', '.join(missing)}, which the model sees.")
    paths = tuple(inside(path.parent, ".", name) for name in files)
    label = given.get("label")
    region = given.get("region")
    return FileCase(
        stem(paths[0]),
        paths[0] if len(paths) == 1 else paths,
        inside(path.parent, ".", label) if isinstance(label, str) else label,
        {key: inside(path.parent, ".", given[key]) for key in extra_keys},
        inside(path.parent, ".", region) if isinstance(region, str) else None,
    )


def _named(cases: list[FileCase]) -> list[FileCase]:
    """Cases whose files have one name are told apart by their folders."""
    names = [case.name for case in cases]
    if len(set(names)) == len(names):
        return cases
    firsts = [case.image[0] if isinstance(case.image, tuple) else case.image for case in cases]
    longer = [f"{first.parent.name}-{name}" for first, name in zip(firsts, names, strict=True)]
    if len(set(longer)) < len(longer):
        longer = [f"{number:03d}-{name}" for number, name in enumerate(names)]
    return [FileCase(name, c.image, c.label, c.extras, c.region) for name, c in zip(longer, cases, strict=True)]
