"""Detections in original pixels and as COCO results."""

import json

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_utils

from detcli.data.panoptic import decode_ids
from detcli.eval.results import rescale, rescale_boxes, run_lengths, to_coco, to_coco_panoptic
from detcli.structures import ClassMap, Detections, ImageInfo, Panoptic

CLASSES = ClassMap(("cat", "dog"), (17, 3))
INFO = ImageInfo(image_id=42, name="a.jpg", original_size=(60, 100), size=(120, 160))


def detections(**masks):
    boxes = torch.tensor([[16.0, 20, 80, 100], [-8, -8, 200, 200], [160, 0, 170, 50]])
    return Detections(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([1, 0, 1]), **masks)


def test_keypoints_are_counted_from_the_centre_of_the_first_pixel():
    points = torch.tensor([[[0.5, 1.0, 0.25], [10.0, 20.5, 0.125]]]).expand(3, -1, -1)
    result = to_coco(
        rescale(detections(keypoints=points), ImageInfo(42, "a.jpg", (120, 160), (120, 160))), INFO, CLASSES
    )
    assert result[0]["keypoints"] == [0.0, 0.5, 0.25, 9.5, 20.0, 0.125]


def test_segments_are_a_png_file_and_what_its_ids_are():
    panoptic = Panoptic(torch.tensor([[0, 1], [2, 2]]).int(), torch.tensor([1, 2]), torch.tensor([0.5, 1.0]))
    classes = ClassMap(("cat", "dog"), (17, 3), ("sky",), (187,))
    result = to_coco_panoptic(panoptic, ImageInfo(42, "some/a.jpg", (2, 2), (4, 4)), classes)
    assert (result["image_id"], result["file_name"]) == (42, "a.png")
    assert result["segments_info"] == [{"id": 1, "category_id": 3}, {"id": 2, "category_id": 187}]
    assert decode_ids(result["png"], (2, 2), "a.png").tolist() == [[0, 1], [2, 2]]


def test_an_index_leaves_what_is_of_the_whole_picture():
    panoptic = Panoptic(torch.zeros(2, 2).int(), torch.zeros(0).long(), torch.zeros(0))
    found = detections(semantic=torch.zeros(4, 2, 2), panoptic=panoptic, keypoints=torch.ones(3, 2, 3))[:1]
    assert len(found) == len(found.keypoints) == 1
    assert found.semantic.shape == (4, 2, 2)
    assert found.panoptic is panoptic


def decode(rle):
    return mask_utils.decode({**rle, "counts": rle["counts"].encode()})


def test_rescale_clips_and_drops_what_is_outside():
    result = rescale(detections(), INFO)
    torch.testing.assert_close(result.boxes, torch.tensor([[10.0, 10, 50, 50], [0, 0, 100, 60]]))
    torch.testing.assert_close(result.scores, torch.tensor([0.9, 0.8]))
    assert result.labels.tolist() == [1, 0]
    assert result.masks is None


def test_rescale_does_not_touch_its_input():
    found = detections(keypoints=torch.ones(3, 2, 3))
    result = rescale(found, INFO)
    torch.testing.assert_close(found.boxes, detections().boxes)
    torch.testing.assert_close(found.keypoints, torch.ones(3, 2, 3))
    torch.testing.assert_close(result.keypoints[0, 0], torch.tensor([100 / 160, 60 / 120, 1.0]))


def test_boxes_that_are_not_numbers_are_dropped():
    found = Detections(torch.full((1, 4), torch.nan), torch.ones(1), torch.zeros(1, dtype=torch.int64))
    assert len(rescale(found, INFO)) == 0


def test_to_coco_boxes():
    first, second = to_coco(rescale(detections(), INFO), INFO, CLASSES)
    assert first == {
        "image_id": 42,
        "category_id": 3,
        "bbox": [10.0, 10.0, 40.0, 40.0],
        "score": pytest.approx(0.9),
    }
    assert second["category_id"] == 17
    assert json.loads(json.dumps([first, second])) == [first, second]


def test_masks_are_pasted_at_the_original_size():
    result = rescale(detections(mask_crops=torch.ones(3, 28, 28)), INFO)
    assert result.mask_crops is None
    assert result.masks.shape == (2, 60, 100)
    assert result.masks[0].sum() == 40 * 40
    assert result.masks[0, 10:50, 10:50].all()
    assert result.masks[1].sum() == 60 * 100 - 4  # a quarter of a corner pixel has weight in the crop


def test_crops_and_pasted_masks_give_the_same_results():
    crops = torch.rand(3, 28, 28, generator=torch.Generator().manual_seed(0))
    found = detections(mask_crops=crops)
    from_crops = to_coco(rescale_boxes(found, INFO), INFO, CLASSES)
    from_masks = to_coco(rescale(found, INFO), INFO, CLASSES)
    assert from_crops == from_masks
    assert isinstance(from_crops[0]["segmentation"]["counts"], str)
    pasted = rescale(found, INFO).masks.numpy()
    np.testing.assert_array_equal(decode(from_crops[0]["segmentation"]), pasted[0])
    np.testing.assert_array_equal(decode(from_crops[1]["segmentation"]), pasted[1])


def test_maps_become_masks_of_the_original_picture():
    maps = torch.zeros(3, 6, 10)
    maps[:, 1:5, 2:4] = 1
    found = detections(mask_maps=maps)
    result = rescale(found, INFO)
    assert result.mask_maps is None
    assert result.masks.shape == (2, 60, 100)
    assert result.masks[0].sum() == 40 * 20 - 4 * 10  # in a corner, a value fades along both axes
    assert result.masks[0, 25:35, 25:35].all()
    from_maps = to_coco(rescale_boxes(found, INFO), INFO, CLASSES)
    assert from_maps == to_coco(result, INFO, CLASSES)


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 0.98, 1.0])
def test_run_lengths_are_those_of_pycocotools(density):
    random = np.random.default_rng(0)
    for height, width in ((1, 1), (1, 9), (9, 1), (30, 41)):
        whole = np.zeros((height, width), np.uint8)
        for bottom, right in ((height, width), ((height + 1) // 2, (width + 1) // 2)):
            top, left = random.integers(0, height - bottom + 1), random.integers(0, width - right + 1)
            mask = random.random((bottom, right)) < density
            whole[:] = 0
            whole[top : top + bottom, left : left + right] = mask
            expected = mask_utils.encode(np.asfortranarray(whole))["counts"].decode()
            assert run_lengths(mask, int(left), int(top), (height, width))["counts"] == expected


def test_nothing_found():
    empty = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 28, 28))
    assert to_coco(rescale(empty, INFO), INFO, CLASSES) == []
    assert to_coco(rescale_boxes(empty, INFO), INFO, CLASSES) == []
