"""DETR: End-to-End Object Detection with Transformers (Carion et al. 2020, arXiv 2005.12872).

Deviations from the paper, as in MMDetection: 150 epochs in place of 500. Deviation from both: the loss of classes, as
that of boxes, is divided by a mean over all processes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detcli.nn.blocks import xavier_init
from detcli.nn.boxes import clip_boxes
from detcli.nn.detector import SingleStageDetector, trunk
from detcli.nn.losses import Loss as LossFunction
from detcli.nn.matching import Matcher, object_set, to_pixels
from detcli.nn.processes import reduce_mean
from detcli.nn.transformer import (
    DecoderLayer,
    EncoderLayer,
    FeedForward,
    cells_inside,
    padding_mask,
    sine_positions,
)
from detcli.plugin import Assigner, Backbone, Loss
from detcli.registry import build
from detcli.structures import Batch, Detections


class Encoder(nn.Module):
    """Layers one after the other."""

    def __init__(self, layers: list[EncoderLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, tokens: Tensor, positions: Tensor, padding: Tensor) -> Tensor:
        """Return [N,T,C] of tokens [N,T,C] at positions [N,T,C], padding [N,T]."""
        for layer in self.layers:
            tokens = layer(tokens, positions, padding)
        return tokens


class Decoder(nn.Module):
    """Layers one after the other; the norm at the end is that of each layer's output, too."""

    def __init__(self, layers: list[DecoderLayer], channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.post_norm = nn.LayerNorm(channels)

    def forward(self, query_positions: Tensor, memory: Tensor, positions: Tensor, padding: Tensor) -> Tensor:
        """Return the outputs [L,N,Q,C] of all layers for queries at [N,Q,C], of memory and positions [N,T,C]."""
        queries = torch.zeros_like(query_positions)
        outputs = []
        for layer in self.layers:
            queries = layer(queries, query_positions, memory, positions, padding)
            outputs.append(self.post_norm(queries))
        return torch.stack(outputs)


class Transformer(nn.Module):
    """An encoder of the map and a decoder of the queries (section 3.2, appendix A.3)."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        xavier_init(self)

    def forward(self, tokens: Tensor, positions: Tensor, padding: Tensor, queries: Tensor) -> Tensor:
        """Return [L,N,Q,C] of tokens and positions [N,T,C], padding [N,T] and learned queries [Q,C]."""
        memory = self.encoder(tokens, positions, padding)
        outputs: Tensor = self.decoder(queries.expand(len(tokens), -1, -1), memory, positions, padding)
        return outputs


class DETRHead(nn.Module):
    """A class or none, and a box, for each of a fixed number of learned queries (section 3.2)."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_classes: int,
        num_queries: int,
        transformer: Transformer,
        assigner: Matcher,
        loss_cls: LossFunction,
        loss_bbox: LossFunction,
        loss_iou: LossFunction,
        *,
        background_weight: float,
        max_per_image: int,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.num_classes = num_classes
        self.assigner = assigner
        self.loss_cls = loss_cls
        self.loss_bbox = loss_bbox
        self.loss_iou = loss_iou
        self.background_weight = background_weight
        self.max_per_image = max_per_image
        self.input_proj = nn.Conv2d(in_channels, channels, 1)
        self.transformer = transformer
        self.query_embedding = nn.Embedding(num_queries, channels)
        self.fc_cls = nn.Linear(channels, num_classes + 1)
        self.reg_ffn = FeedForward(channels, channels, residual=False)
        self.fc_reg = nn.Linear(channels, 4)

    def forward(self, features: Sequence[Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        """Return class logits [L,N,Q,classes+1], background last, and boxes [L,N,Q,4] of all L layers of the decoder.

        features are one map [N,C,H,W] of the batch's images; boxes are (centre x, centre y, width, height), 0..1 of
        their image.
        """
        (feature,) = features
        padded, shape = batch.images.shape[-2:], feature.shape[-2:]
        inside = cells_inside(batch.sizes, (padded[0], padded[1]), (shape[0], shape[1]))
        positions = sine_positions(inside, (shape[0], shape[1]), self.channels)
        padding = padding_mask(inside, (shape[0], shape[1]))
        tokens = self.input_proj(feature).flatten(2).transpose(1, 2)
        outputs = self.transformer(tokens, positions, padding, self.query_embedding.weight)
        boxes = self.fc_reg(self.reg_ffn(outputs).relu())
        return self.fc_cls(outputs).float(), boxes.float().sigmoid()

    def losses(self, features: Sequence[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return loss_cls, loss_bbox and loss_iou (section 3.1, equation 2); those of earlier layers are of d0, d1, ...

        Each object is matched to one query of each layer, and queries without an object are background.
        """
        logits, boxes = self(features, batch)
        objects = object_set(batch)
        matched = self.assigner(logits, boxes, objects)
        num_layers, num_images, num_queries = boxes.shape[:3]
        # One query more, which is cut off again, takes the labels of padding and of objects without a query.
        labels = matched.new_full((num_layers, num_images, num_queries + 1), self.num_classes)
        labels = labels.scatter(2, matched, objects.labels.expand_as(matched))[..., :-1]
        is_matched = (matched < num_queries).float()
        index = matched.clamp(max=num_queries - 1)[..., None].expand(-1, -1, -1, 4)
        found = boxes.gather(2, index)
        corners, goals = to_pixels(found, batch.sizes), to_pixels(objects.boxes, batch.sizes)

        # As many objects are matched in each layer.
        num_matched = is_matched[0].sum()
        num_background = num_images * num_queries - num_matched
        class_weight = torch.where(labels == self.num_classes, self.background_weight, 1.0)
        class_divisor = reduce_mean(num_matched + self.background_weight * num_background, least=1)
        box_divisor = reduce_mean(num_matched, least=1)
        losses = {}
        for layer in reversed(range(num_layers)):
            prefix = "" if layer == num_layers - 1 else f"d{layer}."
            weight = is_matched[layer].flatten()
            losses[f"{prefix}loss_cls"] = self.loss_cls(
                logits[layer].flatten(0, 1), labels[layer].flatten(), class_weight[layer].flatten(), class_divisor
            )
            losses[f"{prefix}loss_bbox"] = self.loss_bbox(
                found[layer].flatten(0, 1), objects.boxes.flatten(0, 1), weight, box_divisor
            )
            losses[f"{prefix}loss_iou"] = self.loss_iou(
                corners[layer].flatten(0, 1), goals.flatten(0, 1), weight, box_divisor
            )
        return losses

    @torch.no_grad()
    def detect(self, features: Sequence[Tensor], batch: Batch) -> list[Detections]:
        """Return the queries with the best classes of each image, as they are: no threshold, no NMS."""
        logits, boxes = (outputs[-1] for outputs in self(features, batch))
        scores, labels = logits.softmax(-1)[..., :-1].max(-1)
        scores, best = scores.topk(min(self.max_per_image, scores.shape[1]))
        labels = labels.gather(1, best)
        boxes = clip_boxes(to_pixels(boxes, batch.sizes), batch.sizes[:, None])
        boxes = boxes.gather(1, best[..., None].expand(-1, -1, 4))
        return [Detections(*image) for image in zip(boxes, scores, labels, strict=True)]


def detr(
    *,
    num_classes: int,
    backbone: Backbone = {"name": "r50", "norm_trained": False, "out_stages": [4]},
    num_queries: int = 100,
    channels: int = 256,
    heads: int = 8,
    encoder_layers: int = 6,
    decoder_layers: int = 6,
    ffn_channels: int = 2048,
    dropout: float = 0.1,
    assigner: Assigner = "hungarian",
    loss_cls: Loss = "cross_entropy",
    loss_bbox: Loss = {"name": "l1", "weight": 5.0},
    loss_iou: Loss = {"name": "giou", "weight": 2.0},
    background_weight: float = 0.1,
    max_per_image: int = 100,
) -> SingleStageDetector:
    """Return DETR on a backbone of one map, with a transformer of `channels`.

    `num_queries` is the greatest number of objects that it finds; `background_weight` what a query without an object
    counts in the loss of classes.
    """
    body = trunk(backbone, None)
    layer = channels, heads, ffn_channels, dropout
    encoder = Encoder([EncoderLayer(*layer) for _ in range(encoder_layers)])
    decoder = Decoder([DecoderLayer(*layer) for _ in range(decoder_layers)], channels)
    head = DETRHead(
        body.channels,
        channels,
        num_classes,
        num_queries,
        Transformer(encoder, decoder),
        build("assigners", assigner),
        build("losses", loss_cls),
        build("losses", loss_bbox),
        build("losses", loss_iou),
        background_weight=background_weight,
        max_per_image=max_per_image,
    )
    return SingleStageDetector(body.backbone, None, head)
