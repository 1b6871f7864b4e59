"""A bundle's configuration as data: ids, references and macros followed, nothing run.

MONAI's own parser evaluates texts that begin with ``$`` and instantiates whatever ``_target_`` names. Here such a text
is refused as soon as its value is needed, apart from the few spellings of plain data that published bundles use:
another value (``$@network_def.to(@device)``), sums of lists or quoted texts, constants (``$torch.float32``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.utils import CommonKeys

from medadv.adapters.bundle_files import MAX_NODES, BundleError, shortened

MAX_HOPS = 40
MAX_TEXT = 1000  # what MONAI looks up, it compares letter by letter with all it knows

_ID = r"[A-Za-z_]\w*(?:(?:::|#)\w+)*"
_REFERENCE = re.compile(rf"@({_ID})\s*")
_MACRO = re.compile(rf"%({_ID})\s*")
_MOVED = re.compile(rf"\$\s*@({_ID})(?:\.to\(@device\))?\s*")
_TERM = rf"@{_ID}|'[^'\\]*'|\"[^\"\\]*\""
_SUM = re.compile(rf"\$\s*(?:{_TERM})(?:\s*\+\s*(?:{_TERM}))*\s*")
_DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
_CONSTANTS: dict[str, Any] = {
    **{f"monai.utils.CommonKeys.{key.name}": key.value for key in CommonKeys},
    **{f"torch.{name}": getattr(torch, name) for name in _DTYPES},
    **{f"{module}.{name}": getattr(np, name) for module in ("np", "numpy") for name in _DTYPES[1:]},
    **{repr(constant): constant for constant in (None, True, False)},
}
_SPECIAL = ("_target_", "_disabled_", "_requires_", "_desc_", "_mode_")


class PartRefused(BundleError):
    """A value of a config that is not read without trust; the caller knows what can be passed in its place.

    Args:
        key: id of the value.
        reason: why, to follow the key in a sentence.
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{shortened(key)} {reason}")


@dataclass(frozen=True)
class Component:
    """A dictionary with ``_target_``: something to build, of which nothing is resolved before it is asked for.

    Args:
        id: where it stands.
        target: what ``_target_`` names.
        config: the config that holds it.
    """

    id: str
    target: str
    config: BundleConfig

    @property
    def name(self) -> str:
        """The last part of the target: the name of the class."""
        return self.target.rpartition(".")[2]

    @property
    def disabled(self) -> bool:
        """Whether ``_disabled_`` leaves it out."""
        flag = self.config.value(f"{self.id}::_disabled_", False)
        return flag.strip().lower() == "true" if isinstance(flag, str) else bool(flag)

    def argument(self, name: str, default: Any = None) -> Any:
        """One argument, resolved."""
        return self.config.value(f"{self.id}::{name}", default)

    def arguments(self, without: Iterable[str] = ()) -> dict[str, Any]:
        """All arguments by name, resolved; those named in ``without`` are not looked at.

        Raises:
            PartRefused: one is code, or the component asks for more than being built.
        """
        content = self.config.raw(self.id)
        if content.get("_mode_", "default") != "default":
            raise PartRefused(
                f"{self.id}::_mode_", f"is {shortened(content['_mode_'], 60)!r}, and components are only built"
            )
        if content.get("_requires_"):
            raise PartRefused(f"{self.id}::_requires_", "asks for other things to be run first")
        names = [name for name in content if name not in (*_SPECIAL, *without)]
        return {name: self.argument(name) for name in names}


class BundleConfig:
    """One config file, or several merged, with what it refers to resolved on demand.

    Args:
        content: as :func:`~medadv.adapters.bundle_files.read` returns it.
        name: of the file, for messages.
        fixed: values of ids that are ours to set, such as ``bundle_root``.
        evaluate: id of an expression -> its value; None: expressions are refused.
    """

    def __init__(
        self,
        content: Mapping[str, Any],
        name: str,
        fixed: Mapping[str, Any],
        evaluate: Callable[[str], Any] | None = None,
    ) -> None:
        self.content = {**content, **fixed}
        self.name = name
        self.evaluate = evaluate
        self._seen = 0  # over the config's life: what is read leads to more reading

    def __contains__(self, key: str) -> bool:
        try:
            self.raw(key)
        except LookupError:
            return False
        return True

    def first(self, keys: Iterable[str]) -> str | None:
        """The first of some ids that the config has, or None."""
        return next((key for key in keys if key in self), None)

    def raw(self, key: str) -> Any:
        """What stands under an id, unresolved; references on the way there are followed.

        Raises:
            KeyError: nothing does.
        """
        return self._at(key, 0)[1]

    def value(self, key: str, default: Any = None) -> Any:
        """What stands under an id, resolved: dictionaries with ``_target_`` as :class:`Component`, not built.

        Raises:
            PartRefused: it is code, refers to itself or to nothing, or grows without bounds.
        """
        if key not in self:
            return default
        place, content = self._at(key, 0)
        return self._resolve(place, content, 0)

    def _at(self, key: str, hops: int) -> tuple[str, Any]:
        """Where an id really stands, and the content there."""
        place, content = "", self.content
        for part in key.replace("#", "::").split("::"):
            if isinstance(content, str):
                place, content = self._follow(place, content, hops)
            if isinstance(content, list) and (i := _index(part, content)) is not None:
                content = content[i]
            elif isinstance(content, dict) and part in content:
                content = content[part]
            else:
                raise KeyError(key)
            place = f"{place}::{part}" if place else part
        return place, content

    def _follow(self, place: str, text: Any, hops: int) -> tuple[str, Any]:
        """Follows references until something else stands there."""
        while isinstance(text, str) and (target := _target(text)) is not None:
            hops += 1
            if hops > MAX_HOPS:
                raise PartRefused(place, "refers to itself, or on through too many others")
            try:
                place, text = self._at(target, hops)
            except KeyError:
                raise PartRefused(place, f"refers to {shortened(target)!r}, which the config does not have") from None
        return place, text

    def _resolve(self, place: str, content: Any, hops: int) -> Any:
        self._seen += 1
        if self._seen > MAX_NODES:
            raise PartRefused(place, f"writes out to more than {MAX_NODES} values")
        if isinstance(content, str):
            return self._resolve_text(place, content, hops)
        if isinstance(content, list):
            parts = [self._resolve(f"{place}::{i}", part, hops) for i, part in enumerate(content)]
            return [part for part in parts if not (isinstance(part, Component) and part.disabled)]
        if not isinstance(content, dict):
            return content
        if "_target_" not in content:
            return {key: self._resolve(f"{place}::{key}", part, hops) for key, part in content.items()}
        target = self._resolve(f"{place}::_target_", content["_target_"], hops)
        if not isinstance(target, str):
            raise PartRefused(f"{place}::_target_", "is no name of a class")
        return Component(place, target, self)

    def _resolve_text(self, place: str, text: str, hops: int) -> Any:
        if hops > MAX_HOPS:
            raise PartRefused(place, "refers to itself, or on through too many others")
        target_place, content = self._follow(place, text, hops)
        if content is not text:
            return self._resolve(target_place, content, hops + 1)
        if not text.startswith(("$", "%")):
            if len(text) > MAX_TEXT:
                raise PartRefused(place, f"is a text of {len(text)} letters; up to {MAX_TEXT} are read")
            return text
        spelled = self._spelled(place, text, hops)
        if spelled is not _CODE:
            return spelled
        if self.evaluate is None:
            what = "code" if text[0] == "$" else "copied from another file"
            raise PartRefused(place, f"is {what} ({shortened(text, 60)!r})")
        return self.evaluate(place)

    def _spelled(self, place: str, text: str, hops: int) -> Any:
        """Spellings of plain data: constants by their name, and sums of references and quoted texts."""
        name = text[1:].strip()
        if name in _CONSTANTS:
            return _CONSTANTS[name]
        if len(text) > MAX_TEXT or not _SUM.fullmatch(text):
            return _CODE
        terms = re.findall(_TERM, text)
        values = [self._resolve(place, term, hops + 1) if term[0] == "@" else term[1:-1] for term in terms]
        if not (all(isinstance(v, str) for v in values) or all(isinstance(v, list) for v in values)):
            return _CODE
        total = values[0]
        for value in values[1:]:
            total = total + value
            if len(total) > (MAX_TEXT if isinstance(total, str) else MAX_NODES):
                raise PartRefused(place, "adds up without bounds")
        return total


_CODE = object()


def _target(text: str) -> str | None:
    """The id that a text refers to, if it is nothing but a reference."""
    match = _MACRO.fullmatch(text) or _REFERENCE.fullmatch(text) or _MOVED.fullmatch(text)
    return None if match is None else match[1]


def _index(part: str, content: list[Any]) -> int | None:
    """The place in a list that a part of an id means, if it has it."""
    return int(part) if part.isdecimal() and len(part) < 9 and int(part) < len(content) else None


def merged(contents: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Several configs in one, as ``monai.bundle run`` merges them: later keys, such as ``validate#inferer``, win.

    Raises:
        BundleError: a key stands below something that is no dictionary.
    """
    total: dict[str, Any] = {}
    for content in contents:
        for key, value in content.items():
            _put(total, str(key), value)
    return total


def _put(total: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.removeprefix("+").replace("#", "::").split("::")
    place: Any = total
    for parent in parents:
        if isinstance(place, dict):
            child = place.get(parent, {})
            # a copy: YAML's aliases share what they stand for
            place[parent] = dict(child) if isinstance(child, dict) else child
            place = place[parent]
        elif isinstance(place, list) and (i := _index(parent, place)) is not None:
            place = place[i]
        else:
            raise BundleError(f"{shortened(key)!r} sets something below what is no dictionary.")
    if not isinstance(place, dict):
        raise BundleError(f"{shortened(key)!r} sets something below what is no dictionary.")
    if key.startswith("+") and last in place:
        old = place[last]
        if isinstance(old, dict) and isinstance(value, dict):
            value = {**old, **value}
        elif isinstance(old, list) and isinstance(value, list):
            value = old + value
    place[last] = value
