"""Outcomes as bytes and back, exactly: arrays as they are, all else as JSON; nothing that is read can run code."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from medadv.benchmarks.crafting import Crafted
from medadv.benchmarks.endpoints import Diagnosis
from medadv.benchmarks.kept_images import Kept
from medadv.benchmarks.outcomes import Outcome
from medadv.diagnostics import Finding
from medadv.victims import Passes

_HEADER = "header"
_KIND = "kind"
_KNOWN = {known.__name__: known for known in (Outcome, Diagnosis, Passes, Finding, Crafted, Kept)}


class DamagedError(ValueError):
    """Bytes that hold no packed value."""


def packed(value: Any) -> bytes:
    """A value as bytes: numbers, words, lists, mappings, arrays, tensors, tables, and the classes of a run.

    Raises:
        TypeError: something else.

    Example:
        >>> import numpy as np
        >>> unpacked(packed({"scores": np.array([0.25, np.nan]), "steps": 3}))["steps"]
        3
    """
    arrays: dict[str, np.ndarray] = {}
    header = json.dumps(_flattened(value, arrays))
    buffer = io.BytesIO()
    everything: dict[str, Any] = {_HEADER: np.frombuffer(header.encode(), dtype=np.uint8), **arrays}
    np.savez_compressed(buffer, **everything)
    return buffer.getvalue()


def unpacked(content: bytes) -> Any:
    """What :func:`packed` was given.

    Raises:
        DamagedError: the bytes are cut short, changed, or of something else.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return _restored(json.loads(arrays.pop(_HEADER).tobytes().decode()), arrays)
    except (ValueError, KeyError, TypeError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedError(f"damaged ({reason})") from None


def _flattened(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The value as JSON in which an array is the name it has among ``arrays``."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float | np.bool_ | np.integer | np.floating):
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(value, list):
        return [_flattened(part, arrays) for part in value]
    for kind, parts_of in _PARTS.items():
        if isinstance(value, kind):
            return {_KIND: kind.__name__, **_flattened_array_or_parts(value, parts_of, arrays)}
    if is_dataclass(value) and type(value).__name__ in _KNOWN:
        parts = {field.name: _flattened(getattr(value, field.name), arrays) for field in fields(value)}
        return {_KIND: type(value).__name__, "parts": parts}
    raise TypeError(f"can't keep a {type(value).__name__}.")


def _flattened_array_or_parts(
    value: Any, parts_of: Callable[[Any], Any], arrays: dict[str, np.ndarray]
) -> dict[str, Any]:
    parts = parts_of(value)
    if isinstance(parts, np.ndarray):
        name = f"a{len(arrays)}"
        arrays[name] = parts
        return {"array": name}
    return {"parts": [_flattened(part, arrays) for part in parts]}


def _plain_array(value: np.ndarray) -> Any:
    """An array as it is; one of objects as its shape and its elements."""
    return [list(value.shape), value.ravel().tolist()] if value.dtype == object else value


def _columns(table: pd.DataFrame) -> list[Any]:
    """Names and columns of a table; those that are numbers as arrays."""
    return [[str(name) for name in table.columns], [table[name].to_numpy() for name in table.columns], len(table)]


# how each kind is taken apart: into one array, or into parts that are taken apart in turn
_PARTS: dict[type, Callable[[Any], Any]] = {
    np.ndarray: _plain_array,
    Tensor: lambda tensor: tensor.detach().cpu().numpy(),
    pd.DataFrame: _columns,
    tuple: list,
    dict: lambda mapping: [[key, part] for key, part in mapping.items()],
}


def _object_array(shape: list[int], elements: list[Any]) -> np.ndarray:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array.reshape(shape)


def _table(names: list[str], columns: list[np.ndarray], length: int) -> pd.DataFrame:
    return pd.DataFrame(dict(zip(names, columns, strict=True)), index=range(length), columns=names)


_WHOLE: dict[str, Callable[..., Any]] = {
    "ndarray": _object_array,
    "DataFrame": _table,
    "tuple": lambda *parts: tuple(parts),
    "dict": lambda *pairs: dict(pairs),
}


def _restored(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, list):
        return [_restored(part, arrays) for part in value]
    if not isinstance(value, dict):
        return value
    kind = value[_KIND]
    if "array" in value:
        array = arrays[value["array"]]
        return torch.from_numpy(array) if kind == "Tensor" else array
    if kind in _KNOWN:
        return _KNOWN[kind](**{name: _restored(part, arrays) for name, part in value["parts"].items()})
    return _WHOLE[kind](*(_restored(part, arrays) for part in value["parts"]))
