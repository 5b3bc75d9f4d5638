"""Functions of detcli against tables of Detectron2 0.6 (commit 02b5c4e), in float32 on a CPU.

A table belongs to a function of Detectron2; those that detcli has nothing for are in `MISSING`.

Tolerances: as beside it in test_mmdetection.py, values to 1e-5 of themselves, coordinates to 1e-6 of the largest one
that they were made from. The tables have eight digits.
"""

import gzip
import importlib.util
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_utils
from torch import nn
from torchvision import tv_tensors

from detcli.config import OptimConfig, ScheduleConfig, resolve
from detcli.data.transforms import RandomFlip, Resize, resize_pixels, resized, to_image
from detcli.engine.optimizer import LearningRate, build_optimizer, parameter_groups
from detcli.nn import assigners
from detcli.nn.anchors import AnchorGenerator
from detcli.nn.assigners import IGNORED, NEGATIVE, max_iou
from detcli.nn.box_coders import DeltaBoxCoder
from detcli.nn.boxes import pairwise_iou
from detcli.nn.keypoint_head import find_keypoints, keypoint_places
from detcli.nn.losses import focal, smooth_l1
from detcli.nn.masks import paste_masks
from detcli.nn.postprocess import batched_nms
from detcli.nn.roi_extractor import single_level
from detcli.registry import build
from detcli.structures import Target

HERE = Path(__file__).parent
FILES = json.loads(gzip.decompress((HERE / "data/detectron2.json.gz").read_bytes()))
BOXES, MASKS, TRANSFORMS, SOLVER = (FILES[name] for name in ("boxes", "roi_masks_keypoints", "transforms", "solver"))
RELATIVE = 1e-5


class Missing(NamedTuple):
    """A table that detcli has no function for, what the function would be called when it has one, and where."""

    table: str
    names: str
    places: str = "detcli plugins"


MISSING = [
    # detcli learns masks from bitmaps, so `crop_masks` is what the polygons' way would stand beside.
    Missing("roi_masks_keypoints.rasterize", "rasteri[sz]e", "detcli/nn plugins"),
    # Boxes and polygons of whole numbers stay whole numbers there, cut at each step; those of COCO have fractions.
    Missing("transforms.annotation in whole numbers", "whole_numbers|truncate", "detcli/data"),
]
TESTED = {
    "boxes.anchors",
    "boxes.batched_nms",
    "boxes.box coding",
    "boxes.levels",
    "boxes.matcher",
    "boxes.pairwise_iou_src_dst",
    "boxes.sigmoid_focal",
    "boxes.smooth_l1",
    "roi_masks_keypoints.heatmaps_to_keypoints",
    "roi_masks_keypoints.kp_heatmap",
    "roi_masks_keypoints.masks",
    "roi_masks_keypoints.roi_align",
    "solver.param_groups",
    "solver.schedules",
    "transforms.annotation",
    "transforms.resize_pixels",
    "transforms.resize_shortest_edge",
    "transforms.resize_then_hflip",
    "weights_check.cases",
}
CODING = {"src", "dst", "deltas_k2", "scale_clamp"}  # what the tables of the sets of weights are about
WEIGHTS = [name for name in BOXES if name.startswith("(")]


def close(ours, expected, relative=RELATIVE, absolute=1e-7):
    torch.testing.assert_close(ours.detach(), torch.as_tensor(expected), rtol=relative, atol=absolute)


def test_every_table_is_tested_or_missing():
    found = {f"{file}.{name}" for file, tables in FILES.items() for name in tables}
    coding = {f"boxes.{name}" for name in CODING | set(WEIGHTS)}
    assert coding <= found
    whole = {item.table for item in MISSING if " " not in item.table}
    assert found - coding | {"boxes.box coding"} == TESTED | whole
    assert not TESTED & whole


@pytest.mark.parametrize("missing", MISSING, ids=lambda missing: missing.table)
def test_what_is_missing_is_nowhere(missing, named):
    """A function of that name must be held to its table: prepare the numbers, and take it off the list."""
    assert named(missing.names, missing.places) == []


def coder(weights):
    stds = tuple(1 / float(weight) for weight in weights.strip("()").split(","))
    return DeltaBoxCoder(stds=stds, clip_ratio=16 / 1000, clamp_below=False)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_deltas(weights):
    ours = coder(weights).encode(torch.tensor(BOXES["src"]), torch.tensor(BOXES["dst"]))
    close(ours, BOXES[weights]["get_deltas"], absolute=1e-5)  # a shift is a difference of centres, times 30 at most


@pytest.mark.parametrize("weights", WEIGHTS)
def test_boxes_of_deltas(weights):
    deltas = torch.tensor(BOXES["deltas_k2"]).unflatten(1, (-1, 4))
    ours = coder(weights).decode(torch.tensor(BOXES["src"])[:, None], deltas).flatten(1)
    expected = torch.tensor(BOXES[weights]["apply_deltas"])
    largest = expected.abs().amax(1, keepdim=True)
    assert ((ours - expected).abs() <= 1e-6 * largest).all()


def test_growth_of_boxes_is_limited_and_their_shrinking_is_not():
    assert coder("(1, 1, 1, 1)").max_log_ratio == pytest.approx(BOXES["scale_clamp"], rel=1e-12)
    deltas = torch.tensor([[0.0, 0, 9, -9]])
    (sides,) = coder("(1, 1, 1, 1)").decode(torch.tensor([[-8.0, -8, 8, 8]]), deltas)[:, 2:] * 2
    close(sides, torch.tensor([16 * 1000 / 16, 16 * np.exp(-9)]).float())


def test_overlaps():
    close(pairwise_iou(torch.tensor(BOXES["src"]), torch.tensor(BOXES["dst"])), BOXES["pairwise_iou_src_dst"])


@pytest.mark.parametrize(
    ("box", "level"),
    list(zip(BOXES["levels"]["boxes"], BOXES["levels"]["level_2_to_5_canonical_224_at_4"], strict=True)),
    ids=lambda value: f"{value[2]:g}" if isinstance(value, list) else f"P{value}",
)
def test_level_of_a_roi(box, level):
    assert single_level(strides=(4, 8, 16, 32)).levels(torch.tensor([box])).tolist() == [level - 2]


@pytest.mark.parametrize("name", ["rpn", "roi", "retina"])
def test_matches(name, monkeypatch):
    table, iou = BOXES["matcher"][name], torch.tensor(BOXES["matcher"]["iou"])
    monkeypatch.setattr(assigners, "pairwise_iou", lambda boxes, anchors: iou)
    assign = max_iou(
        positive=table["thresholds"][-1],
        negative=table["thresholds"][0],
        match_low_quality=table["low_quality"],
        low_quality_gt="best",
    )
    objects, anchors = (torch.zeros(side, 4) for side in iou.shape)
    found = assign(anchors, Target(objects, torch.zeros(len(objects)).long()), [len(anchors)], None)
    expected = [
        {1: match, 0: NEGATIVE, -1: IGNORED}[label]
        for match, label in zip(table["matches"], table["match_labels"], strict=True)
    ]
    assert found.gt_index.tolist() == expected


def test_thresholds_of_matches_belong_to_what_is_above():
    # IoU 0.5 and 0.25, exactly.
    anchors = torch.tensor([[0.0, 0, 4, 2], [0, 0, 4, 1], [50, 50, 60, 60]])
    target = Target(torch.tensor([[0.0, 0, 4, 4]]), torch.zeros(1).long())
    assign = max_iou(positive=0.5, negative=0.25, match_low_quality=False)
    assert assign(anchors, target, [3], None).gt_index.tolist() == [0, IGNORED, NEGATIVE]


@pytest.mark.parametrize("threshold", [name for name in BOXES["batched_nms"] if name.startswith("keep_")])
def test_batched_nms(threshold):
    table = BOXES["batched_nms"]
    boxes, scores, labels = (torch.tensor(table[name]) for name in ("boxes", "scores", "classes"))
    keep = batched_nms(boxes, scores, labels, float(threshold.removeprefix("keep_")))
    assert keep.tolist() == table[threshold]


def test_anchors_of_the_rpn():
    close(AnchorGenerator((4, 8, 16, 32, 64), order="scale").base_anchors, BOXES["anchors"]["rpn_fpn_cell"])


def test_anchors_of_retinanet():
    generate = AnchorGenerator((8,), octave_base_scale=4, scales_per_octave=3, order="scale")
    close(generate.base_anchors[0], BOXES["anchors"]["retina_cell_p3"])


@pytest.mark.parametrize("name", [name for name in BOXES["smooth_l1"] if name != "x"])
def test_smooth_l1(name):
    beta = name.removeprefix("beta_")
    loss = smooth_l1(beta=1 / 9 if beta == "0.111111" else float(beta))
    ours = torch.stack([loss(torch.tensor([x]), torch.zeros(1)) for x in BOXES["smooth_l1"]["x"]])
    close(ours, BOXES["smooth_l1"][name])


@pytest.mark.parametrize("target", [0, 1])
def test_focal(target):
    table = BOXES["sigmoid_focal"]
    label = torch.tensor([1 - target])  # of one class: 1 is background
    close(torch.stack([focal()(torch.tensor([[x]]), label) for x in table["x"]]), table[f"target{target}"])


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_roi_align(aligned, sampling_ratio):
    table = MASKS["roi_align"]
    feature = torch.from_numpy(np.random.RandomState(4).randn(1, 3, 20, 24).astype(np.float32))
    boxes = torch.tensor(table["boxes"])
    extract = single_level(strides=(4,), output_size=7, sampling_ratio=sampling_ratio, aligned=aligned)
    pooled = extract([feature], torch.cat([torch.zeros(len(boxes), 1), boxes], 1)).sum(1)
    # A place on the map is rounded to 2e-6 of a cell; neighbouring sums of channels differ by up to 6.
    close(pooled, table[f"out7_sum_channels_aligned_{aligned}_sampling_{sampling_ratio}"], absolute=1e-5)


def test_paste():
    table = MASKS["masks"]["paste"]
    crops, boxes = torch.tensor(table["masks28"]), torch.tensor(table["boxes"])
    masks = paste_masks(crops, boxes, tuple(table["image"]), table["threshold"])
    assert masks.flatten(1).sum(1).tolist() == table["areas"]
    runs = mask_utils.encode(np.asfortranarray(masks.permute(1, 2, 0).numpy()))
    assert [item["counts"].decode() for item in runs] == table["rle"]


def test_places_of_keypoints():
    table = MASKS["kp_heatmap"]
    index, valid = keypoint_places(torch.tensor(table["keypoints"]), torch.tensor(table["boxes"]), table["size"])
    assert valid.long().tolist() == table["valid"]
    assert (index * valid).tolist() == table["index"]


def test_keypoints_of_heat_maps():
    table = MASKS["heatmaps_to_keypoints"]
    expected = torch.tensor(table["out_x_y_logit_prob"])
    found = find_keypoints(torch.tensor(table["maps"]), torch.tensor(table["boxes"]))
    close(found[..., :2], expected[..., :2], absolute=1e-6)
    close(found[..., 2], expected[..., 3])


@pytest.mark.parametrize("row", TRANSFORMS["resize_shortest_edge"], ids=lambda row: "{}x{} to {}, {}".format(*row))
def test_size(row):
    height, width, shortest, longest, expected = row
    assert resized((height, width), (longest, shortest)) == tuple(expected)


def test_pixels_of_a_larger_picture():
    pixels = np.random.RandomState(5).randint(0, 256, (37, 53, 3)).astype(np.uint8)
    larger = next(item for item in TRANSFORMS["resize_pixels"]["outs"] if item["size"] == [80, 115])
    exact = TRANSFORMS["resize_pixels"]["float_input_80x115"]
    ours = resize_pixels(pixels, (80, 115)).reshape(-1).astype(np.float64)
    samples = ours[np.linspace(0, ours.size - 1, 64).astype(int)]
    # OpenCV has weights of 11 bits (255 / 1024 at most) and rounds once; PIL rounds after each axis.
    assert np.abs(samples - exact["samples64"]).max() <= 0.75
    assert np.abs(samples - larger["samples64"]).max() <= 1
    # OpenCV cuts digits in between, an eighth of a level on average.
    assert ours.mean() == pytest.approx(larger["sum"] / ours.size, abs=0.2)


@pytest.mark.parametrize("row", TRANSFORMS["resize_pixels"]["outs"], ids=lambda row: "{}x{}".format(*row["size"]))
def test_pixels_as_pillow_resizes_them(row):
    pixels = np.random.RandomState(5).randint(0, 256, (37, 53, 3)).astype(np.uint8)
    ours = resize_pixels(pixels, tuple(row["size"]), "pillow").reshape(-1)
    assert ours[np.linspace(0, ours.size - 1, 64).astype(int)].tolist() == row["samples64"]
    assert ours.astype(np.int64).sum() == row["sum"]


def enlarged_and_mirrored(boxes, points, visibility, order):
    size = (37, 53)
    record = {
        "image": to_image(np.zeros((*size, 3), np.uint8)),
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
        "keypoints": tv_tensors.KeyPoints(points, canvas_size=size),
        "visibility": visibility,
    }
    result = RandomFlip(1.0, order)(Resize([(115, 80)])(record))
    assert result["image"].shape[-2:] == (80, 115)
    return result


def test_boxes_and_points_through_resize_and_flip():
    table = TRANSFORMS["resize_then_hflip"]
    boxes, points = (torch.tensor(table[name], dtype=torch.float32) for name in ("box_xyxy_in", "coords_in"))
    found = enlarged_and_mirrored(boxes, points[None], torch.ones(1, 2), [0, 1])
    close(found["boxes"].as_subclass(torch.Tensor), table["box_out"], absolute=2e-5)  # 115 less a coordinate
    close(found["keypoints"].as_subclass(torch.Tensor)[0], table["coords_out"], absolute=2e-5)


def test_keypoints_through_resize_and_flip():
    table = TRANSFORMS["annotation"]
    keypoints = torch.tensor(table["in"]["keypoints"]).reshape(-1, 3)
    points, visibility = keypoints[None, :, :2], keypoints[None, :, 2]
    found = enlarged_and_mirrored(torch.zeros(1, 4), points, visibility, table["keypoint_hflip_indices"])
    expected = torch.tensor(table["out_keypoints"])
    assert found["visibility"][0].tolist() == expected[:, 2].tolist()
    labelled = expected[:, 2] > 0
    close(found["keypoints"].as_subclass(torch.Tensor)[0, labelled], expected[labelled, :2], absolute=2e-5)


@pytest.mark.parametrize("name", sorted(SOLVER["schedules"]))
def test_learning_rates(name):
    schedule = SOLVER["schedules"][name]
    schedule = SOLVER["schedules"][schedule.get("same_as", name)]
    _, lr, drops, length, warmup_iters, warmup_ratio, gamma, _ = schedule["settings"]
    sched = ScheduleConfig(
        unit="iter",
        length=length,
        drops=drops,
        gamma=gamma,
        warmup="linear",
        warmup_iters=warmup_iters,
        warmup_ratio=warmup_ratio,
    )
    rate, expected = LearningRate(sched, steps_per_epoch=1), schedule["lr_at_iteration"]
    assert {step: lr * rate.factor(int(step)) for step in expected} == pytest.approx(expected, rel=1e-9)


def tree(names):
    """Return a module whose parameters have those names; the norms among them are norm layers."""
    root = nn.Module()
    for path in {name.rpartition(".")[0] for name in names}:
        module = root
        *parents, last = path.split(".")
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, nn.Module())
            module = getattr(module, parent)
        layer = nn.GroupNorm(1, 1) if last == "norm" else nn.Conv2d(1, 1, 1, bias=f"{path}.bias" in names)
        # A convolution and its norm share a prefix: the norm is its child.
        for child, part in getattr(module, last, nn.Module()).named_children():
            layer.add_module(child, part)
        setattr(module, last, layer)
    return root


@pytest.mark.parametrize("name", sorted(SOLVER["param_groups"]))
def test_parameter_groups(name):
    table = SOLVER["param_groups"][name]
    expected = {(group["lr"], group["weight_decay"]): set(group["names"]) for group in table["groups"]}
    model = tree(set.union(*expected.values()))
    lr, decay = max(expected)
    optim = OptimConfig(lr=lr, momentum=table["momentum"], weight_decay=decay, norm_decay=min(expected)[1])
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = build_optimizer(model, optim, lr).param_groups
    found = {(group["lr"], group["weight_decay"]): {names[id(item)] for item in group["params"]} for group in groups}
    assert found == expected
    assert {(group["momentum"], group["nesterov"]) for group in groups} == {(table["momentum"], table["nesterov"])}


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x", "mask_rcnn"),
        ("COCO-Detection/retinanet_R_50_FPN_1x", "retinanet"),
    ],
)
def test_as_many_tensors_are_trained(name, recipe):
    (group,) = SOLVER["param_groups"][f"configs/{name}.yaml"]["groups"]
    config = resolve(recipe, settings=["model.backbone=r50_caffe"]).config
    with torch.device("meta"):
        model = build("models", config.model, num_classes=80)
    groups = parameter_groups(model, config.optim, group["lr"])
    assert [(item["lr"], item["weight_decay"], len(item["params"])) for item in groups] == [
        (group["lr"], group["weight_decay"], group["n"])
    ]


def rule():
    spec = importlib.util.spec_from_file_location("rule_of_weights", HERE.parent / "parity/rule.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("case", "name"),
    [(case, name) for case, table in FILES["weights_check"]["cases"].items() for name in table["tensors"]],
    ids=lambda value: Path(value).stem if value.endswith(".yaml") else value,
)
def test_rule_of_weights(case, name):
    expected = FILES["weights_check"]["cases"][case]["tensors"][name]
    dtype = "int64" if name.endswith("num_batches_tracked") else "float32"
    values = rule().fill_detectron2(name, expected["shape"], dtype, expected["gain"]).reshape(-1)
    assert values[:4] == pytest.approx(expected["first4"], rel=1e-6)
    total = values.astype(np.float64)
    # Of float32 values, whose rounding adds up.
    assert total.sum() == pytest.approx(expected["sum"], abs=1e-7 * np.abs(total).sum() + 1e-6)
