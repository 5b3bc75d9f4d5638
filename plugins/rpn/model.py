"""Region proposal network, on a feature pyramid or on one map.

Ren, He, Girshick, Sun: Faster R-CNN, arXiv 1506.01497, section 3; the pyramid: arXiv 1612.03144, section 4.1.

Deviations from the papers, as in MMDetection: L1 in place of smooth L1, losses divided by the number of
sampled anchors. The recipes of Detectron2 and Detectron have their divisors, anchors and limits; see the arguments.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from detcli.nn.detector import Detector, trunk
from detcli.nn.rpn_head import ProposalLimits, RPNHead, rpn_head
from detcli.plugin import Assigner, Backbone, Loss, Neck, Sampler
from detcli.structures import Batch, Detections


def rpn(
    *,
    num_classes: int,
    backbone: Backbone = "r50",
    neck: Neck | None = "fpn",
    anchor_scales: tuple[float, ...] = (8.0,),
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
    anchor_border: int | None = 0,
    anchor_order: Literal["ratio", "scale"] = "ratio",
    anchor_style: Literal["exact", "torchvision", "v1", "detectron"] = "exact",
    feat_channels: int | None = None,
    assigner: Assigner = {"name": "max_iou", "positive": 0.7, "negative": 0.3, "min_positive": 0.3},
    sampler: Sampler = {"name": "random", "num": 256, "positive_fraction": 0.5},
    loss_cls: Loss = {"name": "cross_entropy", "sigmoid": True},
    loss_bbox: Loss = "l1",
    loss_divisor: Literal["sampled", "capacity"] = "sampled",
    train_padding: bool = False,
    coder_style: Literal["exact", "v1"] = "exact",
    clamp_below: bool = True,
    nms_pre: int = 2000,
    nms_threshold: float = 0.7,
    max_per_image: int = 1000,
) -> RegionProposalNetwork:
    """Return a detector of objects of any class, without a neck on the backbone's only map; `num_classes` is not used.

    `anchor_border` is how many pixels an anchor may reach beyond its image and still be trained (None: any
    number); for `anchor_order` and `anchor_style` see `AnchorGenerator`, for `coder_style` and `clamp_below`
    `DeltaBoxCoder`, for `loss_divisor` and `train_padding` `RPNHead`.
    """
    body = trunk(backbone, neck)
    limits = ProposalLimits(nms_pre, max_per_image)
    head = rpn_head(
        in_channels=body.channels,
        strides=body.strides,
        channels=feat_channels,
        anchor_scales=anchor_scales,
        anchor_ratios=anchor_ratios,
        anchor_border=anchor_border,
        anchor_order=anchor_order,
        anchor_style=anchor_style,
        assigner=assigner,
        sampler=sampler,
        loss_cls=loss_cls,
        loss_bbox=loss_bbox,
        divisor=loss_divisor,
        train_padding=train_padding,
        coder_style=coder_style,
        clamp_below=clamp_below,
        train_limits=limits,
        test_limits=limits,
        nms_threshold=nms_threshold,
    )
    return RegionProposalNetwork(body.backbone, body.neck, head)


class RegionProposalNetwork(Detector):
    """A detector whose detections are proposals, all with label 0."""

    def __init__(self, backbone: nn.Module, neck: nn.Module | None, head: RPNHead) -> None:
        super().__init__(backbone, neck, ("proposal",))
        self.rpn_head = head

    def losses(self, features: tuple[Tensor, ...], batch: Batch) -> dict[str, Tensor]:
        """Return loss_rpn_cls and loss_rpn_bbox."""
        return self.rpn_head.losses(self.rpn_head(features), batch)

    def detect(self, features: tuple[Tensor, ...], batch: Batch) -> list[Detections]:
        """Return the proposals of each image."""
        return self.rpn_head.propose(self.rpn_head(features), batch.sizes)
