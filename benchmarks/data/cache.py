"""Arrays that take long to make, kept on disk between runs."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


def cache_folder() -> Path:
    """Where arrays are kept: the environment variable ``MEDADV_CACHE``, else ``~/.cache/medadv``."""
    named = os.environ.get("MEDADV_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "medadv"


def cached(name: str, key: Mapping[str, Any], build: Callable[[], Arrays]) -> Arrays:
    """What ``build`` returns, from disk if it was built before with the same key.

    A file that can't be read is built anew: an interrupted disk must not stop a benchmark, nor enter one.

    Args:
        name: start of the file name, for people.
        key: everything the result depends on; JSON.
        build: makes the arrays; no object arrays, because nothing is unpickled.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
    path = cache_folder() / f"{name}-{digest}.npz"
    stored = _read(path)
    if stored is not None:
        return stored
    arrays = build()
    write_atomically(path, lambda temporary: _save(temporary, arrays))
    return arrays


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Writes a file beside ``path`` and moves it there when it is whole, so that no reader sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _save(path: Path, arrays: Arrays) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def _read(path: Path) -> Arrays | None:
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):
        return None
