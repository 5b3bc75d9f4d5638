"""Reads PASCAL VOC folders: an XML file a picture, and lists of pictures in ImageSets/Main."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers.expat import ExpatError, ParserCreate

from detcli.data.classes import CLASSES
from detcli.data.coco import CocoSource, Split, from_coco
from detcli.errors import DetcliError

LISTS = Path("ImageSets") / "Main"
PICTURES = ("jpg", "jpeg", "png")


def voc(
    *,
    split: Literal["train", "val"],
    root: str = "",
    train_sets: tuple[str, ...] = (),
    val_sets: tuple[str, ...] = (),
    train_difficult: bool = False,
) -> CocoSource:
    """Return the pictures of the sets of `split`, such as ``VOC2007/trainval``, below the folder `root`.

    Without sets, training takes every ``trainval`` and evaluation every ``test``; where there is no ``test``, they
    take ``train`` and ``val``. Difficult objects are crowd regions, in training unless `train_difficult`: there to be
    found or not. Raises `DetcliError` when a set, or what it lists, is not there or is broken.
    """
    if not root:
        raise DetcliError("where is PASCAL VOC? Give its folder: `--data path/to/VOCdevkit`.")
    folder = Path(root).expanduser()
    chosen = (train_sets if split == "train" else val_sets) or _default_sets(folder, split)
    crowds = not (train_difficult and split == "train")
    return from_coco(voc_to_coco(folder, chosen, crowds), f"{root} ({', '.join(chosen)})", folder)


def is_voc(folder: Path) -> bool:
    """Return whether `folder`, or one in it, has the lists of a VOC folder."""
    return bool(_years(folder))


def voc_to_coco(folder: Path, sets: tuple[str, ...], crowds: bool = True) -> dict[str, Any]:
    """Return what the `sets` below `folder` hold as a COCO dict, difficult objects as crowd regions or not.

    Names of pictures are paths below `folder`. VOC counts pixels from 1 and a box has its last one: a box from 1 to
    10 is one from 0 to 10 here. The categories are VOC's 20 or, when objects have other names, these in order of the
    alphabet.
    """
    read = [picture for name in sets for picture in _read_set(folder, name)]
    names = {item["name"] for _, objects in read for item in objects}
    known = CLASSES["voc"].names
    ordered = known if names <= set(known) else sorted(names)
    ids = {name: number for number, name in enumerate(ordered, 1)}
    images = [{"id": number, **image} for number, (image, _) in enumerate(read, 1)]
    found = ((number, item) for number, (_, objects) in enumerate(read, 1) for item in objects)
    annotations = [
        {
            "id": position,
            "image_id": number,
            "category_id": ids[item["name"]],
            "bbox": item["bbox"],
            "area": item["bbox"][2] * item["bbox"][3],
            "iscrowd": int(item["difficult"] and crowds),
        }
        for position, (number, item) in enumerate(found, 1)
    ]
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _years(folder: Path) -> list[Path]:
    """Return the folders that have lists: `folder` itself, or those in it."""
    if (folder / LISTS).is_dir():
        return [folder]
    return [inside for inside in sorted(folder.glob("VOC*")) if (inside / LISTS).is_dir()]


def _default_sets(folder: Path, split: Split) -> tuple[str, ...]:
    years = _years(folder)
    tested = any((year / LISTS / "test.txt").is_file() for year in years)
    name = {"train": "trainval", "val": "test"}[split] if tested else split
    sets = [year.relative_to(folder) / name for year in years if (year / LISTS / f"{name}.txt").is_file()]
    if not sets:
        raise DetcliError(f"{folder} has no {LISTS}/{name}.txt, nor has a VOC2007 or another year in it.")
    return tuple(path.as_posix() for path in sets)


def _read_set(folder: Path, name: str) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Yield the image record and the objects of each picture that a list names."""
    year, _, stem = name.rpartition("/")
    lists = folder / year / LISTS / f"{stem}.txt"
    try:
        lines = lists.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DetcliError(f"can't read the set {name} of {folder}, {lists}: {reason}.") from None
    for key in (line.split()[0] for line in lines if line.strip()):
        path = folder / year / "Annotations" / f"{key}.xml"
        root = _parse(path)
        image: dict[str, Any] = {"file_name": _picture(folder / year, key, root).relative_to(folder).as_posix()}
        size = root.find("size")
        if size is not None:
            image |= {side: int(_number(size, side, path)) for side in ("width", "height")}
        yield image, [_object(element, path) for element in root.iter("object")]


def _picture(year: Path, key: str, root: Element) -> Path:
    """Return where a picture is: named like its annotations, or as these say; at the first of these places if at
    none.
    """
    names = [*(f"{key}.{ending}" for ending in PICTURES), Path(root.findtext("filename") or f"{key}.jpg").name]
    places = [year / "JPEGImages" / name for name in names]
    return next((place for place in places if place.is_file()), places[0])


def _object(element: Element, path: Path) -> dict[str, Any]:
    box = element.find("bndbox")
    name = (element.findtext("name") or "").strip()
    if box is None or not name:
        raise DetcliError(f"{path}: an object has no name or no bndbox.")
    left, top, right, bottom = (_number(box, side, path) for side in ("xmin", "ymin", "xmax", "ymax"))
    difficult = (element.findtext("difficult") or "0").strip() == "1"
    return {"name": name, "bbox": [left - 1, top - 1, right - left + 1, bottom - top + 1], "difficult": difficult}


def _number(element: Element, name: str, path: Path) -> float:
    text = element.findtext(name) or ""
    try:
        return float(text)
    except ValueError:
        raise DetcliError(f"{path}: {name} of {element.tag} is {text!r}, not a number.") from None


def _parse(path: Path) -> Element:
    """Return the root of an XML file.

    Raises `DetcliError` for one that can't be read or has a document type: entities, that could make a small file a
    large one or name other files, are declared there.
    """
    builder = TreeBuilder()
    parser = ParserCreate()
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data

    def refuse(*_: Any) -> None:
        raise DetcliError(f"{path} has a document type, which VOC annotations do not have: it is not read.")

    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(path.read_bytes(), True)
    except OSError as error:
        raise DetcliError(f"can't read {path}: {error.strerror}.") from None
    except (ExpatError, ValueError) as error:
        raise DetcliError(f"{path} is not valid XML: {error}.") from None
    return builder.close()
