"""The pictures of a finished run, as its report, a site and a merged folder show them."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from pathlib import Path

from medadv.benchmarks.figures import SECTIONS, Gallery
from medadv.files import write_text

PICTURES = "pictures.json"
_PNG = "data:image/png;base64,"
_SIGNATURE = b"\x89PNG\r\n"


def read_galleries(folder: Path) -> list[Gallery]:
    """The pictures that a run left in ``pictures.json``; none where there is no such file.

    Raises:
        ValueError: a damaged file, or pictures that are no PNG inside the file (a page must ask for nothing outside).
    """
    path = folder / PICTURES
    if not path.is_file():
        return []
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        found = [Gallery(section, title, note=note, drawn=drawn) for section, title, drawn, note in kept]
        sound = all(g.section in SECTIONS and (not g.drawn or _is_png(g.drawn)) for g in found)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{str(path)!r} is damaged ({type(error).__name__}); delete it or run the suite anew."
        ) from None
    if not sound:
        raise ValueError(f"{str(path)!r} holds pictures that are no PNG of a run; delete it or run the suite anew.")
    return found


def _is_png(url: str) -> bool:
    """Whether a URL holds a PNG file itself, and nothing else."""
    if not url.startswith(_PNG):
        return False
    try:
        return base64.b64decode(url.removeprefix(_PNG), validate=True).startswith(_SIGNATURE)
    except binascii.Error:
        return False


def write_galleries(galleries: Sequence[Gallery], folder: Path) -> None:
    """Writes what :func:`read_galleries` reads."""
    pictures = [[gallery.section, gallery.title, gallery.picture, gallery.note] for gallery in galleries]
    write_text(folder / PICTURES, json.dumps(pictures))
