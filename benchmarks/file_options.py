"""What ``medadv attack`` is told on the command line: the model and the cases."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from medadv.adapters.bundles import from_bundle
from medadv.adapters.deployments import Deployment
from medadv.adapters.network_files import from_network_file
from medadv.benchmarks.file_cases import FileCase, cases_of_datalist, cases_of_files


def deployment_given(given: argparse.Namespace) -> Deployment:
    """The model of ``--bundle``, or of ``--network`` and ``--checkpoint``.

    Raises:
        ValueError: options that don't belong together, or a model that can't be read.
    """
    if given.bundle is not None:
        alone = [name for name in ("decision", "window", "unit") if getattr(given, name) is not None]
        if alone:
            raise ValueError(
                f"--{alone[0]} is for --network; a bundle says itself, and from_bundle(...) takes overrides."
            )
        return from_bundle(given.bundle, trust=given.trust, weights=given.checkpoint)
    if given.checkpoint is None:
        raise ValueError("--network needs --checkpoint, the file of its weights; give both.")
    return from_network_file(
        given.network, given.checkpoint, trust=given.trust, activation=given.decision, window=given.window,
        unit=given.unit or "",
    )  # fmt: skip


def cases_given(given: argparse.Namespace, deployment: Deployment) -> list[FileCase]:
    """The cases of ``--image`` or ``--datalist``.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: files that make no case.
    """
    if given.datalist is not None:
        alone = [name for name in ("label", "extra", "region") if getattr(given, name)]
        if alone:
            raise ValueError(f"--{alone[0]} is for --image; cases of a datalist name their own files.")
        return cases_of_datalist(given.datalist, given.section, deployment.extra_keys)
    extras = {key: Path(file) for key, file in _pairs("--extra", given.extra)}
    return cases_of_files(given.image, _label(given.label, deployment), extras, given.region)


def _label(text: str | None, deployment: Deployment) -> Any:
    """A file of a segmenter; numbers or names of an image-level diagnosis."""
    if text is None or deployment.segments:
        return None if text is None else Path(text)
    words = [word.strip() for word in text.split(",")]
    numbers = [deployment.names.index(word) if word in deployment.names else word for word in words]
    if not all(isinstance(number, int) or number.isdigit() for number in numbers):
        raise ValueError(f"--label {text!r} is no diagnosis; give one of {', '.join(deployment.names)}, or its number.")
    found = [int(number) for number in numbers]
    if len(found) == 1 and (deployment.decision.exclusive or deployment.decision.channels == 1):
        return found[0]
    return found


def named_values(option: str, texts: Sequence[str]) -> dict[str, Any]:
    """``NAME=VALUE`` texts as names and numbers, truth values or words."""
    return {name: yaml.safe_load(value) for name, value in _pairs(option, texts)}


def _pairs(option: str, texts: Sequence[str]) -> list[tuple[str, str]]:
    for text in texts:
        if "=" not in text:
            raise ValueError(f"{option} {text!r} has no =; write it like {option} name=value.")
    return [(name, value) for name, _, value in (text.partition("=") for text in texts)]
