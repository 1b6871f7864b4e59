"""What workers do in tests; it imports nothing, so that they start fast."""

import os
import time
from pathlib import Path


def note(folder, key):
    """Leaves a file with the time."""
    with (Path(folder) / f"{key}-{time.monotonic_ns()}").open("w"):
        pass
    return key


def fragile(folder, key):
    """Job 1 kills its worker once, job 2 always; job 3 raises."""
    died = Path(folder) / f"died-{key}"
    if key == 2 or (key == 1 and not died.exists()):
        died.touch()
        os._exit(9)
    if key == 3:
        raise RuntimeError("boom")
    return key


def pid(key):
    """Tells which process it is."""
    time.sleep(0.05)
    return os.getpid()
