"""A static web page of results: sortable, filterable, in one file that asks for nothing from the network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import jinja2

from medadv.benchmarks.card_drafts import labels, results_of
from medadv.benchmarks.figures import SECTIONS, Gallery
from medadv.benchmarks.model_cards import ENDING, ModelCard, contradictions, problems
from medadv.benchmarks.site_data import Flag, absences, as_json, flags_of, payload, repetitions
from medadv.benchmarks.sources import Source, distinct_names, read_source
from medadv.files import write_text

_TEMPLATES = resources.files("medadv.benchmarks") / "templates"


@dataclass(frozen=True)
class ShownCard:
    """A model card on the page.

    Attributes:
        card: the card.
        run: the run whose table has the same weights; empty: none has.
        wrong: where that table says something else.
    """

    card: ModelCard
    run: str = ""
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Site:
    """What a folder of results holds.

    Attributes:
        runs: what can be read.
        cards: model cards.
        unread: a sentence for each result and card that can't.
    """

    runs: list[Source]
    cards: list[ShownCard]
    unread: list[str]


def collect(folder: str | Path) -> Site:
    """Finds runs (folders with a ``leaderboard.csv``) and model cards (``*.card.json``), however deep.

    Raises:
        ValueError: a folder that is not there, or without any run that can be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is no folder; give a folder of results, or that of one run.")
    places = sorted(path.parent for path in folder.rglob("leaderboard.csv") if not _hidden(path, folder))
    runs, unread = [], []
    for place, name in zip(places, distinct_names(places), strict=True):
        try:
            runs.append(read_source(place, name))
        except ValueError as error:
            unread.append(f"{name}: {error}")
    if not runs:
        reason = f" ({unread[0]})" if unread else ""
        raise ValueError(f"{str(folder)!r} holds no run that can be shown{reason}; give a folder of finished runs.")
    cards = []
    for path in sorted(folder.rglob(f"*{ENDING}")):
        card, wrong = problems(path)
        unread += wrong
        cards += [] if card is None else [_shown(card, runs)]
    return Site(runs, cards, unread)


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _shown(card: ModelCard, runs: Sequence[Source]) -> ShownCard:
    for run in runs:
        weights = run.board.meta.get("weights", {})
        for label in labels(run.board):
            if weights[label] == card.weights_sha256:
                return ShownCard(card, run.name, contradictions(card, results_of(run.board, label)))
    return ShownCard(card)


def write_site(site: Site, out: str | Path, *, title: str = "") -> Path:
    """Writes the page.

    Args:
        site: what to show.
        out: a file that ends in ``.html``, or a folder that gets an ``index.html``.
        title: of the page; default: the names of the suites.

    Returns:
        The file.

    Raises:
        ValueError: a path that can't be written.
    """
    path = Path(out)
    path = path if path.suffix.lower() in (".html", ".htm") else path / "index.html"
    try:
        write_text(path, page(site, title=title))
    except OSError as error:
        raise ValueError(f"{str(path)!r} can't be written ({error.strerror}); give another place with --out.") from None
    return path


def page(site: Site, *, title: str = "") -> str:
    """The page as HTML.

    Tables and curves are drawn by the page's own script from JSON in the page; everything else is escaped text. A
    content security policy lets no other script run and nothing be loaded.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    script, style = (_TEMPLATES.joinpath(name).read_text(encoding="utf-8") for name in ("site.js", "site.css"))
    suites = list(dict.fromkeys(str(suite) for run in site.runs for suite in run.board.frame.suite.dropna()))
    named = title or f"Robustness of medical imaging models: {', '.join(suites) or site.runs[0].name}"
    return environment.from_string(_TEMPLATES.joinpath("site.html").read_text(encoding="utf-8")).render(
        title=named, script=script, style=style, script_hash=_sha256(script), data=as_json(payload(site.runs)),
        runs=site.runs, cards=site.cards, unread=site.unread, flags=explained(site.runs),
        absences=[*(line for run in site.runs for line in absences(run)), *repetitions(site.runs)],
        galleries={section: _galleries(site.runs, section) for section in SECTIONS},
        trainings=len({(r.name, *key) for r in site.runs for key in labels(r.board).values()}),
    )  # fmt: skip


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _galleries(runs: Sequence[Source], section: str) -> list[tuple[str, str, Gallery]]:
    """Run, task and picture of a section."""
    return [
        (run.name, _task_of(gallery.title, list(run.board.frame.task.unique())), gallery)
        for run in runs
        for gallery in run.galleries
        if gallery.section == section
    ]


def _task_of(title: str, tasks: Sequence[str]) -> str:
    """The task that a picture's title begins with; of several the longest name."""
    return max((task for task in tasks if title.startswith(f"{task}-")), key=len, default="")


def explained(runs: Sequence[Source]) -> list[Flag]:
    """The flags of all rows, with what they mean."""
    return flags_of([flag for run in runs for flag in run.board.frame["flags"].dropna()])
