"""What MMDetection's configs say beside the model, in our terms: pixels, data, optimiser and schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detcli.convert.mmdet_group import Group
from detcli.errors import DetcliError


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset out of its wrappers, and its pipeline.

    It is repeated `times` in an epoch; pictures with classes rarer than `repeat_threshold` are, too; `wrappers` are
    other ones that change what is drawn.
    """

    group: Group
    times: int
    repeat_threshold: float
    wrappers: tuple[str, ...]
    pipeline: list[Group]

    def find(self, *kinds: str) -> Group | None:
        """Return the only step of the pipeline of these kinds; raises `DetcliError` when there are more."""
        found = [step for step in self.pipeline if step.kind in kinds]
        if len(found) > 1:
            raise found[1].unsupported("type")
        return found[0] if found else None


def dataset(config: Mapping[str, Any], purpose: str) -> Dataset:
    """Return the dataset of "train" or "test", out of its wrappers."""
    loader = config.get(f"{purpose}_dataloader")
    if loader is None and "train_dataloader" in config:
        loader = config.get("val_dataloader") if purpose == "test" else config["train_dataloader"]
    if loader is not None:
        group, key = Group(loader, f"{purpose}_dataloader"), "dataset"
    else:
        group, key = Group(config.get("data", {}), "data"), purpose
        if group.values.get(key) is None and purpose == "test":
            key = "val"
    times, repeat_threshold, wrappers = 1, 0.0, []
    value = group.values.get(key)
    while isinstance(value, Mapping | list | tuple):
        if not isinstance(value, Mapping):
            value = value[0] if value else None
            continue
        group, key = Group(value, group.place(key)), "dataset"
        if group.values.get("type") == "RepeatDataset":
            times *= group.integer("times")
        elif group.values.get("type") == "ClassBalancedDataset" and not repeat_threshold:
            repeat_threshold = group.number("oversample_thr")
        elif "dataset" in group.values:
            wrappers.append(group.kind)
        elif "datasets" in group.values:
            key = "datasets"
        else:
            break
        value = group.values.get(key)
    else:
        raise DetcliError(f"its config has no {group.place(key)}.")
    pipeline = group.groups("pipeline") if "pipeline" in group.values else []
    for step in list(pipeline):
        if step.kind == "MultiScaleFlipAug":
            pipeline += step.groups("transforms")
    return Dataset(group, times, repeat_threshold, tuple(wrappers), pipeline)


def input(whole: Group, train: Dataset, test: Dataset) -> dict[str, Any]:
    """Return how pixels are normalised and padded, which must be the same in training."""
    model = whole.group("model")
    if model.has("data_preprocessor"):
        pixels = Group(model.values["data_preprocessor"], "model.data_preprocessor")
        if pixels.kind != "DetDataPreprocessor":
            raise pixels.unsupported("type")
        pixels.expect("pad_value", 0)
        pixels.expect("batch_augments", None)
        pixels.expect("rgb_to_bgr", False)
        pixels.ignore("pad_mask", "mask_pad_value", "pad_seg", "seg_pad_value", "boxtype2tensor", "non_blocking")
        found = _pixels(pixels, pixels.flag("bgr_to_rgb", False), pixels.integer("pad_size_divisor", 1))
        pixels.check()
        return found
    wanted, again = (_dataset_input(dataset) for dataset in (test, train))
    if wanted != again:
        raise DetcliError("its config prepares pixels otherwise in training than in test: not supported.")
    return wanted


def _dataset_input(dataset: Dataset) -> dict[str, Any]:
    """Return how a dataset of MMDetection 0.x to 2.x normalises and pads pixels."""
    if "img_norm_cfg" in dataset.group.values:  # before there were pipelines
        pixels = dataset.group.group("img_norm_cfg")
        return _pixels(pixels, pixels.flag("to_rgb", True), dataset.group.integer("size_divisor", 32))
    normalize, pad = dataset.find("Normalize"), dataset.find("Pad")
    if normalize is None:
        raise DetcliError(f"its config does not say in {dataset.group.where} how pixels are normalised.")
    divisor = 1
    if pad is not None:
        divisor = pad.integer("size_divisor")
        pad.expect("size", None)
        pad.expect("pad_to_square", False)
        pad.expect("pad_val", 0, {"img": 0, "masks": 0, "seg": 255})
        pad.check()
    return _pixels(normalize, normalize.flag("to_rgb", True), divisor)


def _pixels(group: Group, rgb: bool, divisor: int) -> dict[str, Any]:
    mean, std = group.numbers("mean"), group.numbers("std")
    return {"mean": mean, "std": std, "channels": "rgb" if rgb else "bgr", "pad_divisor": max(divisor, 1)}


PLAIN_STEPS = (
    "LoadAnnotations",
    "LoadProposals",
    "MultiScaleFlipAug",
    "Normalize",
    "Pad",
    "DefaultFormatBundle",
    "ImageToTensor",
    "ToTensor",
    "Transpose",
    "Collect",
    "PackDetInputs",
)
"""Steps of a pipeline that change nothing, or that are read elsewhere."""


def test_data(dataset: Dataset) -> dict[str, Any]:
    """Return the size of pictures in an evaluation: one size, not flipped."""
    scales: list[tuple[int, int]] = []
    keep_ratio = True
    for step in _changing_steps(dataset):
        if step.kind == "Resize":
            scales += _scales(step, "img_scale", "scale")
            keep_ratio = _keeps_ratio(step)
        elif step.kind != "RandomFlip":
            raise step.unsupported("type")
    for step in dataset.pipeline:
        if step.kind == "MultiScaleFlipAug":
            scales += _scales(step, "img_scale")
            step.expect("flip", False)
            step.ignore("transforms", "flip_direction")
            step.check()
    if "img_scale" in dataset.group.values:
        scales += _scales(dataset.group, "img_scale")
    if len(scales) != 1:
        raise DetcliError(f"its config has {len(scales)} sizes of pictures in {dataset.group.where}: not supported.")
    return {"test_resize": scales[0], "keep_ratio": keep_ratio}


def train_data(dataset: Dataset, keep_ratio: bool = True) -> dict[str, Any]:
    """Return how pictures are changed in training; they must be resized with `keep_ratio`, as in an evaluation."""
    group = dataset.group
    if "img_scale" in group.values:
        scales = _scales(group, "img_scale")
        return {
            "resize": scales,
            "resize_mode": group.text("multiscale_mode", "value"),
            "flip": group.number("flip_ratio", 0.0),
        }
    parts: dict[str, list[dict[str, Any]]] = {"before_resize": [], "transforms": []}
    result: dict[str, Any] = {"flip": 0.0, **parts}
    for step in _changing_steps(dataset):
        if step.kind in RESIZE_STEPS:
            default_mode = RESIZE_STEPS[step.kind]
            if _keeps_ratio(step) != keep_ratio:
                raise step.unsupported("keep_ratio")
            scales = _scales(step, "img_scale", "scale", "scales")
            mode = step.text("multiscale_mode", default_mode)
            result |= {"resize": scales, "resize_mode": mode if len(scales) > 1 else "value"}
        elif step.kind == "RandomFlip":
            step.expect("direction", "horizontal")
            result["flip"] = step.number("prob" if "prob" in step.values else "flip_ratio", 0.0)
            step.check()
        elif step.kind == "FilterAnnotations":
            result["min_side"] = _min_side(step)
        elif step.kind == "AutoAugment":
            result |= _resize_or_crop(step)
        elif step.kind == "PhotoMetricDistortion":
            parts["transforms" if "resize" in result else "before_resize"].append(_photometric(step))
        elif step.kind == "SegRescale":  # here models take labels of all pixels, and read every eighth themselves
            step.expect("scale_factor", 1 / 8)
            step.ignore("backend")
            step.check()
        elif step.kind in WHOLE_PICTURES and "resize" not in result:
            parts["before_resize"].append(WHOLE_PICTURES[step.kind](step, dataset))
        else:
            raise step.unsupported("type")
    return result


def _min_side(step: Group) -> float:
    """Return the side that a box must be larger than for its object to be trained."""
    sides = step.numbers("min_gt_bbox_wh", (1.0, 1.0))
    if len(set(sides)) != 1:
        raise step.unsupported("min_gt_bbox_wh")
    step.expect("by_box", True)
    step.expect("by_mask", False)
    step.expect("keep_empty", True)
    step.ignore("min_gt_mask_area")
    step.check()
    return sides[0]


def _photometric(step: Group) -> dict[str, Any]:
    step.expect("brightness_delta", 32)
    step.expect("hue_delta", 18)
    for key in ("contrast_range", "saturation_range"):
        if step.numbers(key, (0.5, 1.5)) != (0.5, 1.5):
            raise step.unsupported(key)
    step.check()
    return {"name": "photometric"}


def _expand(step: Group, dataset: Dataset) -> dict[str, Any]:
    """Return the canvas of a picture; its colour is left out where it is the pixel mean."""
    colors = step.numbers("mean", (0.0, 0.0, 0.0))
    rgb = colors if step.flag("to_rgb", True) else colors[::-1]
    normalize = dataset.find("Normalize")
    is_mean = normalize is not None and normalize.numbers("mean") == colors
    part = {"name": "expand", "ratio": step.numbers("ratio_range", (1.0, 4.0)), "probability": step.number("prob", 0.5)}
    step.ignore("seg_ignore_label")
    step.check()
    return part if is_mean else {**part, "fill": rgb}


def _min_iou_crop(step: Group, dataset: Dataset) -> dict[str, Any]:
    ious = step.numbers("min_ious", (0.1, 0.3, 0.5, 0.7, 0.9))
    part = {"name": "min_iou_crop", "ious": ious, "least": step.number("min_crop_size", 0.3)}
    step.expect("bbox_clip_border", True)
    step.check()
    return part


WHOLE_PICTURES = {"Expand": _expand, "MinIoURandomCrop": _min_iou_crop}
"""Steps that change pictures before they are resized."""


def _resize_or_crop(step: Group) -> dict[str, Any]:
    """Return an AutoAugment of DETR's two policies: to resize, or to do so after a window of any size is cut out."""
    policies = step.take("policies")
    lists = isinstance(policies, list | tuple) and all(isinstance(policy, list | tuple) for policy in policies)
    steps = [Group(item, step.place("policies")) for policy in policies for item in policy] if lists else []
    if [item.kind for item in steps] != ["Resize", "Resize", "RandomCrop", "Resize"] or len(policies[0]) != 1:
        raise step.unsupported("policies")
    crop = steps.pop(2)
    for resize in steps:
        resize.expect("multiscale_mode", "value")
        resize.ignore("override")
        if not _keeps_ratio(resize):
            raise resize.unsupported("keep_ratio")
    always, first, last = (_scales(resize, "img_scale") for resize in steps)
    longest = {max(size) for size in first}
    if always != last or len(longest) != 1:
        raise step.unsupported("policies")
    crop.expect("allow_negative_crop", True)
    sides = crop.integers("crop_size")
    if crop.text("crop_type") != "absolute_range":
        raise crop.unsupported("crop_type")
    if len(sides) != 2 or not 0 < sides[0] <= sides[1]:
        raise crop.unsupported("crop_size")
    crop.check()
    shortest = tuple(min(size) for size in first)
    window = {"longest": longest.pop(), "shortest": shortest, "least": sides[0], "most": sides[1]}
    cut = {"name": "random_size_crop", "probability": 0.5, **window}
    return {"resize": _longest_first(always), "resize_mode": "value", "before_resize": [cut]}


def _longest_first(scales: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(max(scale), min(scale)) for scale in scales]


RESIZE_STEPS = {"Resize": "range", "RandomChoiceResize": "value", "RandomResize": "range"}
"""Steps that resize, and how each chooses from several sizes when it does not say."""


def _changing_steps(dataset: Dataset) -> list[Group]:
    """Return the steps of a pipeline that change pictures."""
    changing = []
    for step in dataset.pipeline:
        if step.kind == "LoadImageFromFile":
            step.expect("to_float32", False)
            step.expect("color_type", "color")
        elif step.kind not in PLAIN_STEPS:
            changing.append(step)
    return changing


def _scales(group: Group, *keys: str) -> list[tuple[int, int]]:
    """Return the sizes under whichever of `keys` there is: one pair, or a list of pairs."""
    key = next((key for key in keys if key in group.values), None)
    if key is None:
        return []
    value = group.take(key)
    pairs = value if isinstance(value, list | tuple) else ()
    if len(pairs) == 2 and all(type(side) is int for side in pairs):
        pairs = (pairs,)
    sizes = [tuple(pair) for pair in pairs if isinstance(pair, list | tuple)]
    if len(sizes) != len(pairs) or not sizes or any(len(size) != 2 or {*map(type, size)} != {int} for size in sizes):
        raise group.wrong(key, "a size of pictures or a list of them")
    return sizes


def _keeps_ratio(step: Group) -> bool:
    """Return whether a step that resizes keeps the aspect ratio; what else it could do must be neutral."""
    step.expect("ratio_range", None)
    step.expect("resize_type", "Resize")
    step.expect("interpolation", "bilinear")
    step.expect("bbox_clip_border", True)
    step.expect("clip_object_border", True)
    step.ignore("backend", "img_scale", "scale", "scales", "multiscale_mode")
    # Only the Resize of 3.x, which calls its size `scale`, does not keep the ratio unless it is told to.
    keeps = step.flag("keep_ratio", not (step.kind == "Resize" and "scale" in step.values))
    step.check()
    return keeps


def sampling(config: Mapping[str, Any], dataset: Dataset) -> dict[str, Any]:
    """Return which pictures are drawn for training."""
    if dataset.wrappers:
        raise DetcliError(f"its config draws training pictures through {', '.join(dataset.wrappers)}: not supported.")
    loader = Group(config.get("train_dataloader", {}), "train_dataloader")
    if loader.has("sampler") and loader.group("sampler").kind not in ("DefaultSampler", "InfiniteSampler"):
        raise loader.unsupported("sampler")
    filtered = dataset.group.group("filter_cfg") if dataset.group.has("filter_cfg") else dataset.group
    return {
        "keep_empty": not filtered.flag("filter_empty_gt", True),
        "repeat_threshold": dataset.repeat_threshold,
        "repeat_rounding": "up",
    }


OPTIMIZERS = {"SGD": "sgd", "AdamW": "adamw"}
GPUS = 8
"""What MMDetection's learning rates are for, where a config does not say."""


def optim(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the optimiser, with its reference batch and what is special to some parameters."""
    if "optim_wrapper" in config:
        wrapper = Group(config["optim_wrapper"], "optim_wrapper")
        wrapper.expect("accumulative_counts", 1)
        optimizer, around, clip = wrapper.group("optimizer"), wrapper, "clip_grad"
        per_parameter = wrapper.group("paramwise_cfg") if wrapper.has("paramwise_cfg") else None
    else:
        optimizer = Group(config.get("optimizer"), "optimizer")
        around, clip = Group(config.get("optimizer_config") or {}, "optimizer_config"), "grad_clip"
        if around.values.get("type", "OptimizerHook") not in ("OptimizerHook", "Fp16OptimizerHook"):
            raise around.unsupported("type")
        key = next((key for key in ("paramwise_cfg", "paramwise_options") if optimizer.has(key)), None)
        per_parameter = optimizer.group(key) if key else None
    if optimizer.kind not in OPTIMIZERS:
        raise optimizer.unsupported("type")
    decay = optimizer.number("weight_decay", 0.0)
    result = {
        "name": OPTIMIZERS[optimizer.kind],
        "lr": optimizer.number("lr"),
        "batch": _batch(config),
        "weight_decay": decay,
        "norm_decay": None,
        "bias_decay": None,
        "bias_lr": 1.0,
        "backbone_lr": 1.0,
        "clip_norm": None,
    }
    if optimizer.kind == "SGD":
        result["momentum"] = optimizer.number("momentum", 0.0)
        optimizer.expect("nesterov", False)
        optimizer.expect("dampening", 0)
    else:
        result["betas"] = optimizer.numbers("betas", (0.9, 0.999))
        optimizer.expect("eps", 1e-8)
    if per_parameter is not None:
        result |= _per_parameter(per_parameter, decay)
    if around.has(clip):
        limits = around.group(clip)
        limits.expect("norm_type", 2)
        result["clip_norm"] = limits.number("max_norm")
        limits.check()
    optimizer.check()
    return result


def _per_parameter(group: Group, decay: float) -> dict[str, Any]:
    """Return the optimiser's settings for kinds of parameters, of which MMDetection gives factors."""
    result: dict[str, Any] = {}
    for key, ours in (("norm_decay_mult", "norm_decay"), ("bias_decay_mult", "bias_decay")):
        if group.has(key):
            result[ours] = decay * group.number(key)
    if group.has("bias_lr_mult"):
        result["bias_lr"] = group.number("bias_lr_mult")
    if group.has("custom_keys"):
        own = group.group("custom_keys")
        if own.has("backbone"):
            backbone = own.group("backbone")
            backbone.expect("decay_mult", 1.0)
            result["backbone_lr"] = backbone.number("lr_mult", 1.0)
        own.check()
    group.ignore("bypass_duplicate")
    group.check()
    return result


def _batch(config: Mapping[str, Any]) -> int:
    """Return the number of images of a step that the learning rate is for."""
    if isinstance(config.get("auto_scale_lr"), Mapping) and "base_batch_size" in config["auto_scale_lr"]:
        return Group(config["auto_scale_lr"], "auto_scale_lr").integer("base_batch_size")
    devices = config.get("gpu_ids", config.get("device_ids"))
    count = len(devices) if isinstance(devices, list | tuple) and devices else GPUS
    if "train_dataloader" in config:
        return Group(config["train_dataloader"], "train_dataloader").integer("batch_size") * count
    data = Group(config.get("data", {}), "data")
    key = next((key for key in ("imgs_per_gpu", "samples_per_gpu") if key in data.values), "samples_per_gpu")
    if key not in data.values and "samples_per_gpu" in config:
        data = Group(config, "")
    return data.integer(key) * count


def sched(config: Mapping[str, Any], times: int) -> dict[str, Any]:
    """Return the schedule of a training whose epoch goes `times` through the data."""
    return _sched_v3(config, times) if "param_scheduler" in config else _sched_v2(config, times)


def _sched_v2(config: Mapping[str, Any], times: int) -> dict[str, Any]:
    """Return the schedule of a `runner` (or, before it, `total_epochs`) and `lr_config`."""
    if config.get("runner") is not None:
        runner = Group(config["runner"], "runner")
        if runner.kind not in ("EpochBasedRunner", "IterBasedRunner"):
            raise runner.unsupported("type")
        unit = "epoch" if runner.kind == "EpochBasedRunner" else "iter"
        length = runner.integer("max_epochs" if unit == "epoch" else "max_iters")
    else:
        unit, length = "epoch", Group(config, "").integer("total_epochs")
    lr = Group(config.get("lr_config"), "lr_config")
    repeats = times if unit == "epoch" else 1
    result: dict[str, Any] = {"unit": unit, "length": length * repeats}
    by_epoch = lr.flag("by_epoch", True)
    match lr.text("policy"):
        case "step":
            if by_epoch != (unit == "epoch"):
                raise lr.unsupported("by_epoch")
            lr.expect("min_lr", None)
            result |= {"policy": "step", "drops": [drop * repeats for drop in lr.integers("step")]}
            result["gamma"] = lr.number("gamma", 0.1)
        case "CosineAnnealing":
            if by_epoch:  # then it changes between epochs only
                raise lr.unsupported("policy")
            lr.expect("min_lr", None)
            result |= {"policy": "cosine", "min_lr_ratio": lr.number("min_lr_ratio")}
        case "fixed":
            result["policy"] = "constant"
        case _:
            raise lr.unsupported("policy")
    warmup = lr.text("warmup") if lr.has("warmup") else "none"
    if warmup not in ("linear", "constant", "none"):
        raise lr.unsupported("warmup")
    result["warmup"] = warmup
    lr.expect("warmup_by_epoch", False)
    if warmup == "none":
        lr.ignore("warmup_iters", "warmup_ratio")
    else:
        result |= {"warmup_iters": lr.integer("warmup_iters"), "warmup_ratio": lr.number("warmup_ratio", 0.1)}
    lr.check()
    return result


def _sched_v3(config: Mapping[str, Any], times: int) -> dict[str, Any]:
    """Return the schedule of a training loop and the list `param_scheduler`."""
    whole = Group(config, "")
    loop = whole.group("train_cfg")
    by_epoch = loop.flag("by_epoch", loop.values.get("type") != "IterBasedTrainLoop")
    unit = "epoch" if by_epoch else "iter"
    length = loop.integer("max_epochs" if by_epoch else "max_iters")
    repeats = times if by_epoch else 1
    result: dict[str, Any] = {"unit": unit, "length": length * repeats, "policy": "constant", "warmup": "none"}
    listed = isinstance(config["param_scheduler"], list | tuple)
    for lr in whole.groups("param_scheduler") if listed else [whole.group("param_scheduler")]:
        begin, end = lr.integer("begin", 0), lr.integer("end", length)
        scheduler_by_epoch = lr.flag("by_epoch", True)
        if lr.kind in ("LinearLR", "ConstantLR") and result["warmup"] == "none":
            if scheduler_by_epoch or begin:
                raise lr.unsupported("begin" if begin else "by_epoch")
            linear = lr.kind == "LinearLR"
            lr.expect("end_factor", 1.0)
            # The last step of these is the first one at the full rate.
            result |= {"warmup": "linear" if linear else "constant", "warmup_iters": end - 1}
            result["warmup_ratio"] = lr.number("start_factor" if linear else "factor", 1 / 3)
        elif lr.kind == "MultiStepLR" and result["policy"] == "constant":
            if scheduler_by_epoch != by_epoch or begin or end < length:
                raise lr.unsupported("begin" if begin else "end" if end < length else "by_epoch")
            drops = [drop * repeats for drop in lr.integers("milestones")]
            result |= {"policy": "step", "drops": drops, "gamma": lr.number("gamma", 0.1)}
        else:
            raise lr.unsupported("type")
        lr.ignore("verbose", "last_step", "convert_to_iter_based")
        lr.check()
    return result


PLAIN_HOOKS = ("NumClassCheckHook", "CheckInvalidLossHook")
"""Hooks that change no number."""


def train(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the precision; hooks that change the training are refused."""
    for hook in Group(config, "").groups("custom_hooks") if config.get("custom_hooks") else []:
        if hook.kind not in PLAIN_HOOKS:
            raise hook.unsupported("type")
    wrapper = config.get("optim_wrapper")
    amp = isinstance(wrapper, Mapping) and str(wrapper.get("type")).endswith("AmpOptimWrapper")
    return {"precision": "fp16" if amp or config.get("fp16") is not None else "fp32"}
