from __future__ import annotations

import copy

import pytest
import yaml

from medadv.benchmarks.data import names as data_names
from medadv.benchmarks.models import build_network, load_checkpoint
from medadv.benchmarks.suites import load_suite, parse_suite, suite_names

TASK = {
    "name": "t",
    "data": "embedded-lesions-2d",
    "models": [{"name": "m", "network": "UNet"}],
    "trainings": {"natural": {}},
    "attacks": [{"name": "fgsm"}],
}
SUITE = {"name": "s", "budgets": ["4/255"], "tasks": [TASK]}


def suite_with(path: list, value: object) -> str:
    data = copy.deepcopy(SUITE)
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return yaml.safe_dump(data)


@pytest.mark.parametrize("name", suite_names())
def test_every_suite_that_ships_is_valid(name):
    suite = load_suite(name)
    assert suite.name == name and suite.description
    assert {task.data for task in suite.tasks} <= set(data_names())


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["budgts"], [], "key 'budgts' is unknown; did you mean 'budgets'"),
        (["tasks", 0, "atacks"], [], "key 'atacks' is unknown; did you mean 'attacks'"),
        (["tasks", 0, "attacks"], [{"name": "pgd-dise"}], "attack 'pgd-dise' is unknown; did you mean 'pgd-dice'"),
        (["tasks", 0, "trainings"], {"x": {"recipe": "pgdat"}}, "recipe 'pgdat' is unknown; did you mean 'pgd-at'"),
        (["tasks", 0, "trainings"], {}, "tasks.0.trainings"),
        (
            ["tasks", 0, "trainings"],
            {"x": {"warm_start": "natural"}},
            "'x' has warm_start: natural, which does not",
        ),
        (
            ["tasks", 0, "trainings"],
            {"x": {"recipe": "hat", "options": {"eps": 1, "helper": "y"}}, "y": {}},
            "training 'x' has helper: y, which does not come before it",
        ),
        (["tasks", 0, "trainings"], {"x": {"recipe": "trades"}}, "'trades' can't be built with {}"),
        (["tasks", 0, "trainings"], {"x": {"validation": {"every": 0}}}, "validation.every"),
        (["tasks", 0, "trainings"], {"x": {"weight_perturbation": 0}}, "weight_perturbation"),
        (["tasks", 0, "batch_size"], 0, "tasks.0.batch_size"),
        (["budgets"], "4/255", "budgets"),
        (["tasks"], [TASK, TASK], "task 't' stands twice; give one of them another name"),
    ],
)
def test_a_suite_that_cannot_be_right_is_refused_with_the_place_and_the_reason(path, value, message):
    with pytest.raises(ValueError, match="suite 'mine'") as caught:
        parse_suite(suite_with(path, value), "mine")
    assert message in str(caught.value)


def test_yaml_tags_run_nothing(tmp_path):
    marker = tmp_path / "ran"
    with pytest.raises(ValueError, match="not valid YAML"):
        parse_suite(f"name: !!python/object/apply:pathlib.Path.touch [{marker}]", "evil")
    assert not marker.exists()


@pytest.mark.parametrize("text", ["- a", "just words", "a: [1"])
def test_text_that_is_no_suite_is_refused(text):
    with pytest.raises(ValueError, match="suite 'mine'"):
        parse_suite(text, "mine")


def test_unknown_suite_and_network_come_with_the_nearest_names(tmp_path):
    with pytest.raises(ValueError, match="suite 'quik' is unknown; did you mean 'quick'"):
        load_suite("quik")
    with pytest.raises(ValueError, match="does not exist"):
        load_suite(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match="network 'Unett' is unknown; did you mean .*'UNet'"):
        build_network("Unett", {})
    with pytest.raises(ValueError, match="UNet can't be built"):
        build_network("UNet", {"spatial_dims": 2})


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def test_malicious_checkpoint_runs_nothing(tmp_path):
    import torch

    marker = tmp_path / "ran"
    torch.save(Evil(marker), tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="evil.pt.* was refused.*weights_only=True"):
        load_checkpoint(torch.nn.Linear(2, 2), tmp_path / "evil.pt")
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04broken"])
def test_corrupted_checkpoint_is_refused(tmp_path, content):
    import torch

    path = tmp_path / "broken.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="broken.pt.* was refused: it is damaged"):
        load_checkpoint(torch.nn.Linear(2, 2), path)


def test_checkpoint_of_another_network_or_none_is_refused(tmp_path):
    import torch

    with pytest.raises(ValueError, match="does not exist"):
        load_checkpoint(torch.nn.Linear(2, 2), tmp_path / "none.pt")
    torch.save(torch.nn.Linear(3, 3).state_dict(), tmp_path / "other.pt")
    with pytest.raises(ValueError, match="of another network"):
        load_checkpoint(torch.nn.Linear(2, 2), tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds list"):
        load_checkpoint(torch.nn.Linear(2, 2), tmp_path / "list.pt")


@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_checkpoint_gives_the_weights_back(tmp_path, key):
    import torch

    saved, fresh = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    state = saved.state_dict()
    torch.save(state if key is None else {key: state}, tmp_path / "w.pt")
    load_checkpoint(fresh, tmp_path / "w.pt")
    assert torch.equal(fresh.weight, saved.weight)
