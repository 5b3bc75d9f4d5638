"""Keypoints of regions of interest, as the best places of heat maps (He et al. 2017, Mask R-CNN, section 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from detcli.errors import DetcliError
from detcli.nn.blocks import ConvNorm
from detcli.nn.processes import reduce_mean
from detcli.structures import Target

if TYPE_CHECKING:
    from detcli.nn.roi_head import RoISample


class KeypointHead(nn.Module):
    """A heat map of every keypoint in each RoI, from convolutions, a deconvolution and bilinear upsampling.

    Maps have four times the side of the RoIs. With the style ``detectron``, upsampling takes what is beyond a map as 0,
    and maps reach from the middle of the first pixel of a box to that of the last, both as in Detectron
    (modeling/keypoint_rcnn_heads.py, utils/keypoints.py).
    """

    def __init__(
        self,
        in_channels: int,
        num_keypoints: int,
        *,
        channels: int,
        num_convs: int,
        style: Literal["exact", "detectron"] = "exact",
    ) -> None:
        super().__init__()
        self.style = style
        widths = [in_channels] + [channels] * num_convs
        self.convs = nn.ModuleList(ConvNorm(width, channels, 3) for width in widths[:-1])
        self.upsample = nn.ConvTranspose2d(widths[-1], num_keypoints, 4, stride=2, padding=1)
        nn.init.kaiming_normal_(self.upsample.weight, mode="fan_out", nonlinearity="relu")
        assert self.upsample.bias is not None
        nn.init.zeros_(self.upsample.bias)

    def forward(self, rois: Tensor) -> Tensor:
        """Return the logits [R,K,4S,4S] of rois [R,C,S,S]."""
        for conv in self.convs:
            rois = conv(rois)
        maps = self.upsample(rois)
        if self.style == "exact":
            return _enlarged(maps)
        return _enlarged(functional.pad(maps, (1, 1, 1, 1)))[..., 2:-2, 2:-2]

    def find(self, logits: Tensor, boxes: Tensor) -> Tensor:
        """Return the keypoints [R,K,3] of boxes [R,4] with the maps `logits` [R,K,S,S], as `find_keypoints` does."""
        return find_keypoints(logits, self._mapped(boxes))

    def losses(self, rois: Tensor, samples: list[RoISample], targets: list[Target]) -> dict[str, Tensor]:
        """Return loss_keypoint: the mean over visible keypoints of the cross-entropy over the places of a map.

        rois [R,C,S,S] are those of the samples, which are `possible_positives`; a keypoint counts where it is in its
        RoI. Raises `DetcliError` when the targets have no keypoints.
        """
        logits = self(rois).float()
        places, visible = [], []
        for sample, target in zip(samples, targets, strict=True):
            if target.keypoints is None:
                raise DetcliError("this model learns keypoints, and the data have none. Train faster_rcnn.")
            # Index -1, that of no object, reads the row that is appended.
            padded = functional.pad(target.keypoints, (0, 0, 0, 0, 0, 1))
            index, inside = keypoint_places(padded[sample.gt_index], self._mapped(sample.boxes), logits.shape[-1])
            places.append(index)
            visible.append(inside & sample.positive[:, None])
        weight = torch.cat(visible).flatten()
        loss = functional.cross_entropy(logits.flatten(2).flatten(0, 1), torch.cat(places).flatten(), reduction="none")
        return {"loss_keypoint": (loss * weight).sum() / reduce_mean(weight.sum(), least=1)}

    def _mapped(self, boxes: Tensor) -> Tensor:
        """Return what of boxes [R,4] their maps cover."""
        return boxes + boxes.new_tensor([0.5, 0.5, -0.5, -0.5]) if self.style == "detectron" else boxes


def _enlarged(maps: Tensor) -> Tensor:
    return functional.interpolate(maps, scale_factor=2.0, mode="bilinear", align_corners=False)


def keypoint_places(keypoints: Tensor, boxes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the cell of each keypoint in the map of its box, int64 [R,K] in 0..size²-1, and which are there, bool.

    keypoints [R,K,3] (x, y, visibility), those of visibility 0 unlabelled; boxes [R,4] xyxy, both in pixels. The map
    has `size` x `size` cells, row by row. A keypoint on the right or lower side is in the last cell.
    """
    corner, side = boxes[:, None, :2], (boxes[:, 2:] - boxes[:, :2])[:, None]
    points = keypoints[..., :2]
    cells = ((points - corner) * (size / side)).floor()
    cells = torch.where(points == boxes[:, None, 2:], size - 1, cells)
    inside = ((cells >= 0) & (cells < size)).all(-1) & (keypoints[..., 2] > 0)
    cells = torch.where(inside[..., None], cells, 0).long()
    return cells[..., 1] * size + cells[..., 0], inside


def find_keypoints(logits: Tensor, boxes: Tensor) -> Tensor:
    """Return the best place of each keypoint: float32 [R,K,3], x and y in pixels and a score in 0..1.

    logits [R,K,S,S] over boxes [R,4] xyxy in pixels. A map is resized to whole pixels of its box, bicubically; the
    score is the share of its best pixel in the softmax of the map as it was. At least one pixel a side.
    """
    logits, boxes = logits.float(), boxes.float()
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
    pixels = sides.ceil()
    found = logits.new_zeros(*logits.shape[:2], 3)
    for keypoints, maps, (width, height) in zip(found, logits, pixels.long().tolist(), strict=True):
        resized = functional.interpolate(maps[None], (height, width), mode="bicubic", align_corners=False)[0]
        best, place = resized.flatten(1).max(1)
        keypoints[:, 0], keypoints[:, 1] = place % width, place // width
        keypoints[:, 2] = 1 / (maps - best[:, None, None]).exp().sum((1, 2))
    found[..., :2] = (found[..., :2] + 0.5) * (sides / pixels)[:, None] + boxes[:, None, :2]
    return found
