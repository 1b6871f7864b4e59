"""What a run leaves on disk: tables, provenance, weights, adversarial images; written whole or not at all."""

from __future__ import annotations

import io
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import medadv
from medadv.benchmarks.evaluate import NO_ATTACK
from medadv.benchmarks.leaderboard import Leaderboard
from medadv.benchmarks.leaderboard_rows import SCHEMA_VERSION
from medadv.benchmarks.suites import Suite
from medadv.files import write_bytes, write_text

_TABLES = ("leaderboard.csv", "cases.csv", "endpoints.csv", "leaderboard.meta.json")
# columns of words, whatever they look like and where all are empty
_WORDS = ("unit", "case", "patient", "flag", "flags", "advice", "call", "note")
_OFTEN_EMPTY = ("reused", "error")  # columns of words that may be empty in every row
_VERSIONED = (
    "torch", "monai", "adversarial-robustness-toolbox", "numpy", "scipy", "pandas", "scikit-learn", "torchattacks",
    "nilearn",
)  # fmt: skip


def prepare_folder(path: Path) -> Path:
    """Makes the output folder and proves that it can be written, before hours of work.

    Raises:
        ValueError: it can't be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(
            f"output folder {str(path)!r} can't be written ({error.strerror}); give another with --out."
        ) from None
    return path


def write_tables(board: Leaderboard, folder: Path) -> None:
    """Writes ``leaderboard.csv``, ``cases.csv``, ``endpoints.csv`` and ``leaderboard.meta.json``.

    Beside them ``diagnostics.csv``, and ``transfer.csv`` and ``bands.csv``, where the suite replays images or asks for
    bands.
    """
    board.to_csv(folder / "leaderboard.csv")
    write_text(folder / "cases.csv", board.cases.to_csv(index=False))
    write_text(folder / "endpoints.csv", board.endpoints.to_csv(index=False))
    beside = {"transfer": board.transfer_matrix(), "bands": board.bands, "diagnostics": board.diagnostics}
    for name, table in beside.items():
        if len(table):
            write_text(folder / f"{name}.csv", table.to_csv(index=False))
    write_text(folder / "leaderboard.meta.json", json.dumps(board.meta, indent=2, default=str))


def check_same_suite(folder: Path, suite: Suite) -> None:
    """Refuses a folder whose tables are those of a suite of another name.

    Raises:
        ValueError: they are.
    """
    path = folder / _TABLES[3]
    if not path.is_file():
        if (folder / _TABLES[0]).is_file():
            raise ValueError(f"{str(folder)!r} holds another run; give another folder with --out.")
        return
    try:
        name = json.loads(path.read_text(encoding="utf-8"))["suite"]["name"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{str(path)!r} is damaged; give another folder with --out.") from None
    if name != suite.name:
        raise ValueError(f"{str(folder)!r} holds the run of suite {name!r}; give another folder with --out.")


def require_files(folder: Path, names: Sequence[str]) -> None:
    """Refuses a folder that is not that of a finished run.

    Raises:
        ValueError: a file is missing.
    """
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{str(folder)!r} holds no {' and no '.join(missing)}; give the folder of a finished run.")


def read_run(folder: Path) -> Leaderboard:
    """What :func:`write_tables` wrote.

    Raises:
        ValueError: a file is missing.
    """
    require_files(folder, _TABLES)
    frame, cases, endpoints = (read_table(folder / name) for name in _TABLES[:3])
    beside = (folder / f"{name}.csv" for name in ("bands", "diagnostics"))
    shares, findings = (read_table(path) if path.is_file() else pd.DataFrame() for path in beside)
    meta = json.loads((folder / _TABLES[3]).read_text(encoding="utf-8"))
    if "n_attacked" not in frame:  # schema 2, which had every attack run on every case
        frame["n_attacked"], frame["reused"] = frame.n_cases.where(frame.attack != NO_ATTACK, 0), ""
    return Leaderboard(frame=frame, cases=cases, endpoints=endpoints, bands=shares, meta=meta, diagnostics=findings)


def read_table(path: Path) -> pd.DataFrame:
    """A table of a run as it was written: units and ids such as "01" are words, only what is empty is missing."""
    settings: dict[str, Any] = {"keep_default_na": False, "na_values": [""], "float_precision": "round_trip"}
    table = pd.read_csv(path, dtype=dict.fromkeys((*_WORDS, *_OFTEN_EMPTY), str), **settings)
    return table.assign(**{name: table[name].fillna("") for name in _OFTEN_EMPTY if name in table})


def write_weights(network: torch.nn.Module, path: Path) -> None:
    """Saves a state dict that ``checkpoint:`` of a suite can load."""
    write_bytes(path, weights_bytes(network))


def weights_bytes(network: torch.nn.Module) -> bytes:
    """A state dict as ``torch.save`` writes it."""
    buffer = io.BytesIO()
    torch.save({name: value.cpu() for name, value in network.state_dict().items()}, buffer)
    return buffer.getvalue()


def adversarial_file(label: str, threat: str, region: str, eps: float) -> str:
    """Where in ``adversarials/`` the worst-case images of a network, threat set, region and budget are."""
    return f"{label}-{threat}{'' if region == 'all' else f'-{region}'}-{eps:.5g}.npz"


def write_adversarials(path: Path, ids: tuple[str, ...], images: np.ndarray) -> None:
    """Saves adversarial images with the ids of their cases, as float, so that nothing is rounded."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, ids=np.array(ids), images=images)
    write_bytes(path, buffer.getvalue())


def versions() -> dict[str, str]:
    """Versions of all that numbers come from."""
    found = {"medadv": medadv.__version__, "python": platform.python_version()}
    for name in _VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def provenance() -> dict[str, Any]:
    """Versions, revision, threads and hardware: what a reader needs to judge or repeat a run."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "schema_version": SCHEMA_VERSION,
        "versions": versions(),
        "git_revision": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain")),
        "threads": torch.get_num_threads(),
        "hardware": {"processor": _processor(), "cores": os.cpu_count(), "gpus": gpus, "system": platform.system()},
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _git(*words: str) -> str | None:
    """What git says of the working directory; None where there is no repository."""
    try:
        result = subprocess.run(["git", *words], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
