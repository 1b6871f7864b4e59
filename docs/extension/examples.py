"""A runnable example for every attack of the catalogue, made from its row; tests/test_docs.py runs them all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from medadv.attacks import Recipe

BUDGETS = {np.inf: "8/255", 2.0: 0.5, 1.0: 3.0}
# options that say how long an attack goes on, and what is enough for an example
STEPS = ("max_iter", "max_iterations", "steps", "nb_iter", "n_queries", "num_iter_set", "binary_search_steps")


@dataclass(frozen=True)
class Model:
    """A kind of model as an example sets it up.

    Attributes:
        variable: what the example calls it.
        estimator: class of medadv.adapters.
        decision: code of its decision.
        outputs: channels of the network's output.
        diagnosis: code from the logits to a reference.
        other: code of a diagnosis that the attacker could want.
        network: code of the network; none: convolutions.
    """

    variable: str
    estimator: str
    decision: str
    outputs: int
    diagnosis: str
    other: str
    network: tuple[str, ...] = ()


MODELS = {
    "classes": Model("classifier", "MonaiClassifier", "Multiclass(4)", 4, "{0}.predict(x).argmax(1)", "(y + 1) % 4"),
    "labels": Model("classifier", "MonaiMultilabelClassifier", "Multilabel(3)", 3, "({0}.predict(x) > 0).astype(int)",
                    "1 - y"),
    "voxels": Model("segmenter", "MonaiSegmenter", "Multiclass(3, background=0)", 3, "{0}.predict(x).argmax(1)",
                    "np.roll(y, 2, axis=1)"),
    "regions": Model("segmenter", "MonaiSegmenter", "Multilabel(2)", 2, "({0}.predict(x) > 0).astype(int)",
                     "np.roll(y, 2, axis=2)"),
    "bright voxels": Model("segmenter", "MonaiSegmenter", "Multiclass(2, background=0)", 2, "{0}.predict(x).argmax(1)",
                           "np.roll(y, 2, axis=1)", (
        "network = torch.nn.Conv3d(1, 2, 1)  # yours, trained; this one finds voxels above 0.5",
        "network.weight.data = torch.tensor([-10.0, 10.0]).view(2, 1, 1, 1, 1)",
        "network.bias.data = torch.tensor([5.0, -5.0])")),
}  # fmt: skip


@dataclass(frozen=True)
class Special:
    """What the example of an attack needs beside its row.

    Attributes:
        options: code of parameters, by name; they replace those made from the row.
        before: lines before the attack is made; ``{model}`` stands for the variable of the model.
        after: lines between making and running it.
        imports: imports of the standard library, as lines.
        model: a key of :data:`MODELS`, where the first kind the row is for does not do.
        rank: spatial dimensions, where the greatest the row is for do not do.
        channels: of the images.
        reference: what it is run with; ``other``: the diagnosis wanted, see :class:`Model`.
    """

    options: Mapping[str, str] = field(default_factory=dict)
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    model: str | None = None
    rank: int | None = None
    channels: int = 1
    reference: str = "y"


_SURROGATE = (
    "own = copy.deepcopy(network)  # stands for a network that the attacker trained on other data",
    "for weight in own.parameters():",
    "    weight.data += 0.05 * torch.randn_like(weight)",
    "surrogate = MonaiClassifier(own, {shape}, decision=Multiclass(4))",
)
_CLEAN = ("clean = np.random.default_rng(1).random((20, *x.shape[1:]), dtype=np.float32)",)
_GUIDE = Special({"guide": "x[::-1].copy()", "layer": "1"})
_QUERIES = Special({"max_iter": "5", "max_eval": "100", "init_eval": "10"})
_STEEP = Special({"initial_const": "10", "binary_search_steps": "2", "learning_rate": "0.1", "max_iter": "20"})
_NOISY = Special({"noise_sd": "0.1"})

SPECIAL: dict[str, Special] = {
    "transfer": Special(
        {"surrogate": "surrogate", "settings": '{"max_iter": 5}'}, before=_SURROGATE, imports=("import copy",)
    ),
    "hfc": Special({"layers": '["0"]'}, before=_CLEAN, after=("attack.fit(clean, np.arange(20) % 4)",)),
    "one-label": Special({"label": "0"}),
    "label-margin": Special({"label": "1"}),
    "one-organ": Special({"label": "1"}),
    "erase": Special({"label": "1"}),
    "threshold-crossed": Special({"label": "1", "threshold_voxels": "100"}),
    "dag": Special({"max_iter": "50", "gamma": "0.05"}, model="bright voxels"),
    "alma-prox": Special({"max_iter": "100", "learning_rate": "0.1"}, model="bright voxels"),
    "asma": Special(
        {"targeted": "True", "max_iter": "50", "tau": "1e-2", "beta": "1e-2"}, model="bright voxels", reference="other"
    ),
    "art/FeatureAdversariesPyTorch": _GUIDE,
    "art/FeatureAdversariesNumpy": _GUIDE,
    "art/TargetedUniversalPerturbation": Special({"targeted": "True"}, reference="other"),
    "art/CarliniL2Method": _STEEP,
    "art/CarliniL0Method": _STEEP,
    "art/CarliniLInfMethod": Special({"max_iter": "5", "largest_const": "1"}),
    "art/ElasticNet": _STEEP,
    "art/BoundaryAttack": Special({"max_iter": "10", "init_size": "10"}),
    "art/SignOPTAttack": Special({"max_iter": "2", "num_trial": "5", "query_limit": "200"}),
    "art/ZooAttack": Special({"learning_rate": "0.1", "initial_const": "10", "nb_parallel": "128"}),
    "art/ShadowAttack": Special({"nb_steps": "100"}),
    "art/HopSkipJump": _QUERIES,
    "hop-skip-jump": _QUERIES,
    "torchattacks/PGDRS": _NOISY,
    "torchattacks/PGDRSL2": _NOISY,
    "torchattacks/GN": Special({"std": "0.05"}),
    "torchattacks/TIFGSM": Special(channels=3),
    "torchattacks/PIFGSM": Special(channels=3),
    "torchattacks/Square": Special({"n_queries": "300"}),
    "torchattacks/EADL1": Special({"initial_const": "10", "lr": "0.1"}),
    "torchattacks/EADEN": Special({"initial_const": "10", "lr": "0.1"}),
    "torchattacks/JSMA": Special({"gamma": "0.02", "targeted": "True"}, reference="other"),
}


def kind_of(row: Recipe) -> str:
    """Which of :data:`MODELS` the example of a row attacks; those of threats that are no balls attack voxels."""
    voxels = "segmentation" in row.tasks and (row.threat is not None or "classification" not in row.tasks)
    if "multiclass" in row.decisions:
        return "voxels" if voxels else "classes"
    return "regions" if voxels else "labels"


def example_of(row: Recipe) -> str | None:
    """The code of an example; None for an attack that is refused on every model, as its summary then says."""
    if row.summary.startswith("refused:"):
        return None
    special = SPECIAL.get(row.name, Special())
    model = MODELS[special.model or kind_of(row)]
    rank = special.rank or (max if model.variable == "segmenter" else min)(row.ranks)
    shape = (special.channels, *((16, 16) if rank == 2 else (8, 8, 8)))
    names = {"model": model.variable, "shape": str(shape)}
    options = ", ".join(f"{name}={value}" for name, value in _options(row, special).items())
    lines = [
        *_imports(model, special),
        "",
        *_setup(model, rank, shape),
        *(line.format_map(_Kept(names)) for line in special.before),
        f'attack = create("{row.name}", {model.variable}{", " + options if options else ""})',
        *special.after,
        f"x_adv = attack.generate(x, {model.other if special.reference == 'other' else special.reference})",
        f"logits = torch.from_numpy({model.variable}.predict(x_adv))",
        f"print({model.variable}.decision.score(logits, *map(torch.from_numpy, attack.reference)), attack.passes)",
    ]
    return "\n".join(lines)


class _Kept(dict):
    """Leaves braces that are no name of ours, such as those of a dict in the code, as they are."""

    def __missing__(self, key: str) -> str:
        return "{" + key + "}"


def _options(row: Recipe, special: Special) -> dict[str, str]:
    chosen: dict[str, str] = {}
    if row.norms and not row.minimal:
        chosen["eps"] = repr(BUDGETS[row.norms[0]]).replace("'", '"')
    for name in STEPS:
        value = row.options.get(name)
        if isinstance(value, int):
            enough = 3 if name == "binary_search_steps" else 5 if row.access == "white-box" and not row.minimal else 50
            chosen[name] = str(min(value, enough))
    return {**chosen, **special.options}


def _imports(model: Model, special: Special) -> list[str]:
    own = [
        f"from medadv import {model.decision.partition('(')[0]}",
        f"from medadv.adapters import {model.estimator}",
        "from medadv.attacks import create",
    ]
    return [*special.imports, "import numpy as np", "import torch", *sorted(own)]


def _setup(model: Model, rank: int, shape: tuple[int, ...]) -> list[str]:
    """A tiny network with references it agrees with."""
    layers = [f"torch.nn.Conv{rank}d({shape[0]}, 4, 3, padding=1)", "torch.nn.Tanh()"]
    if model.variable == "segmenter":
        layers.append(f"torch.nn.Conv{rank}d(4, {model.outputs}, 1)")
    else:
        layers += ["torch.nn.Flatten()", f"torch.nn.Linear({4 * int(np.prod(shape[1:]))}, {model.outputs})"]
    network = ["network = torch.nn.Sequential(  # yours, trained", f"    {', '.join(layers)}", ")"]
    return [
        "torch.manual_seed(0)",
        *(model.network or network),
        f"{model.variable} = {model.estimator}(network, {shape}, decision={model.decision})",
        f"x = np.random.default_rng(0).random({(2, *shape)}, dtype=np.float32)",
        f"y = {model.diagnosis.format(model.variable)}  # the reference; here what the model finds",
    ]
