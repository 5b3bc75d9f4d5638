"""Configs of MMDetection with a cascade of stages: what they say, and what they can't."""

import copy
import gzip
import json
from functools import cache
from pathlib import Path

import pytest

from detcli.convert.mmdet_config import translate
from detcli.errors import DetcliError

CASES = Path(__file__).parents[1] / "parity" / "cases" / "mmdet"
CASCADE = "cascade_rcnn/cascade_mask_rcnn_r50_caffe_fpn_1x_coco"
HTC = "htc/htc_r50_fpn_1x_coco"


@cache
def read_case(name):
    return json.loads(gzip.decompress((CASES / f"{name}.json.gz").read_bytes()))


def config_of(name):
    keys = ("model", "optimizer", "optimizer_config", "lr_config", "runner", "auto_scale_lr", "data")
    return copy.deepcopy({key: value for key, value in read_case(name).items() if key in keys})


def changed(name, key, value):
    """Return the config of a case with another value at the dotted place `key` of its model."""
    config = config_of(name)
    *path, last = key.split(".")
    part = config["model"]
    for step in path:
        part = part[int(step) if step.isdigit() else step]
    part[last] = value
    return config


def test_stages_are_lists_of_what_differs_between_them():
    model = translate(config_of(CASCADE))["model"]
    assert model["name"] == "cascade_mask_rcnn"
    stages = model["roi_head"]
    assert stages["stage_ious"] == (0.5, 0.6, 0.7)
    assert stages["stage_stds"][2] == (0.033, 0.033, 0.067, 0.067)
    assert stages["stage_weights"] == (1, 0.5, 0.25)
    assert stages["mask_head"]["name"] == "fcn"
    assert stages["match_low_quality"] is False


def test_one_mask_head_may_stand_for_those_of_all_stages():
    config = config_of(CASCADE)
    several = changed(CASCADE, "roi_head.mask_head", [config["model"]["roi_head"]["mask_head"]] * 3)
    assert translate(config)["model"] == translate(several)["model"]


def test_without_a_semantic_head_there_is_no_branch():
    head = translate(config_of(HTC))["model"]["roi_head"]
    assert (head["num_semantic_classes"], head["semantic_level"], head["semantic_loss_weight"]) == (183, 1, 0.2)
    assert translate(changed(HTC, "roi_head.semantic_head", None))["model"]["roi_head"]["semantic"] is False


@pytest.mark.parametrize(
    ("name", "key", "value", "named"),
    [
        (CASCADE, "roi_head.stage_loss_weights", [1.0, 0.5], "model.roi_head.bbox_head"),
        (CASCADE, "roi_head.num_stages", 2, "model.roi_head.num_stages to 2"),
        (CASCADE, "roi_head.bbox_head.1.fc_out_channels", 512, "model.roi_head.bbox_head"),
        (CASCADE, "roi_head.bbox_head.1.type", "DoubleConvFCBBoxHead", "model.roi_head.bbox_head.1.type"),
        (CASCADE, "roi_head.bbox_head.2.reg_class_agnostic", False, "model.roi_head.bbox_head.2.reg_class_agnostic"),
        (CASCADE, "roi_head.bbox_head.2.reg_decoded_bbox", True, "model.roi_head.bbox_head to"),
        (CASCADE, "roi_head.bbox_head.0.surprise", 1, "model.roi_head.bbox_head.0.surprise"),
        (CASCADE, "roi_head.bbox_head.0.bbox_coder.type", "LegacyDeltaXYWHBBoxCoder", "bbox_head.1.bbox_coder"),
        (CASCADE, "train_cfg.rcnn.1.assigner.neg_iou_thr", 0.5, "model.train_cfg.rcnn.1.assigner"),
        (CASCADE, "train_cfg.rcnn.1.assigner.ignore_iof_thr", 0.5, "model.train_cfg.rcnn.1.assigner"),
        (CASCADE, "train_cfg.rcnn.1.assigner.match_low_quality", True, "model.train_cfg.rcnn to"),
        (CASCADE, "train_cfg.rcnn.2.sampler.num", 256, "model.train_cfg.rcnn to"),
        (CASCADE, "train_cfg.rcnn.2.mask_size", 14, "model.train_cfg.rcnn.2.mask_size to 14"),
        (CASCADE, "train_cfg.rcnn.2.surprise", 1, "model.train_cfg.rcnn.2.surprise"),
        (CASCADE, "test_cfg.keep_all_stages", True, "model.test_cfg.keep_all_stages"),
        (CASCADE, "roi_head.mask_head", [], "model.roi_head.mask_head to [], which is not a head for each stage"),
        (HTC, "roi_head.mask_head", None, "model.roi_head.mask_head to None, which is not a head for each stage"),
        (HTC, "roi_head.mask_head.1.num_convs", 2, "model.roi_head.mask_head"),
        (HTC, "roi_head.mask_head.1.with_conv_res", False, "model.roi_head.mask_head.1.with_conv_res"),
        (HTC, "roi_head.mask_head.0.type", "FCNMaskHead", "model.roi_head.mask_head.0.type"),
        (HTC, "roi_head.interleaved", False, "model.roi_head.interleaved"),
        (HTC, "roi_head.mask_info_flow", False, "model.roi_head.mask_info_flow"),
        (HTC, "roi_head.semantic_fusion", ["box"], "model.roi_head.semantic_fusion"),
        (HTC, "roi_head.semantic_head.fusion_level", 5, "model.roi_head.semantic_head.fusion_level"),
        (HTC, "roi_head.semantic_head.num_ins", 4, "model.roi_head.semantic_head.num_ins"),
        (HTC, "roi_head.semantic_head.loss_seg.type", "FocalLoss", "model.roi_head.semantic_head.loss_seg.type"),
        (HTC, "roi_head.semantic_roi_extractor.featmap_strides", [4], "semantic_roi_extractor.featmap_strides"),
    ],
)
def test_what_stages_can_not_be_is_named(name, key, value, named):
    with pytest.raises(DetcliError) as error:
        translate(changed(name, key, value), [])
    assert named in str(error.value)
    assert "\n" not in str(error.value)
