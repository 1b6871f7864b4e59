"""Provenance of merged leaderboards: what the sources agree in, where they differ, and all of each of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from medadv.benchmarks.leaderboard_rows import SCHEMA_VERSION
from medadv.benchmarks.sources import Source

_DATA = ("data",)
_LABELLED = ("weights", "training", "defences")


def differences(sources: Sequence[Source]) -> list[str]:
    """A sentence for each difference between sources that may change numbers or seconds, and for what is unknown."""
    notes = [
        f"{source.name!r} is a leaderboard alone: its versions, hardware, hashes and scores per case are not known."
        for source in sources
        if not source.board.meta
    ]
    known = [(source.name, source.board.meta) for source in sources if source.board.meta]
    facts: dict[str, dict[str, str]] = {}
    for name, meta in known:
        for library, version in meta.get("versions", {}).items():
            facts.setdefault(library, {})[name] = str(version)
        hardware = meta.get("hardware", {})
        facts.setdefault("processor", {})[name] = str(hardware.get("processor"))
        facts.setdefault("GPUs", {})[name] = ", ".join(hardware.get("gpus", ())) or "none"
        facts.setdefault("threads", {})[name] = str(meta.get("threads"))
        facts.setdefault("revision", {})[name] = str(meta.get("git_revision"))
    for fact, values in facts.items():
        if len(set(values.values())) > 1 or len(values) < len(known):
            shown = "; ".join(f"{values.get(name, 'not told')} in {name!r}" for name, _ in known)
            notes.append(f"{fact} differs: {shown}.")
    return notes + _other_weights(known)


def _other_weights(known: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    notes: list[str] = []
    first: dict[str, tuple[str, str]] = {}
    for name, meta in known:
        for label, digest in meta.get("weights", {}).items():
            earlier, same = first.setdefault(label, (name, digest))
            if same != digest:
                notes.append(f"weights of {label!r} differ: {same[:8]} in {earlier!r}, {digest[:8]} in {name!r}.")
    return notes


def merged_meta(sources: Sequence[Source], notes: Sequence[str], keep: str | None) -> dict[str, Any]:
    """One provenance of all sources, in the shape of a run's; ``merged`` holds each of them whole."""
    metas = [source.board.meta for source in sources if source.board.meta]
    names = list(dict.fromkeys(library for meta in metas for library in meta.get("versions", {})))
    suites = list(dict.fromkeys(meta.get("suite", {}).get("name", "") for meta in metas))
    tasks = {
        json.dumps(task, sort_keys=True): task for meta in metas for task in meta.get("suite", {}).get("tasks", ())
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "merged": [
            part
            for source in sources
            for part in source.board.meta.get("merged", [])
            or [{"name": source.name, "rows": len(source.board.frame), "meta": source.board.meta}]
        ],
        "notes": list(notes),
        "keep": keep,
        "versions": {
            name: _all(meta.get("versions", {}).get(name, "not told") for meta in metas) for name in names
        },
        "threads": _all(meta.get("threads") for meta in metas),
        "hardware": {
            "processor": _all(meta.get("hardware", {}).get("processor") for meta in metas),
            "gpus": list(dict.fromkeys(gpu for meta in metas for gpu in meta.get("hardware", {}).get("gpus", ()))),
        },
        "git_revision": _all(meta.get("git_revision") for meta in metas),
        "git_dirty": any(meta.get("git_dirty") for meta in metas),
        "suite": {
            "name": " + ".join(filter(None, suites)) or "merged",
            "description": f"Merged from {', '.join(source.name for source in sources)}.",
            "tasks": list(tasks.values()),
        },
        **{part: _union(meta.get(part, {}) for meta in metas) for part in (*_DATA, *_LABELLED)},
    }  # fmt: skip


def renamed_meta(meta: Mapping[str, Any], labels: Mapping[str, str], tasks: Mapping[str, str]) -> dict[str, Any]:
    """Provenance in which networks and tasks have other names."""
    changed = dict(meta)
    for part, names in (*((part, labels) for part in _LABELLED), *((part, tasks) for part in _DATA)):
        changed[part] = {names.get(key, key): value for key, value in meta.get(part, {}).items()}
    suite = dict(meta.get("suite", {}))
    if tasks and "tasks" in suite:
        suite["tasks"] = [{**task, "name": tasks.get(task["name"], task["name"])} for task in suite["tasks"]]
        changed["suite"] = suite
    return changed


def meta_without(meta: Mapping[str, Any], labels: set[str], tasks: set[str]) -> dict[str, Any]:
    """Provenance without some networks and tasks."""
    changed = dict(meta)
    for part, gone in (*((part, labels) for part in _LABELLED), *((part, tasks) for part in _DATA)):
        changed[part] = {key: value for key, value in meta.get(part, {}).items() if key not in gone}
    return changed


def _all(values: Any) -> str:
    """What all agree in, or each of what there is."""
    return " / ".join(dict.fromkeys("not known" if value is None else str(value) for value in values)) or "not known"


def _union(parts: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            found.setdefault(key, value)
    return found
