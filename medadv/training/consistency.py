"""Recipes that keep the predictions of clean and adversarial images together: TRADES, MART, HAT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from medadv.training.adversarial import AdversarialStep, BallRecipe
from medadv.training.base import Preparation, Step, TrainingBatch, check_weights
from medadv.training.crafting import Crafter
from medadv.training.divergences import Departure, confidence, prediction_gap, rival_term
from medadv.victims import victim_of

# standard deviation of the noise TRADES starts from, in windows
_NEARBY = 0.001


@dataclass(frozen=True)
class TRADES(BallRecipe):
    """TRADES (arXiv 1901.08573): the natural loss of clean images plus beta times the gap to the adversarial ones.

    ``L(f(x), y) + beta KL(p || p')`` where ``x'`` maximises that divergence, with p held, from x plus a little noise.
    The divergence is summed over classes (labels) and averaged over voxels, else its weight would grow with the image.
    On voxels and on labels it is an extension by this project.

    Attributes:
        beta: weight of the divergence; 6 in the paper.
    """

    beta: float = 6.0

    def __post_init__(self) -> None:
        check_weights(beta=self.beta)

    def step(self, preparation: Preparation) -> Step:
        return TRADESStep(preparation, self.crafter(preparation), self.beta)


class DepartureStep(Step):
    """Crafts the images whose prediction departs furthest from that of the clean ones."""

    def __init__(self, preparation: Preparation, crafter: Crafter) -> None:
        super().__init__(preparation.estimator)
        self.crafter = crafter

    def craft(self, batch: TrainingBatch) -> Tensor:
        victim = self.crafter.victim
        with victim.attacked():
            clean = victim.logits(batch.x)
        return self.crafter.from_nearby(batch, Departure(self.estimator.decision, clean), _NEARBY)


class TRADESStep(DepartureStep):
    """The loss of :class:`TRADES`."""

    def __init__(self, preparation: Preparation, crafter: Crafter, beta: float) -> None:
        super().__init__(preparation, crafter)
        self.beta = beta

    def loss(self, batch: TrainingBatch, crafted: Tensor) -> Tensor:
        clean, adversarial = self.estimator.model(batch.x), self.estimator.model(crafted)
        gap = prediction_gap(self.estimator.decision, clean, adversarial, batch.valid).mean()
        return self.estimator.training_loss(clean, batch.target, batch.valid) + self.beta * gap


@dataclass(frozen=True)
class MART(BallRecipe):
    """MART, misclassification-aware adversarial training (ICLR 2020, openreview rklOg6EFwS).

    ``L(f(x'), y) - log(1 - max_{k != y} p'_k) + lam KL(p || p') (1 - p_y)`` in the mean; x' maximises the natural loss.
    With two classes, and for labels, the first two terms are twice the cross-entropy. On voxels and on labels it is an
    extension by this project.

    Attributes:
        lam: weight of the divergence; 6 in the paper.
    """

    lam: float = 6.0

    def __post_init__(self) -> None:
        check_weights(lam=self.lam)

    def step(self, preparation: Preparation) -> Step:
        return MARTStep(preparation, self.crafter(preparation), self.lam)


class MARTStep(AdversarialStep):
    """The loss of :class:`MART`; the weight of the divergence is not held, as in the authors' code."""

    def __init__(self, preparation: Preparation, crafter: Crafter, lam: float) -> None:
        super().__init__(preparation, crafter)
        self.lam = lam

    def loss(self, batch: TrainingBatch, crafted: Tensor) -> Tensor:
        decision, target, valid = self.estimator.decision, batch.target, batch.valid
        clean, adversarial = self.estimator.model(batch.x), self.estimator.model(crafted)
        unsure = 1 - confidence(decision, clean, target)
        gap = prediction_gap(decision, clean, adversarial, valid, unsure)
        boosted = self.estimator.training_loss(adversarial, target, valid)
        return boosted + (rival_term(decision, adversarial, target, valid) + self.lam * gap).mean()


@dataclass(frozen=True)
class MAADVT(MART):
    """MAAdvT, misclassification-aware training as the authors of arXiv 2103.03438 released it: MART with their numbers.

    Their code calls MART's loss with eps .031, 4 steps of .007 and weight 6 (Messidor: eps 4/255, up to 10 steps,
    weight 8); so does this.
    """

    eps: float | str = "0.031/1"
    steps: int = 4
    eps_step: float | str | None = "0.007/1"


@dataclass(frozen=True)
class HAT(BallRecipe):
    """HAT, helper-based adversarial training (ICLR 2022, openreview BuD2LmNaU3a).

    ``L(f(x), y) + beta KL(p || p') + gamma L(f(x_h), y_h)``; x' as in TRADES; the helper example
    ``x_h = x + h (x' - x)`` lies beyond it and carries the label ``y_h`` that a naturally trained network gives x'. On
    voxels and on labels it is an extension by this project.

    Attributes:
        beta: weight of the divergence.
        gamma: weight of the helper examples.
        h: how far they lie, in perturbations.
        clip: keep them inside the intensity range; the released code does not.
        helper: the naturally trained estimator; None: a copy of the network, trained naturally first with the same
            settings. In a suite: the name of a training that comes before.
    """

    beta: float = 2.5
    gamma: float = 0.5
    h: float = 2.0
    clip: bool = False
    helper: Any = None

    def __post_init__(self) -> None:
        check_weights(beta=self.beta, gamma=self.gamma, h=self.h)

    def step(self, preparation: Preparation) -> Step:
        helper = self.helper
        if isinstance(helper, str):
            raise ValueError(
                f"helper={helper!r} is the name of a training, which only a suite knows; give an estimator."
            )
        if helper is None:
            if preparation.natural_twin is None:
                raise ValueError("HAT needs a naturally trained network; give helper=, or train with medadv's loop.")
            helper = preparation.natural_twin()
        return HATStep(preparation, self.crafter(preparation), self, helper)


class HATStep(DepartureStep):
    """The loss of :class:`HAT`."""

    def __init__(self, preparation: Preparation, crafter: Crafter, recipe: HAT, helper: Any) -> None:
        super().__init__(preparation, crafter)
        self.recipe = recipe
        self.helper = helper
        self.helping = victim_of(helper)

    def beyond(self, batch: TrainingBatch, crafted: Tensor) -> Tensor:
        """The helper examples."""
        x = batch.x + self.recipe.h * (crafted - batch.x)
        if not self.recipe.clip:
            return x
        low, high = self.crafter.victim.intensity.bounds(x)
        return x.clamp(low, high)

    def loss(self, batch: TrainingBatch, crafted: Tensor) -> Tensor:
        decision, model = self.estimator.decision, self.estimator.model
        with self.helping.attacked():
            named = decision.harden(self.helping.logits(crafted))
        clean, adversarial, helped = model(batch.x), model(crafted), model(self.beyond(batch, crafted))
        natural = self.estimator.training_loss(clean, batch.target, batch.valid)
        gap = prediction_gap(decision, clean, adversarial, batch.valid).mean()
        extra = self.estimator.training_loss(helped, named, batch.valid)
        return natural + self.recipe.beta * gap + self.recipe.gamma * extra

    def state_dict(self) -> dict[str, Any]:
        return {"helper": self.helper.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.helper.model.load_state_dict(state["helper"])
