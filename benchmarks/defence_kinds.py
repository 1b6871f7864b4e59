"""Defences of trained models by kind and name, with the options they take: what a suite may say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medadv.adapters.art_preprocessors import preprocessor_of
from medadv.feature_detectors import FEATURE_DETECTORS
from medadv.names import unknown_name

# what all defences of a kind take; None where it is measured, found or must be given
DETECTOR_OPTIONS: dict[str, Any] = {"layers": None, "fpr": 0.05, "weights": None}
RANDOM_OPTIONS: dict[str, Any] = {"samples": 8}
SMOOTHING_OPTIONS: dict[str, Any] = {"sigma": None, "n": 100, "alpha": 0.001, "certificate": 1000, **RANDOM_OPTIONS}
KINDS = ("detector", "preprocessor", "smoothing")


def options_of(kind: str, name: str) -> dict[str, Any]:
    """The options of a defence with their defaults.

    Args:
        kind: one of :data:`KINDS`.
        name: of the detector or preprocessor; smoothing has none.

    Raises:
        ValueError: an unknown kind or name, or one of ART's preprocessors that is not right for medical images.

    Example:
        >>> options_of("preprocessor", "jpeg"), options_of("detector", "lid")["neighbours"]
        ({'quality': 50}, 20)
    """
    if kind == "smoothing":
        return dict(SMOOTHING_OPTIONS)
    if kind == "detector":
        if name not in FEATURE_DETECTORS:
            raise unknown_name("detector", name, FEATURE_DETECTORS)
        return {**DETECTOR_OPTIONS, **FEATURE_DETECTORS[name].options}
    if kind != "preprocessor":
        raise unknown_name("kind of defence", kind, KINDS)
    row = preprocessor_of(name)
    return {**row.options, **(RANDOM_OPTIONS if row.random else {})}


def check_defence(kind: str, name: str, options: Mapping[str, Any]) -> None:
    """Refuses what is no defence, or an option it does not have.

    Raises:
        ValueError: says what is wrong and what there is.
    """
    known = options_of(kind, name)
    for option in options:
        if option not in known:
            raise unknown_name(f"option of the {kind} {name}", option, known)
    if kind == "smoothing" and options.get("sigma") is None:
        raise ValueError("smoothing needs sigma, the noise's standard deviation, such as '16/255'.")
