"""Mask targets and pasting, against what MMDetection 2.28 and Detectron2 return."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_utils

from detcli.nn.masks import crop_masks, paste_masks, resize_masks, resize_regions

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


def test_resized_maps_are_those_of_interpolation_everywhere():
    maps = torch.zeros(4, 7, 9)
    maps[0, 2:4, 3:8] = torch.rand(2, 5, generator=torch.Generator().manual_seed(0)) + 0.3
    maps[1, 0, 0] = maps[1, 6, 8] = 1
    maps[2] = 1
    for size in ((7, 9), (50, 40), (5, 4), (131, 200)):
        values = torch.nn.functional.interpolate(maps[None], size, mode="bilinear")[0]
        for threshold in (0.1, 0.5):
            assert torch.equal(resize_masks(maps, size, threshold), (values > threshold).byte())
            regions = resize_regions(maps, size, threshold)
            for (left, top, mask), expected in zip(regions, values > threshold, strict=True):
                whole = torch.zeros(size, dtype=torch.bool)
                whole[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
                assert torch.equal(whole, expected)


def test_resized_regions_are_no_larger_than_their_cells_reach():
    maps = torch.zeros(2, 10, 10)
    maps[0, 4, 6] = 1
    shapes = [(left, top, *mask.shape) for left, top, mask in resize_regions(maps, (100, 200))]
    assert shapes == [(110, 35, 20, 40), (0, 0, 0, 0)]
    assert resize_masks(maps[:0], (5, 6)).shape == (0, 5, 6)
