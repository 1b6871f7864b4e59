"""From a table of cases to a data set: reads the files, brings them to one shape, says what their values mean."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch

from medadv.benchmarks.data.base import SPLITS, Cases, Dataset
from medadv.benchmarks.data.images import Geometry, Stored, fit_mask, read_image, read_mask
from medadv.decisions import Decision, Multiclass, Multilabel
from medadv.intensities import Intensity

_MOST_VALUES = 1 << 22  # of an image that percentiles are measured on
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How files become arrays.

    Args:
        classes: names in the order of the class numbers; None: as many as the labels or masks name.
        background: in segmentation the class that does not count in a Dice score.
        mask_values: what a mask holds -> class number; None: masks hold class numbers.
        fit_masks: bring a mask of another size than its image to the image's, by nearest neighbour.
        mode: ``"L"`` or ``"RGB"``: what 2D images are converted to; None: grey and RGB stay what they are, and others
            are refused.
        channels: which channel of a volume with several is read, or ``"all"``; None: volumes must have one.
        pixdim: voxel size in mm that volumes are resampled to before ``crop``.
        crop: voxels per axis after a centred crop or padding, before ``resize``.
        resize: voxels per axis after resampling (images linear, masks nearest).
        low: least value an image can have; None: the least in the files. A bound of what an attacker may write, not
            a fitted parameter, so it is taken over all splits.
        high: greatest value an image can have; None: the greatest in the files.
        fill: value of what padding adds; None: ``low``. Given ``low`` or ``fill``, images are brought to shape one by
            one; else all are held as stored until the least value is known.
        unit: unit of the values.
        window: ``(low, high)`` that fractions of a budget refer to; ``"percentiles"`` measures the 0.5th and 99.5th
            percentile of the training images.
        scale_to_unit: map ``low`` to ``high`` onto 0 to 1; needs both. A window and a unit then make no sense.
        spacing: voxel size in mm of the files, if known, or ``"header"``: what each file states; scaled by ``resize``.
    """

    classes: tuple[str, ...] | None = None
    background: int | None = 0
    mask_values: Mapping[Any, int] | None = None
    fit_masks: bool = False
    mode: str | None = None
    channels: int | str | None = None
    pixdim: tuple[float, ...] | None = None
    crop: tuple[int, ...] | None = None
    resize: tuple[int, ...] | None = None
    low: float | None = None
    high: float | None = None
    fill: float | None = None
    unit: str = ""
    window: tuple[float, float] | str | None = None
    scale_to_unit: bool = False
    spacing: tuple[float, ...] | str | None = None

    def __post_init__(self) -> None:
        if self.scale_to_unit and (self.low is None or self.high is None or self.unit or self.window):
            raise ValueError(
                "scale_to_unit needs low and high, and leaves no unit and no window; give those or drop it."
            )
        if isinstance(self.window, str) and self.window != "percentiles":
            raise ValueError(f"window={self.window!r} can't be read; give (low, high), 'percentiles' or None.")
        if isinstance(self.spacing, str) and self.spacing != "header":
            raise ValueError(f"spacing={self.spacing!r} can't be read; give mm per axis, 'header' or None.")
        if self.mode not in (None, "L", "RGB"):
            raise ValueError(f"mode={self.mode!r} is none; choose 'L' (grey), 'RGB' or None.")
        if isinstance(self.channels, str) and self.channels != "all":
            raise ValueError(f"channels={self.channels!r} is none; give a number, 'all' or None.")

    @property
    def geometry(self) -> Geometry:
        """What brings images to one shape."""
        return Geometry(self.crop, self.resize, self.pixdim)


def options_of(kind: type[T], options: Mapping[str, Any], whose: str) -> T:
    """``options`` as an instance of the dataclass ``kind``.

    Raises:
        ValueError: an option that ``kind`` doesn't have, or one missing that it must have.
    """
    # what a kind adds comes before what it shares with others
    own = inspect.get_annotations(kind)
    ordered = sorted(fields(kind), key=lambda option: option.name not in own)  # type: ignore[arg-type]
    known = [f.name for f in ordered]
    needed = [f.name for f in ordered if f.default is MISSING and f.default_factory is MISSING]
    unknown, missing = sorted(set(options) - set(known)), [name for name in needed if name not in options]
    if unknown or missing:
        wrong = f"option {', '.join(unknown)} is none of {whose}" if unknown else f"option {missing[0]} is missing"
        must = f", of which {', '.join(needed)} must be given" if needed else ""
        raise ValueError(f"{wrong}; accepted are {', '.join(known)}{must}.")
    # YAML and JSON know lists only
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in options.items()})


def read_dataset(
    table: pd.DataFrame,
    given: Reading,
    *,
    name: str,
    source: str,
    decision: Decision | None = None,
    notes: Sequence[str] = (),
) -> Dataset:
    """Reads the files of a table.

    Args:
        table: a row per case: ``id``; ``image`` (a path or several, one per channel); ``split`` of :data:`SPLITS`;
            ``mask`` (a path) or ``label`` (a class number, or 0 and 1 per label); ``patient`` where patients are known.
        given: how files are read; ``classes`` is needed for labels.
        name: of the data set.
        source: origin and licence.
        decision: of a classification.
        notes: what a reader of results must know.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file or an option is not what it must be.
    """
    pile = _Pile(given)
    for case in table.itertuples(index=False):
        pile.add(case)
    intensity, x = pile.finish()
    classes = given.classes or _numbered(pile.masks)
    if decision is None:
        decision = Multiclass(len(classes), background=given.background)
    y = pile.masks or [np.asarray(label) for label in table["label"]]
    splits = {split: _cases(table, split, x, y, decision) for split in SPLITS}
    x.clear()  # what follows needs room of the size of a split
    for cases in splits.values():
        intensity.check(torch.as_tensor(cases.x))
    spacing, more = pile.common_spacing()
    return Dataset(
        name=name,
        task="segmentation" if pile.masks else "classification",
        decision=decision,
        intensity=intensity,
        classes=classes,
        spacing=spacing,
        source=source,
        notes=(*notes, *more),
        **splits,
    )


@dataclass
class _Pile:
    """What was read so far."""

    given: Reading
    images: list[Stored] = field(default_factory=list)
    masks: list[np.ndarray] = field(default_factory=list)
    spacings: list[tuple[float, ...] | None] = field(default_factory=list)
    ranges: list[tuple[float, float]] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)

    def add(self, case: Any) -> None:
        given = self.given
        stored = _read_channels(case.image, given)
        self.ranges.append((float(stored.values.min()), float(stored.values.max())))
        if isinstance(given.window, str) and case.split == "train":
            values = stored.values.ravel()
            self.values.append(values[:: -(-len(values) // _MOST_VALUES)].copy())
        shape = stored.values.shape[1:]
        known = stored.spacing if given.pixdim or given.spacing == "header" else given.spacing
        self.spacings.append(given.geometry.spacing(known, shape) if isinstance(known, tuple) else None)
        if hasattr(case, "mask"):
            mask = _read_mask(case.mask, case.image, shape, given)
            self.masks.append(given.geometry.mask(mask, spacing=stored.spacing))
        fill = given.low if given.fill is None else given.fill
        self.images.append(stored if fill is None else self._shaped(stored, fill))

    def finish(self) -> tuple[Intensity, list[np.ndarray]]:
        given = self.given
        least, greatest = min(low for low, _ in self.ranges), max(high for _, high in self.ranges)
        if given.low is None and given.fill is None:
            self.images = [self._shaped(stored, least) for stored in self.images]
        elif given.fill is not None and given.crop is not None:
            least, greatest = min(least, given.fill), max(greatest, given.fill)
        low = least if given.low is None else float(given.low)
        high = greatest if given.high is None else float(given.high)
        x = [stored.values for stored in self.images]
        self.images.clear()
        if given.scale_to_unit:
            return Intensity(0.0, 1.0), x
        window = given.window
        if isinstance(window, str):
            start, stop = np.percentile(np.concatenate(self.values), (0.5, 99.5)).tolist()
            window = (float(start), float(stop))
        return Intensity(low, high, unit=given.unit, window=window), x

    def common_spacing(self) -> tuple[tuple[float, ...] | None, tuple[str, ...]]:
        """The voxel size if all cases have one (to 1 %), and a note where they don't."""
        known = [spacing for spacing in self.spacings if spacing is not None]
        if not known:
            return None, ()
        mean = np.mean(known, axis=0)
        if np.abs(np.array(known) / mean - 1).max() > 0.01:
            return None, ("Voxel sizes differ between cases: volumes are given in voxels.",)
        if self.given.spacing is not None and self.given.pixdim is None:
            return known[0], ()
        return tuple(float(mm) for mm in mean), ()

    def _shaped(self, stored: Stored, fill: float) -> Stored:
        given = self.given
        image = given.geometry.image(stored.values, fill=fill, spacing=stored.spacing)
        if given.scale_to_unit and given.low is not None and given.high is not None:
            image = ((image - given.low) / np.float32(given.high - given.low)).astype(np.float32)
        return Stored(image, None)


def _read_channels(image: Path | tuple[Path, ...], given: Reading) -> Stored:
    paths = image if isinstance(image, tuple) else (image,)
    if len(paths) > 1 and given.channels is None:
        raise ValueError(f"{paths[0].name} is one of {len(paths)} files of its image; say which with channels.")
    if len(paths) > 1 and isinstance(given.channels, int):
        return read_image(paths[given.channels], mode=given.mode)
    parts = [read_image(path, mode=given.mode, channels=given.channels) for path in paths]
    shapes = {part.values.shape[1:] for part in parts}
    if len(shapes) > 1:
        raise ValueError(f"the files of {paths[0].name} differ in shape ({sorted(shapes)}); resample them to one grid.")
    return Stored(np.concatenate([part.values for part in parts]), parts[0].spacing)


def _read_mask(path: Path, image: Path | tuple[Path, ...], shape: tuple[int, ...], given: Reading) -> np.ndarray:
    mask = _map_values(read_mask(path, mode="L" if given.mode else None).values, given, path)
    if mask.shape == shape:
        return mask
    if given.fit_masks and mask.ndim == len(shape):
        return fit_mask(mask, shape)
    first = image[0] if isinstance(image, tuple) else image
    raise ValueError(
        f"image {first.name} has shape {shape} and its mask {path.name} {mask.shape}; "
        "they must be voxel by voxel the same."
    )


def _map_values(mask: np.ndarray, given: Reading, path: Path) -> np.ndarray:
    values = np.unique(mask)
    if given.mask_values is not None:
        # keys of a YAML or JSON mapping may be text
        mapping = {float(value): int(number) for value, number in given.mask_values.items()}
    elif (values == values.round()).all() and values.min() >= 0:
        mapping = {float(value): int(value) for value in values}
    else:
        raise ValueError(f"mask {path.name} holds values that are no class numbers; give mask_values {{value: class}}.")
    count = len(given.classes) if given.classes else None
    unknown = [v for v in values.tolist() if v not in mapping or (count is not None and not 0 <= mapping[v] < count)]
    if unknown:
        accepted = ", ".join(f"{v:g}" for v in mapping) if given.mask_values else f"0 to {(count or 1) - 1}"
        raise ValueError(
            f"mask {path.name} holds {', '.join(f'{v:g}' for v in unknown[:5])}; accepted are {accepted}: give the "
            "right mask_values or classes."
        )
    classes = np.array([mapping[value] for value in values.tolist()], dtype=np.int64)
    return classes[np.searchsorted(values, mask)]


def _numbered(masks: Sequence[np.ndarray]) -> tuple[str, ...]:
    number = max(2, 1 + max(int(mask.max()) for mask in masks))
    return ("background", *(f"class {i}" for i in range(1, number)))


def _cases(
    table: pd.DataFrame, split: str, x: Sequence[np.ndarray], y: Sequence[np.ndarray], decision: Decision
) -> Cases:
    shapes = sorted({image.shape for image in x})
    if len(shapes) > 1:
        raise ValueError(
            f"images have shapes {', '.join(map(str, shapes[:3]))}; give crop or resize, so that all have one shape."
        )
    rows = np.flatnonzero((table["split"] == split).to_numpy()).tolist()
    chosen = table.iloc[rows]
    label_type = np.uint8 if isinstance(decision, Multilabel) else np.int64
    return Cases(
        np.stack([x[i] for i in rows]),
        np.stack([y[i] for i in rows]).astype(label_type, copy=False),
        tuple(chosen["id"]),
        tuple(chosen["patient"]) if "patient" in table else None,
    )
