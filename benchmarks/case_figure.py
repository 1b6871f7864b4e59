"""The figure of one attacked case: clean, adversarial, what was added, and what the model made of both.

Arrays have MONAI's axis order, x before y. A picture has x to the right. A slice of a volume has y upwards, so that a
volume in RAS orientation is seen from above with anterior up and the patient's right at the right; a 2D image has y
downwards, as image files have.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from medadv.benchmarks.figures import COLOURS, outline, png_bytes
from medadv.files import write_bytes
from medadv.numbers import is_finite

_ON_GREY = (
    "#ffd23f", "#3ddc97", "#ff5d73", "#4cc9f0", "#ff9f1c", "#c77dff", "#a0e426", "#ff99c8", "#00e5d0", "#b8c0ff",
)  # fmt: skip
_PANEL = 3.8  # inches
_BARS = 12  # as many classes are readable


def worst_slice(reference: np.ndarray | None, before: np.ndarray, after: np.ndarray) -> int:
    """The slice in which most voxels were right before the attack and are wrong after it.

    Args:
        reference: masks of ``K`` structures, bool ``(K, H, W, D)``; None: the slice in which most voxels changed.
        before: prediction for the clean image, as ``reference``.
        after: prediction for the adversarial image, as ``reference``.

    Returns:
        Index along the last axis, the first of equals. Where no voxel is worse, the slice with most of the reference
        (without one, of the prediction before); the middle one where that is empty. 0 for 2D masks ``(K, H, W)``.

    Raises:
        ValueError: of masks that are not bool or differ in shape.

    Example:
        >>> before = np.ones((1, 4, 4, 3), bool)
        >>> after = before.copy()
        >>> after[..., 2] = False
        >>> worst_slice(None, before, after)
        2
    """
    _check_masks(reference, before, after)
    if before.ndim == 3:
        return 0
    truth = before if reference is None else reference
    for counted in ((before == truth) & (after != truth), truth):
        per_slice = counted.sum(axis=(0, 1, 2))
        if per_slice.any():
            return int(per_slice.argmax())
    return before.shape[-1] // 2


def segmentation_figure(
    image: np.ndarray,
    adversarial: np.ndarray,
    reference: np.ndarray | None,
    before: np.ndarray,
    after: np.ndarray,
    *,
    names: Sequence[str],
    window: tuple[float, float],
    unit: str,
    spacing: Sequence[float],
    title: str,
) -> Figure:
    """Clean and adversarial image with the structures outlined, and the perturbation; of volumes :func:`worst_slice`.

    Args:
        image: clean, ``(C, *S)``, 2D or 3D; its first channel is shown.
        adversarial: as ``image``.
        reference: masks of ``K`` structures, bool ``(K, *S)``, outlined dashed; None where there is none.
        before: prediction for ``image``, as ``reference``, outlined in the first panel.
        after: prediction for ``adversarial``, as ``reference``, outlined in the second panel.
        names: of the ``K`` structures; the legend has those that are in the slice.
        window: values of the image shown black and white.
        unit: of the image's values, such as ``HU``.
        spacing: of the voxels along each axis of ``S``, in mm.
        title: of the whole figure.

    Raises:
        ValueError: of shapes, masks, names, a window or a spacing that do not fit.

    Example:
        >>> image, masks = np.zeros((1, 8, 8)), np.ones((1, 8, 8), bool)
        >>> figure = segmentation_figure(image, image + 1, masks, masks, ~masks, names=["spleen"], window=(-160, 240),
        ...                              unit="HU", spacing=(1, 1), title="case 1")
        >>> [axes.get_title().split(chr(10))[0] for axes in figure.axes[:3]]
        ['clean', 'adversarial', 'perturbation']
    """
    _check_images(image, adversarial, window, spacing)
    _check_masks(reference, before, after)
    if before.shape != (len(names), *image.shape[1:]):
        raise ValueError(
            f"the masks have shape {before.shape} but {len(names)} names and an image of {image.shape[1:]} were given: "
            f"they must be {(len(names), *image.shape[1:])}."
        )
    where = worst_slice(reference, before, after)
    clean, attacked = (_plane(array[:1], where)[0] for array in (image, adversarial))
    truth = None if reference is None else _plane(reference, where)
    found = [_plane(masks, where) for masks in (before, after)]
    figure, axes = _panels(image, spacing, 3, f"{title}{_place(image, where)}")
    look = _look(image, spacing)
    for part, picture, masks, name in zip(axes, (clean, attacked), found, ("clean", "adversarial")):
        _picture(part, picture, window, name, unit, look)
        _outlines(part, truth, masks)
    _perturbation(axes[2], attacked - clean, unit, look)
    _legend(figure, names, truth, found)
    return figure


def classification_figure(
    image: np.ndarray,
    adversarial: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    *,
    names: Sequence[str],
    window: tuple[float, float],
    unit: str,
    spacing: Sequence[float],
    title: str,
) -> Figure:
    """Clean image, perturbation, adversarial image, and the probabilities of both; of volumes the middle slice.

    Args:
        image: clean, ``(C, *S)``, 2D or 3D; three channels are shown as RGB, else the first one is shown.
        adversarial: as ``image``.
        before: probabilities for ``image``, ``(K,)``.
        after: probabilities for ``adversarial``, ``(K,)``.
        names: of the ``K`` classes; of many, the bars show those that are most probable before or after.
        window: values of the image shown black and white.
        unit: of the image's values.
        spacing: of the voxels along each axis of ``S``, in mm.
        title: of the whole figure.

    Raises:
        ValueError: of shapes, probabilities, names, a window or a spacing that do not fit.

    Example:
        >>> image, before, after = np.zeros((3, 8, 8)), np.array([0.9, 0.1]), np.array([0.2, 0.8])
        >>> figure = classification_figure(image, image + 1, before, after, names=["healthy", "ill"], window=(0, 255),
        ...                                unit="grey levels", spacing=(1, 1), title="case 1")
        >>> [axes.get_title().split(chr(10))[0] for axes in figure.axes[:3]]
        ['clean', 'perturbation of the channel changed most', 'adversarial']
    """
    _check_images(image, adversarial, window, spacing)
    before, after = (np.asarray(values, float) for values in (before, after))
    _check_probabilities(before, after, names)
    where = image.shape[-1] // 2
    shown = slice(0, 3 if len(image) == 3 else 1)
    clean, attacked = (_plane(array[shown], where) for array in (image, adversarial))
    figure, axes = _panels(image, spacing, 4, f"{title}{_place(image, where)}")
    look = _look(image, spacing)
    for part, channels, name in ((axes[0], clean, "clean"), (axes[2], attacked, "adversarial")):
        _picture(part, np.moveaxis(channels, 0, -1), window, name, unit, look)
    change = attacked - clean
    largest = np.abs(change).argmax(0, keepdims=True)
    of = " of the channel changed most" if len(change) > 1 else ""
    _perturbation(axes[1], np.take_along_axis(change, largest, 0)[0], unit, look, of)
    _bars(axes[3], before, after, names)
    return figure


def write_figure(figure: Figure, path: str | Path) -> None:
    """Writes a figure as a PNG file, whole or not at all.

    Raises:
        ValueError: of a file that is not named .png.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"a figure is written as PNG, but the file is to be named {path.name!r}; end it in .png.")
    write_bytes(path, png_bytes(figure, dpi=150))


def _plane(array: np.ndarray, where: int) -> np.ndarray:
    """What is drawn of channels or masks ``(C, *S)``: ``(C, rows, columns)``."""
    return (array[..., where] if array.ndim == 4 else array).swapaxes(-1, -2)


def _panels(image: np.ndarray, spacing: Sequence[float], count: int, title: str) -> tuple[Figure, list[Any]]:
    """Axes side by side, as high as the picture needs within reason."""
    height = (image.shape[2] * spacing[1]) / (image.shape[1] * spacing[0])
    figure = Figure(figsize=(_PANEL * count, _PANEL * float(np.clip(height, 0.5, 2)) + 1.2), layout="constrained")
    figure.suptitle(title, fontsize=11)
    return figure, [figure.add_subplot(1, count, number + 1) for number in range(count)]


def _place(image: np.ndarray, where: int) -> str:
    return f"\nslice {where} of the last axis (0 to {image.shape[-1] - 1})" if image.ndim == 4 else ""


def _look(image: np.ndarray, spacing: Sequence[float]) -> dict[str, Any]:
    return {
        "aspect": spacing[1] / spacing[0],
        "origin": "lower" if image.ndim == 4 else "upper",
        "interpolation": "nearest",
    }


def _picture(axes: Any, picture: np.ndarray, window: tuple[float, float], name: str, unit: str, look: Any) -> None:
    """Grey values ``(rows, columns)`` or RGB ``(rows, columns, 3)``, black and white at the window's ends."""
    scaled = np.clip((picture - window[0]) / (window[1] - window[0]), 0, 1)
    axes.imshow(scaled, cmap="gray", vmin=0, vmax=1, **look)
    axes.set_title(f"{name}\nshown from {window[0]:g} to {window[1]:g} {unit}", fontsize=9)
    axes.set_axis_off()


def _perturbation(axes: Any, change: np.ndarray, unit: str, look: Any, of: str = "") -> None:
    """What was added, ``(rows, columns)``, pale grey where nothing was; the largest change sets both ends."""
    reach = float(np.abs(change).max())
    limit = reach or 1.0
    drawn = axes.imshow(change, cmap="coolwarm", vmin=-limit, vmax=limit, **look)
    axes.set_title(f"perturbation{of}\nat most {reach:.3g} {unit} here", fontsize=9)
    axes.set_axis_off()
    axes.figure.colorbar(drawn, ax=axes, shrink=0.8, label=unit)


def _outlines(axes: Any, reference: np.ndarray | None, found: np.ndarray) -> None:
    """A colour per structure: the prediction broad, the reference upon it paler and dashed, so that both are seen."""
    for number, mask in enumerate(found):
        outline(axes, mask, _colour(number), width=1.8)
    for number, mask in enumerate(() if reference is None else reference):
        outline(axes, mask, _colour(number, white=0.4), "--", width=1.4)


def _colour(structure: int, white: float = 0.0) -> str:
    """The colour of a structure, made paler by a share of white."""
    red, green, blue = ((1 - white) * part + white for part in to_rgb(_ON_GREY[structure % len(_ON_GREY)]))
    return to_hex((red, green, blue))


def _legend(figure: Figure, names: Sequence[str], reference: np.ndarray | None, found: Sequence[np.ndarray]) -> None:
    """Names of the structures in the slice, and what the line styles mean."""
    drawn = [*found, *([] if reference is None else [reference])]
    handles = [
        Line2D([], [], color=_colour(number), linewidth=5, label=name)
        for number, name in enumerate(names)
        if any(masks[number].any() for masks in drawn)
    ]
    handles.append(Line2D([], [], color="black", linewidth=1.8, label="solid: prediction"))
    if reference is not None:
        handles.append(Line2D([], [], color="black", linewidth=1.4, linestyle="--", label="dashed: reference"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6), fontsize=9, frameon=False)


def _bars(axes: Any, before: np.ndarray, after: np.ndarray, names: Sequence[str]) -> None:
    """Probabilities of the classes, the first at the top."""
    order = np.sort(np.argsort(-np.maximum(before, after), kind="stable")[:_BARS])
    places = np.arange(len(order))
    for shift, values, colour, label in ((-0.2, before, COLOURS[0], "clean"), (0.2, after, COLOURS[1], "adversarial")):
        bars = axes.barh(places + shift, values[order], 0.38, color=colour, label=label)
        axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
    axes.set_yticks(places, [names[label] for label in order])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15)  # room for the number at a full bar
    axes.set_xticks([0, 0.5, 1])
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("probability" + (f"\n{_BARS} of {len(names)} classes" if len(names) > _BARS else ""), fontsize=9)
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside lower right", ncols=2, fontsize=9, frameon=False)


def _check_images(
    image: np.ndarray, adversarial: np.ndarray, window: tuple[float, float], spacing: Sequence[float]
) -> None:
    if image.ndim not in (3, 4) or image.shape != adversarial.shape or 0 in image.shape:
        raise ValueError(
            f"the clean image has shape {image.shape}, the adversarial one {adversarial.shape}: both must "
            "have the same shape (C, H, W) or (C, H, W, D)."
        )
    if not (np.isfinite(image).all() and np.isfinite(adversarial).all()):
        raise ValueError("an image to draw holds values that are not finite; give images of finite values.")
    if not (np.isfinite(window).all() and len(window) == 2 and window[0] < window[1]):
        raise ValueError(f"window={window!r} must be two finite values, the smaller first.")
    if len(spacing) != image.ndim - 1 or not all(is_finite(float(step)) and step > 0 for step in spacing):
        raise ValueError(
            f"spacing={tuple(spacing)!r} must be {image.ndim - 1} positive sizes in mm, one per axis of "
            f"{image.shape[1:]}."
        )


def _check_masks(reference: np.ndarray | None, before: np.ndarray, after: np.ndarray) -> None:
    for name, masks in (("reference", reference), ("before", before), ("after", after)):
        if masks is None:
            continue
        if masks.dtype != bool or masks.ndim not in (3, 4) or masks.shape != before.shape:
            raise ValueError(
                f"{name} is {masks.dtype} of shape {masks.shape}: masks must be bool (K, H, W) or (K, H, W, D), a mask "
                f"per structure, and all of one shape (before: {before.shape})."
            )


def _check_probabilities(before: np.ndarray, after: np.ndarray, names: Sequence[str]) -> None:
    for name, values in (("before", before), ("after", after)):
        if values.shape != (len(names),) or not ((values >= 0) & (values <= 1)).all():
            raise ValueError(
                f"{name} has shape {values.shape} and values {values}: it must be a probability from 0 to 1 for each "
                f"of the {len(names)} names."
            )
