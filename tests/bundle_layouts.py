"""Bundles in the styles in which MONAI's are published, with tiny networks, written to a folder.

Each layout is a function that writes a bundle and returns its folder. Configs are written as published ones are: with
expressions in the parts that nobody needs (data lists, handlers), references of both spellings, and metadata that is
not always right.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from monai.bundle import ConfigParser
from monai.networks.nets import EfficientNetBN
from torch import nn

DEVICE = "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')"


def write_bundle(
    root: Path,
    configs: dict[str, dict[str, Any]],
    metadata: dict[str, Any] | None = None,
    *,
    style: str = "json",
    network: nn.Module | None = None,
    checkpoint: Callable[[dict[str, Any]], Any] = dict,
    scripts: dict[str, str] | None = None,
) -> Path:
    """Writes a bundle.

    Args:
        root: its folder.
        configs: stem -> content.
        metadata: of ``metadata.json``; None: the file is left out.
        style: suffix of the configs.
        network: whose weights are saved; default: the config's, built by MONAI.
        checkpoint: what of a state dict is saved.
        scripts: name -> source of modules of its ``scripts`` package.
    """
    (root / "configs").mkdir(parents=True)
    (root / "models").mkdir()
    for stem, content in configs.items():
        text = json.dumps(content, indent=1) if style == "json" else yaml.safe_dump(content, sort_keys=False)
        (root / "configs" / f"{stem}.{style}").write_text(text)
    if metadata is not None:
        (root / "configs" / "metadata.json").write_text(json.dumps(metadata))
    for name, source in (scripts or {}).items():
        (root / "scripts").mkdir(exist_ok=True)
        (root / "scripts" / name).write_text(source)
    if network is None:
        network = monai_parser(configs).get_parsed_content("network_def")
    torch.save(checkpoint(network.state_dict()), root / "models" / "model.pt")
    return root


def monai_parser(configs: dict[str, dict[str, Any]], stem: str = "inference") -> ConfigParser:
    """MONAI's own parser of a config, which runs what the config says."""
    torch.manual_seed(0)
    return ConfigParser(json.loads(json.dumps(configs[stem])))


def inference(network: dict[str, Any], before: list[Any], after: list[Any], inferer: Any = None) -> dict[str, Any]:
    """An ``inference`` config around its four parts, with all that a published one has beside them."""
    return {
        "imports": ["$import glob", "$import os"],
        "bundle_root": ".",
        "image_key": "image",
        "output_dir": "$@bundle_root + '/eval'",
        "dataset_dir": "/workspace/data",
        "datalist": "$list(sorted(glob.glob(@dataset_dir + '/*.nii.gz')))",
        "device": DEVICE,
        "network_def": network,
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": before},
        "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in @datalist]", "transform": "@preprocessing"},
        "inferer": inferer or {"_target_": "SimpleInferer"},
        "postprocessing": {"_target_": "Compose", "transforms": [*after, SAVED]},
        "handlers": [{"_target_": "StatsHandler", "iteration_log": False, "output_transform": "$lambda x: None"}],
        "evaluator": {
            "_target_": "SupervisedEvaluator", "device": "@device", "network": "@network", "inferer": "@inferer",
            "postprocessing": "@postprocessing", "val_handlers": "@handlers", "amp": True,
        },
        "checkpointloader": {
            "_target_": "CheckpointLoader",
            "load_path": "$@bundle_root + '/models/model.pt'",
            "load_dict": {"model": "@network"},
        },
        "initialize": ["$monai.utils.set_determinism(seed=123)", "$@checkpointloader(@evaluator)"],
        "run": ["$@evaluator.run()"],
    }  # fmt: skip


SAVED = {
    "_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_dtype": "$numpy.float32",
    "output_name_formatter": "$lambda meta, saver: dict(idx=0)",
}  # fmt: skip


def unet(dims: int, inputs: int, outputs: Any, **changes: Any) -> dict[str, Any]:
    """A UNet of two levels."""
    return {
        "_target_": "UNet", "spatial_dims": dims, "in_channels": inputs, "out_channels": outputs, "channels": [4, 8],
        "strides": [2], "num_res_units": 1, "norm": "batch", **changes,
    }  # fmt: skip


def formats(inputs: dict[str, Any], outputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Metadata with one image and one prediction."""
    return {
        "version": "0.1.0",
        "network_data_format": {"inputs": {"image": inputs}, "outputs": {"pred": outputs}},
        **more,
    }


def segmentation(names: list[str], dims: int) -> dict[str, Any]:
    """The output of a segmenter in metadata."""
    return {
        "type": "image", "format": "segmentation", "num_channels": len(names), "spatial_shape": [16] * dims,
        "value_range": [0, 1], "channel_def": {str(i): name for i, name in enumerate(names)},
    }  # fmt: skip


def classes(names: list[str]) -> dict[str, Any]:
    """The output of a classifier in metadata."""
    return {
        "type": "probabilities", "format": "classes", "num_channels": len(names), "spatial_shape": [1, len(names)],
        "value_range": [0, 1], "channel_def": {str(i): name for i, name in enumerate(names)},
    }  # fmt: skip


def ct_segmentation(root: Path, **changes: Any) -> Path:
    """An organ on CT, 3D: HU window, sliding window, softmax; train and evaluate configs in ``validate#`` style."""
    window = {"a_min": -57, "a_max": 164, "b_min": 0, "b_max": 1, "clip": True}
    both = ["image", "label"]
    before = [
        {"_target_": "LoadImaged", "keys": "@image_key"},
        {"_target_": "EnsureChannelFirstd", "keys": "@image_key"},
        {"_target_": "Orientationd", "keys": "@image_key", "axcodes": "RAS"},
        {"_target_": "Spacingd", "keys": "@image_key", "pixdim": [1.5, 1.5, 2.0], "mode": "bilinear"},
        {"_target_": "ScaleIntensityRanged", "keys": "@image_key", **window},
        {"_target_": "EnsureTyped", "keys": "@image_key", "device": "@device"},
    ]
    after = [
        {"_target_": "Activationsd", "keys": "pred", "softmax": True},
        {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "@image_key",
         "nearest_interp": False, "to_tensor": True},
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
    ]  # fmt: skip
    windows = {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "sw_batch_size": 4, "overlap": 0.5}
    train = {
        "bundle_root": ".",
        "ckpt_dir": "$@bundle_root + '/models'",
        "network_def": unet(3, 1, 2),
        "loss": {"_target_": "DiceCELoss", "to_onehot_y": True, "softmax": True, "batch": True},
        "train": {
            "deterministic_transforms": [
                {"_target_": "LoadImaged", "keys": both},
                {"_target_": "EnsureChannelFirstd", "keys": both},
                {"_target_": "Orientationd", "keys": both, "axcodes": "RAS"},
                {"_target_": "ScaleIntensityRanged", "keys": "image", **window},
            ],
            "random_transforms": [{"_target_": "RandFlipd", "keys": both, "prob": 0.5}],
            "preprocessing": {
                "_target_": "Compose", "transforms": "$@train#deterministic_transforms + @train#random_transforms",
            },
            "postprocessing": {"_target_": "Compose", "transforms": [
                {"_target_": "Activationsd", "keys": "pred", "softmax": True}]},
        },
        "validate": {
            "preprocessing": {"_target_": "Compose", "transforms": "%train#deterministic_transforms"},
            "postprocessing": "%train#postprocessing",
            "inferer": windows,
        },
    }  # fmt: skip
    evaluate = {"validate#handlers": [{"_target_": "StatsHandler"}], "run": ["$@validate#evaluator.run()"]}
    configs = {"inference": inference(unet(3, 1, 2), before, after, windows), "train": train, "evaluate": evaluate}
    image = {"type": "image", "format": "hounsfield", "modality": "CT", "num_channels": 1, "value_range": [0, 1],
             "spatial_shape": [16, 16, 16], "channel_def": {"0": "image"}}  # fmt: skip
    return write_bundle(root, configs, formats(image, segmentation(["background", "spleen"], 3)), **changes)


def brain_regions(root: Path, **changes: Any) -> Path:
    """Overlapping tumour regions on four MR sequences, 3D: z-scores, sigmoid, labels taken apart."""
    before = [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True, "channel_wise": True},
    ]
    after = [
        {"_target_": "Activationsd", "keys": "pred", "sigmoid": True},
        {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.4},
    ]
    network = {"_target_": "SegResNet", "blocks_down": [1, 1], "blocks_up": [1], "init_filters": 8, "in_channels": 4,
               "out_channels": 3, "dropout_prob": 0.2}  # fmt: skip
    steps = [
        {"_target_": "LoadImaged", "keys": ["image", "label"]},
        {"_target_": "ConvertToMultiChannelBasedOnBratsClassesd", "keys": "label"},
        {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True, "channel_wise": True},
    ]
    train = {
        "loss": {"_target_": "DiceLoss", "squared_pred": True, "to_onehot_y": False, "sigmoid": True},
        "train": {"preprocessing_transforms": steps},
        "validate": {"preprocessing": {"_target_": "Compose", "transforms": "$@train#preprocessing_transforms"}},
    }
    windows = {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "sw_batch_size": 1, "overlap": 0.5}
    image = {"type": "image", "format": "magnitude", "modality": "MR", "num_channels": 4, "value_range": [],
             "spatial_shape": ["8*n"] * 3, "channel_def": {"0": "T1c", "1": "T1", "2": "T2", "3": "FLAIR"}}  # fmt: skip
    regions = segmentation(["Tumor core", "Whole tumor", "Enhancing tumor"], 3)
    configs = {"inference": inference(network, before, after, windows), "train": train}
    return write_bundle(root, configs, formats(image, regions), checkpoint=lambda state: {"model": state}, **changes)


RGB = {"0": "R", "1": "G", "2": "B"}


def photo(channels: dict[str, str]) -> dict[str, Any]:
    """A photograph in metadata, whose range is that of another step than the network's input."""
    return {"type": "magnitude", "format": "RGB", "modality": "regular", "num_channels": len(channels),
            "spatial_shape": [32, 32], "value_range": [0, 1], "channel_def": channels}  # fmt: skip


def densenet(inputs: int, outputs: int) -> dict[str, Any]:
    """A DenseNet of four thin blocks."""
    return {"_target_": "DenseNet", "spatial_dims": 2, "in_channels": inputs, "out_channels": outputs,
            "init_features": 4, "growth_rate": 2, "block_config": [1, 1, 1, 1]}  # fmt: skip


def photo_classes(root: Path, **changes: Any) -> Path:
    """Two classes of an RGB photograph: z-scores, no activation but an argmax."""
    before = [
        {"_target_": "LoadImaged", "keys": "@image_key", "image_only": False},
        {"_target_": "EnsureChannelFirstd", "keys": "@image_key", "channel_dim": -1},
        {"_target_": "Resized", "keys": "@image_key", "spatial_size": [32, 32], "mode": "bilinear"},
        {"_target_": "CastToTyped", "dtype": "$torch.float32", "keys": "@image_key"},
        {"_target_": "NormalizeIntensityd", "nonzero": True, "channel_wise": True, "keys": "@image_key"},
    ]
    after = [{"_target_": "AsDiscreted", "argmax": True, "to_onehot": 2, "keys": ["pred"]}]
    configs = {
        "inference": inference(densenet(3, 2), before, after),
        "train": {"loss": {"_target_": "torch.nn.CrossEntropyLoss", "reduction": "sum"}},
    }
    return write_bundle(root, configs, formats(photo(RGB), classes(["in body", "out body"])), **changes)


def one_logit(root: Path, **changes: Any) -> Path:
    """One logit of an RGB patch: weights fetched by default, a sigmoid without threshold, cross-entropy in training."""
    network = {"_target_": "EfficientNetBN", "model_name": "efficientnet-b0", "num_classes": 1}
    before = [
        {"_target_": "CastToTyped", "keys": "image", "dtype": "float32"},
        {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0, "a_max": 255, "b_min": -1, "b_max": 1},
        {"_target_": "ToTensord", "keys": "image"},
    ]
    after = [{"_target_": "EnsureTyped", "keys": "pred"}, {"_target_": "Activationsd", "keys": "pred", "sigmoid": True}]
    configs = {
        "inference": inference(network, before, after),
        "train": {"loss": {"_target_": "torch.nn.BCEWithLogitsLoss"}},
    }
    output = {"type": "probability", "format": "classification", "num_channels": 1, "spatial_shape": [1, 1],
              "channel_def": {"0": "metastasis"}}  # fmt: skip
    metadata = formats({**photo(RGB), "value_range": [0, 255]}, output)
    saved = EfficientNetBN("efficientnet-b0", pretrained=False, num_classes=1)
    return write_bundle(root, configs, metadata, **{"network": saved, **changes})


def nuclei_with_mask(root: Path, **changes: Any) -> Path:
    """Four classes of a nucleus, which a mask from a second file points out."""
    both = ["image", "label"]
    before = [
        {"_target_": "LoadImaged", "keys": both, "dtype": "uint8", "image_only": False},
        {"_target_": "EnsureChannelFirstd", "keys": both},
        {
            "_target_": "ScaleIntensityRanged",
            "keys": "image",
            "a_min": 0.0,
            "a_max": 255.0,
            "b_min": -1.0,
            "b_max": 1.0,
        },
        {"_target_": "AddLabelAsGuidanced", "keys": "image", "source": "label"},
    ]
    after = [{"_target_": "Activationsd", "keys": "pred", "softmax": True}]
    configs = {
        "inference": inference(densenet(4, 4), before, after),
        "train": {"loss": {"_target_": "torch.nn.CrossEntropyLoss"}},
    }
    names = ["Other", "Inflammatory", "Epithelial", "Spindle-Shaped"]
    return write_bundle(root, configs, formats(photo({**RGB, "3": "Mask"}), classes(names)), **changes)


def clicks(root: Path, **changes: Any) -> Path:
    """Nuclei segmented from clicks, whose two channels are computed by a transform of an application."""
    before = [
        {"_target_": "LoadImaged", "keys": "@image_key", "dtype": "uint8", "image_only": False},
        {"_target_": "EnsureChannelFirstd", "keys": "@image_key"},
        {"_target_": "AddClickSignalsd", "image": "@image_key", "foreground": "foreground", "gaussian": False},
    ]
    after = [
        {"_target_": "Activationsd", "keys": "pred", "sigmoid": True},
        {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5},
        {"_target_": "KeepLargestConnectedComponentd", "keys": "pred"},
    ]
    configs = {"inference": inference(unet(2, 5, 1), before, after)}
    channels = {**RGB, "3": "+ve Signal", "4": "-ve Signal"}
    return write_bundle(root, configs, formats(photo(channels), segmentation(["Nuclei"], 2)), **changes)


def flat_template(root: Path, style: str = "yaml", **changes: Any) -> Path:
    """The template's flat keys: constants of MONAI by name, lists of transforms of their own, val_handlers."""
    config = inference(unet(3, 1, "@num_classes"), [], [])
    config |= {
        "image": "$monai.utils.CommonKeys.IMAGE",
        "label": "$monai.utils.CommonKeys.LABEL",
        "pred": "$monai.utils.CommonKeys.PRED",
        "num_classes": 4,
        "ckpt_path": "$@bundle_root + '/models/model.pt'",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "@image", "image_only": True},
            {"_target_": "EnsureChannelFirstd", "keys": "@image"},
            {"_target_": "ScaleIntensityd", "keys": "@image"},
        ],
        "preprocessing": {"_target_": "Compose", "transforms": "$@transforms"},
        "postprocessing": {"_target_": "Compose", "transforms": [
            {"_target_": "Activationsd", "keys": "@pred", "softmax": True},
            {"_target_": "AsDiscreted", "keys": ["@pred", "@label"], "argmax": [True, False],
             "to_onehot": "@num_classes"},
            {"_target_": "ToTensord", "keys": ["@pred", "@label"], "device": "@device"},
        ]},
        "val_handlers": [{
            "_target_": "CheckpointLoader", "_disabled_": "$not os.path.exists(@ckpt_path)", "load_path": "@ckpt_path",
            "load_dict": {"model": "@network"},
        }],
    }  # fmt: skip
    del config["checkpointloader"], config["initialize"], config["handlers"], config["evaluator"]
    image = {"type": "image", "format": "magnitude", "modality": "none", "num_channels": 1, "value_range": [],
             "spatial_shape": [16, 16, 16], "channel_def": {"0": "image"}}  # fmt: skip
    output = segmentation(["background", "category 1", "category 2", "category 3"], 3)
    return write_bundle(root, {"inference": config}, formats(image, output), style=style, **changes)


def renal_structures(root: Path, **changes: Any) -> Path:
    """Six overlapping channels, of which the first is background, trained on one-hot labels with a sigmoid."""
    before = [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": -1000, "a_max": 1000, "b_min": 0, "b_max": 1},
    ]
    after = [
        {"_target_": "Activationsd", "keys": "pred", "softmax": False, "sigmoid": True},
        {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5},
    ]
    steps = [
        {"_target_": "LoadImaged", "keys": ["image", "label"]},
        {"_target_": "MapLabelValued", "keys": "label", "orig_labels": [4, 5, 6], "target_labels": [4, 4, 5]},
    ]
    train = {
        "loss": {"_target_": "DiceLoss", "include_background": False, "to_onehot_y": True, "sigmoid": True},
        "validate": {"preprocessing": {"_target_": "Compose", "transforms": steps}},
    }
    image = {
        "type": "image",
        "format": "hounsfield",
        "modality": "CT",
        "num_channels": 1,
        "spatial_shape": [16, 16, 16],
    }
    names = ["background", "artery", "vein", "ureter", "neoplasm", "parenchyma"]
    configs = {"inference": inference(unet(3, 1, 6), before, after), "train": train}
    return write_bundle(root, configs, formats(image, segmentation(names, 3)), **changes)


def slices(root: Path, **changes: Any) -> Path:
    """A 2D network run over the slices of a volume."""
    before = [
        {"_target_": "LoadImaged", "keys": "image", "image_only": False},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "ScaleIntensityd", "keys": "image"},
        {"_target_": "EnsureTyped", "keys": "image", "device": "@device"},
    ]
    after = [
        {"_target_": "Activationsd", "keys": "pred", "softmax": True},
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
    ]
    inferer = {"_target_": "SliceInferer", "roi_size": [16, 16], "spatial_dim": 2}
    image = {"type": "image", "format": "magnitude", "modality": "MR", "num_channels": 1, "spatial_shape": [16, 16]}
    names = ["background", "lv_pool", "myocardium", "rv_pool"]
    configs = {"inference": inference(unet(2, 1, 4), before, after, inferer)}
    return write_bundle(root, configs, formats(image, segmentation(names, 2)), **changes)


READABLE: dict[str, Callable[..., Path]] = {
    layout.__name__: layout
    for layout in (
        ct_segmentation, brain_regions, photo_classes, one_logit, nuclei_with_mask, flat_template, renal_structures,
        slices,
    )
}  # fmt: skip
