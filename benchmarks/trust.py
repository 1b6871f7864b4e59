"""Can the rows of a leaderboard be trusted? Checks of scores, and all flags put into the rows they are about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from medadv.benchmarks.corruptions import PREFIX
from medadv.benchmarks.evaluate import NO_ATTACK, WORST_CASE
from medadv.diagnostics import Finding, as_frame, knows_less, monotone

# the rows a finding is about: those in which all of these are equal; empty: all of the model
SCOPE = ["attack", "threat", "region", "eps"]
MODEL = ["suite", "dataset", "task", "model", "training", "train_seed"]


def findings_of(frame: pd.DataFrame, model_findings: Sequence[Finding]) -> pd.DataFrame:
    """All findings on one model: those given, and those on the scores of its rows.

    Args:
        frame: rows of one model, see :data:`~medadv.benchmarks.leaderboard_rows.COLUMNS`.
        model_findings: of the checks that look at the model itself.

    Returns:
        Columns of :data:`MODEL` and :data:`SCOPE`, then those of :func:`~medadv.diagnostics.finding.as_frame`. A scope
        without a value covers all rows.
    """
    parts = [_scoped(model_findings)]
    clean = frame[frame.attack == NO_ATTACK]
    # what is meant to be worse and is not tells of the attack; noise and corruptions are no attacks, and what was
    # carried from smaller budgets or earlier attacks can't be better
    searched = ~frame.attack.isin([NO_ATTACK, "noise"]) & ~frame.threat.str.startswith(PREFIX)
    attacks = frame[searched & is_own(frame)]
    for (attack, threat, region), rows in attacks.groupby(["attack", "threat", "region"], sort=False):
        curve = pd.concat([clean, rows])
        found = monotone(curve.eps.to_list(), curve.adversarial.to_list())
        parts.append(_scoped([found], attack=attack, threat=threat, region=region))
    single = attacks[(attacks.attack != WORST_CASE) & ~attacks.targeted.astype(bool)]
    for (threat, region, eps), rows in single.groupby(["threat", "region", "eps"], sort=False):
        told = [finding for finding in knows_less(rows.to_dict("records")) if pd.notna(finding.evidence)]
        parts.append(_scoped(told, threat=threat, region=region, eps=eps))
    table = pd.concat([part for part in parts if len(part)], ignore_index=True) if any(map(len, parts)) else parts[0]
    key = {name: frame[name].iloc[0] for name in MODEL}
    return table.assign(**key)[[*key, *table.columns]]


def is_own(frame: pd.DataFrame) -> pd.Series:
    """Which rows of a leaderboard say what their attack alone did to every case, ``bool`` per row.

    Others, of suites with ``rows: worst-case``, hold the score after their attack, all before it and smaller budgets.

    Example:
        >>> is_own(pd.DataFrame({"reused": ["", "replayed", "shared=square", "carried=2;earlier=1"]})).tolist()
        [True, True, True, False]
    """
    reused = frame.get("reused", pd.Series("", frame.index))
    return ~reused.fillna("").astype(str).str.contains("carried|earlier")


def _scoped(findings: Iterable[Finding], **scope: Any) -> pd.DataFrame:
    table = as_frame(findings)
    columns = list(table.columns)
    covered: dict[str, Any] = {name: scope.get(name) for name in SCOPE}
    return table.assign(**covered)[[*SCOPE, *columns]].astype({"eps": float})


def flagged(frame: pd.DataFrame, found: pd.DataFrame, flags: Sequence[str]) -> pd.DataFrame:
    """Rows of one model with their flags: their own, those of findings whose scope they are in, and ``flags``."""
    frame = frame.copy()
    failed = found[found["flag"] != ""]
    narrow = failed[SCOPE].notna().any(axis=1)
    for _, finding in failed[narrow].iterrows():
        inside = pd.Series(True, index=frame.index)
        for name in SCOPE:
            inside &= pd.isna(finding[name]) | (frame[name] == finding[name])
        frame.loc[inside, "flags"] = [joined(flag, finding["flag"]) for flag in frame.loc[inside, "flags"]]
    everywhere = [*flags, *failed.loc[~narrow, "flag"]]
    frame["flags"] = [joined(flag, *everywhere) for flag in frame["flags"]]
    return frame


def joined(*flags: str) -> str:
    """Flags as one text."""
    return ";".join(flag for flag in flags if flag)
