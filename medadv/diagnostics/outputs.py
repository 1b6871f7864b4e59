"""What the output tells: repeats that differ, layers in training mode, probabilities for logits, saturated losses."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from medadv.decisions import Multiclass
from medadv.diagnostics.finding import Measured, nothing
from medadv.diagnostics.probe import Probe, per_case, without_path
from medadv.objectives import CrossEntropy
from medadv.objectives.losses import margins
from medadv.victims import Victim, logits_in

# nodes of autograd's graph that only move numbers about
_MOVES = ("view", "reshape", "clone", "squeeze", "alias", "slice", "cat", "permute", "transpose", "copy", "select",
          "expand", "contiguous", "stack", "index", "flatten")  # fmt: skip
_GRADIENT_REPEATS = 1e-3
_CASES_APART = 1e-3


def largest_difference(first: Tensor, second: Tensor) -> float:
    """Largest difference of two tensors, as a share of the largest number, at least 1."""
    scale = max(1.0, float(first.abs().max()))
    return float((first - second).abs().max()) / scale


def repeats(probe: Probe) -> Measured:
    """Difference of the logits of two runs on the same images; or of the gradients, where those differ and logits not.

    Both as shares of the largest number.
    """
    with probe.deployed.attacked():
        difference = largest_difference(probe.logits(probe.x), probe.logits(probe.x))
    rows = probe.batches[0]
    with probe.victim.attacked():
        first, second = (torch.nan_to_num(probe.differentiated(rows)) for _ in range(2))
    size = float(first.abs().max())
    moved = float((first - second).abs().max()) / size if size > 0 else 0.0
    evidence = max(difference, moved) if moved > _GRADIENT_REPEATS else difference
    return Measured(evidence, {"logits": difference, "gradient": moved})


def layers_in_training(victim: Victim) -> tuple[list[str], list[str]] | None:
    """Dropout that is on and batch norm that looks at the batch while the model is attacked, by name.

    Returns:
        Names of both kinds of layers; None where the victim shows no module.
    """
    module = getattr(victim, "module", None)
    if not isinstance(module, nn.Module):
        return None
    with victim.attacked():
        layers = list(module.named_modules())
        dropout = [name for name, layer in layers if layer.training and _drops(layer)]
        norms = [
            name
            for name, layer in layers
            if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None)
        ]
    return dropout, norms


def _drops(layer: nn.Module) -> bool:
    share = getattr(layer, "p", getattr(layer, "drop_prob", 0.0))
    of_this_kind = isinstance(layer, _DropoutNd) or "drop" in type(layer).__name__.lower()
    return of_this_kind and isinstance(share, int | float) and share > 0


def training_mode(probe: Probe) -> Measured:
    """Number of layers that are in training mode although the model is deployed; or 1 where cases influence each other.

    The latter is measured where the model repeats itself: a case alone against the same case in a batch.
    """
    found = layers_in_training(probe.deployed)
    dropout, norms = found or ([], [])
    apart = 0.0
    with probe.deployed.attacked():
        together, again = probe.logits(probe.x), probe.logits(probe.x)
        if len(probe.x) > 1 and torch.equal(together, again):
            apart = largest_difference(together[:1], probe.logits(probe.x[:1]))
    count = max(len(dropout) + len(norms), int(apart > _CASES_APART))
    numbers = {"dropout": len(dropout), "batch_norm": len(norms), "cases_apart": apart}
    return Measured(float(count), numbers, note=", ".join(itertools.islice((*dropout, *norms), 5)))


def probabilities(probe: Probe) -> Measured:
    """Share of the output that looks like probabilities: in [0, 1], and of exclusive classes summing to one.

    Labels that do not exclude each other may be between 0 and 1 by chance; so these only count where the last operation
    is a sigmoid or softmax, or, where autograd does not show it, where extreme images leave them in [0, 1] too.
    """
    with probe.deployed.attacked():
        z = probe.logits(probe.x)
        share = _like_probabilities(probe, z)
        if share < 1 or isinstance(probe.decision, Multiclass):
            return Measured(share, counts=share == 1)
        last = _last_operation(probe)
        if last:
            squashes = "sigmoid" in last or ("softmax" in last and "log" not in last)
            return Measured(share, note=f"last operation: {last}", counts=squashes)
        low, high = probe.intensity.bounds(probe.x)
        middle = (low + high) / 2
        extremes = [probe.x * 0 + middle + far * (high - low) for far in (-1e3, -0.5, 0.5, 1e3)]
        extremes.append(middle + 1e3 * (probe.x - middle))
        shares = [_like_probabilities(probe, probe.logits(image)) for image in extremes]
    return Measured(min(shares), counts=min(shares) == 1)


def _like_probabilities(probe: Probe, z: Tensor) -> float:
    inside = ((z >= 0) & (z <= 1)).all(1)
    if isinstance(probe.decision, Multiclass):
        inside &= (z.sum(1) - 1).abs() < 1e-3
    return float(inside.double().mean())


def _last_operation(probe: Probe) -> str:
    """Name of the operation that made the logits, in small letters; empty where no graph leads to it."""
    seen: list[str] = []

    def look(output: Any) -> Tensor:
        z = logits_in(output)
        node: Any = z.grad_fn
        while node is not None and any(move in node.name().lower() for move in _MOVES):
            node = next((parent for parent, _ in node.next_functions if parent is not None), None)
        seen.append("" if node is None else node.name().lower().removesuffix("backward0"))
        return z.flatten(1).sum(1)

    try:
        probe.deployed.differentiate(probe.x[:1], look)
    except RuntimeError as error:
        if not without_path(error):
            raise
    # windows are blended one by one, so the graph ends before it begins
    return seen[0] if seen and "accumulate" not in seen[0] else ""


def saturated(probe: Probe) -> Measured:
    """Share of right diagnoses (of images, voxels or labels) whose cross-entropy has no gradient to the logits.

    In float32 that is so from about 100 logits beside the threshold on.
    """
    if getattr(probe.decision, "guarded", False):
        return nothing("the logits hold a detector's verdict")
    with probe.same_draws():
        z = torch.cat([logits_in(probe.victim.logits(part)) for part in probe.x.split(probe.batch_size)])
    leaf = z.detach().requires_grad_()
    with torch.enable_grad():
        loss = CrossEntropy(probe.decision)(leaf, probe.target, valid=probe.valid).sum()
        (grad,) = torch.autograd.grad(loss, leaf)
    with torch.no_grad():
        margin = margins(probe.decision, z, probe.target)
        slope = grad.abs().amax(1) if isinstance(probe.decision, Multiclass) else grad.abs()
        right = (margin > 0) & probe.valid
        if not bool(right.any()):
            return nothing("no diagnosis is right")
        lost = right & (slope < torch.finfo(torch.float32).tiny)
        # every case counts alike
        share = per_case(lost).sum(1) / per_case(right).sum(1).clamp(min=1)
        some = per_case(right).any(1)
    return Measured(float(share[some].double().mean()), {"median_margin": float(margin[right].median())})
