"""What the README shows works as it is written."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest
import yaml

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
