"""What counts as a number where one is asked for."""

from __future__ import annotations

import math
from typing import Any, TypeGuard


def is_finite(value: Any) -> TypeGuard[int | float]:
    """Whether a value is a finite number; True and False are none.

    Example:
        >>> is_finite(0.5), is_finite(True), is_finite("1"), is_finite(float("nan"))
        (True, False, False, False)
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
