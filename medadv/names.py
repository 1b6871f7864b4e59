"""One sentence for a name that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown_name(kind: str, given: object, known: Iterable[str]) -> ValueError:
    """The error to raise for an unknown name, with the nearest known ones, or all where none is near.

    Example:
        >>> print(unknown_name("attack", "pgd-dise", ["fgsm", "pgd-dice", "pgd-ce"]))
        attack 'pgd-dise' is unknown; did you mean 'pgd-dice' or 'pgd-ce'?
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(given), names, n=3, cutoff=0.5)
    if near:
        return ValueError(f"{kind} {given!r} is unknown; did you mean {' or '.join(map(repr, near))}?")
    return ValueError(f"{kind} {given!r} is unknown; choose one of {', '.join(names)}.")
