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


def check_options(of: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuses options that something does not have.

    Args:
        of: what they are given to.
        given: their names.
        known: the names it has.

    Raises:
        TypeError: says which is unknown, with the nearest known ones.

    Example:
        >>> check_options("lid", ["neighbours"], ["neighbours"])
    """
    names = list(known)
    for option in given:
        if option not in names:
            raise TypeError(str(unknown_name(f"option of {of}", option, names)))
