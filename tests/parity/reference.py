"""Reference cases: what another code base computed for a model, and the checkpoint that it computed it with.

A case holds no weights: they follow from names and shapes by `rule.py`, and `write_checkpoint` puts them into a file as
the case's code base writes it.
"""

import gzip
import json
import pickle
from pathlib import Path

import numpy as np
import rule
import torch
from pycocotools import mask as mask_api

from detcli.structures import Batch, Target

CASES = Path(__file__).parent / "cases"
"""The cases that are committed, a folder a code base."""

CONFIG_KEYS = (
    "model",
    "dataset_type",
    "img_norm_cfg",
    "optimizer",
    "optimizer_config",
    "lr_config",
    "runner",
    "fp16",
    "custom_hooks",
    "evaluation",
    "load_from",
    "auto_scale_lr",
)
"""The keys of an MMDetection case that are its config's, `data` aside."""

OVERRIDES = {
    "model.train_cfg.rpn.sampler.num": "rpn_head.sampler.num",
    "model.train_cfg.rcnn.sampler.num": "roi_head.sampler.num",
    **{f"model.train_cfg.rcnn.{stage}.sampler.num": "roi_head.sampler.num" for stage in range(3)},
    "model.train_cfg.rpn_proposal.max_per_img": "rpn_head.train_proposals",
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": "rpn_head.sampler.num",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": "roi_head.sampler.num",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": "rpn_head.train_proposals",
}
"""What cases change for training, so that nothing is drawn at random, and our arguments."""


def names(folder=CASES):
    """Return the names of the cases in `folder`: their paths without ``.json.gz``, as ``mmdet/atss/...``."""
    found = [path for origin in ("mmdet", "detectron2") for path in folder.glob(f"{origin}/*/*.json.gz")]
    return sorted(path.relative_to(folder).as_posix().removesuffix(".json.gz") for path in found)


def load(name, folder=CASES):
    """Return the case `name`; `alias` in it is the case whose numbers it shares, or None."""
    case = json.loads(gzip.decompress((folder / f"{name}.json.gz").read_bytes()))
    case["name"], case["origin"] = name, name.partition("/")[0]
    other = case.get("same_model_as") or case.get("numbers_same_as", "").removeprefix("configs/").removesuffix(".yaml")
    case["alias"] = f"{case['origin']}/{other}" if other else None
    return case


def write_checkpoint(case, folder):
    """Write the checkpoint of `case` into `folder` as its code base does.

    Return the source and the path, and the id of its row where the file doesn't say what model it holds.
    """
    if case["origin"] == "detectron2":
        path = folder / "model_final.pkl"
        path.write_bytes(pickle.dumps({"model": _detectron2_tensors(case), "__author__": "Detectron2 Model Zoo"}))
        return "detectron2", path, case["config"].removeprefix("configs/")
    path = folder / "latest.pth"
    constants = case["constants"]
    state = {
        row[0]: torch.tensor(constants[row[0]]) if row[0] in constants else torch.from_numpy(rule.fill(*row))
        for row in case["state_dict"]
    }
    meta = {
        "mmdet_version": "2.28.2",
        "config": config_text(case),
        "exp_name": "reference_case.py",  # no row's name: only the config says what the model is
        "CLASSES": tuple(f"thing {number}" for number in range(class_count(case))),
        "epoch": case["runner"].get("max_epochs"),
    }
    optimizer = {"state": {}, "param_groups": [{"lr": case["optimizer"]["lr"], "params": [0, 1]}]}
    torch.save({"meta": meta, "state_dict": state, "optimizer": optimizer}, path)
    return "mmdet", path, None


def config_text(case):
    """Return the config of an MMDetection case as the Python text in the meta of its checkpoints."""
    data = {"samples_per_gpu": case["samples_per_gpu"], **case["data"]}
    config = {key: case[key] for key in CONFIG_KEYS if key in case} | {"data": data}
    return "".join(f"{key} = {_as_python(value)}\n" for key, value in config.items())


def class_count(case):
    """Return the number of classes of the objects of `case`; RPNs have those of COCO."""
    if case["origin"] == "mmdet":
        return case["num_classes"] or 80
    model = case["cfg"]["MODEL"]
    part = model["RETINANET"] if model["META_ARCHITECTURE"] == "RetinaNet" else model["ROI_HEADS"]
    return part["NUM_CLASSES"]


def training_settings(case, model):
    """Return the settings (``"model.a=b"``) that `case` trains with, in the terms of our config of `model`."""
    if case["origin"] == "mmdet":
        changes = dict(change.split("=") for change in case["train_overrides"])
    else:
        changes = case["train"]["overrides"]
    settings = []
    for key, value in changes.items():
        if model.get(OVERRIDES[key].partition(".")[0]) is not None:
            settings.append(f"model.{OVERRIDES[key]}={value}")
    return settings


def batch(case, normalizer):
    """Return the picture of `case` as the network sees it, with its targets and proposals.

    Detectron2's pictures are pixels, which `normalizer` makes the network's input of; MMDetection's are that already.
    """
    height, width, seed = (case["input"][key] for key in ("height", "width", "seed"))
    boxes, labels, masks = map(torch.from_numpy, rule.make_targets(height, width, class_count(case)))
    sizes = torch.tensor([[height, width]])
    if case["origin"] == "mmdet":
        proposals = torch.from_numpy(rule.make_proposals(height, width))[:, :4]
        target = Target(boxes, labels, masks, proposals=proposals)
        if stuff := case["model"].get("roi_head", {}).get("semantic_head"):
            coarse = torch.from_numpy(rule.make_semantic(height, width, stuff["num_classes"]))  # every eighth pixel
            target.semantic = coarse.repeat_interleave(8, -2).repeat_interleave(8, -1).view(height, width)
        return Batch(torch.from_numpy(rule.make_input(height, width, seed)), sizes, [target])
    proposals, _ = rule.make_proposals_detectron2(height, width)
    target = Target(boxes, labels, masks, proposals=torch.from_numpy(proposals))
    if "gt_keypoints" in case["train"]:
        target.keypoints = torch.tensor(case["train"]["gt_keypoints"])
    if "sem_seg" in case["inference"]:
        stuff = case["cfg"]["MODEL"]["SEM_SEG_HEAD"]["NUM_CLASSES"] - 1
        target.semantic = torch.from_numpy(rule.make_semantic_detectron2(height, width, class_count(case), stuff))
    bgr = torch.from_numpy(rule.make_image_detectron2(height, width, seed))
    return normalizer(Batch(bgr.flip(0)[None], sizes, [target]))


def features(case):
    """Return the statistics of the maps of backbone and neck, by part; those of Detectron2 are the last part's."""
    if case["origin"] == "mmdet":
        return case["features"]
    levels = case["inference"]["features"]
    part = "neck" if any(name.startswith("p") for name in levels) else "backbone"
    return {part: [{"path": name, **level} for name, level in levels.items()]}


def detections(case):
    """Return count, boxes, scores and labels, best first, and where there are masks their areas and size."""
    if case["origin"] == "mmdet":
        found = dict(case["detections"])
        found["labels"] = found["labels"] or [0] * len(found["scores"])
        rle = found.get("mask_rle")
    elif "proposals" in case["inference"]:
        found = dict(case["inference"]["proposals"])
        found["scores"] = torch.tensor(found["objectness_logits"]).sigmoid().tolist()
        found["labels"] = [0] * len(found["scores"])
        rle = None
    else:
        found = dict(case["inference"]["detections"])
        found["labels"] = found["classes"]
        rle = found.get("mask_rle_first5")
    return found | {"mask_size": tuple(rle[0]["size"]) if rle else None}


def segments(case):
    """Return label and pixels of each panoptic segment, in order, and of what has none; None for other models."""
    if "panoptic" not in case["inference"]:
        return None
    found = case["inference"]["panoptic"]
    things = class_count(case)
    labels = [part["category_id"] + (0 if part["isthing"] else things - 1) for part in found["segments"]]
    return labels, [part["area_in_map"] for part in found["segments"]], found["void_area"]


def losses(case):
    """Return the losses by our names."""
    if case["origin"] == "detectron2":
        found = case["train"].get("losses_bitmask", case["train"]["losses"])
        ours = {"loss_box_reg": "loss_bbox", "loss_rpn_loc": "loss_rpn_bbox"}
        if "loss_cls_stage0" in found:
            ours["loss_mask"] = "s0.loss_mask"
        for stage in range(3):
            ours |= {
                f"loss_cls_stage{stage}": f"s{stage}.loss_cls",
                f"loss_box_reg_stage{stage}": f"s{stage}.loss_bbox",
            }
        return {ours.get(name, name): value for name, value in found.items()}
    return {
        name: value["sum"] if isinstance(value, dict) else value  # a dict where each level has its own
        for name, value in case["losses"].items()
        if "loss" in name
    }


def settings(case):
    """Return how `case` trains and prepares pictures, in the terms of our run config: dotted key -> value."""
    return _mmdet_settings(case) if case["origin"] == "mmdet" else _detectron2_settings(case["cfg"])


def _mmdet_settings(case):
    train = case["data"]["train"]
    times = train.get("times", 1)
    pipeline = train.get("dataset", train)["pipeline"]
    policies = next((step["policies"] for step in pipeline if step["type"] == "AutoAugment"), None)
    resize = next(step for step in (policies[0] if policies else pipeline) if step["type"] == "Resize")
    several = isinstance(resize["img_scale"][0], list)
    scales = resize["img_scale"] if several else [resize["img_scale"]]
    test = next(step for step in case["data"]["test"]["pipeline"] if step["type"] == "MultiScaleFlipAug")
    optimizer = case["optimizer"]
    per_parameter = optimizer.get("paramwise_cfg", {})
    clip = (case.get("optimizer_config") or {}).get("grad_clip") or {}
    lr, norm = case["lr_config"], case["img_norm_cfg"]
    return {
        "sched.unit": "epoch",
        "sched.length": case["runner"]["max_epochs"] * times,
        "sched.drops": [step * times for step in lr["step"]],
        **(
            {f"sched.{key}": lr[key] for key in ("warmup", "warmup_iters", "warmup_ratio")}
            if lr.get("warmup")
            else {"sched.warmup": "none"}
        ),
        "optim.name": optimizer["type"].lower(),
        "optim.lr": optimizer["lr"],
        **({"optim.momentum": optimizer["momentum"]} if "momentum" in optimizer else {}),
        "optim.weight_decay": optimizer["weight_decay"],
        "optim.batch": case["auto_scale_lr"]["base_batch_size"],
        "optim.clip_norm": clip.get("max_norm"),
        "optim.bias_lr": per_parameter.get("bias_lr_mult", 1.0),
        "optim.bias_decay": per_parameter.get("bias_decay_mult"),
        "optim.backbone_lr": per_parameter.get("custom_keys", {}).get("backbone", {}).get("lr_mult", 1.0),
        "train.precision": "fp16" if "fp16" in case else "fp32",
        "data.resize": [tuple(sorted(scale, reverse=True)) for scale in scales],
        "data.resize_mode": resize.get("multiscale_mode", "range") if several else "value",
        "data.keep_ratio": resize["keep_ratio"],
        "data.min_side": next((step["min_gt_bbox_wh"][0] for step in pipeline if "min_gt_bbox_wh" in step), 0.0),
        "data.before_resize": [_window(*policies[1][:2])] if policies else _of_whole_pictures(pipeline, norm),
        "data.transforms": [{"name": "photometric"} for step in pipeline if step["type"] == "PhotoMetricDistortion"],
        "data.test_resize": tuple(test["img_scale"]),
        "input.mean": tuple(norm["mean"]),
        "input.std": tuple(norm["std"]),
        "input.channels": "rgb" if norm["to_rgb"] else "bgr",
        "input.pad_divisor": next((step["size_divisor"] for step in pipeline if step["type"] == "Pad"), 1),
    }


def _window(resize, crop):
    """Return the transform that cuts a window of any size out of a picture that was resized."""
    longest, shortest = zip(*(sorted(scale, reverse=True) for scale in resize["img_scale"]), strict=True)
    sides = dict(zip(("least", "most"), crop["crop_size"], strict=True))
    return {"name": "random_size_crop", "probability": 0.5, "longest": longest[0], "shortest": shortest, **sides}


def _of_whole_pictures(pipeline, norm):
    """Return the transforms that come before pictures are resized; they fill with the pixel mean."""
    found = []
    for step in pipeline:
        if step["type"] == "Expand":
            assert step["mean"] == norm["mean"]
            found.append({"name": "expand", "ratio": tuple(step["ratio_range"]), "probability": 0.5})
        elif step["type"] == "MinIoURandomCrop":
            ious = tuple(step["min_ious"])
            found.append({"name": "min_iou_crop", "ious": ious, "least": step["min_crop_size"]})
    return found


def has_polygons(case):
    """Return whether the mask loss of `case` is that of polygons, which Detectron2 draws anew for each box."""
    train = case.get("train", {})
    return "loss_mask" in train.get("losses", ()) and "losses_bitmask" not in train


def polygon_crops(case):
    """Return what draws the polygons of `case`, 36 points of each ellipse, as Detectron2 does: for `crop_masks`."""
    angles = 2 * np.pi * np.arange(36) / 36
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    objects, _, _ = rule.make_targets(case["input"]["height"], case["input"]["width"], class_count(case))
    start, end = np.split(objects.astype(np.float64), 2, axis=1)
    polygons = circle * ((end - start) / 2)[:, None] + ((start + end) / 2)[:, None]

    def crop(masks, boxes, index, size):
        goals = np.zeros((len(boxes), size, size), np.float32)
        for goal, box, which in zip(goals, boxes.numpy(), index.tolist(), strict=True):
            sides = np.maximum(box[2:] - box[:2], 0.1).astype(np.float64)
            points = (polygons[which] - box[:2]) * (size / sides)
            goal[:] = mask_api.decode(mask_api.merge(mask_api.frPyObjects([points.flatten().tolist()], size, size)))
        return torch.from_numpy(goals)

    return crop


def _detectron2_settings(cfg):
    model, solver, sizes = cfg["MODEL"], cfg["SOLVER"], cfg["INPUT"]
    return {
        "sched.unit": "iter",
        "sched.length": solver["MAX_ITER"],
        "sched.drops": solver["STEPS"],
        "sched.gamma": solver["GAMMA"],
        "sched.warmup": solver["WARMUP_METHOD"],
        "sched.warmup_iters": solver["WARMUP_ITERS"],
        "sched.warmup_ratio": solver["WARMUP_FACTOR"],
        "optim.lr": solver["BASE_LR"],
        "optim.momentum": solver["MOMENTUM"],
        "optim.weight_decay": solver["WEIGHT_DECAY"],
        "optim.batch": solver["IMS_PER_BATCH"],
        "optim.clip_norm": solver["CLIP_GRADIENTS"]["CLIP_VALUE"] if solver["CLIP_GRADIENTS"]["ENABLED"] else None,
        "optim.bias_lr": solver["BIAS_LR_FACTOR"],
        "optim.bias_decay": solver["WEIGHT_DECAY_BIAS"],
        "train.precision": "fp16" if solver["AMP"]["ENABLED"] else "fp32",
        "data.resize": [(sizes["MAX_SIZE_TRAIN"], side) for side in sizes["MIN_SIZE_TRAIN"]],
        "data.resize_mode": {"choice": "value"}.get(sizes["MIN_SIZE_TRAIN_SAMPLING"], sizes["MIN_SIZE_TRAIN_SAMPLING"]),
        "data.resize_with": "pillow",
        "data.test_resize": (sizes["MAX_SIZE_TEST"], sizes["MIN_SIZE_TEST"]),
        "input.mean": tuple(model["PIXEL_MEAN"]),
        "input.std": tuple(model["PIXEL_STD"]),
        "input.channels": sizes["FORMAT"].lower(),
        "input.pad_divisor": 32 if "fpn" in model["BACKBONE"]["NAME"] else 1,
    }


def _detectron2_tensors(case):
    tensors = {row[0]: rule.fill_detectron2(*row[:3], row[4]) for row in case["state_dict"]}
    for name, shape, dtype, values in case["nonpersistent_buffers"]:
        tensors[name] = np.array(values, dtype).reshape(shape)
    return tensors


def _as_python(value):
    """Return `value` as MMDetection prints configs: dicts as calls of dict."""
    if isinstance(value, dict) and all(key.isidentifier() for key in value):
        return f"dict({', '.join(f'{key}={_as_python(item)}' for key, item in value.items())})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {_as_python(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_as_python, value))}]"
    return repr(value)
