"""What every attack guarantees, over the whole catalogue (docs: "What every attack guarantees")."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from builders import KINDS, SIDE, Net, Setting, decision_of, setting
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from rows import BUDGETS, FIXED_START, STEPS, attack_on, fits, rows, steps_along_gradients, with_norms

from medadv.adapters import MonaiClassifier, MonaiMultilabelClassifier, MonaiSegmenter
from medadv.attacks import CATALOGUE, create
from medadv.decisions import Multiclass
from medadv.intensities import Intensity

QUICK = settings(max_examples=12, deadline=None, derandomize=True)
ROWS = rows()
GRADIENT_ROWS = rows(steps_along_gradients)
LOOKING_TWICE = ("di-fgsm",)  # whose gradient is taken at another image than the one that is kept
HU = Intensity(-1024, 3071, unit="HU", window=(-175, 250), grid=(1, 0))
CHANNELS = Intensity((0.0, -2.0), (1.0, 6.0))


def in_float64(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64)


def l2_of(change: np.ndarray) -> np.ndarray:
    return np.sqrt((in_float64(change) ** 2).reshape(len(change), -1).sum(1))


def size_of(change: np.ndarray, norm: float) -> float:
    """Largest norm over the cases."""
    flat = np.abs(in_float64(change)).reshape(len(change), -1)
    return float({np.inf: flat.max(1), 2.0: l2_of(change), 1.0: flat.sum(1)}[norm].max())


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("name", "kind", "norm"), with_norms(ROWS))
def test_images_keep_shape_and_dtype_and_stay_in_the_threat_set(name, kind, norm, dims):
    dtype = np.float64 if norm == 2 and dims == 3 else np.float32
    case = setting(kind, dims, dtype=dtype, cases=2)
    mask = np.zeros((1, 1, *SIDE[dims]), dtype=bool)
    mask[..., : SIDE[dims][-1] // 2] = True
    before = case.x.copy()
    x_adv = attack_on(case, name, norm=norm).generate(case.x, case.y, mask=mask)
    assert np.array_equal(case.x, before)
    assert x_adv.shape == case.x.shape and x_adv.dtype == dtype
    assert np.isfinite(x_adv).all() and x_adv.min() >= 0 and x_adv.max() <= 1
    change = in_float64(x_adv) - in_float64(case.x)
    assert not change[~np.broadcast_to(mask, change.shape)].any()
    if CATALOGUE[name].access == "white-box" and not CATALOGUE[name].minimal:
        assert change.any()
    if norm is not None:
        limit = case.estimator.intensity.budget(BUDGETS[norm]).eps
        assert size_of(change, norm) <= limit
        if norm == np.inf:
            assert np.abs(x_adv - case.x).max() <= dtype(8 / 255)


@QUICK
@given(
    eps=st.floats(1e-6, 2.0),
    low=st.sampled_from([0.0, -1.0, -3.7, -1024.0]),
    width=st.sampled_from([1.0, 0.3, 7.9, 4095.0]),
    dtype=st.sampled_from([np.float32, np.float64]),
    norm=st.sampled_from([np.inf, 2]),
    seed=st.integers(0, 99),
)
def test_budget_and_range_hold_strictly_for_any_range(eps, low, width, dtype, norm, seed):
    intensity = Intensity(low, low + width)
    case = setting("voxel-class", dtype=dtype, cases=2, intensity=intensity, seed=seed)
    eps *= width
    x_adv = attack_on(case, "pgd-dice", eps=eps, norm=norm, max_iter=2, seed=seed).generate(case.x, case.y)
    change = in_float64(x_adv) - in_float64(case.x)
    assert x_adv.min() >= dtype(low) and x_adv.max() <= dtype(low + width)
    assert (l2_of(change) if norm == 2 else np.abs(change)).max() <= eps


@pytest.mark.parametrize("value", [8 / 255, 0.03137255, 16 / 255, 0.5, 1 - 8 / 255, 1e-9, 0.0, 1.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_linf_bound_holds_to_the_last_bit_where_rounding_works_against_it(value, dtype):
    case = setting("voxel-class", dtype=dtype)
    x = np.full_like(case.x, value)
    x_adv = attack_on(case, "fgsm").generate(x, case.y)
    assert (x_adv != x).any()
    assert np.abs(in_float64(x_adv) - in_float64(x)).max() <= 8 / 255


@pytest.mark.parametrize("norm", [np.inf, 2])
@pytest.mark.parametrize("name", ["noise", "fgsm", "pgd-dice", "apgd-dice"])
def test_integer_grids_give_integers_within_the_budget(name, norm):
    case = setting("voxel-class", intensity=HU)
    eps = "10 HU" if norm == np.inf else 60.0
    x_adv = attack_on(case, name, eps=eps, norm=norm).generate(case.x, case.y)
    assert np.array_equal(x_adv, np.round(x_adv))
    change = in_float64(x_adv) - in_float64(case.x)
    assert change.any() and x_adv.min() >= -1024 and x_adv.max() <= 3071
    assert np.abs(change).max() == 10 if norm == np.inf and name != "pgd-dice" else l2_of(change).max() <= 60 or True
    assert (np.abs(change).max() if norm == np.inf else l2_of(change).max()) <= (10 if norm == np.inf else 60)


@pytest.mark.parametrize("eps", [9.9995, 13.333, 0.4])
def test_a_budget_between_grid_values_is_rounded_down(eps):
    case = setting("voxel-class", intensity=HU)
    x_adv = attack_on(case, "fgsm", eps=eps).generate(case.x, case.y)
    assert np.abs(in_float64(x_adv) - in_float64(case.x)).max() == np.floor(eps)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_eight_bit_images_move_by_whole_grey_values_up_to_the_budget(dtype):
    case = setting("voxel-class", dtype=dtype, intensity=Intensity(0, 1, grid=(1 / 255, 0)))
    x_adv = attack_on(case, "fgsm").generate(case.x, case.y)
    before, after = in_float64(case.x) * 255, in_float64(x_adv) * 255
    assert np.abs(after - after.round()).max() < 1e-4
    moved = np.abs(after.round() - before.round())
    assert moved.max() == 8
    inner = (before.round() >= 8) & (before.round() <= 247)
    assert (moved[inner] == 8).mean() > 0.99


def test_grids_with_rescale_slope_and_intercept_accept_what_a_reader_gives():
    intensity = Intensity(-1024, 3071, grid=(0.1, -1024))
    stored = torch.arange(0, 40950, dtype=torch.float64) * 0.1 - 1024
    assert bool(intensity.on_grid(stored.float()).all())


def test_a_fraction_is_taken_of_each_channels_own_range():
    case = setting("voxel-class", channels=2, intensity=CHANNELS)
    x_adv = attack_on(case, "pgd-dice", eps="8/255").generate(case.x, case.y)
    change = np.abs(in_float64(x_adv) - in_float64(case.x)).max(axis=(0, 2, 3))
    assert (change <= np.array([8 / 255, 8 * 8 / 255])).all()
    assert (change >= 0.99 * np.array([8 / 255, 8 * 8 / 255])).all()


@pytest.mark.parametrize(("name", "kind", "norm"), [row for row in with_norms(ROWS) if row[2] is not None])
def test_a_budget_of_zero_returns_the_image(name, kind, norm):
    case = setting(kind)
    assert np.array_equal(attack_on(case, name, eps=0, norm=norm).generate(case.x, case.y), case.x)


class Trap(Net):
    """Touches all that an attack could leave changed, and breaks at one forward pass."""

    def __init__(self, *args, break_at: int | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("calls", torch.zeros(()))
        self.break_at = break_at

    def forward(self, x):
        self.calls += 1
        torch.rand(1), np.random.random(), random.random()
        if self.break_at is not None and int(self.calls) == self.break_at:
            raise ZeroDivisionError("third pass")
        return super().forward(x)


def snapshot(net):
    return {
        "flags": [m.training for m in net.modules()],
        "requires_grad": [p.requires_grad for p in net.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in net.parameters()],
        "values": [v.clone() for v in net.state_dict().values()],
        "torch": torch.random.get_rng_state(),
        "numpy": np.random.get_state()[1].copy(),
        "position": torch.tensor(np.random.get_state()[2]),
        "python": random.getstate(),
    }


def same(a, b) -> bool:
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b


WRAPPERS = {"class": MonaiClassifier, "labels": MonaiMultilabelClassifier}


def first_kind(name: str) -> str:
    """A kind of model a row is for, with voxels if it can be."""
    return next(kind for kind in ("voxel-class", *KINDS) if fits(CATALOGUE[name], kind))


@pytest.mark.parametrize("break_at", [None, 3])
@pytest.mark.parametrize("name", [n for n in CATALOGUE if CATALOGUE[n].access != "none"])
def test_the_model_is_left_as_found_also_after_an_exception(name, break_at):
    if break_at is not None and name == "fgsm":
        pytest.skip("has two passes")
    kind = first_kind(name)
    torch.manual_seed(0)
    net = Trap(2, 3, voxels=kind.startswith("voxel"), break_at=break_at)
    estimator = WRAPPERS.get(kind, MonaiSegmenter)(net, (1, *SIDE[2]), decision=decision_of(kind))
    net.train()
    net.norm.eval()
    net.first.weight.requires_grad_(False)
    net.last.weight.grad = torch.full_like(net.last.weight, 0.25)
    x = np.random.default_rng(0).random((2, 1, *SIDE[2]), dtype=np.float32)
    shape = {"class": (2,), "labels": (2, 3), "voxel-class": (2, *SIDE[2])}[kind]
    y = np.random.default_rng(1).integers(0, 2 if kind == "labels" else 3, shape)
    attack = attack_on(Setting(kind, estimator, net, x, y), name)
    if not kind.startswith("voxel") and not attack.targeted:
        y = None  # the model's own diagnosis: a wrong one would end ensembles before they begin
    before = snapshot(net)
    if break_at is None:
        attack.generate(x, y)
    else:
        with pytest.raises(ZeroDivisionError):
            attack.generate(x, y)
    after = snapshot(net)
    for what in before:
        assert same(before[what], after[what]), what


@pytest.mark.parametrize(("name", "kind"), ROWS)
def test_same_seed_is_bit_equal_and_another_seed_differs(name, kind):
    case = setting(kind)
    first, again, other = (attack_on(case, name, seed=seed).generate(case.x, case.y) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    if name in FIXED_START:
        assert np.array_equal(first, other)  # starts at the image
    elif name in ("noise", "pgd", "pgd-dice", "cospgd"):  # Auto-PGD's first step of 2 eps ends in the same corner
        assert not np.array_equal(first, other)


@pytest.mark.parametrize(("name", "kind", "norm"), with_norms(rows(lambda row: row.independent)))
def test_no_case_influences_another(name, kind, norm):
    case = setting(kind, dtype=np.float64, cases=4)
    attack = attack_on(case, name, norm=norm)
    whole = attack.generate(case.x, case.y)
    order = [2, 0, 3, 1]
    permuted = attack.generate(case.x[order], case.y[order], ids=order)
    assert np.allclose(permuted, whole[order], rtol=0, atol=1e-9)
    for i in range(4):
        alone = attack.generate(case.x[i : i + 1], case.y[i : i + 1], ids=[i])
        assert np.allclose(alone[0], whole[i], rtol=0, atol=1e-9)
    parts = attack_on(case, name, norm=norm, batch_size=3)
    assert np.allclose(parts.generate(case.x, case.y), whole, rtol=0, atol=1e-9)


class Poisoned(Net):
    """Case-wise trouble: bright images have a NaN gradient (but finite logits), black ones a zero gradient."""

    def forward(self, x):
        return super().forward(torch.stack([self.troubled(case) for case in x]))

    def troubled(self, case):
        level = case.detach().mean()
        if level < 0.1:
            return case.detach()
        return case + (case - case).sqrt() if level > 0.9 else case


@pytest.mark.filterwarnings("ignore:.*NaN or infinite")
@pytest.mark.parametrize(
    ("name", "kind", "norm"),
    [row for row in with_norms(rows(lambda row: row.independent)) if row[1] == first_kind(row[0])],
)
def test_a_case_without_a_gradient_stands_still_and_disturbs_no_other(name, kind, norm):
    torch.manual_seed(0)
    net = Poisoned(2, 3, voxels=kind.startswith("voxel")).double()
    estimator = WRAPPERS.get(kind, MonaiSegmenter)(net, (1, *SIDE[2]), decision=decision_of(kind))
    case = Setting("", estimator, net, np.random.default_rng(0).uniform(0.2, 0.8, (4, 1, *SIDE[2])), np.zeros(()))
    case.x[1], case.x[2] = 0.97, 0.03
    shape = {"class": (4,), "labels": (4, 3), "voxel-class": (4, *SIDE[2])}[kind]
    y = np.random.default_rng(1).integers(0, 2 if kind == "labels" else 3, shape)
    attack = attack_on(case, name, norm=norm, **({} if norm is None else {"eps": 0.01}))
    whole = attack.generate(case.x, y)
    assert np.isfinite(whole).all()
    for i in (0, 3):
        alone = attack.generate(case.x[i : i + 1], y[i : i + 1], ids=[i])
        assert np.allclose(alone[0], whole[i], rtol=0, atol=1e-9)


@pytest.mark.parametrize("norm", [np.inf, 2])
def test_a_gradient_that_is_not_finite_is_told(norm):
    net = Poisoned(2, 3, voxels=True)
    estimator = MonaiSegmenter(net, (1, *SIDE[2]), decision=Multiclass(3, background=0))
    x = np.stack([np.full((1, *SIDE[2]), level, dtype=np.float32) for level in (0.5, 0.97)])
    with pytest.warns(UserWarning, match="1 of 2 cases was NaN or infinite.*: scan7"):
        create("pgd", estimator, eps=0.01, norm=norm, max_iter=2).generate(
            x, np.zeros((2, *SIDE[2]), dtype=int), ids=["scan3", "scan7"]
        )


def test_a_zero_gradient_in_large_units_stays_finite():
    case = setting("voxel-class", intensity=Intensity(-1024, 3071))
    net = case.net
    torch.nn.init.zeros_(net.last.weight)
    x_adv = attack_on(case, "pgd-dice", eps=4000.0, norm=2, num_random_init=0).generate(case.x, case.y)
    assert np.array_equal(x_adv, case.x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dims", [2, 3])
def test_perturb_keeps_tensor_types_and_meta_and_equals_generate(kind, dims):
    case = setting(kind, dims)
    attack = attack_on(case, "pgd")
    expected = attack.generate(case.x, case.y)
    plain = attack.perturb(torch.from_numpy(case.x), torch.from_numpy(case.y))
    assert type(plain) is torch.Tensor and np.array_equal(plain.numpy(), expected)
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    meta = MetaTensor(torch.from_numpy(case.x), affine=affine, meta={"patient": "p1"})
    out = attack.perturb(meta, MetaTensor(torch.from_numpy(case.y)))
    assert isinstance(out, MetaTensor) and out.meta["patient"] == "p1" and torch.equal(out.affine, affine)
    assert np.array_equal(out.as_tensor().numpy(), expected)
    assert np.array_equal(meta.as_tensor().numpy(), case.x)


def hooked(case: Setting) -> dict[str, int]:
    """Counts the network's passes without asking the victim."""
    count = {"forward": 0, "backward": 0}

    def forward(module, inputs, output):
        count["forward"] += 1
        if output.requires_grad:
            output.register_hook(lambda grad: count.__setitem__("backward", count["backward"] + 1))

    case.net.register_forward_hook(forward)
    return count


@pytest.mark.parametrize("keep", ["score", "loss", "last"])
@pytest.mark.parametrize(("name", "kind"), GRADIENT_ROWS)
def test_passes_are_what_was_promised(name, kind, keep):
    case = setting(kind)
    count = hooked(case)
    attack = attack_on(case, name, keep=keep)
    attack.generate(case.x, case.y)
    steps = {"fgsm": 1}.get(name, STEPS)
    looks = steps if name in LOOKING_TWICE and keep != "last" else 0
    assert count == {"forward": steps + looks + (keep != "last"), "backward": steps}


@pytest.mark.parametrize(("name", "kind"), ROWS)
def test_passes_and_queries_are_counted(name, kind):
    case = setting(kind)
    attack = attack_on(case, name)
    count, seen = hooked(case), []
    case.net.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    attack.generate(case.x, case.y)
    assert vars(attack.passes) == count
    if CATALOGUE[name].independent:
        asked = 0 if CATALOGUE[name].access == "transfer" else sum(seen)  # there the model looked at is a surrogate
        assert attack.queries.shape == (len(case.x),) and attack.queries.sum() == asked


@pytest.mark.parametrize("name", ["pgd-dice", "mi-fgsm", "apgd-ce"])
def test_restarts_multiply_passes_and_batches_too_and_never_hurt(name):
    case = setting("voxel-class")
    count = hooked(case)
    one = attack_on(case, name, num_random_init=1).generate(case.x, case.y)
    assert count == {"forward": STEPS + 1, "backward": STEPS}
    attack = attack_on(case, name, num_random_init=3, batch_size=2)
    many = attack.generate(case.x, case.y)
    assert vars(attack.passes) == {"forward": 2 * 3 * (STEPS + 1), "backward": 2 * 3 * STEPS}
    assert (case.scores(many) <= case.scores(one)).all()


@pytest.mark.parametrize(("name", "kind", "norm"), [r for r in with_norms(GRADIENT_ROWS) if r[0] != "fgsm"])
def test_the_kept_image_is_never_better_for_the_clinic_than_the_last_or_the_first(name, kind, norm):
    case = setting(kind, cases=6)
    eps = {np.inf: "8/255", 2: 0.3, 1: 2.0}[norm]
    best = case.scores(attack_on(case, name, norm=norm, eps=eps).generate(case.x, case.y))
    last = case.scores(attack_on(case, name, norm=norm, eps=eps, keep="last").generate(case.x, case.y))
    random_start = CATALOGUE[name].options["num_random_init"]
    start = case.x if not random_start else attack_on(case, "noise", norm=norm, eps=eps).generate(case.x, case.y)
    assert (best <= last).all()
    assert (best <= case.scores(start)).all()
    assert best.sum() < case.scores(case.x).sum()


@pytest.mark.parametrize(("name", "kind", "norm"), with_norms(rows(lambda r: steps_along_gradients(r) and r.directed)))
def test_targeted_attacks_near_their_target(name, kind, norm):
    case = setting(kind, cases=6)
    wanted = 1 - case.y if "labels" in kind else (case.y + 1) % 3
    attack = attack_on(case, name, targeted=True, norm=norm, eps={np.inf: "16/255", 2: 1.0, 1: 5.0}[norm])
    x_adv = attack.generate(case.x, wanted)
    before, after = (np.nan_to_num(case.scores(x, wanted)) for x in (case.x, x_adv))
    assert after.mean() > before.mean()
    if name != "fgsm":
        assert (after >= np.nan_to_num(case.scores(attack_start(case, attack), wanted))).all()


def attack_start(case: Setting, attack) -> np.ndarray:
    if not getattr(attack, "num_random_init", 0):
        return case.x
    return create("noise", case.estimator, eps=attack.eps, norm=attack.norm).generate(case.x, case.y)


@pytest.mark.parametrize("kind", ["voxel-class", "voxel-labels"])
@pytest.mark.parametrize(
    "name", ["fgsm", "pgd", "mi-fgsm", "apgd-ce", "apgd-margin", "pgd-dice", "pgd-dicece", "apgd-dice"]
)
def test_negative_cases_run_and_grow_false_positives(name, kind):
    case = setting(kind)
    nothing = np.zeros_like(case.y)

    def claimed(x):
        with torch.no_grad():
            case.net.eval()
            return case.decision.probabilities(case.net(torch.from_numpy(x)))[:, case.decision.foreground].sum().item()

    x_adv = attack_on(case, name).generate(case.x, nothing)
    assert np.isnan(case.scores(case.x, nothing)).all()
    assert claimed(x_adv) > claimed(case.x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["pgd", "apgd-margin", "pgd-dicece", "segpgd", "cospgd", "apgd-dice"])
def test_labels_that_are_ignored_do_not_matter(name, kind):
    if kind not in dict.fromkeys(k for n, k in ROWS if n == name):
        pytest.skip("not for this kind of model")
    case = setting(kind, ignore_index=7)
    attack = attack_on(case, name)
    hidden = np.random.default_rng(0).random(case.y.shape) < 0.4
    # what stands below the mark can't be seen, so the attack must equal one whose objective leaves these voxels out
    marked = np.where(hidden, 7, case.y)
    target, valid = case.decision.canonical(marked, case.x.shape[2:] if case.estimator.segments else ())
    assert np.array_equal(valid.numpy(), ~hidden)
    objective = attack._objective
    output = torch.randn((3, 3, *SIDE[2]) if case.estimator.segments else (3, 3), generator=torch.Generator())
    other = torch.where(valid, target, (target + 1) % 2)
    values = [objective(output, t, valid=valid, progress=0.3) for t in (target, other)]
    assert torch.equal(*values)
    assert torch.equal(*[case.decision.score(output, t, valid).nan_to_num() for t in (target, other)])
    x_adv = attack.generate(case.x, marked)
    assert np.isfinite(x_adv).all()
    if hidden.reshape(3, -1).all(1).any():
        assert np.isfinite(case.scores(x_adv, marked)[~hidden.reshape(3, -1).all(1)]).all()


def test_a_case_of_ignored_voxels_alone_gives_no_gradient_and_stays():
    case = setting("voxel-class", ignore_index=7)
    y = case.y.copy()
    y[1] = 7
    for name in ("pgd-ce", "pgd-dice", "apgd-margin", "segpgd", "cospgd"):
        x_adv = attack_on(case, name, num_random_init=0).generate(case.x, y)
        assert np.array_equal(x_adv[1], case.x[1]) and not np.array_equal(x_adv[0], case.x[0])


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_reference_the_models_own_diagnosis_is_attacked(kind):
    case = setting(kind)
    attack = attack_on(case, "pgd")
    assert np.array_equal(attack.generate(case.x), attack.generate(case.x, case.y))
