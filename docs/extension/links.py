"""Links to Python objects: a name that exists is right wherever it was imported from, one that doesn't is a warning."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, text: nodes.TextElement) -> nodes.Element | None:
    """Links to where an object of medadv is documented; objects of other libraries and undocumented ones stay text."""
    if node.get("refdomain") != "py":
        return None
    module, inside = node.get("py:module") or "", node.get("py:class") or ""
    target = node["reftarget"].lstrip(".")
    for start in ("", module, f"{module}.{inside}"):
        found = locate(f"{start}.{target}".strip("."))
        if found is not None:
            return _reference(app, env, node, text, *found)
    return None


def _reference(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, text: nodes.TextElement, thing: Any, name: str
) -> nodes.Element:
    documented = env.domains.python_domain.objects.get(name)
    if documented is None:
        return text
    return make_refnode(app.builder, node["refdoc"], documented.docname, documented.node_id, text, name)


@cache
def locate(dotted: str) -> tuple[Any, str] | None:
    """An object by a name under which it can be reached, and the name under which it was defined."""
    parts = dotted.split(".")
    for depth in range(len(parts), 0, -1):
        try:
            thing: Any = import_module(".".join(parts[:depth]))
        except (ImportError, ValueError):
            continue
        owner = ".".join(parts[:depth])
        for part in parts[depth:]:
            if part in getattr(thing, "__annotations__", {}) and not hasattr(thing, part):
                return None, f"{owner}.{part}"  # a field without a default
            if not hasattr(thing, part):
                return None
            thing = getattr(thing, part)
            owner = _home_of(thing) or f"{owner}.{part}"
        return thing, owner
    return None


def _home_of(thing: Any) -> str | None:
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    return f"{module}.{name}" if module and name else None
