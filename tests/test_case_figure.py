"""The figure of one attacked case shows the right slice, the right way round, at its true proportions."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from medadv.benchmarks.case_figure import classification_figure, segmentation_figure, worst_slice, write_figure

LOOK = {"window": (-100.0, 100.0), "unit": "HU", "title": "case 7"}


def case(shape=(6, 5, 4), structures=2, channels=1):
    """Clean and adversarial image and masks; the attack hides the first structure in the last slice but one."""
    image = np.random.default_rng(0).uniform(-90, 90, (channels, *shape))
    reference = np.zeros((structures, *shape), bool)
    reference[:, 1:4, 1:3] = True
    after = reference.copy()
    after[(0, slice(None), slice(None), *([-2] if len(shape) == 3 else []))] = False
    return image, image + np.linspace(-3, 7, image.size).reshape(image.shape), reference, after


def segmentation(shape=(6, 5, 4), spacing=(1.0, 2.0, 5.0), **changed):
    image, adversarial, reference, after = case(shape)
    given = {"image": image, "adversarial": adversarial, "reference": reference, "before": reference, "after": after}
    return segmentation_figure(**{**given, "names": ["liver", "spleen"], "spacing": spacing, **LOOK, **changed})


def classification(channels=1, shape=(6, 5, 4), **changed):
    image, adversarial, *_ = case(shape, channels=channels)
    given = {"image": image, "adversarial": adversarial, "before": [0.9, 0.1], "after": [0.25, 0.75]}
    given |= {"names": ["healthy", "ill"], "spacing": (1.0, 2.0, 5.0)[: len(shape)]}
    return classification_figure(**{**given, **LOOK, **changed})


def titles(figure):
    return [axes.get_title().split("\n")[0] for axes in figure.axes]


def contours(axes):
    return [(drawn.get_linestyles()[0][1] is not None, drawn) for drawn in axes.collections]


def test_the_worst_slice_lost_most_of_what_was_right_and_not_most_of_what_changed():
    reference = np.zeros((1, 4, 4, 5), bool)
    reference[:, :2] = True
    before, after = reference.copy(), reference.copy()
    before[:, :, :, 1] = False  # wrong before, right after: no loss
    after[:, 0, :, 3] = False  # 4 voxels lost
    after[:, 3, :3, 4] = True  # 3 voxels too many
    assert worst_slice(reference, before, after) == 3
    assert worst_slice(None, before, after) == 1


def test_losses_of_all_structures_count_together():
    before = np.ones((2, 2, 2, 3), bool)
    after = before.copy()
    after[0, :, 0, 0] = False
    after[:, :, 0, 1] = False
    assert worst_slice(before, before, after) == 1


@pytest.mark.parametrize(("filled", "expected"), [(None, 2), (4, 4)])
def test_where_nothing_got_worse_there_is_still_something_to_see(filled, expected):
    masks = np.zeros((1, 3, 3, 5), bool)
    if filled is not None:
        masks[..., filled] = True
    assert worst_slice(masks, masks, masks) == worst_slice(None, masks, masks) == expected


def test_2d_masks_have_no_slices():
    masks = np.ones((2, 3, 3), bool)
    assert worst_slice(masks, masks, ~masks) == 0


@pytest.mark.parametrize(("shape", "spacing", "origin"), [
    ((6, 5, 4), (1.0, 2.0, 5.0), "lower"), ((6, 5), (1.0, 2.0), "upper"),
])  # fmt: skip
def test_panels_have_x_to_the_right_at_their_true_proportions(shape, spacing, origin):
    figure = segmentation(shape, spacing)
    image, adversarial, *_ = case(shape)
    cut = (0, ..., 2) if len(shape) == 3 else (0, ...)
    assert titles(figure)[:3] == ["clean", "adversarial", "perturbation"]
    values = [image[cut] / 200 + 0.5, adversarial[cut] / 200 + 0.5, (adversarial - image)[cut]]
    for axes, expected in zip(figure.axes, values):
        (picture,) = axes.images
        assert np.allclose(picture.get_array(), expected.T)  # rows of a picture are y
        assert (picture.origin, axes.get_aspect()) == (origin, 2.0)
        assert axes.get_xlim() == (-0.5, 5.5)
        assert sorted(axes.get_ylim()) == [-0.5, 4.5]
    assert figure.get_suptitle() == ("case 7\nslice 2 of the last axis (0 to 3)" if len(shape) == 3 else "case 7")


def test_the_perturbation_is_symmetric_about_zero_and_has_its_unit():
    figure = segmentation()
    image, adversarial, *_ = case()
    reach = np.abs(adversarial - image)[0, ..., 2].max()
    assert figure.axes[2].images[0].get_clim() == pytest.approx((-reach, reach))
    assert figure.axes[3].get_ylabel() == "HU"


def test_an_image_that_was_not_changed_is_drawn_too():
    image, *_ = case()
    figure = segmentation(adversarial=image)
    assert figure.axes[2].images[0].get_clim() == (-1, 1)
    assert "at most 0 HU" in figure.axes[2].get_title()


def test_outlines_are_of_the_prediction_solid_and_of_the_reference_dashed():
    clean, attacked = (contours(axes) for axes in segmentation().axes[:2])
    assert [dashed for dashed, _ in clean] == [False, False, True, True]
    assert [dashed for dashed, _ in attacked] == [False, True, True]  # the first structure was hidden
    assert attacked[0][1].get_edgecolor()[0, :3] == pytest.approx(clean[1][1].get_edgecolor()[0, :3])
    box = clean[0][1].get_paths()[0].get_extents()
    assert (box.x0, box.x1, box.y0, box.y1) == (0.5, 3.5, 0.5, 2.5)  # around voxels 1 to 3 of x, 1 and 2 of y


@pytest.mark.parametrize("with_reference", [True, False])
def test_the_legend_names_what_is_in_the_slice(with_reference):
    image, adversarial, reference, after = case()
    reference[1, :, :, 2] = after[1, :, :, 2] = False
    figure = segmentation(reference=reference if with_reference else None, before=reference, after=after)
    (legend,) = figure.legends
    words = [text.get_text() for text in legend.get_texts()]
    assert words == ["liver", "solid: prediction", *(["dashed: reference"] if with_reference else [])]
    drawn = figure.axes[0].collections[0].get_edgecolor()[0, :3]
    assert to_rgb(legend.get_lines()[0].get_color()) == pytest.approx(drawn)


def test_a_mask_that_fills_the_image_is_outlined_at_its_border():
    full = np.ones((2, 6, 5), bool)
    figure = segmentation((6, 5), (1.0, 1.0), reference=None, before=full, after=full)
    box = figure.axes[0].collections[0].get_paths()[0].get_extents()
    assert (box.x0, box.x1, box.y0, box.y1) == (-0.5, 5.5, -0.5, 4.5)


@pytest.mark.parametrize("shape", [(6, 5, 4), (6, 5)])
def test_a_classification_has_its_probabilities_beside_the_pictures(shape):
    figure = classification(shape=shape)
    assert titles(figure) == ["clean", "perturbation", "adversarial", "probability", ""]
    image = case(shape)[0][(0, ..., 2) if len(shape) == 3 else 0]
    assert np.allclose(figure.axes[0].images[0].get_array(), image.T / 200 + 0.5)
    bars = figure.axes[3]
    assert [text.get_text() for text in bars.get_yticklabels()] == ["healthy", "ill"]
    assert [bar.get_width() for group in bars.containers for bar in group] == [0.9, 0.1, 0.25, 0.75]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["clean", "adversarial"]


def test_three_channels_are_a_colour_picture_within_the_window():
    image, adversarial, *_ = case((6, 5), channels=3)
    figure = classification(channels=3, shape=(6, 5), window=(0, 50))
    assert np.allclose(figure.axes[0].images[0].get_array(), np.clip(image.transpose(2, 1, 0) / 50, 0, 1))
    change = adversarial - image
    drawn = figure.axes[1].images[0].get_array().T
    assert np.allclose(np.abs(drawn), np.abs(change).max(0))
    assert np.isclose(drawn, change).any(0).all()  # with its sign


def test_of_many_classes_the_most_probable_are_shown_in_their_order():
    before, after = np.full(30, 0.01), np.full(30, 0.01)
    before[20], after[3] = 0.9, 0.9
    figure = classification(before=before, after=after, names=[f"class {label}" for label in range(30)])
    shown = [text.get_text() for text in figure.axes[3].get_yticklabels()]
    assert len(shown) == 12
    assert {"class 3", "class 20"} < set(shown)
    assert shown == sorted(shown, key=lambda name: int(name.split()[1]))
    assert figure.axes[3].get_title() == "probability\n12 of 30 classes"


@pytest.mark.parametrize(("changed", "message"), [
    ({"adversarial": np.zeros((1, 6, 5, 3))}, "same shape"), ({"image": np.full((1, 6, 5, 4), np.nan)}, "not finite"),
    ({"window": (100, -100)}, "smaller first"), ({"window": (0, np.inf)}, "smaller first"),
    ({"spacing": (1, 1)}, "3 positive sizes in mm"), ({"spacing": (1, 0, 1)}, "3 positive sizes in mm"),
    ({"names": ["liver"]}, "1 names"), ({"after": np.ones((2, 6, 5, 4))}, "after is float64"),
    ({"reference": np.ones((1, 6, 5, 4), bool)}, "all of one shape"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        segmentation(**changed)


@pytest.mark.parametrize("after", [[0.5, 1.5], [0.5, np.nan], [1.0], [-0.1, 0.5]])
def test_what_is_no_probability_per_class_is_refused(after):
    with pytest.raises(ValueError, match="after .* probability from 0 to 1"):
        classification(after=after)


def test_the_file_is_a_png_and_written_whole(tmp_path, monkeypatch):
    path = tmp_path / "new" / "case.png"
    figure = segmentation()
    write_figure(figure, path)
    height, width = imread(path).shape[:2]
    assert (width, height) == pytest.approx(figure.get_size_inches() * 150, abs=1)
    kept = path.read_bytes()
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("disk is gone")))
    with pytest.raises(OSError, match="disk is gone"):
        write_figure(classification(), path)
    assert [path] == list(path.parent.iterdir())
    assert path.read_bytes() == kept


def test_another_kind_of_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"end it in \.png"):
        write_figure(segmentation(), tmp_path / "case.pdf")
