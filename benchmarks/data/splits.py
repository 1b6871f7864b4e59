"""Splits with patients apart: checked where a source published one, dealt where it did not, cut where large."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from sklearn.model_selection import GroupShuffleSplit

from medadv.benchmarks.data.base import SPLITS
from medadv.benchmarks.data.reading import Reading
from medadv.names import unknown_name

RULES = ("patient", "published")
SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}  # where nothing was published
CARVED = 0.1  # of the training patients, where no validation was published


@dataclass(frozen=True, kw_only=True)
class SplitOptions(Reading):
    """Which cases are in which split, and how their files are read (:class:`~medadv.benchmarks.data.reading.Reading`).

    Args:
        split: None: the published split, refused if a patient is on two sides of it; where none was published, as
            ``"patient"``. ``"patient"``: all cases dealt anew by the seed with every patient on one side, in the
            published proportions (else 70, 10 and 20 % of the patients). ``"published"``: the published split, with
            patients that it shares taken out of the training (and validation) cases; the notes say how many.
        max_train: keep so many training cases at most, drawn by the seed; None: all.
        max_test: keep so many validation and so many test cases at most, drawn by the seed; None: all.
    """

    split: str | None = None
    max_train: int | None = None
    max_test: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.split is not None and self.split not in RULES:
            raise unknown_name("split", self.split, RULES)
        for name in ("max_train", "max_test"):
            limit = getattr(self, name)
            if limit is not None and (not isinstance(limit, int) or limit < 1):
                raise ValueError(f"{name}={limit!r} leaves no case; give at least 1, or None for all.")


def settle(table: pd.DataFrame, given: SplitOptions, *, name: str, seed: int) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Puts every case where it belongs, before any image is read.

    Args:
        table: a row per case: ``id``, ``split`` of :data:`SPLITS` or ``""`` where none was published, ``patient`` where
            patients are known; without, every case counts as a patient.
        given: the rule and the limits.
        name: of the data set, for messages.
        seed: decides what is dealt, carved and cut.

    Returns:
        The rows that are used, with their ``split``, and notes of what was done.

    Raises:
        ValueError: patients on two sides of a published split, no published split, or too few patients for three.

    Example:
        >>> import pandas as pd
        >>> from medadv.benchmarks.data.splits import SplitOptions, settle
        >>> cases = pd.DataFrame({"id": [*"abcdef"], "patient": [*"112345"], "split": [*["train"] * 4, *["test"] * 2]})
        >>> table, notes = settle(cases, SplitOptions(), name="mine", seed=0)
        >>> sorted(table["split"].unique())
        ['test', 'train', 'validation']
        >>> cases.loc[1, "split"] = "test"
        >>> settle(cases, SplitOptions(), name="mine", seed=0)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: the published split of mine shares 1 patient between train and test (of 3 in test)...
    """
    table = table.copy()
    listed = table["split"] != ""
    notes: list[str] = []
    who = "patient" if "patient" in table else "case"
    if given.split == "published" and not listed.any():
        raise ValueError(f"{name} comes with no split of its own; give split_files, or split='patient' to deal one.")
    if given.split == "patient" or not listed.any():
        table["split"] = _dealt(table, _shares(table["split"][listed]), name, seed)
        notes.append(f"Split dealt by {who} (seed {seed}).")
    else:
        if not listed.all():
            notes.append(f"{_count(int((~listed).sum()), 'case')} in no published split left out.")
            table = table[listed]
        table, dropped = _apart(table, given.split, name)
        notes += dropped
    if not (table["split"] == "validation").any():
        train = table["split"] == "train"
        carved = _dealt(table[train], {"train": 1 - CARVED, "validation": CARVED}, name, seed)
        table.loc[train, "split"] = carved
        notes.append(f"Validation: {CARVED:.0%} of the training {who}s (seed {seed}).")
    if empty := [split for split in SPLITS if not (table["split"] == split).any()]:
        raise ValueError(f"{name} has no case in {', '.join(empty)}; every split needs at least one.")
    return _cut(table, given, seed), tuple(notes)


def shared_patients(table: pd.DataFrame) -> dict[tuple[str, str], set[str]]:
    """Patients on two sides, by pair of splits; pairs that share none are left out."""
    owners = {split: set(_owners(part)) for split, part in table.groupby("split")}
    pairs = combinations([split for split in SPLITS if split in owners], 2)
    return {pair: shared for pair in pairs if (shared := owners[pair[0]] & owners[pair[1]])}


def _owners(table: pd.DataFrame) -> pd.Series:
    return table["patient"] if "patient" in table else table["id"]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _shares(published: pd.Series) -> dict[str, float]:
    """Proportions of the published split, else the usual ones."""
    counts = published.value_counts(normalize=True)
    return {split: float(counts[split]) for split in SPLITS if split in counts} if len(counts) > 1 else SHARES


def _dealt(table: pd.DataFrame, shares: dict[str, float], name: str, seed: int) -> pd.Series:
    """Splits with every patient in one, drawn by the seed whatever the order of the rows."""
    splits = pd.Series("train", index=table.index)
    everyone = _owners(table).nunique()
    for split in [split for split in reversed(SPLITS) if split in shares and split != "train"]:
        left = table[splits == "train"]
        size = max(1, round(shares[split] * everyone))
        if _owners(left).nunique() <= size:
            raise ValueError(f"{name} has too few patients for {' and '.join(shares)}; give more cases.")
        _, rows = next(GroupShuffleSplit(1, test_size=size, random_state=seed).split(left, groups=_owners(left)))
        splits[left.index[rows]] = split
    return splits


def _apart(table: pd.DataFrame, rule: str | None, name: str) -> tuple[pd.DataFrame, list[str]]:
    """The published split without shared patients: they stay in test, then in validation."""
    shared = shared_patients(table)
    if not shared:
        return table, []
    sizes = {split: _owners(part).nunique() for split, part in table.groupby("split")}
    told = ", ".join(
        f"{_count(len(who), 'patient')} between {first} and {second} (of {sizes[second]:,} in {second})"
        for (first, second), who in shared.items()
    )
    if rule is None:
        raise ValueError(
            f"the published split of {name} shares {told}, so that remembering a patient passes for skill; give "
            "split='patient' to deal the cases anew with patients apart, or split='published' to take shared patients "
            "out of the training and validation cases."
        )
    gone = pd.Series(False, index=table.index)
    for (first, _), who in shared.items():
        gone |= (table["split"] == first) & _owners(table).isin(who)
    cases = _count(int(gone.sum()), "case")
    return table[~gone], [f"The published split shares {told}: {cases} of theirs taken out of what comes before."]


def _cut(table: pd.DataFrame, given: SplitOptions, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    kept = []
    for split in SPLITS:
        rows = np.flatnonzero((table["split"] == split).to_numpy())
        limit = given.max_train if split == "train" else given.max_test
        if limit is not None and limit < len(rows):
            rows = np.sort(rng.permutation(rows)[:limit])
        kept.append(rows)
    return table.iloc[np.concatenate(kept)]
