"""Write the proposals that an RPN makes for a dataset, for Fast R-CNN to train and evaluate on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from torch import Tensor

from detcli.config import revise
from detcli.data import open_dataset
from detcli.data.proposals import write_proposals
from detcli.engine.evaluate import detect_in
from detcli.engine.predictor import Predictor
from detcli.errors import UsageError


def propose(
    predictor: Predictor,
    source: str,
    split: Literal["train", "val"],
    path: Path,
    advance: Callable[[int, int], None],
) -> tuple[int, int]:
    """Write the proposals for the `split` of the data at `source` to `path`; return how many pictures and boxes.

    Boxes are in the pictures' own pixels, without augmentation. Raises `UsageError` when the model makes no proposals.
    """
    if "proposal" not in predictor.model.tasks:
        raise UsageError(
            f"{predictor.path} is a {predictor.config.recipe}, which makes no proposals. Give an rpn checkpoint."
        )
    config = revise(predictor.config, flags={"data.source": source, "data.train": "", "data.val": ""})
    dataset = open_dataset(config.data, split, config.input, classes=predictor.classes, augment=False)
    counts = [0, 0]

    def items() -> Iterator[tuple[int, Tensor, Tensor]]:
        for info, proposals in detect_in(predictor.model, dataset, config, predictor.device, predictor.precision):
            counts[0] += 1
            counts[1] += len(proposals)
            advance(counts[0], len(dataset))
            yield info.image_id, proposals.boxes.cpu(), proposals.scores.cpu()

    write_proposals(path, items())
    return counts[0], counts[1]
