"""A bundle that is not trusted runs nothing, reads nothing outside its folder and costs little: seen by its effects."""

from __future__ import annotations

import builtins
import json
import resource
import shutil
import sys
import time
from pathlib import Path

import bundle_layouts as layouts
import pytest
import torch
import yaml
from monai.networks.nets import UNet

from medadv.adapters import BundleError, from_bundle
from medadv.adapters.bundle_files import MAX_BYTES

NETWORK = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]}


@pytest.fixture
def mark(tmp_path):
    """A file that exists only if something ran."""
    path = tmp_path / "ran"
    yield path
    assert not path.exists(), "the bundle ran code"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return layouts.ct_segmentation(tmp_path_factory.mktemp("written") / "bundle")


@pytest.fixture
def bundle(written, tmp_path):
    return Path(shutil.copytree(written, tmp_path / "bundle"))


@pytest.fixture
def cheap():
    """Fails if a test takes long or much memory."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    seconds, kilobytes = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert seconds < 20 and kilobytes < 300_000, (seconds, kilobytes)


@pytest.fixture
def poisoned(tmp_path, mark, monkeypatch):
    """A module that can be imported by its name and leaves the mark when it is."""
    folder = tmp_path / "importable"
    folder.mkdir()
    source = f"open({str(mark)!r}, 'w').close()\nimport torch\nclass Net(torch.nn.Module):\n    pass\n"
    (folder / "poisoned_bundle_module.py").write_text(source)
    monkeypatch.syspath_prepend(str(folder))
    return "poisoned_bundle_module"


def edit(root: Path, **changes: object) -> Path:
    path = root / "configs" / "inference.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return root


def refuses(root: Path, message: str | None = None, **given: object) -> str:
    with pytest.raises(BundleError, match=message) as caught:
        from_bundle(root, **given)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 500 and text.endswith(".")
    return text


COMMANDS = (
    "os.system", "posix.system", "subprocess.Popen", "builtins.eval", "builtins.exec", "torch.load", "torch.hub.load",
    "monai.bundle.run", "monai.apps.utils.download_url", "monai.utils.module.instantiate", "monai.transforms.Lambdad",
    "monai.transforms.TorchVisiond", "monai.transforms.SaveImage", "monai.networks.nets.resnet.hf_hub_download",
    "monai.networks.nets.os.system", "monai.networks.nets.UNet.__init__", "monai.networks.nets.", "torch.nn.os.system",
    "torch.nn.Transformer.os", "", ".",
)  # fmt: skip


@pytest.mark.parametrize("target", COMMANDS)
@pytest.mark.parametrize("place", ["network_def", "preprocessing", "postprocessing", "inferer", "nested", "loss"])
def test_no_target_outside_the_list_is_built(bundle, mark, target, place):
    command = f"touch {mark}"
    call = {"_target_": target, "command": command, "args": ["touch", str(mark)], "keys": "image", "source": command}
    if place == "nested":
        edit(bundle, network_def={"_target_": "UNet", **NETWORK, "act": call})
    elif place == "loss":
        edit(bundle, loss=call)
        assert from_bundle(bundle).decision.channels == 2, "a loss is described, never built"
        return
    else:
        edit(bundle, **{place: {"_target_": "Compose", "transforms": [call]} if "processing" in place else call})
    assert "names" in refuses(bundle, "trust=True")


@pytest.mark.parametrize("place", ["network_def", "preprocessing", "reader"])
def test_nothing_is_imported_by_its_name(bundle, poisoned, place):
    call = {"_target_": f"{poisoned}.Net", "keys": "image"}
    if place == "reader":
        call = {"_target_": "LoadImaged", "keys": "image", "reader": f"{poisoned}.Net"}
        edit(bundle, preprocessing=[call])
        assert "preprocessing::0::reader" in refuses(bundle, "NibabelReader")
        edit(bundle, preprocessing=[{**call, "reader": poisoned}])
    else:
        edit(bundle, **{place: call if place == "network_def" else [call]})
    refuses(bundle)
    assert poisoned not in sys.modules


def test_known_readers_are_named_as_people_write_them(bundle):
    step = {"_target_": "LoadImaged", "keys": "image", "reader": ["nibabelreader", "PILReader"]}
    edit(bundle, preprocessing={"_target_": "Compose", "transforms": [step]})
    (step,) = from_bundle(bundle).preprocessing
    assert [type(reader).__name__ for reader in step._loader.readers[-2:]] == ["NibabelReader", "PILReader"]


def test_scripts_are_not_imported(bundle, mark, monkeypatch):
    (bundle / "scripts").mkdir()
    for name in ("__init__.py", "net.py"):
        (bundle / "scripts" / name).write_text(f"open({str(mark)!r}, 'w').close()")
    monkeypatch.chdir(bundle)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    edit(bundle, imports=["$import scripts", "$from scripts.net import Net"], _requires_="$import scripts")
    assert from_bundle(bundle).decision.channels == 2
    edit(bundle, network_def={"_target_": "scripts.net.Net"})
    refuses(bundle, "names 'scripts.net.Net'")
    assert "scripts" not in sys.modules


def expression(mark: Path) -> str:
    return f"$__import__('os').system('touch {mark}')"


UNNEEDED = ("imports", "device", "output_dir", "datalist", "dataset", "evaluator", "handlers", "initialize", "run",
            "bundle_root", "network")  # fmt: skip


@pytest.mark.parametrize("key", UNNEEDED)
def test_code_that_is_not_needed_is_not_run(bundle, mark, key):
    edit(bundle, **{key: [expression(mark)] if key in ("imports", "handlers", "run") else expression(mark)})
    assert from_bundle(bundle).decision.channels == 2


@pytest.mark.parametrize(("key", "content"), [
    ("network_def", "CODE"), ("network_def", {"_target_": "CODE"}),
    ("network_def", {"_target_": "UNet", "act": "CODE"}), ("network_def", {"_target_": "UNet", "_mode_": "CODE"}),
    ("network_def", {"_target_": "UNet", "_requires_": ["CODE"]}), ("network_def", "@code"),
    ("preprocessing", {"_target_": "Compose", "transforms": "CODE"}),
    ("preprocessing", [{"_target_": "LoadImaged", "keys": "CODE"}]),
    ("preprocessing", [{"_target_": "LoadImaged", "keys": "image", "_disabled_": "CODE"}]),
    ("preprocessing", [{"_target_": "LoadImaged", "keys": "image", "reader": "CODE"}]),
    ("preprocessing", [{"_target_": "Lambdad", "keys": "image", "func": "CODE"}]),
    ("postprocessing", [{"_target_": "Activationsd", "keys": "pred", "other": "CODE"}]), ("inferer", "CODE"),
    ("inferer", {"_target_": "SimpleInferer", "x": ["CODE"]}),
    ("checkpointloader", {"_target_": "CheckpointLoader", "load_path": "CODE"}),
])  # fmt: skip
def test_code_that_is_needed_is_refused(bundle, mark, key, content):
    text = json.dumps(content).replace("CODE", expression(mark))
    edit(bundle, code=expression(mark), **{key: json.loads(text)})
    refuses(bundle, "pass (network|preprocessing|postprocessing|inferer|weights)= or trust=True")


@pytest.mark.parametrize("text", [
    "$@network_def.to(@device) or CODE", "$@network_def.to(CODE)", "$'a' + CODE", "$@bundle_root + '/' + CODE",
    "$torch.float32 if CODE else 0", "$@bundle_root\n+ CODE", "$ CODE", "$'\\' + CODE + '", "$(@bundle_root)",
    "$f'{CODE}'",
])  # fmt: skip
def test_spellings_of_data_leave_no_room_for_code(bundle, mark, text):
    text = text.replace("CODE", f"__import__('os').system('touch {mark}')")
    edit(bundle, network_def={"_target_": "UNet", **NETWORK, "act": text})
    refuses(bundle, "network_def::act is code")


@pytest.mark.parametrize("network", [
    {"_target_": "EfficientNetBN", "model_name": "efficientnet-b0", "num_classes": 2},
    {"_target_": "ResNetFeatures", "model_name": "resnet10"},
    {"_target_": "HoVerNet", "pretrained_url": "https://example.org/weights.pt", "out_classes": 2},
    {"_target_": "SEResNet50", "spatial_dims": 2, "in_channels": 3, "num_classes": 2, "pretrained": True},
    {"_target_": "FlexibleUNet", "in_channels": 3, "out_channels": 2, "backbone": "efficientnet-b0",
     "pretrained": True},
])  # fmt: skip
def test_nothing_is_fetched(bundle, network, monkeypatch):
    def fetch(*args, **kwargs):
        raise AssertionError("the bundle fetches files")

    monkeypatch.setattr("socket.socket.connect", fetch)
    monkeypatch.setattr("urllib.request.urlopen", fetch)
    edit(bundle, network_def=network)
    refuses(bundle, "model.pt does not fit")


@pytest.mark.parametrize("network", [
    {"_target_": "Transchex", "path_or_repo_id": "someone/model"},
    {"_target_": "UNet", **NETWORK, "checkpoint_path": "/etc/passwd"},
    {"_target_": "DenseNet121", "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "weights_file": "x.pt"},
])  # fmt: skip
def test_networks_read_no_files(bundle, network):
    edit(bundle, network_def=network)
    refuses(bundle, "names (a file|'Transchex')")


def test_with_trust_the_same_expressions_and_pickles_run(bundle, tmp_path):
    path = tmp_path / "seen"
    edit(bundle, network_def={"_target_": "UNet", **NETWORK, "num_res_units": expression(path)})
    with pytest.raises(BundleError):
        from_bundle(bundle, trust=True)
    assert path.exists()
    path.unlink()
    torch.save(Payload(path), bundle / "models" / "model.pt")
    with pytest.raises(BundleError):
        from_bundle(bundle, trust=True)
    assert path.exists()


class Payload:
    """What a pickle can do when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self):
        return builtins.open, (self.mark, "w")


def test_pickled_weights_are_not_loaded(bundle, mark):
    torch.save({"model": Payload(mark)}, bundle / "models" / "model.pt")
    refuses(bundle, "model.pt holds more than tensors.*pass weights=.*or trust=True")
    torch.save(UNet(3, 1, 2, (4, 8), (2,)), bundle / "models" / "model.pt")
    refuses(bundle, "holds more than tensors")
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(bundle / "models" / "model.pt"))
    refuses(bundle, "TorchScript")
    (bundle / "models" / "model.pt").write_bytes(b"\x80\x02not a pickle")
    refuses(bundle, "or is damaged")


def test_weights_given_by_the_user_are_held_to_the_same(bundle, mark, tmp_path):
    torch.save(Payload(mark), tmp_path / "theirs.pt")
    refuses(bundle, "theirs.pt holds more than tensors", weights=tmp_path / "theirs.pt")


@pytest.mark.parametrize("name", ["../outside.pt", "models/../../outside.pt", "ABSOLUTE", "models/link.pt",
                                  "linked/outside.pt", "$@bundle_root + '/../outside.pt'", "models/loop.pt", "models",
                                  "a\0b"])  # fmt: skip
def test_no_path_leaves_the_folder(bundle, tmp_path, name):
    outside = tmp_path / "outside.pt"
    torch.save(torch.load(bundle / "models" / "model.pt"), outside)
    (bundle / "models" / "link.pt").symlink_to(outside)
    (bundle / "models" / "loop.pt").symlink_to(bundle / "models" / "loop.pt")
    (bundle / "linked").symlink_to(tmp_path)
    name = str(outside) if name == "ABSOLUTE" else name
    edit(bundle, checkpointloader={"_target_": "CheckpointLoader", "load_path": name})
    refuses(bundle, "(leads outside the folder|there is no file).*pass weights= with the file")
    assert from_bundle(bundle, weights=outside).decision.channels == 2


def test_a_checkpoint_behind_a_link_is_not_read(bundle, tmp_path):
    (bundle / "models" / "model.pt").rename(tmp_path / "elsewhere.pt")
    (bundle / "models" / "model.pt").symlink_to(tmp_path / "elsewhere.pt")
    refuses(bundle, "'models/model.pt' leads outside the folder")


@pytest.mark.parametrize("stem", ["inference", "metadata"])
def test_a_config_behind_a_link_is_not_read(bundle, tmp_path, stem):
    path = bundle / "configs" / f"{stem}.json"
    path.rename(tmp_path / "elsewhere.json")
    path.symlink_to(tmp_path / "elsewhere.json")
    refuses(bundle, f"'configs/{stem}.json' leads outside the folder")


@pytest.mark.parametrize("macro", ["%../secret.json::key", "%/etc/hosts.json", "%secret.yaml#a", "%file.json"])
def test_no_macro_reads_a_file(bundle, tmp_path, macro):
    (tmp_path / "secret.json").write_text(json.dumps({"key": {"_target_": "UNet", **NETWORK}}))
    edit(bundle, network_def=macro)
    refuses(bundle, "network_def is copied from another file")


def laughs(levels: int, line: str) -> str:
    head = "a0: &a0 {x: 1}\n"
    return head + "".join(line.format(i=i, j=i - 1) for i in range(1, levels))


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize(("text", "message"), [
    (laughs(40, "a{i}: &a{i} [" + ", ".join(["*a{j}"] * 9) + "]\n"), "aliases write out to more than"),
    (laughs(40, "a{i}: &a{i} {{<<: [" + ", ".join(["*a{j}"] * 9) + "]}}\n"), "aliases write out to more than"),
    ("a: &a [*a]\n", "aliases write out"),
    ("x: " + "[" * 100_000, "nested more than"),
    ("x: " + "{a: " * 60 + "1" + "}" * 60, "nested more than"),
    ("x: !!python/object/apply:os.system ['touch MARK']", "not valid YAML"),
    ("x: !!python/object/new:subprocess.Popen [['touch', 'MARK']]", "not valid YAML"),
    ("x: !!python/name:os.system", "not valid YAML"),
    ("x: !!binary aGVsbG8=", "holds bytes"),
    ("x: 2020-01-01", "holds date"),
    ("x: !!set {a, b}", "holds set"),
    ("? [a, b]\n: 1", "not valid YAML"),
    ("2020-01-01: 1", "holds a key of type date"),
    ("x: 1\nx: 2", "key 'x' stands twice"),
    ("- 1", "holds list, not a dictionary"),
    ("x: 1\n---\nx: 2", "not valid YAML"),
    ("x: " + "a" * MAX_BYTES, "bytes; configs of up to"),
    ("x: [" + "{a: b}, " * 30_000 + "]", "more than 50000 values"),
])  # fmt: skip
def test_yaml_is_data_and_small(bundle, mark, text, message):
    (bundle / "configs" / "inference.json").unlink()
    (bundle / "configs" / "inference.yaml").write_text(text.replace("MARK", str(mark)))
    refuses(bundle, message)


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize(("text", "message"), [
    ('{"a": 1, "a": 2}', "key 'a' stands twice"), ('{"x": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested more than"),
    ('{"x": ' + "[" * 60 + "]" * 60 + "}", "nested more than"), ("[1]", "holds list"), ("{", "not valid JSON"),
    ('{"x": [' + "1," * 60_000 + "1]}", "more than 50000 values"), ("\x00", "not valid JSON"),
    ('{"x": ' + "9" * 5000 + "}", "not valid JSON"),
])  # fmt: skip
def test_json_is_data_and_small(bundle, text, message):
    (bundle / "configs" / "inference.json").write_text(text)
    refuses(bundle, message)


def test_a_config_that_is_no_text_is_refused(bundle):
    (bundle / "configs" / "inference.json").write_bytes(b"\xff\xfe\x00")
    refuses(bundle, "not valid JSON")


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("more", [
    {"a": "@b", "b": "@a"}, {"a": ["@a"]}, {"a": {"x": "@a::x::y"}}, {"a": "%a"}, {"a": "$@a + @a"},
    {f"a{i or ''}": [f"@a{i + 1}"] * 9 for i in range(30)} | {"a30": 1},
    {f"a{i or ''}": f"$@a{i + 1} + @a{i + 1}" for i in range(30)} | {"a30": "text"},
    {f"a{i or ''}": f"$@a{i + 1} + @a{i + 1}" for i in range(30)} | {"a30": [1]},
    {f"a{i or ''}": f"@a{i + 1}" for i in range(5000)} | {"a5000": 1},
    {f"a{i or ''}": [f"@a{i + 1}"] * 9 for i in range(30)} | {"a30": {"_target_": "UNet"}},
])  # fmt: skip
def test_references_end(bundle, more):
    edit(bundle, network_def={"_target_": "UNet", **NETWORK, "channels": "@a"}, **more)
    refuses(bundle, "refers to|writes out to|adds up without bounds")


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("changes", [
    {"network_def": {"_target_": "UNet", **NETWORK, "act": "@network_def"}},
    {"network_def": {"_target_": "UNet", **NETWORK, "act": {"_target_": "UNet", "act": ["@network_def::act"]}}},
    {"preprocessing": {"_target_": "Compose", "transforms": "@preprocessing"}},
    {"preprocessing": [{"_target_": "Invertd", "keys": "image", "transform": "@preprocessing::0"}]},
    {"preprocessing": {"_target_": "Compose", "transforms": [{"_target_": "Compose", "transforms": "@preprocessing"}]}},
])  # fmt: skip
def test_nothing_is_a_part_of_itself(bundle, changes):
    edit(bundle, **changes)
    refuses(bundle, "of itself|refers to itself")


@pytest.mark.usefixtures("cheap")
def test_a_loss_that_wraps_itself_ends(bundle):
    path = bundle / "configs" / "train.json"
    loss = {"_target_": "DeepSupervisionLoss", "loss": "@loss"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"loss": loss}))
    edit(bundle, postprocessing=[])
    refuses(bundle, "loss.*pass decision=")


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize(
    "value",
    [
        "%a::b::c",
        "@::relative",
        "@",
        "%",
        "$",
        "@a::",
        "plain @text",
        "%%",
        "@strides::\u00b2",
        "@strides::" + "9" * 5000,
        "$" + "@a + " * 3000 + "@a",
        "x" * 90_000,
    ],
)
def test_odd_texts_break_nothing(bundle, value):
    edit(bundle, network_def={"_target_": "UNet", **NETWORK, "act": value}, strides=[2])
    refuses(bundle, "pass network= or trust=True")


def test_yaml_aliases_may_share_what_is_small(bundle, tmp_path):
    content = json.loads((bundle / "configs" / "inference.json").read_text())
    (bundle / "configs" / "inference.json").unlink()
    shared = ["image"]
    for step in content["preprocessing"]["transforms"]:
        step["keys"] = shared
    text = yaml.safe_dump(content)
    assert "*id001" in text
    (bundle / "configs" / "inference.yml").write_text(text)
    assert [step.keys for step in from_bundle(bundle).preprocessing] == [("image",)] * 6
