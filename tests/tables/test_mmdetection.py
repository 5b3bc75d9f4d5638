"""Functions of detcli.nn against tables of MMDetection 2.28.2 with mmcv 1.7.2, in float32 on a CPU.

An entry is a function (`op`) with its parameters, inputs, output and, where it has one, the gradient of the output's
sum. One that detcli has nothing for is in `MISSING` and has parameters only.

Tolerances: the same operations in another order differ by a few units in the last place, 1e-6 of the largest operand.
Values are held to 1e-5 of themselves. What is a difference of larger numbers (a corner: centre less half a side) is
held to 1e-6 of those.
"""

import gzip
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from detcli.data.annotations import bitmaps
from detcli.nn import losses, roi_head
from detcli.nn.anchors import AnchorGenerator
from detcli.nn.assigners import atss, max_iou
from detcli.nn.box_coders import DeltaBoxCoder, DistanceBoxCoder
from detcli.nn.boxes import aligned_iou, pairwise_iou
from detcli.nn.deform import DeformConv2d, moved_roi_align
from detcli.nn.masks import crop_masks, paste_masks
from detcli.nn.matching import hungarian, object_set
from detcli.nn.postprocess import SoftNMS, batched_nms, fast_nms, multiclass_nms, suppress
from detcli.nn.roi_extractor import single_level
from detcli.nn.roi_head import MaskHead, RoISample
from detcli.registry import build
from detcli.structures import Batch, Target

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ENTRIES = json.loads(gzip.decompress((Path(__file__).parent / "data/mmdetection.json.gz").read_bytes()))
RELATIVE = 1e-5
PIXELS = 1e-4  # of coordinates and overlaps' corners up to a few hundred pixels


class Missing(NamedTuple):
    """Entries that detcli has no function for, and what the function would be called when it has one, and where."""

    op: str
    params: dict
    names: str
    places: str = "detcli/nn plugins"


MISSING = [
    Missing("coder", {"type": "DeltaXYWHBBoxCoder", "add_ctr_clamp": True}, "ctr_clamp|cent(er|re)_clamp"),
    Missing("coder", {"type": "TBLRBBoxCoder"}, "tblr"),
    Missing("coder", {"type": "YOLOBBoxCoder"}, "yolo"),
    Missing("coder", {"type": "PseudoBBoxCoder"}, "pseudo"),
    Missing("coder", {"type": "BucketingBBoxCoder"}, "bucket"),
    Missing("loss", {"type": "CrossEntropyLoss", "class_weight": [0.5, 1, 2, 1, 1, 1, 0.1]}, "class_weight"),
    Missing("loss", {"type": "QualityFocalLoss"}, "quality_?focal|^qfl"),
    Missing("loss", {"type": "DistributionFocalLoss"}, "distribution_?focal|^dfl"),
    Missing("loss", {"type": "VarifocalLoss"}, "varifocal|^vfl"),
    Missing("loss", {"type": "GaussianFocalLoss"}, "gaussian_?focal"),
    Missing("loss", {"type": "BalancedL1Loss"}, "balanced_?l1"),
    Missing("loss", {"type": "MSELoss"}, "mse|^l2"),
    Missing("loss", {"type": "IoULoss", "mode": "square"}, "square", "detcli/nn/losses.py"),
    Missing("loss", {"type": "DIoULoss"}, "diou"),
    Missing("loss", {"type": "CIoULoss"}, "ciou"),
    Missing("loss", {"type": "AssociativeEmbeddingLoss"}, "associative"),
    Missing("assigner", {"type": "UniformAssigner"}, "^uniform(_?assigner)?$", "detcli/nn/assigners.py plugins"),
    Missing("assigner", {"type": "PointAssigner"}, "^point$|reppoints", "detcli/nn/assigners.py detcli/builtin.py"),
    Missing("assigner", {"type": "GridAssigner"}, "^grid(_?assigner)?$", "detcli/nn/assigners.py detcli/builtin.py"),
    Missing("nms", {"offset": 1}, "offset|legacy|pixel", "detcli/nn/postprocess.py"),
    Missing("nms_match", {}, "nms_?match"),
    Missing("roi_align", {"pool_mode": "max"}, "pool", "detcli/nn/roi_align.py detcli/nn/roi_extractor.py"),
    Missing("carafe", {}, "carafe"),
    Missing("corner_pool", {}, "corner_?pool"),
    Missing("point_sample", {}, "point_?sample"),
    Missing("simple_roi_align", {}, "simple_?roi"),
    Missing("ms_deform_attn", {}, "deform.*att"),
    # detcli cuts and resizes bitmaps; MMDetection does the same to polygons where a pipeline keeps them.
    Missing("polygons.areas", {}, "polygon_?area", "detcli"),
    Missing("polygons.cropped", {}, "crop_?polygon|polygons?_?crop", "detcli"),
    Missing("polygons.resized", {}, "resize_?polygon|polygons?_?resize", "detcli"),
    Missing("polygons.crop_resize", {}, "crop_?and_?resize|crop_?resize", "detcli"),
    Missing("anchors", {"type": "SSDAnchorGenerator"}, "ssd"),
    Missing("anchors", {"type": "LegacySSDAnchorGenerator"}, "ssd"),
    Missing("anchors", {"type": "YOLOAnchorGenerator"}, "yolo"),
]


def describe(entry):
    """Return the name of an entry, or of the entries of a `Missing`: its function and what sets it apart."""
    op, params = (entry.op, entry.params) if isinstance(entry, Missing) else (entry["op"], entry["params"])
    rest = {key: value for key, value in params.items() if key not in ("type", "polygons", "nms_cfg", "centers")}
    words = [
        op,
        params.get("type", ""),
        *(f"{key}={value}" for key, value in (rest | params.get("nms_cfg", {})).items()),
    ]
    return " ".join(str(word) for word in words if word)


def is_in(entry, missing):
    same_op = entry["op"] == missing.op or entry["op"].startswith(f"{missing.op}.")
    params = entry["params"]
    return same_op and all(
        key in params and (value is ... or params[key] == value) for key, value in missing.params.items()
    )


TESTED = []


def entries(op):
    """Return a decorator: the test runs once for each entry of `op` that is not missing."""
    chosen = [entry for entry in ENTRIES if entry["op"] == op and not any(is_in(entry, item) for item in MISSING)]
    assert chosen, op
    TESTED.extend(id(entry) for entry in chosen)
    return pytest.mark.parametrize("entry", chosen, ids=describe)


def tensor(record):
    return torch.tensor(record["data"], dtype=getattr(torch, record["dtype"])).reshape(record["shape"])


def inputs(entry):
    return {name: tensor(value) for name, value in entry["inputs"].items()}


def close(ours, expected, relative=RELATIVE, absolute=1e-7):
    torch.testing.assert_close(ours.detach(), expected, rtol=relative, atol=absolute)


def test_names_are_found(named):
    assert named("^giou$", "detcli/nn plugins") == ["giou"]
    assert named("fcos|^sigma$", "detcli/nn/postprocess.py plugins/fcos") != []


def test_every_entry_is_tested_or_missing():
    listed = [id(entry) for entry in ENTRIES for item in MISSING if is_in(entry, item)]
    assert sorted(TESTED + listed) == sorted(id(entry) for entry in ENTRIES)
    assert [describe(item) for item in MISSING if not any(is_in(entry, item) for entry in ENTRIES)] == []


@pytest.mark.parametrize("missing", MISSING, ids=describe)
def test_what_is_missing_is_nowhere(missing, named):
    """A function of that name must be held to its entries: prepare their numbers, and take it off the list."""
    assert named(missing.names, missing.places) == []


def delta_coder(params):
    stds = tuple(params.get("target_stds", (1.0, 1.0, 1.0, 1.0)))
    return DeltaBoxCoder(stds=stds, style="v1" if params["type"].startswith("Legacy") else "exact")


@entries("coder.encode")
def test_encode(entry):
    params, x = entry["params"], inputs(entry)
    if params["type"] == "DistancePointBBoxCoder":
        ours = DistanceBoxCoder().encode(x["points"], x["gt_bboxes"], params["max_dis"], params["eps"])
    else:
        ours = delta_coder(params).encode(x["bboxes"], x["gt_bboxes"])
    close(ours, tensor(entry["output"]), absolute=1e-5)  # a shift is a difference of centres


@entries("coder.decode")
def test_decode(entry):
    params, x = entry["params"], inputs(entry)
    limit = torch.tensor(params["max_shape"]) if params.get("clip_border", True) else None
    if params["type"] == "DistancePointBBoxCoder":
        ours = DistanceBoxCoder().decode(x["points"], x["pred_bboxes"], limit)
    else:
        deltas = x["pred_bboxes"].unflatten(1, (-1, 4))
        ours = delta_coder(params).decode(x["bboxes"][:, None], deltas, limit).flatten(1)
    close(ours, tensor(entry["output"]), absolute=PIXELS)


def test_boxes_shrink_no_more_than_they_grow():
    """The deltas of the entries stay below the limit, wh_ratio_clip = 16 / 1000."""
    deltas = torch.tensor([[0.0, 0, 9, -9]])
    (sides,) = DeltaBoxCoder().decode(torch.tensor([[-8.0, -8, 8, 8]]), deltas)[:, 2:] * 2
    close(sides, torch.tensor([16 * 1000 / 16, 16 * 16 / 1000]))


@entries("bbox_overlaps")
def test_overlaps(entry):
    overlap = aligned_iou if entry["params"].get("is_aligned") else pairwise_iou
    x = inputs(entry)
    close(overlap(x["b1"], x["b2"], entry["params"]["mode"]), tensor(entry["output"]), absolute=1e-6)


LOSSES = {
    "CrossEntropyLoss": lambda use_sigmoid=False: losses.cross_entropy(sigmoid=use_sigmoid),
    "FocalLoss": lambda alpha, gamma, loss_weight=1.0: losses.focal(alpha=alpha, gamma=gamma, weight=loss_weight),
    "L1Loss": losses.l1,
    "SmoothL1Loss": losses.smooth_l1,
    "IoULoss": lambda linear=False: losses.iou(mode="linear" if linear else "log"),
    "GIoULoss": losses.giou,
    "BoundedIoULoss": lambda beta, eps: losses.bounded_iou(beta=beta),
    "GHMC": lambda bins, momentum, note: build("losses", {"name": "ghm_c", "bins": bins, "momentum": momentum}),
    "GHMR": lambda mu, bins, momentum, note: build(
        "losses", {"name": "ghm_r", "mu": mu, "bins": bins, "momentum": momentum, "weight": 1.0}
    ),
}


@entries("loss")
def test_loss_and_its_gradient(entry, monkeypatch):
    params, x = dict(entry["params"]), inputs(entry)
    pred = x["pred"].requires_grad_()
    if params.pop("use_mask", False):
        value = mask_loss(pred, x["target"], x["label"], monkeypatch)[None]
    else:
        avg_factor = params.pop("avg_factor", None)
        value = LOSSES[params.pop("type")](**params)(pred, x["target"], x["w"], avg_factor)
    value.sum().backward()
    close(value, tensor(entry["output"]))
    close(pred.grad, tensor(entry["grad_of_sum"]["pred"]))


class GivenLogits(MaskHead):
    """A mask head without layers: its logits [P,C,S,S] are given."""

    def __init__(self, logits):
        nn.Module.__init__(self)
        self.logits = logits
        self.conv_logits = nn.Conv2d(1, logits.shape[1], 1)

    def forward(self, rois, labels):
        return self.logits[torch.arange(len(labels)), labels]


def mask_loss(pred, target, labels, monkeypatch):
    """Return the loss of a mask head whose logits are `pred` [P,C,S,S], of RoIs whose masks are `target` [P,S,S]."""
    monkeypatch.setattr(roi_head, "crop_masks", lambda masks, boxes, index, size: target)
    count = len(labels)
    boxes, every_row = torch.zeros(count, 4), torch.ones(count, dtype=torch.bool)
    sample = RoISample(boxes, boxes, torch.arange(count), labels, every_row, every_row, count)
    return GivenLogits(pred).losses(torch.zeros(count, 1, 1, 1), [sample], [Target(boxes, labels, masks=target)])[
        "loss_mask"
    ]


@entries("assigner")
def test_assignment(entry):
    params, x = entry["params"], inputs(entry)
    if params["type"] == "HungarianAssigner":
        return check_matching(entry)
    if params["type"] == "ATSSAssigner":
        assign = atss(topk=params["topk"])
    else:
        assign = max_iou(
            positive=params["pos_iou_thr"],
            negative=params["neg_iou_thr"],
            min_positive=params["min_pos_iou"],
            match_low_quality=params.get("match_low_quality", True),
            claim_all=params.get("gt_max_assign_all", True),
            ignore_iof=params["ignore_iof_thr"],
        )
    target = Target(x["gt_bboxes"], x["gt_labels"], ignored=x.get("gt_bboxes_ignore", torch.zeros(0, 4)))
    ours = assign(x["bboxes"], target, params.get("num_level_bboxes", [len(x["bboxes"])]), None)
    expected = {name: tensor(value) for name, value in entry["output"].items()}
    # MMDetection counts from 1, with 0 for background and -1 for what takes no part.
    assert ours.gt_index.tolist() == (expected["gt_inds"] - 1).tolist()
    positive = ours.gt_index >= 0
    assert positive.any()
    assert x["gt_labels"][ours.gt_index[positive]].tolist() == expected["labels"][positive].tolist()
    close(ours.iou[positive], expected["max_overlaps"][positive])


def check_matching(entry):
    params, x = entry["params"], inputs(entry)
    scores = {"ClassificationCost": "softmax", "FocalLossCost": "focal"}
    costs = {f"{ours}_cost": params[f"{theirs}_cost"]["weight"] for ours, theirs in COSTS.items()}
    # MMDetection compares corners where it is not told otherwise.
    match = hungarian(class_score=scores[params["cls_cost"]["type"]], box_form="xyxy", **costs)
    size = torch.tensor([params["img_shape"][:2]])
    objects = object_set(Batch(torch.zeros(1, 3, 1, 1), size, [Target(x["gt_bboxes"], x["gt_labels"])]))
    (matched,) = match(x["cls"][None], x["bboxes"][None], objects)
    expected = tensor(entry["output"]["gt_inds"])
    assert expected[matched].tolist() == [1, 2, 3, 4]
    assert (expected > 0).sum() == 4


COSTS = {"class": "cls", "box": "reg", "iou": "iou"}


def no_labels(boxes):
    return torch.zeros(len(boxes), dtype=torch.int64)


@entries("nms")
def test_nms(entry):
    params, x = entry["params"], inputs(entry)
    dets, index = map(tensor, entry["output"])
    if "score_threshold" in params:
        boxes, scores, _, keep = multiclass_nms(
            x["b"], x["s"][:, None], params["score_threshold"], params["iou_threshold"], params["max_num"]
        )
    else:
        keep = batched_nms(x["b"], x["s"], no_labels(x["b"]), params["iou_threshold"])
        boxes, scores = x["b"][keep], x["s"][keep]
    assert keep.tolist() == index.tolist()
    assert torch.equal(torch.cat([boxes, scores[:, None]], 1), dets)


@entries("soft_nms")
def test_soft_nms(entry):
    params, x = entry["params"], inputs(entry)
    dets, index = map(tensor, entry["output"])
    # The naive method is hard NMS.
    soft = None if params["method"] == "naive" else SoftNMS(params["method"], params["sigma"], params["min_score"])
    keep, scores = suppress(x["b"], x["s"], no_labels(x["b"]), params["iou_threshold"], 100, soft)
    assert keep.tolist() == index.tolist()
    close(torch.cat([x["b"][keep], scores[:, None]], 1), dets)


@entries("batched_nms")
def test_batched_nms(entry):
    config, x = entry["params"]["nms_cfg"], inputs(entry)
    dets, index = map(tensor, entry["output"])
    soft = SoftNMS(min_score=config["min_score"]) if config["type"] == "soft_nms" else None
    labels = no_labels(x["b"]) if config.get("class_agnostic") else x["ids"]
    keep, scores = suppress(x["b"], x["s"], labels, config["iou_threshold"], config.get("max_num", 100), soft)
    assert keep.tolist() == index.tolist()
    close(torch.cat([x["b"][keep], scores[:, None]], 1), dets)


@entries("fast_nms")
def test_fast_nms(entry):
    params, x = entry["params"], inputs(entry)
    dets, labels, rows_of_c = map(tensor, entry["output"])
    limits = params["score_thr"], params["iou_thr"], params["top_k"], params["max_num"]
    boxes, scores, found, rows = fast_nms(x["b"], x["s"][:, :-1], *limits)
    assert torch.equal(torch.cat([boxes, scores[:, None]], 1), dets)
    assert found.tolist() == labels.tolist()
    assert torch.equal(x["c"][rows], rows_of_c)


@entries("multiclass_nms")
def test_multiclass_nms(entry):
    params, x = entry["params"], inputs(entry)
    dets, labels = map(tensor, entry["output"])
    boxes = x["b"] if x["b"].shape[1] == 4 else x["b"].unflatten(1, (-1, 4))
    limits = params["score_thr"], params["iou_threshold"], params["max_num"]
    boxes, scores, found, rows = multiclass_nms(boxes, x["s"][:, :-1], *limits)
    assert torch.equal(torch.cat([boxes, scores[:, None]], 1), dets)
    assert found.tolist() == labels.tolist()
    assert torch.equal(x["s"][rows, found], scores)


@entries("roi_align")
def test_roi_align(entry):
    params, x = entry["params"], inputs(entry)
    feature = x["x"].requires_grad_()
    extract = single_level(
        strides=(round(1 / params["spatial_scale"]),),
        output_size=params["output_size"],
        sampling_ratio=params["sampling_ratio"],
        aligned=params["aligned"],
    )
    pooled = extract([feature], x["rois"])
    pooled.sum().backward()
    close(pooled, tensor(entry["output"]), absolute=1e-6)  # sums of values of both signs
    close(feature.grad, tensor(entry["grad_of_sum"]["x"]), absolute=1e-6)


class GivenOffsets(nn.Module):
    """A layer that finds what it was given."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def forward(self, x):
        return self.found


@entries("deform_conv2d")
def test_deform_conv2d(entry):
    check_deform_conv2d(entry, inputs(entry))


@entries("modulated_deform_conv2d")
def test_modulated_deform_conv2d(entry):
    check_deform_conv2d(entry, inputs(entry))


def check_deform_conv2d(entry, x):
    settings = {key: value for key, value in entry["params"].items() if key != "groups"}
    groups = entry["params"]["groups"]
    out_channels, in_channels = x["weight"].shape[0], x["weight"].shape[1] * groups
    conv = DeformConv2d(
        in_channels, out_channels, 3, groups=groups, bias="bias" in x, modulated="mask" in x, **settings
    )
    mask = x.pop("mask", None)
    if mask is not None:
        x["logit"] = mask.logit()
    given = {name: value.requires_grad_() for name, value in x.items()}
    conv.conv_offset = GivenOffsets(torch.cat([given[name] for name in ("offset", "logit") if name in given], 1))
    for name in {"weight", "bias"} & set(given):
        setattr(conv, name, nn.Parameter(given[name].detach()))
    result = conv(given["x"])
    result.sum().backward()
    close(result, tensor(entry["output"]), absolute=1e-6)
    expected = {name: tensor(value) for name, value in entry["grad_of_sum"].items()}
    if mask is not None:
        expected["logit"] = expected.pop("mask") * mask * (1 - mask)
    ours = {name: value.grad for name, value in given.items()} | {"weight": conv.weight.grad}
    for name, gradient in expected.items():
        # Sums over all positions, of values of both signs.
        close(ours[name], gradient, absolute=1e-5)


@entries("deform_roi_pool")
def test_deform_roi_pool(entry):
    params, x = entry["params"], inputs(entry)
    feature, offset = x["x"].requires_grad_(), x["offset"].requires_grad_()
    level = torch.zeros(len(x["rois"]), dtype=torch.int64)
    strides = [1 / params["spatial_scale"]]
    pooled = moved_roi_align([feature], level, x["rois"], offset * params["gamma"], strides, params["sampling_ratio"])
    pooled.sum().backward()
    close(pooled, tensor(entry["output"]), absolute=1e-6)
    close(feature.grad, tensor(entry["grad_of_sum"]["x"]), absolute=1e-6)
    close(offset.grad, tensor(entry["grad_of_sum"]["offset"]), absolute=1e-6)


@entries("do_paste_mask")
@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_paste(entry, threshold):
    params, x = entry["params"], inputs(entry)
    values = torch.zeros(len(x["boxes"]), params["img_h"], params["img_w"])
    # Rows and columns of the picture that hold all boxes, or all of it.
    part = [slice(*(int(tensor(end)) for end in ends)) for ends in entry["output"]["spatial"]]
    values[:, *part] = tensor(entry["output"]["out"])
    ours = paste_masks(x["masks"][:, 0], x["boxes"], (params["img_h"], params["img_w"]), threshold)
    assert torch.equal(ours, (values >= threshold).byte())


@entries("mask_target")
def test_mask_target(entry):
    x = inputs(entry)
    ours = crop_masks(x["masks"], x["proposals"], x["inds"], entry["params"]["mask_size"])
    assert torch.equal(ours, tensor(entry["output"]))


def drawn(params, mirror=False):
    width = params["width"]
    segmentations = [[np.array(polygon) for polygon in parts] for parts in params["polygons"]]
    if mirror:
        for polygon in (polygon for parts in segmentations for polygon in parts):
            polygon[::2] = width - polygon[::2]
    return torch.from_numpy(bitmaps(segmentations, (params["height"], width))).bool()


@entries("polygons.bitmap")
def test_polygons_are_filled(entry):
    assert torch.equal(drawn(entry["params"]), tensor(entry["output"]))


@entries("polygons.flipped")
def test_mirrored_polygons_are_filled(entry):
    assert torch.equal(drawn(entry["params"], mirror=True), tensor(entry["output"]))


@entries("anchors")
def test_anchors(entry):
    config = dict(entry["params"])
    style = "v1" if config.pop("type") == "LegacyAnchorGenerator" else "exact"
    if "centers" in config:
        config["centers"] = [x for x, _ in config["centers"]]
    generate = AnchorGenerator(config.pop("strides"), style=style, **config)
    assert [generate.num_base_anchors] * len(generate.strides) == entry["num_base"]
    close(generate.base_anchors, torch.tensor(entry["base_anchors"]), absolute=1e-5)
    sizes = [tuple(size) for size in entry["sizes"]]
    for level, size, rows in zip(generate(sizes, "cpu"), sizes, entry["rows"], strict=True):
        assert len(level) == size[0] * size[1] * generate.num_base_anchors
        close(torch.cat([level[:12], level[-3:]]), torch.tensor(rows), absolute=1e-5)
