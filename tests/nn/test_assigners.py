"""Assigners, against tables of MMDetection and Detectron2, and where many objects meet."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from detcli.nn import assigners
from detcli.nn.anchors import AnchorGenerator
from detcli.nn.assigners import IGNORED, NEGATIVE, atss, max_iou
from detcli.nn.boxes import pairwise_iou
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


def crowded(kind):
    """Return anchors, their counts and 150 objects: at random, or on a grid where overlaps are often alike."""
    anchors, target, counts = scene(150, seed=3)
    if kind == "ties":
        generator = torch.Generator().manual_seed(4)
        corners = torch.randint(0, 20, (150, 2), generator=generator) * 16.0
        sides = torch.randint(1, 5, (150, 2), generator=generator) * 32.0
        target = Target(torch.cat([corners, corners + sides], dim=1), target.labels)
        assert len(target.boxes.unique(dim=0)) < 149
    return anchors, target, counts


def plain_max_iou(anchors, boxes, low_quality_gt):
    """Return the index of each anchor's object from the whole table of overlaps, object by object."""
    overlaps = pairwise_iou(boxes, anchors)
    best, best_gt = overlaps.max(dim=0)
    index = torch.full((len(anchors),), IGNORED)
    index[best < 0.4] = NEGATIVE
    index[best >= 0.5] = best_gt[best >= 0.5]
    for gt, row in enumerate(overlaps):
        if row.max() > 0:
            claimed = row == row.max()
            index[claimed] = gt if low_quality_gt == "own" else best_gt[claimed]
    return index


def plain_atss(anchors, boxes, counts):
    """Return the index of each anchor's object as algorithm 1 of the paper says, object by object."""
    overlaps = torch.zeros(len(boxes), len(anchors))
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    for gt, box in enumerate(boxes):
        distance = ((box[:2] + box[2:]) / 2 - centers).square().sum(1).sqrt()
        candidates, start = [], 0
        for count in counts:
            level = distance[start : start + count]
            candidates.append(level.topk(min(9, count), largest=False).indices + start)
            start += count
        chosen = torch.cat(candidates)
        iou = pairwise_iou(box[None], anchors[chosen])[0]
        inside = torch.cat([centers[chosen] - box[:2], box[2:] - centers[chosen]], dim=1).amin(1) > 0.01
        kept = (iou >= iou.mean() + iou.std()) & inside
        overlaps[gt, chosen[kept]] = iou[kept]
    best, best_gt = overlaps.max(dim=0)
    return torch.where(best > 0, best_gt, NEGATIVE)


@pytest.mark.parametrize("pairs", [2**21, 10_000, 1])
@pytest.mark.parametrize("kind", ["random", "ties"])
@pytest.mark.parametrize("low_quality_gt", ["own", "best"])
def test_max_iou_is_that_of_the_whole_table(kind, low_quality_gt, pairs, monkeypatch):
    monkeypatch.setattr(assigners, "MAX_PAIRS", pairs)
    anchors, target, counts = crowded(kind)
    ours = max_iou(low_quality_gt=low_quality_gt)(anchors, target, counts)
    assert torch.equal(ours.gt_index, plain_max_iou(anchors, target.boxes, low_quality_gt))
    assert torch.equal(ours.iou, pairwise_iou(target.boxes, anchors).amax(0))


@pytest.mark.parametrize("pairs", [2**21, 10_000, 1])
@pytest.mark.parametrize("kind", ["random", "ties"])
def test_atss_is_that_of_the_paper(kind, pairs, monkeypatch):
    monkeypatch.setattr(assigners, "MAX_PAIRS", pairs)
    anchors, target, counts = crowded(kind)
    assert torch.equal(atss()(anchors, target, counts).gt_index, plain_atss(anchors, target.boxes, counts))


@pytest.mark.parametrize("assign", [max_iou(ignore_iof=0.5), atss()])
def test_no_tensor_holds_more_pairs_than_the_bound(assign, monkeypatch):
    monkeypatch.setattr(assigners, "MAX_PAIRS", 20_000)
    anchors, target, counts = scene(300)
    target.ignored = target.boxes.flip(0)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for part in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(part, torch.Tensor):
                    largest = max(largest, part.untyped_storage().nbytes())
            return result

    with Watch():
        assign(anchors, target, counts)
    # Of a pair, the most at once is its two centre differences in float32, or an index in int64.
    assert 0 < largest <= 20_000 * 8
