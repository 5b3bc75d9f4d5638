"""RPN, Fast, Faster and Mask R-CNN against MMDetection and Detectron2."""

import pytest

from detcli.config import resolve
from detcli.registry import build

# MMDetection's config -> recipe, backbone, schedule
NUMBERS = {
    "rpn/rpn_r50_fpn_1x_coco": ("rpn", None, None),
    "rpn/rpn_x101_32x4d_fpn_1x_coco": ("rpn", "x101_32x4d", None),
    "rpn/rpn_x101_64x4d_fpn_1x_coco": ("rpn", "x101_64x4d", None),
    "faster_rcnn/faster_rcnn_r50_fpn_1x_coco": ("faster_rcnn", None, None),
    "faster_rcnn/faster_rcnn_r101_fpn_1x_coco": ("faster_rcnn", "r101", None),
    "faster_rcnn/faster_rcnn_x101_64x4d_fpn_1x_coco": ("faster_rcnn", "x101_64x4d", None),
    "faster_rcnn/faster_rcnn_r50_caffe_fpn_1x_coco": ("faster_rcnn", "r50_caffe", None),
    "faster_rcnn/faster_rcnn_r50_caffe_fpn_mstrain_1x_coco-person": ("faster_rcnn_mstrain_2x", None, "1x"),
    "faster_rcnn/faster_rcnn_r50_caffe_fpn_mstrain_1x_coco-person-bicycle-car": (
        "faster_rcnn_mstrain_2x",
        None,
        "1x",
    ),
    "faster_rcnn/faster_rcnn_r50_caffe_dc5_1x_coco": ("faster_rcnn_dc5", None, None),
    "mask_rcnn/mask_rcnn_r50_caffe_fpn_1x_coco": ("mask_rcnn", "r50_caffe", None),
    "mask_rcnn/mask_rcnn_x101_32x4d_fpn_1x_coco": ("mask_rcnn", "x101_32x4d", None),
}
# The same models, trained otherwise.
SETTINGS = {
    "rpn/rpn_r50_fpn_2x_coco": ("rpn", None, "2x"),
    "rpn/rpn_x101_32x4d_fpn_2x_coco": ("rpn", "x101_32x4d", "2x"),
    "rpn/rpn_x101_64x4d_fpn_2x_coco": ("rpn", "x101_64x4d", "2x"),
    "faster_rcnn/faster_rcnn_r50_fpn_2x_coco": ("faster_rcnn", None, "2x"),
    "faster_rcnn/faster_rcnn_r50_fpn_fp16_1x_coco": ("faster_rcnn", None, None, ["train.precision=fp16"]),
    "faster_rcnn/faster_rcnn_r101_fpn_2x_coco": ("faster_rcnn", "r101", "2x"),
    "faster_rcnn/faster_rcnn_x101_64x4d_fpn_2x_coco": ("faster_rcnn", "x101_64x4d", "2x"),
    "faster_rcnn/faster_rcnn_r50_caffe_fpn_mstrain_2x_coco": ("faster_rcnn_mstrain_2x", None, None),
    "faster_rcnn/faster_rcnn_r50_caffe_fpn_mstrain_3x_coco": ("faster_rcnn_mstrain_3x", None, None),
    "faster_rcnn/faster_rcnn_r50_caffe_dc5_mstrain_1x_coco": ("faster_rcnn_dc5_mstrain", None, None),
    "faster_rcnn/faster_rcnn_r50_caffe_dc5_mstrain_3x_coco": ("faster_rcnn_dc5_mstrain_3x", None, None),
    "mask_rcnn/mask_rcnn_r50_caffe_fpn_mstrain-poly_2x_coco": ("mask_rcnn_mstrain_2x", None, None),
    "mask_rcnn/mask_rcnn_r50_caffe_fpn_mstrain-poly_3x_coco": ("mask_rcnn_mstrain_3x", None, None),
    "mask_rcnn/mask_rcnn_x101_32x4d_fpn_2x_coco": ("mask_rcnn", "x101_32x4d", "2x"),
}
# The cases train on every candidate, so that nothing is drawn at random.
ALL_ANCHORS = ["model.sampler.num=100000"]
ALL_ROIS = ["model.rpn_sampler.num=100000", "model.sampler.num=100000"]

DETECTRON2 = ["model.backbone=r50_caffe", "model.clamp_below=false"]
DETECTRON2_RPN = ["loss_divisor=capacity", "assigner.low_quality_gt=best"]
DETECTRON2_CASES = {
    "COCO-Detection/rpn_R_50_FPN_1x": (
        "rpn",
        [
            *ALL_ANCHORS,
            *(f"model.{setting}" for setting in DETECTRON2_RPN),
            "model.anchor_border=null",
            "model.nms_pre=1000",
            "model.max_per_image=2000",
        ],
    ),
    "COCO-Detection/fast_rcnn_R_50_FPN_1x": ("fast_rcnn", ALL_ANCHORS),
    "COCO-Detection/faster_rcnn_R_50_FPN_1x": (
        "faster_rcnn",
        [*ALL_ROIS, *(f"model.rpn_{setting}" for setting in DETECTRON2_RPN), "model.train_proposals=200"],
    ),
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x": (
        "mask_rcnn",
        [
            *ALL_ROIS,
            *(f"model.rpn_{setting}" for setting in DETECTRON2_RPN),
            "model.train_proposals=200",
            "model.assigner.match_low_quality=false",
        ],
    ),
}


def published(recipe, backbone, sched, settings=()):
    return resolve(recipe, backbone=backbone, sched=sched, settings=settings).config


@pytest.mark.parametrize("name", NUMBERS)
def test_mmdetection(parity, name):
    case = parity.load(f"mmdet/{name}")
    if name.startswith("rpn/"):
        settings = ALL_ANCHORS
        case["num_classes"] = 80  # of the objects; all proposals have label 0
        case["detections"]["labels"] = [0] * len(case["detections"]["scores"])
    else:
        settings = [*ALL_ROIS, "model.train_proposals=300"]
    config = published(*NUMBERS[name], settings)
    assert parity.failures(case, build("models", config.model, num_classes=case["num_classes"])) == []


@pytest.mark.parametrize("name", NUMBERS | SETTINGS)
def test_recipe_is_the_published_setting(parity, name):
    case, config = parity.load(f"mmdet/{name}"), published(*(NUMBERS | SETTINGS)[name])
    assert parity.settings(case, config) == []


@pytest.mark.parametrize("name", DETECTRON2_CASES)
def test_detectron2(parity, name):
    case = parity.load(f"detectron2/{name}")
    recipe, settings = DETECTRON2_CASES[name]
    config = resolve(recipe, settings=[*DETECTRON2, *settings]).config
    assert parity.detectron2_failures(case, build("models", config.model, num_classes=80)) == []
