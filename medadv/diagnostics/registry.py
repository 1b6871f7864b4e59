"""The table of checks: what each looks at, from when on it is flagged, and the adaptive attack to run then."""

from __future__ import annotations

from medadv.diagnostics import gradients, outputs, searches
from medadv.diagnostics.finding import Check

_BPDA = 'create("pgd", bpda(inner, transform=transform), eps=eps)'
_SQUARE = 'create("square-dice" if estimator.segments else "square", estimator, eps=eps, max_iter=5000)'
_EOT = 'create("pgd", eot(estimator, n=32), eps=eps)'
_ROBUST = 'create("robust", estimator, eps=eps)'
_GRADIENT = (
    "Something on the way to the logits has no useful gradient: rounding, a codec, a detached tensor. Look through it "
    "with medadv.adaptive.bpda, which runs it forwards and replaces it by the identity (or backward=) backwards; where "
    "it can't be taken apart, attack by scores: 'square', on voxels 'square-dice'."
)

CHECKS: dict[str, Check] = {row.name: row for row in (
    Check("zero-gradients", "zero-gradients", "share of voxels whose gradient is zero or not finite although the "
          "loss depends on them", 0.5, _GRADIENT, _BPDA, "basic", gradients.zero_share),
    Check("finite-differences", "gradient-off", "how far slopes along the gradient and random directions are off "
          "central differences: 0 equal, 1 unrelated; median of the cases, each at its best step size", 0.2,
          "The gradient is not that of the function: a part of it is detached or replaced. " + _GRADIENT, _BPDA,
          "basic", gradients.differences),
    Check("random-directions", "beaten-by-chance", "share of cases in which random signs raise the loss more than the "
          "signs of the gradient, at steps of 0.5/255, 2/255 and 8/255", 0.25,
          "The gradient leads no further than chance. " + _GRADIENT + " Of a model that draws random "
          "numbers, attack the expectation (see repeatable).", _BPDA, "basic", gradients.beaten_by_chance),
    Check("repeatable", "not-repeatable", "difference of logits (or of gradients) between two runs on the same images, "
          "as a share of the largest", 1e-5,
          "The model draws random numbers, so one gradient tells little. Attack the expectation over its draws with "
          "medadv.adaptive.eot (more runs where the score still falls), and judge on fresh draws.", _EOT, "basic",
          outputs.repeats, ".1e"),
    Check("train-mode", "train-mode", "layers in training mode while the model is deployed: dropout, batch norm that "
          "looks at the batch; or cases of a batch that influence each other", 0.0,
          "Put the network into inference mode. Where dropout is on by intent, attack the expectation over its draws: "
          "medadv.adaptive.eot with active= naming such layers.",
          'create("pgd", eot(estimator, n=32, active=[torch.nn.Dropout]), eps=eps)', "basic", outputs.training_mode,
          ".0f"),
    Check("probabilities", "probabilities", "share of the output that looks like probabilities", 0.99,
          "The network ends in a softmax or sigmoid, and the decision takes logits: losses saturate, and thresholds of "
          "labels are wrong. Leave the last layer away, or undo it with head=torch.log (softmax) or head=torch.logit "
          "(sigmoid), and attack that.",
          'create("pgd", type(estimator)(estimator.network, estimator.input_shape, decision=estimator.decision, '
          "intensity=estimator.intensity, "
          "head=torch.log if estimator.decision.exclusive else torch.logit), eps=eps)", "basic",
          outputs.probabilities),
    Check("saturated-loss", "saturated-loss", "share of right diagnoses whose cross-entropy has no gradient to the "
          "logits in float32", 0.25,
          "Logits are so large that softmax or sigmoid round to 0 and 1. medadv.adaptive.rescaled shrinks them about "
          "the threshold without changing a diagnosis.", 'create("pgd", rescaled(estimator), eps=eps)', "basic",
          outputs.saturated),
    Check("large-budget", "survives-any-budget", "share of the score left under Auto-PGD with the whole range as "
          "budget, above what simple images leave (those of other cases, noise)", 0.5,
          "With this budget any image may become any other, so what survives is the attack's failure. Follow the other "
          "flags; where there are none, run 'robust' and attacks on scores.", _SQUARE, "basic",
          searches.survives_everything),
    Check("steps", "more-steps", f"fall of the mean score from {searches.FEW_STEPS} to {searches.MORE_STEPS} steps of "
          "pgd", 0.1, "The attack has not converged: give it more steps, or Auto-PGD, which finds its own step size.",
          _ROBUST, "full", searches.more_steps),
    Check("restarts", "more-restarts", f"fall of the mean score from 1 to {searches.MORE_RESTARTS} random starts of "
          "pgd", 0.1, "Where it starts decides where the attack ends: give it more starts, or 'robust', an ensemble.",
          _ROBUST, "full", searches.more_restarts),
    Check("black-box", "black-box-stronger", "how much lower the mean score is under an attack on scores or decisions "
          "alone than under white-box ones", 0.1,
          "Who sees the gradients must not find less than who does not, so gradients are masked. " + _GRADIENT, _SQUARE,
          "full", searches.black_box),
    Check("transfer", "transfer-stronger", "how much lower the mean score is on images made on another model than "
          "under white-box attacks", 0.1,
          "Images of another model break this one better than its own gradients, so these are masked. " + _GRADIENT,
          'create("transfer", estimator, surrogate=surrogate, eps=eps)', "full", searches.transferred),
    Check("storage", "lost-in-storage", "how much higher the mean score is once adversarial images of an attack that "
          "knows no grid are rounded to that of the file", 0.1,
          "Such images can't be stored: the file rounds away what was crafted. Give Intensity(grid=...), on which "
          "medadv's attacks search, and budgets of at least one step of it.", 'create("pgd", estimator, eps=eps)',
          "full", searches.stored),
    Check("monotone", "not-monotone", "largest rise of the mean score from one budget to a larger one", 0.01,
          "A larger budget holds all images of a smaller one, so the attack fails at the larger: give it more steps, a "
          "smaller eps_step, or Auto-PGD, which finds its own.", _ROBUST, "table", None, "+.3f"),
    Check("adaptive", "adaptive-weaker", "of a defended model, how much higher the mean score is under the attack that "
          "knows the defence than under the one that does not", 0.01,
          "The attack has not been adapted well enough: give it more steps, more samples= of the draws, other weights= "
          "of the detector, or another search.",
          'create("apgd-margin", eot(bpda(inner, transform=transform), n=32), eps=eps)', "table", None, "+.3f"),
)}  # fmt: skip
