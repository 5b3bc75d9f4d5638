"""Converted checkpoints against MMDetection and Detectron2, and recipes against the published settings."""

import copy
import gzip
import json
import re
import tempfile
from dataclasses import replace
from pathlib import Path

import comparison
import pytest
import reference
import session
import torch
from torch import nn

from detcli.config import resolve
from detcli.structures import Batch, Detections
from detcli.zoo.report import CHECKS
from detcli.zoo.rows import rows
from detcli.zoo.status import PARITY, digest, parity_cases
from detcli.zoo.training import training

NAMES = reference.names()
CASES = {name: reference.load(name) for name in NAMES}

# The numbers of these are compared here, each model of each origin once; `nox -s parity` compares those of all.
CHOSEN = {
    "mmdet/rpn/rpn_r50_fpn_1x_coco": "proposals are the detections",
    "mmdet/retinanet/retinanet_r50_fpn_1x_coco": "anchors and the focal loss",
    "mmdet/atss/atss_r50_fpn_1x_coco": "its assigner and centerness",
    "mmdet/fcos/fcos_r50_caffe_fpn_gn-head_1x_coco": "points, group norm",
    "mmdet/fcos/fcos_center-normbbox-centeronreg-giou_r50_caffe_fpn_gn-head_1x_coco": "every argument of FCOS",
    "mmdet/detr/detr_r50_8x2_150e_coco": "a transformer, matched sets",
    "mmdet/yolact/yolact_r50_1x8_coco": "prototypes of masks, hard negatives, fast NMS",
    "mmdet/paa/paa_r50_fpn_1x_coco": "mixtures of scores, voting",
    "mmdet/faster_rcnn/faster_rcnn_r50_caffe_fpn_1x_coco": "two stages",
    "mmdet/faster_rcnn/faster_rcnn_r50_caffe_dc5_1x_coco": "no pyramid, a dilated stage",
    "mmdet/mask_rcnn/mask_rcnn_x101_32x4d_fpn_1x_coco": "masks, grouped convolutions",
    "mmdet/cascade_rcnn/cascade_rcnn_r50_caffe_fpn_1x_coco": "three stages of boxes",
    "mmdet/cascade_rcnn/cascade_mask_rcnn_r50_caffe_fpn_1x_coco": "three stages of boxes and masks",
    "mmdet/gcnet/mask_rcnn_r50_fpn_syncbn-backbone_r4_gcb_c3-c5_1x_coco": "attention in the blocks, synced norms",
    "mmdet/htc/htc_r50_fpn_1x_coco": "boxes and masks in turn, classes of pixels",
    "mmdet/grid_rcnn/grid_rcnn_r50_fpn_gn-head_1x_coco": "grids of points, of RoIs that are moved at random",
    "mmdet/legacy_1.x/cascade_mask_rcnn_r50_fpn_1x_coco_v1": "three stages, of version 1",
    "mmdet/legacy_1.x/mask_rcnn_r50_fpn_1x_coco_v1": "anchors, coder and RoIAlign of version 1",
    "mmdet/legacy_1.x/retinanet_r50_fpn_1x_coco_v1": "anchors and coder of version 1 in one stage",
    "mmdet/lvis/mask_rcnn_r50_fpn_sample1e-3_mstrain_1x_lvis_v1": "1203 classes, 300 detections",
    "detectron2/COCO-Detection/rpn_R_50_C4_1x": "proposals of one map",
    "detectron2/COCO-Detection/rpn_R_50_FPN_1x": "proposals of a pyramid",
    "detectron2/COCO-Detection/retinanet_R_50_FPN_1x": "padding is trained, a moving normaliser",
    "detectron2/COCO-Detection/fast_rcnn_R_50_FPN_1x": "given proposals",
    "detectron2/COCO-Detection/faster_rcnn_R_50_FPN_1x": "two stages",
    "detectron2/COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x": "a stage of the backbone in the heads, with masks",
    "detectron2/COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_1x": "no pyramid, a dilated stage, with masks",
    "detectron2/COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x": "masks",
    "detectron2/Misc/cascade_mask_rcnn_R_50_FPN_1x": "three stages, later ones on all boxes of those before",
    "detectron2/COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x": "keypoints",
    "detectron2/COCO-PanopticSegmentation/panoptic_fpn_R_50_1x": "stuff, and segments of it and things",
}

# No document has a row with these configs.
RECIPES = {
    "mmdet/grid_rcnn/grid_rcnn_r50_fpn_gn-head_1x_coco": ("grid_rcnn", []),
    "mmdet/faster_rcnn/faster_rcnn_r50_fpn_fp16_1x_coco": ("faster_rcnn", ["train.precision=fp16"]),
    "mmdet/retinanet/retinanet_r50_fpn_fp16_1x_coco": ("retinanet_fp16", []),
}
# The rows of these are of papers that have no plugin yet; nothing holds a recipe to them.
WITHOUT_RECIPE = {"mmdet/deepfashion/mask_rcnn_r50_fpn_15e_deepfashion"}


@pytest.fixture
def folder():
    """Return a folder that is gone after the test: pytest would keep the checkpoints, up to a gigabyte each."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.mark.parametrize("name", CHOSEN)
def test_numbers_of_a_converted_checkpoint(name, folder):
    assert comparison.compare(CASES[name], folder).wrong == []


def test_each_model_of_each_origin_is_chosen():
    assert kinds(CHOSEN) == kinds(NAMES)


def kinds(names):
    """Return what kinds of models the cases `names` hold."""
    found = set()
    for name in names:
        case = CASES[name]
        model = comparison.config_of(case).model
        found.add((case["origin"], model["name"], (model.get("rpn_head") or model).get("anchor_style")))
    return found


@pytest.mark.parametrize("name", [name for name in NAMES if CASES[name]["alias"]])
def test_a_case_with_the_numbers_of_another_has_its_model(name):
    assert comparison.same_model(*(comparison.config_of(CASES[which]) for which in (name, CASES[name]["alias"])))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WITHOUT_RECIPE])
def test_a_recipe_is_the_published_setting(name):
    case, config = CASES[name], published(name)
    theirs = reference.settings(case)
    ours = {key: getattr(getattr(config, section), value) for key in theirs for section, value in [key.split(".")]}
    assert ours == theirs
    assert digest(config) == digest(comparison.config_of(case))


def test_cases_without_a_recipe_are_those_of_papers_without_a_plugin():
    missing = {name for name in NAMES if name not in RECIPES and training(row_of(name)).config is None}
    assert missing == WITHOUT_RECIPE


def published(name):
    """Return the run config of the recipe for the case `name`, which trains as it does in everything."""
    if name in RECIPES:
        recipe, settings = RECIPES[name]
        return resolve(recipe, settings=settings).config
    plan = training(row_of(name))
    assert plan.exact
    assert plan.differs == ()
    return plan.config


def row_of(name):
    """Return the row whose config the case `name` is of."""
    source, _, config = name.partition("/")
    source = {"mmdet": "mmdet-v2"}.get(source, source)
    return next(row for row in rows((source,)) if row.config.rpartition(".")[0] == config)


def test_what_the_session_wrote_is_of_the_committed_cases_and_of_their_models_today():
    written = parity_cases()
    assert list(written) == NAMES
    for name, case in CASES.items():
        assert written[name]["passes"] == (not written[name]["wrong"])
        assert written[name]["same_as"] == (case["alias"] or "")
        if written[name]["passes"]:
            assert written[name]["config"] == digest(comparison.config_of(case)), f"{name}: run nox -s parity"


def test_every_check_can_fail(folder):
    case = copy.deepcopy(CASES["detectron2/COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x"])
    case["frozen_params"].pop()
    case["inference"]["features"]["p3"]["samples"][5] += 1e-3
    found = case["inference"]["detections"]
    found["scores"][:6] = [score + 0.002 for score in found["scores"][:6]]
    found["mask_areas"][50] += 1000
    case["train"]["losses_bitmask"]["loss_mask"] *= 1.0003
    case["train"]["grad_norm"] *= 1.003
    outcome = comparison.compare(case, folder)
    assert failed(outcome) == [check for check in CHECKS if check not in ("keypoints", "segments")]
    assert outcome.measured["detections"] == "94 of 100"
    assert outcome.measured["masks"] == "93 of 94"


def failed(outcome):
    return [text.partition(":")[0] for text in outcome.wrong]


def test_masks_are_compared_in_the_boxes_of_the_reference():
    upper = (torch.arange(28) < 14).float()[:, None].expand(1, 28, 28)
    theirs = {"boxes": [[0.0, 0.2, 50.0, 1.2]], "mask_areas": [50], "mask_size": (4, 60)}
    ours = Detections(torch.tensor([[0.0, 0.7, 50.0, 1.7]]), torch.ones(1), torch.zeros(1).long(), mask_crops=upper)
    assert comparison._mask_areas(theirs, ours, [(0, 0)]) == ("1 of 1", [])
    lower = replace(ours, mask_crops=1 - upper)
    assert comparison._mask_areas(theirs, lower, [(0, 0)]) == ("0 of 1", ["0 pixels for 50"])


class Sum(nn.Module):
    """A model whose gradient is the sum of the picture's values."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, batch):
        return {"loss": (batch.images.float() * self.weight).sum()}


@pytest.mark.parametrize(
    ("pixels", "off", "fails"),
    [
        ((8000.5, -8000), 0.0015, False),  # in float32, the difference is known to three digits
        ((8000.5, -8000), 0.0045, True),
        ((0.25, 0.25), 0.0009, False),
        ((0.25, 0.25), 0.0015, True),
    ],
)
def test_gradients_are_compared_as_far_as_float32_knows_them(pixels, off, fails):
    case = {"origin": "mmdet", "grad_norm_sum": 0.5, "grad_norms": {"weight": 0.5 * (1 + off)}}
    batch = Batch(torch.tensor(pixels).view(1, 1, 1, 2), torch.tensor([[1, 2]]))
    model = Sum()
    comparison.backward(model, batch)
    _, wrong = comparison.gradients(case, model, batch)
    assert bool(wrong) == fails
    assert torch.get_default_dtype() == torch.float32


def test_the_check_of_keypoints_can_fail(folder):
    case = copy.deepcopy(CASES["detectron2/COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x"])
    for point in case["inference"]["detections"]["keypoints_first5"][2][:5]:
        point[0] += 0.02
    outcome = comparison.compare(case, folder)
    assert failed(outcome) == ["keypoints"]
    assert outcome.measured["keypoints"] == "80 of 85"


def test_the_check_of_segments_can_fail(folder):
    case = copy.deepcopy(CASES["detectron2/COCO-PanopticSegmentation/panoptic_fpn_R_50_1x"])
    case["inference"]["panoptic"]["segments"][3]["area_in_map"] += 20
    case["inference"]["intermediates"]["sem_seg_logits_stride4"]["samples"][5] += 1e-3
    outcome = comparison.compare(case, folder)
    assert failed(outcome) == ["segments", "segments"]
    assert outcome.measured["segments"] == "29 of 30"


@pytest.mark.parametrize(
    ("same_model", "other", "expected"),
    [
        (True, {"passes": True}, []),
        (False, {"passes": True}, ["it has the numbers of mmdet/x, and another model here"]),
        (True, {"passes": False}, ["it has the numbers of mmdet/x, which fails"]),
        (True, None, ["it has the numbers of mmdet/x, which was not run"]),
    ],
)
def test_a_case_passes_with_the_numbers_of_another_that_passes_and_has_its_model(same_model, other, expected):
    assert session.alias_failures(same_model, "mmdet/x", other) == expected


def test_the_session_lists_what_fails_and_says_so(tmp_path, monkeypatch, capsys):
    def write(name, changes):
        path = tmp_path / f"{name}.json.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        case = json.loads(gzip.decompress((reference.CASES / f"{name}.json.gz").read_bytes()))
        path.write_bytes(gzip.compress(json.dumps(case | changes).encode()))

    same, other = "mmdet/retinanet/retinanet_r50_fpn_1x_coco", "mmdet/retinanet/retinanet_r50_fpn_2x_coco"
    model = copy.deepcopy(CASES[same]["model"])
    model["bbox_head"]["type"] = "RetinaHeadOfTomorrow"
    write(same, {"model": model})
    write(other, {})
    monkeypatch.setenv("DETCLI_PARITY", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["session.py"])
    before = PARITY.read_bytes()
    assert session.main() == 1
    printed = capsys.readouterr().out
    assert PARITY.read_bytes() == before
    assert re.search(rf"1/2 {same}: fails: latest.pth: .*RetinaHeadOfTomorrow", printed)
    assert f"2/2 {other}: fails: it has the numbers of {same}, which fails" in printed
    assert printed.endswith("0 of 2 cases pass\n")
    assert str(tmp_path) not in printed
