"""Adversarial images and what is told about them, made on the target itself or on a surrogate and replayed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medadv.attacks import CatalogueAttack, create, recipe_of
from medadv.attacks.stealth import FeatureAttack
from medadv.attacks.transfer import check_same_images
from medadv.benchmarks.models import Estimator
from medadv.decisions import Decision, Multiclass
from medadv.objectives.labels import one_channel
from medadv.targets import erase
from medadv.victims import victim_of

SEMI_WHITE_BOX = "semi-white-box"
NO_BOX = "transfer"
GRAY_BOX = "gray-box"  # knows the model, not the defence in front of it
# from nothing to everything: what a worst case over several attacks needs is the most that any of them needs
NEEDS = ("none", NO_BOX, SEMI_WHITE_BOX, "decision", "score", GRAY_BOX, "white-box")
REGIONS = ("all", "foreground", "background")


@dataclass(frozen=True)
class Seen:
    """What is attacked.

    Attributes:
        x: images ``(N, C, *S)``.
        target: canonical reference, what is to be ignored still marked.
        ids: one per case.
        decision: how the reference is to be read.
        segments: one diagnosis per voxel, or per image.
        train: images and reference of the training cases, for attacks that fit statistics beforehand.
    """

    x: np.ndarray
    target: Tensor
    ids: Sequence[str]
    decision: Decision
    segments: bool
    train: tuple[np.ndarray, np.ndarray] | None = None

    def subset(self, rows: Tensor) -> Seen:
        """Some of the cases ``(n,)``; each keeps its id, and so its random draws."""
        ids = [self.ids[row] for row in rows.tolist()]
        return replace(self, x=self.x[rows.numpy()], target=self.target[rows], ids=ids)

    def mask(self, region: str) -> np.ndarray | None:
        """Where the image may change, ``(N, 1, *S)`` bool; None: everywhere.

        Raises:
            ValueError: a region of a reference that is not one of voxels.
        """
        if region == "all":
            return None
        if not self.segments:
            raise ValueError(f"region={region!r} is that of a reference per voxel; these images have one label each.")
        inside = self.decision.one_hot(self.target)[:, self.decision.foreground].bool().any(1, keepdim=True).numpy()
        return np.asarray(inside if region == "foreground" else ~inside)

    def wanted(self, label: int) -> Tensor:
        """The diagnosis a targeted attack wants: of images the class, of voxels the reference with the label erased.

        Raises:
            ValueError: no such label, or images whose labels don't exclude each other.
        """
        if self.segments:
            return erase(self.target, self.decision, label)
        if not isinstance(self.decision, Multiclass):
            raise ValueError(
                f"wanted={label} is one class of several that exclude each other; of labels name an attack with a goal "
                "of its own, such as 'one-label'."
            )
        return torch.full_like(self.target, one_channel(self.decision, label))


@dataclass(frozen=True)
class Crafted:
    """Adversarial images of one attack at one budget.

    Attributes:
        images: like the cases'.
        reference: target and validity they are to be scored against, where the threat moved anatomy.
        facts: access, threat, settings, budget and cost, by the names of
            :class:`~medadv.benchmarks.outcomes.Outcome`.
        recalled: True if they were made before, for another model.
    """

    images: np.ndarray
    reference: tuple[Tensor, Tensor] | None
    facts: dict[str, Any]
    recalled: bool = False


@dataclass(frozen=True)
class Order:
    """An attack to be run.

    Attributes:
        name: in the catalogue.
        options: with ``eps``, ``batch_size`` and ``seed``.
        region: where the image may change, see :meth:`Seen.mask`.
        wanted: of a targeted attack, see :meth:`Seen.wanted`.
    """

    name: str
    options: Mapping[str, Any]
    region: str = "all"
    wanted: int | None = None

    @property
    def replayed(self) -> Order:
        """The same, made to be shown to another model: kept by loss, never by the surrogate's score.

        What lies deepest on the wrong side for the surrogate is likelier to be wrong for the target than what just
        crossed its boundary. Attacks that are no objective, threat and search keep what they always do.
        """
        row = recipe_of(self.name)
        by_loss = {"keep": "loss"} if row.attack is None and row.keep == "score" else {}
        return replace(self, options={**by_loss, **self.options})


def attack_of(estimator: Estimator, order: Order) -> CatalogueAttack:
    """The attack of an order.

    Raises:
        ValueError: as for :func:`craft`.
    """
    options = dict(order.options)
    if order.wanted is not None:
        options["targeted"] = True
    elif options.get("targeted"):
        raise ValueError(
            f"{order.name}: targeted=True alone would lead the model to the reference, which is right; give "
            "wanted=, the class (images) or the label to erase (voxels)."
        )
    attack: CatalogueAttack = create(order.name, estimator, **options)
    return attack


def craft(estimator: Estimator, order: Order, seen: Seen) -> Crafted:
    """Runs an attack on all cases.

    Args:
        estimator: the model whose gradients or scores are used.
        order: which attack.
        seen: the cases.

    Raises:
        ValueError: ``targeted=True`` without a label that is wanted: it would lead the model to the reference.
    """
    attack = attack_of(estimator, order)
    if isinstance(attack, FeatureAttack) and attack.statistics is None and seen.train is not None:
        attack.fit(*seen.train, batch_size=attack.batch_size)
    y = seen.target if order.wanted is None else seen.wanted(order.wanted)
    start = time.perf_counter()
    images = attack.generate(seen.x, y.numpy(), mask=seen.mask(order.region), ids=seen.ids)
    facts = {**facts_of(attack), "region": order.region, "seconds": time.perf_counter() - start}
    moved = None if order.wanted is not None else attack.reference
    return Crafted(images, None if moved is None else (torch.from_numpy(moved[0]), torch.from_numpy(moved[1])), facts)


def facts_of(attack: CatalogueAttack) -> dict[str, Any]:
    """What is told about an attack, by the names of :class:`~medadv.benchmarks.outcomes.Outcome`."""
    kind, budget = attack.threat_kind, attack.budget
    return {
        "access": attack.recipe.access,
        "threat": "none" if kind is None else kind.name,
        "targeted": attack.targeted,
        "settings": {
            "steps": getattr(attack, "max_iter", 0 if attack.name == "noise" else 1),
            "restarts": getattr(attack, "num_random_init", 0),
            "keep": attack.keep,
        },
        "eps": np.nan if budget is None else budget.eps,
        "unit": None if budget is None else budget.unit,
        "fraction": np.nan if budget is None else budget.fraction,
        "queries": attack.queries,
        "passes": attack.passes,
    }


class Memory:
    """Adversarial images that several targets are shown, each made once and kept in memory."""

    def __init__(self) -> None:
        self._known: dict[str, Crafted] = {}

    def recall(self, surrogate: Surrogate, order: Order, seen: Seen) -> Crafted:
        """The images of an attack on a surrogate."""
        key = repr((surrogate.name, order.name, sorted(order.options.items()), order.region, order.wanted))
        if key in self._known:
            return replace(self._known[key], recalled=True)
        made = self._known[key] = craft(surrogate.estimator, order, seen)
        return made


@dataclass(frozen=True)
class Surrogate:
    """A model on which adversarial images are made that another one is shown; that one is never asked.

    Attributes:
        name: how tables call it.
        estimator: takes the same images and has the same decision.
        access: ``"transfer"`` (no-box), or ``"semi-white-box"``: the undefended twin of the same architecture.
        memory: where its images wait for the next target.
    """

    name: str
    estimator: Estimator
    access: str = NO_BOX
    memory: Memory = field(default_factory=Memory)

    @property
    def source(self) -> tuple[str, str]:
        """The names of its model and training, which a suite joins by a slash."""
        model, _, training = self.name.partition("/")
        return model, training

    def craft(self, target: Estimator, order: Order, seen: Seen) -> Crafted:
        """Images to show to ``target``; passes and seconds are those of the surrogate, queries of the target none.

        Raises:
            ValueError: a surrogate with other images or another decision.
        """
        check_same_images(self.estimator, victim_of(self.estimator), target, victim_of(target))
        made = self.memory.recall(self, order.replayed, seen)
        return replace(
            made, facts={**made.facts, "access": self.access, "queries": np.zeros_like(made.facts["queries"])}
        )
