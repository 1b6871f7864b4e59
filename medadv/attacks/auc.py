"""AUC under attack: how well a classifier still ranks cases when each image may be changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medadv.attacks.catalogue import create
from medadv.decisions import as_plain_tensor
from medadv.metrics import auc
from medadv.objectives import LabelMargin
from medadv.victims import Passes, victim_of


@dataclass(frozen=True)
class AttackedAUC:
    """Areas under the ROC curve, clean and under attack.

    Attributes:
        table: one row per label: ``label``, ``positives``, ``negatives``, ``clean``, ``adversarial``; an AUC is NaN
            where there are no positive or no negative cases.
        clean_margins: signed margin of each case and label ``(N, L)``, positive where the label is on the side of the
            reference; NaN where that says nothing.
        adversarial_margins: the smallest that was found.
        passes: forward and backward passes.
    """

    table: pd.DataFrame
    clean_margins: np.ndarray
    adversarial_margins: np.ndarray
    passes: Passes

    @property
    def clean(self) -> float:
        """Macro mean of the clean AUC over the labels that have one."""
        return float(self.table["clean"].mean())

    @property
    def adversarial(self) -> float:
        """Macro mean of the AUC under attack over the labels that have one."""
        return float(self.table["adversarial"].mean())


def auc_under_attack(
    estimator: Any,
    x: np.ndarray,
    y: Any,
    *,
    eps: float | str,
    norm: float | str = np.inf,
    labels: Sequence[int] | None = None,
    max_iter: int = 100,
    num_random_init: int = 1,
    batch_size: int = 32,
    mask: np.ndarray | None = None,
    ids: Sequence[object] | None = None,
    seed: int = 0,
) -> AttackedAUC:
    """Attacks each label's ranking: the smallest signed margin of every case, without stopping at the boundary.

    A case that has the label is pushed down and one that has not is pushed up, each by the attack ``"label-margin"`` on
    that label alone, so every label has its own adversarial images. The clean image counts as a candidate. Several
    classes are ranked one against the rest by their probability; their margins are its log odds.

    Args:
        estimator: of images, as for :func:`medadv.attacks.create`.
        x: images ``(N, C, *S)``.
        y: reference in any usual form.
        eps, norm, max_iter, num_random_init, batch_size, seed: of the attack, see
            :class:`~medadv.attacks.base.CatalogueAttack`.
        labels: which labels or classes; default: all (with two classes that exclude each other: the second).
        mask: where the images may change.
        ids: one id per case.

    Returns:
        AUC per label, clean and under attack, and the margins.

    Raises:
        ValueError: a segmenter, no such label, or what the attack refuses.

    Example:
        >>> import torch
        >>> from medadv.adapters import MonaiMultilabelClassifier
        >>> from medadv.decisions import Multilabel
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 1, bias=False))
        >>> _ = torch.nn.init.ones_(net[1].weight)
        >>> estimator = MonaiMultilabelClassifier(net, (1, 2, 2), decision=Multilabel(1))
        >>> x = np.repeat(np.array([0.3, 0.4, 0.45, 0.6], dtype=np.float32), 4).reshape(4, 1, 2, 2)
        >>> result = auc_under_attack(estimator, x, [[0], [0], [1], [1]], eps=0.06, max_iter=10)
        >>> result.clean, result.adversarial
        (1.0, 0.75)
    """
    victim = victim_of(estimator)
    forward = backward = 0
    images = np.asarray(x)
    chosen = _labels(victim.decision, labels)
    rows, clean_margins, margins = [], [], []
    for label in chosen:
        attack = create(
            "label-margin", estimator, eps=eps, norm=norm, label=label, max_iter=max_iter,
            num_random_init=num_random_init, batch_size=batch_size, seed=seed,
        )  # fmt: skip
        adversarial = attack.generate(images, y, mask=mask, ids=ids)
        objective = LabelMargin(victim.decision, label=label)
        before = victim.passes.copy()
        clean, attacked = (_distances(victim, objective, part, batch_size) for part in (images, adversarial))
        forward += attack.passes.forward + (victim.passes - before).forward
        backward += attack.passes.backward
        has, known = (part.cpu().numpy() for part in objective.has(*victim.decision.canonical(y)))
        sign = np.where(has, 1.0, -1.0)
        clean, attacked = sign * clean, np.minimum(sign * clean, sign * attacked)
        rows.append({
            "label": label, "positives": int((has & known).sum()), "negatives": int((~has & known).sum()),
            "clean": auc((sign * clean)[known], has[known]), "adversarial": auc((sign * attacked)[known], has[known]),
        })  # fmt: skip
        clean_margins.append(np.where(known, clean, np.nan))
        margins.append(np.where(known, attacked, np.nan))
    table = pd.DataFrame(rows)
    return AttackedAUC(table, np.stack(clean_margins, 1), np.stack(margins, 1), Passes(forward, backward))


def _labels(decision: Any, labels: Sequence[int] | None) -> list[int]:
    if labels is None:
        # two classes that exclude each other rank cases alike, from either end
        return [1] if decision.exclusive and decision.channels == 2 else list(range(decision.channels))
    if not len(labels):
        raise ValueError("labels is empty; give numbers of labels, or None for all.")
    return [int(label) for label in labels]


def _distances(victim: Any, objective: LabelMargin, images: np.ndarray, batch_size: int) -> np.ndarray:
    parts: list[Tensor] = []
    with victim.attacked():
        for start in range(0, len(images), batch_size):
            part = as_plain_tensor(images[start : start + batch_size]).to(victim.device)
            parts.append(objective.distance(victim.logits(part)))
    return torch.cat(parts).double().cpu().numpy()
