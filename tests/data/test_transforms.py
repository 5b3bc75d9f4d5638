from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from detcli.config import DataConfig, InputConfig
from detcli.data import Preprocess, open_dataset
from detcli.data.transforms import (
    PhotometricDistortion,
    RandomCrop,
    RandomFlip,
    Resize,
    expand,
    keypoint_order,
    min_iou_crop,
    random_size_crop,
    resized,
    to_image,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def record(height: int = 60, width: int = 90, box: tuple[int, int, int, int] = (20, 10, 50, 40)) -> dict[str, Any]:
    """Return a picture with one bright object that fills its box."""
    pixels = np.full((height, width, 3), 20, np.uint8)
    x1, y1, x2, y2 = box
    pixels[y1:y2, x1:x2] = 240
    size = (height, width)
    mask = torch.zeros(1, height, width, dtype=torch.uint8)
    mask[:, y1:y2, x1:x2] = 1
    boxes = torch.tensor([box], dtype=torch.float32)
    points = torch.tensor([[[x1 + 5.0, y1 + 5.0], [x1 + 8.0, y1 + 12.0], [x2 - 8.0, y1 + 12.0]]])
    return {
        "image": to_image(pixels),
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
        "proposals": tv_tensors.BoundingBoxes(boxes.clone(), format="XYXY", canvas_size=size),
        "labels": torch.tensor([0]),
        "masks": tv_tensors.Mask(mask),
        "keypoints": tv_tensors.KeyPoints(points, canvas_size=size),
        "visibility": torch.tensor([[2.0, 2.0, 1.0]]),
    }


def check_agreement(result: dict[str, Any], slack: float = 1.0) -> None:
    """Check that picture, mask, box and proposals show the object in the same place."""
    bright = result["image"].float().mean(0) > 125
    mask = result["masks"][0] > 0
    assert bright.shape == mask.shape
    assert int((bright != mask).sum()) <= 2 * sum(mask.shape)
    ys, xs = (axis.float() for axis in torch.nonzero(mask, as_tuple=True))
    seen = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    height, width = mask.shape
    box = result["boxes"][0].as_subclass(torch.Tensor).clamp(min=0)
    box = torch.minimum(box, torch.tensor([width, height, width, height]))
    assert (box - seen).abs().max() <= slack
    assert torch.equal(result["boxes"], result["proposals"])
    assert result["boxes"].canvas_size == (height, width)


# Longest side, shortest side, the picture's (height, width), and what MMDetection makes of it.
@pytest.mark.parametrize(
    ("scale", "size", "expected"),
    [
        ((1333, 800), (480, 640), (800, 1067)),
        ((1333, 800), (640, 480), (1067, 800)),
        ((1333, 800), (427, 640), (800, 1199)),
        ((1333, 800), (333, 500), (800, 1201)),
        ((1333, 800), (500, 375), (1067, 800)),
        ((1333, 800), (1024, 2048), (667, 1333)),
        ((1333, 800), (612, 612), (800, 800)),
        ((1333, 800), (200, 1333), (200, 1333)),
        ((1333, 800), (720, 1281), (749, 1333)),
        ((800, 1333), (480, 640), (800, 1067)),
        ((1333, 800), (1, 1000), (1, 1333)),
        ((640, 400), (333, 500), (400, 601)),
    ],
)
def test_keep_ratio_size(scale: tuple[int, int], size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resized(size, scale) == expected


@pytest.mark.parametrize("scale", [(180, 120), (45, 30), (140, 93), (90, 60)])
def test_resize_moves_everything(scale: tuple[int, int]) -> None:
    result = Resize([scale])(record())
    check_agreement(result)
    factor = torch.tensor([result["image"].shape[2] / 90, result["image"].shape[1] / 60])
    assert torch.allclose(result["boxes"][0, :2].as_subclass(torch.Tensor), torch.tensor([20.0, 10.0]) * factor)
    assert torch.allclose(result["keypoints"][0, 0].as_subclass(torch.Tensor), torch.tensor([25.0, 15.0]) * factor)


@pytest.mark.parametrize("size", [(133, 71), (20, 31), (60, 47), (480, 376)])
def test_masks_and_labels_are_resized_by_whole_numbers(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(4, 60, 47, dtype=torch.uint8)
    masks[0, 7:50, 30:] = torch.randint(0, 2, (43, 17), generator=generator, dtype=torch.uint8)
    masks[1, 59, 0] = 1
    masks[2] = 1
    semantic = torch.randint(0, 256, (60, 47), generator=generator, dtype=torch.uint8)
    height, width = resized((60, 47), size)
    rows = torch.tensor([row * 60 // height for row in range(height)])
    columns = torch.tensor([column * 47 // width for column in range(width)])
    image = to_image(np.zeros((60, 47, 3), np.uint8))
    for labels in (masks, semantic, masks[:0]):
        result = Resize([size])({"image": image, "masks": tv_tensors.Mask(labels)})
        assert torch.equal(result["masks"], labels[..., rows, :][..., columns])


def test_pixels_are_resized_as_opencv_does() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (120, 90, 3), dtype=np.uint8)
    sample = Preprocess(DataConfig(test_resize=(61, 40)))(pixels, image_id=3, name="a.png")
    expected = cv2.resize(pixels, (40, 53), interpolation=cv2.INTER_LINEAR)
    assert torch.equal(sample.image, torch.from_numpy(expected).permute(2, 0, 1))
    assert (sample.info.image_id, sample.info.original_size, sample.info.size) == (3, (120, 90), (53, 40))
    assert sample.target is None


def test_scale_modes() -> None:
    torch.manual_seed(0)
    value = {tuple(Resize([(90, 40), (90, 60)])(record())["image"].shape[1:]) for _ in range(40)}
    assert value == {(40, 60), (60, 90)}
    scales = Resize([(1333, 640), (1333, 800)], "range")
    drawn = [scales._draw() for _ in range(400)]
    assert {longest for longest, _ in drawn} == {1333}
    shortest = [short for _, short in drawn]
    assert min(shortest) >= 640
    assert max(shortest) <= 800
    assert len(set(shortest)) > 100


def test_flip_moves_everything_and_swaps_left_and_right() -> None:
    order = keypoint_order(["nose", "left_eye", "right_eye"])
    assert order == [0, 2, 1]
    result = RandomFlip(1.0, order)(record())
    check_agreement(result, slack=0)
    assert result["boxes"].tolist() == [[40, 10, 70, 40]]
    assert result["keypoints"].tolist() == [[[65, 15], [48, 22], [62, 22]]]
    assert result["visibility"].tolist() == [[2, 1, 2]]
    pixels = np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    assert torch.equal(RandomFlip(1.0)({"image": to_image(pixels)})["image"], to_image(pixels).flip(-1))
    assert RandomFlip(0.0)(record())["boxes"].tolist() == [[20, 10, 50, 40]]


def test_crop_moves_everything_and_always_keeps_an_object() -> None:
    torch.manual_seed(0)
    windows = set()
    for _ in range(100):
        result = RandomCrop((30, 45))(record(box=(70, 40, 88, 58)))
        assert result["image"].shape == (3, 30, 45)
        check_agreement(result)
        windows.add(tuple(result["boxes"][0].tolist()))
    assert len(windows) > 20
    assert RandomCrop((300, 40))(record())["image"].shape == (3, 60, 40)


def test_windows_of_any_size_are_cut_out_of_a_resized_picture() -> None:
    torch.manual_seed(0)
    crop = random_size_crop(library="opencv", probability=0.5, longest=90, shortest=(30, 45), least=20, most=50)
    sizes, untouched = set(), 0
    for _ in range(200):
        result = crop(record(box=(20, 10, 80, 50)))
        height, width = result["image"].shape[-2:]
        if (height, width) == (60, 90):
            untouched += 1
            continue
        assert 20 <= height <= 45  # never more than the picture, resized to 30x45 or 45x68
        assert 20 <= width <= 50
        sizes.add((height, width))
        if len(result["masks"].nonzero()):
            check_agreement(result, slack=1.5)
    assert 70 < untouched < 130
    assert len(sizes) > 60
    assert {max(sides) for sides in zip(*sizes, strict=True)} == {45, 50}
    assert {min(sides) for sides in zip(*sizes, strict=True)} == {20}


def test_a_window_is_cut_before_the_resize(folder: Any, config: Callable[..., DataConfig], rgb: InputConfig) -> None:
    cut = {"name": "random_size_crop", "probability": 1.0, "longest": 80, "shortest": (60,), "least": 30, "most": 30}
    sizes = {}
    for place in ("before_resize", "transforms"):
        settings = config(folder.write(), resize=[(90, 70)], **{place: [cut]})
        sizes[place] = open_dataset(settings, "train", rgb).sample(0, 1).info.size
    assert sizes == {"before_resize": (70, 70), "transforms": (30, 30)}


def test_without_the_ratio_pictures_become_just_that_size(
    folder: Any, config: Callable[..., DataConfig], rgb: InputConfig
) -> None:
    result = Resize([(90, 120)], keep_ratio=False)(record())
    assert result["image"].shape == (3, 120, 90)
    check_agreement(result)
    assert result["boxes"].tolist() == [[20, 20, 50, 80]]
    settings = config(folder.write(), resize=[(50, 70)], test_resize=(40, 30), keep_ratio=False)
    assert open_dataset(settings, "train", rgb).sample(0, 0).info.size == (70, 50)
    assert open_dataset(settings, "val", rgb).sample(0, 0).info.size == (30, 40)
    assert Preprocess(settings)(np.zeros((5, 9, 3), np.uint8)).info.size == (30, 40)


def test_an_expanded_picture_lies_on_a_larger_canvas() -> None:
    torch.manual_seed(0)
    put = expand(fill=(10.0, 20.5, 30.0), ratio=(1.5, 3.0))
    semantic = tv_tensors.Mask(torch.full((60, 90), 7, dtype=torch.uint8))
    before = {**record(), "semantic": semantic}
    sizes, places = set(), set()
    for _ in range(30):
        after = put(before)
        if after is before:
            continue
        check_agreement(after, slack=0)
        left, top = (after["boxes"] - before["boxes"])[0, :2].long().tolist()
        assert torch.equal(after["image"][:, top : top + 60, left : left + 90], before["image"])
        assert after["keypoints"][0, 0].tolist() == [25 + left, 15 + top]
        around = torch.ones(after["image"].shape[1:], dtype=torch.bool)
        around[top : top + 60, left : left + 90] = False
        assert after["image"][:, around].unique(dim=1).tolist() == [[10], [20], [30]]
        assert torch.equal(after["semantic"] == 255, around)
        height, width = after["image"].shape[1:]
        assert 90 <= height <= 180
        assert 135 <= width <= 270
        sizes.add(height)
        places.add((left, top))
    assert 8 <= len(sizes) <= 22
    assert len(places) > 8


def test_a_window_is_overlapped_by_every_object_and_holds_the_middle_of_one() -> None:
    torch.manual_seed(0)
    one, other = record(), record(box=(60, 40, 80, 58))
    before = {
        **one,
        "image": to_image(np.maximum(*(item["image"].permute(1, 2, 0).numpy() for item in (one, other)))),
        "labels": torch.tensor([3, 5]),
        "visibility": torch.cat([one["visibility"], other["visibility"]]),
        "ignored": tv_tensors.wrap(one["boxes"][:0], like=one["boxes"]),
    }
    for key in ("boxes", "masks", "keypoints"):
        before[key] = tv_tensors.wrap(torch.cat([one[key], other[key]]), like=one[key])
    crop = min_iou_crop(ious=(0.1, 0.3), least=0.4)
    labels, shapes = set(), set()
    for _ in range(60):
        after = crop(before)
        count = len(after["labels"])
        assert [len(after[key]) for key in ("boxes", "masks", "keypoints", "visibility")] == [count] * 4
        labels.add(tuple(after["labels"].tolist()))
        height, width = after["image"].shape[1:]
        shapes.add((height, width))
        if after is before:
            continue
        assert 0.4 * 60 - 1 <= height <= 60
        assert 0.4 * 90 - 1 <= width <= 90
        assert 0.5 - 0.05 <= height / width <= 2.1
        for box, mask in zip(after["boxes"], after["masks"], strict=True):
            left, top, right, bottom = (int(side) for side in box.clamp(min=0))
            assert mask.sum() == (min(right, width) - left) * (min(bottom, height) - top) > 0
    assert {(3,), (5,), (3, 5)} == labels
    assert len(shapes) > 20


def test_windows_need_no_objects() -> None:
    torch.manual_seed(0)
    before = record()
    empty = {key: before[key][:0] if key in ("labels", "visibility") else before[key] for key in before}
    for key in ("boxes", "masks", "keypoints"):
        empty[key] = tv_tensors.wrap(before[key].as_subclass(torch.Tensor)[:0], like=before[key])
    empty["ignored"] = empty["boxes"]
    assert len({min_iou_crop()(empty)["image"].shape for _ in range(20)}) > 5


def test_small_objects_are_not_trained(folder: Any, config: Callable[..., DataConfig], rgb: InputConfig) -> None:
    path = folder.write()
    everything = open_dataset(config(path), "train", rgb)
    sides = {
        image_id: [min(width, height) for _, _, width, height in everything.annotations(index).xywh]
        for index, image_id in enumerate(everything.image_ids)
    }
    limit = sorted(side for found in sides.values() for side in found)[1]
    without = open_dataset(config(path, min_side=limit), "train", rgb)
    assert without.image_ids == [image_id for image_id, found in sides.items() if max(found) > limit]
    for index, image_id in enumerate(without.image_ids):
        assert len(without.sample(index, 0).target.boxes) == sum(side > limit for side in sides[image_id])
    val = open_dataset(config(path, min_side=1e6), "val", rgb)
    assert len(val.image_ids) > 0


def test_photometric_distortion_changes_only_pixels_and_within_bounds() -> None:
    torch.manual_seed(0)
    before = record()
    changed = 0
    for _ in range(30):
        after = PhotometricDistortion()(before)
        assert after["image"].dtype == torch.uint8
        assert after["image"].shape == before["image"].shape
        assert after["boxes"] is before["boxes"]
        changed += not torch.equal(after["image"], before["image"])
    assert changed > 20
    assert torch.equal(before["image"], record()["image"])


def test_saturation_and_hue_leave_grey_alone() -> None:
    grey = {"image": to_image(np.full((4, 4, 3), 100, np.uint8))}
    torch.manual_seed(1)
    for _ in range(30):
        result = PhotometricDistortion()(grey)["image"]
        assert int(result.amax()) - int(result.amin()) <= 1
        assert (100 - 32) * 0.5 - 1 <= int(result[0, 0, 0]) <= (100 + 32) * 1.5 + 1


def test_transforms_of_torchvision_fit() -> None:
    result = v2.RandomVerticalFlip(1.0)(record())
    check_agreement(result, slack=0)
    assert result["boxes"].tolist() == [[20, 20, 50, 50]]


def test_what_leaves_the_picture_leaves_the_target(
    folder: Any, config: Callable[..., DataConfig], rgb: InputConfig
) -> None:
    folder.data["annotations"] += [folder.annotation(20, 8, 7, [0, 80, 10, 10], [[0, 80, 10, 80, 10, 90, 0, 90]])]
    settings = config(folder.write(), resize=[(90, 70)], crop=(40, 70))
    dataset = open_dataset(settings, "train", rgb, masks=True)
    counts = set()
    for seed in range(40):
        target = dataset.sample(2, seed).target
        height, width = dataset.sample(2, seed).info.size
        counts.add(len(target.boxes))
        assert len(target.boxes) == len(target.labels) == len(target.masks) == len(target.keypoints) > 0
        assert (target.boxes[:, 2:] > target.boxes[:, :2]).all()
        assert target.boxes.min() >= 0
        assert (target.boxes[:, 2:] <= torch.tensor([width, height])).all()
        outside = (target.keypoints[..., 1] <= 0) | (target.keypoints[..., 1] >= height)
        assert (target.keypoints[..., 2][outside] == 0).all()
    assert counts == {1, 2}


def test_keypoints_are_kept(folder: Any, config: Callable[..., DataConfig], rgb: InputConfig) -> None:
    settings = config(folder.write(), resize=[(90, 70)], test_resize=(90, 70))
    plain = open_dataset(settings, "val", rgb)[2].target.keypoints
    assert plain.tolist() == [[[20.5, 20.5, 2], [10.5, 15.5, 2], [30.5, 15.5, 1]]]
    flipped = open_dataset(settings.model_copy(update={"flip": 1.0}), "train", rgb)[2].target.keypoints
    assert flipped.tolist() == [[[49.5, 20.5, 2], [39.5, 15.5, 1], [59.5, 15.5, 2]]]
