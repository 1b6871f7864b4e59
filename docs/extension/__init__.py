"""What the documentation makes from the code: the catalogue with its examples, tables, help texts, the API, links."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from extension import links, pages, tables

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


def readable_defaults(
    app: Sphinx, what: str, name: str, thing: object, options: object, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Defaults that a dataclass makes anew, in a form that Sphinx can read."""
    return signature and signature.replace("<factory>", "..."), returned


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers everything with Sphinx."""
    app.add_directive("made-table", tables.MadeTable)
    app.add_directive("command-help", tables.CommandHelp)
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-process-signature", readable_defaults)
    app.connect("missing-reference", links.resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
