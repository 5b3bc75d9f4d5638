"""The parts that come with the core: what two or more papers share, schedules and the built-in data."""

from __future__ import annotations

from typing import Any

from detcli.plugin import Part, Plugin
from detcli.published import CAFFE_INPUT, OPENMMLAB

DETECTRON_INPUT = {"input": {"mean": [102.9801, 115.9465, 122.7717], "std": [1.0, 1.0, 1.0], "channels": "bgr"}}
TORCHVISION = "https://download.pytorch.org/models/"


def _resnet(depth: int, weights: str | None, summary: str, config: Any = (), **args: Any) -> Part:
    return Part("detcli.nn.resnet:resnet", {"depth": depth, **args}, dict(config), weights, summary)


def _caffe(depth: int, weights: str, origin: str, config: Any) -> Part:
    summary = f"ResNet-{depth} of {origin}: stride in the 1x1 convolution, BGR input"
    return _resnet(depth, OPENMMLAB + weights, summary, config, style="caffe", norm_trained=False)


def _resnext(groups: int, width: int, weights: str, config: Any = (), **args: Any) -> Part:
    summary = f"ResNeXt-101 {groups}x{width}d"
    return _resnet(101, OPENMMLAB + weights, summary, config, groups=groups, width_per_group=width, **args)


def _detectron_resnext(groups: int, width: int) -> Part:
    summary = f"ResNeXt-101 {groups}x{width}d of Detectron: frozen norms, BGR input"
    args = {"groups": groups, "width_per_group": width, "norm_trained": False}
    return _resnet(101, None, summary, DETECTRON_INPUT, **args)


def _epochs(length: int, drops: list[int]) -> dict[str, Any]:
    return {"sched": {"unit": "epoch", "length": length, "drops": drops}}


def _iterations(length: int, drops: list[int]) -> dict[str, Any]:
    return {"sched": {"unit": "iter", "length": length, "drops": drops}}


plugin = Plugin(
    name="core",
    title="What the methods share",
    backbones={
        "resnet": Part("detcli.nn.resnet:resnet", summary="a ResNet of any depth, width and style"),
        "r18": _resnet(18, TORCHVISION + "resnet18-f37072fd.pth", "ResNet-18"),
        "r34": _resnet(34, TORCHVISION + "resnet34-b627a593.pth", "ResNet-34"),
        "r50": _resnet(50, TORCHVISION + "resnet50-0676ba61.pth", "ResNet-50"),
        "r101": _resnet(101, TORCHVISION + "resnet101-63fe2227.pth", "ResNet-101"),
        "r152": _resnet(152, TORCHVISION + "resnet152-394f9c45.pth", "ResNet-152"),
        "r50_caffe": _caffe(50, "resnet50_msra-5891d200.pth", "Detectron2", CAFFE_INPUT),
        "r101_caffe": _caffe(101, "resnet101_msra-6cc46731.pth", "Detectron2", CAFFE_INPUT),
        "r50_detectron": _caffe(50, "resnet50_caffe-788b5fa3.pth", "Detectron", DETECTRON_INPUT),
        "r101_detectron": _caffe(101, "resnet101_caffe-3ad79236.pth", "Detectron", DETECTRON_INPUT),
        "x101_32x4d": _resnext(32, 4, "resnext101_32x4d-a5af3160.pth"),
        "x101_64x4d": _resnext(64, 4, "resnext101_64x4d-ee2c6f71.pth"),
        "x101_32x8d": _resnext(
            32,
            8,
            "resnext101_32x8d-1516f1aa.pth",
            {"input": {"mean": [103.53, 116.28, 123.675], "std": [57.375, 57.12, 58.395], "channels": "bgr"}},
            norm_trained=False,
        ),
        "x101_32x8d_detectron": _detectron_resnext(32, 8),
        "x101_64x4d_detectron": _detectron_resnext(64, 4),
    },
    necks={"fpn": Part("detcli.nn.fpn:fpn", summary="feature pyramid, with every kind of extra level")},
    rpn_heads={"rpn": Part("detcli.nn.rpn_head:rpn_head", summary="objectness and a box for every anchor")},
    roi_heads={"standard": Part("detcli.nn.two_stage:standard_roi_head", summary="boxes of RoIs, masks, keypoints")},
    bbox_heads={"conv_fc": Part("detcli.nn.two_stage:conv_fc", summary="convolutions and fully connected layers")},
    mask_heads={"fcn": Part("detcli.nn.two_stage:fcn_masks", summary="convolutions and a deconvolution")},
    keypoint_heads={"fcn": Part("detcli.nn.two_stage:fcn_keypoints", summary="convolutions and a deconvolution")},
    roi_extractors={
        "roi_align": Part("detcli.nn.roi_extractor:single_level", summary="each RoI from the level that fits its size")
    },
    assigners={
        "max_iou": Part("detcli.nn.assigners:max_iou", summary="by the largest overlap, with thresholds"),
        "atss": Part("detcli.nn.assigners:atss", summary="by adaptive overlap among the nearest anchors"),
        "hungarian": Part("detcli.nn.matching:hungarian", summary="one prediction for each object, at the least cost"),
    },
    samplers={"random": Part("detcli.nn.samplers:random", summary="a random share of positives and negatives")},
    losses={
        "focal": Part("detcli.nn.losses:focal", summary="sigmoid focal loss"),
        "cross_entropy": Part("detcli.nn.losses:cross_entropy", summary="softmax or sigmoid cross-entropy"),
        "smooth_l1": Part("detcli.nn.losses:smooth_l1", summary="L1 that is quadratic near zero"),
        "l1": Part("detcli.nn.losses:l1", summary="mean absolute difference of box deltas"),
        "iou": Part("detcli.nn.losses:iou", summary="-log IoU, or 1 - IoU"),
        "giou": Part("detcli.nn.losses:giou", summary="1 - generalised IoU"),
        "bounded_iou": Part(
            "detcli.nn.losses:bounded_iou", summary="smooth L1 of 1 - the best IoU, coordinate by coordinate"
        ),
    },
    evaluators={
        "faster": Part("detcli.eval.coco:coco", summary="COCO's figures, by faster-coco-eval"),
        "pycocotools": Part(
            "detcli.eval.coco:coco", {"backend": "pycocotools"}, summary="COCO's figures, by pycocotools; the same"
        ),
        "panoptic": Part("detcli.eval.panoptic:panoptic", summary="panoptic quality of things and stuff"),
    },
    transforms={
        "expand": Part("detcli.data.transforms:expand", summary="the picture anywhere on a larger canvas, as in SSD"),
        "min_iou_crop": Part("detcli.data.transforms:min_iou_crop", summary="a window that objects overlap, as in SSD"),
        "photometric": Part("detcli.data.transforms:photometric", summary="changes of colour, as in SSD"),
        "random_size_crop": Part("detcli.data.transforms:random_size_crop", summary="a window of any size, as in DETR"),
    },
    datasets={
        "shapes": Part("detcli.data.shapes:shapes", summary="drawn scenes of coloured shapes, nothing downloaded"),
        "yolo": Part("detcli.data.yolo:yolo", summary="a YOLO folder: data.yaml, and a text file a picture"),
    },
    schedules={
        "1x": _epochs(12, [8, 11]),
        "2x": _epochs(24, [16, 22]),
        "3x": _epochs(36, [27, 33]),
        "36e": _epochs(36, [28, 34]),
        "s1x": _epochs(17, [11, 15]),
        "20e": _epochs(20, [16, 19]),
        "90k": _iterations(90_000, [60_000, 80_000]),
        "130k": _iterations(130_000, [100_000, 120_000]),
        "180k": _iterations(180_000, [120_000, 160_000]),
        "260k": _iterations(260_000, [200_000, 240_000]),
        "270k": _iterations(270_000, [210_000, 250_000]),
        "360k": _iterations(360_000, [240_000, 320_000]),
        "demo": {
            "weights": "none",
            "sched": {
                "unit": "iter",
                "length": 900,
                "policy": "cosine",
                "warmup": "linear",
                "warmup_iters": 50,
            },
            "optim": {"name": "adamw", "lr": 5e-4, "batch": 2, "weight_decay": 0.05, "clip_norm": 10.0},
            "train": {"batch": 2, "ema": 0.99, "eval_every": 0},
            "data": {"resize": [[160, 128]], "test_resize": [160, 128]},
            "eval": {"batch": 8},
            # Narrower and shallower heads, and fewer RoIs, of the models that have them.
            "model": {
                "neck": {"out_channels": 64},
                "stacked_convs": 2,
                "rpn_head": {"train_proposals": 300},
                "roi_head": {"bbox_head": {"channels": 384}, "sampler": {"num": 32}},
            },
        },
    },
)
