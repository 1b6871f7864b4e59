"""What the documentation makes from the code: the catalogue with its examples, tables, help texts, the API, links."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from extension import links, pages, signatures, tables

MADE = "generated"


def write_pages(app: Sphinx) -> None:
    """Writes the pages that are made from the code, and removes those of rows and modules that are gone."""
    folder = Path(app.srcdir) / MADE
    wanted = {folder / name: text for name, text in pages.pages().items()}
    for file in folder.rglob("*.*"):
        if file not in wanted:
            file.unlink()
    for file, text in wanted.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers everything with Sphinx."""
    app.add_directive("made-table", tables.MadeTable)
    app.add_directive("command-help", tables.CommandHelp)
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-before-process-signature", signatures.inherited_types)
    app.connect("autodoc-process-signature", signatures.readable_defaults)
    app.connect("autodoc-process-docstring", signatures.no_types_in_text, priority=100)  # before napoleon
    app.connect("missing-reference", links.resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
