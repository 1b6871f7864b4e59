"""The volumes that are known by name: four collections with a datalist, and the ten tasks of the Decathlon."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from monai.apps import DecathlonDataset, download_and_extract

from medadv.benchmarks.data.base import Dataset
from medadv.benchmarks.data.datalists import Volumes, load_datalist

SOFT_TISSUE = (-175.0, 250.0)
_BODY = {"unit": "HU", "fill": -1024.0, "pixdim": (1.5, 1.5, 2.0), "crop": (224, 224, 160)}
_ABDOMEN = {**_BODY, "window": SOFT_TISSUE}
_MR = {"fill": 0.0, "window": "percentiles", "spacing": "header"}

DATALISTS = (
    Volumes(
        "datalist/btcv",
        "btcv",
        ("dataset_synapse_18_12.json", "dataset_0.json", "dataset.json"),
        ("background", "spleen", "right kidney", "left kidney", "gallbladder", "oesophagus", "liver", "stomach",
         "aorta", "inferior vena cava", "portal and splenic veins", "pancreas", "right adrenal gland",
         "left adrenal gland"),
        reading=_ABDOMEN,
        source="BTCV, Multi-Atlas Labeling Beyond the Cranial Vault (synapse.org, syn3193805); on registration.",
    ),
    Volumes(
        "datalist/abdomenct-1k",
        "abdomenct-1k",
        ("dataset_abdomen.json", "dataset.json"),
        ("background", "liver", "right kidney", "spleen", "pancreas", "aorta", "inferior vena cava",
         "right adrenal gland", "left adrenal gland", "gallbladder", "oesophagus", "stomach", "duodenum",
         "left kidney"),
        reading=_ABDOMEN,
        limits={"max_train": 50, "max_test": 50},
        source="AbdomenCT-1K (Ma et al., IEEE TPAMI 44(10), 2022), organs of FLARE 2022; terms: their pages.",
    ),
    Volumes(
        "datalist/hecktor",
        "hecktor",
        ("dataset_hecktor.json", "dataset.json"),
        ("background", "primary tumour", "lymph nodes"),
        patient=r"[A-Z]+-\d+",
        reading={"unit": "HU", "fill": -1024.0, "channels": 0, "pixdim": (2.0, 2.0, 2.0), "crop": (96, 96, 96),
                 "window": SOFT_TISSUE},
        limits={"max_train": 100, "max_test": 40},
        source="HECKTOR 2022, CT of head and neck (Andrearczyk et al., LNCS 13626, 2023); on registration.",
    ),
    Volumes(
        "datalist/acdc",
        "acdc",
        ("dataset_acdc_140_20_.json", "dataset.json"),
        ("background", "right ventricle", "myocardium", "left ventricle"),
        patient=r"patient\d+",
        reading={**_MR, "crop": (192, 192, 12), "resize": (96, 96, 12)},
        source="ACDC (Bernard et al., IEEE TMI 37(11), 2018); CC BY-NC-SA 4.0, non-commercial.",
    ),
)  # fmt: skip

_MSD = "Medical Segmentation Decathlon (Antonelli et al., Nature Communications 13:4128, 2022); CC BY-SA 4.0."
_TASKS: dict[str, dict[str, Any]] = {
    "Task01_BrainTumour": {**_MR, "channels": "all", "pixdim": (2.0, 2.0, 2.0), "crop": (96, 112, 80)},
    "Task02_Heart": {**_MR, "pixdim": (2.0, 2.0, 2.0), "crop": (160, 160, 96)},
    "Task03_Liver": _ABDOMEN,
    "Task04_Hippocampus": {**_MR, "crop": (40, 56, 40)},
    "Task05_Prostate": {**_MR, "channels": 0, "pixdim": (1.0, 1.0, 3.6), "crop": (160, 160, 24)},
    "Task06_Lung": {**_BODY, "window": (-1000.0, 400.0)},
    "Task07_Pancreas": _ABDOMEN,
    "Task08_HepaticVessel": _ABDOMEN,
    "Task09_Spleen": _ABDOMEN,
    "Task10_Colon": _ABDOMEN,
}
_FEW = {"max_train": 40, "max_test": 20}  # a case of these takes about 100 MB
DECATHLON = tuple(
    Volumes(
        f"decathlon/{task}", task, reading=reading, limits={} if task[4:6] in ("02", "04", "05") else _FEW, source=_MSD
    )
    for task, reading in _TASKS.items()
)
ANY = Volumes("datalist", "datalist")


def load_decathlon(
    row: Volumes, *, seed: int = 0, data_root: str | Path | None = None, download: bool = False, **options: Any
) -> Dataset:
    """Reads a task of the Medical Segmentation Decathlon. Its test cases have no labels: the training cases are dealt.

    Args:
        row: one of :data:`DECATHLON`.
        seed: decides what is dealt and cut.
        data_root: folder that holds the task's folder, itself or inside ``decathlon``.
        download: fetch the task with MONAI's downloader into ``data_root/decathlon`` if it is not there.
        options: of :class:`~medadv.benchmarks.data.datalists.DatalistOptions`.

    Raises:
        FileNotFoundError: no such folder, and ``download`` is not asked for.
        ConnectionError: the task could not be fetched.
        ValueError: a datalist, a split or an option that can't be right.
    """
    if data_root is None:
        raise FileNotFoundError(f"{row.name} needs its files; give the folder that holds {row.folder} as data_root.")
    task, above = row.folder, Path(data_root)
    if (above / "decathlon").is_dir() or download:
        above = above if (above / task).is_dir() else above / "decathlon"
    if not (above / task).is_dir():
        url = DecathlonDataset.resource[task]
        if not download:
            raise FileNotFoundError(f"there is no {above / task}; unpack {url} there or give the option download=True.")
        _fetch(task, url, above)
    return load_datalist(replace(row, folder=task), seed=seed, data_root=above, **options)


def _fetch(task: str, url: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        download_and_extract(url, folder / f"{task}.tar", folder, hash_val=DecathlonDataset.md5[task], hash_type="md5")
    except (OSError, RuntimeError) as error:
        raise ConnectionError(f"{url} could not be fetched ({error}); unpack it by hand into {folder}.") from error
