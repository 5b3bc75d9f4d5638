"""RPN, Fast, Faster and Mask R-CNN against MMDetection and Detectron2."""

import re

import pytest
import torch

from detcli.config import resolve
from detcli.registry import build
from detcli.structures import Batch, Target

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
    "faster_rcnn/faster_rcnn_r50_fpn_fp16_1x_coco": ("faster_rcnn", None, None),
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
DETECTRON2_NAMES = [
    (r"^backbone\.bottom_up\.stem\.conv1\.norm\.", "backbone.bn1."),
    (r"^backbone\.bottom_up\.stem\.", "backbone."),
    (r"^backbone\.bottom_up\.res(\d)\.", lambda match: f"backbone.layer{int(match[1]) - 1}."),
    (r"\.conv(\d)\.norm\.", r".bn\1."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
    (r"^backbone\.fpn_lateral(\d)\.", lambda match: f"neck.lateral_convs.{int(match[1]) - 2}.conv."),
    (r"^backbone\.fpn_output(\d)\.", lambda match: f"neck.fpn_convs.{int(match[1]) - 2}.conv."),
    (r"^proposal_generator\.rpn_head\.conv\.", "rpn_head.rpn_conv."),
    (r"^proposal_generator\.rpn_head\.objectness_logits\.", "rpn_head.rpn_cls."),
    (r"^proposal_generator\.rpn_head\.anchor_deltas\.", "rpn_head.rpn_reg."),
    (r"^roi_heads\.box_head\.fc(\d)\.", lambda match: f"roi_head.bbox_head.shared_fcs.{int(match[1]) - 1}."),
    (r"^roi_heads\.box_predictor\.cls_score\.", "roi_head.bbox_head.fc_cls."),
    (r"^roi_heads\.box_predictor\.bbox_pred\.", "roi_head.bbox_head.fc_reg."),
    (
        r"^roi_heads\.mask_head\.mask_fcn(\d)\.",
        lambda match: f"roi_head.mask_head.convs.{int(match[1]) - 1}.conv.",
    ),
    (r"^roi_heads\.mask_head\.deconv\.", "roi_head.mask_head.upsample."),
    (r"^roi_heads\.mask_head\.predictor\.", "roi_head.mask_head.conv_logits."),
]
DETECTRON2_LOSSES = {"loss_box_reg": "loss_bbox", "loss_rpn_loc": "loss_rpn_bbox"}


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
    train = case["data"]["train"]
    times = train.get("times", 1)
    resize = next(step for step in train.get("dataset", train)["pipeline"] if step["type"] == "Resize")
    scales = resize["img_scale"] if "multiscale_mode" in resize else [resize["img_scale"]]
    norm = case["img_norm_cfg"]
    assert config.sched.length == case["runner"]["max_epochs"] * times
    assert config.sched.drops == [step * times for step in case["lr_config"]["step"]]
    assert config.sched.warmup_iters == case["lr_config"]["warmup_iters"]
    assert config.optim.lr == case["optimizer"]["lr"]
    assert config.optim.batch == case["auto_scale_lr"]["base_batch_size"]
    assert config.data.resize == [tuple(scale) for scale in scales]
    assert config.data.resize_mode == resize.get("multiscale_mode", "value")
    assert config.input.mean == tuple(norm["mean"])
    assert config.input.std == tuple(norm["std"])
    assert config.input.channels == ("rgb" if norm["to_rgb"] else "bgr")


@pytest.mark.parametrize("name", DETECTRON2_CASES)
def test_detectron2(parity, name):
    case = parity.load(f"detectron2/{name}")
    recipe, settings = DETECTRON2_CASES[name]
    model = build("models", resolve(recipe, settings=[*DETECTRON2, *settings]).config.model, num_classes=80)
    load(parity, case, model)
    assert frozen(model) == {our_name(name) for name in case["frozen_params"]} | norms(model)
    batch = detectron2_batch(parity, case)
    wrong = features(parity, case, model, batch)

    found = parity.predict(model, batch)
    if recipe == "rpn":
        reference = case["inference"]["proposals"]
        scores = torch.tensor(reference["objectness_logits"]).sigmoid().tolist()
        reference |= {"scores": scores, "labels": [0] * len(scores)}
    else:
        reference = case["inference"]["detections"]
        reference |= {"labels": reference["classes"], "mask_rle": reference.get("mask_rle_first5")}
    wrong += parity.detections(reference, found)

    train = case["train"]
    expected = train.get("losses_bitmask", train["losses"])
    expected = {DETECTRON2_LOSSES.get(key, key): value for key, value in expected.items()}
    wrong += parity.compare("loss", parity.backward(model, batch), expected, 1e-4)
    norms_of = {
        key: float(p.grad.double().norm()) for key, p in model.named_parameters() if p.grad is not None
    }
    total = sum(norm**2 for norm in norms_of.values()) ** 0.5
    # The recorded gradients are those of polygon masks, which differ from bitmaps in the mask loss alone.
    wrong += parity.compare("gradient", {"norm": total}, {"norm": train["grad_norm"]}, 1e-3)
    assert wrong == []


def our_name(name):
    for pattern, replacement in DETECTRON2_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def load(parity, case, model):
    """Fill `model` by Detectron2's rule; it has nothing else but counters of batches."""
    values = {
        our_name(row[0]): torch.from_numpy(parity.rule.fill_detectron2(*row[:3], row[4]))
        for row in case["state_dict"]
    }
    missing, unexpected = model.load_state_dict(values, strict=False)
    assert [key for key in missing if not key.endswith("num_batches_tracked")] == []
    assert unexpected == []


def frozen(model):
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def norms(model):
    """Return the parameters of normalisation layers, which are buffers in Detectron2."""
    return {name for name, _ in model.named_parameters() if ".bn" in name or ".downsample.1." in name}


def detectron2_batch(parity, case):
    height, width = case["input"]["height"], case["input"]["width"]
    pixels = torch.from_numpy(parity.rule.make_image_detectron2(height, width, case["input"]["seed"]))
    mean, std = (
        torch.tensor(case["cfg"]["MODEL"][key])[:, None, None] for key in ("PIXEL_MEAN", "PIXEL_STD")
    )
    objects = map(torch.from_numpy, parity.rule.make_targets_detectron2(height, width, 80))
    proposals, _ = parity.rule.make_proposals_detectron2(height, width)
    target = Target(*objects, proposals=torch.from_numpy(proposals))
    return Batch(((pixels - mean) / std)[None], torch.tensor([[height, width]]), [target])


@torch.no_grad()
def features(parity, case, model, batch):
    model.eval()
    wrong = []
    for level, (key, reference) in zip(
        model.neck(model.backbone(batch.images)), case["inference"]["features"].items(), strict=True
    ):
        error = parity.feature_error(level, reference)
        if error > 1e-4:
            wrong.append(f"features {key}: off by {error:.2g} of their deviation")
    return wrong
