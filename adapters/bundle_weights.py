"""The trained weights of a bundle: found in its folder, loaded as tensors, fitted strictly."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medadv.adapters.bundle_config import BundleConfig
from medadv.adapters.bundle_files import BundleError, inside, shortened

_LOADERS = ("checkpointloader", "checkpoint_loader", "handlers", "val_handlers", "validate::handlers")
_WRAPPERS = ("state_dict", "model", "model_state_dict", "network", "net")
_DEFAULT = "models/model.pt"
_REMEDY = "; pass weights= with the file that is meant"


def weights_file(root: Path, configs: list[BundleConfig], *, trust: bool) -> tuple[Path, tuple[str, ...]]:
    """The checkpoint that a bundle's configs load, or ``models/model.pt`` where they load none.

    Args:
        root: the bundle's folder, resolved.
        configs: in the order in which they are asked.
        trust: also where it lies outside the folder.

    Returns:
        The file, and the names under which the network may stand in it.

    Raises:
        BundleError: it is not there, or not in the bundle.
        PartRefused: its name is code.
    """
    for config in configs:
        loader = _loader(config)
        if loader is not None:
            name = str(config.value(f"{loader}::load_path", _DEFAULT))
            objects = config.raw(f"{loader}::load_dict") if f"{loader}::load_dict" in config else None
            named = objects.items() if isinstance(objects, dict) else ()
            path = root / name if trust and (root / name).is_file() else inside(root, name, _REMEDY)
            return path, tuple(key for key, text in named if str(text).startswith("@network"))
    return inside(root, _DEFAULT, _REMEDY), ()


def _loader(config: BundleConfig) -> str | None:
    """Id of the first CheckpointLoader of a config; it is never built."""
    for key in (key for key in _LOADERS if key in config):
        content = config.raw(key)
        entries = {f"{key}::{i}": entry for i, entry in enumerate(content)} if isinstance(content, list) else {}
        for place, entry in (entries or {key: content}).items():
            target = entry.get("_target_", "") if isinstance(entry, dict) else ""
            if str(target).rpartition(".")[2] == "CheckpointLoader":
                return place
    return None


def load_weights(path: Path, names: tuple[str, ...] = (), *, trust: bool = False) -> dict[str, Tensor]:
    """The state dict of a checkpoint.

    Args:
        path: what ``torch.save`` wrote.
        names: where to look in it first.
        trust: also load what holds more than tensors, which runs code.

    Raises:
        BundleError: it holds more than tensors, or no state dict.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TorchScript, which is refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file made to mislead fails in any way
        if not trust:
            raise BundleError(
                f"{path.name} holds more than tensors (pickled objects or TorchScript, which are code) or is damaged; "
                "pass weights= with a state dict or another file, or trust=True."
            ) from error
        content = _load_trusted(path)
    return state_dict_of(content, names, path.name)


def _load_trusted(path: Path) -> Any:
    if path.suffix == ".ts":
        return torch.jit.load(path, map_location="cpu")
    return torch.load(path, map_location="cpu", weights_only=False)


def state_dict_of(content: Any, names: tuple[str, ...], source: str) -> dict[str, Tensor]:
    """The state dict in a checkpoint, under one of the usual names or plain.

    Raises:
        BundleError: there is none.
    """
    if isinstance(content, nn.Module):
        content = content.state_dict()
    for name in (*names, *_WRAPPERS):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping | nn.Module):
            return state_dict_of(content[name], (), source)
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        held = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else type(content).__name__
        raise BundleError(f"{source} holds no state dict (but {shortened(held or 'nothing')}); pass weights= with one.")
    prefix = "module."  # as DataParallel saves it
    if all(str(key).startswith(prefix) for key in content):
        return {key.removeprefix(prefix): value for key, value in content.items()}
    return dict(content)


def fit(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Loads a state dict strictly.

    Raises:
        BundleError: names the weights that are missing, unexpected, or of another shape.
    """
    own = network.state_dict()
    problems = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "of another shape": [key for key in own if key in state and own[key].shape != state[key].shape],
    }
    told = [f"{len(keys)} {what} ({', '.join(keys[:3])})" for what, keys in problems.items() if keys]
    if told:
        raise BundleError(
            f"{source} does not fit {type(network).__name__}: {shortened(', '.join(told), 240)}; pass weights= of this "
            "network, or network= of these weights."
        )
    network.load_state_dict(dict(state))
