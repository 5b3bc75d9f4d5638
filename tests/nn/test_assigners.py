"""Assigners, against tables of MMDetection and Detectron2, and where many objects meet."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from detcli.nn import assigners
from detcli.nn.anchors import AnchorGenerator
from detcli.nn.assigners import IGNORED, NEGATIVE, atss, max_iou
from detcli.structures import Target

TABLES = json.loads(gzip.decompress((Path(__file__).parent / "data/assigners.json.gz").read_bytes()))


def tensor(record):
    dtype = torch.int64 if record["dtype"] == "int64" else torch.float32
    return torch.tensor(record["data"], dtype=dtype).reshape(record["shape"])


def assigner(params):
    if params["type"] == "ATSSAssigner":
        return atss(topk=params["topk"])
    return max_iou(
        positive=params["pos_iou_thr"],
        negative=params["neg_iou_thr"],
        min_positive=params["min_pos_iou"],
        match_low_quality=params.get("match_low_quality", True),
        ignore_iof=params["ignore_iof_thr"],
    )


@pytest.mark.parametrize("record", TABLES["mmdetection"], ids=lambda record: str(record["params"]))
def test_assignments_are_those_of_mmdetection(record):
    inputs = {name: tensor(value) for name, value in record["inputs"].items()}
    target = Target(inputs["gt_bboxes"], inputs["gt_labels"], ignored=inputs.get("gt_bboxes_ignore", torch.zeros(0, 4)))
    anchors = inputs["bboxes"]
    counts = record["params"].get("num_level_bboxes", [len(anchors)])
    ours = assigner(record["params"])(anchors, target, counts)
    # MMDetection counts from 1, with 0 for background and -1 for ignored
    expected = tensor(record["output"]["gt_inds"]) - 1
    assert ours.gt_index.tolist() == expected.tolist()
    positive = expected >= 0
    overlaps = tensor(record["output"]["max_overlaps"])
    torch.testing.assert_close(ours.iou[positive], overlaps[positive], rtol=1e-6, atol=1e-6)


def boxes_with_iou(iou):
    """Anchors and objects whose IoU matrix [G,A] is `iou`, through a stand-in for the overlap."""
    return torch.zeros(iou.shape[1], 4), Target(torch.zeros(iou.shape[0], 4), torch.zeros(iou.shape[0]).long())


@pytest.mark.parametrize("name", ["rpn", "roi", "retina"])
def test_matches_are_those_of_detectron2(name, monkeypatch):
    table, iou = TABLES["detectron2"][name], torch.tensor(TABLES["detectron2"]["iou"])
    monkeypatch.setattr(assigners, "pairwise_iou", lambda boxes, anchors: iou)
    thresholds = table["thresholds"]
    assign = max_iou(
        positive=thresholds[-1],
        negative=thresholds[0],
        match_low_quality=table["low_quality"],
        low_quality_gt="best",
    )
    anchors, target = boxes_with_iou(iou)
    matches = [
        {1: match, 0: NEGATIVE, -1: IGNORED}[label]
        for match, label in zip(table["matches"], table["match_labels"], strict=True)
    ]
    assert assign(anchors, target, [len(anchors)]).gt_index.tolist() == matches


def scene(objects, seed=0):
    sizes = [(32, 40), (16, 20), (8, 10), (4, 5)]
    anchors = AnchorGenerator((8, 16, 32, 64), ratios=(1.0,))(sizes, "cpu")
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(objects, 2, generator=generator) * 200
    boxes = torch.cat([corners, corners + 8 + torch.rand(objects, 2, generator=generator) * 80], dim=1)
    return torch.cat(anchors), Target(boxes, torch.zeros(objects).long()), [len(level) for level in anchors]


@pytest.mark.parametrize("assign", [max_iou(), max_iou(low_quality_gt="best"), atss()])
def test_many_objects_in_parts_are_assigned_as_at_once(assign, monkeypatch):
    anchors, target, counts = scene(300)
    whole = assign(anchors, target, counts)
    assert (whole.gt_index >= 0).sum() > 100
    monkeypatch.setattr(assigners, "MAX_PAIRS", 10_000)
    parts = assign(anchors, target, counts)
    assert torch.equal(whole.gt_index, parts.gt_index)
    assert torch.equal(whole.iou, parts.iou)


@pytest.mark.parametrize("assign", [max_iou(), atss()])
def test_without_objects_everything_is_negative(assign):
    anchors, _, counts = scene(1)
    empty = Target(torch.zeros(0, 4), torch.zeros(0).long())
    assert (assign(anchors, empty, counts).gt_index == NEGATIVE).all()


@pytest.mark.parametrize("assign", [max_iou(), atss()])
def test_anchors_that_take_no_part_change_nothing_for_the_others(assign):
    anchors, target, counts = scene(20)
    valid = torch.ones(len(anchors), dtype=torch.bool)
    valid[::3] = False
    ours = assign(anchors, target, counts, valid)
    assert (ours.gt_index[~valid] == IGNORED).all()
    kept_counts = [int(level.sum()) for level in valid.split(counts)]
    alone = assign(anchors[valid], target, kept_counts)
    assert torch.equal(ours.gt_index[valid], alone.gt_index)


def test_an_object_that_no_anchor_touches_gets_none():
    anchors, _, counts = scene(1)
    far = Target(torch.tensor([[900.0, 900, 950, 950]]), torch.zeros(1).long())
    assert (max_iou()(anchors, far, counts).gt_index == NEGATIVE).all()
