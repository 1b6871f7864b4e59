"""What the README shows works as it is written."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from medadv.benchmarks.cli import main
from medadv.benchmarks.suites import suite_names

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_blocks_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), scope)
    printed = capsys.readouterr().out
    assert "(2, 2, 32, 32, 32) True" in printed
    assert "worst-case" in printed


def test_the_two_commands_name_environments_that_exist():
    commands = [line for line in README.splitlines() if line.startswith('python -m pip install "tox')]
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    named = {name for line in commands for name in line.split("tox -e ")[1].split(",")}
    assert len(commands) == 2
    assert named == {"bench", "py", "lint", "type", "docs"}
    assert named - {"py"} <= {section.removeprefix("testenv:") for section in tox.sections()}


def test_suites_files_and_extras_named_in_the_readme_exist():
    assert set(re.findall(r"--suite ([\w-]+)(?!\.yaml)\b(?!\.)", README)) <= {*suite_names(), "mine"}
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for extra in re.findall(r"medadv\[(\w+)\]", README):
        assert extra in setup["options.extras_require"]


def test_citation_and_version_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    medadv = pytest.importorskip("medadv")
    assert citation["version"] == setup["metadata"]["version"] == medadv.__version__


def test_the_ct_example_runs_from_an_empty_folder_in_the_words_of_the_readme(tmp_path, monkeypatch):
    block = next(b for b in blocks("bash") if "medadv attack" in b)
    script, attack = block.replace("\\\n", " ").strip().splitlines()
    monkeypatch.chdir(tmp_path)
    words = script.split()
    assert words[0] == "python"
    subprocess.run([sys.executable, str(ROOT / words[1]), *words[2:]], check=True, timeout=300,
                   env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert main(shlex.split(attack)[1:]) == 0
    table = pd.read_csv(tmp_path / "work" / "attacked" / "attack.csv")
    assert table["dice_before"].item() > 0.85 and table["dice_after"].item() < 0.7 and table["linf"].item() == 10
    assert (tmp_path / "work" / "attacked" / "scan" / "figure.png").is_file()
