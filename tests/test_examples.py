"""Every script of examples/ runs as its first lines say: with a folder, from an empty one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
MADE_BY_ANOTHER = "ct_bundle"  # hu_budgets runs it first
# what the output of a script says, and a file it leaves; every script has a line here
EXPECTED = {
    "ct_bundle": ("and out/organ.nii.gz", "bundle/models/model.pt"),
    "hu_budgets": ("20 HU 0.", "10HU/scan_adversarial.nii.gz"),
    "robust_validation": ("pgd-at: best robust Dice 0.", "pgd-at/val_mean_dice_robust_raw.csv"),
}


@pytest.mark.parametrize(
    "script", [path for path in EXAMPLES if path.stem != MADE_BY_ANOTHER], ids=lambda path: path.stem
)
def test_an_example_runs(script, tmp_path):
    for module in ("ignite",) if "monai.engines" in script.read_text(encoding="utf-8") else ():
        pytest.importorskip(module, reason="MONAI's engines need pytorch-ignite")
    settings = {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, str(script), "out"], cwd=tmp_path, env={**os.environ, **settings}, capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    said, file = EXPECTED[script.stem]
    assert said in done.stdout and (tmp_path / "out" / file).is_file()
    if script.stem == "hu_budgets":
        said, file = EXPECTED[MADE_BY_ANOTHER]
        assert said in done.stdout and (tmp_path / "out" / file).is_file()


def test_every_example_is_there_and_expected():
    assert {path.stem for path in EXAMPLES} == set(EXPECTED)
