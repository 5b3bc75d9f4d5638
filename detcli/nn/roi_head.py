"""The second stage: boxes, classes, masks and keypoints of regions of interest (Girshick 2015; He et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from detcli.errors import DetcliError, UsageError
from detcli.nn.assigners import AnchorAssigner, Assignment
from detcli.nn.blocks import ConvNorm, Norm, normal_init, xavier_init
from detcli.nn.box_coders import DeltaBoxCoder
from detcli.nn.keypoint_head import KeypointHead
from detcli.nn.losses import Loss
from detcli.nn.masks import crop_masks
from detcli.nn.postprocess import multiclass_nms
from detcli.nn.processes import reduce_mean
from detcli.nn.samplers import RandomSampler
from detcli.structures import Batch, Detections, Target


@dataclass(slots=True)
class RoISample:
    """The sampled RoIs of one image: boxes [K,4]; the object of each, its box [K,4], index [K] and label [K].

    Where not `positive` [K], the object's box is the RoI's own, its index -1 and its label the number of
    classes. Rows that are not `valid` [K] only fill up. Positives come first, `positive_limit` at most.
    """

    boxes: Tensor
    objects: Tensor
    gt_index: Tensor
    labels: Tensor
    positive: Tensor
    valid: Tensor
    positive_limit: int

    def positive_rows(self) -> Tensor | slice:
        """Return where the positives are; on a GPU, that one would have to wait for, where positives can be."""
        return slice(self.positive_limit) if self.positive.is_cuda else self.positive.nonzero()[:, 0]

    def possible_positives(self) -> RoISample:
        """Return the rows of `positive_rows`."""
        return self[self.positive_rows()]

    def __getitem__(self, rows: Tensor | slice) -> RoISample:
        return RoISample(
            self.boxes[rows],
            self.objects[rows],
            self.gt_index[rows],
            self.labels[rows],
            self.positive[rows],
            self.valid[rows],
            self.positive_limit,
        )


@dataclass(slots=True)
class ObjectMaps:
    """What heads say of the RoIs of all images: probabilities masks [R,S,S], logits keypoints [R,K,S,S], or None."""

    masks: Tensor | None = None
    keypoints: Tensor | None = None


class RoILayers(nn.Module):
    """What a head of RoIs begins with: convolutions (Wu and He 2018, section 4.2), then fully connected layers.

    Without the latter (`num_fcs` 0), the mean of each RoI's features (ResNet, appendix A). What it returns has `width`
    channels.
    """

    def __init__(
        self,
        in_channels: int,
        roi_size: int,
        *,
        channels: int,
        num_convs: int = 0,
        num_fcs: int = 2,
        norm: Norm | Literal["none"] = "none",
    ) -> None:
        super().__init__()
        self.shared_convs = nn.ModuleList(ConvNorm(in_channels, in_channels, 3, norm=norm) for _ in range(num_convs))
        widths = [in_channels * roi_size**2] + [channels] * num_fcs
        self.shared_fcs = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        xavier_init(self.shared_fcs)
        self.width = channels if num_fcs else in_channels
        self.roi_size = roi_size

    def hidden(self, rois: Tensor) -> Tensor:
        """Return [R,width] of rois [R,C,S,S]."""
        hidden = rois
        for conv in self.shared_convs:
            hidden = conv(hidden)
        if not self.shared_fcs:
            hidden = hidden.mean((2, 3))
        for layer in self.shared_fcs:
            hidden = functional.relu(layer(hidden) if isinstance(layer, nn.Conv2d) else layer(hidden.flatten(1)))
        return hidden.flatten(1)

    def prepare_detection(self) -> None:
        """Make the first layer a convolution as large as the RoIs, which reads them as they lie in memory."""
        if not self.shared_fcs:
            return
        dense = self.shared_fcs[0]
        assert isinstance(dense, nn.Linear)
        size = self.roi_size
        conv = nn.Conv2d(dense.in_features // size**2, dense.out_features, size, device="meta")
        conv.weight = nn.Parameter(dense.weight.detach().view(conv.weight.shape), requires_grad=False)
        conv.bias = dense.bias
        self.shared_fcs[0] = conv


class BBoxHead(RoILayers):
    """Classes and boxes of RoIs. There is a box for each class, or one for all of them with `class_agnostic`.

    `decode_before_loss` gives the loss boxes in pixels in place of deltas, for losses of overlaps.
    """

    def __init__(
        self,
        in_channels: int,
        roi_size: int,
        num_classes: int,
        box_coder: DeltaBoxCoder,
        loss_cls: Loss,
        loss_bbox: Loss,
        *,
        channels: int,
        num_convs: int = 0,
        num_fcs: int = 2,
        norm: Norm | Literal["none"] = "none",
        class_agnostic: bool = False,
        decode_before_loss: bool,
    ) -> None:
        super().__init__(in_channels, roi_size, channels=channels, num_convs=num_convs, num_fcs=num_fcs, norm=norm)
        self.fc_cls = nn.Linear(self.width, num_classes + 1)
        self.fc_reg = nn.Linear(self.width, 4 if class_agnostic else num_classes * 4)
        normal_init(self.fc_cls, std=0.01)
        normal_init(self.fc_reg, std=0.001)
        self.num_classes = num_classes
        self.box_coder = box_coder
        self.loss_cls = loss_cls
        self.loss_bbox = loss_bbox
        self.decode_before_loss = decode_before_loss

    def forward(self, rois: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits [R,classes+1], background last, and the deltas [R,classes,4] of rois [R,C,S,S].

        Those of a `class_agnostic` head are [R,1,4].
        """
        hidden = self.hidden(rois)
        return self.fc_cls(hidden), self.fc_reg(hidden).unflatten(1, (-1, 4))

    def losses(self, logits: Tensor, deltas: Tensor, samples: list[RoISample]) -> dict[str, Tensor]:
        """Return loss_cls and loss_bbox of what was predicted for sampled RoIs, both divided by their number."""
        boxes = torch.cat([sample.boxes for sample in samples])
        objects = torch.cat([sample.objects for sample in samples])
        labels = torch.cat([sample.labels for sample in samples])
        positive = torch.cat([sample.positive for sample in samples])
        valid = torch.cat([sample.valid for sample in samples])
        count = reduce_mean(valid.sum(), least=1)
        # A negative reads the deltas of the last class; they have weight 0.
        predicted = deltas[torch.arange(len(labels), device=labels.device), labels.clamp(max=deltas.shape[1] - 1)]
        if self.decode_before_loss:
            predicted, goals = self.box_coder.decode(boxes, predicted.float()), objects
        else:
            # A negative can have no area, as what a stage made of an RoI, and then no logarithm of its sides.
            unit = torch.tensor([0.0, 0.0, 1.0, 1.0], device=boxes.device)
            own, aims = (torch.where(positive[:, None], part, unit) for part in (boxes, objects))
            goals = self.box_coder.encode(own, aims)
        return {
            "loss_cls": self.loss_cls(logits, labels, valid, count),
            "loss_bbox": self.loss_bbox(predicted, goals, positive, count),
        }


def with_boxes(head: nn.Module) -> BBoxHead:
    """Return `head`; raises `UsageError` when it does not find classes and boxes both."""
    if not isinstance(head, BBoxHead):
        raise UsageError("this second stage has a head of classes and boxes: `--set model.roi_head.bbox_head=conv_fc`.")
    return head


class MaskHead(nn.Module):
    """A mask of every class in each RoI, from convolutions and a deconvolution (Mask R-CNN, figure 4).

    Masks have twice the side of the RoIs.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        channels: int,
        num_convs: int,
        norm: Norm | Literal["none"] = "none",
    ) -> None:
        super().__init__()
        widths = [in_channels] + [channels] * num_convs
        self.convs = nn.ModuleList(ConvNorm(width, channels, 3, norm=norm) for width in widths[:-1])
        self.upsample = nn.ConvTranspose2d(widths[-1], channels, 2, stride=2)
        self.conv_logits = nn.Conv2d(channels, num_classes, 1)
        for layer in (self.upsample, self.conv_logits):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, rois: Tensor, labels: Tensor) -> Tensor:
        """Return the mask logits [R,2S,2S] of rois [R,C,S,S], each for its label of labels [R]."""
        hidden = rois
        for conv in self.convs:
            hidden = conv(hidden)
        return self.logits(hidden, labels)

    def logits(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Return the mask logits [R,2S,2S] of what the convolutions made of RoIs [R,C,S,S], each for its label [R]."""
        hidden = functional.relu(self.upsample(hidden), inplace=True)
        # Of the 1x1 convolution, only the output of each RoI's own class.
        weight = self.conv_logits.weight.flatten(1)[labels]
        assert self.conv_logits.bias is not None
        logits = hidden.permute(0, 2, 3, 1).flatten(1, 2) @ weight[..., None]
        return logits.view(len(hidden), *hidden.shape[-2:]) + self.conv_logits.bias[labels, None, None]

    def losses(self, rois: Tensor, samples: list[RoISample], targets: list[Target]) -> dict[str, Tensor]:
        """Return `mask_losses` of rois [R,C,S,S], those of the samples."""
        return mask_losses(self(rois, self.trained_labels(samples)), samples, targets)

    def trained_labels(self, samples: list[RoISample]) -> Tensor:
        """Return the label [R] of the mask that each RoI is trained with; that of a negative has no weight."""
        labels = torch.cat([sample.labels for sample in samples])
        return labels.clamp(max=self.conv_logits.out_channels - 1)


def mask_losses(logits: Tensor, samples: list[RoISample], targets: list[Target]) -> dict[str, Tensor]:
    """Return loss_mask: the mean binary cross-entropy of the positives' pixels (Mask R-CNN, section 3).

    logits [R,S,S] are of the RoIs of the samples, which are `possible_positives`. Raises `DetcliError` when the targets
    have no masks.
    """
    weight = torch.cat([sample.positive for sample in samples])
    goals = []
    for sample, target in zip(samples, targets, strict=True):
        if target.masks is None:
            raise DetcliError("this model learns masks, and the data have none. Train faster_rcnn.")
        index = sample.gt_index.clamp(min=0)
        goals.append(crop_masks(target.masks, sample.boxes, index, logits.shape[-1]))
    pixels = functional.binary_cross_entropy_with_logits(logits.float(), torch.cat(goals), reduction="none")
    return {"loss_mask": (pixels.mean((1, 2)) * weight).sum() / reduce_mean(weight.sum(), least=1)}


class RoIHead(nn.Module):
    """Finds the class, the box and, with a `mask_head` or a `keypoint_head`, the mask or keypoints of each proposal.

    With a `shared_head`, the features of RoIs go through it before any other head. Without an extractor of their own,
    masks and keypoints come from the features that boxes come from.
    """

    def __init__(
        self,
        bbox_roi_extractor: nn.Module,
        bbox_head: BBoxHead,
        assigner: AnchorAssigner,
        sampler: RandomSampler,
        *,
        score_threshold: float,
        nms_threshold: float,
        max_per_image: int,
        shared_head: nn.Module | None = None,
        mask_roi_extractor: nn.Module | None = None,
        mask_head: MaskHead | None = None,
        keypoint_roi_extractor: nn.Module | None = None,
        keypoint_head: KeypointHead | None = None,
    ) -> None:
        super().__init__()
        self.bbox_roi_extractor = bbox_roi_extractor
        self.mask_roi_extractor = mask_roi_extractor
        self.keypoint_roi_extractor = keypoint_roi_extractor
        self.shared_head = shared_head
        self.bbox_head = bbox_head
        self.mask_head = mask_head
        self.keypoint_head = keypoint_head
        self.assigner = assigner
        self.sampler = sampler
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.max_per_image = max_per_image

    @property
    def tasks(self) -> tuple[str, ...]:
        """What it finds of each proposal, as `Detector.tasks`."""
        heads = {"mask": self.mask_head, "keypoint": self.keypoint_head}
        return ("box", *(task for task, head in heads.items() if head is not None))

    def losses(self, features: Sequence[Tensor], proposals: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return loss_cls, loss_bbox and those of the other heads; proposals are [P,4] for each image."""
        assert batch.targets is not None
        samples = [
            self._sample(boxes, target, seed)
            for boxes, target, seed in zip(proposals, batch.targets, batch.each_seed(), strict=True)
        ]
        rois = self._pool(self.bbox_roi_extractor, features, [sample.boxes for sample in samples])
        logits, deltas = self.bbox_head(rois)
        losses = self.bbox_head.losses(logits, deltas, samples)
        heads = self._object_heads()
        positives = [sample.possible_positives() for sample in samples if heads]
        for extractor, head in heads:
            if extractor is None:
                parts = torch.split(rois, [len(sample.boxes) for sample in samples])
                own = torch.cat([part[sample.positive_rows()] for part, sample in zip(parts, samples, strict=True)])
            else:
                own = self._pool(extractor, features, [sample.boxes for sample in positives])
            losses |= head.losses(own, positives, batch.targets)
        return losses

    def features(self, levels: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the maps that RoIs are pooled from to detect, of the levels of the pyramid: these themselves."""
        return levels

    def detect(self, levels: Sequence[Tensor], proposals: list[Tensor], batch: Batch) -> list[Detections]:
        """Return the detections of each image, with mask crops and keypoints where there are heads for them."""
        features = self.features(levels)
        found = self.detect_boxes(features, proposals, batch)
        counts = [len(detections) for detections in found]
        maps = self.object_maps(features, found)
        if maps.masks is not None:
            for detections, part in zip(found, torch.split(maps.masks, counts), strict=True):
                detections.mask_crops = part
        if self.keypoint_head is not None and maps.keypoints is not None:
            keypoints = self.keypoint_head.find(maps.keypoints, torch.cat([each.boxes for each in found]))
            for detections, part in zip(found, torch.split(keypoints, counts), strict=True):
                detections.keypoints = part
        return found

    def detect_boxes(self, features: Sequence[Tensor], proposals: list[Tensor], batch: Batch) -> list[Detections]:
        """Return the detections of each image, without masks and keypoints."""
        counts = [len(boxes) for boxes in proposals]
        rois = to_rois(proposals)
        logits, deltas = self.bbox_head(self._pool(self.bbox_roi_extractor, features, proposals))
        scores = logits.float().softmax(-1)[:, :-1]
        sizes = batch.sizes[rois[:, 0].long()]
        boxes = self.bbox_head.box_coder.decode(rois[:, None, 1:], deltas.float(), sizes[:, None])
        found = []
        for image_boxes, image_scores in zip(torch.split(boxes, counts), torch.split(scores, counts), strict=True):
            kept_boxes, kept_scores, labels, _ = multiclass_nms(
                image_boxes, image_scores, self.score_threshold, self.nms_threshold, self.max_per_image
            )
            found.append(Detections(kept_boxes, kept_scores, labels))
        return found

    def object_maps(self, features: Sequence[Tensor], found: list[Detections]) -> ObjectMaps:
        """Return what the heads of masks and keypoints make of the boxes and labels of each image."""
        boxes = [detections.boxes for detections in found]
        maps = ObjectMaps()
        if self.mask_head is not None:
            labels = torch.cat([detections.labels for detections in found])
            rois = self._pool(self.mask_roi_extractor or self.bbox_roi_extractor, features, boxes)
            maps.masks = self.mask_head(rois, labels).float().sigmoid()
        if self.keypoint_head is not None:
            rois = self._pool(self.keypoint_roi_extractor or self.bbox_roi_extractor, features, boxes)
            maps.keypoints = self.keypoint_head(rois)
        return maps

    def _object_heads(self) -> list[tuple[nn.Module | None, MaskHead | KeypointHead]]:
        """Return the heads that look at objects alone, and where the features of their RoIs come from."""
        heads: list[tuple[nn.Module | None, MaskHead | KeypointHead]] = []
        if self.mask_head is not None:
            heads.append((self.mask_roi_extractor, self.mask_head))
        if self.keypoint_head is not None:
            heads.append((self.keypoint_roi_extractor, self.keypoint_head))
        return heads

    def _pool(self, extractor: nn.Module, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Return the features [R,C,S,S] of the boxes [P,4] of each image."""
        rois: Tensor = extractor(features, to_rois(boxes))
        return rois if self.shared_head is None else self.shared_head(rois)

    def _sample(self, proposals: Tensor, target: Target, seed: Tensor | None = None) -> RoISample:
        """Choose the RoIs of one image that are trained, and match them with objects."""
        return sample_rois(proposals, target, self.assigner, self.sampler, self.bbox_head.num_classes, seed)


@torch.no_grad()
def sample_rois(
    proposals: Tensor,
    target: Target,
    assigner: AnchorAssigner,
    sampler: RandomSampler,
    background: int,
    seed: Tensor | None = None,
    usable: Tensor | None = None,
) -> RoISample:
    """Choose the RoIs of one image that are trained, and match them with objects.

    proposals [P,4], of which those that are `usable` [P] count (None: all); `background` is the label of what is no
    object. A sampler that adds the ground truth puts it before the proposals.
    """
    assignment = assigner(proposals, target, [len(proposals)], usable)
    boxes = proposals
    if sampler.add_gt:
        own = torch.arange(len(target.boxes), device=proposals.device)
        boxes = torch.cat([target.boxes, proposals])
        assignment = Assignment(
            torch.cat([own, assignment.gt_index]),
            torch.cat([torch.ones_like(own).float(), assignment.iou]),
        )
    sample = sampler(assignment, seed)
    boxes = boxes[sample.index]
    # Index -1, the negatives', reads the row that is appended.
    objects = torch.cat([target.boxes, boxes.new_zeros(1, 4)])[sample.gt_index]
    return RoISample(
        boxes,
        torch.where(sample.positive[:, None], objects, boxes),
        sample.gt_index,
        torch.cat([target.labels, target.labels.new_full((1,), background)])[sample.gt_index],
        sample.positive,
        sample.valid,
        sample.positive_limit,
    )


def to_rois(boxes: Sequence[Tensor]) -> Tensor:
    """Return the boxes [P,4] of each image as RoIs [R,5]: index of the image, then xyxy."""
    return torch.cat([functional.pad(image, (1, 0), value=index) for index, image in enumerate(boxes)])
