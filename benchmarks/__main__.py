"""Run all benchmarks and write RESULTS.md: `python -m benchmarks`, or some of them with `--only NAME`."""

import argparse
import importlib
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

from benchmarks.report import Row, table

RESULTS = Path(__file__).parent / "RESULTS.md"

SECTIONS = {
    "torchvision_models": "Against torchvision's detectors, same weights, 2 CPU threads",
    "evaluation": "COCO evaluation",
    "loading": "Loading pictures",
    "convert": "Converting checkpoints",
    "many_objects": "Memory with 1,000 objects in a picture",
    "accelerator": "On an accelerator",
    "startup": "Start of the command line",
}
"""The modules beside this one, each with `run()`, and the heading of its table."""

ABOUT = {
    "torchvision_models": (
        "Detection: batch 1 at 480x640, from pixels to boxes and pasted masks. Training step: batch 2 at 320x416 with "
        "8 objects a picture, losses, gradients and SGD. Weights are random and shared (published ones are not "
        "downloaded), scaled so that scores and boxes spread. Each side runs in a process of its own, as its users "
        "run it; they take turns. Figures are medians of the rounds in which other processes used at most 0.1 cores. "
        "Where there were too few such rounds, the row is undecided."
    ),
    "convert": (
        "A checkpoint of the size of Faster R-CNN with ResNeXt-101 64x4d, its file in the page cache, is read, checked "
        "against the model, renamed and written; beside it, the same tensors are only read and written. Each side runs "
        "in a process of its own. Memory is what the resident set grows by at its peak, with the file's pages, without "
        "what is imported. Published files are of both formats."
    ),
    "accelerator": "Theirs are published figures of Detectron2 on a V100, at 1333x800; the images here are random.",
}

PACKAGES = ("torch", "torchvision", "numpy", "opencv-python", "pycocotools", "faster-coco-eval")


def main() -> None:
    """Measure, print each table as it comes and write RESULTS.md, unless only some were asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), metavar="NAME", help=", ".join(SECTIONS))
    chosen = parser.parse_args().only or list(SECTIONS)
    started = time.strftime("%Y-%m-%d", time.gmtime())
    parts = []
    for name in chosen:
        print(f"{name} ...", flush=True)
        before = time.perf_counter()
        rows = measure(name)
        minutes = (time.perf_counter() - before) / 60
        about = f"{ABOUT[name]}\n\n" if name in ABOUT else ""
        parts.append(
            f"## {SECTIONS[name]}\n\n{about}`python -m benchmarks --only {name}` ({minutes:.1f} min)\n\n{table(rows)}\n"
        )
        print(parts[-1], flush=True)
    if chosen == list(SECTIONS):
        RESULTS.write_text("\n".join([heading(started), *parts]))
        print(f"written: {RESULTS}")


def measure(name: str) -> list[Row]:
    """Return the rows of the benchmark `name`."""
    rows: list[Row] = importlib.import_module(f"benchmarks.{name}").run()
    return rows


def heading(day: str) -> str:
    """Return what stands above the tables: machine, versions and how to read them."""
    import torch

    from detcli.engine.device import processor

    packages = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no accelerator"
    return (
        "# Results\n\n"
        "Written by `nox -s bench` (`python -m benchmarks`); do not edit. A ratio is ours / theirs unless the target "
        "says otherwise. Both sides of a row are measured in one run, in turn.\n\n"
        f"- Day: {day}\n"
        f"- Machine: {processor()}, {os.cpu_count()} cores, {device}, {platform.system()}\n"
        f"- Versions: Python {platform.python_version()}, {packages}\n"
        f"- CPU capability of torch: {torch.backends.cpu.get_cpu_capability()}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
