"""What an attack costs beside a loop written by hand: time ratios in one process, and the passes that ran."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
import torch
from art.attacks.evasion import ProjectedGradientDescent
from monai.networks.nets import DenseNet121, UNet, resnet18
from torch import Tensor, nn
from tqdm.auto import tqdm

from medadv.adapters import MonaiClassifier, MonaiSegmenter
from medadv.attacks import create
from medadv.benchmarks.models import Estimator
from medadv.decisions import Multiclass
from medadv.threats import CaseRandom

EPS, STEPS = 8 / 255, 20
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's numbers for mallopt


@dataclass(frozen=True)
class Subject:
    """A network and its input on which the cost is measured."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int
    segments: bool = False

    def estimator(self) -> Estimator:
        """The network as an estimator, in inference mode."""
        torch.manual_seed(0)
        if self.segments:
            return MonaiSegmenter(self.build().eval(), self.shape, decision=Multiclass(2, background=0))
        return MonaiClassifier(self.build().eval(), self.shape, decision=Multiclass(2))


SUBJECTS = (
    Subject("ResNet18 2D", lambda: resnet18(spatial_dims=2, n_input_channels=1, num_classes=2), (1, 64, 64), 4),
    Subject("DenseNet121 2D", lambda: DenseNet121(spatial_dims=2, in_channels=1, out_channels=2), (1, 64, 64), 4),
    Subject(
        "UNet 3D",
        # the network of MONAI's spleen bundle
        lambda: UNet(3, 1, 2, (16, 32, 64, 128, 256), (2, 2, 2, 2), num_res_units=2, norm="batch"),
        (1, 48, 48, 48),
        1,
        segments=True,
    ),
)


@cache
def keep_freed_memory() -> None:
    """Tells glibc to keep freed memory for this process; elsewhere nothing happens.

    Else a pass now and then returns its activations to the system and faults them in again, which takes up to a tenth
    of its time and strikes one of two loops that run the same passes, by chance: pgd (L2) on a ResNet18 took 1.05 to
    1.08 of its passes with 54,000 page faults, and 1.01 to 1.02 with none.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            mallopt(option, 2**30)


def hand_loop(
    network: nn.Module, x: Tensor, y: Tensor, start: Tensor, *, eps: float, step: float, steps: int
) -> Tensor:
    """PGD on cross-entropy as one would write it by hand, keeping the image with the worst score per case.

    Score: right or wrong for images, hard Dice of class 1 for voxels; ties by the larger loss. The loss is a mean over
    the voxels of a case and a sum over cases.
    """

    def judge(output: Tensor) -> tuple[Tensor, Tensor]:
        loss = nn.functional.cross_entropy(output, y, reduction="none")
        found = output.max(1).indices  # not argmax, which is slow on a CPU: the loop is to be a good one
        if y.ndim == 1:
            return loss, (found == y).float()
        overlap, size = ((found * y).flatten(1).sum(1)), (found + y).flatten(1).sum(1)
        return loss.flatten(1).mean(1), 2 * overlap / size

    delta = start.clone()
    best, best_score, best_loss = x.clone(), torch.full((len(x),), torch.inf), torch.full((len(x),), -torch.inf)
    for k in range(steps + 1):
        x_adv = (x + delta).requires_grad_(k < steps)
        with torch.set_grad_enabled(k < steps):
            loss, score = judge(network(x_adv))
        if k < steps:
            (grad,) = torch.autograd.grad(loss.sum(), x_adv)
        loss, score, x_adv = loss.detach(), score.detach(), x_adv.detach()
        better = (score < best_score) | ((score == best_score) & (loss > best_loss))
        best[better] = x_adv[better]
        best_score, best_loss = torch.where(better, score, best_score), torch.where(better, loss, best_loss)
        if k < steps:
            delta = (delta + step * grad.sign()).clamp(-eps, eps)
            delta = (x + delta).clamp(0, 1) - x
    return best


def measure(subject: Subject, pairs: int = 30, art_runs: int = 3, progress: bool = True) -> dict[str, object]:
    """Times medadv's pgd and the hand loop in turn, in one process, and ART's PGD beside them.

    Args:
        subject: what to attack.
        pairs: interleaved pairs.
        art_runs: runs of ART's PGD (for the segmenter its numpy version, which is what ART runs there).
        progress: a bar on a terminal.

    Returns:
        Median ratio with the 95 % interval of the median, the passes of one attack, and ART's ratio.
    """
    keep_freed_memory()
    estimator = subject.estimator()
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.random((subject.batch, *subject.shape), dtype=np.float32))
    spatial = subject.shape[1:] if subject.segments else ()
    y = torch.from_numpy(rng.integers(0, 2, (subject.batch, *spatial)))
    start = (2 * CaseRandom(0, range(subject.batch)).uniform(x) - 1) * EPS
    start = (x + start).clamp(0, 1) - x
    attack = create("pgd", estimator, eps=EPS, eps_step=EPS / 4, max_iter=STEPS, batch_size=subject.batch)
    art = ProjectedGradientDescent(
        estimator, eps=EPS, eps_step=EPS / 4, max_iter=STEPS, batch_size=subject.batch, verbose=False
    )
    runs: dict[str, Callable[[], object]] = {
        "hand": lambda: hand_loop(estimator.network, x, y, start, eps=EPS, step=EPS / 4, steps=STEPS),
        "medadv": lambda: attack.perturb(x, y),
        "art": lambda: art.generate(x.numpy(), y.numpy()),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for name in ("hand", "medadv"):
        runs[name]()  # warm-up
    for pair in tqdm(range(pairs), desc=subject.name, disable=not (progress and sys.stderr.isatty())):
        order = ("hand", "medadv") if pair % 2 else ("medadv", "hand")
        for name in (*order, *(["art"] if pair < art_runs else [])):
            begin = time.perf_counter()
            runs[name]()
            times[name].append(time.perf_counter() - begin)
    ratios = np.array(times["medadv"]) / np.array(times["hand"])
    low, high = median_interval(ratios)
    return {
        "network": subject.name, "hand_seconds": float(np.median(times["hand"])), "ratio": float(np.median(ratios)),
        "ci_low": low, "ci_high": high, "pairs": pairs, "forward_passes": attack.passes.forward,
        "backward_passes": attack.passes.backward,
        "art_ratio": float(np.median(times["art"]) / np.median(times["hand"])) if times["art"] else np.nan,
    }  # fmt: skip


def median_interval(values: Sequence[float] | np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the median.

    Example:
        >>> median_interval([1.0, 1.0, 1.0])
        (1.0, 1.0)
    """
    draws = np.random.default_rng(seed).choice(np.asarray(values), (4000, len(values)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return float(low), float(high)


def cost_table(pairs: int = 30) -> pd.DataFrame:
    """:func:`measure` for all :data:`SUBJECTS`."""
    return pd.DataFrame([measure(subject, pairs) for subject in SUBJECTS])
