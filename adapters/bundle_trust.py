"""Bundles whose code may run: MONAI's own parser, and modules that stay theirs.

Every published bundle calls its package ``scripts``. Modules of a bundle are therefore imported under their usual names
but kept out of ``sys.modules``, and an import statement in one of them, also one that runs later, finds its own
bundle's modules first.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from threading import RLock
from types import CodeType, ModuleType
from typing import Any

from monai.bundle import ConfigParser

from medadv.adapters.bundle_config import BundleConfig, Component, PartRefused
from medadv.adapters.bundle_files import shortened

_LOCK = RLock()
# MONAI's parser and everybody else need these as they are
_NOT_THEIRS = {*sys.stdlib_module_names, "monai", "torch", "numpy"}


class BundleModules:
    """The modules that lie in one bundle's folder.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.modules: dict[str, ModuleType] = {}
        packages = (place.parent.name for place in root.glob("*/__init__.py"))
        self._names = {"scripts", *packages, *(place.stem for place in root.glob("*.py"))} - _NOT_THEIRS
        self._active = False
        # what a module's own ``__builtins__`` says about imports holds for its functions whenever they run
        self.builtins = {**vars(builtins), "__import__": self._import}

    @contextmanager
    def active(self) -> Iterator[None]:
        """Context in which the bundle's modules are found under their names, before all others."""
        with _LOCK:
            if self._active:
                yield
                return
            path = list(sys.path)
            outer = {name: sys.modules.pop(name) for name in list(sys.modules) if _top(name) in self._names}
            sys.modules.update(self.modules)
            sys.meta_path.insert(0, self)  # type: ignore[arg-type]
            self._active = True
            try:
                yield
            finally:
                self._active = False
                sys.meta_path.remove(self)  # type: ignore[arg-type]
                self.modules = {name: sys.modules.pop(name) for name in list(sys.modules) if self._is_ours(name)}
                sys.modules.update(outer)
                sys.path[:] = path

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Finder of ``sys.meta_path``: the bundle's modules, and nothing else."""
        if _top(name) not in self._names:
            return None
        spec = PathFinder.find_spec(name, [str(self.root)] if path is None else list(path))
        if spec is None or not self._holds(spec):
            return None
        if isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path, self.builtins)
        return spec

    def _is_ours(self, name: str) -> bool:
        spec = getattr(sys.modules[name], "__spec__", None) if _top(name) in self._names else None
        return spec is not None and self._holds(spec)

    def _holds(self, spec: ModuleSpec) -> bool:
        origin = [spec.origin] if spec.has_location and spec.origin else []
        places = [*(spec.submodule_search_locations or []), *origin]
        return any(Path(place).is_relative_to(self.root) for place in places)

    def _import(self, *args: Any, **kwargs: Any) -> ModuleType:
        with self.active():
            return builtins.__import__(*args, **kwargs)


def _top(name: str) -> str:
    return name.partition(".")[0]


class _Loader(SourceFileLoader):
    """Runs a module with the bundle's own import, and leaves no compiled files in its folder."""

    def __init__(self, name: str, path: str, own: dict[str, Any]) -> None:
        super().__init__(name, path)
        self.own = own

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__builtins__"] = self.own
        super().exec_module(module)

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


class TrustedBuilder:
    """Builds and evaluates whatever a bundle's configs say, as MONAI does.

    Args:
        modules: of the bundle.
    """

    def __init__(self, modules: BundleModules) -> None:
        self.modules = modules
        self._parsers: dict[int, ConfigParser] = {}

    def open(self, content: Mapping[str, Any], name: str, fixed: Mapping[str, Any]) -> BundleConfig:
        """A config whose expressions are evaluated when they are needed."""
        parser = ConfigParser(_copied({**content, **fixed}))
        config = BundleConfig(content, name, fixed, lambda place: self._run(place, parser.get_parsed_content, place))
        self._parsers[id(config)] = parser
        return config

    def build(self, component: Component, kind: str) -> Any:
        """The object that a component describes."""
        return self._run(component.id, self._parsers[id(component.config)].get_parsed_content, component.id)

    def _run(self, key: str, function: Callable[..., Any], *args: Any) -> Any:
        with self.modules.active():
            try:
                return function(*args)
            except Exception as error:
                cause = error if error.__cause__ is None else error.__cause__
                raise PartRefused(key, f"fails ({type(cause).__name__}: {shortened(cause)})") from error


def _copied(content: Any) -> Any:
    """Fresh dictionaries and lists, which the parser writes to, around the same values."""
    if isinstance(content, dict):
        return {key: _copied(value) for key, value in content.items()}
    return [_copied(value) for value in content] if isinstance(content, list) else content
