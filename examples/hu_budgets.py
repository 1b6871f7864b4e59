"""How much noise of how many Hounsfield units does it take: the Dice of a CT bundle at several budgets.

Usage: python examples/hu_budgets.py FOLDER

FOLDER gets the bundle and the scan of ct_bundle.py if it does not hold them yet; then an adversarial scan per budget
(int16, as the original is stored), ``budgets.csv`` and ``budgets.png``. Each number is read off the written file by the
bundle's own preprocessing, and compared with what the attack said before it was written. About a minute on one core.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch

from medadv.adapters import case_of, from_bundle
from medadv.attacks import create

BUDGETS = ("2 HU", "5 HU", "10 HU", "20 HU")
MILLILITRES = 1e-3  # of a cubic millimetre


def main(folder: Path, steps: int = 5) -> pd.DataFrame:
    """Attacks the scan at every budget; returns the table."""
    if not (folder / "bundle").is_dir():
        runpy.run_path(str(Path(__file__).with_name("ct_bundle.py")))["main"](folder)
    deployment = from_bundle(folder / "bundle")
    case = case_of(deployment, folder / "scan.nii.gz", folder / "organ.nii.gz", storage="int16")
    voxel = torch.tensor(case.scan.spacing).prod().item() * MILLILITRES
    clean = deployment.predict(folder / "scan.nii.gz")
    rows = [{"budget": "0 HU", "dice": case.score(clean), "dice_before_writing": case.score(clean),
             "volume_ml": float((clean == 1).sum()) * voxel}]  # fmt: skip
    for budget in BUDGETS:
        attack = create("pgd-dice", case.estimator, eps=budget, max_iter=steps)
        x_adv = attack.generate(case.x, case.y, mask=case.region)
        said = case.estimator.decision.harden(torch.from_numpy(case.estimator.predict(x_adv)))
        files = case.write(x_adv, folder / budget.replace(" ", ""))  # scan_adversarial.nii.gz
        found = case.judged(files)
        rows.append({"budget": budget, "dice": case.score(found), "dice_before_writing": case.score(said),
                     "volume_ml": float((found == 1).sum()) * voxel})  # fmt: skip
    table = pd.DataFrame(rows)
    table.to_csv(folder / "budgets.csv", index=False)
    figure, axes = plt.subplots(figsize=(4.5, 3.2), layout="constrained")
    axes.plot([float(budget.split()[0]) for budget in table.budget], table.dice, marker="o")
    axes.set(xlabel="budget in HU", ylabel="Dice", ylim=(0, 1))
    figure.savefig(folder / "budgets.png", dpi=120)
    return table


if __name__ == "__main__":
    print(main(Path(sys.argv[1])).round(4).to_string(index=False))
