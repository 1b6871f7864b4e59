"""Finished runs of a tiny suite, for tests of what is done with them."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_leaderboard import segmentation, tiny_suite

from medadv.benchmarks import data as datasets
from medadv.benchmarks import run_suite
from medadv.benchmarks.suites import Suite


def tiny_run(folder: Path, suite: Suite | None = None, **changes) -> Path:
    """A run on discs, in a second or two, with the worst-case images saved."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load", lambda name, **options: segmentation(2))
        trainings = {
            name: {**spec, "epochs": 2} for name, spec in tiny_suite().tasks[0].model_dump()["trainings"].items()
        }
        run_suite(suite or tiny_suite(**{"trainings": trainings, **changes}), out=folder, save_adversarials=True)
    return folder
