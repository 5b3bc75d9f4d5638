"""Memory of a training step when the image holds 1,000 objects, beyond that of the same step with 10."""

import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module

import torch

from benchmarks.report import Row, below
from detcli.config import resolve
from detcli.engine.device import memory_in_use
from detcli.nn import assigners
from detcli.registry import build
from detcli.structures import Batch, Target

MODELS = ("retinanet", "atss", "fcos", "faster_rcnn")
SIZE = (800, 1333)
PADDED = (800, 1344)
FEW, MANY = 10, 1000
COMPARED = "retinanet"
"""The model that is also measured with all pairs compared at once, which takes gigabytes and most of the time."""
LIMIT_GB = 1.0


def scene(objects: int) -> Target:
    """Return objects of 8 to 200 pixels a side anywhere in an image of `SIZE`."""
    generator = torch.Generator().manual_seed(0)
    height, width = SIZE
    sides = 8 + 192 * torch.rand(objects, 2, generator=generator) ** 2
    corners = torch.rand(objects, 2, generator=generator) * (torch.tensor([width, height]) - sides)
    boxes = torch.cat([corners, corners + sides], dim=1)
    return Target(boxes, torch.randint(0, 80, (objects,), generator=generator))


def step(name: str, objects: int) -> float:
    """Train the model of recipe `name`, on ResNet-18, for a step; return the peak memory of this process in GB."""
    torch.manual_seed(0)
    config = resolve(name, backbone="r18", flags={"weights": "none"}).config.model
    model = build("models", config, num_classes=80).train()
    images = torch.randn(1, 3, *PADDED).to(memory_format=torch.channels_last)
    losses = model(Batch(images, torch.tensor([SIZE]), [scene(objects)]))
    torch.stack([value for key, value in losses.items() if "loss" in key]).sum().backward()
    return memory_in_use(images.device) / 1e9


def peak(name: str, objects: int, *, parts: bool) -> float:
    """Return what `step` does in a process of its own; without `parts`, all pairs are compared at once."""
    command = [sys.executable, "-m", "benchmarks.many_objects", name, str(objects), *([] if parts else ["whole"])]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def run(models: Sequence[str] = MODELS) -> list[Row]:
    """Return a row for each model: extra memory of 1,000 objects."""
    rows = []
    for name in models:
        base = peak(name, FEW, parts=True)
        ours = peak(name, MANY, parts=True) - base
        whole = peak(name, MANY, parts=False) - base if name == COMPARED else None
        note = f"{base:.2f} GB with {FEW} objects" + ("; theirs: all pairs at once" if whole else "")
        rows.append(below(f"{name}, {MANY} objects, extra memory of a step", ours, "GB", LIMIT_GB, whole, note))
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 3:
        assigners.MAX_PAIRS = 2**62
        vars(import_module("detcli.plugins.fcos.model"))["MAX_PAIRS"] = 2**62
    print(step(sys.argv[1], int(sys.argv[2])))
