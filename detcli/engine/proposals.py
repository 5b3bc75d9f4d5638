"""Write the proposals that an RPN makes for a dataset, for Fast R-CNN to train and evaluate on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import torch

from detcli.config import revise
from detcli.data import make_loader, open_dataset
from detcli.data.proposals import write_proposals
from detcli.engine.device import autocast
from detcli.engine.model import Normalizer
from detcli.engine.predictor import Predictor
from detcli.errors import UsageError
from detcli.eval.results import rescale_boxes


def propose(
    predictor: Predictor, source: str, split: Literal["train", "val"], path: Path, advance: Callable[[int, int], None]
) -> tuple[int, int]:
    """Write the proposals for the `split` of the data at `source` to `path`; return the numbers of pictures and of boxes.

    Boxes are in the pictures' own pixels, without augmentation. Raises `UsageError` when the model makes no proposals.
    """
    if "proposal" not in predictor.model.tasks:
        raise UsageError(
            f"{predictor.path} is a {predictor.config.recipe}, which makes no proposals. Give an rpn checkpoint."
        )
    config = revise(predictor.config, flags={"data.source": source, "data.train": "", "data.val": ""})
    dataset = open_dataset(config.data, split, config.input, classes=predictor.classes, augment=False)
    loader = make_loader(
        dataset,
        batch=config.eval.batch,
        train=False,
        seed=0,
        workers=config.data.workers,
        pad_divisor=config.input.pad_divisor,
        group_aspect=False,
    )
    normalize = Normalizer(config.input, predictor.device)
    counts = [0, 0]

    @torch.inference_mode()
    def items() -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
        for batch in loader:
            with autocast(predictor.device, predictor.precision):
                found = predictor.model(normalize(batch, config.train.channels_last))
            for info, detections in zip(batch.infos, found, strict=True):
                proposals = rescale_boxes(detections, info).to("cpu")
                counts[0] += 1
                counts[1] += len(proposals)
                yield info.image_id, proposals.boxes, proposals.scores
            advance(counts[0], len(dataset))

    write_proposals(path, items())
    return counts[0], counts[1]
