"""Curves of a run, as pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = {
    "box": ("boxes", "-", ("AP", "AP50", "AP75")),
    "mask": ("masks", "--", ("AP", "AP50", "AP75")),
    "keypoint": ("keypoints", ":", ("AP", "AP50", "AP75")),
    "": ("panoptic", "-.", ("PQ", "SQ", "RQ")),
    "prop": ("proposals", "-", ("AR1000", "AR300", "AR100")),
}
"""Of each kind of figure: its name, its line, and what is drawn, the most important first."""


def plot_run(folder: Path) -> list[Path]:
    """Draw losses.png and ap.png in `folder` from its metrics.jsonl; return what was drawn."""
    lines = _read(folder / "metrics.jsonl")
    written = []
    for kind, name, plot in (("train", "losses.png", _losses), ("eval", "ap.png", _precision)):
        chosen = [line for line in lines if line["kind"] == kind]
        if chosen:
            plot(chosen).savefig(folder / name)
            written.append(folder / name)
    return written


def _read(path: Path) -> list[dict[str, Any]]:
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:  # the last line of a run that was killed
            continue
    return lines


def _losses(lines: list[dict[str, Any]]) -> Figure:
    """Return the smoothed losses over the raw ones, with the learning rate on an axis of its own."""
    steps = _column(lines, "iter")
    names = sorted({name for line in lines for name in line if "loss" in name}, key=lambda name: (name != "loss", name))
    figure, axes = _figure("Training loss", "loss")
    highest = 0.0
    for number, name in enumerate(names):
        values = _column(lines, name)
        smooth = _smoothed(values)
        color, width = ("black", 2.0) if name == "loss" else (f"C{number % 10}", 1.5)
        axes.plot(steps, values, color=color, alpha=0.2, linewidth=0.8)
        axes.plot(steps, smooth, color=color, linewidth=width, label=name, marker="o" if len(steps) == 1 else None)
        finite = values[np.isfinite(values)]
        if finite.size:
            highest = max(highest, float(np.quantile(finite, 0.98)))
    # The first steps may be far above the rest; they would press the curves flat.
    axes.set_ylim(0, 1.05 * highest or None)
    rate = axes.twinx()
    rate.plot(steps, _column(lines, "lr"), color="grey", linestyle=":", linewidth=1.2, label="learning rate")
    rate.set_ylim(bottom=0)
    rate.set_ylabel("learning rate", color="grey")
    rate.tick_params(axis="y", colors="grey")
    handles = axes.get_legend_handles_labels(), rate.get_legend_handles_labels()
    axes.legend(handles[0][0] + handles[1][0], handles[0][1] + handles[1][1], loc="upper right", fontsize=9)
    return figure


def _precision(lines: list[dict[str, Any]]) -> Figure:
    """Return AP of boxes and masks, or AR of proposals, over the iterations."""
    steps = _column(lines, "iter")
    recall_only = not any(name.endswith("_AP") for line in lines for name in line)
    figure, axes = _figure("Average recall" if recall_only else "Average precision", "percent")
    for kind, (title, style, names) in KINDS.items():
        for rank, name in enumerate(names):
            values = _column(lines, f"{kind}_{name}" if kind else name)
            values[values < 0] = np.nan
            if not np.isfinite(values).any():
                continue
            label = f"{title} {name}"
            axes.plot(
                steps,
                values,
                style,
                color=f"C{rank}",
                marker="o",
                markersize=4,
                linewidth=2.2 - rank / 2,
                label=label,
            )
            if rank == 0 and np.isfinite(values[-1]):
                end, text = (steps[-1], values[-1]), f"{values[-1]:.1f}"
                axes.annotate(text, end, (6, 0), textcoords="offset points", va="center", fontweight="bold")
    axes.set_ylim(0, 100)
    axes.margins(x=0.07)
    axes.legend(loc="upper left", fontsize=9)
    return figure


def _figure(title: str, label: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.set_xlabel("iteration")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    return figure, axes


def _column(lines: list[dict[str, Any]], name: str) -> NDArray[np.float64]:
    return np.array([line.get(name, np.nan) for line in lines], np.float64)


def _smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of the finite values around each value, over a twenty-fifth of the curve."""
    window = np.ones(max(1, len(values) // 25 // 2 * 2 + 1))
    finite = np.isfinite(values)
    total = np.convolve(np.where(finite, values, 0), window, mode="same")
    count = np.convolve(finite.astype(np.float64), window, mode="same")
    return np.where(count > 0.5, total / np.maximum(count, 1), np.nan)
