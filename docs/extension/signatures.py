"""Docstrings and signatures in the form that Sphinx reads as they are meant."""

from __future__ import annotations

from typing import Any, get_type_hints

from sphinx.application import Sphinx

from extension.links import locate


def readable_defaults(
    app: Sphinx, what: str, name: str, thing: object, options: object, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Defaults that a dataclass makes anew."""
    return signature and signature.replace("<factory>", "..."), returned


def inherited_types(app: Sphinx, thing: Any, bound: bool) -> None:
    """Types of the fields that a dataclass inherits, read where they were written."""
    owner = locate(f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', '')}".rpartition(".")[0])
    made = owner is not None and "__dataclass_fields__" in getattr(owner[0], "__dict__", {})
    if made and getattr(thing, "__name__", "") == "__init__":
        thing.__annotations__ = {**get_type_hints(owner[0]), "return": None}


def no_types_in_text(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """What stands before a colon is text here, as types are annotated: an empty type before it tells napoleon so."""
    if what == "property" and lines:
        lines[0] = f": {lines[0]}"
    for i in range(len(lines) - 1):
        if lines[i].strip() in ("Returns:", "Yields:"):
            indent = len(lines[i + 1]) - len(lines[i + 1].lstrip())
            lines[i + 1] = f"{lines[i + 1][:indent]}: {lines[i + 1][indent:]}"
