"""PAA: Probabilistic Anchor Assignment (Kim and Lee 2020, arXiv 2007.08103).

The layers of ATSS, its centerness being the IoU that a box is expected to have. An object's candidates are separated
by the model's own losses, and detections are moved to where their neighbours are. Deviations from the paper, as in
MMDetection: of figure 3, scheme (c) and no ignored samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from detcli.nn.anchors import AnchorGenerator
from detcli.nn.assigners import AnchorAssigner
from detcli.nn.box_coders import DeltaBoxCoder
from detcli.nn.boxes import aligned_iou, clip_boxes, pairwise_iou
from detcli.nn.dense_heads import ATSSLayers, Selection, assign_anchors, map_sizes
from detcli.nn.detector import SingleStageDetector
from detcli.nn.losses import LossFunction, of_elements
from detcli.nn.postprocess import multiclass_nms
from detcli.nn.processes import reduce_mean
from detcli.plugin import Assigner, Backbone, Loss, Neck
from detcli.registry import build
from detcli.structures import Batch, Detections

VARIANCE_FLOOR = 1e-6
"""What is added to the variance of a component."""

TOLERANCE, MAX_ROUNDS = 1e-3, 100
"""The fit of a mixture ends when its mean log-likelihood changes by less, or after so many rounds."""

VOTING_SIGMA = 0.025
"""How fast a neighbour's vote falls with its IoU (equation 10)."""

VOTING_IOU = 0.01
"""What a neighbour overlaps a detection by, at least."""


class PAAHead(ATSSLayers):
    """Classes, boxes and their expected IoU of one anchor at each location."""

    def __init__(
        self,
        in_channels: int,
        feat_channels: int,
        num_classes: int,
        anchors: AnchorGenerator,
        box_coder: DeltaBoxCoder,
        assigner: AnchorAssigner,
        topk: int,
        loss_cls: LossFunction,
        loss_bbox: LossFunction,
        loss_iou: LossFunction,
        selection: Selection,
        *,
        score_voting: bool,
        stacked_convs: int,
        norm: Literal["none", "bn", "syncbn", "gn"],
        prior_probability: float,
    ) -> None:
        super().__init__(
            in_channels,
            feat_channels,
            num_classes,
            len(anchors.strides),
            stacked_convs=stacked_convs,
            norm=norm,
            prior_probability=prior_probability,
        )
        self.anchors = anchors
        self.box_coder = box_coder
        self.assigner = assigner
        self.topk = topk
        self.loss_cls = of_elements(loss_cls, "model.loss_cls")
        self.loss_bbox = of_elements(loss_bbox, "model.loss_bbox")
        self.loss_iou = loss_iou
        self.selection = selection
        self.score_voting = score_voting

    def losses(self, features: Sequence[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return loss_cls, loss_bbox and loss_iou of the samples that `separate` leaves positive."""
        logits, deltas, iou_logits = self(features)
        sizes = map_sizes(features)
        anchors, targets = assign_anchors(self.assigner, self.anchors, sizes, batch, self.num_classes)
        labels, goals = targets.labels.flatten(), targets.boxes.flatten(0, 1)
        # Other anchors keep their own box: a loss of no overlap's gradient, which their weight of 0 removes.
        boxes = self.box_coder.decode(anchors, torch.where(targets.positive[..., None], deltas.float(), 0.0))
        boxes = boxes.flatten(0, 1)
        loss = self.loss_cls.rows(logits.flatten(0, 1), labels) + self.loss_bbox.rows(boxes, goals)
        counts = [len(level) for level in self.anchors(sizes, anchors.device)]
        num_objects = max(len(target.labels) for target in batch.targets or [])
        chosen = separate(loss.view_as(targets.labels), targets.gt_index, num_objects, counts, self.topk).flatten()

        num_positive = reduce_mean(chosen.sum())
        iou = aligned_iou(boxes.detach(), goals) * chosen
        return {
            "loss_cls": self.loss_cls(
                logits.flatten(0, 1),
                torch.where(chosen, labels, self.num_classes),
                targets.trained.flatten().float(),
                num_positive.clamp(min=len(batch)),
            ),
            "loss_bbox": self.loss_bbox(boxes, goals, iou.clamp(min=1e-12) * chosen, reduce_mean(iou.sum())),
            "loss_iou": self.loss_iou(iou_logits.flatten(), iou, chosen.float(), num_positive),
        }

    @torch.no_grad()
    def detect(self, features: Sequence[Tensor], batch: Batch) -> list[Detections]:
        """Return the detections of each image; a score is the root of a class's probability times the expected IoU.

        All classes of the best `nms_pre` anchors of each level enter NMS and vote.
        """
        logits, deltas, iou_logits = self(features)
        levels = self.anchors(map_sizes(features), logits.device)
        scores = (logits.float().sigmoid() * iou_logits.float().sigmoid()[..., None]).sqrt()
        index, start = [], 0
        for best in scores.amax(-1).split([len(level) for level in levels], dim=1):
            index.append(best.topk(min(self.selection.nms_pre, best.shape[1])).indices + start)
            start += best.shape[1]
        anchors = torch.cat(index, dim=1)
        chosen = deltas.gather(1, anchors[..., None].expand(-1, -1, 4)).float()
        boxes = self.box_coder.decode(torch.cat(levels)[anchors], chosen, batch.sizes[:, None])
        scores = scores.gather(1, anchors[..., None].expand(-1, -1, self.num_classes))
        return [self._select(*image) for image in zip(boxes, scores, batch.sizes, strict=True)]

    def _select(self, boxes: Tensor, scores: Tensor, size: Tensor) -> Detections:
        """Return the detections of one image of size [2] from its candidates: boxes [K,4], scores [K,C]."""
        selection = self.selection
        limits = selection.score_threshold, selection.nms_threshold, selection.max_per_image
        found = Detections(*multiclass_nms(boxes, scores, *limits)[:3])
        if self.score_voting:
            votes = torch.where(scores > selection.score_threshold, scores, 0.0).T[found.labels]
            found.boxes = clip_boxes(vote(found.boxes, boxes, votes), size)  # a mean is rounded
        return found


@torch.no_grad()
def separate(losses: Tensor, gt_index: Tensor, num_objects: int, level_counts: Sequence[int], topk: int) -> Tensor:
    """Return which anchors are positive, bool [N,A] (section 3.2, algorithm 1).

    losses [N,A]; gt_index [N,A] int64 is the object, of at most `num_objects` in an image, that an anchor is a
    candidate of, negative for none. Of an object's candidates, the `topk` of each level with the least losses are
    kept, and a mixture of two Gaussians is fitted to these losses. Those that belong to the first, from the least
    loss to the most likely one, are positive. An object with a single candidate has none.
    """
    num_images, num_anchors = gt_index.shape
    # A group: one object of one image on one level. The last is of all anchors that are no candidates.
    level = torch.arange(len(level_counts), device=losses.device).repeat_interleave(
        torch.tensor(level_counts, device=losses.device), output_size=num_anchors
    )
    image = torch.arange(num_images, device=losses.device)[:, None]
    groups = num_images * num_objects * len(level_counts)
    group = torch.where(gt_index >= 0, (image * num_objects + gt_index) * len(level_counts) + level, groups).flatten()
    order = losses.flatten().argsort()
    order = order[group[order].argsort(stable=True)]
    group = group[order]
    rank = torch.arange(len(group), device=losses.device) - torch.searchsorted(group, group)

    # A row for each object; one place more, for what is left out.
    place = torch.where((rank < topk) & (group < groups), group * topk + rank, groups * topk)
    kept = losses.new_full((groups * topk + 1,), torch.inf).scatter_(0, place, losses.flatten()[order])
    anchors = torch.full_like(kept, len(order), dtype=torch.int64).scatter_(0, place, order)
    kept, by_loss = kept[:-1].view(num_images * num_objects, len(level_counts) * topk).sort()
    anchors = anchors[:-1].view(kept.shape).gather(1, by_loss)

    # On the CPU, where it costs least: the rows are short, and each round asks whether all are done.
    values = kept.double().cpu()
    present = values.isfinite()
    component, density = fit_mixture(values, present)
    first = present & (component == 0)
    most_likely = density.masked_fill(~first, -torch.inf).argmax(1, keepdim=True)
    positive = first & (torch.arange(values.shape[1]) <= most_likely) & (present.sum(1, keepdim=True) > 1)

    chosen = torch.zeros(len(order) + 1, dtype=torch.bool, device=losses.device)
    return chosen.scatter_(0, anchors.flatten(), positive.flatten().to(losses.device))[:-1].view(gt_index.shape)


def fit_mixture(values: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Fit two Gaussians to those values [G,K] float64 of each row that are `present` [G,K].

    Return which of them, 0 or 1, each value more likely comes from, and the logarithm of the density of both there,
    each [G,K]. At the start they lie at the least and the largest value, with a share of 0.5 and a variance of 1. The
    rounds of expectation-maximisation, their end included, are those of scikit-learn's GaussianMixture.
    """
    x = values.masked_fill(~present, 0.0)[..., None]
    count = present.sum(1, keepdim=True)
    least, largest = values.masked_fill(~present, torch.inf), values.masked_fill(~present, -torch.inf)
    means = torch.stack([least.amin(1), largest.amax(1)], dim=-1)
    variances, shares = torch.ones_like(means), torch.full_like(means, 0.5)
    active = count > 1
    likelihood = torch.full_like(means[:, :1], -torch.inf)
    for _ in range(MAX_ROUNDS):
        each, both = _log_densities(x, means, variances, shares)
        belongs = (each - both[..., None]).exp() * present[..., None]
        mass = belongs.sum(1) + 10 * torch.finfo(x.dtype).eps
        new_means = (belongs * x).sum(1) / mass
        new_variances = (belongs * (x - new_means[:, None]).square()).sum(1) / mass + VARIANCE_FLOOR
        means = torch.where(active, new_means, means)
        variances = torch.where(active, new_variances, variances)
        shares = torch.where(active, mass / count, shares)
        before, likelihood = likelihood, (both * present).sum(1, keepdim=True) / count
        active = active & ((likelihood - before).abs() >= TOLERANCE)
        if not active.any():
            break
    each, both = _log_densities(x, means, variances, shares)
    return each.argmax(-1), both


def _log_densities(x: Tensor, means: Tensor, variances: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logarithms at x [G,K,1] of each Gaussian's share times density [G,K,2], and of their sum [G,K]."""
    squares = (x - means[:, None]).square() / variances[:, None]
    each = shares.log()[:, None] - 0.5 * (math.log(2 * math.pi) + variances.log()[:, None] + squares)
    return each, each.logsumexp(-1)


def vote(boxes: Tensor, candidates: Tensor, votes: Tensor) -> Tensor:
    """Return detected boxes [D,4] moved to the mean of all candidates [K,4] near them (section 3.4, score voting).

    votes [D,K] are the candidates' scores for the label of a detection, 0 where they have none.
    """
    iou = pairwise_iou(boxes, candidates)
    weights = torch.where(iou > VOTING_IOU, votes * (-((1 - iou) ** 2) / VOTING_SIGMA).exp(), 0.0)
    total = weights.sum(1, keepdim=True)
    return torch.where(total > 0, weights @ candidates / total, boxes)  # a box without area overlaps not even itself


def paa(
    *,
    num_classes: int,
    backbone: Backbone = "r50",
    neck: Neck = {"name": "fpn", "start_level": 1, "extra": "on_output"},
    stacked_convs: int = 4,
    feat_channels: int | None = None,
    norm: Literal["none", "bn", "syncbn", "gn"] = "gn",
    anchor_scale: float = 8.0,
    assigner: Assigner = {"name": "max_iou", "positive": 0.1, "negative": 0.1},
    topk: int = 9,
    loss_cls: Loss = "focal",
    loss_bbox: Loss = {"name": "giou", "weight": 1.3},
    loss_iou: Loss = {"name": "cross_entropy", "sigmoid": True, "weight": 0.5},
    prior_probability: float = 0.01,
    score_threshold: float = 0.05,
    nms_pre: int = 1000,
    nms_threshold: float = 0.6,
    max_per_image: int = 100,
    score_voting: bool = True,
) -> SingleStageDetector:
    """Return PAA; its head is as wide as the neck unless `feat_channels` says otherwise.

    `anchor_scale` is the side of an anchor in strides; `norm` the normalisation in the head; `assigner` finds the
    candidates of which `topk` a level are kept. For the rest see `Selection`.
    """
    body = build("backbones", backbone)
    pyramid = build("necks", neck, in_channels=body.out_channels, in_strides=body.strides)
    head = PAAHead(
        pyramid.out_channels,
        feat_channels or pyramid.out_channels,
        num_classes,
        AnchorGenerator(pyramid.strides, ratios=(1.0,), scales=(anchor_scale,)),
        DeltaBoxCoder(stds=(0.1, 0.1, 0.2, 0.2)),
        build("assigners", assigner),
        topk,
        build("losses", loss_cls),
        build("losses", loss_bbox),
        build("losses", loss_iou),
        Selection(score_threshold, nms_pre, nms_threshold, max_per_image),
        score_voting=score_voting,
        stacked_convs=stacked_convs,
        norm=norm,
        prior_probability=prior_probability,
    )
    return SingleStageDetector(body, pyramid, head)
