"""A training's state in one file, written so that an interruption leaves the last one whole."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medadv.files import write_bytes


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Writes ``state`` to ``path``."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(path, buffer.getvalue())


def digest(*tensors: Tensor) -> str:
    """A short name of tensors' values: other values have another.

    Example:
        >>> import torch
        >>> digest(torch.zeros(2)) == digest(torch.zeros(2)), digest(torch.zeros(2)) == digest(torch.ones(2))
        (True, False)
    """
    found = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        found.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()


def load_checkpoint(path: Path, fingerprint: dict[str, Any]) -> dict[str, Any] | None:
    """The state in ``path``, or None where there is none.

    Args:
        path: file of :func:`save_checkpoint`.
        fingerprint: what the training is; that of the file must be the same.

    Raises:
        ValueError: the file is damaged, or of another training; the message says what differs.
    """
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        kept = dict(state["fingerprint"])
    except Exception as error:
        raise ValueError(
            f"checkpoint {str(path)!r} can't be read ({type(error).__name__}); remove it to start anew."
        ) from None
    different = [name for name in fingerprint if kept.get(name) != fingerprint[name]]
    if different:
        name = different[0]
        raise ValueError(
            f"checkpoint {str(path)!r} is of another training: {name} was {kept.get(name)!r} and is now "
            f"{fingerprint[name]!r}; give another file, or remove it to start anew."
        )
    return dict(state)
