"""The house is in order: imports go one way, folders are packaged, what is public is documented."""

from __future__ import annotations

import ast
import configparser
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import medadv
import medadv.adapters
from medadv.attacks import CATALOGUE
from medadv.attacks.recipes import ACCESS, DECISIONS, TASKS
from medadv.decisions import Multiclass
from medadv.objectives import AUTO, OBJECTIVES
from medadv.threats import BALL_KINDS

CORE = Path(next(iter(medadv.__path__)))
LAYERS = {"medadv": 0, "medadv.adapters": 1, "medadv.benchmarks": 2}
SHIMS = {"medadv.__main__"}


def folders() -> dict[str, Path]:
    """Where each layer's source lies; adapters and benchmarks may be folders of their own outside the core's."""
    found = {"medadv": CORE, "medadv.adapters": Path(next(iter(medadv.adapters.__path__)))}
    benchmarks = importlib.util.find_spec("medadv.benchmarks")
    if benchmarks is not None and benchmarks.submodule_search_locations:
        found["medadv.benchmarks"] = Path(next(iter(benchmarks.submodule_search_locations)))
    return found


def layer_of(module: str) -> str:
    return max((layer for layer in LAYERS if module == layer or module.startswith(f"{layer}.")), key=len)


def sources(folder: Path) -> list[Path]:
    # not Path.rglob: a development view may link its folders
    return sorted(
        Path(top) / file
        for top, _, files in os.walk(folder, followlinks=True)
        for file in files
        if file.endswith(".py")
    )


def modules() -> Iterator[tuple[str, Path]]:
    """Name and file of every module, each once."""
    seen = set()
    for package, folder in folders().items():
        for file in sources(folder):
            parts = file.relative_to(folder).with_suffix("").parts
            name = ".".join([package, *parts]).removesuffix(".__init__")
            if name not in seen:
                seen.add(name)
                yield name, file


def imported(name: str, tree: ast.AST, *, package: bool) -> Iterator[str]:
    """Every module of the house that a file imports, at any depth of the code; strings are not code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = name.split(".") if package else name.split(".")[:-1]
                base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [base])])
            # "from medadv import adapters" imports a module too
            yield from [base, *(f"{base}.{alias.name}" for alias in node.names)]


def trespasses(name: str, tree: ast.AST, *, package: bool = False) -> list[str]:
    house = [module for module in imported(name, tree, package=package) if module.split(".")[0] == "medadv"]
    return [module for module in house if LAYERS[layer_of(module)] > LAYERS[layer_of(name)]]


MODULES = dict(modules())


def test_the_house_was_found():
    assert {"medadv.decisions", "medadv.attacks.base", "medadv.training.loop", "medadv.adapters.estimators"} <= set(
        MODULES
    )


@pytest.mark.parametrize("name", [name for name in MODULES if name not in SHIMS])
def test_imports_go_one_way(name):
    file = MODULES[name]
    assert trespasses(name, ast.parse(file.read_text()), package=file.name == "__init__.py") == []


@pytest.mark.parametrize(("name", "code"), [
    ("medadv.metrics", "import medadv.adapters"), ("medadv.metrics", "from medadv.adapters.heads import Head"),
    ("medadv.metrics", "from medadv import adapters"), ("medadv.metrics", "from . import benchmarks"),
    ("medadv.attacks.base", "from ..adapters import estimators"),
    ("medadv.adapters.heads", "from medadv import benchmarks"),
    ("medadv.metrics", "def f():\n    if True:\n        import medadv.benchmarks.run"),
    ("medadv.adapters.heads", "from ..benchmarks import run"),
])  # fmt: skip
def test_a_wrong_import_would_be_seen(name, code):
    assert trespasses(name, ast.parse(code))


@pytest.mark.parametrize(("name", "code"), [
    ("medadv.metrics", '"""\n>>> import medadv.adapters\n"""'),
    ("medadv.adapters.heads", "from medadv import decisions"),
    ("medadv.benchmarks.run", "import medadv.adapters, medadv.metrics"), ("medadv.metrics", "import monai.adapters"),
    ("medadv.adapters.heads", "from . import views"),
])  # fmt: skip
def test_a_right_import_would_pass(name, code):
    assert trespasses(name, ast.parse(code)) == []


def public(tree: ast.Module) -> Iterator[ast.AST]:
    """Functions and classes of a module and methods of its classes that a user may call, overridden ones aside."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for node in tree.body:
        if isinstance(node, kinds) and not node.name.startswith("_"):
            yield node


@pytest.mark.parametrize("name", [name for name in MODULES if not layer_of(name).endswith("benchmarks")])
def test_what_is_public_is_documented(name):
    tree = ast.parse(MODULES[name].read_text())
    assert ast.get_docstring(tree), name
    assert [node.name for node in public(tree) if not ast.get_docstring(node)] == []


def test_every_package_folder_is_listed_in_setup_cfg():
    root = Path(__file__).resolve().parents[1]
    setup = configparser.ConfigParser()
    setup.read(root / "setup.cfg")
    listed = set(setup["options"]["packages"].split())
    tops = dict(line.split(" = ") for line in setup["options"]["package_dir"].strip().splitlines())
    assert tops == {"medadv": "medadv", "medadv.adapters": "adapters", "medadv.benchmarks": "benchmarks"}
    folders_with_code = {
        ".".join([package, *file.parent.relative_to(root / folder).parts])
        for package, folder in tops.items()
        for file in (root / folder).rglob("*.py")
    }
    assert folders_with_code <= listed
    for package in listed:
        assert (root / Path(*package_path(package, tops)) / "__init__.py").exists(), package


def package_path(package: str, tops: dict[str, str]) -> list[str]:
    top = max((t for t in tops if package == t or package.startswith(f"{t}.")), key=len)
    return [tops[top], *package.removeprefix(top).strip(".").split(".")] if package != top else [tops[top]]


@pytest.mark.parametrize("name", CATALOGUE)
def test_rows_of_the_catalogue_are_complete(name):
    row = CATALOGUE[name]
    assert row.name == name and row.summary and row.reference and row.search_name
    assert set(row.tasks) <= set(TASKS) and row.tasks and set(row.decisions) <= set(DECISIONS) and row.decisions
    assert row.access in ACCESS and set(row.norms) <= set(BALL_KINDS) and set(row.ranks) <= {2, 3}
    if row.attack is None:
        assert row.objective in (*OBJECTIVES, AUTO) and row.search is not None
        if "classification" in row.tasks and row.objective != AUTO:
            assert not OBJECTIVES[row.objective](Multiclass(2)).voxels_only


def test_the_version_is_that_of_setup_cfg():
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).resolve().parents[1] / "setup.cfg")
    assert setup["metadata"]["version"] == medadv.__version__
