"""Reference cases: what another code base computed for a model, and the comparison of ours with it.

A case holds no weights: they follow from names and shapes by `rule.py`. A test builds a model and asks for
the list of what differs, which must be empty.
"""

import gzip
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from detcli.nn.boxes import pairwise_iou
from detcli.nn.masks import paste_masks
from detcli.structures import Batch, Target

HERE = Path(__file__).parent
CASES = HERE / "cases"
FEATURE_TOLERANCE = 1e-4  # of the standard deviation
LOSS_TOLERANCE = 1e-4  # relative
GRADIENT_TOLERANCE = 1e-3  # relative
MATCHED = 0.95  # of the reference's detections

DETECTRON2_NAMES = [  # levels of the pyramid count from its lowest
    (r"^backbone\.bottom_up\.stem\.conv1\.norm\.", "backbone.bn1."),
    (r"^backbone\.bottom_up\.stem\.", "backbone."),
    (r"^backbone\.bottom_up\.res(\d)\.", lambda match: f"backbone.layer{int(match[1]) - 1}."),
    (r"\.conv(\d)\.norm\.", r".bn\1."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
    (r"^backbone\.fpn_lateral(\d)\.", r"neck.lateral_convs.\1.conv."),
    (r"^backbone\.fpn_output(\d)\.", r"neck.fpn_convs.\1.conv."),
    (r"^backbone\.top_block\.p(\d)\.", r"neck.fpn_convs.\1.conv."),
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
    (r"^head\.cls_subnet\.(\d)\.", lambda match: f"bbox_head.cls_convs.{int(match[1]) // 2}.conv."),
    (r"^head\.bbox_subnet\.(\d)\.", lambda match: f"bbox_head.reg_convs.{int(match[1]) // 2}.conv."),
    (r"^head\.cls_score\.", "bbox_head.retina_cls."),
    (r"^head\.bbox_pred\.", "bbox_head.retina_reg."),
]
DETECTRON2_LOSSES = {"loss_box_reg": "loss_bbox", "loss_rpn_loc": "loss_rpn_bbox"}


def _rule():
    spec = importlib.util.spec_from_file_location("parity_rule", HERE / "rule.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Parity:
    """Loads cases and compares a model with them; every comparison returns a list of what differs."""

    rule = _rule()

    def load(self, name):
        """Return the case `name` (``"mmdet/retinanet/retinanet_r50_fpn_1x_coco"``).

        One that shares the numbers of another case is filled up with them.
        """
        case = json.loads(gzip.decompress((CASES / f"{name}.json.gz").read_bytes()))
        if "same_model_as" in case:
            source = name.split("/")[0]
            case = {**self.load(f"{source}/{case['same_model_as']}"), **case}
        return case

    def failures(self, case, model):
        """Compare `model` with an MMDetection case in everything that the case holds."""
        wrong = self.parameters(case, model)
        if wrong:
            return wrong
        rows = case["state_dict"]
        model.load_state_dict({row[0]: torch.from_numpy(self.rule.fill(*row)) for row in rows})
        batch = self.batch(case)
        return [
            *self.features(case, model, batch),
            *self.detections(case["detections"], self.predict(model, batch)),
            *self.losses(case, model, batch),
        ]

    def parameters(self, case, model):
        """Compare names and shapes of the state dict, and which parameters are frozen."""
        ours = {name: list(value.shape) for name, value in model.state_dict().items()}
        theirs = {row[0]: row[1] for row in case["state_dict"]}
        wrong = [f"{name}: not in the reference" for name in ours.keys() - theirs.keys()]
        wrong += [f"{name}: missing" for name in theirs.keys() - ours.keys()]
        wrong += [
            f"{name}: shape {ours[name]}, not {theirs[name]}"
            for name in ours.keys() & theirs.keys()
            if ours[name] != theirs[name]
        ]
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        wrong += [f"{name}: {'frozen' if name in frozen else 'trained'}" for name in frozen ^ set(case["frozen"])]
        return sorted(wrong)

    def batch(self, case):
        """Return the picture and the targets of a case, already normalised."""
        height, width = case["input"]["height"], case["input"]["width"]
        images = torch.from_numpy(self.rule.make_input(height, width, case["input"]["seed"]))
        boxes, labels, masks = self.rule.make_targets(height, width, case["num_classes"])
        target = Target(torch.from_numpy(boxes), torch.from_numpy(labels), torch.from_numpy(masks))
        return Batch(images, torch.tensor([[height, width]]), [target])

    @torch.no_grad()
    def features(self, case, model, batch):
        """Compare the outputs of backbone and neck."""
        model.eval()
        outputs = {"backbone": model.backbone(batch.images)}
        if model.neck is not None:
            outputs["neck"] = model.neck(outputs["backbone"])
        wrong = []
        for part, levels in outputs.items():
            for level, reference in zip(levels, case["features"][part], strict=True):
                error = self.feature_error(level, reference)
                if error > FEATURE_TOLERANCE:
                    wrong.append(f"features of {part} {reference['path']}: off by {error:.2g} of their deviation")
        return wrong

    def feature_error(self, tensor, reference):
        """Return the largest difference in mean, deviation and samples, in the reference's deviations."""
        if list(tensor.shape) != reference["shape"]:
            return float("inf")
        values = tensor.double().flatten()
        samples = torch.tensor(reference["samples"], dtype=torch.float64)
        index = np.linspace(0, len(values) - 1, len(samples)).astype(int)
        differences = [
            values.mean() - reference["mean"],
            values.std(correction=0) - reference["std"],
            *(values[index] - samples),
        ]
        return float(torch.stack(differences).abs().max()) / reference["std"]

    @torch.no_grad()
    def predict(self, model, batch):
        """Return the detections of the only image of `batch`."""
        return model.eval()(batch)[0]

    def detections(self, reference, ours):
        """Match the reference's best detections one to one with ours, and the areas of their masks."""
        wrong = []
        count = reference["count"]
        if abs(len(ours) - count) > 0.05 * count:
            wrong.append(f"{len(ours)} detections, not {count}")
        scores, labels = torch.tensor(reference["scores"]), torch.tensor(reference["labels"])
        boxes = torch.tensor(reference["boxes"])
        alike = pairwise_iou(boxes, ours.boxes) >= 0.99
        alike |= (boxes[:, None] - ours.boxes).abs().amax(-1) <= 1e-2  # boxes without area overlap nothing
        alike &= (scores[:, None] - ours.scores).abs() <= 1e-3
        alike &= labels[:, None] == ours.labels
        pairs = []
        for index, row in enumerate(alike):
            if row.any():
                partner = int(row.int().argmax())
                alike[:, partner] = False
                pairs.append((index, partner))
        if len(pairs) < MATCHED * len(scores):
            wrong.append(f"only {len(pairs)} of {len(scores)} detections match")
        if "mask_areas" in reference:
            wrong += self.mask_areas(reference, ours, pairs)
        return wrong

    def mask_areas(self, reference, ours, pairs):
        """Compare the areas of pasted masks, within 1 % and a pixel."""
        size = tuple(reference["mask_rle"][0]["size"])
        areas = paste_masks(ours.mask_crops, ours.boxes, size).flatten(1).sum(1, dtype=torch.int64)
        expected = reference["mask_areas"]
        off = [
            f"{int(areas[partner])} for {expected[index]}"
            for index, partner in pairs
            if abs(int(areas[partner]) - expected[index]) > 0.01 * expected[index] + 1
        ]
        return [f"areas of masks: {', '.join(off)}"] if off else []

    def settings(self, case, config):
        """Compare the run config of a recipe with an MMDetection case: optimiser, schedule, sizes."""
        train = case["data"]["train"]
        times = train.get("times", 1)
        resize = next(step for step in train.get("dataset", train)["pipeline"] if step["type"] == "Resize")
        scales = resize["img_scale"] if "multiscale_mode" in resize else [resize["img_scale"]]
        per_parameter = case["optimizer"].get("paramwise_cfg", {})
        clip = (case.get("optimizer_config") or {}).get("grad_clip") or {}
        lr, norm = case["lr_config"], case["img_norm_cfg"]
        pairs = {
            "sched.length": (config.sched.length, case["runner"]["max_epochs"] * times),
            "sched.drops": (config.sched.drops, [step * times for step in lr["step"]]),
            "sched.warmup": (config.sched.warmup, lr["warmup"]),
            "sched.warmup_iters": (config.sched.warmup_iters, lr["warmup_iters"]),
            "sched.warmup_ratio": (config.sched.warmup_ratio, lr["warmup_ratio"]),
            "optim.lr": (config.optim.lr, case["optimizer"]["lr"]),
            "optim.momentum": (config.optim.momentum, case["optimizer"]["momentum"]),
            "optim.weight_decay": (config.optim.weight_decay, case["optimizer"]["weight_decay"]),
            "optim.batch": (config.optim.batch, case["auto_scale_lr"]["base_batch_size"]),
            "optim.clip_norm": (config.optim.clip_norm, clip.get("max_norm")),
            "optim.bias_lr": (config.optim.bias_lr, per_parameter.get("bias_lr_mult", 1.0)),
            "optim.bias_decay": (config.optim.bias_decay, per_parameter.get("bias_decay_mult")),
            "train.precision": (config.train.precision, "fp16" if "fp16" in case else "fp32"),
            "data.resize": (config.data.resize, [tuple(scale) for scale in scales]),
            "data.resize_mode": (config.data.resize_mode, resize.get("multiscale_mode", "value")),
            "input.mean": (config.input.mean, tuple(norm["mean"])),
            "input.std": (config.input.std, tuple(norm["std"])),
            "input.channels": (config.input.channels, "rgb" if norm["to_rgb"] else "bgr"),
        }
        return [f"{key}: {ours}, not {theirs}" for key, (ours, theirs) in pairs.items() if ours != theirs]

    def detectron2_failures(self, case, model):
        """Compare `model` with a Detectron2 case in everything that the case holds."""
        rows = case["state_dict"]
        lowest = min(int(number) for row in rows for number in re.findall(r"fpn_lateral(\d)", row[0]))
        fill = self.rule.fill_detectron2
        model.load_state_dict(
            {self._our_name(row[0], lowest): torch.from_numpy(fill(*row[:3], row[4])) for row in rows}
            | {name: value for name, value in model.state_dict().items() if "num_batches" in name}
        )
        # Normalisation layers are frozen in Detectron2: they have buffers where we have parameters.
        norms = {name for name, _ in model.named_parameters() if ".bn" in name or ".downsample.1." in name}
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        expected = {self._our_name(name, lowest) for name in case["frozen_params"]} | norms
        wrong = [f"{name}: {'frozen' if name in frozen else 'trained'}" for name in frozen ^ expected]

        batch = self.detectron2_batch(case)
        model.eval()
        with torch.no_grad():
            levels = model.neck(model.backbone(batch.images))
        for level, (name, reference) in zip(levels, case["inference"]["features"].items(), strict=True):
            error = self.feature_error(level, reference)
            if error > FEATURE_TOLERANCE:
                wrong.append(f"features {name}: off by {error:.2g} of their deviation")

        found = self.predict(model, batch)
        if "proposals" in case["inference"]:
            reference = case["inference"]["proposals"]
            scores = torch.tensor(reference["objectness_logits"]).sigmoid().tolist()
            reference |= {"scores": scores, "labels": [0] * len(scores)}
        else:
            reference = case["inference"]["detections"]
            reference |= {"labels": reference["classes"], "mask_rle": reference.get("mask_rle_first5")}
        wrong += self.detections(reference, found)

        train = case["train"]
        losses = train.get("losses_bitmask", train["losses"])
        losses = {DETECTRON2_LOSSES.get(name, name): value for name, value in losses.items()}
        wrong += self.compare("loss", self.backward(model, batch), losses, LOSS_TOLERANCE)
        squares = [float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None]
        norm = {"norm": sum(squares) ** 0.5}
        return wrong + self.compare("gradient", norm, {"norm": train["grad_norm"]}, GRADIENT_TOLERANCE)

    def detectron2_batch(self, case):
        """Return the picture, targets and proposals of a Detectron2 case, normalised as it says."""
        height, width = case["input"]["height"], case["input"]["width"]
        pixels = torch.from_numpy(self.rule.make_image_detectron2(height, width, case["input"]["seed"]))
        model = case["cfg"]["MODEL"]
        mean, std = (torch.tensor(model[key])[:, None, None] for key in ("PIXEL_MEAN", "PIXEL_STD"))
        objects = map(torch.from_numpy, self.rule.make_targets(height, width, 80))
        proposals, _ = self.rule.make_proposals_detectron2(height, width)
        target = Target(*objects, proposals=torch.from_numpy(proposals))
        return Batch(((pixels - mean) / std)[None], torch.tensor([[height, width]]), [target])

    def _our_name(self, name, lowest):
        for pattern, replacement in DETECTRON2_NAMES:
            name = re.sub(pattern, replacement, name)
        return re.sub(r"^(neck\.\w+\.)(\d)", lambda match: f"{match[1]}{int(match[2]) - lowest}", name)

    def losses(self, case, model, batch):
        """Compare losses by name, and the norms of the gradients of their sum."""
        losses = self.backward(model, batch)
        expected = {
            name: value["sum"] if isinstance(value, dict) else value  # a dict where each level has its own
            for name, value in case["losses"].items()
            if "loss" in name
        }
        # In float32, the norm of 100 million elements is off by 1 %.
        norms = {name: float(p.grad.double().norm()) for name, p in model.named_parameters() if p.grad is not None}
        wrong = self.compare("loss", losses, expected, LOSS_TOLERANCE)
        total = sum(norms.values())
        wrong += self.compare("gradients", {"sum": total}, {"sum": case["grad_norm_sum"]}, GRADIENT_TOLERANCE)
        sampled = {name: norms.get(name, 0.0) for name in case["grad_norms"]}
        return wrong + self.compare("gradient of", sampled, case["grad_norms"], GRADIENT_TOLERANCE)

    def backward(self, model, batch):
        """Return the losses by name, their gradients computed, with normalisation layers in eval mode."""
        model.train()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.Dropout):
                module.eval()
        model.zero_grad()
        losses = {name: value for name, value in model(batch).items() if "loss" in name}
        sum(losses.values()).backward()
        return {name: float(value.detach()) for name, value in losses.items()}

    def compare(self, what, ours, expected, tolerance):
        """Return the names whose values differ by more than `tolerance` of the expected one."""
        wrong = [f"{what} {name}: only on one side" for name in ours.keys() ^ expected.keys()]
        for name in ours.keys() & expected.keys():
            if abs(ours[name] - expected[name]) > tolerance * abs(expected[name]) + 1e-6:
                wrong.append(f"{what} {name}: {ours[name]:.7g}, not {expected[name]:.7g}")
        return wrong


@pytest.fixture(scope="session")
def parity():
    return Parity()
