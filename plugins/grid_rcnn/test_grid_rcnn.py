import copy
import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from detcli.plugins.grid_rcnn.model import GridHead, jittered, neighbors
from torch.nn import functional

from detcli.config import load, resolve
from detcli.convert.mmdet_config import translate
from detcli.errors import DetcliError, UsageError
from detcli.nn.boxes import clip_boxes
from detcli.nn.losses import cross_entropy
from detcli.nn.roi_head import RoISample
from detcli.registry import build
from detcli.structures import Batch
from detcli.testing import random_batch
from detcli.zoo.status import digest

CASES = Path(__file__).parents[2] / "tests" / "parity" / "cases" / "mmdet"
SLIM = {"grid_convs": 1, "point_channels": 4}


@pytest.fixture(scope="module")
def model():
    """Return a small model."""
    torch.manual_seed(0)
    return make(clip=False)


def make(shared_head=False, **changes):
    """Return a small model with other arguments of its second stage."""
    config = {
        "name": "grid_rcnn",
        "backbone": "r18",
        "neck": {"name": "fpn", "out_channels": 16},
        "shared_head": shared_head,
        "rpn_head": {"name": "rpn", "train_proposals": 20, "test_proposals": 20},
        "roi_head": {"name": "grid", "bbox_head": {"name": "conv_fc_cls", "channels": 16}, **SLIM, **changes},
    }
    return build("models", config, num_classes=3)


def grid_head(grid_size=3, radius=1):
    torch.manual_seed(0)
    loss = cross_entropy(sigmoid=True, weight=15.0)
    return GridHead(2, 14, loss, grid_size=grid_size, num_convs=1, point_channels=36, radius=radius)


def test_points_exchange_features_with_those_beside_above_and_below():
    assert [neighbors(point, 3) for point in (0, 1, 4, 8)] == [[1, 3], [0, 2, 4], [1, 3, 5, 7], [5, 7]]
    assert sum(len(neighbors(point, 3)) for point in range(9)) == 24


def test_features_come_from_neighbours_of_neighbours_alone():
    head = grid_head().eval()
    seen = torch.zeros(1, 9 * 36, 7, 7, requires_grad=True)
    near = head.exchange(seen, seen, head.forder_trans)
    head.exchange(seen, near, head.sorder_trans)[:, :36].sum().backward()
    reached = seen.grad.unflatten(1, (9, 36)).abs().sum((0, 2, 3, 4)) > 0
    assert reached.nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4, 6]


@pytest.mark.parametrize(("grid_size", "radius"), [(3, 1), (3, 2), (2, 1), (4, 0)])
def test_goals_are_the_pixels_near_the_points_of_the_object(grid_size, radius):
    torch.manual_seed(1)
    head = grid_head(grid_size, radius)
    corners = torch.rand(6, 2) * 50
    objects = torch.cat([corners, corners + 10 + torch.rand(6, 2) * 40], dim=1)
    boxes = objects + torch.randn(6, 4) * 3
    starts = {2: [0, 28], 3: [0, 14, 28], 4: [0, 4, 23, 28]}[grid_size]
    expected = torch.zeros(6, grid_size**2, 28, 28)
    for index, (box, found) in enumerate(zip(boxes.tolist(), objects.tolist(), strict=True)):
        width, height = box[2] - box[0], box[3] - box[1]
        for point in range(grid_size**2):
            column, row = divmod(point, grid_size)
            x = found[0] + (found[2] - found[0]) * column / (grid_size - 1)
            y = found[1] + (found[3] - found[1]) * row / (grid_size - 1)
            x = int((x - box[0] + width / 2) / width * 28) - starts[column]
            y = int((y - box[1] + height / 2) / height * 28) - starts[row]
            for pixel_x in range(28):
                for pixel_y in range(28):
                    near = (pixel_x - x) ** 2 + (pixel_y - y) ** 2 <= radius**2
                    expected[index, point, pixel_y, pixel_x] = near
    assert expected.sum() > 0
    torch.testing.assert_close(head.goals(boxes, objects), expected)


def test_boxes_are_read_where_goals_are():
    head = grid_head(radius=0)
    boxes = torch.tensor([[10.0, 20.0, 66.0, 76.0], [0.0, 0.0, 28.0, 14.0]])
    objects = torch.tensor([[14.5, 12.5, 70.5, 84.5], [3.5, 1.5, 30.5, 13.25]])
    found = head.boxes(20 * head.goals(boxes, objects) - 10, boxes)
    assert ((found - objects).abs() <= torch.tensor([[1.0], [0.5]]) + 1e-4).all()  # half a pixel of their maps
    torch.testing.assert_close(found[0, :2], torch.tensor([15.0, 13.0]))


def test_an_edge_is_the_mean_of_its_points_weighted_by_their_scores():
    head = grid_head()
    logits = torch.full((1, 9, 28, 28), -20.0)
    logits[:, :, 14, 14] = 0.0
    box = torch.tensor([[0.0, 0.0, 28.0, 28.0]])
    before = head.boxes(logits, box)
    logits[:, 1, 14, 14], logits[:, 1, 14, 18] = -20.0, torch.tensor(0.8).logit()  # four pixels to the right
    weights = torch.tensor([0.5, 0.8, 0.5])
    expected = before[0, 0] + 4 * weights[1] / weights.sum()
    after = head.boxes(logits, box)
    torch.testing.assert_close(after[0, 0], expected)
    torch.testing.assert_close(after[0, 2], before[0, 2])


def test_rois_as_small_as_their_grid_have_no_goals():
    head = grid_head()
    boxes = torch.tensor([[5.0, 5.0, 6.5, 25.0], [5.0, 5.0, 6.6, 25.0], [5.0, 5.0, 5.0, 5.0]])
    assert head.goals(boxes, boxes).flatten(1).any(1).tolist() == [False, True, False]


def test_the_loss_is_the_mean_over_positives_of_both_maps():
    head = grid_head()
    boxes = torch.tensor([[0.0, 0.0, 20.0, 20.0], [5.0, 5.0, 40.0, 40.0], [0.0, 0.0, 9.0, 9.0]])
    positive = torch.tensor([True, True, False])
    rows = RoISample(boxes, boxes, positive.int() - 1, positive.long(), positive, positive, 3)
    fused, unfused = torch.randn(2, 3, 9, 28, 28)
    goals = head.goals(boxes, boxes)[:2]
    expected = sum(functional.binary_cross_entropy_with_logits(maps[:2], goals) for maps in (fused, unfused)) * 15
    torch.testing.assert_close(head.losses(fused, unfused, [rows])["loss_grid"], expected)


def test_moved_boxes_stay_in_the_image():
    boxes = torch.tensor([[10.0, 20.0, 30.0, 60.0], [60.0, 50.0, 99.0, 79.0]])
    offsets = torch.tensor([[0.1, -0.1, 0.0, 0.1], [0.15, 0.15, 0.15, 0.15]])
    found = jittered(boxes, offsets, torch.tensor([80, 100]))
    torch.testing.assert_close(found[0], torch.tensor([12.0, 14.0, 32.0, 58.0]))
    assert found[1, 2:].tolist() == [99, 79]
    torch.testing.assert_close(jittered(boxes, 0 * offsets, torch.tensor([80, 100])), boxes)


def grid_rois(model, batch):
    """Return the RoIs [R,5] that the grids of `model` are trained on with the proposals in a batch."""
    seen = []
    handle = model.roi_head.grid_roi_extractor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    with torch.no_grad():
        proposals = [target.proposals for target in batch.targets]
        model.roi_head.losses(model.eval().features(batch.images), proposals, batch)
    handle.remove()
    return seen[0]


def test_what_is_drawn_depends_on_the_seed_of_the_image_alone(model):
    batch = replace(random_batch(), seeds=torch.tensor([7, 8]))
    rois = grid_rois(model, batch)
    turned = Batch(batch.images.flip(0), batch.sizes.flip(0), batch.targets[::-1], seeds=batch.seeds.flip(0))
    torch.testing.assert_close(grid_rois(model, turned)[:, 1:], rois[:, 1:])
    other = grid_rois(model, replace(batch, seeds=torch.tensor([9, 8])))
    # The same RoIs, in another order and elsewhere.
    assert len(other) == len(rois)
    assert not (other[:, None, 1:] - rois[:, 1:] == 0).all(-1).any()


def test_rois_without_seeds_are_drawn_anew(model):
    batch = random_batch()
    assert not torch.equal(grid_rois(model, batch), grid_rois(model, batch))


def test_grids_have_a_limit_of_rois():
    batch = random_batch()
    assert len(grid_rois(make(max_grid_rois=2), batch)) == 2
    assert len(grid_rois(make(), batch)) > 3


def test_without_objects_there_is_no_loss_of_grids(model):
    batch = random_batch()
    empty = Batch(batch.images[1:], batch.sizes[1:], batch.targets[1:])
    losses = model.train()(empty)
    assert losses["loss_grid"] == 0
    losses["loss_grid"].backward()


def test_boxes_come_from_grids_and_all_else_from_classes(model):
    batch = random_batch()
    model.eval()
    with torch.no_grad():
        found = model(batch)
        features = model.features(batch.images)
        proposals = model.proposals(features, batch)
        model.roi_head.grid_head.boxes = lambda logits, boxes: boxes + 1000
        moved = model(batch)
        del model.roi_head.grid_head.boxes
    for ours, image, other in zip(found, proposals, moved, strict=True):
        assert len(ours) > 0
        assert (ours.scores.diff() <= 0).all()
        torch.testing.assert_close(other.scores, ours.scores)
        assert torch.isin((other.boxes - 1000).round(), image.round()).all()


def test_boxes_are_cut_at_the_borders_unless_asked_otherwise(model):
    batch, cut = random_batch(), make().eval()
    cut.load_state_dict(model.state_dict())
    for own in (model, cut):
        own.roi_head.grid_head.boxes = lambda logits, boxes: boxes + torch.tensor([-50.0, -50.0, 50.0, 50.0])
    with torch.no_grad():
        results = list(zip(cut(batch), model.eval()(batch), batch.sizes, strict=True))
    del model.roi_head.grid_head.boxes
    for ours, other, size in results:
        assert not torch.equal(ours.boxes, other.boxes)
        torch.testing.assert_close(ours.boxes, clip_boxes(other.boxes, size))


def test_an_image_may_have_no_detection():
    nothing = make(score_threshold=1.0).eval()
    with torch.no_grad():
        assert [len(found) for found in nothing(random_batch())] == [0, 0]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"bbox_head": "conv_fc"}, "bbox_head=conv_fc_cls"),
        ({"grid_size": 1}, "not 1x1 of 4 each"),
        ({"point_channels": 5}, "3x3 of 5 each"),
        ({"grid_roi_extractor": {"name": "roi_align", "output_size": 7}}, "7 is odd"),
        ({"shared_head": True}, "no shared head"),
    ],
)
def test_what_can_not_be_built_is_refused(changes, named):
    with pytest.raises(UsageError, match=named):
        make(**changes)


def config_of(name):
    keys = ("model", "optimizer", "optimizer_config", "lr_config", "runner", "auto_scale_lr", "data", "samples_per_gpu")
    case = json.loads(gzip.decompress((CASES / f"{name}.json.gz").read_bytes()))
    return copy.deepcopy({key: case[key] for key in keys if key in case})


GRID = "grid_rcnn/grid_rcnn_r50_fpn_gn-head_1x_coco"


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("roi_head.bbox_head.with_reg", True, "bbox_head.with_reg to True"),
        ("roi_head.bbox_head.surprise", 1, "bbox_head.surprise"),
        ("roi_head.grid_head.type", "RoundHead", "grid_head.type"),
        ("roi_head.grid_head.grid_points", 8, "a square number"),
        ("roi_head.grid_head.roi_feat_size", 28, "grid_head.roi_feat_size"),
        ("roi_head.grid_head.norm_cfg", {"type": "BN"}, "grid_head.norm_cfg"),
        ("roi_head.mask_head", {"type": "FCNMaskHead"}, "roi_head.mask_head"),
        ("train_cfg.rcnn.surprise", 1, "train_cfg.rcnn.surprise"),
    ],
)
def test_configs_that_say_more_are_refused(key, value, named):
    config = config_of(GRID)
    *path, last = key.split(".")
    part = config["model"]
    for step in path:
        part = part[step]
    part[last] = value
    with pytest.raises(DetcliError, match=named):
        translate(config)


def test_the_limit_of_rois_is_half_of_what_two_images_have():
    config = config_of(GRID)
    config["model"]["train_cfg"]["rcnn"]["max_num_grid"] = 100
    assert translate(config)["model"]["roi_head"]["max_grid_rois"] == 50


def test_the_recipe_with_features_of_all_levels_is_the_published_one():
    config, other = config_of(GRID), config_of("groie/mask_rcnn_r50_fpn_groie_1x_coco")
    extractors = other["model"]["roi_head"]
    config["model"]["roi_head"] |= {
        "bbox_roi_extractor": extractors["bbox_roi_extractor"],
        "grid_roi_extractor": extractors["mask_roi_extractor"],
    }
    theirs = load({"recipe": "grid_rcnn_groie", **translate(config)})
    assert digest(resolve("grid_rcnn_groie").config) == digest(theirs)
