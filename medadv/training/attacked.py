"""Recipes that train on the images of an attack of the catalogue: any, bias fields, quantised frequencies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from medadv.attacks.base import Batch
from medadv.attacks.catalogue import recipe_of
from medadv.attacks.framework import FrameworkAttack
from medadv.dct import dct
from medadv.decisions import Decision
from medadv.threats import CaseRandom, Threat
from medadv.training.adversarial import NaturalStep
from medadv.training.base import Preparation, Recipe, Step, TrainingBatch, check_share, check_weights


class AttackCrafter:
    """The images of an attack of the catalogue, for training.

    Args:
        estimator: a medadv estimator.
        attack: name in the catalogue.
        eps: budget in the unit of the attack's threat; None: the threat's default.
        keep: ``"last"``: the end point, which costs no further pass; ``"loss"``: the best iterate, for one forward
            pass more.
        clean_share: probability that a case stays clean.
        seed: of the random draws, which depend on (seed, case id) alone.
        options: of the attack, such as ``max_iter``.

    Raises:
        ValueError, TypeError: an attack that is unknown, not for this model, or not for training.
    """

    def __init__(
        self,
        estimator: Any,
        attack: str,
        *,
        eps: float | str | None = None,
        keep: str = "last",
        clean_share: float = 0.0,
        seed: int = 0,
        **options: Any,
    ) -> None:
        row = recipe_of(attack)
        if row.attack is not None:
            raise ValueError(
                f"attack {attack!r} is no search of one threat set and can't be trained on; choose another, such as "
                "'pgd' or 'bias-field'."
            )
        self.attack = FrameworkAttack(estimator, row, eps=eps, keep=keep, seed=seed, **options)
        self.seed = seed
        self.clean_share = clean_share
        self._check_threat(tuple(estimator.input_shape))

    def _check_threat(self, shape: tuple[int, ...]) -> None:
        """Refuses a threat that can't be built, or that training has no reference for, before anything is trained."""
        victim = self.attack.victim
        empty = torch.zeros(1, *shape, device=victim.device)
        x, nothing = victim.intensity.bounds(empty)[0].expand_as(empty).to(empty), empty.new_zeros(1)
        threat = self.attack.threat_around(Batch(x, nothing, nothing, None, [0]))
        if type(threat).apply_target is not Threat.apply_target:
            raise ValueError(
                f"attack {self.attack.name!r} moves or covers what the reference shows and can't be trained on; choose "
                "one that changes grey values only, such as 'pgd' or 'bias-field'."
            )

    def __call__(self, batch: TrainingBatch) -> Tensor:
        """The batch's images, some of them attacked."""
        # draws of their own: -1 is that of the threat set
        coin = CaseRandom(self.seed, batch.ids, restart=-2).uniform(torch.zeros(len(batch), 1))[:, 0]
        rows = (coin >= self.clean_share).nonzero()[:, 0]
        if not len(rows):
            return batch.x
        part = Batch(batch.x, batch.target, batch.valid, None, list(batch.ids)).subset(rows.to(batch.x.device))
        with self.attack.victim.attacked():
            best = self.attack.solved(part).best
        assert best is not None
        return batch.x.index_copy(0, rows.to(batch.x.device), best.x)


@dataclass(frozen=True)
class AttackTraining(Recipe):
    """Training on the images of any attack of the catalogue that is made of objective, threat and search.

    Attributes:
        attack: name in :func:`medadv.attacks.catalogue`.
        eps: budget in the unit of its threat; None: the threat's default.
        options: of the attack, such as ``{"max_iter": 5}``.
        keep: which of its images: the ``"last"`` one, or that of the largest ``"loss"`` for one more forward pass.
        clean_share: probability that a case stays clean.

    Example:
        >>> AttackTraining("kspace", eps=0.02, clean_share=0.5).described()
        "AttackTraining(attack='kspace', eps=0.02, options={}, keep='last', clean_share=0.5)"
    """

    attack: str
    eps: float | str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    keep: str = "last"
    clean_share: float = 0.0

    def __post_init__(self) -> None:
        check_share(clean_share=self.clean_share)

    def step(self, preparation: Preparation) -> Step:
        crafter = AttackCrafter(
            preparation.estimator, self.attack, eps=self.eps, keep=self.keep, clean_share=self.clean_share,
            seed=preparation.seed, **self.options,
        )  # fmt: skip
        return AttackStep(preparation, crafter)


class AttackStep(NaturalStep):
    """The natural loss of the images of an attack."""

    def __init__(self, preparation: Preparation, crafter: AttackCrafter) -> None:
        super().__init__(preparation.estimator)
        self.crafter = crafter

    def craft(self, batch: TrainingBatch) -> Tensor:
        return self.crafter(batch)


@dataclass(frozen=True)
class BiasFieldTraining(Recipe):
    """Adversarial bias fields as augmentation (arXiv 2006.13322 for MR, 2009.09247 for X-ray).

    Half of the cases get the smooth field, found by the catalogue's ``bias-field`` attack in a few steps, that is worst
    for them; the loss is the natural one. (2006.13322 adds a term that keeps the predictions of both images together
    and needs no reference; here the reference is known.)

    Attributes:
        eps: how far the field may be from 1.
        steps: attack steps per update.
        control_points: of the field, per axis.
        clean_share: probability that a case stays clean.
    """

    eps: float = 0.3
    steps: int = 5
    control_points: int = 4
    clean_share: float = 0.5

    def __post_init__(self) -> None:
        check_share(clean_share=self.clean_share)

    def step(self, preparation: Preparation) -> Step:
        # the best iterate, not the last: Auto-PGD's first steps are as long as the set is wide
        crafter = AttackCrafter(
            preparation.estimator, "bias-field", eps=self.eps, keep="loss", clean_share=self.clean_share,
            seed=preparation.seed, max_iter=self.steps, control_points=self.control_points,
        )  # fmt: skip
        return AttackStep(preparation, crafter)


@dataclass(frozen=True)
class VAFT(Recipe):
    """VAFT, frequency-domain adversarial training of segmenters, 2D and 3D (arXiv 2307.07269).

    ``L(f(x), y) + L(f(x'), y) + weight ||D f(x) - D f(x')||_1 / ||D f(x)||_1`` where D is the DCT of each logit over
    the whole image and ``x'`` comes from the catalogue's ``vafa`` attack, its last iterate. The paper has the plain L1
    norm, which grows with the image; the division is that of the authors' code, which divides by the sum over the
    batch and over windows of 96 voxels a side. Here it is that of each case, in the mean. The paper's L is soft Dice
    (in the code plus cross-entropy); here it is the estimator's natural loss. Voxels that do not count are zero on both
    sides.

    Attributes:
        eps: largest quantisation step in grey values of 0..255.
        steps: attack steps per update; 20 in the paper.
        eps_step: change of the quantisation steps in each; None: a quarter of ``eps``. (The paper's is 1, too short for
            few steps.)
        block: side of the blocks in voxels.
        ssim_weight: weight of the structural similarity that the attack keeps.
        weight: of the frequency consistency; 1 in the paper.
    """

    eps: float = 20.0
    steps: int = 5
    eps_step: float | None = None
    block: int = 32
    ssim_weight: float = 1.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_weights(weight=self.weight, ssim_weight=self.ssim_weight)

    def step(self, preparation: Preparation) -> Step:
        if not preparation.estimator.segments:
            raise ValueError(
                "'vaft' compares the frequencies of maps of predictions, but this model gives one diagnosis per image; "
                "use 'attack' with attack='vafa', or 'trades'."
            )
        crafter = AttackCrafter(
            preparation.estimator, "vafa", eps=self.eps, seed=preparation.seed, max_iter=self.steps, block=self.block,
            eps_step=self.eps_step, ssim_weight=self.ssim_weight,
        )  # fmt: skip
        return VAFTStep(preparation, crafter, self.weight)


class VAFTStep(AttackStep):
    """The loss of :class:`VAFT`."""

    def __init__(self, preparation: Preparation, crafter: AttackCrafter, weight: float) -> None:
        super().__init__(preparation, crafter)
        self.weight = weight

    def loss(self, batch: TrainingBatch, crafted: Tensor) -> Tensor:
        estimator, target, valid = self.estimator, batch.target, batch.valid
        clean, adversarial = estimator.model(batch.x), estimator.model(crafted)
        natural = estimator.training_loss(clean, target, valid) + estimator.training_loss(adversarial, target, valid)
        return natural + self.weight * frequency_gap(estimator.decision, clean, adversarial, valid).mean()


def frequency_gap(decision: Decision, clean: Tensor, other: Tensor, valid: Tensor) -> Tensor:
    """VAFT's frequency consistency of each case, ``(N,)``: L1 distance of the DCT of logits over that of ``clean``.

    Args:
        decision: how logits become a diagnosis.
        clean: logits ``(N, C, *S)``.
        other: logits ``(N, C, *S)``.
        valid: where the reference counts, like the canonical target.

    Example:
        >>> import torch
        >>> from medadv.decisions import Multiclass
        >>> logits, valid = torch.rand(1, 2, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool)
        >>> frequency_gap(Multiclass(2), logits, 1.5 * logits, valid)
        tensor([0.5000])
    """
    counted = decision.voxelwise(valid)
    axes = range(2, clean.ndim)
    # half precision loses the small coefficients
    first, second = (dct((logits * counted).to(torch.promote_types(logits.dtype, torch.float32)), axes)
                     for logits in (clean, other))  # fmt: skip
    size = first.abs().flatten(1).sum(1)
    return (first - second).abs().flatten(1).sum(1) / size.clamp(min=torch.finfo(size.dtype).tiny)
