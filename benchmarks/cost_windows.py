"""What exact gradients through sliding windows cost beside MONAI's own autograd: time, and peak memory."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import UNet
from tqdm.auto import tqdm

from medadv.adapters.deployed import DeployedModel
from medadv.adapters.windows import WINDOW_MEMORY, WindowedVictim, Windows
from medadv.decisions import Multiclass
from medadv.intensities import Intensity
from medadv.objectives import DiceCE
from medadv.victims import ModuleVictim

WAYS = ("forward only", "monai", "kept", "run twice")


@dataclass(frozen=True)
class Volume:
    """A volume, the windows it is seen through, and the classes that are told apart."""

    size: int
    roi: int
    classes: int
    channels: tuple[int, ...] = (8, 16, 32)


VOLUMES = tuple(
    Volume(*numbers)
    for numbers in ((96, 48, 2), (96, 48, 14), (144, 48, 2), (128, 64, 14), (192, 96, 2), (192, 96, 14))
)


def window_costs(
    volumes: Sequence[Volume] = VOLUMES, runs: int = 3, overlap: float = 0.5, progress: bool = True
) -> pd.DataFrame:
    """Times one gradient of a 3D U-Net through its windows, each way in a process of its own; the loss is DiceCE.

    Args:
        volumes: what to measure.
        runs: rounds; in each every way runs once, in turn.
        overlap: share of a window's side.
        progress: a bar on a terminal.

    Returns:
        A row per volume and way: ``"forward only"`` (no gradient), ``"monai"`` (autograd through the inferer),
        ``"kept"`` (activations kept as far as the default memory goes) and ``"run twice"`` (none kept). ``seconds`` is
        the median, ``speed_up`` MONAI's time over it, ``peak_mb`` the memory that the call added to the process.
    """
    rows = []
    with tqdm(total=len(volumes) * len(WAYS) * runs, disable=not (progress and sys.stderr.isatty())) as bar:
        for volume in volumes:
            measured: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
            for _ in range(runs):
                for way in WAYS:
                    bar.set_postfix_str(f"{volume.size} {volume.roi} {volume.classes} {way}")
                    measured[way].append(_apart(volume, way, overlap))
                    bar.update()
            seconds = {way: float(np.median([one["seconds"] for one in measured[way]])) for way in WAYS}
            rows += [
                {
                    "size": volume.size, "roi": volume.roi, "classes": volume.classes,
                    "windows": int(measured[way][0]["windows"]), "way": way, "seconds": seconds[way],
                    "speed_up": seconds["monai"] / seconds[way] if way != "forward only" else np.nan,
                    "peak_mb": float(np.median([one["peak"] for one in measured[way]])) / 1e6,
                }
                for way in WAYS
            ]  # fmt: skip
    return pd.DataFrame(rows)


def _apart(volume: Volume, way: str, overlap: float) -> dict[str, float]:
    """One measurement in a fresh process, so that the peak is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (volume, way, overlap, torch.get_num_threads()))


def measure(volume: Volume, way: str, overlap: float, threads: int) -> dict[str, float]:
    """Seconds and added peak memory (bytes) of one gradient, in this process, and the number of windows."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    sides, roi = (volume.size,) * 3, (volume.roi,) * 3
    network = UNet(3, 1, volume.classes, volume.channels, (2,) * (len(volume.channels) - 1), norm="instance")
    inferer = SlidingWindowInferer(roi, overlap=overlap, mode="gaussian")
    model = DeployedModel(network, channels=volume.classes, segments=True, inferer=inferer).eval()
    given: dict[str, Any] = {"decision": Multiclass(volume.classes), "intensity": Intensity(0, 1), "segments": True}
    victim: ModuleVictim = (
        WindowedVictim(model, **given, memory=WINDOW_MEMORY if way == "kept" else 0)
        if way in ("kept", "run twice")
        else ModuleVictim(model, **given)
    )
    x, y = torch.rand(1, 1, *sides), torch.randint(0, volume.classes, (1, *sides))
    valid, objective = torch.ones_like(y, dtype=torch.bool), DiceCE(given["decision"])
    model._logits(torch.rand(1, 1, *roi))  # warm-up
    before, began = _peak(afresh=True), time.perf_counter()
    if way == "forward only":
        victim.logits(x)
    else:
        victim.differentiate(x, lambda z: objective(z, y, valid=valid))
    return {
        "seconds": time.perf_counter() - began, "peak": _peak() - before,
        "windows": len(Windows(inferer, x).groups),
    }  # fmt: skip


def _peak(*, afresh: bool = False) -> float:
    """Largest resident memory of this process in bytes: so far, or from now on."""
    status = Path("/proc/self/status")
    if not status.exists():
        import resource  # which Windows lacks

        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)
    if afresh:  # the peak of the imports must not hide that of the call
        Path("/proc/self/clear_refs").write_text("5")
    kilobytes = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return float(kilobytes) * 1024
