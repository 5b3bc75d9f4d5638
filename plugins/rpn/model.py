"""Region proposal network, on a feature pyramid or on one map.

Ren, He, Girshick, Sun: Faster R-CNN, arXiv 1506.01497, section 3; the pyramid: arXiv 1612.03144, section 4.1.

Deviations from the papers, as in MMDetection: L1 in place of smooth L1, losses divided by the number of
sampled anchors. The recipes of Detectron2 and Detectron have their divisors, anchors and limits; see the arguments.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from detcli.nn.detector import Detector, trunk
from detcli.plugin import Backbone, Neck, RPNHead
from detcli.structures import Batch, Detections


def rpn(
    *,
    num_classes: int,
    backbone: Backbone = "r50",
    neck: Neck | None = "fpn",
    rpn_head: RPNHead = {"name": "rpn", "anchor_border": 0, "test_nms_pre": 2000},
) -> RegionProposalNetwork:
    """Return a detector of objects of any class, without a neck on the backbone's only map; `num_classes` is not used.

    It finds `test_proposals` of its head; nothing is trained on those of training, so their number changes nothing.
    """
    body = trunk(backbone, neck)
    return RegionProposalNetwork(body.backbone, body.neck, body.rpn_head(rpn_head))


class RegionProposalNetwork(Detector):
    """A detector whose detections are proposals, all with label 0."""

    def __init__(self, backbone: nn.Module, neck: nn.Module | None, rpn_head: nn.Module) -> None:
        super().__init__(backbone, neck, ("proposal",))
        self.rpn_head: Any = rpn_head

    def losses(self, features: tuple[Tensor, ...], batch: Batch) -> dict[str, Tensor]:
        """Return loss_rpn_cls and loss_rpn_bbox."""
        losses: dict[str, Tensor] = self.rpn_head.losses(self.rpn_head(features), batch)
        return losses

    def detect(self, features: tuple[Tensor, ...], batch: Batch) -> list[Detections]:
        """Return the proposals of each image."""
        proposals: list[Detections] = self.rpn_head.propose(self.rpn_head(features), batch.sizes)
        return proposals
