from __future__ import annotations

import subprocess
import sys

import pytest

from medadv.benchmarks.cli import main


def test_attacks_and_suites_are_listed(capsys):
    assert main(["attacks"]) == 0
    assert "pgd-dice" in capsys.readouterr().out
    assert main(["suites"]) == 0
    assert "quick:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "--suite", "quik"], "suite 'quik' is unknown; did you mean 'quick' or 'survey-quick'?"),
        (["bench", "--suite", "none.yaml"], "suite file 'none.yaml' does not exist"),
        (["bench", "--suite", "real"], "needs data of your own"),
        (["bench", "--suite", "real", "--data-root", "nowhere"], "nowhere"),
        (["cost", "--pairs", "1"], "--pairs 1 says nothing"),
    ],
)
def test_what_cannot_be_right_ends_in_one_sentence_and_code_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("medadv: ") and error.count("\n") == 1


def test_python_dash_m_medadv_is_the_same_command():
    result = subprocess.run([sys.executable, "-m", "medadv", "suites"], capture_output=True, text=True, check=True)
    assert "quick:" in result.stdout
