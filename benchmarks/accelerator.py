"""Speed on a GPU: images a second in training, latency of an image, and how often a training step waits for the GPU.

The published figures are Detectron2's (MODEL_ZOO.md: V100s, R50-FPN): seconds of an iteration of 16 images on eight of
them, and seconds an image in detection.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.report import Row, at_least, below, median, not_measured
from detcli.config import RunConfig, resolve
from detcli.engine.device import Precision, autocast
from detcli.engine.model import Normalizer, build_model, prepare
from detcli.engine.optimizer import build_optimizer
from detcli.structures import Batch, Target

SIZE = (800, 1333)
PADDED = (800, 1344)
BATCH = 8
OBJECTS = 8
CLASSES = 80
RUNS = 10
WARMUP = 5
SYNCHRONISATIONS = ("cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy")
"""Calls of the CUDA runtime in which the processor waits; cudaDeviceSynchronize is left out: the profiler calls it."""


@dataclass(frozen=True)
class Published:
    """Detectron2's seconds of a training iteration of 16 images on eight V100s, and seconds an image in detection."""

    iteration: float
    image: float


PUBLISHED = {
    "retinanet": Published(0.205, 0.056),
    "faster_rcnn": Published(0.210, 0.038),
    "mask_rcnn": Published(0.261, 0.043),
}

MODES: tuple[tuple[str, Precision, bool], ...] = (
    ("fp32 (TF32)", "fp32", False),
    ("bf16", "bf16", False),
    ("bf16, compiled", "bf16", True),
)
"""What a row is called, its precision, and whether backbone and neck are compiled."""


def run() -> list[Row]:
    """Measure where there is a CUDA device; otherwise say that nothing was measured."""
    if not torch.cuda.is_available():
        return unmeasured("not measured: no accelerator")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    device = torch.device("cuda")
    rows = []
    for name, published in PUBLISHED.items():
        config = recipe(name)
        for mode, precision, compiled in MODES:
            seconds = time_of(training_step(config, device, precision, compiled))
            rate = BATCH / seconds
            note = f"batch {BATCH}, one device; theirs: eight V100s"
            rows.append(at_least(train_row(name, mode), rate, 16 / published.iteration, "images/s", 1.0, note))
            gc.collect()
            torch.cuda.empty_cache()
            seconds = time_of(detection(config, device, precision, compiled))
            note = "random weights; theirs: a V100"
            rows.append(below(detect_row(name, mode), seconds, "s", published.image, published.image, note))
        waits = synchronisations(training_step(config, device, "fp32", compiled=False))
        rows.append(Row(waits_row(name), waits, None, "waits", note="calls that wait for the device, fp32"))
    return rows


def unmeasured(why: str) -> list[Row]:
    """Return the rows that `run` would give, without figures."""
    rows = []
    for name, published in PUBLISHED.items():
        for mode, _, _ in MODES:
            rows.append(not_measured(train_row(name, mode), "images/s", "≥ 1", why, 16 / published.iteration))
            rows.append(not_measured(detect_row(name, mode), "s", f"< {published.image:g} s", why, published.image))
        rows.append(not_measured(waits_row(name), "waits", "", why))
    return rows


def train_row(name: str, mode: str) -> str:
    """Return what the row of a training speed is called."""
    return f"{name} r50-fpn: train, {mode}"


def detect_row(name: str, mode: str) -> str:
    """Return what the row of a latency is called."""
    return f"{name} r50-fpn: detect, batch 1, {mode}"


def waits_row(name: str) -> str:
    """Return what the row of synchronisations is called."""
    return f"{name} r50-fpn: device synchronisations in a training step"


def recipe(name: str) -> RunConfig:
    """Return the run config of recipe `name` on an R50, from random weights, frozen as pretrained ones are."""
    return resolve(name, backbone="r50").config


def scene(objects: int, masks: bool) -> Target:
    """Return objects of 20 to 400 pixels a side anywhere in an image of `SIZE`, with masks as large as their boxes."""
    height, width = SIZE
    sides = 20 + 380 * torch.rand(objects, 2)
    corners = torch.rand(objects, 2) * (torch.tensor([width, height]) - sides)
    boxes = torch.cat([corners, corners + sides], dim=1)
    pixels = None
    if masks:
        pixels = torch.zeros(objects, *PADDED, dtype=torch.uint8)
        for mask, (left, top, right, bottom) in zip(pixels, boxes.int().tolist(), strict=True):
            mask[top:bottom, left:right] = 1
    return Target(boxes, torch.randint(0, CLASSES, (objects,)), pixels)


def pixels(count: int, device: torch.device) -> Batch:
    """Return a batch of `count` random uint8 images of `SIZE` on `device`."""
    images = torch.randint(0, 256, (count, 3, *PADDED), dtype=torch.uint8)
    return Batch(images, torch.tensor([SIZE] * count)).to(device)


def training_step(config: RunConfig, device: torch.device, precision: Precision, compiled: bool) -> Callable[[], None]:
    """Return a function that does one step of SGD on a batch that is on the device already."""
    torch.manual_seed(0)
    model = build_model(config, CLASSES).to(device, memory_format=torch.channels_last).train()
    if compiled:
        compile_parts(model)
    optimizer = build_optimizer(model, config.optim, 1e-4)
    normalize = Normalizer(config.input, device)
    batch = pixels(BATCH, device)
    batch.targets = [scene(OBJECTS, "mask" in model.tasks).to(device) for _ in range(BATCH)]

    def step() -> None:
        with autocast(device, precision):
            losses = model(normalize(batch, channels_last=True))
        optimizer.zero_grad()
        torch.stack([loss for name, loss in losses.items() if "loss" in name]).sum().backward()
        optimizer.step()

    return step


def detection(config: RunConfig, device: torch.device, precision: Precision, compiled: bool) -> Callable[[], None]:
    """Return a function that detects in one image that is on the device already."""
    torch.manual_seed(0)
    model = prepare(build_model(config, CLASSES), device, precision)
    if compiled:
        compile_parts(model)
    normalize = Normalizer(config.input, device)
    batch = pixels(1, device)

    @torch.inference_mode()
    def detect() -> None:
        with autocast(device, precision):
            model(normalize(batch, channels_last=True))

    return detect


def compile_parts(model: torch.nn.Module) -> None:
    """Compile backbone and neck, as `detcli train --compile` does."""
    for part in (model.backbone, model.neck):
        part.compile()


def time_of(function: Callable[[], None]) -> float:
    """Return the median seconds of `function`, each run waited for."""
    for _ in range(WARMUP):
        function()
    times = []
    for _ in range(RUNS):
        torch.cuda.synchronize()
        started = perf_counter()
        function()
        torch.cuda.synchronize()
        times.append(perf_counter() - started)
    return median(times)


def synchronisations(function: Callable[[], None]) -> int:
    """Return how many times a run of `function` waits for the device."""
    for _ in range(WARMUP):
        function()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        function()
    return sum(event.count for event in profiler.key_averages() if event.key in SYNCHRONISATIONS)
