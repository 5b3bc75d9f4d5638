"""Counts and sizes of a dataset, as tables and as a plot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from detcli.data.annotations import PanopticData, Source
from detcli.structures import UNLABELLED

SMALL, LARGE = 32**2, 96**2
"""Areas in pixels at which COCO's small objects end and its large ones begin."""

CLASSES_SHOWN = 40


@dataclass(slots=True)
class Stats:
    """Figures of one split; objects [M] do not include crowd regions.

    picture_sizes [N,2] are heights and widths; per_picture [N] counts objects; categories [M] are positions
    in `names`; areas [M] in pixels; box_sizes [M,2] heights and widths. Where pictures are cut into segments, `stuff`
    are the classes of stuff, pixels [256] counts those of each label (things, then stuff, `UNLABELLED`), and
    pictures_with [256] the pictures in which each is.
    """

    split: str
    name: str
    names: list[str]
    picture_sizes: NDArray[np.int64]
    per_picture: NDArray[np.int64]
    categories: NDArray[np.int64]
    pictures_of: NDArray[np.int64]
    areas: NDArray[np.float64]
    box_sizes: NDArray[np.float64]
    crowd: int
    masks: int
    stuff: list[str]
    pixels: NDArray[np.int64]
    pictures_with: NDArray[np.int64]


def measure(source: Source, split: str) -> Stats:
    """Read all annotations of `source` and count."""
    per_picture, categories, areas, boxes = [], [], [], []
    pictures_of = np.zeros(len(source.categories), np.int64)
    pixels, pictures_with = np.zeros((2, UNLABELLED + 1), np.int64)
    crowd = masks = 0
    for index in range(len(source.image_ids)):
        annotations = source.annotations(index)
        objects = ~annotations.crowd
        crowd += int(annotations.crowd.sum())
        masks += sum(bool(annotations.segmentations[row]) for row in np.flatnonzero(objects))
        pictures_of[np.unique(annotations.categories[objects])] += 1
        per_picture.append(int(objects.sum()))
        categories.append(annotations.categories[objects])
        areas.append(annotations.areas[objects])
        boxes.append(annotations.xywh[objects][:, [3, 2]])
        if annotations.semantic is not None:
            found = np.bincount(annotations.semantic.ravel(), minlength=UNLABELLED + 1)
            pixels += found
            pictures_with += found > 0
    return Stats(
        split,
        source.name,
        [category.name for category in source.categories],
        source.sizes,
        np.array(per_picture, np.int64),
        np.concatenate(categories),
        pictures_of,
        np.concatenate(areas),
        np.concatenate(boxes),
        crowd,
        masks,
        [category.name for category in source.stuff] if isinstance(source, PanopticData) else [],
        pixels,
        pictures_with,
    )


def print_stats(console: Console, every: list[Stats]) -> None:
    """Print the figures of all splits, then those of each class."""
    title = ", ".join(dict.fromkeys(stats.name for stats in every))
    table = Table("of three: least, median, most", *(stats.split for stats in every), title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, values in _rows(every).items():
        table.add_row(name, *values)
    console.print(table)
    for stats in every:
        counts = np.bincount(stats.categories, minlength=len(stats.names))
        classes = Table("class", title=f"{stats.split}: objects by class")
        for heading in ("objects", "share", "pictures", "small", "medium", "large"):
            classes.add_column(heading, justify="right")
        order = np.argsort(-counts, kind="stable")
        for place in order[:CLASSES_SHOWN].tolist():
            areas = stats.areas[stats.categories == place]
            share = 100 * counts[place] / max(len(stats.areas), 1)
            sizes = (str(count) for count in _by_size(areas))
            classes.add_row(
                stats.names[place], str(counts[place]), f"{share:.1f}%", str(stats.pictures_of[place]), *sizes
            )
        console.print(classes)
        if len(order) > CLASSES_SHOWN:
            most = counts[order[CLASSES_SHOWN]]
            console.print(f"and {len(order) - CLASSES_SHOWN} classes with at most {most} objects")
        if stats.stuff:
            _print_stuff(console, stats)


def _print_stuff(console: Console, stats: Stats) -> None:
    """Print the shares of pixels of classes of stuff, of all things, and of no segment."""
    table = Table("class", title=f"{stats.split}: pixels by class of stuff")
    for heading in ("share", "pictures"):
        table.add_column(heading, justify="right")
    things, total = len(stats.names), max(int(stats.pixels.sum()), 1)
    stuff = slice(things, things + len(stats.stuff))
    for place in np.argsort(-stats.pixels[stuff], kind="stable").tolist():
        share = 100 * stats.pixels[stuff][place] / total
        table.add_row(stats.stuff[place], f"{share:.1f}%", str(stats.pictures_with[stuff][place]))
    for name, labels in (("(things)", slice(things)), ("(no segment)", slice(UNLABELLED, None))):
        table.add_row(name, f"{100 * stats.pixels[labels].sum() / total:.1f}%", "")
    console.print(table)


def plot_stats(every: list[Stats], path: Path) -> None:
    """Plot classes, object sizes, aspect ratios and objects a picture of all splits into a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), layout="constrained")
    FigureCanvasAgg(figure)
    by_class, by_size, by_ratio, by_count = figure.subplots(2, 2).flat
    names = every[0].names
    first = np.bincount(every[0].categories, minlength=len(names))
    shown = np.argsort(-first, kind="stable")[:CLASSES_SHOWN]
    width = 0.8 / len(every)
    for place, stats in enumerate(every):
        style = {"alpha": 0.6, "label": stats.split}
        counts = {name: int((stats.categories == label).sum()) for label, name in enumerate(stats.names)}
        heights = [counts.get(names[label], 0) for label in shown]
        by_class.bar(np.arange(len(shown)) + place * width, heights, width, **style)
        sides = np.sqrt(np.maximum(stats.areas, 0))
        by_size.hist(sides, bins=40, **style)
        by_ratio.hist(stats.picture_sizes[:, 1] / stats.picture_sizes[:, 0], bins=40, **style)
        most = int(stats.per_picture.max(initial=0))
        by_count.hist(stats.per_picture, bins=np.linspace(-0.5, most + 0.5, min(most + 2, 60)), **style)
    by_class.set_xticks(np.arange(len(shown)) + width * (len(every) - 1) / 2, [names[label] for label in shown])
    by_class.tick_params(axis="x", rotation=90 if len(shown) > 8 else 0)
    by_class.set(title="objects by class", ylabel="objects")
    by_size.set(title="object size", xlabel="square root of the area in pixels", ylabel="objects")
    for limit in (SMALL, LARGE):
        by_size.axvline(limit**0.5, color="grey", linestyle=":")
    by_ratio.set(title="aspect ratio of pictures", xlabel="width / height", ylabel="pictures")
    by_count.set(title="objects in a picture", xlabel="objects", ylabel="pictures")
    by_class.legend()
    figure.savefig(path, dpi=100)


def _rows(every: list[Stats]) -> dict[str, list[str]]:
    """Return the lines of the table of figures, one value a split."""
    rows: dict[str, list[str]] = {}
    for stats in every:
        height, width = stats.picture_sizes.T
        small, medium, large = _by_size(stats.areas)
        box_ratios = stats.box_sizes[:, 1] / np.maximum(stats.box_sizes[:, 0], 1e-9)
        figures = {
            "pictures": str(len(height)),
            "pictures without objects": str(int((stats.per_picture == 0).sum())),
            "classes": str(len(stats.names)),
            "classes of stuff": str(len(stats.stuff)),
            "objects": str(len(stats.areas)),
            "objects with masks": str(stats.masks),
            "crowd regions": str(stats.crowd),
            "objects in a picture": _spread(stats.per_picture),
            "picture width": _spread(width),
            "picture height": _spread(height),
            "picture width/height": _spread(width / height),
            "box width/height": _spread(box_ratios),
            "side of objects": _spread(np.sqrt(np.maximum(stats.areas, 0))),
            "small, medium, large objects": f"{small}, {medium}, {large}",
        }
        if not any(other.stuff for other in every):
            del figures["classes of stuff"]
        for name, value in figures.items():
            rows.setdefault(name, []).append(value)
    return rows


def _by_size(areas: NDArray[np.float64]) -> tuple[int, int, int]:
    small, large = int((areas < SMALL).sum()), int((areas > LARGE).sum())
    return small, len(areas) - small - large, large


def _spread(values: NDArray[np.generic]) -> str:
    if not len(values):
        return "-"
    return ", ".join(f"{value:.4g}" for value in np.quantile(values.astype(float), [0, 0.5, 1]))
