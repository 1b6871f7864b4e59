"""The cost of gradients through windows is measured each way on the same volume."""

from __future__ import annotations

import pytest

from medadv.benchmarks import cost_windows
from medadv.benchmarks.cli import main
from medadv.benchmarks.cost_windows import WAYS, Volume, measure, window_costs

TINY = Volume(12, 8, 3, (4, 8))


@pytest.fixture
def in_this_process(monkeypatch):
    monkeypatch.setattr(cost_windows, "_apart", lambda *asked: measure(*asked, threads=1))


def test_every_way_is_a_row_with_its_time_beside_monais(in_this_process):
    table = window_costs([TINY], runs=3, progress=False).set_index("way")
    assert tuple(table.index) == WAYS and set(table.windows) == {8}
    assert (table.seconds > 0).all() and (table.peak_mb >= 0).all()
    assert table.speed_up[["forward only", "one batch"]].isna().all() and table.speed_up["monai"] == 1
    assert table.bar_mb["run twice"] >= (3 + 3) * 4 * TINY.size**3 / 1e6 and table.bar_mb.notna().sum() == 1
    assert table.speed_up["kept"] == pytest.approx(table.seconds["monai"] / table.seconds["kept"])


@pytest.mark.parametrize(
    ("way", "windows"), [("forward only", 8), ("one batch", 1), ("monai", 8), ("kept", 8), ("run twice", 16)]
)
def test_what_is_timed_is_what_is_named(way, windows, monkeypatch):
    seen = []
    build = cost_windows.UNet

    def watched(*args, **options):
        network = build(*args, **options)
        network.register_forward_hook(lambda _, args, output: seen.append(args[0].shape[-1]))
        return network

    monkeypatch.setattr(cost_windows, "UNet", watched)
    measure(TINY, way, 0.5, 1)
    assert seen.count(TINY.roi) == 3 * windows and seen.count(16) == windows  # the warm-up has windows of 16


def test_a_measurement_has_a_process_of_its_own():
    alone = cost_windows._apart(Volume(40, 8, 3, (4, 8)), "run twice", 0.0)
    assert alone["windows"] == 125 and alone["peak"] > 0


def test_the_command_prints_the_table(in_this_process, monkeypatch, capsys):
    monkeypatch.setattr(window_costs, "__defaults__", ([TINY], 2, 0.5, False))
    assert main(["cost", "--windows", "--pairs", "2"]) == 0
    assert "run twice" in capsys.readouterr().out
    assert main(["cost", "--windows", "--pairs", "1"]) == 2
