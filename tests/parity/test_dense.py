"""RetinaNet, ATSS and FCOS against MMDetection and Detectron2."""

import pytest

from detcli.config import resolve
from detcli.registry import build

# MMDetection's config -> recipe, backbone, schedule
NUMBERS = {
    "retinanet/retinanet_r50_fpn_1x_coco": ("retinanet", None, None),
    "retinanet/retinanet_r101_fpn_1x_coco": ("retinanet", "r101", None),
    "atss/atss_r50_fpn_1x_coco": ("atss", None, None),
    "fcos/fcos_r50_caffe_fpn_gn-head_1x_coco": ("fcos", None, None),
    "fcos/fcos_r101_caffe_fpn_gn-head_1x_coco": ("fcos", "r101_detectron", None),
    "fcos/fcos_center-normbbox-centeronreg-giou_r50_caffe_fpn_gn-head_1x_coco": ("fcos_tricks", None, None),
}
# The same models, trained otherwise.
SETTINGS = {
    "retinanet/retinanet_r50_fpn_2x_coco": ("retinanet", None, "2x"),
    "retinanet/retinanet_r50_fpn_fp16_1x_coco": ("retinanet_fp16", None, None),
    "retinanet/retinanet_r101_fpn_2x_coco": ("retinanet", "r101", "2x"),
    "fcos/fcos_r50_caffe_fpn_gn-head_mstrain_640-800_2x_coco": ("fcos_mstrain", None, None),
    "fcos/fcos_r101_caffe_fpn_gn-head_mstrain_640-800_2x_coco": ("fcos_mstrain", "r101_detectron", None),
}


def published(recipe, backbone, sched):
    return resolve(recipe, backbone=backbone, sched=sched).config


@pytest.mark.parametrize("name", NUMBERS)
def test_mmdetection(parity, name):
    case, config = parity.load(f"mmdet/{name}"), published(*NUMBERS[name])
    assert parity.failures(case, build("models", config.model, num_classes=case["num_classes"])) == []


@pytest.mark.parametrize("name", NUMBERS | SETTINGS)
def test_recipe_is_the_published_setting(parity, name):
    case, config = parity.load(f"mmdet/{name}"), published(*(NUMBERS | SETTINGS)[name])
    assert parity.settings(case, config) == []


def test_detectron2(parity):
    case = parity.load("detectron2/COCO-Detection/retinanet_R_50_FPN_1x")
    config = published("retinanet_detectron2", None, None)
    assert parity.detectron2_failures(case, build("models", config.model, num_classes=80)) == []


@pytest.mark.parametrize("length", ["1x", "3x"])
def test_recipe_is_the_setting_of_detectron2(parity, length):
    solver, sizes = (
        parity.load(f"detectron2/COCO-Detection/retinanet_R_50_FPN_{length}")["cfg"][section]
        for section in ("SOLVER", "INPUT")
    )
    config = published("retinanet_detectron2", None, None if length == "1x" else "270k")
    assert config.sched.unit == "iter"
    assert config.sched.length == solver["MAX_ITER"]
    assert config.sched.drops == solver["STEPS"]
    assert config.sched.warmup == solver["WARMUP_METHOD"]
    assert config.sched.warmup_iters == solver["WARMUP_ITERS"]
    assert config.sched.warmup_ratio == solver["WARMUP_FACTOR"]
    assert config.optim.lr == solver["BASE_LR"]
    assert config.optim.batch == solver["IMS_PER_BATCH"]
    assert config.data.resize == [(sizes["MAX_SIZE_TRAIN"], side) for side in sizes["MIN_SIZE_TRAIN"]]
    assert config.input.mean == (103.53, 116.28, 123.675)
    assert config.input.channels == sizes["FORMAT"].lower()
