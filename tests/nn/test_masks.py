"""Mask targets and pasting, against what MMDetection 2.28 and Detectron2 return."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_utils

from detcli.nn.masks import crop_masks, paste_masks

GOLDEN = json.loads(gzip.decompress((Path(__file__).parent / "data" / "masks.json.gz").read_bytes()))


def tensor(record):
    return torch.tensor(record["data"], dtype=getattr(torch, record["dtype"])).reshape(record["shape"])


def whole_image():
    (record,) = (r for r in GOLDEN["mmdetection"] if r["params"].get("skip_empty") is False)
    return record, tensor(record["inputs"]["masks"])[:, 0], tensor(record["inputs"]["boxes"])


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_paste_as_mmdetection(threshold):
    record, crops, boxes = whole_image()
    values = tensor(record["output"]["out"])
    masks = paste_masks(crops, boxes, (40, 44), threshold)
    assert masks.dtype == torch.uint8
    torch.testing.assert_close(masks, (values >= threshold).byte(), rtol=0, atol=0)


def test_paste_as_detectron2():
    golden = GOLDEN["detectron2"]
    masks = paste_masks(torch.tensor(golden["masks28"]), torch.tensor(golden["boxes"]), tuple(golden["image"]))
    assert masks.flatten(1).sum(1).tolist() == golden["areas"]
    rle = mask_utils.encode(np.asfortranarray(masks.permute(1, 2, 0).numpy()))
    assert [item["counts"].decode() for item in rle] == golden["rle"]


def test_paste_outside_and_without_area():
    boxes = torch.tensor([[-50.0, -50, -10, -10], [200, 10, 240, 30], [5, 5, 5, 20], [-10, -10, 60, 60]])
    masks = paste_masks(torch.ones(4, 28, 28), boxes, (40, 50))
    assert masks.flatten(1).sum(1).tolist() == [0, 0, 0, 40 * 50]
    assert paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), (40, 50)).shape == (0, 40, 50)


def test_crop_as_mmdetection():
    (record,) = (r for r in GOLDEN["mmdetection"] if r["op"] == "mask_target")
    x = {name: tensor(value) for name, value in record["inputs"].items()}
    crops = crop_masks(x["masks"], x["proposals"], x["inds"], record["params"]["mask_size"])
    torch.testing.assert_close(crops, tensor(record["output"]), rtol=0, atol=0)


def test_crop_with_more_masks_than_boxes():
    masks = torch.zeros(5, 32, 32, dtype=torch.uint8)
    masks[3, 8:24, 8:16] = 1
    crops = crop_masks(masks, torch.tensor([[8.0, 8, 24, 24], [0, 0, 32, 32]]), torch.tensor([3, 0]), 16)
    assert crops[0, :, :8].all()
    assert crops.sum() == 16 * 8


def test_crop_without_masks():
    crops = crop_masks(torch.zeros(0, 9, 9), torch.rand(3, 4), torch.zeros(3, dtype=torch.int64), 14)
    torch.testing.assert_close(crops, torch.zeros(3, 14, 14))
