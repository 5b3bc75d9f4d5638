"""detcli against torchvision's detectors with the same weights: detection and a training step, on two CPU threads."""

import copy
import math
from collections.abc import Callable
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import WeightsEnum

from benchmarks.report import Row, apart, quiet_rounds, table
from detcli.config import InputConfig
from detcli.convert.torchvision import CLASSES, INPUT, convert, source
from detcli.engine.device import Precision, autocast, find_device
from detcli.engine.model import Normalizer, prepare
from detcli.eval.results import rescale
from detcli.nn.detector import Detector
from detcli.nn.weights import load_weights
from detcli.registry import build
from detcli.structures import Batch, Detections, ImageInfo, Target

NAMES = ("retinanet_resnet50_fpn", "fcos_resnet50_fpn", "fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn")
THREADS = 2
DETECTION_SIZE = (480, 640)
TRAINING_SIZE = (320, 416)
OBJECTS = 8

OUTPUTS = {
    "classification_head.cls_logits": (1.0, -6.0),
    "regression_head.bbox_reg": (0.3, 0.0),
    "rpn.head.cls_logits": (1.0, 0.0),
    "rpn.head.bbox_pred": (0.2, 0.0),
    "box_predictor.cls_score": (2.0, 0.0),
    "box_predictor.bbox_pred": (0.5, 0.0),
    "mask_predictor.mask_fcn_logits": (1.5, 0.0),
}
"""Deviation and mean that layers' outputs get, so that random weights detect about as much as trained ones."""


def random_weights(name: str, seed: int = 0) -> dict[str, Tensor]:
    """Return weights for torchvision's model builder `name` whose scores and boxes are spread, drawn from `seed`."""
    torch.manual_seed(seed)
    model: nn.Module = getattr(models.detection, name)(
        weights=None, weights_backbone=None, min_size=128, max_size=256
    ).eval()
    for key, layer in model.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            last = key.endswith("bn3")
            nn.init.uniform_(layer.weight, *((0.2, 0.4) if last else (0.8, 1.2)))
            nn.init.normal_(layer.bias, std=0.1)
            nn.init.normal_(layer.running_mean, std=0.1)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
        for suffix, (deviation, mean) in OUTPUTS.items():
            if key.endswith(suffix):
                if name.startswith("fcos") and suffix.endswith("bbox_reg"):
                    deviation, mean = 1.0, 2.0
                layer.register_forward_hook(Spread(deviation, mean))
    with torch.inference_mode():
        model([picture(160, 224, seed)])
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for key in state:
        # Class 0 is the background: no one trains it in a dense head, and the softmax prefers it.
        if key.endswith("classification_head.cls_logits.bias"):
            state[key].view(-1, CLASSES)[:, 0] = -20.0
        if key.endswith("box_predictor.cls_score.bias"):
            state[key][0] = 4.0
    return state


class Spread:
    """A forward hook that gives a layer's output a deviation and a mean, once, by its weights."""

    def __init__(self, deviation: float, mean: float) -> None:
        self.deviation = deviation
        self.mean = mean
        self.done = False

    def __call__(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Return the output of `layer` with the weights that it has from then on."""
        if self.done:
            return output
        self.done = True
        layer.weight.mul_(self.deviation / output.std())
        layer.bias.fill_(self.mean)
        return layer(*inputs)


def picture(height: int, width: int, seed: int) -> Tensor:
    """Return a picture [3,H,W] of blurred noise at several scales, 0..1 in steps of 1/255."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(1, 3, height, width)
    for cells in (2, 8, 32, 128):
        noise = torch.randn(1, 3, cells, cells, generator=generator)
        image += nn.functional.interpolate(noise, (height, width), mode="bilinear")
    return ((image[0] * 0.2 + 0.5).clamp(0, 1) * 255).round() / 255


def theirs(name: str, state: dict[str, Tensor], size: tuple[int, int]) -> nn.Module:
    """Return torchvision's model as its builder makes it for published weights, with `state` as those.

    It takes images of `size` as they are.
    """
    with patch.object(WeightsEnum, "get_state_dict", lambda *_, **__: copy.deepcopy(state)):
        model: nn.Module = getattr(models.detection, name)(weights="COCO_V1", min_size=min(size), max_size=max(size))
    return model.eval()


def ours(name: str, state: dict[str, Tensor]) -> Detector:
    """Return detcli's model with torchvision's weights, as it trains."""
    model = build("models", source(name).model, num_classes=CLASSES - 1)
    assert isinstance(model, Detector)
    load_weights(model, convert(name, state), name)
    return model.eval()


def our_detection(model: Detector, image: Tensor, precision: Precision) -> Callable[[], Detections]:
    """Return a function that detects in `image` [3,H,W] of 0..1, from uint8 pixels to masks of the whole image."""
    device = find_device("cpu")
    height, width = image.shape[-2:]
    normalize = Normalizer(InputConfig(**INPUT), device)
    batch = Batch((image * 255).round().byte()[None], torch.tensor([[height, width]]))
    info = ImageInfo(0, "", (height, width), (height, width))
    prepare(model, device, precision)

    @torch.inference_mode()
    def detect() -> Detections:
        with autocast(device, precision):
            found: Detections = model(normalize(batch, channels_last=True))[0]
        return rescale(found, info)

    return detect


def their_detection(model: nn.Module, image: Tensor) -> Callable[[], dict[str, Tensor]]:
    """Return a function that detects in `image` [3,H,W] of 0..1 with torchvision's `model`."""

    @torch.inference_mode()
    def detect() -> dict[str, Tensor]:
        found: dict[str, Tensor] = model.eval()([image])[0]
        return found

    return detect


def detection(side: Literal["ours", "theirs"], name: str, precision: Precision = "fp32") -> Callable[[], Any]:
    """Return a function that detects in a picture, with the random weights of `name`."""
    torch.set_num_threads(THREADS)
    state, image = random_weights(name), picture(*DETECTION_SIZE, 1)
    if side == "ours":
        return our_detection(ours(name, state), image, precision)
    return their_detection(theirs(name, state, DETECTION_SIZE), image)


def matched(found: Detections, expected: dict[str, Tensor]) -> float:
    """Return the share of torchvision's detections that detcli has, too: box within 0.01 pixels, score within 1e-4."""
    apart = (expected["boxes"][:, None] - found.boxes).abs().amax(-1)
    unlike = (expected["scores"][:, None] - found.scores).abs()
    same = (apart < 1e-2) & (unlike < 1e-4) & (expected["labels"][:, None] - 1 == found.labels)
    assert len(expected["boxes"]), "torchvision finds nothing: the comparison says nothing"
    return same.any(1).float().mean().item() * min(1.0, len(expected["boxes"]) / max(1, len(found)))


def targets(height: int, width: int, seed: int) -> Target:
    """Return `OBJECTS` boxes with labels and elliptic masks in an image of the given size, drawn from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([width, height])
    extent = (0.1 + 0.4 * torch.rand(OBJECTS, 2, generator=generator)) * size
    corner = torch.rand(OBJECTS, 2, generator=generator) * (size - extent)
    boxes = torch.cat([corner, corner + extent], dim=1)
    rows, columns = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
    center = corner + extent / 2
    x = (columns - center[:, 0, None, None]) / extent[:, 0, None, None]
    y = (rows - center[:, 1, None, None]) / extent[:, 1, None, None]
    labels = torch.randint(0, CLASSES - 1, (OBJECTS,), generator=generator)
    return Target(boxes, labels, (x.square() + y.square() < 0.25).byte())


def training_step(model: nn.Module, losses: Callable[[], dict[str, Tensor]]) -> Callable[[], None]:
    """Return a function that does one step of SGD on the sum of `losses`."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-6, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        total = sum(losses().values(), start=torch.zeros(()))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        assert math.isfinite(total.item()), "the loss is not finite: the step says nothing"

    return step


def training(side: Literal["ours", "theirs"], name: str) -> Callable[[], None]:
    """Return a training step on two pictures, from the random weights of `name`."""
    torch.set_num_threads(THREADS)
    state, seeds = random_weights(name), (2, 3)
    images = [picture(*TRAINING_SIZE, seed) for seed in seeds]
    labelled = [targets(*TRAINING_SIZE, seed) for seed in seeds]
    with_masks = name.startswith("mask")
    model: nn.Module = ours(name, state) if side == "ours" else theirs(name, state, TRAINING_SIZE)
    model.train()

    def their_losses() -> dict[str, Tensor]:
        described: list[dict[str, Any]] = [
            {"boxes": target.boxes, "labels": target.labels + 1} | ({"masks": target.masks} if with_masks else {})
            for target in labelled
        ]
        losses: dict[str, Tensor] = model(images, described)
        return losses

    if side == "theirs":
        return training_step(model, their_losses)
    device = find_device("cpu")
    model.to(memory_format=torch.channels_last)
    normalize = Normalizer(InputConfig(**INPUT), device)
    pixels = torch.stack([(image * 255).round().byte() for image in images])
    sizes = torch.tensor([TRAINING_SIZE] * len(images))

    def our_losses() -> dict[str, Tensor]:
        losses: dict[str, Tensor] = model(normalize(Batch(pixels, sizes, labelled), channels_last=True))
        return losses

    return training_step(model, our_losses)


def run(wanted: int = 7, tries: int = 15) -> list[Row]:
    """Measure all models, each in a process of its own; detections must be the same."""
    rows = []
    for name in NAMES:
        expected = detection("theirs", name)()
        share = matched(detection("ours", name)(), expected)
        assert share >= 0.95, f"{name}: {share:.1%} of the detections are the same"
        same = f"{share:.1%} of {len(expected['boxes'])} detections the same"
        with (
            apart(detection, "ours", name) as plain,
            apart(detection, "ours", name, "bf16") as half,
            apart(detection, "theirs", name) as reference,
        ):
            rounds = quiet_rounds([plain, half, reference], wanted, tries)
        rows.append(rounds.compare(f"{name}: detect, fp32", 0, 2, 0.8, same))
        rows.append(rounds.compare(f"{name}: detect, bf16", 1, 2, 0.5, "torchvision in fp32"))
        with apart(training, "ours", name) as our_step, apart(training, "theirs", name) as their_step:
            rounds = quiet_rounds([our_step, their_step], wanted, tries)
        rows.append(rounds.compare(f"{name}: training step, fp32", 0, 1, 0.85))
        print(table(rows[-3:]), flush=True)
    return rows
