"""NMS and what is around it, against what MMDetection 2.28 and Detectron2 return."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from torchvision import ops

from detcli.nn.postprocess import SoftNMS, batched_nms, batched_soft_nms, multiclass_nms, select_top, suppress

GOLDEN = json.loads(gzip.decompress((Path(__file__).parent / "data" / "postprocess.json.gz").read_bytes()))


def tensor(record):
    return torch.tensor(record["data"], dtype=getattr(torch, record["dtype"])).reshape(record["shape"])


def golden(op, **params):
    for record in GOLDEN["mmdetection"]:
        if record["op"] == op and params.items() <= record["params"].items():
            yield (
                record["params"],
                {k: tensor(v) for k, v in record["inputs"].items()},
                [tensor(v) for v in record["output"]],
            )


def test_nms_as_mmdetection():
    records = list(golden("nms"))
    assert len(records) == 3
    for params, x, (dets, index) in records:
        keep = batched_nms(x["b"], x["s"], torch.zeros(len(x["b"]), dtype=torch.int64), params["iou_threshold"])
        assert keep.tolist() == index.tolist()
        torch.testing.assert_close(x["b"][keep], dets[:, :4], rtol=0, atol=0)


def test_batched_nms_as_mmdetection():
    records = list(golden("batched_nms"))
    assert len(records) == 4
    for params, x, (dets, index) in records:
        config = params["nms_cfg"]
        soft = SoftNMS(min_score=config["min_score"]) if config["type"] == "soft_nms" else None
        labels = torch.zeros_like(x["ids"]) if config.get("class_agnostic") else x["ids"]
        keep, scores = suppress(x["b"], x["s"], labels, config["iou_threshold"], config.get("max_num", 100), soft)
        assert keep.tolist() == index.tolist()
        torch.testing.assert_close(scores, dets[:, 4], rtol=0, atol=1e-6)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_batched_nms_as_detectron2(threshold):
    golden = GOLDEN["detectron2"]
    boxes, scores = torch.tensor(golden["boxes"]), torch.tensor(golden["scores"])
    keep = batched_nms(boxes, scores, torch.tensor(golden["classes"]), threshold)
    assert keep.tolist() == golden[f"keep_{threshold}"]


@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_soft_nms_as_mmdetection(method):
    ((params, x, (dets, index)),) = golden("soft_nms", method=method)
    labels = torch.zeros(len(x["b"]), dtype=torch.int64)
    soft = SoftNMS(method, params["sigma"], params["min_score"])
    keep, scores = batched_soft_nms(x["b"], x["s"], labels, params["iou_threshold"], soft, limit=100)
    assert keep.tolist() == index.tolist()
    torch.testing.assert_close(scores, dets[:, 4], rtol=0, atol=1e-6)
    first, first_scores = batched_soft_nms(x["b"], x["s"], labels, params["iou_threshold"], soft, limit=5)
    assert first.tolist() == index[:5].tolist()
    torch.testing.assert_close(first_scores, dets[:5, 4], rtol=0, atol=1e-6)


def test_multiclass_nms_as_mmdetection():
    records = list(golden("multiclass_nms"))
    assert [x["b"].shape[1] for _, x, _ in records] == [4, 12]  # shared boxes and a box for each class
    for params, x, (dets, labels) in records:
        boxes = x["b"] if x["b"].shape[1] == 4 else x["b"].reshape(len(x["b"]), -1, 4)
        found = multiclass_nms(boxes, x["s"][:, :-1], params["score_thr"], params["iou_threshold"], params["max_num"])
        torch.testing.assert_close(found[0], dets[:, :4], rtol=0, atol=0)
        torch.testing.assert_close(found[1], dets[:, 4], rtol=0, atol=0)
        assert found[2].tolist() == labels.tolist()
        torch.testing.assert_close(x["s"][found[3], found[2]], found[1], rtol=0, atol=0)


def test_score_factors_rank_but_do_not_admit():
    boxes = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60], [90, 90, 99, 99]])
    scores, centerness = torch.tensor([[0.9], [0.5], [0.04]]), torch.tensor([0.1, 1.0, 1.0])
    _, found, _, index = multiclass_nms(boxes, scores, 0.2, 0.5, 10, score_factors=centerness)
    assert index.tolist() == [1, 0]
    torch.testing.assert_close(found, torch.tensor([0.5, 0.09]))


@pytest.mark.parametrize("soft", [None, SoftNMS(), SoftNMS("gaussian")])
def test_nothing_above_the_threshold(soft):
    boxes, scores, labels, index = multiclass_nms(torch.rand(5, 4), torch.zeros(5, 3), 0.05, 0.5, 100, soft=soft)
    assert boxes.shape == (0, 4)
    assert scores.shape == labels.shape == index.shape == (0,)


def test_boxes_that_touch_the_threshold_stay():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 2]])  # IoU is exactly 0.5
    assert batched_nms(boxes, torch.tensor([0.9, 0.8]), torch.zeros(2, dtype=torch.int64), 0.5).tolist() == [
        0,
        1,
    ]


def test_soft_nms_treats_classes_apart():
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 9], [0, 0, 9, 8]])
    scores, labels = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 1, 0])
    keep, lowered = batched_soft_nms(boxes, scores, labels, 0.5, SoftNMS(), limit=10)
    assert keep.tolist() == [0, 1, 2]
    iou = ops.box_iou(boxes[:1], boxes[2:])[0, 0]
    torch.testing.assert_close(lowered, torch.stack([scores[0], scores[1], scores[2] * (1 - iou)]))


def test_select_top_is_a_full_sort():
    scores = torch.rand(2, 500, 7, generator=torch.Generator().manual_seed(0))
    best, anchors, labels = select_top(scores, 0.99, 60)
    for image in range(2):
        order = scores[image].flatten().sort(descending=True)
        count = int((order.values > 0.99).sum())
        assert 0 < count < 60
        torch.testing.assert_close(best[image, :count], order.values[:count], rtol=0, atol=0)
        assert (anchors[image] * 7 + labels[image])[:count].tolist() == order.indices[:count].tolist()
        assert bool((best[image, count:] == -torch.inf).all())


def test_select_top_with_fewer_pairs_than_the_limit():
    best, anchors, labels = select_top(torch.tensor([[[0.2, 0.9], [0.4, 0.1]]]), 0.15, 1000)
    torch.testing.assert_close(best, torch.tensor([[0.9, 0.4, 0.2, -torch.inf]]))
    assert anchors[0, :3].tolist() == [0, 1, 0]
    assert labels[0, :3].tolist() == [1, 0, 0]
