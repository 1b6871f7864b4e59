"""The pages that are made from the catalogue and the modules, as text."""

from __future__ import annotations

import inspect
import pkgutil
import re
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

import numpy as np

from extension.examples import example_of
from extension.options import meaning_of
from medadv.attacks import CatalogueAttack, FrameworkAttack, Recipe, recipes
from medadv.attacks.catalogue import ENTRY_POINTS, FAMILIES
from medadv.attacks.recipes import DECISIONS, TASKS

LAYERS = ("medadv", "medadv.adapters", "medadv.benchmarks")
NORM_NAMES = {np.inf: "L-inf", 2.0: "L2", 1.0: "L1"}
WHAT_IS_SEEN = {"classification": "images", "segmentation": "voxels"}
ACCESS_WORDS = {
    "none": "none; it does not look at the model",
    "white-box": "white-box: gradients",
    "score": "score: logits or probabilities",
    "decision": "decision: the diagnosis alone",
    "transfer": "transfer: none of the target's, gradients of a surrogate",
}


def families() -> dict[str, tuple[str, str, list[Recipe]]]:
    """Pages of the catalogue by name: title, text, rows."""
    found: dict[str, tuple[str, str, list[Recipe]]] = {}
    for module in FAMILIES:
        title, text = _title_and_text(module)
        found[module.__name__.rpartition(".")[2].replace("_", "-")] = (title, text, list(module.ROWS))
    for entry in entry_points(group=ENTRY_POINTS):
        load = entry.load()
        title, text = _title_and_text(inspect.getmodule(load))
        found[f"from-{entry.name}"] = (title, text, list(load()))
    return found


def _title_and_text(module: ModuleType | None) -> tuple[str, str]:
    """First line and further paragraphs of a module's docstring; its examples stand in the API reference."""
    first, _, rest = (inspect.getdoc(module) or "").partition("\n")
    title = re.split(r"[:;.](?= |$)", first, maxsplit=1)[0]
    text = rest.partition("Example:")[0].strip()
    beyond = first[len(title) :].strip(":;. ")
    sentence = f"{beyond[:1].upper()}{beyond[1:]}." if beyond else ""
    return _markdown(title), _markdown("\n\n".join(filter(None, [sentence, text])))


def _markdown(text: str) -> str:
    """The roles and literals of a docstring in MyST's form."""
    return re.sub(r":(\w+):`", r"{py:\1}`", text)


def family_page(name: str) -> str:
    """A page of the catalogue."""
    title, text, rows = families()[name]
    right = [row for row in rows if example_of(row)]
    parts = [f"# {title}", text, attack_table(right), *map(attack_section, right)]
    refused = [row for row in rows if not example_of(row)]
    if refused:
        parts += ["## Refused on every model", table(("name", "why", "use instead"), map(_refused_line, refused))]
    return "\n\n".join(filter(None, parts)) + "\n"


def _refused_line(row: Recipe) -> tuple[str, str, str]:
    instead = ", ".join(f"`{name}`" for name in row.alternatives)
    return f"`{row.name}`", cell(row.summary.removeprefix("refused: ")), instead


def attack_table(rows: Iterable[Recipe]) -> str:
    """Attacks with links to their sections."""
    lines = (
        (f"[{row.name}](#{anchor(row)})", cell(row.summary), ", ".join(WHAT_IS_SEEN[task] for task in row.tasks),
         row.access.replace("-", "&#8209;"))
        for row in rows
    )  # fmt: skip
    return table(("name", "what it does", "for", "access"), lines)


def anchor(row: Recipe) -> str:
    """Target of the links to an attack."""
    return f"attack-{row.name.replace('/', '-').lower()}"


def attack_section(row: Recipe) -> str:
    """All that the catalogue knows of an attack, and its example."""
    facts = {
        "objective": f"`{row.objective}`" if row.attack is None else cell(row.objective),
        "threat": "; ".join(f"`{kind.name}`: {cell(kind.summary)}" for kind in row.threats) or "the range alone",
        "search": row.search_name,
        "access": ACCESS_WORDS[row.access],
        "models": ", ".join(task for task in TASKS if task in row.tasks),
        "decisions": ", ".join(decision for decision in DECISIONS if decision in row.decisions),
        "images": " and ".join(f"{rank}D" for rank in row.ranks),
        "norms": ", ".join(NORM_NAMES[norm] for norm in row.norms),
        "eps": _budget(row),
        "targeted": "yes" if row.directed else "no",
        "cases": "" if row.independent else "share draws or the perturbation, so a case depends on the others",
        "keeps": f"`{row.keep}`",
        "source": reference(row.reference),
        "class": _class_of(row),
    }
    parts = [
        f"({anchor(row)})=",
        f"## {row.name}",
        f"{row.summary[0].upper()}{row.summary[1:]}.",
        table(("", ""), ((name, text) for name, text in facts.items() if text)),
    ]
    if row.all_options:
        parts += ["Beside the [common options](#common-options) it takes:", _options(row)]
    return "\n\n".join([*parts, f"```python\n{example_of(row)}\n```"])


def _options(row: Recipe) -> str:
    lines = [
        (f"`{option}`", f"`{shown(value)}`", meaning_of(row, option) or "") for option, value in row.all_options.items()
    ]
    if any(meaning for _, _, meaning in lines):
        return table(("option", "default", "what it is"), lines)
    return table(("option", "default"), (line[:2] for line in lines))


def _budget(row: Recipe) -> str:
    if row.minimal:
        return "not needed: it looks for the smallest change"
    if row.threat is None:
        return "required" if row.norms else ""
    default = row.threats[0].eps
    return "required" if default is None else f"`{default}` unless given"


def _class_of(row: Recipe) -> str:
    made_by: Any = row.attack or FrameworkAttack
    made_by = getattr(made_by, "func", made_by)
    if not (inspect.isclass(made_by) and issubclass(made_by, CatalogueAttack)):
        return ""
    return f"{{py:class}}`~{made_by.__module__}.{made_by.__qualname__}`"


def shown(value: Any) -> str:
    """A default as code."""
    text = re.sub(r" at 0x[0-9a-f]+", "", repr(value))
    return cell(text if len(text) <= 60 else f"{text[:57]}...")


def reference(text: str) -> str:
    """Paper ids as links."""
    text = re.sub(r"\b(\d{4}\.\d{4,5})\b", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)
    return re.sub(r"(?<![/\w])(10\.\d{4,}/[^\s,;]+)", r"[doi:\1](https://doi.org/\1)", text)


def cell(text: str) -> str:
    """Text that does not break out of a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def table(columns: tuple[str, ...], lines: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    rows = [columns, ("---",) * len(columns), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def catalogue_page() -> str:
    """The whole catalogue on one page, with links to the families."""
    known = families()
    counted = sum(1 for row in recipes().values() if example_of(row))
    parts = [
        "# The catalogue",
        f"{counted} attacks. Each is made by {{py:func}}`medadv.attacks.create` under its name, is an ART "
        "`EvasionAttack`, takes the options listed and no others, and keeps the guarantees of "
        "[the concepts](../../concepts.md). `medadv attacks` prints this table, `medadv attacks --check` runs all of "
        "it on tiny models. Every example runs as it stands; the tests run them all.",
    ]
    for name, (title, _, rows) in known.items():
        parts += [f"## [{title}]({name}.md)", attack_table(row for row in rows if example_of(row))]
    tree = "\n".join(known)
    return "\n\n".join([*parts, f"```{{toctree}}\n:hidden:\n\n{tree}\n```"]) + "\n"


def modules() -> list[str]:
    """Names of all modules of medadv, packages before what is in them."""
    found = dict.fromkeys(LAYERS)
    for layer in LAYERS:
        # the layers may lie in folders of their own, where a walk from the first does not come by
        walked = pkgutil.walk_packages(import_module(layer).__path__, f"{layer}.")
        found |= dict.fromkeys(module.name for module in walked)
    return sorted(name for name in found if not any(part.startswith("_") for part in name.split(".")))


def module_page(name: str, below: Iterable[str]) -> str:
    """The reference of a module; a package also tells which names it offers and where they are documented."""
    module = import_module(name)
    title = f"``{name}``"
    lines = [title, "=" * len(title), "", f".. automodule:: {name}"]
    if not hasattr(module, "__path__"):
        # reached from its package: a sidebar of all modules would be long, and slow to make for every page
        whole = f"Part of :py:mod:`{name.rpartition('.')[0]}`."
        return "\n".join([":orphan:", "", *lines[:3], whole, "", lines[3], "   :members:", ""])
    offered = [public for public in getattr(module, "__all__", ()) if _home(module, public)]
    if offered:
        lines += ["", f"Names to import from ``{name}``:", "", ".. list-table::", ""]
        for public in offered:
            role, home = _home(module, public)
            lines += [f"   * - :py:{role}:`{public} <{home}>`", f"     - {_first_sentence(getattr(module, public))}"]
    children = list(below)
    if children:
        lines += ["", "Modules:", "", ".. list-table::", ""]
        for child in children:
            lines += [f"   * - :py:mod:`{child}`", f"     - {_first_sentence(import_module(child))}"]
        packages = [f"   {child}" for child in children if hasattr(import_module(child), "__path__")]
        lines += ["", ".. toctree::", "   :hidden:", "   :titlesonly:", "", *packages]
    return "\n".join([*lines, ""])


def _home(module: ModuleType, public: str) -> tuple[str, str] | None:
    """Role and full name of what a package offers, where that is a class or function of medadv."""
    thing = getattr(module, public)
    home = getattr(thing, "__module__", None) or ""
    if not home.startswith("medadv.") or not hasattr(thing, "__qualname__"):
        return None
    return ("class" if inspect.isclass(thing) else "func"), f"{home}.{thing.__qualname__}"


def _first_sentence(thing: Any) -> str:
    text = " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())
    text = re.sub(r":\w+:`~?([^`]+)`", r"``\1``", text)  # links are read from where the text was written
    return re.split(r"(?<=\.)(?= [A-Z])", text, maxsplit=1)[0]


def pages() -> dict[str, str]:
    """All pages that are made, by path below the folder of made pages."""
    made = {"catalogue/index.md": catalogue_page()}
    made |= {f"catalogue/{name}.md": family_page(name) for name in families()}
    names = modules()
    for name in names:
        below = [other for other in names if other.rpartition(".")[0] == name]
        made[f"api/{name}.rst"] = module_page(name, below)
    return made
