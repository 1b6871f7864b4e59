"""What a check is, as a row of a table, and what it found."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

LEVELS = ("basic", "full", "table")


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        check: its name.
        evidence: the number it looked at; NaN where it had nothing to look at.
        flag: what goes into the table, empty if all is well.
        numbers: what else was measured, by name.
        advice: what to do about it, and the adaptive attack to run; empty if all is well.
        call: that attack as a call.
        note: why it had nothing to look at, or what was seen, in words.
    """

    check: str
    evidence: float
    flag: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)
    advice: str = ""
    call: str = ""
    note: str = ""


@dataclass(frozen=True)
class Measured:
    """What a check measured, before it is judged.

    Attributes:
        evidence: larger is worse.
        numbers, note: as of :class:`Finding`.
        counts: False: too little to be judged, or nothing was looked at; the check stays silent.
    """

    evidence: float
    numbers: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    counts: bool = True


def nothing(reason: str) -> Measured:
    """A check that had nothing to look at."""
    return Measured(math.nan, note=reason, counts=False)


@dataclass(frozen=True)
class Check:
    """A row of the table of checks.

    Attributes:
        name: how findings call it.
        flag: the word in the table of a leaderboard.
        looks_at: what its evidence is, in a line.
        limit: evidence above it is flagged.
        advice: what to do then, in words.
        call: the adaptive attack to run. ``estimator`` is what was looked at, ``eps`` the budget; where the model has
            to be taken apart, ``inner`` is the part behind the defence and ``transform`` the defence.
        level: ``"basic"``: a few passes; ``"full"``: runs attacks of its own; ``"table"``: reads scores alone.
        measure: looks at a model, a :class:`~medadv.diagnostics.probe.Probe`; None where ``level`` is ``"table"``.
        form: how the evidence is written behind the flag.
    """

    name: str
    flag: str
    looks_at: str
    limit: float
    advice: str
    call: str
    level: str
    measure: Callable[[Any], Measured] | None = None
    form: str = ".2f"

    def judge(self, measured: Measured) -> Finding:
        """The finding; evidence that is not a number although something was looked at is a failure too."""
        evidence = measured.evidence
        fails = measured.counts and not evidence <= self.limit
        return Finding(
            self.name,
            evidence,
            flag=f"{self.flag}={evidence:{self.form}}" if fails else "",
            numbers=dict(measured.numbers),
            advice=self.advice if fails else "",
            call=self.call if fails else "",
            note=measured.note,
        )


def as_frame(findings: Iterable[Finding]) -> pd.DataFrame:
    """Findings as a table, a row each.

    Returns:
        Columns ``check, flag, evidence, numbers, advice, call, note``; ``numbers`` as ``name=value`` in one text.

    Example:
        >>> as_frame([Finding("monotone", 0.2, "not-monotone=+0.200")])[["check", "flag"]].values.tolist()
        [['monotone', 'not-monotone=+0.200']]
    """
    rows = [
        (f.check, f.flag, f.evidence, " ".join(f"{name}={value:.4g}" for name, value in f.numbers.items()), f.advice,
         f.call, f.note)
        for f in findings
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["check", "flag", "evidence", "numbers", "advice", "call", "note"])
