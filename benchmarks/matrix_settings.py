"""How each attack is tried on the tiny models of the matrix, where a budget and a few steps are not all it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medadv.benchmarks.toys import EPS, Toy
from medadv.decisions import Multiclass
from medadv.features import fit_statistics


@dataclass(frozen=True)
class Setting:
    """How a row is tried on the tiny models.

    Attributes:
        options: parameters that make it fit for them, or that it can't do without.
        build: further parameters that are made from the model.
        unsuccessful: why it runs there without success, where that is as it should be; per kind of model or for all.
    """

    options: dict[str, Any] = field(default_factory=dict)
    build: Callable[[Toy], dict[str, Any]] = lambda case: {}
    unsuccessful: str = ""


def _label(case: Toy) -> dict[str, Any]:
    return {"label": min(1, case.estimator.decision.channels - 1)}


def _half_volume(case: Toy) -> dict[str, Any]:
    """A threshold that the diagnosis of every case is above."""
    return {"threshold_voxels": float((case.y > 0).reshape(len(case.y), -1).sum(1).min() / 2)}


def _clean_statistics(case: Toy) -> dict[str, Any]:
    """Statistics of images of every brightness for each class, where the model is one that HFC is for."""
    decision = case.estimator.decision
    if not isinstance(decision, Multiclass) or case.estimator.segments:
        return {}
    images = np.concatenate([case.x + shift for shift in np.linspace(-0.08, 0.08, 12, dtype=np.float32)])
    classes = np.arange(len(images)) % decision.num_classes
    return {"statistics": fit_statistics(case.estimator, images, classes, layers=["mean"])}


def _coarse_steps(case: Toy) -> dict[str, Any]:
    """Large quantisation steps: the images are smooth, and the mean of a block moves by half a step over its side."""
    coarse = {2: 80.0, 3: 180.0} if case.estimator.segments else {2: 120.0, 3: 300.0}
    return {"eps": coarse[case.dims]}


def _guide(case: Toy) -> dict[str, Any]:
    """An image whose features the attack imitates: brighter everywhere."""
    return {"guide": np.full_like(case.x[:1], 0.9)}


_SMALL_NORM = {"learning_rate": 0.1, "initial_const": 5.0}
_QUERIES = {"max_iter": 1, "max_eval": 20, "init_eval": 5, "init_size": 50}
_ART = {
    "FeatureAdversariesPyTorch": Setting({"max_iter": 5, "step_size": 0.04}, _guide),
    "FeatureAdversariesNumpy": Setting({"layer": -1}, _guide),
    "UniversalPerturbation": Setting({"max_iter": 2, "attacker": "fgsm"}),
    "TargetedUniversalPerturbation": Setting({"max_iter": 2, "targeted": True}),
    "CarliniL2Method": Setting({**_SMALL_NORM, "max_iter": 5, "binary_search_steps": 2}),
    "CarliniLInfMethod": Setting({**_SMALL_NORM, "max_iter": 5, "initial_const": 10.0, "decrease_factor": 0.5}),
    "CarliniL0Method": Setting({**_SMALL_NORM, "max_iter": 3, "binary_search_steps": 1}),
    "ElasticNet": Setting({**_SMALL_NORM, "max_iter": 5, "binary_search_steps": 1}),
    "DeepFool": Setting({"max_iter": 10, "epsilon": 0.02}),
    "NewtonFool": Setting({"max_iter": 20}),
    "SaliencyMapMethod": Setting({"theta": 0.5}),
    "HopSkipJump": Setting(_QUERIES),
    "BoundaryAttack": Setting({"max_iter": 2, "num_trial": 2, "sample_size": 2, "init_size": 50}),
    "SignOPTAttack": Setting({"max_iter": 1, "num_trial": 5, "k": 5, "query_limit": 200}),
    "SimBA": Setting({"max_iter": 400, "epsilon": 0.4}),
    "ZooAttack": Setting({"max_iter": 4, "learning_rate": 0.2, "initial_const": 100.0, "abort_early": False,
                          "nb_parallel": 64, "variable_h": 0.01}),
    "ShadowAttack": Setting({"nb_steps": 15, "batch_size": 2}),
}  # fmt: skip

SETTINGS: dict[str, Setting] = {
    **{f"art/{name}": setting for name, setting in _ART.items()},
    "hop-skip-jump": Setting(_QUERIES),
    "asma": Setting({"targeted": True, "tau": 1e-2, "beta": 1e-2, "max_iter": 60}),
    "deformation": Setting({"eps": 2.5, "control_points": 4, "max_iter": 20}),
    "affine": Setting({"eps": 0.5, "max_iter": 30}),
    "dag": Setting({"max_iter": 60}),
    "vafa": Setting({"eps_step": 5.0, "block": 4, "max_iter": 40}, _coarse_steps),
    "patch": Setting({"eps": 0.2, "max_iter": 20}),
    "kspace": Setting({"eps": 0.1}),
    "torchattacks/GN": Setting({"std": EPS / 2}),
    "torchattacks/PGDRS": Setting({"noise_sd": EPS}),
    "torchattacks/PGDRSL2": Setting({"noise_sd": EPS}),
    "torchattacks/OnePixel": Setting(unsuccessful="one pixel moves the mean of this model by less than its margin"),
    "one-label": Setting(build=_label),
    "label-margin": Setting(build=_label),
    "one-organ": Setting({"keep_weight": 0.0}, _label),
    "erase": Setting({}, _label, "both labels of this model share a logit, so one can't go and leave the other alone"),
    "threshold-crossed": Setting(build=_half_volume),
    "transfer": Setting(build=lambda case: {"surrogate": case.estimator}),
    "hfc": Setting({"max_iter": 20}, build=_clean_statistics),
}
