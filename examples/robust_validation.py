"""Robust validation inside a MONAI training script.

Trains a 2D U-Net on images made here (bright discs on a noisy ground), twice: with MONAI's own SupervisedTrainer, and
with adversarial training. Both are validated by an evaluator that tells the Dice of clean and of adversarial images,
and the checkpoint that is kept is the one with the best robust Dice. Takes one argument, the folder for checkpoints and
tables:

    python examples/robust_validation.py out
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from monai.handlers import CheckpointSaver, MeanDice, MetricsSaver, ValidationHandler, from_engine
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from monai.transforms import AsDiscreted, Compose, RandFlipd
from monai.utils import set_determinism

from medadv import Multiclass
from medadv.adapters import MonaiSegmenter
from medadv.adapters.evaluators import AdversarialEvaluator
from medadv.adapters.trainers import AdversarialTrainer
from medadv.attacks import create
from medadv.training import RECIPES

DEVICE = torch.device("cpu")
SIDE, EPS, EPOCHS = 32, "8/255", 4


def discs(count: int, seed: int) -> list[dict[str, Any]]:
    """Images ``(1, H, W)`` in [0, 1] with a disc that is a little brighter than the ground, and its mask."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    items = []
    for number in range(count):
        y, x = (10 + 12 * torch.rand(2, generator=generator)).tolist()
        radius = 4 + 4 * float(torch.rand(1, generator=generator))
        mask = ((rows - y).square() + (columns - x).square() <= radius**2)[None]
        noise = 0.1 * torch.randn(1, SIDE, SIDE, generator=generator)
        image = (0.4 + 0.2 * mask + noise).clamp(0, 1)
        items.append({"image": image, "label": mask.long(), "name": f"disc-{seed}-{number:02d}"})
    return items


def loader(count: int, seed: int, *, training: bool) -> DataLoader:
    flips = Compose([RandFlipd(["image", "label"], 0.5, 0), RandFlipd(["image", "label"], 0.5, 1)])
    return DataLoader(Dataset(discs(count, seed), flips if training else None), batch_size=8, shuffle=training)


def evaluator(estimator: MonaiSegmenter, out: Path) -> AdversarialEvaluator:
    """Validation: what MONAI's SupervisedEvaluator takes, and an attack."""
    best = CheckpointSaver(str(out), {"net": estimator.network}, save_key_metric=True, key_metric_filename="best.pt")
    names = from_engine("name")
    tables = MetricsSaver(
        str(out),
        metric_details="*",
        summary_ops="*",
        batch_transform=lambda batch: [{"filename_or_obj": name} for name in names(batch)],
    )
    return AdversarialEvaluator(
        DEVICE,
        loader(16, 1, training=False),
        estimator.model,
        attack=create("pgd-dice", estimator, eps=EPS, max_iter=5),
        postprocessing=AsDiscreted(["pred", "label"], argmax=[True, False], to_onehot=2),
        key_val_metric={
            "val_mean_dice": MeanDice(include_background=False, output_transform=from_engine(["pred", "label"]))
        },
        val_handlers=[best, tables],
    )


def train(name: str, out: Path) -> dict[str, float]:
    """One training; the metrics of its last epoch."""
    set_determinism(0)
    network = UNet(spatial_dims=2, in_channels=1, out_channels=2, channels=(8, 16, 32), strides=(2, 2))
    estimator = MonaiSegmenter(network, (1, SIDE, SIDE), decision=Multiclass(2, background=0))
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    validation = evaluator(estimator, out / name)
    data = loader(48, 0, training=True)
    handlers = [ValidationHandler(1, validation)]
    if name == "natural":
        loss = DiceCELoss(to_onehot_y=True, softmax=True)
        trainer = SupervisedTrainer(DEVICE, EPOCHS, data, network, optimizer, loss, train_handlers=handlers)
    else:
        recipe = RECIPES[name](eps=EPS, steps=3)
        trainer = AdversarialTrainer(DEVICE, EPOCHS, data, estimator, optimizer, recipe, train_handlers=handlers)
    trainer.run()
    print(f"{name}: best robust Dice {validation.state.best_metric:.3f} in epoch {validation.state.best_metric_epoch}")
    return validation.state.metrics


def main() -> None:
    out = Path(sys.argv[1])
    for name in ("natural", "pgd-at"):
        found = train(name, out)
        print(f"{name}: Dice {found['val_mean_dice']:.3f}, under attack {found['val_mean_dice_robust']:.3f}")
    print(f"checkpoints and tables are in {out}")


if __name__ == "__main__":
    main()
