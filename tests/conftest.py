"""One thread: the networks of the tests are so small that more threads only wait for each other."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder of a finished tiny run; tests change copies of it."""
    from finished import tiny_run

    return tiny_run(tmp_path_factory.mktemp("runs") / "tiny")
