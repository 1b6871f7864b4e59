"""What the documentation shows is right: every example of the catalogue runs, every page is complete."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from medadv.adapters.art_preprocessors import PREPROCESSORS, REFUSED
from medadv.attacks import CATALOGUE, recipes
from medadv.benchmarks.corruptions import CORRUPTIONS
from medadv.diagnostics import CHECKS
from medadv.feature_detectors import FEATURE_DETECTORS
from medadv.objectives import OBJECTIVES
from medadv.threats import THREATS
from medadv.training import RECIPES

DOCS = Path(__file__).parents[1] / "docs"
sys.path.insert(0, str(DOCS))

from extension import examples, links, options, pages, tables  # noqa: E402

ROWS = recipes()
RUNNING = [name for name, row in ROWS.items() if examples.example_of(row)]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", RUNNING)
def test_the_example_of_an_attack_runs_as_it_stands(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name.startswith("torchattacks/"):
        pytest.importorskip("torchattacks")
    scope: dict = {"__name__": "example"}
    exec(compile(examples.example_of(ROWS[name]), name, "exec"), scope)
    x, x_adv = scope["x"], scope["x_adv"]
    assert x_adv.shape == x.shape and x_adv.dtype == x.dtype
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    assert not np.array_equal(x_adv, x), "the attack found nothing to show"
    assert capsys.readouterr().out.startswith("tensor(")


def test_what_has_no_example_is_refused():
    for name in set(ROWS) - set(RUNNING):
        assert ROWS[name].summary.startswith("refused:"), name
        assert ROWS[name].alternatives, name


@pytest.mark.parametrize("name", examples.SPECIAL)
def test_special_settings_are_of_rows_that_exist(name):
    assert name in ROWS
    ROWS[name].check_options(
        {option: None for option in examples.SPECIAL[name].options if option not in ("targeted", "norm", "eps")}
    )


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_option_is_explained(name):
    for option in CATALOGUE[name].all_options:
        assert options.meaning_of(CATALOGUE[name], option), f"say in docs/extension/options.py what {option} is"


def test_explanations_are_of_options_that_exist():
    offered = {(name, option) for name, row in CATALOGUE.items() for option in row.all_options}
    assert set(options.MEANINGS) <= {option for _, option in offered}
    assert set(options.OWN) <= offered


def test_every_attack_has_a_section_and_refused_ones_a_reason():
    made = pages.pages()
    text = "\n".join(page for path, page in made.items() if path.startswith("catalogue/"))
    for name, row in ROWS.items():
        if name in RUNNING:
            assert f"({pages.anchor(row)})=\n\n## {name}\n" in text, name
            assert f"[{name}](#{pages.anchor(row)})" in made["catalogue/index.md"], name
        else:
            assert f"| `{name}` |" in text, name


def test_every_module_has_a_page_and_stands_in_that_of_its_package():
    made = pages.pages()
    names = pages.modules()
    assert {"medadv.attacks.base", "medadv.adapters.estimators", "medadv.benchmarks.run"} <= set(names)
    for name in names:
        assert f"automodule:: {name}\n" in made[f"api/{name}.rst"]
        parent = name.rpartition(".")[0]
        assert not parent or f" * - :py:mod:`{name}`\n" in made[f"api/{parent}.rst"]


def test_tables_name_what_there_is():
    for made, known in (
        (tables.threats(), THREATS), (tables.objectives(), OBJECTIVES), (tables.corruptions(), CORRUPTIONS),
        (tables.detectors(), FEATURE_DETECTORS), (tables.preprocessors(), PREPROCESSORS),
        (tables.refused_preprocessors(), REFUSED), (tables.diagnostics(), CHECKS), (tables.advice(), CHECKS),
    ):  # fmt: skip
        assert set(re.findall(r"^\| `([\w-]+)`", made, flags=re.MULTILINE)) == set(known)
    assert set(re.findall(r"^\| \{py:class\}`([\w-]+) <", tables.recipes(), flags=re.MULTILINE)) == set(RECIPES)
    assert "--attacks" in tables.help_of("cost") and "bench" in tables.help_of(None)


def test_every_command_is_described():
    page = (DOCS / "command-line.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\{command-help\} (\w+)", page)) == set(tables.commands())


def test_the_quickstart_runs_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    for block in re.findall(r"```python\n(.*?)```", (DOCS / "quickstart.md").read_text("utf-8"), flags=re.DOTALL):
        exec(compile(block, "quickstart.md", "exec"), scope)
    printed = capsys.readouterr().out
    assert "(2, 2, 32, 32, 32) True" in printed and "10.0 HU" in printed and "worst-case" in printed
    assert (tmp_path / "leaderboard.csv").exists()


def test_the_examples_of_the_training_page_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    for block in re.findall(r"```python\n(.*?)```", (DOCS / "training.md").read_text("utf-8"), flags=re.DOTALL):
        if "SupervisedTrainer" in block:
            pytest.importorskip("ignite", reason="MONAI's trainers need pytorch-ignite")
        exec(compile(block, "training.md", "exec"), scope)
    printed = capsys.readouterr().out
    assert "best epoch" in printed and "3 updates by hand" in printed and "trainer's last loss" in printed
    assert (tmp_path / "trades.pt").exists()


def test_the_examples_of_the_diagnostics_page_run_in_order(capsys):
    scope: dict = {}
    for block in re.findall(r"```python\n(.*?)```", (DOCS / "diagnostics.md").read_text("utf-8"), flags=re.DOTALL):
        exec(compile(block, "diagnostics.md", "exec"), scope)
    lines = capsys.readouterr().out.splitlines()
    assert "zero-gradients=1.00" in lines and lines[-1] == "under pgd 1.00, under the attack advised 0.00"


def test_the_examples_of_the_files_page_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```python\n(.*?)```", (DOCS / "files.md").read_text("utf-8"), flags=re.DOTALL):
        exec(compile(block, "files.md", "exec"), {})
    assert capsys.readouterr().out.splitlines()[-2:] == ["HU True True", "True"]
    assert (tmp_path / "out" / "scan_adversarial.nii.gz").is_file()


def test_the_examples_of_the_bundles_page_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    for block in re.findall(r"```python\n(.*?)```", (DOCS / "bundles.md").read_text("utf-8"), flags=re.DOTALL):
        exec(compile(block, "bundles.md", "exec"), scope)
    printed = capsys.readouterr().out
    assert "spleen: inference.json: inferer::roi_size is code ('$(96,) * 3'); pass inferer= or trust=True." in printed
    assert "Multiclass(num_classes=2, background=0" in printed and "('background', 'spleen') HU" in printed


def test_the_examples_of_the_pipelines_page_run_in_order(tmp_path, monkeypatch, capsys):
    pytest.importorskip("ignite", reason="MONAI's engines need pytorch-ignite")
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    for block in re.findall(r"```python\n(.*?)```", (DOCS / "pipelines.md").read_text("utf-8"), flags=re.DOTALL):
        exec(compile(block, "pipelines.md", "exec"), scope)
    printed = capsys.readouterr().out
    assert "val_mean_dice_robust 0." in printed and "['dice', 'dice_biased', 'surface_biased']" in printed
    assert "epochs trained: 1" in printed and "at most 4/255: True" in printed and "bits changed: True" in printed
    assert "adversarial_infinite" in printed and (tmp_path / "tables" / "metrics.csv").exists()


def test_the_suite_of_the_benchmarks_page_is_valid(tmp_path):
    from medadv.benchmarks import load_suite

    first, more = re.findall(r"```yaml\n(.*?)```", (DOCS / "benchmarks.md").read_text("utf-8"), flags=re.DOTALL)
    (tmp_path / "mine.yaml").write_text(more + first)
    suite = load_suite(tmp_path / "mine.yaml")
    assert suite.tasks[0].attacks[-1].name == "robust"
    assert (suite.rows, suite.acceleration) == ("worst-case", "auto")


@pytest.mark.parametrize(("name", "expected"), [
    ("medadv.attacks.create", "medadv.attacks.catalogue.create"), ("torch.Tensor", "torch.Tensor"),
    ("medadv.problem.Problem.evaluate", "medadv.problem.Problem.evaluate"), ("medadv.attacks.creat", None),
    ("medadv.victims.Features.logits", "medadv.victims.Features.logits"), ("no_such_module.Thing", None),
])  # fmt: skip
def test_names_are_found_where_they_were_defined(name, expected):
    found = links.locate(name)
    assert (None if found is None else found[1]) == expected


@pytest.mark.parametrize(("text", "expected"), [
    ("2003.01690, 2306.12941", "[arXiv:2003.01690](https://arxiv.org/abs/2003.01690), "
                               "[arXiv:2306.12941](https://arxiv.org/abs/2306.12941)"),
    ("10.1145/3134600.3134635", "[doi:10.1145/3134600.3134635](https://doi.org/10.1145/3134600.3134635)"),
    ("baseline", "baseline"),
])  # fmt: skip
def test_paper_ids_become_links(text, expected):
    assert pages.reference(text) == expected
