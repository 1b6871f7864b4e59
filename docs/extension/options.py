"""What the options of medadv's own attacks mean; tests/test_docs.py misses none of the catalogue's."""

from __future__ import annotations

from medadv.attacks import CATALOGUE, Recipe

MEANINGS = {
    "a": "weight of the term that stays with the blurred image",
    "attack": "a white-box attack in a ball, by name",
    "beta": "how much the step grows with the overlap",
    "binary_search_steps": "values of the constant that are tried",
    "block": "side of a block in voxels, at least 2",
    "control_points": "along each axis; one number, or one per axis",
    "decay": "share of the old direction in the new one",
    "direction": '`"up"` (to positive) or `"down"` (to negative); None: away from the side of the reference',
    "diversity_prob": "probability that a case is resized",
    "eps_step": "step in the unit of `eps`; None: a quarter of `eps`",
    "freq_dims": "width of a band of frequencies as a share of each axis; the lowest band comes first",
    "gamma": 'largest change of a step, a budget such as `"1/255"`; None: 0.5/255 of the range',
    "goal": '`"add"` or `"remove"` the label',
    "initial_const": "weight of the margin that is tried first",
    "interpolation": '`"bspline"` or `"linear"`',
    "kappa": "margin in logits that counts as adversarial",
    "keep_weight": "weight of leaving the others alone; 0: they may change",
    "label": "number of the class or label; None where there is only one",
    "lam": "weight of the constraint on the activations",
    "layers": "names of submodules whose activations are watched",
    "learning_rate": "of Adam, in the variable that keeps the range",
    "lines": '`"all"`, the share of lines to draw per case, or one bool per line',
    "location": '`"random"`, `"center"`, or the index of the first voxel along each axis',
    "max_iter": "steps, of each start where there are several",
    "min_voxels": "smaller components do not count as lesions",
    "n_target_classes": "other classes that are looked at, the likeliest first",
    "num_random_init": "starts; 0: one, from the image itself",
    "objective": "name of an objective, an objective, or any MONAI or torch loss",
    "p_init": "share of the voxels in the first windows",
    "reconstruction": '`"magnitude"`, `"real"` or `"auto"`',
    "resize_rate": "smallest share of the sides that an image is shrunk to",
    "rotation": "greatest angle in degrees",
    "scale": "greatest relative change of size along an axis",
    "score_patch": "True: voxels below the patch count",
    "settings": "a mapping of that attack's own options",
    "shear": "greatest shear, as the tangent of the angle",
    "sigma": "width of the blur in voxels; one number, or one per axis",
    "spacing": "length of a voxel along each axis, in mm; needed for what is stated in mm or ml",
    "ssim_weight": "weight of the structural similarity to the clean image",
    "statistics": "of clean images, from `medadv.features.fit_statistics`; or call `attack.fit(x, y)`",
    "surrogate": "an estimator of the attacker's own, for the same images and decision",
    "tau": "part of the step that does not depend on the overlap",
    "threshold": "share of the valid voxels that must be as the attacker wants",
    "threshold_ml": "volume in ml at which the decision flips, with `spacing`",
    "threshold_voxels": "volume in voxels at which the decision flips",
    "translation": "greatest shift as a share of the side, per axis",
}

# where an option means something else for one attack
OWN = {
    ("affine", "spacing"): "length of a voxel along each axis; None: all axes alike",
    ("alma-prox", "learning_rate"): "size of a voxel's first steps as a share of the range; None: 0.5 / `max_iter`",
    ("cw", "max_iter"): "steps for each value of the constant",
    ("hfc", "eps_step"): "step in the unit of `eps`; None: twice `eps` over `max_iter`",
    ("simba-dct", "max_iter"): "queries per case and start",
    ("simba-dct-dice", "max_iter"): "queries per case and start",
    ("square", "max_iter"): "queries per case and start",
    ("square-dice", "max_iter"): "queries per case and start",
    ("universal", "max_iter"): "epochs over the cases",
    ("volume-down", "label"): "number of the class or label; None: all foreground together",
    ("volume-up", "label"): "number of the class or label; None: all foreground together",
    ("threshold-crossed", "label"): "number of the class or label; None: all foreground together",
    ("lesion-missed", "label"): "number of the class or label; None: all foreground together",
    ("lesion-invented", "label"): "number of the class or label; None: all foreground together",
}


def meaning_of(row: Recipe, option: str) -> str | None:
    """What an option of an attack means; None where that is said elsewhere, as for the attacks of other libraries."""
    if row.name not in CATALOGUE:
        return None
    return OWN.get((row.name, option)) or MEANINGS.get(option)
