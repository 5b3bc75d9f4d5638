"""The region proposal network (Ren et al. 2015, section 3; FPN: Lin et al. 2017, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from detcli.nn.anchors import AnchorGenerator, inside_images
from detcli.nn.assigners import AnchorAssigner
from detcli.nn.blocks import normal_init
from detcli.nn.box_coders import DeltaBoxCoder
from detcli.nn.losses import LossFunction, of_elements
from detcli.nn.postprocess import batched_nms
from detcli.nn.processes import reduce_mean
from detcli.nn.samplers import RandomSampler
from detcli.plugin import Assigner, Loss, Sampler
from detcli.registry import build
from detcli.structures import Batch, Detections


@dataclass(frozen=True, slots=True)
class ProposalLimits:
    """The best `nms_pre` boxes of each level enter NMS; its best `max_per_image` are the proposals."""

    nms_pre: int
    max_per_image: int


@dataclass(slots=True)
class RPNOutputs:
    """Of each level: objectness logits [N,A], box deltas [N,A,4], anchors [A,4], the map's (H, W)."""

    logits: list[Tensor]
    deltas: list[Tensor]
    anchors: list[Tensor]
    grid_sizes: list[tuple[int, int]]


def rpn_head(
    *,
    in_channels: int,
    strides: tuple[int, ...],
    channels: int | None = None,
    anchor_scales: tuple[float, ...] = (8.0,),
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
    anchor_border: int | None = None,
    anchor_order: Literal["ratio", "scale"] = "ratio",
    anchor_style: Literal["exact", "torchvision", "v1", "detectron"] = "exact",
    assigner: Assigner = {"name": "max_iou", "positive": 0.7, "negative": 0.3, "min_positive": 0.3},
    sampler: Sampler = {"name": "random", "num": 256, "positive_fraction": 0.5},
    loss_cls: Loss = {"name": "cross_entropy", "sigmoid": True},
    loss_bbox: Loss = "l1",
    loss_divisor: Literal["sampled", "capacity"] = "sampled",
    train_padding: bool = False,
    coder_style: Literal["exact", "v1"] = "exact",
    clamp_below: bool = True,
    train_nms_pre: int = 2000,
    train_proposals: int = 1000,
    test_nms_pre: int = 1000,
    test_proposals: int = 1000,
    nms_threshold: float = 0.7,
) -> RPNHead:
    """Return the head for maps of `in_channels` and `strides`.

    Its convolution has `channels` outputs (None: `in_channels`). Anchors have the areas (stride x scale)^2
    and heights of `anchor_ratios` times their width. `anchor_border` is how many pixels an anchor may reach beyond its
    image and still be trained (None: any number). The best `nms_pre` boxes of each level enter NMS, and the best
    `proposals` of all levels leave it. For `anchor_order` and `anchor_style` see `AnchorGenerator`, for `coder_style`
    and `clamp_below` `DeltaBoxCoder`, for `loss_divisor` and `train_padding` `RPNHead`.
    """
    return RPNHead(
        in_channels,
        channels or in_channels,
        AnchorGenerator(strides, scales=anchor_scales, ratios=anchor_ratios, order=anchor_order, style=anchor_style),
        DeltaBoxCoder(clamp_below=clamp_below, style=coder_style),
        build("assigners", assigner),
        build("samplers", sampler),
        build("losses", loss_cls),
        build("losses", loss_bbox),
        border=anchor_border,
        divisor=loss_divisor,
        train_padding=train_padding,
        train_limits=ProposalLimits(train_nms_pre, train_proposals),
        test_limits=ProposalLimits(test_nms_pre, test_proposals),
        nms_threshold=nms_threshold,
    )


class RPNHead(nn.Module):
    """Objectness and a box for every anchor, from one convolution that all levels share.

    `border` is how many pixels an anchor may reach beyond its image and still be trained; None: any number.
    `divisor` is what the summed losses are divided by: the anchors that were `sampled` in the batch
    (MMDetection), or the sampler's `capacity` for all images (Detectron2). `train_padding` has anchors on the padding
    of a batch's smaller images trained as background.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        anchors: AnchorGenerator,
        box_coder: DeltaBoxCoder,
        assigner: AnchorAssigner,
        sampler: RandomSampler,
        loss_cls: LossFunction,
        loss_bbox: LossFunction,
        *,
        border: int | None,
        divisor: Literal["sampled", "capacity"],
        train_padding: bool = False,
        train_limits: ProposalLimits,
        test_limits: ProposalLimits,
        nms_threshold: float,
    ) -> None:
        super().__init__()
        self.rpn_conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.rpn_cls = nn.Conv2d(channels, anchors.num_base_anchors, 1)
        self.rpn_reg = nn.Conv2d(channels, anchors.num_base_anchors * 4, 1)
        normal_init(self, std=0.01)
        self.anchors = anchors
        self.box_coder = box_coder
        self.assigner = assigner
        self.sampler = sampler
        self.loss_cls = of_elements(loss_cls, "the RPN's loss of classes")
        self.loss_bbox = of_elements(loss_bbox, "the RPN's loss of boxes")
        self.train_limits = train_limits
        self.test_limits = test_limits
        self.nms_threshold = nms_threshold
        self.border = border
        self.divisor = divisor
        self.train_padding = train_padding

    def forward(self, features: Sequence[Tensor]) -> RPNOutputs:
        """Return what the convolutions say about `features`, one [N,C,H,W] a level."""
        logits, deltas = [], []
        for feature in features:
            hidden = functional.relu(self.rpn_conv(feature))
            logits.append(self.rpn_cls(hidden).permute(0, 2, 3, 1).flatten(1))
            deltas.append(self.rpn_reg(hidden).permute(0, 2, 3, 1).reshape(len(feature), -1, 4))
        sizes = [(feature.shape[-2], feature.shape[-1]) for feature in features]
        return RPNOutputs(logits, deltas, self.anchors(sizes, features[0].device), sizes)

    def losses(self, outputs: RPNOutputs, batch: Batch) -> dict[str, Tensor]:
        """Return loss_rpn_cls and loss_rpn_bbox of a batch with targets (Faster R-CNN, equation 1)."""
        assert batch.targets is not None
        anchors = torch.cat(outputs.anchors)
        counts = [len(level) for level in outputs.anchors]
        samples, objects = [], []
        trained = self._trained(anchors, outputs.grid_sizes, batch.sizes)
        for target, seed, taking_part in zip(batch.targets, batch.each_seed(), trained, strict=True):
            sample = self.sampler(self.assigner(anchors, target, counts, taking_part), seed)
            samples.append(sample)
            # A negative has index -1 and aims at its own anchor: finite deltas, of weight 0.
            candidates = anchors[sample.index]
            boxes = torch.cat([target.boxes, target.boxes.new_zeros(1, 4)])[sample.gt_index]
            objects.append(torch.where(sample.positive[:, None], boxes, candidates))
        index = torch.stack([sample.index for sample in samples])
        positive = torch.stack([sample.positive for sample in samples])
        valid = torch.stack([sample.valid for sample in samples])

        if self.divisor == "capacity":
            divisor: Tensor | float = self.sampler.num * len(batch)
        else:
            divisor = reduce_mean(positive.sum(1).clamp(min=1).sum() + (valid & ~positive).sum(1).clamp(min=1).sum())
        logits = torch.cat(outputs.logits, dim=1).gather(1, index)
        deltas = torch.cat(outputs.deltas, dim=1).gather(1, index[..., None].expand(*index.shape, 4))
        goals = self.box_coder.encode(anchors[index], torch.stack(objects))
        return {
            "loss_rpn_cls": self.loss_cls(logits, positive, valid, divisor),
            "loss_rpn_bbox": self.loss_bbox(deltas, goals, positive, divisor),
        }

    @torch.no_grad()
    def propose(self, outputs: RPNOutputs, sizes: Tensor) -> list[Detections]:
        """Return the proposals, with label 0, of images of sizes [N,2] (height, width), best first."""
        limits = self.train_limits if self.training else self.test_limits
        boxes, scores, levels = [], [], []
        for level, (logits, deltas, anchors) in enumerate(
            zip(outputs.logits, outputs.deltas, outputs.anchors, strict=True)
        ):
            best, index = logits.topk(min(limits.nms_pre, logits.shape[1]), dim=1)
            chosen = deltas.gather(1, index[..., None].expand(*index.shape, 4)).float()
            boxes.append(self.box_coder.decode(anchors[index], chosen, sizes[:, None]))
            scores.append(best.float().sigmoid())
            levels.append(torch.full_like(index[0], level))
        level_of = torch.cat(levels)
        return [
            self._suppress(image_boxes, image_scores, level_of, limits.max_per_image)
            for image_boxes, image_scores in zip(torch.cat(boxes, 1), torch.cat(scores, 1), strict=True)
        ]

    def _suppress(self, boxes: Tensor, scores: Tensor, levels: Tensor, limit: int) -> Detections:
        """Return the best boxes with an area of one image, after NMS within each level."""
        real = (boxes[:, 2:] > boxes[:, :2]).all(1)
        boxes, scores, levels = boxes[real], scores[real], levels[real]
        keep = batched_nms(boxes, scores, levels, self.nms_threshold)[:limit]
        return Detections(boxes[keep], scores[keep], torch.zeros_like(keep))

    def _trained(self, anchors: Tensor, grid_sizes: list[tuple[int, int]], sizes: Tensor) -> Tensor:
        """Return which anchors [A,4] take part in the training of each image: bool [N,A]."""
        if self.train_padding:
            inside = sizes.new_ones(len(sizes), len(anchors), dtype=torch.bool)
        else:
            inside = inside_images(grid_sizes, self.anchors.strides, sizes)
            inside = inside.repeat_interleave(self.anchors.num_base_anchors, dim=1)
        if self.border is None:
            return inside
        limit = sizes.flip(1)[:, None] + self.border
        reach = anchors[:, 2:] - (1 if self.anchors.style == "detectron" else 0)  # of the last pixel
        return inside & (anchors[:, :2] >= -self.border).all(1) & (reach < limit).all(2)
