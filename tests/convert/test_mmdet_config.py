"""MMDetection's configs: their text is read as data, and what they say becomes a run config or an error."""

import copy
import gzip
import json
from pathlib import Path
from random import Random

import pytest
import torch

from detcli.config import leaves, load, resolve, revise
from detcli.convert.mmdet_config import parse, translate
from detcli.errors import DetcliError
from detcli.registry import build
from detcli.zoo.status import digest

CASES = Path(__file__).parents[1] / "parity" / "cases" / "mmdet"
ARTICLES = {
    "retinanet": "retinanet/retinanet_r50_fpn_1x_coco",
    "mask_rcnn": "mask_rcnn/mask_rcnn_r50_caffe_fpn_1x_coco",
}


def read_case(name):
    return json.loads(gzip.decompress((CASES / f"{name}.json.gz").read_bytes()))


def config_of(name):
    """Return what a checkpoint's config says of a case."""
    keys = ("model", "optimizer", "optimizer_config", "lr_config", "runner", "auto_scale_lr", "data", "fp16")
    return {key: value for key, value in read_case(name).items() if key in keys}


def text_of(config):
    return "".join(f"{key} = {value!r}\n" for key, value in config.items())


def loaded(config, **options):
    partial = translate(config, **options)
    return load({"recipe": partial["model"]["name"], **partial})


def at(tree, path):
    for step in path:
        tree = tree[step]
    return tree


# Reading


def test_values_names_and_sums_are_read():
    text = """
    # settings of 1.x stand after a path, and have comments and sums
    third = 1.0 / 3
    root = 'data/' + 'coco/'
    norm = dict(mean=[1.5, -2], std=(1, 1e3), to_rgb=True)
    steps = [dict(type='Normalize', **norm), {'type': 'Pad', **{'size_divisor': 32}}] + [None]
    strides = [4] * 3
    gpu_ids = range(0, 3)
    both = other = -third * 2 - 1
    """
    values = parse("configs/gn+ws/some_model.py\n" + "\n".join(line.strip() for line in text.splitlines()))
    norm = {"mean": [1.5, -2], "std": (1, 1000.0), "to_rgb": True}
    assert values == {
        "third": 1 / 3,
        "root": "data/coco/",
        "norm": norm,
        "steps": [{"type": "Normalize", **norm}, {"type": "Pad", "size_divisor": 32}, None],
        "strides": [4, 4, 4],
        "gpu_ids": [0, 1, 2],
        "both": -2 / 3 - 1,
        "other": -2 / 3 - 1,
    }
    assert values["steps"][0]["mean"] is not values["norm"]["mean"]


@pytest.mark.parametrize("name", ARTICLES.values())
def test_the_text_of_a_config_is_the_config(name):
    config = config_of(name)
    assert parse(text_of(config)) == config


@pytest.mark.parametrize(
    "line",
    [
        "import os",
        "a = open('marker', 'w')",
        "a = __import__('os').system('touch marker')",
        "a = [open('marker', 'w') for _ in (1,)]",
        "a = (lambda: 1)()",
        "a = f'{1}'",
        "a = dict([('b', 1)])",
        "a = dict(**[1])",
        "a = b",
        "a.b = 1",
        "a, b = 1, 2",
        "a += 1",
        "a = 2 ** 9",
        "a = 1 if True else 2",
        "a = b'bytes'",
        "a = 'x' - 'y'",
        "a = 'x' + 1",
        "a = {} * 2",
        "a = [] / 2",
        "a = 1 / 0",
        "a = -'x'",
        "a = range('x')",
        "a = range(0, 10, 2)",
        "a = {(1, 2): 3}",
        "a = 9223372036854775807 + 1",
        "_base_ = ['x.py']\ndel _base_",
        "print(1)",
    ],
)
def test_anything_else_is_named_by_its_line_and_not_run(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    number = 1 + len(line.splitlines())
    with pytest.raises(DetcliError, match=rf"^line {number} of its config can't be read: .*\.$"):
        parse(f"x = 1\n{line}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a = [0] * 10000000000", "line 1 .* too large"),
        ("a = 'x' * 10000000000", "line 1 .* too large"),
        ("a = range(1000000000)", "small whole numbers"),
        ("a = [0] * 1000\n" + "a = [a] * 1000\n" * 3, "line 3 .* too large"),
        ("a = ['x']\n" + "a = [a, a]\n" * 60, "too large"),
        ("a = 'x'\n" + "a = a + a\n" * 60, "too large"),
        ("a = 3\n" + "a = a * a\n" * 60, "number is too large"),
        ("a = " + "[" * 5000 + "]" * 5000, "no Python text|too deeply"),
        ("a = " + "-" * 100000 + "1", "no Python text|too deeply"),
        ("a = 1" + " + 1" * 20000, "no Python text|too deeply"),
        ("a = (", "no Python text"),
        ("a = 1\0", "no Python text"),
        ("#" * 3_000_000, "characters long"),
    ],
)
def test_large_and_broken_texts_are_refused(text, reason):
    with pytest.raises(DetcliError, match=reason):
        parse(text)


# Cases


@pytest.mark.parametrize("path", sorted(CASES.glob("*/*.json.gz")), ids=lambda path: path.name.split(".json")[0])
def test_a_case_becomes_the_model_that_it_was(path):
    case = json.loads(gzip.decompress(path.read_bytes()))
    reference = read_case(case["same_model_as"]) if "same_model_as" in case else case
    config = loaded(case)
    with torch.device("meta"):
        model = build("models", config.model, num_classes=case["num_classes"] or 1)
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    assert shapes == {row[0]: row[1] for row in reference["state_dict"]}
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == set(reference["frozen"])


def test_rare_classes_of_lvis_are_repeated():
    config = loaded(config_of("lvis/mask_rcnn_r50_fpn_sample1e-3_mstrain_1x_lvis_v1"))
    assert (config.data.repeat_threshold, config.data.repeat_rounding) == (1e-3, "up")
    assert (config.sched.unit, config.sched.length, config.sched.drops) == ("epoch", 12, [8, 11])


def test_a_repeated_dataset_makes_epochs_longer():
    config = loaded(config_of("cityscapes/mask_rcnn_r50_fpn_1x_cityscapes"))
    assert (config.sched.length, config.sched.drops) == (64, [56])
    assert (config.optim.lr, config.optim.batch) == (0.01, 8)
    assert config.data.resize == [(2048, 800), (2048, 1024)]
    assert config.data.resize_mode == "range"


@pytest.mark.parametrize(
    ("kind", "recipe"),
    [
        ("IoULoss", "faster_rcnn_iou"),
        ("GIoULoss", "faster_rcnn_giou"),
        ("BoundedIoULoss", "faster_rcnn_bounded_iou"),
    ],
)
def test_losses_of_overlaps_are_those_of_recipes(kind, recipe):
    config = config_of("faster_rcnn/faster_rcnn_r50_fpn_1x_coco")
    head = config["model"]["roi_head"]["bbox_head"]
    head |= {"reg_decoded_bbox": True, "loss_bbox": {"type": kind, "loss_weight": 10.0}}
    assert digest(loaded(config)) == digest(resolve(recipe).config)


def places(tree, path=()):
    """Yield the path of every dict in a model whose content counts."""
    yield path
    for key, value in tree.items():
        if isinstance(value, dict) and key != "init_cfg":
            yield from places(value, (*path, key))


OTHER_ARTICLES = [
    "atss/atss_r50_fpn_1x_coco",
    "rpn/rpn_r50_fpn_1x_coco",
    "groie/faster_rcnn_r50_fpn_groie_1x_coco",
    "gn+ws/mask_rcnn_r50_fpn_gn_ws-all_2x_coco",
    "pafpn/faster_rcnn_r50_pafpn_1x_coco",
]


@pytest.mark.parametrize("name", [*OTHER_ARTICLES, *ARTICLES.values()])
def test_no_argument_is_passed_over_in_silence(name):
    config = config_of(name)
    for path in places(config["model"]):
        changed = copy.deepcopy(config)
        at(changed["model"], path)["surprise"] = 3
        with pytest.raises(DetcliError) as error:
            translate(changed)
        # As a whole, a dict that is compared with another one is named.
        named = ".".join(("model", *path, "surprise")) in str(error.value) or "'surprise': 3" in str(error.value)
        assert named, f"{path}: {error.value}"


# Other versions


V3_DATA = """
dataset_type = 'CocoDataset'
train_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs')]
test_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]
train_dataloader = dict(
    batch_size=2, num_workers=2, persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(
        type='CocoDataset', data_root='data/coco/', ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'), filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=train_pipeline, backend_args=None))
val_dataloader = dict(
    batch_size=1, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CocoDataset', ann_file='annotations/instances_val2017.json', test_mode=True,
        pipeline=test_pipeline, backend_args=None))
test_dataloader = val_dataloader
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1)]
auto_scale_lr = dict(enable=False, base_batch_size=16)
"""

V3_RETINANET = (
    """
model = dict(
    type='RetinaNet',
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True, pad_size_divisor=32),
    backbone=dict(
        type='ResNet', depth=50, num_stages=4, out_indices=(0, 1, 2, 3), frozen_stages=1,
        norm_cfg=dict(type='BN', requires_grad=True), norm_eval=True, style='pytorch',
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50')),
    neck=dict(
        type='FPN', in_channels=[256, 512, 1024, 2048], out_channels=256, start_level=1,
        add_extra_convs='on_input', num_outs=5),
    bbox_head=dict(
        type='RetinaHead', num_classes=80, in_channels=256, stacked_convs=4, feat_channels=256,
        anchor_generator=dict(
            type='AnchorGenerator', octave_base_scale=4, scales_per_octave=3, ratios=[0.5, 1.0, 2.0],
            strides=[8, 16, 32, 64, 128]),
        bbox_coder=dict(
            type='DeltaXYWHBBoxCoder', target_means=[.0, .0, .0, .0], target_stds=[1.0, 1.0, 1.0, 1.0]),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='L1Loss', loss_weight=1.0)),
    train_cfg=dict(
        assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1),
        sampler=dict(type='PseudoSampler'),
        allowed_border=-1, pos_weight=-1, debug=False),
    test_cfg=dict(
        nms_pre=1000, min_bbox_size=0, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0001))
"""
    + V3_DATA
)

V3_MASK_RCNN = (
    """
model = dict(
    type='mmdet.MaskRCNN',
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0],
        bgr_to_rgb=False, pad_mask=True, pad_size_divisor=32),
    backbone=dict(
        type='mmdet.models.backbones.ResNet', depth=50, num_stages=4, out_indices=(0, 1, 2, 3), frozen_stages=1,
        norm_cfg=dict(type='BN', requires_grad=False), norm_eval=True, style='caffe',
        init_cfg=dict(type='Pretrained', checkpoint='open-mmlab://detectron2/resnet50_caffe')),
    neck=dict(type='FPN', in_channels=[256, 512, 1024, 2048], out_channels=256, num_outs=5),
    rpn_head=dict(
        type='RPNHead', in_channels=256, feat_channels=256,
        anchor_generator=dict(
            type='AnchorGenerator', scales=[8], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64]),
        bbox_coder=dict(
            type='DeltaXYWHBBoxCoder', target_means=[.0, .0, .0, .0], target_stds=[1.0, 1.0, 1.0, 1.0]),
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0),
        loss_bbox=dict(type='L1Loss', loss_weight=1.0)),
    roi_head=dict(
        type='StandardRoIHead',
        bbox_roi_extractor=dict(
            type='SingleRoIExtractor', roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0),
            out_channels=256, featmap_strides=[4, 8, 16, 32]),
        bbox_head=dict(
            type='Shared2FCBBoxHead', in_channels=256, fc_out_channels=1024, roi_feat_size=7, num_classes=80,
            bbox_coder=dict(
                type='DeltaXYWHBBoxCoder', target_means=[0., 0., 0., 0.], target_stds=[0.1, 0.1, 0.2, 0.2]),
            reg_class_agnostic=False,
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
            loss_bbox=dict(type='L1Loss', loss_weight=1.0)),
        mask_roi_extractor=dict(
            type='SingleRoIExtractor', roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=0),
            out_channels=256, featmap_strides=[4, 8, 16, 32]),
        mask_head=dict(
            type='FCNMaskHead', num_convs=4, in_channels=256, conv_out_channels=256, num_classes=80,
            loss_mask=dict(type='CrossEntropyLoss', use_mask=True, loss_weight=1.0))),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(
                type='MaxIoUAssigner', pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3, match_low_quality=True,
                ignore_iof_thr=-1),
            sampler=dict(
                type='RandomSampler', num=256, pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=False),
            allowed_border=-1, pos_weight=-1, debug=False),
        rpn_proposal=dict(
            nms_pre=2000, max_per_img=1000, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(
            assigner=dict(
                type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5, match_low_quality=True,
                ignore_iof_thr=-1),
            sampler=dict(
                type='RandomSampler', num=512, pos_fraction=0.25, neg_pos_ub=-1, add_gt_as_proposals=True),
            mask_size=28, pos_weight=-1, debug=False)),
    test_cfg=dict(
        rpn=dict(nms_pre=1000, max_per_img=1000, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(
            score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100, mask_thr_binary=0.5)))
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=0.0001))
"""
    + V3_DATA
)


@pytest.mark.parametrize(("text", "method"), [(V3_RETINANET, "retinanet"), (V3_MASK_RCNN, "mask_rcnn")])
def test_version_3_says_the_same_as_version_2(text, method):
    ours, theirs = loaded(parse(text)), loaded(config_of(ARTICLES[method]))
    # Its linear warm-up reaches the full rate one iteration sooner.
    assert (ours.sched.warmup_iters, theirs.sched.warmup_iters) == (499, 500)
    ours.sched.warmup_iters = 500
    assert ours == theirs


def test_version_3_resizes_at_random_and_clips():
    text = V3_RETINANET.replace(
        "dict(type='Resize', scale=(1333, 800), keep_ratio=True),\n    dict(type='RandomFlip'",
        "dict(type='RandomChoiceResize', scales=[(1333, 640), (1333, 800)], keep_ratio=True),\n    "
        "dict(type='RandomFlip'",
    )
    text = text.replace("type='OptimWrapper'", "type='AmpOptimWrapper', clip_grad=dict(max_norm=35, norm_type=2)")
    config = loaded(parse(text))
    assert (config.data.resize, config.data.resize_mode) == ([(1333, 640), (1333, 800)], "value")
    assert config.optim.clip_norm == 35
    assert config.train.precision == "fp16"
    config = loaded(
        parse(text.replace("RandomChoiceResize", "RandomResize").replace("scales=[(1333, 640)", "scale=[(1333, 640)"))
    )
    assert config.data.resize_mode == "range"


V1_DATA = """
data_root = 'data/coco/'
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', img_scale=(1333, 800), keep_ratio=True),
    dict(type='RandomFlip', flip_ratio=0.5),
    dict(type='Normalize', **img_norm_cfg),
    dict(type='Pad', size_divisor=32),
    dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels', 'gt_masks']),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=(1333, 800), flip=False, transforms=[
        dict(type='Resize', keep_ratio=True), dict(type='RandomFlip'), dict(type='Normalize', **img_norm_cfg),
        dict(type='Pad', size_divisor=32), dict(type='ImageToTensor', keys=['img']),
        dict(type='Collect', keys=['img'])])
]
data = dict(
    imgs_per_gpu=2, workers_per_gpu=2,
    train=dict(type='CocoDataset', ann_file=data_root + 'annotations/instances_train2017.json',
        img_prefix=data_root + 'train2017/', pipeline=train_pipeline),
    val=dict(type='CocoDataset', pipeline=test_pipeline),
    test=dict(type='CocoDataset', pipeline=test_pipeline))
optimizer_config = dict(grad_clip=dict(max_norm=35, norm_type=2))
lr_config = dict(policy='step', warmup='linear', warmup_iters=500, warmup_ratio=1.0 / 3, step=[8, 11])
total_epochs = 12
dist_params = dict(backend='nccl')
workflow = [('train', 1)]
"""

V1_BODY = """
    pretrained='torchvision://resnet50',
    backbone=dict(
        type='ResNet', depth=50, num_stages=4, out_indices=(0, 1, 2, 3), frozen_stages=1,
        norm_cfg=dict(type='BN', requires_grad=True), style='pytorch'),
"""

V1_RETINANET = (
    """configs/retinanet_r50_fpn_1x.py
# model settings
model = dict(
    type='RetinaNet',"""
    + V1_BODY
    + """
    neck=dict(
        type='FPN', in_channels=[256, 512, 1024, 2048], out_channels=256, start_level=1, add_extra_convs=True,
        num_outs=5),
    bbox_head=dict(
        type='RetinaHead', num_classes=81, in_channels=256, stacked_convs=4, feat_channels=256,
        octave_base_scale=4, scales_per_octave=3, anchor_ratios=[0.5, 1.0, 2.0],
        anchor_strides=[8, 16, 32, 64, 128], target_means=[.0, .0, .0, .0], target_stds=[1.0, 1.0, 1.0, 1.0],
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='SmoothL1Loss', beta=0.11, loss_weight=1.0)))
train_cfg = dict(
    assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1),
    allowed_border=-1, pos_weight=-1, debug=False)
test_cfg = dict(
    nms_pre=1000, min_bbox_size=0, score_thr=0.05, nms=dict(type='nms', iou_thr=0.5), max_per_img=100)
optimizer = dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0001)
"""
    + V1_DATA
)

V1_MASK_RCNN = (
    """configs/mask_rcnn_r50_fpn_1x.py
model = dict(
    type='MaskRCNN',"""
    + V1_BODY
    + """
    neck=dict(type='FPN', in_channels=[256, 512, 1024, 2048], out_channels=256, num_outs=5),
    rpn_head=dict(
        type='RPNHead', in_channels=256, feat_channels=256, anchor_scales=[8], anchor_ratios=[0.5, 1.0, 2.0],
        anchor_strides=[4, 8, 16, 32, 64], target_means=[.0, .0, .0, .0], target_stds=[1.0, 1.0, 1.0, 1.0],
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0),
        loss_bbox=dict(type='SmoothL1Loss', beta=1.0 / 9.0, loss_weight=1.0)),
    bbox_roi_extractor=dict(
        type='SingleRoIExtractor',
        roi_layer=dict(type='RoIAlign', out_size=7, sample_num=2, use_torchvision=True),
        out_channels=256, featmap_strides=[4, 8, 16, 32]),
    bbox_head=dict(
        type='SharedFCBBoxHead', num_fcs=2, in_channels=256, fc_out_channels=1024, roi_feat_size=7,
        num_classes=81, target_means=[0., 0., 0., 0.], target_stds=[0.1, 0.1, 0.2, 0.2],
        reg_class_agnostic=False,
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
        loss_bbox=dict(type='SmoothL1Loss', beta=1.0, loss_weight=1.0)),
    mask_roi_extractor=dict(
        type='SingleRoIExtractor',
        roi_layer=dict(type='RoIAlign', out_size=14, sample_num=2, use_torchvision=True),
        out_channels=256, featmap_strides=[4, 8, 16, 32]),
    mask_head=dict(
        type='FCNMaskHead', num_convs=4, in_channels=256, conv_out_channels=256, num_classes=81,
        loss_mask=dict(type='CrossEntropyLoss', use_mask=True, loss_weight=1.0)))
train_cfg = dict(
    rpn=dict(
        assigner=dict(
            type='MaxIoUAssigner', pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3, ignore_iof_thr=-1),
        sampler=dict(type='RandomSampler', num=256, pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=False),
        allowed_border=0, pos_weight=-1, debug=False),
    rpn_proposal=dict(
        nms_across_levels=False, nms_pre=2000, nms_post=2000, max_num=2000, nms_thr=0.7, min_bbox_size=0),
    rcnn=dict(
        assigner=dict(
            type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5, ignore_iof_thr=-1),
        sampler=dict(type='RandomSampler', num=512, pos_fraction=0.25, neg_pos_ub=-1, add_gt_as_proposals=True),
        mask_size=28, pos_weight=-1, debug=False))
test_cfg = dict(
    rpn=dict(nms_across_levels=False, nms_pre=1000, nms_post=1000, max_num=1000, nms_thr=0.7, min_bbox_size=0),
    rcnn=dict(score_thr=0.05, nms=dict(type='nms', iou_thr=0.5), max_per_img=100, mask_thr_binary=0.5))
optimizer = dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=0.0001)
"""
    + V1_DATA
)


def v1_cascade():
    """Return the config of Cascade Mask R-CNN in 1.x, which differs from that of Mask R-CNN in its lists."""
    text = V1_MASK_RCNN.replace("type='MaskRCNN',", "type='CascadeRCNN', num_stages=3,")
    before, head, after = _cut(text, "    bbox_head=dict(", "    mask_roi_extractor")
    head = head.removeprefix("    bbox_head=").rstrip().removesuffix(",").replace("agnostic=False", "agnostic=True")
    stds = ("[0.1, 0.1, 0.2, 0.2]", "[0.05, 0.05, 0.1, 0.1]", "[0.033, 0.033, 0.067, 0.067]")
    text = before + "    bbox_head=[" + ", ".join(head.replace(stds[0], values) for values in stds) + "],\n" + after
    before, stage, after = _cut(text, "    rcnn=dict(\n        assigner", "test_cfg")
    stage = stage.removeprefix("    rcnn=").rstrip().removesuffix(")")
    stages = [stage.replace("0.5, ", f"{iou}, ") for iou in (0.5, 0.6, 0.7)]
    text = f"{before}    rcnn=[{', '.join(stages)}], stage_loss_weights=[1, 0.5, 0.25])\n{after}"
    return text.replace("mask_thr_binary=0.5))", "mask_thr_binary=0.5), keep_all_stages=False)")


def _cut(text, start, end):
    first = text.index(start)
    last = text.index(end, first)
    return text[:first], text[first:last], text[last:]


LEGACY = {
    "retinanet": (V1_RETINANET, {}),
    "mask_rcnn": (V1_MASK_RCNN, {"rpn_head": {"anchor_border": 0}}),
    "cascade_mask_rcnn": (v1_cascade(), {"roi_head": {"match_low_quality": True}}),
}
"""Of each method, its config of 1.x, and how it differs from the case that 2.x keeps for its checkpoints."""


@pytest.mark.parametrize("method", LEGACY)
def test_version_1_says_the_same_as_its_legacy_form_in_version_2(method):
    text, differs = LEGACY[method]
    ours, theirs = loaded(parse(text)), loaded(config_of(f"legacy_1.x/{method}_r50_fpn_1x_coco_v1"))
    expected = revise(theirs, flags={f"model.{key}": value for key, value in leaves(differs).items()})
    assert ours.model == expected.model
    first = ours.model.get("rpn_head", ours.model)
    last = ours.model["roi_head"]["bbox_head"] if "roi_head" in ours.model else ours.model
    assert first["anchor_style"] == first["coder_style"] == last["coder_style"] == "v1"
    assert ours.input == theirs.input
    assert ours.data == theirs.data
    assert ours.optim.clip_norm == 35
    assert ours.optim.batch == 16
    assert ours.sched == theirs.sched.model_copy(update={"warmup_ratio": 1 / 3})


@pytest.mark.parametrize(
    ("pretrained", "name"),
    [("open-mmlab://resnet50_caffe", "r50_detectron"), ("open-mmlab://detectron2/x", "r50_caffe")],
)
def test_weights_that_a_model_started_from_name_its_backbone(pretrained, name):
    text = V1_RETINANET.replace("torchvision://resnet50", pretrained).replace("style='pytorch'", "style='caffe'")
    assert loaded(parse(text)).model["backbone"]["name"] == name


def test_legacy_can_be_said():
    """The first configs of 2.x have the form of 1.x, and what they say is of 2.x."""
    text = V1_RETINANET.replace("num_classes=81", "num_classes=80")
    assert loaded(parse(text), legacy=False).model["anchor_style"] == "exact"
    assert loaded(parse(text), legacy=True).model["coder_style"] == "v1"


def test_before_0_6_losses_were_trained_with_what_the_training_says():
    text = V1_MASK_RCNN.replace(
        "pos_weight=-1, debug=False),", "pos_weight=-1, smoothl1_beta=1 / 9.0, debug=False),", 1
    )
    before, after = text.index("        loss_cls="), text.index("    bbox_roi_extractor")
    text = text[:before] + "        use_sigmoid_cls=True),\n" + text[after:]
    proposals = text.index("    rpn_proposal")
    text = text[:proposals] + text[text.index("    rcnn=dict(\n        assigner") :]
    model = loaded(parse(text)).model
    expected = loaded(parse(V1_MASK_RCNN)).model
    proposals = {"train_nms_pre": 1000, "train_proposals": 1000}
    assert model == expected | {"rpn_head": expected["rpn_head"] | proposals}

    start, end = V1_RETINANET.index("        loss_cls="), V1_RETINANET.index("train_cfg = ")
    text = V1_RETINANET[:start] + "    ))\n" + V1_RETINANET[end:]
    text = text.replace("    allowed_border", "    smoothl1_beta=0.11, gamma=2.0, alpha=0.25, allowed_border")
    assert loaded(parse(text)).model == loaded(parse(V1_RETINANET)).model


def test_before_1_0_datasets_prepared_pictures():
    start = V1_RETINANET.index("train_pipeline = ")
    common = "type='CocoDataset', img_scale=(1333, 800), img_norm_cfg=img_norm_cfg, size_divisor=32, with_mask=False"
    text = (
        V1_RETINANET[:start]
        + f"""
data = dict(imgs_per_gpu=4, train=dict({common}, flip_ratio=0.5), test=dict({common}, flip_ratio=0, test_mode=True))
optimizer_config = dict(grad_clip=None)
lr_config = dict(policy='step', warmup='constant', warmup_iters=500, warmup_ratio=1.0 / 3, step=[8, 11])
total_epochs = 12
device_ids = range(4)
"""
    )
    ours, theirs = loaded(parse(text)), loaded(parse(V1_RETINANET))
    assert (ours.model, ours.input, ours.data) == (theirs.model, theirs.input, theirs.data)
    assert ours.optim.batch == 16
    assert ours.sched.warmup == "constant"


# What is not supported


@pytest.mark.parametrize(("kind", "modulated"), [("DeformRoIPoolPack", False), ("ModulatedDeformRoIPoolPack", True)])
def test_deformable_pooling(kind, modulated):
    config = config_of(ARTICLES["mask_rcnn"])
    layer = {"type": kind, "output_size": 7, "output_channels": 256, "gamma": 0.2}
    config["model"]["roi_head"]["bbox_roi_extractor"]["roi_layer"] = layer
    ours = loaded(config).model["roi_head"]
    assert (ours["roi_extractor"]["name"], ours["roi_extractor"]["modulated"]) == ("deform_roi_pool", modulated)
    assert ours["roi_extractor"]["gamma"] == 0.2
    assert ours["mask_roi_extractor"]["name"] == "roi_align"
    layer["with_more"] = 1
    with pytest.raises(DetcliError, match=r"bbox_roi_extractor\.roi_layer\.with_more"):
        translate(config)


def test_deformable_convolutions():
    config = config_of(ARTICLES["mask_rcnn"])
    plain = loaded(config).model["backbone"]
    # Before mmcv 1.1, the argument had another name.
    dcn = {"type": "DCNv2", "deformable_groups": 2, "fallback_on_stride": False}
    config["model"]["backbone"] |= {"dcn": dcn, "stage_with_dcn": [False, False, True, True]}
    changed = {"dcn": "v2", "dcn_stages": (3, 4), "dcn_groups": 2}
    ours = loaded(config).model["backbone"]
    assert {key: tuple(value) if isinstance(value, list) else value for key, value in ours.items()} == {
        **{key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()},
        **changed,
    }
    config["model"]["backbone"]["stage_with_dcn"] = 3
    with pytest.raises(DetcliError, match="stage_with_dcn to 3, which is not a list of True and False"):
        translate(config)


UNSUPPORTED = [
    ("backbone", {"type": "RegNet", "arch": "regnetx_3.2gf"}, "a backbone of type 'RegNet', which is not supported"),
    ("backbone", {"type": "HRNet", "extra": {}}, "a backbone of type 'HRNet'"),
    ("backbone", {"type": "Res2Net", "depth": 50, "avg_down": False}, "model.backbone.avg_down to False"),
    ("backbone.dcn", {"type": "DCN", "fallback_on_stride": True}, "model.backbone.dcn.fallback_on_stride"),
    ("backbone.plugins", [{"cfg": {"type": "ContextBlock"}}], "model.backbone.plugins"),
    ("backbone.conv_cfg", {"type": "ConvWS"}, "model.backbone.conv_cfg"),
    ("backbone.deep_stem", True, "model.backbone.deep_stem to True"),
    ("backbone.avg_down", True, "model.backbone.avg_down"),
    ("backbone.frozen_stages", 0, "model.backbone.frozen_stages to 0"),
    ("backbone.num_stages", 3, "model.backbone.num_stages to 3"),
    ("backbone.out_indices", [0, 1], "model.backbone.out_indices to [0, 1]"),
    ("neck.num_outs", 10**9, "model.neck.num_outs to 1000000000, which is not a number from 1 to 16"),
    ("backbone.depth", "50", "model.backbone.depth to '50', which is not a whole number"),
    ("backbone.norm_cfg.type", "IN", "model.backbone.norm_cfg.type to 'IN'"),
    ("neck", {"type": "BFP"}, "a neck of type 'BFP'"),
    ("neck.conv_cfg", {"type": "ConvWS"}, "model.neck.conv_cfg"),
    ("neck", [{"type": "FPN"}, {"type": "BFP"}], "as model.neck, where settings should be"),
    ("neck.end_level", 2, "model.neck.end_level"),
    ("neck.upsample_cfg", {"mode": "bicubic"}, "model.neck.upsample_cfg.mode"),
    ("rpn_head.type", "GARPNHead", "model.rpn_head.type"),
    ("rpn_head.anchor_generator.type", "SSDAnchorGenerator", "model.rpn_head.anchor_generator.type"),
    ("rpn_head.anchor_generator.strides", [8, 16, 32, 64, 128], "model.rpn_head.anchor_generator.strides"),
    ("rpn_head.anchor_generator.center_offset", 0.5, "model.rpn_head.anchor_generator.center_offset"),
    ("rpn_head.bbox_coder.target_stds", [0.1, 0.1, 0.2, 0.2], "model.rpn_head.bbox_coder.target_stds"),
    ("rpn_head.bbox_coder.type", "TBLRBBoxCoder", "model.rpn_head.bbox_coder.type"),
    ("rpn_head.loss_cls", {"type": "SeesawLoss"}, "a loss of type 'SeesawLoss'"),
    ("rpn_head.loss_cls.class_weight", [1.0], "model.rpn_head.loss_cls.class_weight"),
    ("roi_head.type", "PointRendRoIHead", "a head of type 'PointRendRoIHead'"),
    ("roi_head.shared_head", {"type": "ResLayer"}, "model.roi_head.shared_head"),
    ("roi_head.bbox_head.type", "ConvFCBBoxHead", "model.roi_head.bbox_head.type"),
    ("roi_head.mask_head.conv_cfg", {"type": "ConvWS"}, "model.roi_head.mask_head.conv_cfg"),
    ("roi_head.bbox_head.reg_class_agnostic", True, "model.roi_head.bbox_head.reg_class_agnostic"),
    ("roi_head.bbox_roi_extractor.type", "SumGenericRoiExtractor", "a RoI extractor of type 'SumGenericRoiExtractor'"),
    (
        "roi_head.bbox_roi_extractor.roi_layer.type",
        "RoIPool",
        "model.roi_head.bbox_roi_extractor.roi_layer.type",
    ),
    ("roi_head.mask_head.type", "CoarseMaskHead", "model.roi_head.mask_head.type"),
    ("roi_head.mask_head.upsample_cfg", {"type": "carafe"}, "model.roi_head.mask_head.upsample_cfg"),
    ("train_cfg.rcnn.sampler.type", "OHEMSampler", "model.train_cfg.rcnn.sampler.type"),
    ("train_cfg.rcnn.assigner.type", "UniformAssigner", "an assigner of type 'UniformAssigner'"),
    ("train_cfg.rcnn.mask_size", 14, "model.train_cfg.rcnn.mask_size"),
    ("train_cfg.rpn_proposal.nms.iou_threshold", 0.8, "model.train_cfg.rpn_proposal"),
    ("train_cfg.rpn_proposal.nms_post", 500, "model.train_cfg.rpn_proposal.nms_post"),
    ("test_cfg.rcnn.nms.type", "soft_nms", "model.test_cfg.rcnn.nms.type"),
    ("test_cfg.rcnn.score_thr", None, "model.test_cfg.rcnn.score_thr to None, which is not a number"),
]


@pytest.mark.parametrize(
    ("key", "value", "named"), UNSUPPORTED, ids=[f"{key}-{index}" for index, (key, *_) in enumerate(UNSUPPORTED)]
)
def test_what_the_model_can_not_be_is_named(key, value, named):
    config = config_of(ARTICLES["mask_rcnn"])
    *path, last = key.split(".")
    at(config["model"], path)[last] = value
    with pytest.raises(DetcliError) as error:
        translate(config, [])
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def test_both_stages_have_widths_and_box_coders_of_their_own():
    config = config_of(ARTICLES["mask_rcnn"])
    at(config["model"], ["rpn_head", "bbox_coder"])["type"] = "LegacyDeltaXYWHBBoxCoder"
    at(config["model"], ["rpn_head"])["feat_channels"] = 64
    at(config["model"], ["roi_head", "mask_head"])["conv_out_channels"] = 128
    model = loaded(config).model
    assert (model["rpn_head"]["coder_style"], model["roi_head"]["bbox_head"]["coder_style"]) == ("v1", "exact")
    assert (model["rpn_head"]["channels"], model["roi_head"]["mask_head"]["channels"]) == (64, 128)


@pytest.mark.parametrize("head", ["PISARetinaHead", "FreeAnchorRetinaHead", "SSDHead", "GFLHead", "YOLOV3Head"])
def test_heads_of_other_papers_are_named(head):
    config = config_of(ARTICLES["retinanet"])
    config["model"]["bbox_head"]["type"] = head
    with pytest.raises(DetcliError, match=f"a head of type '{head}', which is not supported"):
        translate(config)


JUNK = [None, 3, -1, 0, 2.5, "x", "", True, [], {}, [1], [[1, 2]], [None], [{}], {1: 2}, {"type": "FPN"}, {"type": 3}]
JUNK += [float("inf"), 10**30, {"type": None}]


def everything(tree, path=()):
    """Yield the paths of all that is in a config."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from everything(value, (*path, key))


OTHERS = ["fcos/fcos_r50_caffe_fpn_gn-head_1x_coco", "detr/detr_r50_8x2_150e_coco"]


@pytest.mark.parametrize("name", [*OTHERS, *ARTICLES.values()])
def test_nonsense_is_an_error_in_one_line(name):
    config = config_of(name)
    random = Random(0)
    paths = list(everything(config))
    messages = []
    for _ in range(400):
        changed = copy.deepcopy(config)
        path = random.choice(paths)
        at(changed, path[:-1])[path[-1]] = random.choice(JUNK)
        try:
            loaded(changed, notes=messages)
        except DetcliError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert not [message for message in messages if "\n" in message]


@pytest.mark.parametrize("config", [{}, {"model": 3}, {"model": {}}, {"model": {"type": "DETR"}, "data": []}])
def test_configs_without_a_model_are_errors(config):
    with pytest.raises(DetcliError, match="its config has "):
        translate(config)


TRAINING = [
    (("optimizer", "type"), "Adam", "optimizer.type"),
    (("optimizer", "nesterov"), True, "optimizer.nesterov"),
    (
        ("optimizer", "paramwise_cfg"),
        {"custom_keys": {"head": {"lr_mult": 2.0}}},
        "optimizer.paramwise_cfg.custom_keys.head",
    ),
    (("optimizer_config", "type"), "GradientCumulativeOptimizerHook", "optimizer_config.type"),
    (("lr_config", "policy"), "poly", "lr_config.policy"),
    (("lr_config", "warmup"), "exp", "lr_config.warmup"),
    (("lr_config", "by_epoch"), False, "lr_config.by_epoch"),
    (("data", "train", "pipeline", 2, "ratio_range"), [0.8, 1.2], "data.train.pipeline.2.ratio_range"),
    (("data", "train", "pipeline", 2, "type"), "InstaBoost", "data.train.pipeline.2.type to 'InstaBoost'"),
    (("data", "test", "pipeline", 1, "flip"), True, "data.test.pipeline.1.flip"),
    (("data", "test", "pipeline", 1, "img_scale"), [[1333, 800], [1333, 600]], "2 sizes of pictures"),
    (("custom_hooks",), [{"type": "EMAHook"}], "custom_hooks.0.type"),
]


@pytest.mark.parametrize(("path", "value", "named"), TRAINING, ids=lambda item: str(item)[:40])
def test_what_only_training_needs_can_be_left_out_with_a_note(path, value, named):
    config = config_of(ARTICLES["retinanet"])
    model = translate(config)["model"]
    at(config, path[:-1])[path[-1]] = value
    with pytest.raises(DetcliError) as error:
        translate(config)
    assert named in str(error.value)
    notes = []
    assert translate(config, notes)["model"] == model
    assert notes == [f"for {'evaluation' if 'test' in path else 'training'}: {error.value}"]


def test_a_dataset_that_mixes_pictures_is_named():
    config = config_of(ARTICLES["retinanet"])
    config["data"]["train"] = {"type": "MultiImageMixDataset", "dataset": config["data"]["train"]}
    notes = []
    assert translate(config, notes)["data"]["resize"] == [(1333, 800)]
    message = "its config draws training pictures through MultiImageMixDataset: not supported."
    assert notes == [f"for training: {message}"]
    with pytest.raises(DetcliError, match=message):
        translate(config)


def test_pixels_must_be_the_same_in_training_and_test():
    config = config_of(ARTICLES["retinanet"])
    next(step for step in config["data"]["train"]["pipeline"] if step["type"] == "Normalize")["to_rgb"] = False
    with pytest.raises(DetcliError, match="otherwise in training than in test"):
        translate(config, [])
