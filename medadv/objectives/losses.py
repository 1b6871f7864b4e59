"""Losses of images and voxels: cross-entropy, margins, soft Dice, and the losses of segmentation attacks."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from medadv.decisions import Decision, Multiclass, Multilabel, select_channels
from medadv.metrics import voxels_in
from medadv.objectives.base import Objective, agrees, log_odds, mean_over_valid, per_voxel_cross_entropy
from medadv.objectives.slabs import SummedObjective


class CrossEntropy(SummedObjective):
    """Mean cross-entropy (arXiv 1412.6572, 1706.06083); binary per label for ``Multilabel``.

    Example:
        >>> import torch
        >>> objective = CrossEntropy(Multiclass(2))
        >>> objective(torch.zeros(1, 2), torch.tensor([0]), valid=torch.tensor([True]))
        tensor([0.6931])
    """

    def sums(self, output: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        losses = per_voxel_cross_entropy(self.decision, output, target)
        if not bool(valid.all()):  # a product with a mask is slow on a CPU
            losses = losses * valid
        return losses.reshape(len(losses), -1).sum(1, keepdim=True)

    def of_sums(self, sums: Tensor, valid: Tensor) -> Tensor:
        return self.sign * sums[:, 0] / valid.reshape(len(valid), -1).sum(1).clamp(min=1)


def margins(decision: Decision, output: Tensor, target: Tensor) -> Tensor:
    """Distance in logits to the decision boundary, positive where the diagnosis equals the target, like ``target``.

    Multiclass: ``z_t - max_{k != t} z_k``; Multilabel: ``(2 t - 1)(z - logit(threshold))`` per label.
    """
    if isinstance(decision, Multilabel):
        return _signs(output, target) * (output - decision.logit_threshold(output))
    if decision.channels == 2:  # the other class is known
        return _signs(output, target) * log_odds(output)
    own = output.gather(1, target[:, None])[:, 0]
    return own - output.masked_fill(decision.one_hot(target), -torch.inf).amax(1)


def _signs(output: Tensor, target: Tensor) -> Tensor:
    """1 where the target is 1, -1 where it is 0, in the type of the output."""
    return target.to(output.dtype).mul_(2).sub_(1)


class Margin(Objective):
    """Signed distance in logits to the decision boundary; on images the raw margin, on voxels hinged at the boundary.

    Multiclass, untargeted: ``max_{k != y} z_k - z_y``; targeted: ``z_t - max_{k != t} z_k``. Multilabel: with
    ``m_c = (2 y_c - 1)(z_c - logit(threshold_c))`` the sum over labels still right of ``-m_c``, per label. A voxel or
    label that already is as wanted has no more to give, so its hinge is flat; an image's margin is not hinged, so the
    search keeps a direction after success.

    Args:
        over: for ``Multilabel`` images which labels count: ``"share"`` (each label on its own), ``"any"`` (the weakest
            one: ``-min_c m_c``), ``"all"`` (the strongest one: ``-max_c m_c``).
    """

    def __init__(self, decision: Decision, *, targeted: bool = False, over: str = "share") -> None:
        super().__init__(decision, targeted=targeted)
        if over not in ("share", "any", "all"):
            raise ValueError(f"over={over!r} is unknown; choose 'share', 'any' or 'all' labels.")
        if over != "share" and isinstance(decision, Multiclass):
            raise ValueError(f"over={over!r} is about several labels; a multi-class decision has one, leave it out.")
        self.over = over

    def __call__(self, output: Tensor, target: Tensor, *, valid: Tensor, progress: float = 0.0) -> Tensor:
        margin = self._margin(output, target)
        if margin.ndim == 1:
            return -self.sign * margin * valid
        if self.over != "share":
            return self._extreme_label(margin, valid)
        unfinished = margin.clamp(max=0) if self.targeted else margin.clamp(min=0)
        return -self.sign * mean_over_valid(unfinished, valid)

    def _margin(self, output: Tensor, target: Tensor) -> Tensor:
        """What is pushed over the boundary, positive where the diagnosis equals the target, like ``target``."""
        return margins(self.decision, output, target)

    def _extreme_label(self, margin: Tensor, valid: Tensor) -> Tensor:
        # untargeted "any": one label wrong suffices, so push the weakest; targeted "all": the weakest must be right
        weakest = (self.over == "any") != self.targeted
        flat = margin.masked_fill(~valid, torch.inf if weakest else -torch.inf).flatten(1)
        extreme = flat.amin(1) if weakest else flat.amax(1)
        return -self.sign * torch.where(extreme.isfinite(), extreme, torch.zeros_like(extreme))


class DLR(Margin):
    """Difference of logits ratio (arXiv 2003.01690): the margin over the spread of the largest logits, so that neither
    the scale nor the offset of the logits matters.

    With ``z_(1) >= z_(2) >= ...`` the sorted logits; untargeted: ``-(z_y - max_{k != y} z_k) / (z_(1) - z_(3))``;
    targeted: ``-(max_{k != t} z_k - z_t) / (z_(1) - (z_(3) + z_(4)) / 2)``. The paper's targeted form has the reference
    ``z_y`` in place of the maximum: the same as long as the reference is the diagnosis, and after that it no longer
    pushes away the class that stands between the target and success. With fewer classes than the ratio needs (3, and
    4 if targeted) it would be constant, so there it is the plain :class:`Margin`. Voxels are hinged as there. At the
    largest value, 1 with three classes, the reference is the least likely class and the gradient vanishes.

    Raises:
        ValueError: a multi-label decision, whose logits do not compete.

    Example:
        >>> import torch
        >>> objective = DLR(Multiclass(3))
        >>> logits = torch.tensor([[4.0, 3.0, 0.0], [400.0, 300.0, 0.0]])
        >>> objective(logits, torch.tensor([0, 0]), valid=torch.tensor([True, True]))
        tensor([-0.2500, -0.2500])
    """

    def __init__(self, decision: Decision, *, targeted: bool = False) -> None:
        if not isinstance(decision, Multiclass):
            raise ValueError(
                f"objective 'dlr' compares the logits of classes that exclude each other, the decision is {decision}; "
                "use 'margin'."
            )
        super().__init__(decision, targeted=targeted)

    def _margin(self, output: Tensor, target: Tensor) -> Tensor:
        margin = super()._margin(output, target)
        needed = 4 if self.targeted else 3
        if output.shape[1] < needed:
            return margin
        ranked = output.topk(needed, dim=1).values
        spread = ranked[:, 0] - ranked[:, 2:].mean(1)
        return margin / spread.clamp(min=1e-12)


class CarliniWagner(Objective):
    """The margin of Carlini and Wagner, pursued past the boundary up to a confidence (arXiv 1608.04644).

    Untargeted ``min(max_{k != y} z_k - z_y, kappa)``, targeted ``min(z_t - max_{k != t} z_k, kappa)``; per label for
    ``Multilabel``, and in the mean over voxels or labels. Unlike :class:`Margin` on voxels, it goes on pushing what is
    wrong already until it is wrong by ``kappa``.

    Args:
        kappa: confidence in logits at which nothing is left to gain; 50 as in the survey arXiv 2303.14133.

    Example:
        >>> import torch
        >>> objective = CarliniWagner(Multiclass(2), kappa=3.0)
        >>> objective(torch.tensor([[2.0, 1.0], [0.0, 9.0]]), torch.tensor([0, 0]), valid=torch.tensor([True, True]))
        tensor([-1.,  3.])
    """

    def __init__(self, decision: Decision, *, targeted: bool = False, kappa: float = 50.0) -> None:
        super().__init__(decision, targeted=targeted)
        if not 0 <= kappa < math.inf:
            raise ValueError(f"kappa={kappa!r} must be finite and not negative.")
        self.kappa = kappa

    def __call__(self, output: Tensor, target: Tensor, *, valid: Tensor, progress: float = 0.0) -> Tensor:
        gained = -self.sign * margins(self.decision, output, target)
        return mean_over_valid(gained.clamp(max=self.kappa), valid)


class SoftDice(SummedObjective):
    """One minus the soft foreground Dice of each case, with a false-positive term for absent classes.

    With p the probabilities, over the foreground classes present in the reference ``1 - 2 sum(p y) / sum(p + y)``, in
    the mean; plus for the absent ones the mean share of voxels that p claims. Without the second term a case would give
    the attacker nothing for inventing a lesion; without leaving absent classes out of the first, Dice has no gradient
    on them. No smoothing constant is needed as a present class has a voxel. Targeted: its negative, against the target.

    Example:
        >>> import torch
        >>> objective = SoftDice(Multiclass(2, background=0))
        >>> target = torch.tensor([[[0, 1]]])
        >>> objective(torch.tensor([[[[9., -9.]], [[-9., 9.]]]]), target, valid=target >= 0).round(decimals=4)
        tensor([0.])
    """

    voxels_only = True

    def sums(self, output: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        channels = self.decision.foreground
        mask = select_channels(self.decision.voxelwise(valid), channels)
        if isinstance(self.decision, Multiclass) and self.decision.channels == 2 and channels == (1,):
            # what softmax gives at a fraction of its cost; sigmoid itself has no gradient where a model is sure
            p = F.logsigmoid(log_odds(output)).exp()[:, None]
        else:
            p = select_channels(self.decision.probabilities(output), channels)
        return _overlaps(p, self.decision.one_hot(target, channels), mask).flatten(1)

    def of_sums(self, sums: Tensor, valid: Tensor) -> Tensor:
        return self.sign * _disagreement(sums.unflatten(1, (4, -1)))


def dice_disagreement(p: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """One minus Dice over the present classes plus the share claimed of the absent ones (see :class:`SoftDice`).

    Args:
        p: probabilities, or a hard mask as 0 and 1, ``(N, K, *S)``.
        y: bool reference ``(N, K, *S)``.
        mask: where they count, ``(N, K, *S)`` or ``(N, 1, *S)``.
    """
    return _disagreement(_overlaps(p, y, mask))


def _overlaps(p: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Sums over the voxels that count of ``p y``, ``p``, ``y`` and 1, ``(N, 4, K)``."""
    count = voxels_in(mask, 2)
    if bool((count < mask[0, 0].numel()).any()):
        p, y = p * mask, y & mask
    p, y = p.flatten(2), y.flatten(2).to(p.dtype)  # a product with bool, and its gradient, are slow on a CPU
    return torch.stack([(p * y).sum(2), p.sum(2), y.sum(2), count.to(p.dtype).expand(p.shape[:2])], 1)


def _disagreement(sums: Tensor) -> Tensor:
    overlap, mass, size, count = sums.unbind(1)
    present = size > 0
    dice = 2 * overlap / (mass + size).clamp(min=torch.finfo(sums.dtype).tiny)
    missed = ((1 - dice) * present).sum(1) / present.sum(1).clamp(min=1)
    invented = (mass / count.clamp(min=1) * ~present).sum(1) / (~present).sum(1).clamp(min=1)
    return missed + invented


class DiceCE(SummedObjective):
    """:class:`SoftDice` plus :class:`CrossEntropy`."""

    voxels_only = True

    def __init__(self, decision: Decision, *, targeted: bool = False) -> None:
        super().__init__(decision, targeted=targeted)
        self.parts = (SoftDice(decision, targeted=targeted), CrossEntropy(decision, targeted=targeted))

    def sums(self, output: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        return torch.cat([part.sums(output, target, valid) for part in self.parts], 1)

    def of_sums(self, sums: Tensor, valid: Tensor) -> Tensor:
        dice, cross_entropy = self.parts
        return dice.of_sums(sums[:, :-1], valid) + cross_entropy.of_sums(sums[:, -1:], valid)


class SegPGD(Objective):
    """Cross-entropy that first counts voxels still right, later also those already wrong (arXiv 2207.12391).

    Untargeted: ``(1 - w) sum_right CE + w sum_wrong CE`` with ``w = progress / 2``, over the number of valid voxels.
    Targeted, as a loss to descend: ``(1 - w) sum_{not yet target} CE(t) + w sum_{already target} CE(t)``.
    """

    scheduled = True

    def __call__(self, output: Tensor, target: Tensor, *, valid: Tensor, progress: float = 0.0) -> Tensor:
        late = progress / 2
        unfinished = agrees(self.decision, output, target) != self.targeted
        weight = late + (1 - 2 * late) * unfinished.to(output.dtype)
        return self.sign * mean_over_valid(weight * per_voxel_cross_entropy(self.decision, output, target), valid)


def _on_unit_sphere(values: Tensor, target: Tensor) -> Tensor:
    """Values ``(N, C, *S)`` over their norm across classes, at the class ``target``: ``(N, *S)``."""
    # torch's own norm takes ten times as long along a dimension that is not the last
    norm = values.square().sum(1).clamp(min=1e-24).sqrt()
    return values.gather(1, target[:, None])[:, 0] / norm


class CosPGD(Objective):
    """Cross-entropy weighted by how well each voxel's probabilities align with the reference (arXiv 2302.02213).

    The weight is ``cos(p, onehot(y))``, detached; targeted ``1 - cos``, descending. Multilabel: per label, the cosine
    of ``(p, 1 - p)`` with ``(y, 1 - y)``.
    """

    scheduled = True

    def __call__(self, output: Tensor, target: Tensor, *, valid: Tensor, progress: float = 0.0) -> Tensor:
        p = self.decision.probabilities(output.detach())
        if isinstance(self.decision, Multiclass):
            cosine = _on_unit_sphere(p, target)
        else:
            cosine = torch.where(target == 1, p, 1 - p) / (p.square() + (1 - p).square()).sqrt()
        weight = 1 - cosine if self.targeted else cosine
        return self.sign * mean_over_valid(weight * per_voxel_cross_entropy(self.decision, output, target), valid)


class MaskedCrossEntropy(Objective):
    """Cross-entropy over the voxels still right (targeted: not yet as wanted), a loss of SEA (arXiv 2306.12941)."""

    scheduled = True

    def __call__(self, output: Tensor, target: Tensor, *, valid: Tensor, progress: float = 0.0) -> Tensor:
        unfinished = agrees(self.decision, output, target) != self.targeted
        return self.sign * mean_over_valid(unfinished * per_voxel_cross_entropy(self.decision, output, target), valid)


class JensenShannon(Objective):
    """Mean Jensen-Shannon divergence between the prediction and the reference, a loss of SEA (arXiv 2306.12941).

    With q the one-hot reference it depends on ``p_y`` alone:
    ``JS(p, q) = log 2 + (p_y log p_y - (1 + p_y) log(1 + p_y)) / 2``. It is at most ``log 2``, so that voxels far
    beyond the boundary no longer count. Targeted: its negative, against the target. Multilabel (an extension by this
    project): each label as a distribution over present and absent.
    """

    def __call__(self, output: Tensor, target: Tensor, *, valid: Tensor, progress: float = 0.0) -> Tensor:
        log_p = -per_voxel_cross_entropy(self.decision, output, target)
        p = log_p.exp()
        divergence = math.log(2) + (p * log_p - (1 + p) * p.log1p()) / 2
        return self.sign * mean_over_valid(divergence, valid)


class MaskedSpherical(Objective):
    """The reference's logit on the unit sphere, over the voxels still right, a loss of SEA (arXiv 2306.12941).

    Untargeted: ``-1[right] z_y / ||z||_2``; targeted: ``1[not yet as wanted] z_t / ||z||_2``. The norm has a gradient,
    the mask has none. Multilabel (an extension by this project): a single logit on a sphere has but two values, so with
    the signed margin ``m_c`` of :class:`Margin` each label counts ``m_c / ||(m_c, 1)||_2``.
    """

    scheduled = True

    def __call__(self, output: Tensor, target: Tensor, *, valid: Tensor, progress: float = 0.0) -> Tensor:
        if isinstance(self.decision, Multilabel):
            margin = margins(self.decision, output, target)
            share = margin / (1 + margin.square()).sqrt()
        else:
            share = _on_unit_sphere(output, target)
        unfinished = agrees(self.decision, output, target) != self.targeted
        return -self.sign * mean_over_valid(unfinished * share, valid)
