"""Going on with a run that was interrupted: tables of finished tasks are read back, trained networks loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medadv.benchmarks.figures import Gallery
from medadv.benchmarks.leaderboard import Leaderboard
from medadv.benchmarks.models import Estimator, load_checkpoint, weights_sha256
from medadv.benchmarks.store import provenance, read_run, write_tables, write_weights
from medadv.benchmarks.suites import Suite
from medadv.files import write_text

PROGRESS = "progress.json"
PICTURES = "pictures.json"
# what of the provenance changes numbers
_DECISIVE = ("versions", "threads")


@dataclass
class Progress:
    """What of a run is done, kept in ``progress.json`` of its folder.

    Attributes:
        folder: of the run.
        identity: suite, versions and threads; another run has another.
        tasks: names of finished tasks.
        networks: per trained network what is told about its training, and the hash of its weights.
        pictures: how many pictures of ``pictures.json`` are of finished tasks.
        galleries: pictures of the report so far.
    """

    folder: Path
    identity: dict[str, Any]
    tasks: list[str] = field(default_factory=list)
    networks: dict[str, dict[str, Any]] = field(default_factory=dict)
    pictures: int = 0
    galleries: list[Gallery] = field(default_factory=list)

    def load_network(self, label: str, estimator: Estimator) -> dict[str, Any] | None:
        """Weights of a network that an earlier start of this run has trained; None where there is none.

        Returns:
            What :meth:`keep_network` was told.

        Raises:
            ValueError: the file of weights is missing, damaged or another one.
        """
        record = self.networks.get(label)
        if record is None:
            return None
        path = self.weights(label)
        load_checkpoint(estimator.network, path)
        if weights_sha256(estimator.network) != record["sha256"]:
            raise ValueError(f"{str(path)!r} holds other weights than this run wrote; give another folder with --out.")
        return dict(record["told"])

    def keep_network(self, label: str, estimator: Estimator, told: dict[str, Any]) -> None:
        """Writes the weights of a trained network and what is told about its training."""
        write_weights(estimator.network, self.weights(label))
        self.networks[label] = {"sha256": weights_sha256(estimator.network), "told": told}
        self._write()
        self.checkpoint(label).unlink(missing_ok=True)

    def weights(self, label: str) -> Path:
        """Where the weights of a network are."""
        return self.folder / "models" / f"{label}.pt"

    def checkpoint(self, label: str) -> Path:
        """Where a training leaves its state after each epoch."""
        return self.folder / "models" / f".{label}.checkpoint"

    def keep_task(self, name: str, board: Leaderboard) -> None:
        """Writes tables and pictures of all tasks so far, and then that this one is finished."""
        write_tables(board, self.folder)
        self.tasks.append(name)
        self.pictures = len(self.galleries)
        pictures = [[g.section, g.title, g.picture, g.note] for g in self.galleries]
        write_text(self.folder / PICTURES, json.dumps(pictures))
        self._write()

    def _write(self) -> None:
        kept = {name: getattr(self, name) for name in ("identity", "tasks", "networks", "pictures")}
        write_text(self.folder / PROGRESS, json.dumps(kept, default=str))


def begin(suite: Suite, folder: Path) -> tuple[Progress, Leaderboard]:
    """The progress and the tables of a run that starts or goes on in a folder.

    Raises:
        ValueError: the folder holds another run, or a damaged one.
    """
    told = {**provenance(), "suite": suite.model_dump(mode="json")}
    identity = json.loads(json.dumps({name: told[name] for name in ("suite", *_DECISIVE)}, default=str))
    fresh = Progress(folder, identity), Leaderboard(meta={**told, "data": {}, "weights": {}})
    path = folder / PROGRESS
    if not path.is_file():
        if (folder / "leaderboard.csv").is_file():
            raise ValueError(f"{str(folder)!r} holds another run; give another folder with --out.")
        return fresh
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        differing = [name for name in identity if kept["identity"].get(name) != identity[name]]
        progress = Progress(folder, identity, kept["tasks"], kept["networks"], kept["pictures"])
        progress.galleries = _pictures(folder)[: progress.pictures] if progress.tasks else []
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ValueError(
            f"{str(path)!r} is damaged ({type(error).__name__}); give another folder with --out."
        ) from None
    if differing:
        raise ValueError(
            f"{str(folder)!r} holds a run with another {' and another '.join(differing)}; give another folder with "
            "--out."
        )
    return progress, _finished(read_run(folder), progress.tasks) if progress.tasks else fresh[1]


def _pictures(folder: Path) -> list[Gallery]:
    kept = json.loads((folder / PICTURES).read_text(encoding="utf-8"))
    return [Gallery(section, title, note=note, drawn=drawn) for section, title, drawn, note in kept]


def _finished(board: Leaderboard, tasks: list[str]) -> Leaderboard:
    """The rows of finished tasks: a run that stops after its tables are written has those of one more."""
    for name in ("frame", "cases", "endpoints", "bands", "diagnostics"):
        table = getattr(board, name)
        if len(table):
            setattr(board, name, table[table.task.isin(tasks)].reset_index(drop=True))
    return board
