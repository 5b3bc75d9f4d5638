"""Reads YOLO folders: data.yaml, and a text file of boxes beside each picture.

A line is the number of a class, and a box as centre, width and height, or a polygon; everything is in shares of the
picture's width and height.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Literal

from detcli.data.coco import CocoSource, Split, from_coco
from detcli.data.images import read_header, upright_size
from detcli.errors import DetcliError

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
SPLIT_NAMES = {"train": ("train",), "val": ("val", "valid", "test")}
"""What data.yaml calls the pictures of a split, in order of preference."""


ITEM = re.compile(r"""(?:'(?:[^']|'')*'|"[^"]*"|[^,'"])+""")
"""An item of a list in brackets: text without a comma, but in quotes."""


def yolo(*, split: Literal["train", "val"], root: str = "") -> CocoSource:
    """Return the pictures that the data.yaml in the folder `root` names for `split`.

    Raises `DetcliError` when it, or what it names, is not there or is broken.
    """
    if not root:
        raise DetcliError("where are the data? Give their folder: `--data path/to/yolo`.")
    folder = Path(root).expanduser()
    return from_coco(yolo_to_coco(folder, split), f"{root} ({split})", folder)


def is_yolo(folder: Path) -> bool:
    """Return whether `folder` is a YOLO folder."""
    return (folder / "data.yaml").is_file()


def yolo_to_coco(folder: Path, split: Split) -> dict[str, Any]:
    """Return the pictures of `split` as a COCO dict; class number n is the category n + 1.

    Names of pictures are paths below `folder`.
    """
    described = folder / "data.yaml"
    settings = _read_yaml(described)
    names = settings.get("names")
    if isinstance(names, dict):
        numbers = [int(key) if str(key).isdigit() else -1 for key in names]
        names = list(names.values()) if numbers == list(range(len(numbers))) else None
    if not isinstance(names, list) or not names:
        raise DetcliError(f"{described}: `names` must list the names of the classes, in order of their numbers.")
    data: dict[str, Any] = {"images": [], "annotations": []}
    data["categories"] = [{"id": number, "name": str(name)} for number, name in enumerate(names, 1)]
    for number, path in enumerate(_pictures(folder, settings, split), 1):
        height, width = upright_size(*read_header(path))
        name = path.relative_to(folder).as_posix()
        data["images"].append({"id": number, "file_name": name, "height": height, "width": width})
        for item in _read_labels(_labels_of(path, folder), len(names), width, height):
            data["annotations"].append({"id": len(data["annotations"]) + 1, "image_id": number, "iscrowd": 0, **item})
    return data


def _pictures(folder: Path, settings: dict[str, Any], split: Split) -> list[Path]:
    """Return the pictures of a split: those in the folders, or in the lists, that data.yaml names."""
    given = next((settings[name] for name in SPLIT_NAMES[split] if settings.get(name)), None)
    if given is None:
        raise DetcliError(f"{folder / 'data.yaml'} names no pictures for {split}: it has no `{split}:`.")
    found: list[Path] = []
    base = folder / str(settings.get("path") or "")
    for entry in given if isinstance(given, list) else [given]:
        # Some tools write paths from another place than that of data.yaml.
        name = str(entry).removeprefix("../")
        place = _below(folder, base / name if (base / name).exists() else folder / name)
        if place.is_file():
            found += [_below(folder, place.parent / line.strip()) for line in _lines(place) if line.strip()]
        else:
            found += [path for path in place.glob("**/*") if path.suffix.lower() in ENDINGS]
    if not found:
        raise DetcliError(f"{folder / 'data.yaml'} names {given} for {split}: there are no pictures.")
    return sorted(found)


def _below(folder: Path, path: Path) -> Path:
    """Return `path` as one below `folder`; raises `DetcliError` for one that leads out of it."""
    inside = os.path.relpath(os.path.abspath(path), os.path.abspath(folder))
    if inside.split(os.sep)[0] == os.pardir:
        raise DetcliError(f"{path} leads out of {folder}, whose data.yaml names it. Name places in the folder.")
    return folder / inside


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DetcliError(f"can't read {path}: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise DetcliError(f"{path} is not a text file in UTF-8: {error.reason} at byte {error.start}.") from None


def _labels_of(picture: Path, folder: Path) -> Path:
    """Return the file with the boxes of a picture: that in ``labels`` where the picture is in ``images``."""
    parts = list(picture.relative_to(folder).parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return (folder / Path(*parts)).with_suffix(".txt")


def _read_labels(path: Path, classes: int, width: int, height: int) -> list[dict[str, Any]]:
    """Return the objects of one file, in pixels; a picture without a file has none."""
    if not path.is_file():
        return []
    found = []
    for number, line in enumerate(_lines(path), 1):
        words = line.split()
        if not words:
            continue
        try:
            label, *values = map(float, words)
        except ValueError:
            raise DetcliError(f"{path}, line {number}: {line!r} is not made of numbers.") from None
        if label not in range(classes):
            raise DetcliError(f"{path}, line {number}: there is no class {label:g}; data.yaml names {classes}.")
        item: dict[str, Any] = {"category_id": int(label) + 1}
        if len(values) == 4:
            x, y, w, h = values
            item["bbox"] = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
        elif len(values) >= 6 and len(values) % 2 == 0:
            # Polygons are filled by points rounded to a fifth of a pixel: shares must not move those in the middle.
            xs = [round(value * width, 6) for value in values[::2]]
            ys = [round(value * height, 6) for value in values[1::2]]
            item["bbox"] = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
            item["segmentation"] = [[value for point in zip(xs, ys, strict=True) for value in point]]
        else:
            raise DetcliError(f"{path}, line {number}: {len(values)} numbers are neither a box nor a polygon.")
        if "segmentation" not in item:
            item["area"] = item["bbox"][2] * item["bbox"][3]
        found.append(item)
    return found


def _read_yaml(path: Path) -> dict[str, Any]:
    """Return what a data.yaml says: names with a text, a list of texts, or a dict of texts each.

    That is the part of YAML that these files use.
    """
    settings: dict[str, Any] = {}
    last = ""
    for line in _lines(path):
        content = _without_comment(line)
        entry = content.strip()
        if not entry:
            continue
        if entry.startswith("- ") and last:
            settings[last] = [*(settings[last] or []), _plain(entry[2:])]
        elif content[0].isspace() and last and ":" in entry:
            key, _, value = entry.partition(":")
            settings[last] = {**(settings[last] or {}), _plain(key): _plain(value)}
        elif ":" in entry and not content[0].isspace():
            last, _, value = entry.partition(":")
            value = value.strip()
            inline = value[1:-1] if value[:1] + value[-1:] in ("[]", "{}") else None
            if inline is None:
                settings[last] = _plain(value)
            elif value[0] == "[":
                settings[last] = [_plain(item) for item in ITEM.findall(inline)]
            else:
                pairs = (item.partition(":") for item in ITEM.findall(inline))
                settings[last] = {_plain(key): _plain(item) for key, _, item in pairs}
        else:
            raise DetcliError(f"{path}: can't make sense of the line {entry!r}.")
    return settings


def _without_comment(line: str) -> str:
    """Return a line up to the ``#`` that begins a comment: one after a space, and not in quotes."""
    quote = ""
    for before, character, position in zip(" " + line, line, range(len(line)), strict=False):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"" and (before.isspace() or before in "[{,:-'"):
            quote = character
        elif character == "#" and before.isspace():
            return line[:position]
    return line


def _plain(text: str) -> str:
    """Return a text without the quotes around it."""
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] == "'":
        return text[1:-1].replace("''", "'")
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text
