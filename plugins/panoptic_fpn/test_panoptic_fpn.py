import pytest
import torch

from detcli.config import resolve
from detcli.errors import DetcliError
from detcli.registry import build
from detcli.structures import UNLABELLED, Detections, ImageInfo

SIZE = (40, 60)


@pytest.fixture(scope="module")
def model():
    settings = ["model.num_stuff_classes=3", "model.least_stuff_area=100"]
    with torch.device("meta"):
        config = resolve("panoptic_fpn", backbone="r18", settings=settings).config.model
    return build("models", config, num_classes=2)


def found(*things, stuff=1):
    """Return detections (box, score, label) whose masks fill their boxes, and logits that say `stuff` everywhere."""
    boxes = torch.tensor([box for box, _, _ in things], dtype=torch.float32).view(-1, 4)
    logits = torch.zeros(4, SIZE[0] // 4, SIZE[1] // 4)
    logits[stuff] = 1
    return Detections(
        boxes,
        torch.tensor([score for _, score, _ in things]),
        torch.tensor([label for _, _, label in things]).long(),
        mask_crops=torch.ones(len(things), 28, 28),
        semantic=logits,
    )


def areas(panoptic):
    return torch.bincount(panoptic.segments.flatten(), minlength=len(panoptic.labels) + 1).tolist()


def merge(model, detections):
    return model.merge(detections, ImageInfo(1, "", SIZE, SIZE))


def test_things_lie_over_stuff_best_first(model):
    panoptic = merge(model, found(([0, 0, 20, 20], 0.9, 1), ([10, 0, 30, 20], 0.8, 0)))
    assert panoptic.labels.tolist() == [1, 0, 2]
    assert panoptic.scores.tolist() == pytest.approx([0.9, 0.8, 1.0])
    assert areas(panoptic) == [0, 400, 200, 40 * 60 - 600]
    assert (panoptic.segments[:20, 10:20] == 1).all()


def test_what_is_unsure_or_mostly_covered_is_no_segment(model):
    panoptic = merge(
        model,
        found(
            ([0, 0, 20, 20], 0.9, 1), ([10, 0, 30, 20], 0.8, 0), ([19, 0, 39, 20], 0.7, 1), ([40, 0, 60, 20], 0.4, 0)
        ),
    )
    assert panoptic.labels.tolist() == [1, 0, 2]


def test_small_stuff_and_the_class_of_things_stay_without_a_segment(model):
    assert areas(merge(model, found(stuff=0))) == [40 * 60]
    detections = found(stuff=3)
    detections.semantic[2, :2, :2] = 2  # 8 x 8 pixels and a little
    panoptic = merge(model, detections)
    assert panoptic.labels.tolist() == [4]
    assert areas(panoptic)[0] < 100


def test_a_picture_of_another_size_than_the_networks_input(model):
    detections = found(([10, 10, 30, 30], 0.9, 1))
    panoptic = model.merge(detections, ImageInfo(1, "", (80, 90), (40, 45)))
    assert panoptic.segments.shape == (80, 90)
    assert areas(panoptic) == [0, 400, 80 * 90 - 400]


def test_all_things_are_one_class_of_pixels(model):
    semantic = torch.tensor([[0, 1, 2, 3, 4, UNLABELLED]], dtype=torch.uint8)
    assert model._stuff(semantic).tolist() == [[0, 0, 1, 2, 3, UNLABELLED]]


def test_data_without_stuff_are_named(model):
    with pytest.raises(DetcliError, match="learns stuff, and the data have none"):
        model._stuff(None)
