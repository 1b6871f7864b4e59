"""What exact gradients through sliding windows cost beside MONAI's own autograd: time, and peak memory."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import UNet
from torch import Tensor
from tqdm.auto import tqdm

from medadv.adapters.deployed import DeployedModel
from medadv.adapters.window_geometry import Windows
from medadv.adapters.windows import WINDOW_MEMORY, WindowedVictim
from medadv.benchmarks.cost import keep_freed_memory
from medadv.decisions import Multiclass
from medadv.intensities import Intensity
from medadv.objectives import DiceCE
from medadv.victims import ModuleVictim

WAYS = ("forward only", "one batch", "monai", "kept", "run twice")


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
        A row per volume and way: ``"forward only"`` (no gradient), ``"one batch"`` (of windows, there and back),
        ``"monai"`` (autograd through the inferer), ``"kept"`` (activations kept as far as the default memory goes) and
        ``"run twice"`` (none kept). ``seconds`` is the median, ``speed_up`` MONAI's time over it, ``peak_mb`` the
        memory that one look added to the process, and ``bar_mb`` what that is held to where nothing is kept: the
        forward pass alone, one batch, three arrays like the image and one like the logits.
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
            rows += _rows(volume, measured)
    return pd.DataFrame(rows)


def _rows(volume: Volume, measured: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    seconds, peak = (
        {way: float(np.median([one[name] for one in runs])) for way, runs in measured.items()}
        for name in ("seconds", "peak")
    )
    like_image, like_logits = 4 * volume.size**3, 4 * volume.size**3 * volume.classes
    bar = peak["forward only"] + peak["one batch"] + 3 * like_image + like_logits
    return [
        {
            "size": volume.size, "roi": volume.roi, "classes": volume.classes,
            "windows": int(measured[way][0]["windows"]), "way": way, "seconds": seconds[way],
            "speed_up": seconds["monai"] / seconds[way] if way in ("monai", "kept", "run twice") else np.nan,
            "peak_mb": peak[way] / 1e6, "bar_mb": bar / 1e6 if way == "run twice" else np.nan,
        }
        for way in WAYS
    ]  # fmt: skip


def _apart(volume: Volume, way: str, overlap: float) -> dict[str, float]:
    """One measurement in a fresh process, so that the peak is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (volume, way, overlap, torch.get_num_threads()))


def measure(volume: Volume, way: str, overlap: float, threads: int) -> dict[str, float]:
    """Seconds and added peak memory (bytes) of one look, in this process, and the number of windows.

    The peak is that of the first look, after a tiny volume has warmed up the code. The time is that of the third: the
    second is the first with freed memory kept, so the third faults none in, whichever way is measured.
    """
    torch.set_num_threads(threads)
    _look_of(replace(volume, size=24, roi=16), way, overlap)[0]()
    look, windows = _look_of(volume, way, overlap)
    before = peak_memory(afresh=True)
    look()
    peak = peak_memory() - before
    keep_freed_memory()
    look()
    began = time.perf_counter()
    look()
    return {"seconds": time.perf_counter() - began, "peak": peak, "windows": windows}


def _look_of(volume: Volume, way: str, overlap: float) -> tuple[Callable[[], object], int]:
    """One look at a random volume, and the number of its windows."""
    torch.manual_seed(0)
    sides, roi = (volume.size,) * 3, (volume.roi,) * 3
    network = UNet(3, 1, volume.classes, volume.channels, (2,) * (len(volume.channels) - 1), norm="instance").eval()
    inferer = SlidingWindowInferer(roi, overlap=overlap, mode="gaussian")
    model = DeployedModel(network, channels=volume.classes, segments=True, inferer=inferer).eval()
    given: dict[str, Any] = {"decision": Multiclass(volume.classes), "intensity": Intensity(0, 1), "segments": True}
    x, y = torch.rand(1, 1, *sides), torch.randint(0, volume.classes, (1, *sides))
    valid, objective = torch.ones_like(y, dtype=torch.bool), DiceCE(given["decision"])
    windows = len(Windows(inferer, x).groups)

    def loss(z: Tensor) -> Tensor:
        return objective(z, y, valid=valid)

    if way == "one batch":
        batch, inward = torch.rand(inferer.sw_batch_size, 1, *roi), torch.rand(1, volume.classes, *roi)
        alone = ModuleVictim(network, **given)
        return lambda: alone.differentiate(batch, lambda z: (z * inward).flatten(1).sum(1)), windows
    if way in ("kept", "run twice"):
        windowed = WindowedVictim(model, **given, memory=WINDOW_MEMORY if way == "kept" else 0)
        return lambda: windowed.differentiate(x, loss), windows
    victim = ModuleVictim(model, **given)
    return (lambda: victim.logits(x)) if way == "forward only" else (lambda: victim.differentiate(x, loss)), windows


def peak_memory(*, afresh: bool = False) -> float:
    """Largest resident memory of this process in bytes: so far, or from now on."""
    status = Path("/proc/self/status")
    if not status.exists():
        import resource  # which Windows lacks

        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)
    if afresh:  # the peak of the imports must not hide that of the call
        Path("/proc/self/clear_refs").write_text("5")
    kilobytes = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return float(kilobytes) * 1024
