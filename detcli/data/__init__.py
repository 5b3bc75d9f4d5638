"""Data: reading COCO-style datasets, the built-in shapes, transforms and loaders."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detcli.data.dataset import DetectionDataset as DetectionDataset
    from detcli.data.dataset import Preprocess as Preprocess
    from detcli.data.dataset import Sample as Sample
    from detcli.data.dataset import open_dataset as open_dataset
    from detcli.data.images import load_image as load_image
    from detcli.data.loader import Loader as Loader
    from detcli.data.loader import collate as collate
    from detcli.data.loader import make_loader as make_loader

# Imported when they are used: the signatures of datasets are read without torch.
_HOMES = {
    "DetectionDataset": "dataset",
    "Preprocess": "dataset",
    "Sample": "dataset",
    "open_dataset": "dataset",
    "load_image": "images",
    "Loader": "loader",
    "collate": "loader",
    "make_loader": "loader",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
