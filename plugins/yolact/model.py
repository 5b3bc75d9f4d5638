"""YOLACT: Real-time Instance Segmentation (Bolya et al. 2019, arXiv 1904.02689).

Prototype masks of the whole image, and for each box the coefficients that make its mask of them.

Deviations from the paper, as in MMDetection: at most 100 masks of an image are trained; the classes of pixels are one
channel off (class c is channel c - 1, and the first class the last channel), which no detection depends on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from detcli.nn.anchors import AnchorGenerator
from detcli.nn.assigners import AnchorAssigner, Assignment
from detcli.nn.blocks import xavier_init
from detcli.nn.box_coders import DeltaBoxCoder
from detcli.nn.dense_heads import DenseTargets, assign_anchors, conv_tower, flatten_maps, map_sizes
from detcli.nn.detector import Detector
from detcli.nn.losses import LossFunction
from detcli.nn.postprocess import fast_nms
from detcli.nn.processes import reduce_mean
from detcli.nn.samplers import RandomSampler, hardest
from detcli.plugin import Assigner, Backbone, Loss, Neck
from detcli.registry import build
from detcli.structures import Batch, Detections, Target

DELTA_STDS = (0.1, 0.1, 0.2, 0.2)


class YOLACTHead(nn.Module):
    """Classes, boxes and mask coefficients of the anchors, from convolutions that all levels share (section 3.1)."""

    def __init__(
        self,
        in_channels: int,
        feat_channels: int,
        num_classes: int,
        num_anchors: int,
        num_prototypes: int,
        stacked_convs: int,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_prototypes = num_prototypes
        self.head_convs = conv_tower(in_channels, feat_channels, stacked_convs, "none")
        channels = feat_channels if stacked_convs else in_channels
        self.conv_cls = nn.Conv2d(channels, num_anchors * (num_classes + 1), 3, padding=1)
        self.conv_reg = nn.Conv2d(channels, num_anchors * 4, 3, padding=1)
        self.conv_coeff = nn.Conv2d(channels, num_anchors * num_prototypes, 3, padding=1)
        xavier_init(self)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return of all levels' anchors: logits [N,A,C+1], background last, deltas [N,A,4], coefficients [N,A,P]."""
        hidden = [self.head_convs(level) for level in features]
        return (
            flatten_maps([self.conv_cls(level) for level in hidden], self.num_classes + 1),
            flatten_maps([self.conv_reg(level) for level in hidden], 4),
            flatten_maps([self.conv_coeff(level).tanh() for level in hidden], self.num_prototypes),
        )


class Protonet(nn.Module):
    """Prototypes at twice the resolution of the lowest level (figure 3)."""

    def __init__(self, in_channels: int, channels: int, num_prototypes: int) -> None:
        super().__init__()
        self.protonet = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Upsample(scale_factor=2.0, mode="bilinear"),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, num_prototypes, 1),
            nn.ReLU(inplace=True),
        )
        xavier_init(self)

    def forward(self, level: Tensor) -> Tensor:
        """Return the prototypes [N,P,2H,2W] of a map [N,C,H,W]."""
        prototypes: Tensor = self.protonet(level)
        return prototypes


class SegmentationHead(nn.Module):
    """Classes of pixels, at the resolution of the lowest level, to train better features with (section 3.4)."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.segm_conv = nn.Conv2d(in_channels, num_classes, 1)
        xavier_init(self)

    def forward(self, level: Tensor) -> Tensor:
        """Return the logits [N,C,H,W] of a map."""
        logits: Tensor = self.segm_conv(level)
        return logits


class YOLACT(Detector):
    """A dense detector whose masks are sums of prototypes.

    `negative_ratio` negatives are trained for each positive anchor, those of greatest loss, and all where an image has
    no positive one. Detections are chosen by `fast_nms`, of the best `nms_pre` anchors of each level.
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        bbox_head: YOLACTHead,
        mask_head: Protonet,
        segm_head: SegmentationHead,
        anchors: AnchorGenerator,
        assigner: AnchorAssigner,
        loss_cls: LossFunction,
        loss_bbox: LossFunction,
        *,
        negative_ratio: int,
        max_masks: int,
        mask_weight: float,
        segm_weight: float,
        score_threshold: float,
        nms_pre: int,
        nms_threshold: float,
        nms_top_k: int,
        max_per_image: int,
    ) -> None:
        super().__init__(backbone, neck, ("box", "mask"))
        self.bbox_head = bbox_head
        self.mask_head = mask_head
        self.segm_head = segm_head
        self.anchors = anchors
        self.box_coder = DeltaBoxCoder(stds=DELTA_STDS)
        self.assigner = assigner
        self.loss_cls = loss_cls
        self.loss_bbox = loss_bbox
        self.negative_ratio = negative_ratio
        self.mask_sampler = RandomSampler(max_masks, positive_fraction=1.0)
        self.mask_weight = mask_weight
        self.segm_weight = segm_weight
        self.score_threshold = score_threshold
        self.nms_pre = nms_pre
        self.nms_threshold = nms_threshold
        self.nms_top_k = nms_top_k
        self.max_per_image = max_per_image

    def losses(self, features: tuple[Tensor, ...], batch: Batch) -> dict[str, Tensor]:
        """Return loss_cls, loss_bbox, loss_mask and loss_segm."""
        logits, deltas, coefficients = self.bbox_head(features)
        num_classes = self.bbox_head.num_classes
        anchors, targets = assign_anchors(self.assigner, self.anchors, map_sizes(features), batch, num_classes)
        divisor = reduce_mean(targets.num_positive())
        trained = targets.positive | self._hard_negatives(logits, targets)
        goals = self.box_coder.encode(anchors, targets.boxes)
        return {
            "loss_cls": self.loss_cls(
                logits.flatten(0, 1), targets.labels.flatten(), trained.flatten().float(), divisor
            ),
            "loss_bbox": self.loss_bbox(
                deltas.flatten(0, 1), goals.flatten(0, 1), targets.positive.flatten().float(), divisor
            ),
            "loss_mask": self._mask_loss(self.mask_head(features[0]), coefficients, targets, batch),
            "loss_segm": self._segmentation_loss(self.segm_head(features[0]), batch),
        }

    def _hard_negatives(self, logits: Tensor, targets: DenseTargets) -> Tensor:
        """Return the negatives that are trained: bool [N,A]."""
        negative = targets.trained & ~targets.positive
        num_positive = targets.positive.sum(1)
        counts = torch.where(num_positive > 0, self.negative_ratio * num_positive, negative.sum(1))
        background = logits.detach().float().log_softmax(-1)[..., -1]
        return hardest(-background, negative, counts)

    def _mask_loss(self, prototypes: Tensor, coefficients: Tensor, targets: DenseTargets, batch: Batch) -> Tensor:
        """Return the cross-entropy of the masks of positive anchors in their objects' boxes (section 3.1).

        The mean of a mask's pixels is divided by the share of the image that the box takes.
        """
        height, width = batch.images.shape[-2:]
        size = prototypes.shape[-2:]
        total, count = prototypes.new_zeros(()), prototypes.new_zeros(())
        images = zip(prototypes.float(), coefficients.float(), targets.gt_index, objects(batch), strict=True)
        for (maps, factors, gt_index, target), seed in zip(images, batch.each_seed(), strict=True):
            sample = self.mask_sampler(Assignment(gt_index, torch.zeros_like(factors[:, 0])), seed)
            # One object more, empty and as large as the image, is what rows look up that only fill up.
            whole = target.boxes.new_tensor([[0, 0, width, height]])
            boxes = torch.cat([target.boxes, whole])[sample.gt_index]
            goals = functional.pad(downsampled(target.masks, size), (0, 0, 0, 0, 0, 1))[sample.gt_index]
            with torch.autocast(maps.device.type, enabled=False):
                masks = assembled(maps, factors[sample.index], boxes, (height, width))
                loss = functional.binary_cross_entropy(masks, goals, reduction="none").mean((1, 2))
            share = (boxes[:, 2] - boxes[:, 0]) / width * ((boxes[:, 3] - boxes[:, 1]) / height)
            total = total + (loss / share * sample.positive).sum()
            count = count + sample.positive.sum()
        return total / reduce_mean(count, least=1) * self.mask_weight

    def _segmentation_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Return the mean over pixels of the sum over classes of the cross-entropies (section 3.4)."""
        num_images, num_classes, *size = logits.shape
        goals = []
        for target in objects(batch):
            channels = (target.labels - 1) % num_classes
            is_class = torch.arange(num_classes, device=channels.device)[:, None] == channels
            masks = downsampled(target.masks, size)
            goals.append((is_class.float() @ masks.flatten(1)).reshape(num_classes, *size) > 0)
        total = functional.binary_cross_entropy_with_logits(logits.float(), torch.stack(goals).float(), reduction="sum")
        return total / (num_images * math.prod(size)) * self.segm_weight

    @torch.no_grad()
    def detect(self, features: tuple[Tensor, ...], batch: Batch) -> list[Detections]:
        """Return the detections of each image, with maps of their masks."""
        logits, deltas, coefficients = self.bbox_head(features)
        prototypes = self.mask_head(features[0]).float()
        levels = self.anchors(map_sizes(features), logits.device)
        scores = logits.float().softmax(-1)[..., :-1]
        rows = self._best_rows(scores.amax(-1), [len(level) for level in levels])
        boxes = self.box_coder.decode(torch.cat(levels)[rows], _chosen(deltas, rows).float(), batch.sizes[:, None])
        scores, coefficients = _chosen(scores, rows), _chosen(coefficients, rows).float()
        padded = batch.images.shape[-2], batch.images.shape[-1]
        detections = []
        for image, size in enumerate(batch.sizes.tolist()):
            found, best, labels, index = fast_nms(
                boxes[image],
                scores[image],
                self.score_threshold,
                self.nms_threshold,
                self.nms_top_k,
                self.max_per_image,
            )
            with torch.autocast(prototypes.device.type, enabled=False):
                maps = assembled(prototypes[image], coefficients[image, index], found, padded)
            detections.append(Detections(found, best, labels, mask_maps=without_padding(maps, size, padded)))
        return detections

    def _best_rows(self, best: Tensor, counts: Sequence[int]) -> Tensor:
        """Return the indices [N,K] of the `nms_pre` best anchors of each level, of the best scores [N,A] of all."""
        chosen, start = [], 0
        for count, level in zip(counts, best.split_with_sizes(list(counts), dim=1), strict=True):
            chosen.append(level.topk(min(self.nms_pre, count), dim=1).indices + start)
            start += count
        return torch.cat(chosen, dim=1)


def objects(batch: Batch) -> list[Target]:
    """Return the objects of each image of a batch in training."""
    assert batch.targets is not None
    return batch.targets


def downsampled(masks: Tensor | None, size: Sequence[int]) -> Tensor:
    """Return masks [G,H,W] of 0 and 1 resized bilinearly to `size` (h, w): float32 [G,h,w] of 0 and 1."""
    assert masks is not None
    resized = functional.interpolate(masks[:, None].float(), tuple(size), mode="bilinear", align_corners=False)[:, 0]
    return (resized > 0.5).float()


def assembled(prototypes: Tensor, coefficients: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the masks [D,h,w] of coefficients [D,P] on prototypes [P,h,w]: 0..1, and 0 outside their boxes [D,4].

    size is the (height, width) that boxes and prototypes share. Boxes are one cell larger at each side.
    """
    height, width = prototypes.shape[-2:]
    masks = (coefficients @ prototypes.flatten(1)).sigmoid().reshape(-1, height, width)
    scale = boxes.new_tensor([width / size[1], height / size[0]])
    first, last = boxes[:, :2] * scale - 1, boxes[:, 2:] * scale + 1
    columns = torch.arange(width, device=boxes.device)
    rows = torch.arange(height, device=boxes.device)
    across = (columns >= first[:, :1]) & (columns < last[:, :1])
    down = (rows >= first[:, 1:]) & (rows < last[:, 1:])
    return masks * (down[:, :, None] & across[:, None, :])


def without_padding(maps: Tensor, size: Sequence[int], padded: Sequence[int]) -> Tensor:
    """Return maps [D,h,w] of an image that is padded to `padded` (height, width), of its own part, `size`, alone."""
    if tuple(size) == tuple(padded):
        return maps
    height, width = size[0] / padded[0], size[1] / padded[1]
    theta = maps.new_tensor([[[width, 0, width - 1], [0, height, height - 1]]])
    grid = functional.affine_grid(theta, [1, 1, *maps.shape[-2:]], align_corners=False)
    part: Tensor = functional.grid_sample(maps[None], grid, padding_mode="border", align_corners=False)[0]
    return part


def _chosen(values: Tensor, rows: Tensor) -> Tensor:
    """Return the rows [N,K] of values [N,A,C]."""
    return values.gather(1, rows[..., None].expand(-1, -1, values.shape[-1]))


def yolact(
    *,
    num_classes: int,
    backbone: Backbone = "r50",
    neck: Neck = {"name": "fpn", "start_level": 1, "extra": "on_input", "upsample": "bilinear"},
    image_size: int = 550,
    stacked_convs: int = 1,
    feat_channels: int | None = None,
    num_prototypes: int = 32,
    anchor_scale: float = 3.0,
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
    assigner: Assigner = {"name": "max_iou", "positive": 0.5, "negative": 0.4, "claim_all": False},
    negative_ratio: int = 3,
    loss_cls: Loss = "cross_entropy",
    loss_bbox: Loss = {"name": "smooth_l1", "weight": 1.5},
    mask_weight: float = 6.125,
    max_masks: int = 100,
    segm_weight: float = 1.0,
    score_threshold: float = 0.05,
    nms_pre: int = 1000,
    nms_threshold: float = 0.5,
    nms_top_k: int = 200,
    max_per_image: int = 100,
) -> YOLACT:
    """Return YOLACT for images of `image_size` pixels a side, over which its anchors are spread evenly.

    An anchor has `anchor_scale` times the stride of its level for a side. The heads are as wide as the neck unless
    `feat_channels` says otherwise. `loss_cls` is a softmax over the classes and background. At most `max_masks` masks
    of an image are trained. For the rest see `YOLACT`.
    """
    body = build("backbones", backbone)
    pyramid = build("necks", neck, in_channels=body.out_channels, in_strides=body.strides)
    strides = even_strides(image_size, pyramid.strides)
    anchors = AnchorGenerator(
        strides,
        ratios=anchor_ratios,
        scales=(anchor_scale,),
        base_sizes=pyramid.strides,
        centers=[stride / 2 for stride in strides],
    )
    channels = feat_channels or pyramid.out_channels
    head = YOLACTHead(
        pyramid.out_channels,
        channels,
        num_classes,
        anchors.num_base_anchors,
        num_prototypes,
        stacked_convs,
    )
    return YOLACT(
        body,
        pyramid,
        head,
        Protonet(pyramid.out_channels, channels, num_prototypes),
        SegmentationHead(pyramid.out_channels, num_classes),
        anchors,
        build("assigners", assigner),
        build("losses", loss_cls),
        build("losses", loss_bbox),
        negative_ratio=negative_ratio,
        max_masks=max_masks,
        mask_weight=mask_weight,
        segm_weight=segm_weight,
        score_threshold=score_threshold,
        nms_pre=nms_pre,
        nms_threshold=nms_threshold,
        nms_top_k=nms_top_k,
        max_per_image=max_per_image,
    )


def even_strides(image_size: int, strides: Sequence[int]) -> list[float]:
    """Return the distances at which the cells of each level lie evenly over an image of `image_size` pixels a side.

    They are less than `strides` where the image is no multiple of them, since maps are rounded up.
    """
    return [image_size / -(-image_size // stride) for stride in strides]
