"""Box coders: what a head predicts in place of a box, and back."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from detcli.nn.boxes import clip_boxes

CoderStyle: TypeAlias = Literal["exact", "v1"]


class DeltaBoxCoder:
    """Shifts of the centre and log-ratios of the sides (Girshick et al. 2014, R-CNN, appendix C).

    Deltas are relative to a reference box and normalised to (delta - `means`) / `stds`. Decoding limits the
    log-ratios to |log(`clip_ratio`)|, at both ends with `clamp_below`, only against growth without it.

    `style` is what a side is: x2 - x1 (``exact``), or x2 - x1 + 1 (``v1``), as where x2 is the last pixel of a box.
    ``v1`` is what MMDetection 2 does with the models of 1; decoded boxes are then half a pixel larger at each side.
    """

    def __init__(
        self,
        *,
        means: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0),
        stds: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
        clip_ratio: float = 16 / 1000,
        clamp_below: bool = True,
        style: CoderStyle = "exact",
    ) -> None:
        self.norm = torch.tensor([means, stds])
        self.max_log_ratio = abs(math.log(clip_ratio))
        self.min_log_ratio = -self.max_log_ratio if clamp_below else None
        self.pixel = 0.0 if style == "exact" else 1.0

    def encode(self, boxes: Tensor, gt: Tensor) -> Tensor:
        """Return the deltas [...,4] (dx, dy, dw, dh) that turn reference boxes [...,4] into gt [...,4]."""
        center, size = self._center_size(boxes)
        gt_center, gt_size = self._center_size(gt)
        deltas = torch.cat([(gt_center - center) / size, (gt_size / size).log()], dim=-1)
        means, stds = self._norm_on(deltas.device).unbind(0)
        return (deltas - means) / stds

    def decode(self, boxes: Tensor, deltas: Tensor, max_size: Tensor | None = None) -> Tensor:
        """Return the boxes [...,4] that deltas [...,4] make of reference boxes [...,4], which broadcast.

        With max_size [...,2] (height, width), boxes are cut at the borders of the image.
        """
        means, stds = self._norm_on(deltas.device).unbind(0)
        deltas = deltas * stds + means
        center, size = self._center_size(boxes)
        log_ratio = deltas[..., 2:].clamp(self.min_log_ratio, self.max_log_ratio)
        center = center + size * deltas[..., :2]
        half = size * log_ratio.exp() * 0.5
        decoded = torch.cat([center - half, center + half], dim=-1)
        return decoded if max_size is None else clip_boxes(decoded, max_size - self.pixel)

    def _norm_on(self, device: torch.device) -> Tensor:
        if self.norm.device != device:  # moved once: a copy to the GPU would wait for it
            with torch.inference_mode(False):  # training may follow a prediction
                self.norm = self.norm.to(device)
        return self.norm

    def _center_size(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        low, high = boxes[..., :2], boxes[..., 2:]
        return (low + high) * 0.5, high - low + self.pixel


class DistanceBoxCoder:
    """Distances from a point to the left, top, right and bottom of a box (Tian et al. 2019, equation 1)."""

    def encode(self, points: Tensor, gt: Tensor, max_distance: float | None = None, margin: float = 0.1) -> Tensor:
        """Return the distances [...,4] from points [...,2] to gt [...,4]; negative outside the box.

        With `max_distance`, distances are limited to 0..max_distance - margin.
        """
        distances = torch.cat([points - gt[..., :2], gt[..., 2:] - points], dim=-1)
        return distances if max_distance is None else distances.clamp(0, max_distance - margin)

    def decode(self, points: Tensor, distances: Tensor, max_size: Tensor | None = None) -> Tensor:
        """Return the boxes [...,4] that lie distances [...,4] around points [...,2].

        With max_size [...,2] (height, width), boxes are cut at the borders of the image.
        """
        boxes = torch.cat([points - distances[..., :2], points + distances[..., 2:]], dim=-1)
        return boxes if max_size is None else clip_boxes(boxes, max_size)
