"""What a model is to the rest: images in, losses or detections out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from detcli.errors import DetcliError, UsageError
from detcli.plugin import PartConfig
from detcli.registry import build
from detcli.structures import Batch, Detections, ImageInfo, Panoptic


@dataclass(slots=True)
class Trunk:
    """What comes before the heads: maps of `channels` and `strides` from a backbone and a neck or None.

    With a `shared_head`, the features of RoIs go through it and then have `roi_channels`.
    """

    backbone: nn.Module
    neck: nn.Module | None
    shared_head: nn.Module | None
    channels: int
    strides: tuple[int, ...]
    roi_channels: int

    def rpn_head(self, part: PartConfig) -> Any:
        """Build what proposes boxes from the maps."""
        return build("rpn_heads", part, in_channels=self.channels, strides=self.strides)

    def bbox_head(
        self,
        part: PartConfig,
        *,
        num_classes: int,
        roi_size: int,
        class_agnostic: bool,
        stds: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2),
    ) -> Any:
        """Build what finds the classes and boxes of RoIs of `roi_size`; `stds` are those of its box coder."""
        return build(
            "bbox_heads",
            part,
            in_channels=self.roi_channels,
            num_classes=num_classes,
            roi_size=roi_size,
            stds=stds,
            class_agnostic=class_agnostic,
        )

    def roi_extractor(self, part: PartConfig) -> Any:
        """Build what takes the features of RoIs from the maps."""
        return build("roi_extractors", part, in_channels=self.channels, strides=self.strides)


def trunk(backbone: PartConfig, neck: PartConfig | None, *, shared_head: bool = False) -> Trunk:
    """Build a backbone and a neck on its maps; None: the backbone's only map is what the heads see.

    With `shared_head`, the last stage of the backbone works on RoIs in place of the image.

    Raises `UsageError` when the backbone can't give its last stage away, or has several maps and no neck.
    """
    body = build("backbones", backbone)
    stage = None
    if shared_head:
        if not hasattr(body, "take_last_stage"):
            name = backbone if isinstance(backbone, str) else backbone["name"]
            raise UsageError(f"backbone {name!r} has no stage for a shared head; take a ResNet, as r50.")
        stage = body.take_last_stage()
    if neck is not None:
        pyramid = build("necks", neck, in_channels=body.out_channels, in_strides=body.strides)
        channels, strides = pyramid.out_channels, pyramid.strides
    else:
        pyramid, channels, strides = None, body.out_channels[-1], body.strides
        if len(strides) > 1:
            raise UsageError(
                f"without a neck, the heads work on one map, and the backbone has {len(strides)}: "
                f"`--set model.backbone.out_stages={[3, 4] if shared_head else [4]}`."
            )
    return Trunk(body, pyramid, stage, channels, strides, stage.out_channels if stage else channels)


class Detector(nn.Module):
    """A backbone, a neck or None, and heads that a subclass adds.

    A subclass has `losses` and `detect`. `tasks` is what it predicts: "box", "mask", "keypoint", "panoptic" or
    "proposal", the last of them being what runs are compared by.
    """

    def __init__(self, backbone: nn.Module, neck: nn.Module | None, tasks: tuple[str, ...] = ("box",)) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.tasks = tasks

    def forward(self, batch: Batch) -> Any:
        """Return named losses in training, one `Detections` an image in eval mode; images are float32.

        Losses are scalars; those with "loss" in their name are summed, others are only logged. Detections
        are in pixels of the batch's images, best first.
        """
        features = self.features(batch.images)
        return self.losses(features, batch) if self.training else self.detect(features, batch)

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the maps of images [N,3,H,W] that the heads see."""
        maps: tuple[Tensor, ...] = self.backbone(images)
        return maps if self.neck is None else self.neck(maps)

    def whole_backbone(self) -> nn.Module:
        """Return the module that the backbone's own weights are for, with the names that they have."""
        return self.backbone

    @property
    def needs(self) -> set[str]:
        """What it is trained on beside boxes: the fields of `Target` "masks", "keypoints" and "semantic"."""
        fields = {"mask": "masks", "keypoint": "keypoints", "panoptic": "semantic"}
        return {fields[task] for task in self.tasks if task in fields}

    def losses(self, features: tuple[Tensor, ...], batch: Batch) -> dict[str, Tensor]:
        """Return the losses of a batch with targets."""
        raise NotImplementedError

    def detect(self, features: tuple[Tensor, ...], batch: Batch) -> list[Detections]:
        """Return the detections of each image."""
        raise NotImplementedError

    def merge(self, detections: Detections, info: ImageInfo) -> Panoptic:
        """Return the segments of a picture, of a model with the task "panoptic".

        `detections` are in pixels of the original picture.
        """
        raise NotImplementedError


class SingleStageDetector(Detector):
    """A detector whose one head, `bbox_head`, predicts boxes from every position of the features."""

    def __init__(self, backbone: nn.Module, neck: nn.Module | None, bbox_head: nn.Module) -> None:
        super().__init__(backbone, neck)
        self.bbox_head: Any = bbox_head

    def losses(self, features: tuple[Tensor, ...], batch: Batch) -> dict[str, Tensor]:
        """Return the head's losses."""
        losses: dict[str, Tensor] = self.bbox_head.losses(features, batch)
        return losses

    def detect(self, features: tuple[Tensor, ...], batch: Batch) -> list[Detections]:
        """Return the head's detections."""
        detections: list[Detections] = self.bbox_head.detect(features, batch)
        return detections


class TwoStageDetector(Detector):
    """A detector whose `roi_head` looks again at the proposals of its `rpn_head`.

    Without an `rpn_head`, the proposals are those in the batch's targets, in eval mode too.
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module | None,
        rpn_head: nn.Module | None,
        roi_head: Any,
    ) -> None:
        super().__init__(backbone, neck, roi_head.tasks)
        self.rpn_head: Any = rpn_head
        self.roi_head = roi_head

    @property
    def needs(self) -> set[str]:
        """What it is trained on beside boxes, with what the second stage needs for itself."""
        return super().needs | getattr(self.roi_head, "needs", set())

    def whole_backbone(self) -> nn.Module:
        """Return the backbone with the stage that works on RoIs, where there is one."""
        shared_head: nn.Module | None = getattr(self.roi_head, "shared_head", None)
        if shared_head is None:
            return self.backbone
        whole = nn.Module()
        for name, child in (*self.backbone.named_children(), *shared_head.named_children()):
            whole.add_module(name, child)
        return whole

    def losses(self, features: tuple[Tensor, ...], batch: Batch) -> dict[str, Tensor]:
        """Return the losses of both stages; no gradient flows through the proposals."""
        losses: dict[str, Tensor] = {}
        if self.rpn_head is None:
            proposals = given_proposals(batch)
        else:
            outputs = self.rpn_head(features)
            losses |= self.rpn_head.losses(outputs, batch)
            proposals = [image.boxes for image in self.rpn_head.propose(outputs, batch.sizes)]
        losses |= self.roi_head.losses(features, proposals, batch)
        return losses

    def detect(self, features: tuple[Tensor, ...], batch: Batch) -> list[Detections]:
        """Return the second stage's detections."""
        detections: list[Detections] = self.roi_head.detect(features, self.proposals(features, batch), batch)
        return detections

    def proposals(self, features: tuple[Tensor, ...], batch: Batch) -> list[Tensor]:
        """Return the boxes [P,4] of each image that the second stage looks at to detect."""
        if self.rpn_head is None:
            return given_proposals(batch)
        return [image.boxes for image in self.rpn_head.propose(self.rpn_head(features), batch.sizes)]


def given_proposals(batch: Batch) -> list[Tensor]:
    """Return the proposals [P,4] that came with each image of `batch`.

    Raises `DetcliError` when an image has none.
    """
    proposals = [target.proposals for target in batch.targets or []]
    given = [boxes for boxes in proposals if boxes is not None]
    if len(given) < len(batch):
        raise DetcliError(
            "this model takes its proposals from a file, and got none. "
            "Write one with `detcli predict RPN_CHECKPOINT --data SOURCE --proposals FILE`, "
            "then give it as `--set data.proposals=FILE`."
        )
    return given
