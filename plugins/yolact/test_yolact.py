import pytest
import torch
from detcli.plugins.yolact.convert import even_anchors
from detcli.plugins.yolact.model import assembled, even_strides, without_padding

from detcli.config import resolve
from detcli.convert.mmdet_group import Group
from detcli.errors import DetcliError
from detcli.nn.masks import resize_masks
from detcli.registry import build
from detcli.testing import random_batch

STRIDES = (8, 16, 32, 64, 128)


def small(**settings):
    flags = {"weights": "none", "model.neck.out_channels": 32, "model.image_size": 128, "model.score_threshold": 0.0}
    flags |= {f"model.{key}": value for key, value in settings.items()}
    torch.manual_seed(0)
    return build("models", resolve("yolact", backbone="r18", flags=flags).config.model, num_classes=3)


def losses(model, batch):
    """Return the losses with norms as in evaluation, so that images do not depend on each other."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    return model(batch)


def test_a_mask_is_a_sum_of_prototypes_in_its_box_and_a_cell_around():
    prototypes = torch.stack([torch.full((20, 30), 8.0), torch.full((20, 30), 4.0)])
    boxes = torch.tensor([[40.0, 40, 80, 60], [0, 0, 300, 200]])
    masks = assembled(prototypes, torch.tensor([[1.0, -1], [-1, 1]]), boxes, (200, 300))
    inside = torch.zeros(20, 30)
    inside[3:7, 3:9] = 1
    torch.testing.assert_close(masks[0], torch.tensor(4.0).sigmoid() * inside)
    torch.testing.assert_close(masks[1], torch.full((20, 30), -4.0).sigmoid())


def test_without_its_padding_a_map_shows_the_image_alone():
    scene = torch.zeros(1, 60, 80)
    scene[:, 12:30, 20:60] = 1
    maps = torch.nn.functional.interpolate(scene[None], (30, 40), mode="bilinear")[0]
    part = without_padding(maps, (45, 64), (60, 80))
    assert part.shape == maps.shape
    off = resize_masks(part, (45, 64)) != scene[:, :45, :64].byte()
    assert off.sum() <= 8  # corners
    assert without_padding(maps, (60, 80), (60, 80)) is maps


def test_anchors_lie_evenly_over_the_image():
    strides = even_strides(550, STRIDES)
    assert strides == [550 / 69, 550 / 35, 550 / 18, 550 / 9, 550 / 5]
    assert even_strides(128, STRIDES) == list(STRIDES)
    model = small(image_size=550)
    (first, *_, last) = model.anchors([(69, 69), (35, 35), (18, 18), (9, 9), (5, 5)], "cpu")
    centers = [(anchors[:, :2] + anchors[:, 2:]) / 2 for anchors in (first, last)]
    torch.testing.assert_close(centers[0][[0, -1]], torch.tensor([[275 / 69] * 2, [550 - 275 / 69] * 2]))
    torch.testing.assert_close(centers[1][[0, -1]], torch.tensor([[55.0, 55], [495, 495]]))
    assert (first[1, 2:] - first[1, :2]).tolist() == [24, 24]


@pytest.mark.parametrize(("image_size", "strides"), [(550, even_strides(550, STRIDES)), (128, STRIDES)])
def test_the_size_of_images_follows_from_strides_of_mmdetection(image_size, strides):
    generator = {
        "type": "AnchorGenerator",
        "strides": list(map(float, strides)),
        "centers": [[stride / 2] * 2 for stride in strides],
        "base_sizes": list(STRIDES),
        "octave_base_scale": 3,
        "scales_per_octave": 1,
        "ratios": [0.5, 1.0, 2.0],
    }
    found = even_anchors(Group({"anchor_generator": generator}, "head"), STRIDES)
    assert found == {"image_size": image_size, "anchor_scale": 3.0, "anchor_ratios": (0.5, 1.0, 2.0)}
    for key, value in (("strides", [7.9, *strides[1:]]), ("centers", [[4, 5]] * 5), ("centers", None)):
        head = Group({"anchor_generator": {**generator, key: value}}, "head")
        with pytest.raises(DetcliError, match=f"head.anchor_generator.{key}"):
            even_anchors(head, STRIDES)


def test_masks_are_limited_by_the_seed_of_the_image():
    model, batch = small(max_masks=2), random_batch()
    batch.seeds = torch.tensor([1, 2])
    first = losses(model, batch)["loss_mask"]
    assert torch.equal(first, losses(model, batch)["loss_mask"])
    found = set()
    for seed in range(8):
        batch.seeds = torch.tensor([seed, 2])
        found.add(float(losses(model, batch)["loss_mask"].detach()))
    assert len(found) > 1
    unlimited = small(max_masks=1000)
    values = set()
    for seed in range(3):
        batch.seeds = torch.tensor([seed, 2])
        values.add(round(float(losses(unlimited, batch)["loss_mask"].detach()), 4))
    assert len(values) == 1


def test_an_image_without_objects_is_trained_by_all_its_background():
    model, batch = small(), random_batch()
    empty = batch.targets[1]
    batch.images, batch.sizes, batch.targets = batch.images[1:], torch.tensor([[128, 160]]), [empty]
    found = losses(model, batch)
    logits, _, _ = model.bbox_head(model.neck(model.backbone(batch.images)))
    torch.testing.assert_close(found["loss_cls"], -logits.log_softmax(-1)[..., -1].sum())
    assert found["loss_mask"] == found["loss_bbox"] == 0
    assert found["loss_segm"] > 0
    sum(found.values()).backward()
    assert model.bbox_head.conv_coeff.weight.grad.eq(0).all()


def test_detections_do_not_depend_on_the_rest_of_their_batch():
    model, batch = small().eval(), random_batch()
    with torch.no_grad():
        together = model(batch)[0]
        batch.images, batch.sizes, batch.targets = batch.images[:1], batch.sizes[:1], None
        alone = model(batch)[0]
    assert len(alone) > 0
    torch.testing.assert_close(together.boxes, alone.boxes)
    torch.testing.assert_close(together.mask_maps, alone.mask_maps)
    assert alone.mask_maps.shape == (len(alone), 32, 40)
