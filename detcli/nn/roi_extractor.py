"""Features of regions of interest, each from the pyramid level that fits its size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision import ops

from detcli.nn.boxes import box_area
from detcli.nn.roi_align import pyramid_roi_align


def single_level(
    *,
    strides: tuple[int, ...],
    output_size: int = 7,
    sampling_ratio: int = 0,
    aligned: bool = True,
    last_pixel: bool = False,
    finest_scale: int = 56,
    num_levels: int = 4,
) -> SingleLevelExtractor:
    """Return an extractor by RoIAlign (Mask R-CNN, section 3) from the lowest `num_levels` levels.

    RoIs of a side up to twice `finest_scale` pixels come from the lowest level, those up to twice as large
    again from the next, and so on (FPN, equation 1). `sampling_ratio` points are averaged along each side of
    an output cell; 0: as many as the cell's side is long on the map. Without `aligned`, coordinates are half
    a cell off, and with `last_pixel`, RoIs end a pixel before x2 and y2, both as in Detectron.
    """
    return SingleLevelExtractor(
        strides[:num_levels], output_size, sampling_ratio, aligned, finest_scale, last_pixel=last_pixel
    )


class SingleLevelExtractor(nn.Module):
    """RoIAlign on one level for each RoI."""

    def __init__(
        self,
        strides: tuple[int, ...],
        output_size: int,
        sampling_ratio: int,
        aligned: bool,
        finest_scale: int,
        *,
        last_pixel: bool = False,
    ) -> None:
        super().__init__()
        self.strides = strides
        self.output_size = output_size
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned
        self.finest_scale = finest_scale
        self.last_pixel = last_pixel

    def forward(self, features: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Return float32 [R,C,S,S] of rois [R,5] (image index, xyxy in pixels), in their order.

        features are [N,C,H/stride,W/stride], lowest level first; those above the last stride are not used.
        """
        levels = self.levels(rois[:, 1:])
        if self.last_pixel:
            rois = torch.cat([rois[:, :3], rois[:, 3:] - 1], dim=1)
        used = features[: len(self.strides)]
        return align(used, levels, rois, self.output_size, self.strides, self.sampling_ratio, self.aligned)

    def levels(self, boxes: Tensor) -> Tensor:
        """Return the index [R] of the level of boxes [R,4]."""
        scale = box_area(boxes).clamp(min=0).sqrt() / self.finest_scale
        return (scale + 1e-6).log2().floor().long().clamp(0, len(self.strides) - 1)


def align(
    features: Sequence[Tensor],
    levels: Tensor,
    rois: Tensor,
    output_size: int,
    strides: Sequence[int],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Return float32 [R,C,S,S] of rois [R,5] by RoIAlign, each on the map of its level of levels [R].

    features are [N,C,H/stride,W/stride]; the rest is as in `single_level`.
    """
    scales = [1 / stride for stride in strides]
    if rois.device.type == "cpu":
        return pyramid_roi_align(features, levels, rois, output_size, scales, sampling_ratio, aligned)
    order = levels.argsort(stable=True)
    # The one device sync for all levels: how many RoIs each has.
    counts = (levels == torch.arange(len(strides), device=rois.device)[:, None]).sum(1).tolist()
    pooled = [
        ops.roi_align(feature.float(), part, output_size, scale, sampling_ratio, aligned)
        for feature, scale, part in zip(features, scales, torch.split(rois[order], counts), strict=True)
    ]
    return torch.cat(pooled)[order.argsort()]
