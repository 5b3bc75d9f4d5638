"""The comparison of a converted checkpoint with what its own code base computed."""

import importlib
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from unittest import mock

import numpy as np
import reference
import torch
from torch import nn

from detcli.config import load, revise
from detcli.convert import mmdet_config
from detcli.convert.convert import convert, write
from detcli.engine.checkpoint import open_checkpoint
from detcli.engine.model import Normalizer, build_model
from detcli.errors import DetcliError
from detcli.eval.results import mask_regions
from detcli.nn import roi_head, samplers
from detcli.nn.boxes import pairwise_iou
from detcli.nn.weights import load_weights
from detcli.structures import ImageInfo
from detcli.zoo.names import resolve as find_row
from detcli.zoo.status import digest
from detcli.zoo.training import training

FEATURE_TOLERANCE = 1e-4  # of the standard deviation
LOSS_TOLERANCE = 1e-4  # relative
GRADIENT_TOLERANCE = 1e-3  # relative, or as much as rounding explains
ROUNDING_FACTOR = 2.0  # of what rounding to float32 does to our gradients: what it may do to theirs
ROUNDING_LIMIT = 5e-3  # relative, whatever rounding does
ABSOLUTE = 1e-6  # of losses and gradients that are nearly zero
MATCHED = 0.95  # of the reference's detections
AREA_TOLERANCE = 0.01  # relative, beside one pixel

POINT_TOLERANCE = 1e-2  # pixels
SCORE_TOLERANCE = 1e-3  # relative, of keypoints


@dataclass
class Outcome:
    """What came of a case: the digest of the converted config, what was measured by check, and what is wrong."""

    config: str = ""
    measured: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def note(self, check, measured, wrong):
        """Add what a check measured and found wrong."""
        self.measured[check] = measured
        self.wrong += [f"{check}: {text}" for text in wrong]


def compare(case, folder):
    """Convert the checkpoint of `case`, load it as ``detcli eval`` does, and compare all that the case holds.

    Both files are written into `folder`.
    """
    source, path, as_id = reference.write_checkpoint(case, folder)
    converted = convert(source, path, as_id=as_id)
    write(converted, folder / "converted.safetensors")
    our_names = {entry.theirs: entry.ours for entry in converted.report.entries if entry.theirs}
    del converted
    checkpoint = open_checkpoint(folder / "converted.safetensors")
    outcome = Outcome(digest(checkpoint.config))
    weights = checkpoint.weights()
    model = _loaded(checkpoint.config, len(checkpoint.classes), weights)
    outcome.note("weights", f"{len(weights)} tensors", _wrongly_frozen(case, model, our_names))

    batch = reference.batch(case, Normalizer(checkpoint.config.input, torch.device("cpu")))
    outcome.note("features", *_features(case, model, batch))
    with torch.no_grad():
        ours = model.eval()(batch)[0]
    theirs = reference.detections(case)
    pairs = _pairs(theirs, ours)
    outcome.note("detections", f"{len(pairs)} of {len(theirs['scores'])}", _unmatched(theirs, ours, pairs))
    if "mask_areas" in theirs:
        outcome.note("masks", *_mask_areas(theirs, ours, pairs))
    if "keypoints_first5" in theirs:
        outcome.note("keypoints", *_keypoints(theirs, ours, pairs))
    if ours.semantic is not None:
        outcome.note("segments", *_segments(case, model, ours))

    settings = reference.training_settings(case, checkpoint.config.model)
    if settings:
        model = _loaded(revise(checkpoint.config, settings=settings), len(checkpoint.classes), weights)
    # Our objects are of pixels: where a case has the loss of polygons alone, its targets are drawn as its code does.
    crop = reference.polygon_crops(case) if reference.has_polygons(case) else roi_head.crop_masks
    with mock.patch.object(roi_head, "crop_masks", crop), _drawn_as_in(case):
        losses = backward(model, batch)
        outcome.note("losses", *_differences(losses, reference.losses(case), LOSS_TOLERANCE))
        outcome.note("gradients", *gradients(case, model, batch))
    return outcome


@contextmanager
def _drawn_as_in(case):
    """Have the jitter of Grid R-CNN's RoIs drawn as in `case`: the first numbers of seed 0, RoIs as they come.

    Its samplers take everything, and then in the order of candidates.
    """

    def in_order(seed, count, device):
        return torch.arange(count, device=device) / count

    def first_numbers(seed, count, device):
        return torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float32).to(device)

    if "losses_nojitter" not in case:
        yield
        return
    grid = importlib.import_module("detcli.plugins.grid_rcnn.model")
    with mock.patch.object(samplers, "draw", in_order), mock.patch.object(grid, "draw", first_numbers):
        yield


def config_of(case):
    """Return the run config of `case`: what its config is here, or the recipe of its row."""
    if case["origin"] == "detectron2":
        plan = training(find_row(case["config"].removeprefix("configs/")))
        if plan.config is None or not plan.exact:
            raise DetcliError(plan.missing or "; ".join(plan.differs))
        return plan.config
    found = mmdet_config.translate(mmdet_config.parse(reference.config_text(case)))
    return load({"recipe": found["model"]["name"], **found})


def same_model(one, other):
    """Return whether the models of two configs are alike, whatever weights their backbones start from."""
    return _without_name(one.model) == _without_name(other.model)


def _without_name(model):
    backbone = {key: value for key, value in model["backbone"].items() if key != "name"}
    return {**model, "backbone": backbone}


def _loaded(config, num_classes, weights):
    model = build_model(config, num_classes)
    load_weights(model, weights, "the converted checkpoint")
    return model


def _wrongly_frozen(case, model, our_names):
    """Return which parameters are frozen here and trained there, or the other way round."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    if case["origin"] == "mmdet":
        expected = set(case["frozen"])
    else:
        # Normalisation layers are frozen in Detectron2: they have buffers where we have parameters.
        parameters = {name for name, _ in model.named_parameters()}
        buffers = {our_names[row[0]] for row in case["state_dict"] if row[3] == "buffer"}
        expected = {our_names[name] for name in case["frozen_params"]} | (buffers & parameters)
    return [f"{name} is {'frozen' if name in frozen else 'trained'}" for name in sorted(frozen ^ expected)]


@torch.no_grad()
def _features(case, model, batch):
    """Compare the maps of backbone and neck."""
    outputs = {"backbone": model.eval().backbone(batch.images)}
    if model.neck is not None:
        outputs["neck"] = model.neck(outputs["backbone"])
    errors = {
        f"{part} {theirs['path']}": _feature_error(ours, theirs)
        for part, levels in reference.features(case).items()
        for ours, theirs in zip(outputs[part], levels, strict=True)
    }
    wrong = [f"{where} is off by {error:.2g}" for where, error in errors.items() if not error <= FEATURE_TOLERANCE]
    return f"{max(errors.values()):.0e}", wrong


def _feature_error(tensor, theirs):
    """Return the largest difference in mean, deviation and samples, in the reference's deviations."""
    if list(tensor.shape) != theirs["shape"]:
        return float("inf")
    values = tensor.double().flatten()
    samples = torch.tensor(theirs["samples"], dtype=torch.float64)
    index = np.linspace(0, len(values) - 1, len(samples)).astype(int)
    differences = [
        values.mean() - theirs["mean"],
        values.std(correction=0) - theirs["std"],
        *(values[index] - samples),
    ]
    return float(torch.stack(differences).abs().max()) / theirs["std"]


def _pairs(theirs, ours):
    """Return the pairs of the reference's best detections and ours that are alike, each of them once."""
    scores, labels, boxes = (torch.tensor(theirs[key]) for key in ("scores", "labels", "boxes"))
    alike = pairwise_iou(boxes, ours.boxes) >= 0.99
    alike |= (boxes[:, None] - ours.boxes).abs().amax(-1) <= 1e-2  # boxes without area overlap nothing
    alike &= (scores[:, None] - ours.scores).abs() <= 1e-3
    alike &= labels[:, None] == ours.labels
    pairs = []
    for index, row in enumerate(alike):
        if row.any():
            partner = int(row.int().argmax())
            alike[:, partner] = False
            pairs.append((index, partner))
    return pairs


def _unmatched(theirs, ours, pairs):
    wrong = []
    count, best = theirs["count"], len(theirs["scores"])
    if abs(len(ours) - count) > (1 - MATCHED) * count:
        wrong.append(f"{len(ours)}, not {count}")
    if len(pairs) < MATCHED * best:
        wrong.append(f"only {len(pairs)} of {best} are alike")
    return wrong


def _mask_areas(theirs, ours, pairs):
    """Compare the areas of masks, pasted into the reference's boxes.

    Boxes are compared by themselves: in one that is a pixel high, rounding of its sides alone changes the area.
    """
    boxes = ours.boxes.clone()
    for index, partner in pairs:
        boxes[partner] = torch.tensor(theirs["boxes"][index])
    areas = [int(mask.sum()) for _, _, mask in mask_regions(replace(ours, boxes=boxes), theirs["mask_size"])]
    expected = theirs["mask_areas"]
    off = [
        f"{areas[partner]} pixels for {expected[index]}"
        for index, partner in pairs
        if abs(areas[partner] - expected[index]) > AREA_TOLERANCE * expected[index] + 1
    ]
    return f"{len(pairs) - len(off)} of {len(pairs)}", off


def _keypoints(theirs, ours, pairs):
    """Compare places and scores of the best detections' keypoints."""
    found = [(theirs["keypoints_first5"][index], ours.keypoints[partner]) for index, partner in pairs if index < 5]
    expected, keypoints = torch.tensor([first for first, _ in found]), torch.stack([second for _, second in found])
    difference = (keypoints - expected).abs()
    off = (difference[..., :2].amax(-1) > POINT_TOLERANCE) | (difference[..., 2] > SCORE_TOLERANCE * expected[..., 2])
    wrong = [f"only {int((~off).sum())} of {off.numel()} are alike"] if off.sum() > (1 - MATCHED) * off.numel() else []
    return f"{int((~off).sum())} of {off.numel()}", wrong


def _segments(case, model, ours):
    """Compare the logits of stuff, and label and area of each segment."""
    error = _feature_error(ours.semantic[None], case["inference"]["intermediates"]["sem_seg_logits_stride4"])
    wrong = [] if error <= FEATURE_TOLERANCE else [f"logits are off by {error:.2g}"]
    size = tuple(case["input"][key] for key in ("height", "width"))
    found = model.merge(ours, ImageInfo(0, "", size, size))
    areas = torch.bincount(found.segments.flatten(), minlength=len(found.labels) + 1).tolist()
    labels, expected, void = reference.segments(case)
    if found.labels.tolist() != labels:
        return f"{len(found.labels)} of {len(labels)}", [*wrong, f"labels are {found.labels.tolist()}, not {labels}"]
    off = [
        f"{ours} pixels for {theirs}"
        for ours, theirs in zip(areas, [void, *expected], strict=True)
        if abs(ours - theirs) > AREA_TOLERANCE * theirs + 1
    ]
    return f"{len(labels) + 1 - len(off)} of {len(labels) + 1}", wrong + off


def backward(model, batch):
    """Return the losses by name, their gradients computed, with normalisation layers in eval mode."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.Dropout | nn.MultiheadAttention):
            module.eval()
    model.zero_grad()
    losses = {name: value for name, value in model(batch).items() if "loss" in name}
    sum(losses.values()).backward()
    return {name: float(value.detach()) for name, value in losses.items()}


def gradients(case, model, batch):
    """Compare norms of the gradients that `backward` gave `model` of `batch`.

    Return the largest difference, and what is wrong.
    """
    theirs = {"all": case["train"]["grad_norm"]} if case["origin"] == "detectron2" else {}
    theirs = theirs or {"the sum": case["grad_norm_sum"], **case["grad_norms"]}
    ours = _norms(case, model)
    measured, wrong = _differences(ours, theirs, GRADIENT_TOLERANCE)
    if wrong:
        wrong = _differences(ours, theirs, ROUNDING_LIMIT)[1] or _beyond_rounding(case, model, batch, ours, theirs)
    return measured, wrong


def _norms(case, model):
    """Return norms of gradients: Detectron2's of all, MMDetection's sum of each tensor's, and some of these."""
    # In float32, the norm of 100 million elements is off by 1 %.
    norms = {name: float(p.grad.double().norm()) for name, p in model.named_parameters() if p.grad is not None}
    if case["origin"] == "detectron2":
        return {"all": sum(norm**2 for norm in norms.values()) ** 0.5}
    return {"the sum": sum(norms.values())} | {name: norms.get(name, 0.0) for name in case["grad_norms"]}


def _beyond_rounding(case, model, batch, ours, theirs):
    """Return which of their norms differ from ours in double precision by more than rounding to float32 explains.

    Sums whose terms cancel, as the gradients of deformable convolutions' offsets, are known in float32 to a few digits
    only. How many is seen from our own: of the picture, and of the picture with other last bits. `model` is in double
    precision afterwards.
    """
    runs = [ours]
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        parts = 2 * torch.rand(batch.images.shape, generator=generator, dtype=torch.float64) - 1
        backward(model, replace(batch, images=(batch.images * (1 + 2**-23 * parts)).float()))
        runs.append(_norms(case, model))
    # What models compute in float32 whatever they are given, they then compute in double precision, too.
    with mock.patch.object(torch.Tensor, "float", torch.Tensor.double), _double_by_default():
        backward(model.double(), _double(batch))
    exact = _norms(case, model)
    rounding = {name: max(abs(run[name] - value) for run in runs) for name, value in exact.items()}
    allowed = {name: ROUNDING_FACTOR * value for name, value in rounding.items()}
    return _differences(exact, theirs, GRADIENT_TOLERANCE, allowed)[1]


@contextmanager
def _double_by_default():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def _double(batch):
    """Return `batch` with all that is float32 in double precision."""

    def double(value):
        return value.double() if isinstance(value, torch.Tensor) and value.dtype == torch.float32 else value

    targets = [
        replace(target, **{entry.name: double(getattr(target, entry.name)) for entry in fields(target)})
        for target in batch.targets or ()
    ]
    return replace(batch, images=double(batch.images), targets=targets)


def _differences(ours, theirs, tolerance, allowed=()):
    """Return the largest relative difference, and which values differ by more than `tolerance` of theirs.

    What is nearly zero is compared as if it were larger, so that `ABSOLUTE` is within the tolerance; of those that are
    in it, differences up to that in `allowed` (name -> difference) are not wrong either.
    """
    wrong = [f"{name} is only on one side" for name in sorted(ours.keys() ^ theirs.keys())]
    largest = 0.0
    for name in sorted(ours.keys() & theirs.keys()):
        difference = abs(ours[name] - theirs[name])
        relative = difference / (abs(theirs[name]) + ABSOLUTE / tolerance)
        largest = max(largest, relative)
        if not (relative <= tolerance or difference <= dict(allowed).get(name, 0.0)):
            wrong.append(f"{name} is {ours[name]:.7g}, not {theirs[name]:.7g}")
    return f"{largest:.0e}", wrong
