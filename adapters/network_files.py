"""A network described in one file, with a checkpoint, as a deployed model: what a bundle is without its folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from monai.transforms import Activationsd, ScaleIntensityRanged

from medadv.adapters.bundle_files import BundleError, read
from medadv.adapters.bundles import from_bundle
from medadv.adapters.deployments import Deployment

_PREDICTION = "pred"


def from_network_file(
    path: Path,
    checkpoint: Path,
    *,
    trust: bool = False,
    activation: str | None = None,
    window: Sequence[float] | None = None,
    unit: str = "",
    **overrides: Any,
) -> Deployment:
    """Reads a network from a JSON or YAML file in the manner of MONAI bundles, safely as :func:`from_bundle` does.

    Args:
        path: ``{"_target_": "UNet", ...}``, or an object with ``network_def`` and, as a bundle has them,
            ``preprocessing``, ``inferer``, ``postprocessing``.
        checkpoint: its weights.
        trust: run code that the file holds.
        activation: ``"softmax"`` or ``"sigmoid"``, where the file has no postprocessing that tells.
        window: (low, high) that become 0 to 1 with values beyond clipped, where the file has no preprocessing.
        unit: of the stored values.
        overrides: as for :func:`from_bundle`.

    Raises:
        BundleError: something is missing, unclear or refused; the message says what.
        FileNotFoundError: no such file.
    """
    for file in (path, checkpoint):
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {file}; correct its path.")
    content = read(path)
    content = {"network_def": content} if "_target_" in content else content
    given: dict[str, Any] = {"segments": True, **overrides}
    if "preprocessing" not in content:
        given.setdefault("preprocessing", _windowed(window))
    elif window is not None:
        raise BundleError(f"{path.name} has preprocessing of its own, so no window can be given; leave it out.")
    if activation is not None:
        softmax = activation == "softmax"
        given.setdefault("postprocessing", [Activationsd(_PREDICTION, softmax=softmax, sigmoid=not softmax)])
    with TemporaryDirectory() as folder:
        configs = Path(folder) / path.stem / "configs"
        configs.mkdir(parents=True)
        (configs / "inference.json").write_text(json.dumps(content), encoding="utf-8")
        return replace(from_bundle(configs.parent, trust, weights=checkpoint, **given), unit=unit)


def _windowed(window: Sequence[float] | None) -> list[Any]:
    if window is None:
        return []
    low, high = window
    return [ScaleIntensityRanged("image", low, high, 0.0, 1.0, clip=True)]
