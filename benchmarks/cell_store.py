"""Cells of a run: what was computed once under the same settings and versions is found and never computed again."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from medadv.benchmarks.packing import DamagedError, packed, unpacked
from medadv.files import write_bytes

_LEFTOVER_SECONDS = 3600.0  # a temporary file that nobody has touched for so long has no writer


@dataclass(frozen=True)
class Cell:
    """A result of a run by all that decides it.

    Attributes:
        kind: what it is: ``"training"``, ``"clean"``, ``"attack"``, ...
        label: how people call it; does not decide anything.
        settings: all that decides the result, as JSON can say it: configuration, hashes of data and weights, seeds,
            threads.

    Example:
        >>> one, other = Cell("attack", "pgd", {"eps": 1, "seed": 0}), Cell("attack", "PGD", {"seed": 0, "eps": 1})
        >>> one.config == other.config
        True
    """

    kind: str
    label: str
    settings: Mapping[str, Any]

    @cached_property
    def config(self) -> str:
        """Hash of kind and settings."""
        return digest([self.kind, self.settings])


def digest(value: Any) -> str:
    """A short hash of anything that JSON can say, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


class CellStore:
    """A folder of results, one file a cell; several processes may use it at the same time.

    A file is written whole or not at all, and named after the settings of its cell and the versions it was computed
    under. Under other versions a cell is another one. A damaged file is told of, set aside and computed again.

    Args:
        folder: of the cells; made if need be.
        versions: what else decides every result.
        keep_stale: take results that other versions have computed; they are marked by :meth:`is_stale`.
        since: results older than this (seconds, as files are dated in the folder) are computed again.

    Example:
        >>> import tempfile
        >>> store = CellStore(Path(tempfile.mkdtemp()), {"torch": "2.13.0"})
        >>> store.result(Cell("sum", "1 + 1", {"of": [1, 1]}), lambda: 2)
        2
        >>> store.result(Cell("sum", "1 + 1", {"of": [1, 1]}), lambda: 3)
        2
    """

    def __init__(
        self, folder: Path, versions: Mapping[str, str], *, keep_stale: bool = False, since: float = 0.0
    ) -> None:  # fmt: skip
        self.folder = folder
        self.versions = dict(versions)
        self.keep_stale = keep_stale
        self.since = since
        self.stale: dict[str, dict[str, str]] = {}  # versions of results that were taken, by the hash of the cell
        folder.mkdir(parents=True, exist_ok=True)

    def result(self, cell: Cell, compute: Callable[[], Any]) -> Any:
        """The kept result of a cell, or that of ``compute``, which is kept.

        A cell that another process is computing is waited for.

        Raises:
            OSError: the result can't be written. What ``compute`` raises is raised.
        """
        found = self.find(cell)
        if found is not None:
            return found.value
        with FileLock(self.path(cell, "lock")):
            found = self.find(cell)  # by another process, meanwhile
            if found is None:
                self.keep(cell, compute())
                found = self.find(cell)
        self.path(cell, "lock").unlink(missing_ok=True)
        if found is None:
            raise OSError(f"{str(self.path(cell))!r} can't be read back after it was written.")
        return found.value

    def find(self, cell: Cell) -> Found | None:
        """The kept result of a cell, or None."""
        paths = [self.path(cell)]
        if self.keep_stale:
            others = self.folder.glob(f"{cell.config}-*.npz")
            paths += sorted(set(others) - set(paths), key=lambda path: path.stat().st_mtime, reverse=True)
        for path in paths:
            found = self._read(path)
            if found is not None:
                if found.versions != self.versions:
                    self.stale[cell.config] = dict(found.versions)
                return found
        return None

    def is_stale(self, cell: Cell) -> bool:
        """Whether the result that was taken is of other versions."""
        return cell.config in self.stale

    def keep(self, cell: Cell, value: Any) -> None:
        """Writes the result of a cell, in the place of any other.

        Raises:
            OSError: it can't be written.
        """
        write_bytes(self.path(cell), packed({"label": cell.label, "versions": self.versions, "value": value}))

    def path(self, cell: Cell, ending: str = "npz") -> Path:
        """Where a cell keeps its result, or something else of the same name."""
        return self.folder / f"{cell.config}-{digest(self.versions)[:8]}.{ending}"

    def _read(self, path: Path) -> Found | None:
        try:
            if path.stat().st_mtime < self.since:
                return None
            content = unpacked(path.read_bytes())
            return Found(content["value"], content["versions"])
        except FileNotFoundError:
            return None
        except (DamagedError, KeyError, TypeError) as error:
            print(f"medadv: {str(path)!r} is {error}; it is set aside and computed again.", file=sys.stderr)
            path.replace(path.with_suffix(".damaged"))
            return None

    def tidy(self) -> None:
        """Removes what killed processes have left half-written."""
        oldest = now_in(self.folder) - _LEFTOVER_SECONDS
        try:
            with FileLock(self.folder / "tidy.lock", timeout=0):
                for path in self.folder.glob(".*"):
                    if path.stat().st_mtime < oldest:
                        path.unlink(missing_ok=True)
        except (Timeout, FileNotFoundError):
            pass  # another process does


@dataclass(frozen=True)
class Found:
    """A result that was kept.

    Attributes:
        value: what was computed.
        versions: under which versions.
    """

    value: Any
    versions: Mapping[str, str] = field(default_factory=dict)


def now_in(folder: Path) -> float:
    """The time as files are dated in a folder, which may lie on another machine."""
    stamp = folder / f".now-{os.getpid()}"
    stamp.touch()
    try:
        return stamp.stat().st_mtime
    finally:
        stamp.unlink(missing_ok=True)
