"""Transfer: adversarial images are made on a surrogate and shown to the target, which is never asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from medadv.attacks.base import Batch, CatalogueAttack, Solution
from medadv.attacks.recipes import Recipe
from medadv.decisions import Decision, Multiclass
from medadv.victims import Victim, victim_of


class TransferAttack(CatalogueAttack):
    """Adversarial images made on a surrogate that the attacker owns, to be evaluated on the target.

    They are kept by the surrogate's loss, never by its score: what lies deepest on the wrong side for the surrogate is
    likelier to be wrong for the target than what just crossed its boundary. Without ``y`` the surrogate's own diagnosis
    is attacked. ``passes`` are the surrogate's; ``queries`` of the target are 0.

    Args:
        estimator: the target.
        recipe, eps, norm, targeted, batch_size, verbose, seed: see :class:`~medadv.attacks.base.CatalogueAttack`.
        options: ``surrogate`` (an estimator that takes the same images and has the same decision), ``attack`` (a
            white-box attack of the catalogue in a ball), ``settings`` (a mapping of that attack's own options).

    Raises:
        TypeError: no surrogate.
        ValueError: a surrogate with other images or another decision, or an attack that can't be replayed.
    """

    surrogate: Any
    attack: str
    settings: Mapping[str, Any] | None

    def _prepare(self) -> None:
        if self.surrogate is None:
            raise TypeError(f"attack {self.name!r} needs surrogate=, an estimator of the attacker's own.")
        if self.keep != "loss":
            raise ValueError(
                f"keep={self.keep!r} would select by the surrogate's score or not at all; a transfer attack keeps by "
                "loss, leave keep out."
            )
        target = victim_of(self.estimator)
        # from here on all looks are at the surrogate: the target is neither asked nor counted
        self.victim: Victim = victim_of(self.surrogate)
        check_same_images(self.surrogate, self.victim, self.estimator, target)
        self._attack = self._replayed()

    def _replayed(self) -> CatalogueAttack:
        from medadv.attacks.catalogue import create, recipe_of

        row = recipe_of(self.attack)
        if row.access != "white-box" or row.minimal or not row.independent or not row.norms:
            raise ValueError(
                f"attack={self.attack!r} has access {row.access!r} and can't be replayed; name a white-box attack in a "
                "ball, such as 'di-fgsm'."
            )
        return create(
            self.attack, self.victim, eps=self.eps, norm=self.norm, targeted=self.targeted, keep="loss",
            batch_size=self.batch_size, seed=self.seed, **(self.settings or {}),
        )  # fmt: skip

    def _check_images(self, x: Tensor) -> None:
        super()._check_images(x)
        check_shape = getattr(self.surrogate, "check_image_shape", None)
        if check_shape is not None:
            check_shape(tuple(x.shape))

    def _solve(self, batch: Batch) -> Solution:
        ignored = self.victim.decision.ignore_index
        target = batch.target if ignored is None else torch.where(batch.valid, batch.target, ignored)
        x_adv = self._attack.perturb(batch.x, target, batch.mask, ids=batch.ids)
        return Solution(x_adv, queries=torch.zeros(len(batch), dtype=torch.int64))


def check_same_images(surrogate: Any, seen: Victim, target: Any, aimed: Victim) -> None:
    """Refuses a surrogate whose images or diagnosis are not the target's.

    Args:
        surrogate, target: the estimators.
        seen, aimed: their victims.

    Raises:
        ValueError: what differs, in one sentence.
    """
    # sizes may differ where networks take any; channels and rank can't
    mine, theirs = (getattr(estimator, "input_shape", ()) for estimator in (surrogate, target))
    if mine and theirs and (mine[0], len(mine)) != (theirs[0], len(theirs)):
        raise ValueError(f"the surrogate takes images {mine}, the target {theirs}; give one for the same images.")
    if seen.intensity != aimed.intensity:
        raise ValueError(
            f"the surrogate's images are in {seen.intensity}, the target's in {aimed.intensity}; put what differs into "
            "the model (input_transform) and state one intensity."
        )
    if (_kind(seen.decision), seen.segments) != (_kind(aimed.decision), aimed.segments):
        raise ValueError(
            f"the surrogate decides {seen.decision}{' per voxel' * seen.segments}, the target {aimed.decision}"
            f"{' per voxel' * aimed.segments}; a reference must mean the same to both."
        )


def _kind(decision: Decision) -> tuple[bool, int, int | None, int | None]:
    """What a reference depends on; thresholds and scoring may differ."""
    return isinstance(decision, Multiclass), decision.channels, decision.background, decision.ignore_index


def transfer(
    surrogate: Any, target: Any, *, attack: str = "di-fgsm", eps: float | str, **options: Any
) -> CatalogueAttack:
    """An attack that makes its images on ``surrogate``, to be evaluated on ``target``.

    Args:
        surrogate: estimator of the attacker's own.
        target: estimator that is attacked without being asked; it must take the same images (channels, rank, intensity)
            and have the same decision.
        attack: a white-box attack of the catalogue; default: momentum steps through random resizing, made to
            transfer (arXiv 1803.06978).
        eps: budget, as for :func:`medadv.attacks.create`.
        **options: ``norm``, ``targeted``, ``batch_size``, ``verbose``, ``seed``, and the options of ``attack``.

    Raises:
        TypeError, ValueError: as :class:`TransferAttack` and :func:`medadv.attacks.create`.

    Example:
        >>> import torch
        >>> from medadv.adapters import MonaiClassifier
        >>> from medadv.attacks.transfer import transfer
        >>> from medadv.decisions import Multiclass
        >>> nets = [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2)) for _ in range(2)]
        >>> mine, theirs = (MonaiClassifier(net, (1, 4, 4), decision=Multiclass(2)) for net in nets)
        >>> attack = transfer(mine, theirs, eps="8/255", max_iter=3)
        >>> x_adv = attack.perturb(torch.rand(2, 1, 4, 4), [0, 1])
        >>> attack.passes.backward, attack.queries.tolist()
        (3, [0, 0])
    """
    from medadv.attacks.catalogue import create

    common = {name: options.pop(name) for name in ("norm", "targeted", "batch_size", "verbose", "keep", "seed")
              if name in options}  # fmt: skip
    return create("transfer", target, eps=eps, surrogate=surrogate, attack=attack, settings=options or None, **common)


ROWS = (
    Recipe("transfer", "replays images made on a surrogate", "of the surrogate's attack", None, "on the surrogate",
           "1605.07277", {"surrogate": None, "attack": "di-fgsm", "settings": None}, attack=TransferAttack,
           keep="loss", access="transfer"),
)  # fmt: skip
