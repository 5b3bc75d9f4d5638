"""The second stage of Grid R-CNN: boxes from a grid of points, each found on a map of its own.

Lu, Li, Yue, Li, Yan: Grid R-CNN, arXiv 1811.12030; Grid R-CNN Plus: Faster and Better, arXiv 1906.05688, whose maps of
half the size and whose one grid for all classes these are.

Deviations from the papers, as in MMDetection: NMS is of the proposals, before detections have boxes of their own; with
its recipes, these may reach beyond the image. Here, each image has half of the 192 RoIs that a device's two images have
together there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from detcli.errors import UsageError
from detcli.nn.assigners import AnchorAssigner
from detcli.nn.blocks import Norm, logit, normal_init
from detcli.nn.boxes import clip_boxes
from detcli.nn.detector import Trunk
from detcli.nn.losses import LossFunction
from detcli.nn.postprocess import multiclass_nms
from detcli.nn.processes import reduce_mean
from detcli.nn.roi_head import RoILayers, RoISample, sample_rois, to_rois
from detcli.nn.samplers import RandomSampler, draw
from detcli.plugin import Assigner, BBoxHead, Loss, RoIExtractor, Sampler
from detcli.registry import build
from detcli.structures import Batch, Detections

NORM_GROUPS = 36


def grid_roi_head(
    *,
    trunk: Trunk,
    num_classes: int,
    roi_extractor: RoIExtractor = "roi_align",
    bbox_head: BBoxHead = "conv_fc_cls",
    assigner: Assigner = {"name": "max_iou", "positive": 0.5, "negative": 0.5, "min_positive": 0.5},
    sampler: Sampler = {"name": "random", "num": 512, "positive_fraction": 0.25, "add_gt": True},
    grid_roi_extractor: RoIExtractor = {"name": "roi_align", "output_size": 14},
    grid_size: int = 3,
    grid_convs: int = 8,
    point_channels: int = 64,
    point_radius: int = 1,
    loss_grid: Loss = {"name": "cross_entropy", "sigmoid": True, "weight": 15.0},
    max_grid_rois: int = 96,
    jitter: float = 0.15,
    score_threshold: float = 0.03,
    nms_threshold: float = 0.3,
    max_per_image: int = 100,
    clip: bool = True,
) -> GridRoIHead:
    """Return the second stage on the maps of `trunk`, with grids of `grid_size`² points.

    Each point has `point_channels` of the features, and its pixels are those within `point_radius` of it. At most
    `max_grid_rois` of an image train the grids, moved and resized by up to `jitter` of their sides. With `clip`,
    detections are cut at the borders of the image; MMDetection's are not.

    Raises `UsageError` when RoIs go through a shared head, the head is not of classes alone, a grid has less than 2x2
    points, its channels can't be divided into the groups of its norms, or its features can't be halved.
    """
    if trunk.shared_head is not None:
        raise UsageError("Grid R-CNN has no shared head: `--set model.shared_head=false`.")
    if grid_size < 2 or grid_size**2 * point_channels % NORM_GROUPS:
        raise UsageError(
            f"a grid has 2x2 points or more, whose channels are a multiple of {NORM_GROUPS} together, and not "
            f"{grid_size}x{grid_size} of {point_channels} each: `--set model.roi_head.point_channels=36`."
        )
    extractor, grid_extractor = trunk.roi_extractor(roi_extractor), trunk.roi_extractor(grid_roi_extractor)
    if grid_extractor.output_size % 2:
        raise UsageError(
            f"the features of a grid are halved, and {grid_extractor.output_size} is odd: "
            "`--set model.roi_head.grid_roi_extractor.output_size=14`."
        )
    classes = trunk.bbox_head(bbox_head, num_classes=num_classes, roi_size=extractor.output_size, class_agnostic=True)
    if not isinstance(classes, ClassHead):
        raise UsageError(
            "boxes come from grids, classes from a head of their own: `--set model.roi_head.bbox_head=conv_fc_cls`."
        )
    return GridRoIHead(
        extractor,
        classes,
        build("assigners", assigner),
        build("samplers", sampler),
        grid_extractor,
        GridHead(
            trunk.channels,
            grid_extractor.output_size,
            build("losses", loss_grid),
            grid_size=grid_size,
            num_convs=grid_convs,
            point_channels=point_channels,
            radius=point_radius,
        ),
        max_grid_rois=max_grid_rois,
        jitter=jitter,
        score_threshold=score_threshold,
        nms_threshold=nms_threshold,
        max_per_image=max_per_image,
        clip=clip,
    )


class GridRoIHead(nn.Module):
    """Finds the class of each proposal, and the box of each detection from a grid of points in and around it.

    Of an image, `max_grid_rois` positives at most train the `grid_head`. They are moved and resized by up to `jitter`
    of their sides, so that grids are learned of RoIs that fit less well (Plus, section 3).
    """

    tasks = ("box",)

    def __init__(
        self,
        bbox_roi_extractor: nn.Module,
        bbox_head: ClassHead,
        assigner: AnchorAssigner,
        sampler: RandomSampler,
        grid_roi_extractor: nn.Module,
        grid_head: GridHead,
        *,
        max_grid_rois: int,
        jitter: float,
        score_threshold: float,
        nms_threshold: float,
        max_per_image: int,
        clip: bool,
    ) -> None:
        super().__init__()
        self.bbox_roi_extractor = bbox_roi_extractor
        self.bbox_head = bbox_head
        self.grid_roi_extractor = grid_roi_extractor
        self.grid_head = grid_head
        self.assigner = assigner
        self.sampler = sampler
        self.max_grid_rois = max_grid_rois
        self.jitter = jitter
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.max_per_image = max_per_image
        self.clip = clip

    def losses(self, features: Sequence[Tensor], proposals: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return loss_cls and loss_grid; proposals are [P,4] for each image."""
        assert batch.targets is not None
        seeds = batch.each_seed()
        samples = [
            sample_rois(boxes, target, self.assigner, self.sampler, self.bbox_head.num_classes, seed)
            for boxes, target, seed in zip(proposals, batch.targets, seeds, strict=True)
        ]
        rois = to_rois([sample.boxes for sample in samples])
        losses = self.bbox_head.losses(self.bbox_head(self.bbox_roi_extractor(features, rois)), samples)

        # The sampler has drawn the positives in random order, so that the first ones are as good as any.
        positives = [sample.possible_positives()[: self.max_grid_rois] for sample in samples]
        for sample, size, seed in zip(positives, batch.sizes, seeds, strict=True):
            # The numbers of another seed, so that they have nothing to do with which RoIs were drawn.
            numbers = draw(None if seed is None else ~seed, sample.boxes.numel(), size.device)
            sample.boxes = jittered(sample.boxes, (2 * numbers - 1).view(-1, 4) * self.jitter, size)
        rois = to_rois([sample.boxes for sample in positives])
        fused, unfused = self.grid_head(self.grid_roi_extractor(features, rois))
        return losses | self.grid_head.losses(fused, unfused, positives)

    def detect(self, features: Sequence[Tensor], proposals: list[Tensor], batch: Batch) -> list[Detections]:
        """Return the detections of each image: the best proposals, with the boxes that their grids say."""
        logits = self.bbox_head(self.bbox_roi_extractor(features, to_rois(proposals)))
        scores = torch.split(logits.float().softmax(-1)[:, :-1], [len(boxes) for boxes in proposals])
        found = []
        for boxes, image_scores, size in zip(proposals, scores, batch.sizes, strict=True):
            kept, kept_scores, labels, _ = multiclass_nms(
                clip_boxes(boxes, size), image_scores, self.score_threshold, self.nms_threshold, self.max_per_image
            )
            found.append(Detections(kept, kept_scores, labels))
        rois = to_rois([detections.boxes for detections in found])
        fused, _ = self.grid_head(self.grid_roi_extractor(features, rois))
        refined = torch.split(self.grid_head.boxes(fused, rois[:, 1:]), [len(detections) for detections in found])
        for detections, boxes, size in zip(found, refined, batch.sizes, strict=True):
            detections.boxes = clip_boxes(boxes, size) if self.clip else boxes
        return found


def jittered(boxes: Tensor, offsets: Tensor, size: Tensor) -> Tensor:
    """Return boxes [P,4] that are moved and resized by offsets [P,4] (x, y, width, height), relative to their sides.

    They are cut at the last pixels of an image of `size` (height, width).
    """
    corner, opposite = boxes[:, :2], boxes[:, 2:]
    sides = opposite - corner
    centers = (corner + opposite) / 2 + sides * offsets[:, :2]
    sides = sides * (1 + offsets[:, 2:])
    return clip_boxes(torch.cat([centers - sides / 2, centers + sides / 2], dim=1), size - 1)


def conv_fc_classes(
    *,
    in_channels: int,
    num_classes: int,
    roi_size: int,
    convs: int = 0,
    fcs: int = 2,
    channels: int = 1024,
    norm: Literal["none", "bn", "syncbn", "gn", "gn_ws"] = "none",
    loss_cls: Loss = "cross_entropy",
) -> ClassHead:
    """Return the head of classes of RoIs of `in_channels` and `roi_size`, with the layers of `conv_fc`."""
    return ClassHead(
        in_channels,
        roi_size,
        num_classes,
        build("losses", loss_cls),
        channels=channels,
        num_convs=convs,
        num_fcs=fcs,
        norm=norm,
    )


class ClassHead(RoILayers):
    """Classes of RoIs."""

    def __init__(
        self,
        in_channels: int,
        roi_size: int,
        num_classes: int,
        loss_cls: LossFunction,
        *,
        channels: int,
        num_convs: int,
        num_fcs: int,
        norm: Norm | Literal["none"],
    ) -> None:
        super().__init__(in_channels, roi_size, channels=channels, num_convs=num_convs, num_fcs=num_fcs, norm=norm)
        self.fc_cls = nn.Linear(self.width, num_classes + 1)
        normal_init(self.fc_cls, std=0.01)
        self.num_classes = num_classes
        self.loss_cls = loss_cls

    def forward(self, rois: Tensor) -> Tensor:
        """Return the logits [R,classes+1], background last, of rois [R,C,S,S]."""
        logits: Tensor = self.fc_cls(self.hidden(rois))
        return logits

    def losses(self, logits: Tensor, samples: list[RoISample]) -> dict[str, Tensor]:
        """Return loss_cls of the logits of sampled RoIs, divided by their number."""
        labels = torch.cat([sample.labels for sample in samples])
        valid = torch.cat([sample.valid for sample in samples])
        return {"loss_cls": self.loss_cls(logits, labels, valid, reduce_mean(valid.sum(), least=1))}


class GridHead(nn.Module):
    """A map of each point of a grid in RoIs, from convolutions whose features neighbouring points exchange.

    Points are numbered by columns: point `column * grid_size + row`. Maps are of RoIs of twice the sides, which points
    outside of a proposal are in, too; that of a point is of the half of the sides where it can be (Plus, section 2).
    """

    def __init__(
        self,
        in_channels: int,
        roi_size: int,
        loss_grid: LossFunction,
        *,
        grid_size: int,
        num_convs: int,
        point_channels: int,
        radius: int,
    ) -> None:
        super().__init__()
        points = grid_size**2
        width = points * point_channels
        self.convs = nn.Sequential(
            convolution(in_channels, width, stride=2), *(convolution(width, width) for _ in range(num_convs - 1))
        )
        self.neighbors = [neighbors(point, grid_size) for point in range(points)]
        self.forder_trans = nn.ModuleList(transitions(len(around), point_channels) for around in self.neighbors)
        self.sorder_trans = nn.ModuleList(transitions(len(around), point_channels) for around in self.neighbors)
        self.deconv1 = nn.ConvTranspose2d(width, width, 4, stride=2, padding=1, groups=points)
        self.norm1 = nn.GroupNorm(points, width)
        self.deconv2 = nn.ConvTranspose2d(width, points, 4, stride=2, padding=1, groups=points)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        normal_init(self.deconv1, std=0.001)
        normal_init(self.deconv2, std=0.001, bias=logit(0.01))
        self.loss_grid = loss_grid
        self.grid_size = grid_size
        self.point_channels = point_channels
        self.radius = radius
        # In pixels of a map of twice the RoI's sides, which has four for each of the RoI's features: where the maps of
        # points begin, the first at the border, the last so that they end at the other one.
        self.map_size = 2 * roi_size
        starts = [max(int((step / (grid_size - 1) - 0.25) * 2 * self.map_size), 0) for step in range(grid_size)]
        starts[-1] = self.map_size
        self.register_buffer("starts", torch.tensor(starts), persistent=False)
        self.starts: Tensor

    def forward(self, rois: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits [R,points,2S,2S] of rois [R,C,S,S], of fused features and, in training, of those before.

        In eval mode, the latter are the former.
        """
        own = self.convs(rois)
        near = self.exchange(own, own, self.forder_trans)
        fused = self.exchange(own, near, self.sorder_trans)
        if not self.training:
            logits = self.logits(fused)
            return logits, logits
        both = self.logits(torch.cat([fused, own]))
        return both[: len(rois)], both[len(rois) :]

    def exchange(self, own: Tensor, others: Tensor, layers: nn.ModuleList) -> Tensor:
        """Return own features [R,points*C,S,S] of points, with what `layers` make of the neighbours' in `others`."""
        own_points, other_points = (torch.split(features, self.point_channels, dim=1) for features in (own, others))
        found = []
        for point, around, trained in zip(own_points, self.neighbors, layers, strict=True):
            assert isinstance(trained, nn.ModuleList)
            for neighbor, layer in zip(around, trained, strict=True):
                point = point + layer(other_points[neighbor])
            found.append(point)
        return torch.cat(found, dim=1)

    def logits(self, features: Tensor) -> Tensor:
        """Return [R,points,4S,4S] of the features [R,points*C,S,S] of points."""
        hidden = functional.relu(self.norm1(self.deconv1(features)), inplace=True)
        logits: Tensor = self.deconv2(hidden)
        return logits

    def losses(self, fused: Tensor, unfused: Tensor, samples: list[RoISample]) -> dict[str, Tensor]:
        """Return loss_grid of the logits [R,points,M,M] of both features for RoIs, the mean over those of objects."""
        goals = torch.cat([self.goals(sample.boxes, sample.objects) for sample in samples])
        weight = torch.cat([sample.positive for sample in samples])
        count = reduce_mean(weight.sum(), least=1) * goals[:1].numel()
        return {
            "loss_grid": self.loss_grid(fused, goals, weight, count) + self.loss_grid(unfused, goals, weight, count)
        }

    @torch.no_grad()
    def goals(self, boxes: Tensor, objects: Tensor) -> Tensor:
        """Return maps [P,points,M,M] of RoIs [P,4] and their objects' boxes [P,4]: 1 near a point of the latter's grid.

        Where twice a RoI's sides are not more pixels than a grid has points along a side, there is no 1.
        """
        sides = boxes[:, 2:] - boxes[:, :2]
        corner = boxes[:, :2] - sides / 2
        # Of all columns and rows, on maps of all of the doubled RoI: [P,x and y,steps].
        back = 1 - torch.arange(self.grid_size, device=boxes.device) / (self.grid_size - 1)
        points = objects[:, :2, None] * back + objects[:, 2:, None] * (1 - back)
        places = (points - corner[..., None]) / (2 * sides[..., None]) * (2 * self.map_size)
        # Infinite of a RoI without area, which has no goal anyhow.
        places = places.nan_to_num().clamp(-1e6, 1e6).trunc() - self.starts
        pixels = torch.arange(self.map_size, device=boxes.device)
        distances = (pixels - places[..., None]).square()  # [P,x and y,steps,M]
        columns, rows = distances.unbind(1)
        near = columns[:, :, None, None, :] + rows[:, None, :, :, None] <= self.radius**2
        usable = (2 * sides > self.grid_size).all(1)
        return (near & usable[:, None, None, None, None]).flatten(1, 2).float()

    def boxes(self, logits: Tensor, boxes: Tensor) -> Tensor:
        """Return the boxes [R,4] of the logits [R,points,M,M] of RoIs of boxes [R,4].

        An edge is the mean of its points, weighted by their scores (section 3.2).
        """
        scores, best = logits.float().sigmoid().flatten(2).max(2)
        scores, best = (values.view(-1, self.grid_size, self.grid_size) for values in (scores, best))
        x = best % self.map_size + self.starts[:, None]  # [R,columns,rows]
        y = best // self.map_size + self.starts
        sides = boxes[:, 2:] - boxes[:, :2]
        left, top = (boxes[:, :2] - sides / 2)[..., None, None].unbind(1)
        width, height = sides[..., None, None].unbind(1)
        x, y = (x + 0.5) / self.map_size * width + left, (y + 0.5) / self.map_size * height + top
        edges = (
            (x[:, 0], scores[:, 0]),
            (y[:, :, 0], scores[:, :, 0]),
            (x[:, -1], scores[:, -1]),
            (y[:, :, -1], scores[:, :, -1]),
        )
        return torch.stack([(places * weights).sum(1) / weights.sum(1) for places, weights in edges], dim=1)


def convolution(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """Return a convolution with a group norm and a ReLU."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(in_channels, out_channels, 3, stride, padding=1),
            gn=nn.GroupNorm(NORM_GROUPS, out_channels),
            relu=nn.ReLU(inplace=True),
        )
    )


def neighbors(point: int, grid_size: int) -> list[int]:
    """Return the points next to one of a grid: in the column before, above, below, in the column after."""
    column, row = divmod(point, grid_size)
    around = ((column - 1, row), (column, row - 1), (column, row + 1), (column + 1, row))
    return [x * grid_size + y for x, y in around if 0 <= x < grid_size and 0 <= y < grid_size]


def transitions(count: int, channels: int) -> nn.ModuleList:
    """Return what makes of each of `count` neighbours' features what a point takes from it (section 3.3)."""
    return nn.ModuleList(
        nn.Sequential(nn.Conv2d(channels, channels, 5, padding=2, groups=channels), nn.Conv2d(channels, channels, 1))
        for _ in range(count)
    )
