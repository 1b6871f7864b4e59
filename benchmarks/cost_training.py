"""What a robust training step costs: its time over that of the plain passes it ran, interleaved in one process."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import MISSING, dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from medadv.benchmarks.cost import EPS, SUBJECTS, Subject, keep_freed_memory, median_interval
from medadv.names import unknown_name
from medadv.training import RECIPES, Recipe
from medadv.training.base import Preparation, batch_of
from medadv.training.updates import Updater

BAR = 1.1
# what a recipe needs to be told beside its defaults
NEEDED = {"eps": EPS, "attack": "pgd"}


@dataclass(frozen=True)
class Pass:
    """A forward pass that ran, and what of it was differentiated.

    Attributes:
        kind: ``"forward"``, ``"attack"`` (and backward to the image alone) or ``"update"`` (in train mode, and backward
            to the weights).
        cases: how many cases it had.
        image_grad: True if the backward pass reaches the image.
    """

    kind: str
    cases: int
    image_grad: bool = False


@contextmanager
def watched(networks: Sequence[nn.Module], seen: list[Pass | None]) -> Iterator[None]:
    """Writes down every pass of networks; None stands for an optimizer step, which the caller writes down."""

    def see(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        image_grad = torch.is_grad_enabled() and inputs[0].requires_grad
        kind = "update" if module.training else "attack" if image_grad else "forward"
        seen.append(Pass(kind, len(inputs[0]), image_grad))

    with ExitStack() as stack:
        for network in networks:
            stack.callback(network.register_forward_hook(see).remove)
        yield


def plain_update(
    network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, passes: Sequence[Pass | None]
) -> None:
    """The same passes and optimizer steps, and nothing else.

    Args:
        network: images -> logits ``(N, C, *S)``; in inference mode before and after.
        optimizer: of its weights.
        x: images.
        y: classes ``(N, *S)``.
        passes: what to run; None: an optimizer step on the gradients since the last one.
    """
    for one in passes:
        if one is None:
            optimizer.step()
            optimizer.zero_grad()
            continue
        network.train(one.kind == "update")
        leaf = x[: one.cases].detach().requires_grad_(one.image_grad)
        with torch.set_grad_enabled(one.kind != "forward"):
            output = network(leaf)
            if one.kind == "forward":
                continue
            loss = nn.functional.cross_entropy(output, y[: one.cases])
        if one.kind == "attack":
            torch.autograd.grad(loss, leaf)
        else:
            loss.backward()
    network.eval()


def smallest(name: str) -> Recipe:
    """A recipe with its defaults, and a budget where it needs one.

    Raises:
        ValueError: an unknown name.
    """
    if name not in RECIPES:
        raise unknown_name("training recipe", name, RECIPES)
    kind: Any = RECIPES[name]
    required = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    return kind(**{option: NEEDED[option] for option in (*required, *({"eps"} if name == "attack" else ()))})


def cost_of_update(subject: Subject, name: str, pairs: int = 5) -> dict[str, Any]:
    """Times the updates of one batch by a recipe, and its passes alone, in turn.

    Args:
        subject: the network and its input.
        name: a recipe of :data:`medadv.training.RECIPES`, with its defaults.
        pairs: interleaved pairs.

    Returns:
        The passes, the median ratio and its 95 % interval.

    Raises:
        ValueError: the recipe is not for this network.
    """
    keep_freed_memory()
    estimator, helper, plain = (subject.estimator() for _ in range(3))
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.random((subject.batch, *subject.shape), dtype=np.float32))
    spatial = subject.shape[1:] if subject.segments else ()
    y = torch.from_numpy(rng.integers(0, 2, (subject.batch, *spatial)))
    step = smallest(name).step(Preparation(estimator, 0, lambda: helper))
    ours, theirs = (torch.optim.Adam(each.model.parameters(), lr=1e-5) for each in (estimator, plain))
    seen: list[Pass | None] = []
    ours.register_step_post_hook(lambda *_: seen.append(None))
    update, batch = Updater(step, ours), batch_of(estimator, x, y, range(subject.batch))
    with watched([estimator.network, helper.network], seen):
        update(batch)
    passes = list(seen)
    times = np.zeros((pairs + 1, 2))
    for pair in range(pairs + 1):  # the first is the warm-up
        for side in ((0, 1), (1, 0))[pair % 2]:
            began = time.perf_counter()
            if side == 0:
                update(batch)
            else:
                plain_update(plain.network, theirs, x, y, passes)
            times[pair, side] = time.perf_counter() - began
    ratios = times[1:, 0] / times[1:, 1]
    low, high = median_interval(ratios)
    return {
        "network": subject.name, "recipe": name, "updates": passes.count(None),
        **{f"{kind}_passes": sum(one is not None and one.kind == kind for one in passes)
           for kind in ("forward", "attack", "update")},
        "seconds": float(np.median(times[1:, 0])), "bar": BAR,
        "ratio": float(np.median(ratios)), "ci_low": low, "ci_high": high,
    }  # fmt: skip


def training_costs(
    names: Sequence[str] | None = None, pairs: int = 5, subjects: Sequence[Subject] = SUBJECTS, progress: bool = True
) -> pd.DataFrame:
    """:func:`cost_of_update` for training recipes.

    Args:
        names: recipes; default: all.
        pairs: interleaved pairs.
        subjects: networks.
        progress: a bar on a terminal.

    Returns:
        A row per network and recipe: ``ratio`` with its interval and the ``bar`` it is held to (NaN: none), seconds,
        and how many passes one batch took: ``forward`` without a gradient, ``attack`` with the gradient of the image,
        ``update`` in train mode with the gradient of the weights; ``note`` says why a recipe was not timed.
    """
    chosen = list(names or RECIPES)
    for name in chosen:
        smallest(name)
    rows = []
    with tqdm(total=len(chosen) * len(subjects), disable=not (progress and sys.stderr.isatty())) as bar:
        for subject in subjects:
            for name in chosen:
                bar.set_postfix_str(f"{subject.name} {name}")
                try:
                    rows.append(cost_of_update(subject, name, pairs))
                except ValueError as refusal:
                    rows.append({"network": subject.name, "recipe": name, "note": f"not timed: {refusal}"})
                bar.update()
    return pd.DataFrame(rows)
