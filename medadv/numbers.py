"""What counts as a number where one is asked for."""

from __future__ import annotations

import math
from typing import Any, TypeGuard

import numpy as np


def is_finite(value: Any) -> TypeGuard[int | float]:
    """Whether a value is a finite number; True and False are none.

    Example:
        >>> is_finite(0.5), is_finite(True), is_finite("1"), is_finite(float("nan"))
        (True, False, False, False)
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def whole_number(name: str, value: Any, least: int | None) -> None:
    """Refuses an option that is no whole number of at least ``least``."""
    wrong_type = isinstance(value, bool) or not isinstance(value, int | np.integer)
    if wrong_type or (least is not None and value < least):
        bound = "" if least is None else f" of at least {least}"
        raise ValueError(f"{name}={value!r} must be a whole number{bound}.")
