"""Files of a bundle read as data: inside its folder only, of bounded size, JSON or YAML without tags."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 256 * 1024
MAX_NODES = 50_000
MAX_DEPTH = 40
SUFFIXES = (".json", ".yaml", ".yml")

_SCALARS = (str, int, float, bool, type(None))


class BundleError(ValueError):
    """A bundle that can't be used as it is; the message says which part, why, and what to pass instead."""


def shortened(text: Any, width: int = 160) -> str:
    """A text or an error on one line of bounded length."""
    line = " ".join(str(text).split())
    return line if len(line) <= width else f"{line[: width - 3]}..."


def bundle_folder(path: Path | str) -> Path:
    """The folder of a bundle, with all links followed.

    Raises:
        BundleError: there is none, or it holds no ``configs``.
    """
    root = Path(path).expanduser()
    if not (root / "configs").is_dir():
        raise BundleError(f"{root} is no bundle; give the folder that holds configs/ and models/.")
    return root.resolve()


def inside(root: Path, name: str, remedy: str = "") -> Path:
    """The file that a bundle means by ``name``, links followed.

    Args:
        root: the bundle's folder, resolved.
        name: relative to it, or absolute.
        remedy: what to do otherwise, to end the sentence.

    Raises:
        BundleError: it is no file, or lies outside the bundle.
    """
    shown = shortened(repr(name.removeprefix(f"{root}/")))
    # before the file system is asked for anything: a text may hold what no path may
    resolved = Path(os.path.realpath(root / name)) if "\0" not in name else root
    if not resolved.is_relative_to(root):
        raise BundleError(f"{shown} leads outside the folder, and nothing is read from there{remedy}.")
    if not resolved.is_file():
        raise BundleError(f"there is no file {shown}{remedy}.")
    return resolved


def find(root: Path, stem: str) -> Path | None:
    """``configs/STEM`` with one of the suffixes of a config, or None."""
    for suffix in SUFFIXES:
        if (root / "configs" / f"{stem}{suffix}").exists():
            return inside(root, f"configs/{stem}{suffix}")
    return None


def read(path: Path) -> dict[str, Any]:
    """The content of a config: dictionaries, lists, texts, numbers, True, False and None, nothing else.

    Raises:
        BundleError: it is too large, too deep, names a key twice, holds other things, or is no dictionary.
    """
    if path.stat().st_size > MAX_BYTES:
        raise BundleError(f"{path.name} has {path.stat().st_size} bytes; configs of up to {MAX_BYTES} bytes are read.")
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text, object_pairs_hook=_once) if path.suffix == ".json" else _yaml(text)
    except BundleError as error:
        raise BundleError(f"{path.name}: {error}") from None
    except RecursionError:
        raise BundleError(f"{path.name} is nested more than {MAX_DEPTH} levels deep.") from None
    except (ValueError, yaml.YAMLError) as error:
        raise BundleError(f"{path.name} is not valid {path.suffix[1:].upper()}: {shortened(error)}.") from None
    _check(content, path.name)
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BundleError(f"key {shortened(twice)!r} stands twice in one dictionary.")
    return content


def _yaml(text: str) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return {}
        # before anything is built: merge keys copy what aliases only share
        _size(node, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """Stops at the first value too many or too deep, as the parser is slow."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = self.count = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        self.count += 1
        if self.depth > MAX_DEPTH:
            raise RecursionError
        if self.count > MAX_NODES:
            raise BundleError(f"it holds more than {MAX_NODES} values.")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Nodes after every alias is written out; refuses bombs, loops and keys that stand twice."""
    if id(node) not in known:
        known[id(node)] = MAX_NODES + 1  # what refers to itself has no end
        total = 1 + sum(_size(child, known) for child in _children(node))
        known[id(node)] = total
    if known[id(node)] > MAX_NODES:
        raise BundleError(f"aliases write out to more than {MAX_NODES} values.")
    return known[id(node)]


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise BundleError(f"key {shortened(twice)!r} stands twice in one dictionary.")
        for key, value in node.value:
            yield key
            yield value
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _check(content: Any, name: str) -> None:
    if not isinstance(content, dict):
        raise BundleError(f"{name} holds {type(content).__name__}, not a dictionary.")
    level, count = [content], 0
    for _ in range(MAX_DEPTH):
        count += len(level)
        if count > MAX_NODES:
            raise BundleError(f"{name}: it holds more than {MAX_NODES} values.")
        level = [value for parent in level for value in _values(parent, name)]
        if not level:
            return
    raise BundleError(f"{name} is nested more than {MAX_DEPTH} levels deep.")


def _values(parent: Any, name: str) -> list[Any]:
    if isinstance(parent, dict):
        odd = [key for key in parent if not isinstance(key, _SCALARS)]
        if odd:
            raise BundleError(f"{name} holds a key of type {type(odd[0]).__name__}; keys are texts or numbers.")
        return list(parent.values())
    if isinstance(parent, list):
        return parent
    if not isinstance(parent, _SCALARS):
        raise BundleError(f"{name} holds {type(parent).__name__}; write texts, numbers, lists and dictionaries.")
    return []
