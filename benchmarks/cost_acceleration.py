"""What an accelerated search saves on 3D segmentation, and what it costs in strength."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from medadv.adapters.calibration import calibrate
from medadv.attacks import create
from medadv.benchmarks import data as datasets
from medadv.benchmarks.cost import keep_freed_memory
from medadv.benchmarks.data.base import Cases, Dataset
from medadv.benchmarks.models import Estimator, build_estimator, reference_of
from medadv.benchmarks.suite_parts import ModelSpec, TrainingSpec
from medadv.training import train

DATA = "embedded-lesions-3d"
NETWORKS = (
    ModelSpec(name="unet", network="UNet", args={
        "channels": [16, 32, 64, 128], "strides": [2, 2, 2], "num_res_units": 2, "norm": "batch",
    }),
    ModelSpec(name="segresnet", network="SegResNet", args={
        "init_filters": 8, "blocks_down": [1, 1, 1], "blocks_up": [1, 1],
    }),
)  # fmt: skip
ATTACKS, EPS = ("pgd-dice", "apgd-dice"), "4/255"


def acceleration_costs(
    networks: Sequence[ModelSpec] = NETWORKS, *, cases: int = 4, epochs: int = 12, steps: int = 20,
    batch_sizes: Sequence[int] = (1, 2),
) -> pd.DataFrame:  # fmt: skip
    """The worst case of two attacks on volumes in float32, and in the form that a calibration chooses.

    Args:
        networks: trained on the embedded lesions.
        cases: of the test cases.
        epochs: of training.
        steps: of each attack.
        batch_sizes: cases at once.

    Returns:
        A row per network and batch size: what was ``chosen``, wall time of both attacks both ways and its ratio
        (``speed_up``, the bar: 2), the mean clean and worst-case Dice both ways and ``dice_off`` (the bar: .005). Both
        ways are judged by the network in float32.
    """
    keep_freed_memory()
    data = datasets.load(DATA)
    rows = []
    for spec in networks:
        estimator = _trained(spec, data, epochs)
        for batch_size in batch_sizes:
            rows.append({"network": spec.name, **_row(estimator, data.test.take(cases), steps, batch_size)})
    return pd.DataFrame(rows)


def _trained(spec: ModelSpec, data: Dataset, epochs: int) -> Estimator:
    estimator = build_estimator(spec, data)
    train(
        estimator, torch.from_numpy(data.train.x), reference_of(estimator, data.train.y),
        recipe=TrainingSpec().built(), seed=0, epochs=epochs, batch_size=4, learning_rate=3e-3,
        schedule="one-cycle", flip_axis=0,
    )  # fmt: skip
    return estimator


def _row(estimator: Estimator, cases: Cases, steps: int, batch_size: int) -> dict[str, Any]:
    one = cases.take(batch_size)
    chosen = calibrate(estimator, one.x, reference_of(estimator, one.y)).chosen
    clean = _scores(estimator, cases, cases.x)
    told: dict[str, Any] = {"batch": batch_size, "chosen": chosen.name, "clean": float(np.nanmean(clean))}
    for way, form in (("float32", "none"), ("accelerated", chosen)):
        estimator.acceleration = form
        began = time.perf_counter()
        images = [
            create(name, estimator, eps=EPS, max_iter=steps, batch_size=batch_size).generate(cases.x, cases.y)
            for name in ATTACKS
        ]
        told[f"seconds_{way}"] = time.perf_counter() - began
        told[f"dice_{way}"] = float(np.nanmean(np.min([_scores(estimator, cases, x) for x in images], axis=0)))
    estimator.acceleration = "none"
    told["speed_up"] = told["seconds_float32"] / told["seconds_accelerated"]
    told["dice_off"] = abs(told["dice_accelerated"] - told["dice_float32"])
    return told


def _scores(estimator: Estimator, cases: Cases, x: np.ndarray) -> np.ndarray:
    target, valid = estimator.decision.canonical(cases.y, cases.x.shape[2:])
    logits = torch.from_numpy(estimator.predict(x, batch_size=1))
    scores: np.ndarray = estimator.decision.score(logits, target, valid).double().numpy()
    return scores
