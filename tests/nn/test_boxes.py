"""Overlaps and clipping of boxes, against tables of MMDetection and Detectron2."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from detcli.nn.boxes import aligned_iou, box_area, clip_boxes, pairwise_iou

TABLES = json.loads(gzip.decompress((Path(__file__).parent / "data/boxes.json.gz").read_bytes()))


def tensor(record):
    return torch.tensor(record["data"], dtype=torch.float32).reshape(record["shape"])


@pytest.mark.parametrize("record", TABLES["mmdetection"], ids=lambda record: str(record["params"]))
def test_overlaps_are_those_of_mmdetection(record):
    overlap = aligned_iou if record["params"].get("is_aligned") else pairwise_iou
    ours = overlap(tensor(record["inputs"]["b1"]), tensor(record["inputs"]["b2"]), record["params"].get("mode", "iou"))
    torch.testing.assert_close(ours, tensor(record["output"]), rtol=1e-6, atol=1e-6)


def test_overlaps_are_those_of_detectron2():
    table = {name: torch.tensor(value) for name, value in TABLES["detectron2"].items()}
    torch.testing.assert_close(
        pairwise_iou(table["src"], table["dst"]), table["pairwise_iou_src_dst"], rtol=1e-6, atol=1e-7
    )


def test_boxes_without_area_overlap_nothing():
    point, box = torch.tensor([[5.0, 5, 5, 5]]), torch.tensor([[0.0, 0, 10, 10]])
    assert box_area(point) == 0
    for mode in ("iou", "iof"):
        assert pairwise_iou(point, box, mode) == 0


def test_clipping_uses_each_images_own_size():
    boxes = torch.tensor([[[-5.0, -5, 50, 50]], [[-5.0, -5, 50, 50]]])
    clipped = clip_boxes(boxes, torch.tensor([[20, 30], [60, 40]])[:, None])
    assert clipped.tolist() == [[[0, 0, 30, 20]], [[0, 0, 40, 50]]]
