"""What every attack costs: its time over that of the plain passes it ran, interleaved in one process."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from medadv.attacks import CatalogueAttack, Recipe, create, recipes
from medadv.benchmarks.cost import EPS, SUBJECTS, Subject, keep_freed_memory, median_interval

STEPS, QUERIES = 10, 100
# the recipes that torchattacks and ART share with the catalogue; whoever lacks one is refused and left out
PEERS = {
    "fgsm": ("torchattacks/FGSM", "art/FastGradientMethod"),
    "pgd": ("torchattacks/PGD", "art/ProjectedGradientDescent"),
    "mi-fgsm": ("torchattacks/MIFGSM", "art/MomentumIterativeMethod"),
    "apgd-ce": ("torchattacks/APGD", "art/AutoProjectedGradientDescent"),
    "square": ("torchattacks/Square",),
}
_STEP_OPTIONS = ("max_iter", "steps", "n_queries")


def plain_passes(network: nn.Module, x: Tensor, y: Tensor, *, forward: int, backward: int) -> None:
    """So many forward and backward passes of a network and nothing else: gradients to the input alone.

    Args:
        network: images -> logits ``(N, C, *S)``.
        x: images.
        y: classes ``(N, *S)``.
        forward: forward passes in all; the first ``backward`` of them are differentiated.
        backward: backward passes.
    """
    for k in range(forward):
        leaf = x.detach().requires_grad_(k < backward)
        with torch.set_grad_enabled(k < backward):
            output = network(leaf)
            if k < backward:
                torch.autograd.grad(nn.functional.cross_entropy(output, y), leaf)


def cost_of(subject: Subject, name: str, runs: int = 5, norm: float | None = None) -> dict[str, Any]:
    """Times one attack and the same number of plain passes in turn.

    Args:
        subject: the network and its input.
        name: an attack of the catalogue that needs no more than a budget.
        runs: interleaved pairs.
        norm: default: the attack's first.

    Returns:
        The passes of one run, the median ratio and its 95 % interval.

    Raises:
        ValueError, TypeError: the attack is not for this network.
    """
    keep_freed_memory()
    estimator = subject.estimator()
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.random((subject.batch, *subject.shape), dtype=np.float32))
    spatial = subject.shape[1:] if subject.segments else ()
    y = torch.from_numpy(rng.integers(0, 2, (subject.batch, *spatial)))
    if not subject.segments:  # a wrong diagnosis would end score-based attacks and ensembles at once
        y = torch.from_numpy(estimator.predict(x.numpy())).argmax(1)
    attack = _attack(name, estimator, subject, norm)
    network: Callable[..., Any] = estimator.network
    times = np.zeros((runs + 1, 2))
    for run in range(runs + 1):  # the first is the warm-up
        for side in ((0, 1), (1, 0))[run % 2]:
            began = time.perf_counter()
            if side == 0:
                attack.perturb(x, y)
            elif run:
                plain_passes(network, x, y, forward=attack.passes.forward, backward=attack.passes.backward)  # type: ignore[arg-type]
            times[run, side] = time.perf_counter() - began
    ratios = times[1:, 0] / times[1:, 1]
    low, high = median_interval(ratios)
    return {
        "network": subject.name, "attack": name, "norm": attack.norm, "access": attack.recipe.access,
        "bar": {True: 1.1 if attack.recipe.access == "score" else 1.05}.get(measured(attack.recipe), np.nan),
        "forward_passes": attack.passes.forward, "backward_passes": attack.passes.backward,
        "seconds": float(np.median(times[1:, 0])),
        "ratio": float(np.median(ratios)), "ci_low": low, "ci_high": high,
    }  # fmt: skip


def _attack(name: str, estimator: Any, subject: Subject, norm: float | None) -> CatalogueAttack:
    row = recipes()[name]
    steps = QUERIES if row.access in ("score", "decision") else STEPS
    options: dict[str, Any] = {option: steps for option in _STEP_OPTIONS if option in row.all_options}
    if row.norms:
        options["norm"] = norm or row.norms[0]
        # a summed norm gets the size of EPS in every voxel
        options["eps"] = EPS * float(np.prod(subject.shape)) ** (1 / options["norm"])
    return create(name, estimator, batch_size=subject.batch, **options)


def measured(row: Recipe) -> bool:
    """Rows with a bar on their cost: gradient attacks in balls, and score-based attacks."""
    factors = row.attack is None and row.access == "white-box" and row.threat is None
    return factors or row.access == "score"


def _norms_of(row: Recipe) -> tuple[float | None, ...]:
    """What is timed of a row: every norm of those with a bar, else the first."""
    return (row.norms if measured(row) else row.norms[:1]) or (None,)


def attack_costs(
    names: Sequence[str] | None = None, runs: int = 5, subjects: Sequence[Subject] = SUBJECTS, progress: bool = True
) -> pd.DataFrame:
    """:func:`cost_of` for attacks of the catalogue, with the peers that share their recipe beside them.

    Args:
        names: attacks; default: all of medadv that need no more than a budget.
        runs: interleaved pairs.
        subjects: networks.
        progress: a bar on a terminal.

    Returns:
        A row per network and attack: ``ratio`` with its interval, the ``bar`` it is held to (NaN: none), passes,
        seconds; ``note`` says why an attack was not timed.
    """
    chosen = [name for name in recipes() if "/" not in name] if names is None else list(names)
    named = [each for name in chosen for each in (name, *PEERS.get(name, ()))]
    planned = [(name, norm) for name in named for norm in _norms_of(recipes()[name])]
    rows = []
    with tqdm(total=len(planned) * len(subjects), disable=not (progress and sys.stderr.isatty())) as bar:
        for subject in subjects:
            for name, norm in planned:
                bar.set_postfix_str(f"{subject.name} {name}")
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    try:
                        rows.append(cost_of(subject, name, runs, norm))
                    except (ValueError, TypeError, KeyError) as refusal:
                        rows.append({"network": subject.name, "attack": name, "note": f"not timed: {refusal}"})
                bar.update()
    return pd.DataFrame(rows)
