"""Adversarial images that a run stored: read back, and held to what their row of the leaderboard claims."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from medadv.benchmarks.evaluate import Evaluator
from medadv.intensities import Budget
from medadv.threats import BALL_KINDS, LpBall


def read_images(path: Path, evaluator: Evaluator) -> np.ndarray:
    """The stored images ``(N, C, *S)``, in the order of the cases.

    Raises:
        ValueError: a damaged file, or images of other cases, of another shape or type.
    """
    try:
        with np.load(path, allow_pickle=False) as saved:
            ids, images = saved["ids"].tolist(), saved["images"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"the file is damaged ({type(error).__name__})") from None
    if ids != list(evaluator.cases.ids):
        raise ValueError("its cases are not those of the data")
    clean = evaluator.cases.x
    if images.shape != clean.shape or images.dtype != clean.dtype:
        raise ValueError(f"it holds {images.dtype} {images.shape}, the data are {clean.dtype} {clean.shape}")
    return images


def check_allowed(images: np.ndarray, row: pd.Series, evaluator: Evaluator, budget: Budget) -> None:
    """Refuses images that leave the range, the storage grid, the region or the ball that their row claims.

    Args:
        images: ``(N, C, *S)``.
        row: of the leaderboard: ``threat``, ``region``, ``eps``.
        evaluator: knows the clean images, their reference and what their grey values mean.
        budget: ``eps`` with a weight for each channel, where these have ranges of their own.

    Raises:
        ValueError: says which case leaves what.
    """
    intensity, x, x_adv = evaluator.data.intensity, evaluator.x, torch.from_numpy(images)
    intensity.check(x_adv)
    mask = evaluator.seen.mask(row.region)
    if mask is not None:
        outside = (x_adv != x).any(1, keepdim=True) & ~torch.from_numpy(mask)
        if bool(outside.any()):
            case = evaluator.cases.ids[int(outside.flatten(1).any(1).int().argmax())]
            raise ValueError(f"case {case!r} changes outside its region ({row.region})")
    kind = {kind.name: kind for kind in BALL_KINDS.values()}.get(row.threat)
    if kind is None:
        return  # the sets of other threats are not told by an image alone
    ball = kind.build(x, budget, intensity, None)
    assert isinstance(ball, LpBall)
    distance = ball.distance(x_adv)
    # what attacks of other libraries are granted: rounding of the radius and of grey values
    ulp = torch.finfo(x.dtype).eps * max(map(abs, (*intensity.lows, *intensity.highs)))
    allowed = budget.eps * (1 + 1e-5) + (2 * ulp if row.threat == "linf" else 0.0)
    if bool((distance > allowed).any()):
        furthest = int(distance.argmax())
        case, far = evaluator.cases.ids[furthest], float(distance[furthest])
        raise ValueError(f"case {case!r} is {far:.6g} from its image, beyond {row.eps:.6g}")
