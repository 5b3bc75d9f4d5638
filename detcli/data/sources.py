"""From what a user calls data (a name, a folder, a JSON file) to annotated pictures with known classes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detcli import registry
from detcli.config import DataConfig
from detcli.data.annotations import PanopticData, Source
from detcli.data.cityscapes import is_cityscapes
from detcli.data.coco import CocoSource, Located, Split, locate, missing_files, read_coco
from detcli.data.panoptic import is_panoptic, panoptic_beside, read_panoptic
from detcli.data.proposals import Proposals, read_proposals
from detcli.data.voc import is_voc
from detcli.data.yolo import is_yolo
from detcli.errors import DetcliError, UsageError, unknown
from detcli.structures import ClassMap

FOLDERS = {"voc": is_voc, "yolo": is_yolo}
"""The datasets that a folder is opened as, and what recognises one; any other folder is COCO's."""


def find_source(config: DataConfig, split: Split) -> Source | Located:
    """Return the dataset that `config` names for `split`, or where its annotation file is.

    A name is a dataset before it is a folder; without data of its own, val is looked for in those of train.
    Raises `UsageError` when there is nothing of the kind.
    """
    name = config.train or config.source
    if split == "val":
        name = config.val or config.source or config.train
    if not name:
        raise UsageError(f"no data for {split}. Give `--data shapes`, a folder, or a COCO JSON file.")
    known = registry.names("datasets")
    if name in known:
        source: Source = registry.build("datasets", {"name": name, **config.args}, split=split)
        return source
    path = Path(name).expanduser()
    if not path.exists():
        if path.suffix or len(path.parts) > 1:
            raise UsageError(f"there is no file or folder {name}. See `detcli list datasets` for names.")
        raise unknown("dataset (or file or folder)", name, known, "detcli list datasets")
    for form, recognised in FOLDERS.items():
        if path.is_dir() and recognised(path):
            found: Source = registry.build("datasets", {"name": form, **config.args, "root": str(path)}, split=split)
            return found
    if config.args:
        raise UsageError(f"data.args ({', '.join(config.args)}) are for named datasets, which {name} is not.")
    if path.is_dir() and is_cityscapes(path):
        raise UsageError(
            f"{path} is Cityscapes as it is downloaded. Write it as a COCO folder once, with "
            f"`detcli data convert cityscapes {path} OUT`, and give `--data OUT`."
        )
    return locate(path, split, config.images)


def open_source(
    config: DataConfig,
    split: Split,
    segmentations: bool = True,
    *,
    panoptic: bool = False,
    keypoints: bool = False,
) -> Source:
    """Return the annotated pictures of `split`; without `segmentations`, masks stay in the file.

    With `panoptic`, they are cut into segments where the data have these; with `keypoints`, a file of keypoints stands
    in for the one beside it.
    """
    found = find_source(config, split)
    if not isinstance(found, Located):
        return found
    if split == "train" and not found.own:
        other = find_source(config, "val")
        if isinstance(other, Located) and other.path == found.path:
            warnings.warn(
                f"{found.path} serves for training and for evaluation: AP will be that of pictures trained "
                "on. Give others with --val.",
                stacklevel=3,
            )
    if keypoints:
        found = replace(found, path=keypoints_beside(found.path))
    return read_located(found, segmentations, panoptic=panoptic)


def read_located(found: Located, segmentations: bool = True, *, panoptic: bool = True) -> CocoSource:
    """Return the annotated pictures of a file, with `panoptic` cut into segments where it or one beside it has them."""
    if is_panoptic(found.path):
        return read_panoptic(found)
    source = read_coco(found, segmentations=segmentations)
    segments = panoptic_beside(found.path) if panoptic else None
    return read_panoptic(replace(found, path=segments), source) if segments else source


def keypoints_beside(path: Path) -> Path:
    """Return COCO's file of keypoints that stands beside an annotation file, or else that file."""
    beside = path.with_name(f"person_keypoints_{path.stem.removeprefix('instances_')}.json")
    return beside if beside.is_file() else path


def match_classes(source: Source, classes: ClassMap | None) -> tuple[ClassMap, NDArray[np.int64]]:
    """Return classes in label order with the data's ids, and the label (or -1) of each of its categories.

    With `classes`, labels are theirs: matched by name, or by id where no name matches. Raises `DetcliError`
    naming both when nothing does.
    """
    names = [category.name for category in source.categories]
    ids = [category.id for category in source.categories]
    stuff = source.stuff if isinstance(source, PanopticData) else []
    if classes is None:
        points = next((category.keypoints for category in source.categories if category.keypoints), ())
        own_stuff = tuple(category.name for category in stuff), tuple(category.id for category in stuff)
        return ClassMap(tuple(names), tuple(ids), *own_stuff, points), np.arange(len(ids))
    wanted: list[Any] = list(classes.names)
    offered: list[Any] = names
    if not set(names) & set(classes.names):
        wanted, offered = list(classes.ids), ids
        if not set(ids) & set(classes.ids):
            raise DetcliError(
                f"no class of {source.name} is one of the model's: "
                f"it has {_listed(names)} (ids {_listed(ids)}), "
                f"the model knows {_listed(classes.names)} (ids {_listed(classes.ids)})."
            )
        warnings.warn(f"classes of {source.name} are matched by id: the model knows none by name", stacklevel=3)
    label_of = {key: label for label, key in reversed(list(enumerate(wanted)))}
    labels = np.array([label_of.get(key, -1) for key in offered], np.int64)
    left_out = [name for name, label in zip(names, labels, strict=True) if label < 0]
    if left_out:
        warnings.warn(f"the model does not know {_listed(left_out)} of {source.name}", stacklevel=3)
    own = dict(zip(labels.tolist(), ids, strict=True))
    # A class that the data lack has an id that is none of theirs, so that it is not taken for one of them.
    stuff_id_of = {category.name: category.id for category in stuff}
    free = max([*ids, *classes.ids, *stuff_id_of.values(), *classes.stuff_ids]) + 1
    unused = [free + label if given in ids else given for label, given in enumerate(classes.ids)]
    matched = tuple(own.get(label, other) for label, other in enumerate(unused))
    stuff_ids = tuple(stuff_id_of.get(name, free + len(classes) + place) for place, name in enumerate(classes.stuff))
    return ClassMap(classes.names, matched, classes.stuff, stuff_ids, classes.keypoints), labels


def require_masks(source: Source) -> None:
    """Raise `DetcliError` when an object that would be trained on has no mask."""
    if not source.has_masks:
        raise DetcliError(f"{source.name} has no masks. Train a box detector, such as faster_rcnn.")
    if isinstance(source, CocoSource):
        rows = np.flatnonzero(source.store.trainable() & ~source.store.segmented())
        if len(rows):
            raise DetcliError(
                f"{source.name}: {len(rows)} objects have a box but no mask, such as annotation "
                f"{source.store.ids[rows[0]]}. Add masks, or train a box detector, such as faster_rcnn."
            )


def require_keypoints(source: Source) -> None:
    """Raise `DetcliError` when no category has keypoints."""
    if not any(category.keypoints for category in source.categories):
        raise DetcliError(f"{source.name} has no keypoints. Train a box detector, such as faster_rcnn.")


def require_segments(source: Source) -> None:
    """Raise `DetcliError` when pictures are not cut into segments of things and stuff."""
    if not isinstance(source, PanopticData):
        raise DetcliError(
            f"{source.name} has no segments of stuff: there is no panoptic_*.json beside it, and `--set "
            "data.semantic=FOLDER` names no labels. Train mask_rcnn."
        )


def present(source: CocoSource, indices: NDArray[np.int64], skip: bool) -> NDArray[np.int64]:
    """Return those of `indices` whose files are there; a missing file is a `DetcliError` unless `skip`."""
    missing = np.intersect1d(indices, np.array(list(missing_files(source)), np.int64))
    if not len(missing):
        return indices
    some = ", ".join(str(source.path(index)) for index in missing[:3].tolist())
    problem = f"{len(missing)} of {len(indices)} pictures of {source.name} are missing: {some}"
    if not skip:
        raise DetcliError(f"{problem}. Restore them, or leave them out with --skip-bad-images.")
    warnings.warn(f"left out: {problem}", stacklevel=3)
    return np.setdiff1d(indices, missing)


def proposals_for(path: str, source: Source, indices: NDArray[np.int64]) -> Proposals:
    """Read a file of proposals; raises `DetcliError` naming a picture among `indices` that it lacks."""
    proposals = read_proposals(path)
    known = set(proposals)
    for index, image_id in zip(indices.tolist(), source.image_ids[indices].tolist(), strict=True):
        if image_id not in known:
            raise DetcliError(
                f"{path} has no proposals for {source.file_name(index)} (image {image_id}) of {source.name}: "
                "it was written for other data."
            )
    return proposals


def _listed(values: Sequence[Any]) -> str:
    more = f" and {len(values) - 10} more" if len(values) > 10 else ""
    return ", ".join(str(value) for value in values[:10]) + more
