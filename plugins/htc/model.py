"""Hybrid Task Cascade: stages of boxes and masks in turn, and features of classes of pixels for both.

Chen, Pang, Wang, Xiong, Li, Sun, Feng, Liu, Shi, Ouyang, Loy, Lin: Hybrid Task Cascade for Instance Segmentation,
arXiv 1901.07518.

Deviations from the paper, as in MMDetection: those of Cascade R-CNN; the loss of pixels' classes has a weight of 0.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from detcli.errors import DetcliError, UsageError
from detcli.nn import roi_head
from detcli.nn.blocks import ConvNorm, Norm
from detcli.nn.cascade_roi_head import CascadeRoIHead, CascadeStage, Refined, cascade_stages, stage_extractors
from detcli.nn.detector import Trunk
from detcli.nn.roi_head import RoISample
from detcli.plugin import BBoxHead, MaskHead, RoIExtractor, Sampler
from detcli.registry import build
from detcli.structures import UNLABELLED, Batch


def hybrid_roi_head(
    *,
    trunk: Trunk,
    num_classes: int,
    num_semantic_classes: int = 183,
    roi_extractor: RoIExtractor = "roi_align",
    bbox_head: BBoxHead = {"name": "conv_fc", "loss_bbox": "smooth_l1"},
    stage_ious: tuple[float, ...] = (0.5, 0.6, 0.7),
    stage_stds: tuple[tuple[float, float, float, float], ...] = (
        (0.1, 0.1, 0.2, 0.2),
        (0.05, 0.05, 0.1, 0.1),
        (0.033, 0.033, 0.067, 0.067),
    ),
    stage_weights: tuple[float, ...] = (1.0, 0.5, 0.25),
    match_low_quality: bool = True,
    sampler: Sampler = {"name": "random", "num": 512, "positive_fraction": 0.25, "add_gt": True},
    mask_roi_extractor: RoIExtractor = {"name": "roi_align", "output_size": 14},
    mask_head: MaskHead = "htc",
    semantic: bool = True,
    semantic_roi_extractor: RoIExtractor = {"name": "roi_align", "output_size": 14},
    semantic_level: int = 1,
    semantic_convs: int = 4,
    semantic_loss_weight: float = 0.2,
    score_threshold: float = 0.001,
    nms_threshold: float = 0.5,
    max_per_image: int = 100,
) -> HybridRoIHead:
    """Return the stages on the maps of `trunk`, each with a `bbox_head` and a `mask_head` of its own.

    `num_semantic_classes` is the number of labels that pixels can have; without `semantic`, pixels need none and have
    no branch. That branch works at the pyramid's level `semantic_level`. For the rest see Cascade R-CNN, whose
    arguments they are.

    Raises `UsageError` as `cascade_stages` does, and when the pyramid lacks the level or the mask head is another
    method's.
    """
    stages = cascade_stages(
        trunk=trunk,
        num_classes=num_classes,
        roi_extractor=roi_extractor,
        bbox_head=bbox_head,
        ious=stage_ious,
        stds=stage_stds,
        loss_weights=stage_weights,
        num_masks=len(stage_ious),
        match_low_quality=match_low_quality,
        sampler=sampler,
        resample=True,
    )
    semantic_head, pixels = None, None
    if semantic:
        if not 0 <= semantic_level < len(trunk.strides):
            raise UsageError(
                f"the pyramid has no level {semantic_level} (semantic_level): give 0 to {len(trunk.strides) - 1}."
            )
        stride = trunk.strides[semantic_level]
        semantic_head = FusedSemanticHead(
            trunk.channels,
            len(trunk.strides),
            num_semantic_classes,
            level=semantic_level,
            stride=stride,
            num_convs=semantic_convs,
            loss_weight=semantic_loss_weight,
        )
        pixels = build("roi_extractors", semantic_roi_extractor, in_channels=trunk.channels, strides=(stride,))
    masks = [
        build(
            "mask_heads",
            mask_head,
            in_channels=trunk.channels,
            num_classes=num_classes,
            takes_previous=number > 0,
        )
        for number in range(len(stages))
    ]
    if not isinstance(masks[0], HybridMaskHead):
        raise UsageError("a mask head of this cascade passes on what it saw: `--set model.roi_head.mask_head=htc`.")
    return HybridRoIHead(
        stages,
        stage_extractors(trunk, mask_roi_extractor, len(stages)),
        masks,
        semantic_head,
        pixels,
        score_threshold=score_threshold,
        nms_threshold=nms_threshold,
        max_per_image=max_per_image,
    )


class HybridRoIHead(CascadeRoIHead):
    """A cascade whose masks are trained on the boxes that their own stage has refined, each stage after the other.

    With a `semantic_head`, its features are added to those of RoIs, as `semantic_roi_extractor` takes them.
    """

    def __init__(
        self,
        stages: Sequence[CascadeStage],
        mask_roi_extractors: Sequence[nn.Module],
        mask_heads: Sequence[HybridMaskHead],
        semantic_head: FusedSemanticHead | None,
        semantic_roi_extractor: nn.Module | None,
        *,
        score_threshold: float,
        nms_threshold: float,
        max_per_image: int,
    ) -> None:
        super().__init__(
            stages,
            resample=True,
            score_average="logits",
            roi_gradient=1.0,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            max_per_image=max_per_image,
            mask_roi_extractors=mask_roi_extractors,
            mask_heads=mask_heads,
        )
        self.semantic_head = semantic_head
        self.semantic_roi_extractor = semantic_roi_extractor

    @property
    def needs(self) -> set[str]:
        """Return what it is trained on beside boxes, as `Detector.needs`."""
        return {"masks"} if self.semantic_head is None else {"masks", "semantic"}

    def losses(self, features: Sequence[Tensor], proposals: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the losses of each stage, as s0.loss_cls, and of the pixels' classes; proposals are [P,4] an image."""
        if self.semantic_head is None:
            return super().losses(features, proposals, batch)
        assert batch.targets is not None
        logits, hidden = self.semantic_head(features)
        labels = [target.semantic for target in batch.targets if target.semantic is not None]
        if len(labels) < len(batch):
            raise DetcliError(
                "this model learns classes of pixels, and the data have none. "
                "Train it with `--set model.roi_head.semantic=false`."
            )
        losses: dict[str, Tensor] = self.semantic_head.losses(logits, torch.stack(labels))
        return losses | super().losses((*features, hidden), proposals, batch)

    def features(self, levels: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the maps that RoIs are pooled from to detect: the levels, and last that of the pixels' classes."""
        return levels if self.semantic_head is None else (*levels, self.semantic_head(levels)[1])

    def mask_samples(self, number: int, samples: list[RoISample], boxes: Refined, batch: Batch) -> list[RoISample]:
        """Return RoIs that are drawn from the boxes that the stage has refined (section 3.1, interleaved execution)."""
        return self.sample(number, boxes, batch)

    def mask_logits(self, rois: Tensor, labels: Tensor, stages: range) -> list[Tensor]:
        """Return what the mask heads of `stages` say, each with what the one before saw (mask information flow)."""
        found: list[Tensor] = []
        hidden: Tensor | None = None
        for number in range(stages.stop):
            hidden = self.mask_head[number].hidden(rois, hidden)
            if number in stages:
                found.append(self.mask_head[number].logits(hidden, labels))
        return found

    def stage_masks(self, features: Sequence[Tensor], boxes: Sequence[Tensor], labels: Tensor) -> list[Tensor]:
        """Return what each mask head says of the features that the last one takes."""
        rois = self.pool(self.mask_roi_extractor[-1], features, boxes)
        return self.mask_logits(rois, labels, range(len(self.mask_head)))

    def pool(self, extractor: nn.Module, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Return [R,C,S,S] of the boxes [P,4] of each image; with a semantic head, its map is the last of features."""
        if self.semantic_roi_extractor is None:
            return super().pool(extractor, features, boxes)
        found = super().pool(extractor, features[:-1], boxes)
        added = super().pool(self.semantic_roi_extractor, features[-1:], boxes)
        return found + functional.adaptive_avg_pool2d(added, (found.shape[-2], found.shape[-1]))


def hybrid_masks(
    *,
    in_channels: int,
    num_classes: int,
    takes_previous: bool,
    convs: int = 4,
    channels: int | None = None,
    norm: Literal["none", "bn", "syncbn", "gn", "gn_ws"] = "none",
) -> HybridMaskHead:
    """Return the head of masks of a stage; its convolutions have `channels` outputs (None: `in_channels`)."""
    return HybridMaskHead(
        in_channels,
        num_classes,
        channels=channels or in_channels,
        num_convs=convs,
        norm=norm,
        takes_previous=takes_previous,
    )


class HybridMaskHead(roi_head.MaskHead):
    """The mask head of a stage, which, but for the first, takes what the one before saw (`takes_previous`)."""

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        channels: int,
        num_convs: int,
        norm: Norm | Literal["none"],
        takes_previous: bool,
    ) -> None:
        super().__init__(in_channels, num_classes, channels=channels, num_convs=num_convs, norm=norm)
        self.conv_res = ConvNorm(channels, in_channels, 1, norm=norm) if takes_previous else None

    def hidden(self, rois: Tensor, previous: Tensor | None) -> Tensor:
        """Return what the convolutions make of rois [R,C,S,S] and the `previous` stage's [R,channels,S,S] or None."""
        if previous is not None and self.conv_res is not None:
            rois = rois + self.conv_res(previous)
        for conv in self.convs:
            rois = conv(rois)
        return rois


class FusedSemanticHead(nn.Module):
    """Classes of pixels, and features for RoIs, from all levels of a pyramid brought to one (figure 4).

    That `level` has `stride`; the loss is times `loss_weight`.
    """

    def __init__(
        self,
        channels: int,
        num_levels: int,
        num_classes: int,
        *,
        level: int,
        stride: int,
        num_convs: int,
        loss_weight: float,
    ) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(ConvNorm(channels, channels, 1) for _ in range(num_levels))
        self.convs = nn.ModuleList(ConvNorm(channels, channels, 3) for _ in range(num_convs))
        self.conv_embedding = ConvNorm(channels, channels, 1)
        self.conv_logits = nn.Conv2d(channels, num_classes, 1)
        nn.init.kaiming_normal_(self.conv_logits.weight, mode="fan_out", nonlinearity="relu")
        assert self.conv_logits.bias is not None
        nn.init.zeros_(self.conv_logits.bias)
        self.level = level
        self.stride = stride
        self.loss_weight = loss_weight

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return logits [N,classes,H,W] and features [N,C,H,W] at the level, of the maps of all levels."""
        size = features[self.level].shape[-2:]
        hidden = self.lateral_convs[self.level](features[self.level])
        for level, feature in enumerate(features):
            if level != self.level:
                resized = functional.interpolate(feature, size, mode="bilinear", align_corners=True)
                hidden = hidden + self.lateral_convs[level](resized)
        for conv in self.convs:
            hidden = conv(hidden)
        return self.conv_logits(hidden), self.conv_embedding(hidden)

    def losses(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return loss_semantic_seg: the cross-entropy of logits for labels [N,H*stride,W*stride].

        Every `stride`-th pixel counts; those that are `UNLABELLED` have no loss and still count in the mean.
        """
        chosen = labels[:, :: self.stride, :: self.stride].long()
        pixels = functional.cross_entropy(logits.float(), chosen, ignore_index=UNLABELLED, reduction="none")
        return {"loss_semantic_seg": pixels.mean() * self.loss_weight}
