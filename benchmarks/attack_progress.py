"""How far an attack on one volume has come, with the time left; and what it has when it is interrupted."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during an attack; the message says what there is."""


@contextmanager
def shown(attack: Any, name: str, *, progress: bool = True) -> Iterator[None]:
    """Context in which an attack shows a bar over the windows of all its looks at the model, where it has windows.

    Args:
        attack: made by :func:`medadv.attacks.create`.
        name: of the case.
        progress: whether to show it, on a terminal only.

    Raises:
        Interrupted: on Ctrl-C; says how far it was and how low the score is.
    """
    looks = attack.looks
    bar = tqdm(
        total=looks, desc=f"{attack.name} on {name}", disable=not (progress and sys.stderr.isatty()), leave=False,
        bar_format="{desc}: {percentage:3.0f}% |{bar}| {elapsed} gone, {remaining} left{postfix}",
    )  # fmt: skip
    finished = [0]

    def told(done: int, total: int) -> None:
        bar.n = min(finished[0] + done / total, looks or finished[0] + 1)
        finished[0] += done == total
        if done == total:
            bar.set_postfix_str(so_far(attack), refresh=False)
        bar.refresh()

    if hasattr(attack.victim, "on_windows"):
        attack.victim.on_windows = told
    try:
        yield
    except KeyboardInterrupt as interrupt:
        share = f" after {bar.n:.1f} of {looks} looks at the model" if looks and bar.n else ""
        found = so_far(attack)
        raise Interrupted(f"{attack.name} on {name} was interrupted{share}{found and '; ' + found}") from interrupt
    finally:
        bar.close()


def so_far(attack: Any) -> str:
    """The score of the best image found yet, in words; empty where none is known."""
    best = None if attack.running is None else attack.running.kept
    if best is None or attack.keep != "score" or getattr(attack, "targeted", False):
        return ""
    return f"score {-float(best.badness.max()):.3f} so far"
