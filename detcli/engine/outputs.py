"""What runs and evaluations leave in their folders: config, metrics, COCO results and annotated pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from detcli.config import RunConfig
from detcli.data import DetectionDataset
from detcli.data.panoptic import write_panoptic
from detcli.engine.evaluate import Evaluation
from detcli.eval.report import write_metrics
from detcli.files import write_text_whole
from detcli.structures import ImageInfo

SHOW_SCORE = 0.3
SHOW_SIDE = 480
"""Pictures whose longer side is far below this are drawn larger, so that labels do not hide the objects."""


def write_config(folder: Path, config: RunConfig) -> None:
    """Write config.json, the whole config of what is in `folder`."""
    write_text_whole(folder / "config.json", json.dumps(config.model_dump(mode="json"), indent=2) + "\n")


def write_batch(folder: Path, dataset: DetectionDataset, infos: Sequence[ImageInfo]) -> None:
    """Draw the pictures `infos` of a training batch, as the network saw them, with their objects, into `folder`."""
    import cv2

    from detcli.visual import draw

    folder.mkdir(parents=True, exist_ok=True)
    for number, info in enumerate(infos):
        sample = dataset.again(info)
        assert sample.target is not None
        picture = sample.image.permute(1, 2, 0).numpy()
        image = draw(picture, sample.target, dataset.classes.names, scale=_enlarged(picture.shape))
        cv2.imwrite(str(folder / f"{number:02d}_{Path(info.name).stem}.png"), image[..., ::-1])


def write_evaluation(folder: Path, evaluation: Evaluation, dataset: DetectionDataset) -> None:
    """Write metrics.json, results.json (COCO results) and pictures/ with the kept detections drawn.

    metrics.json is in percent, with AP by class and notes. Segments of things and stuff go to panoptic.json and
    panoptic/, in COCO's format.
    """
    import cv2

    from detcli.visual import contact_sheet, draw

    folder.mkdir(parents=True, exist_ok=True)
    write_metrics(folder / "metrics.json", evaluation.metrics, evaluation.per_class, evaluation.notes)
    (folder / "results.json").write_text(json.dumps(evaluation.results))
    if evaluation.segments:
        write_panoptic({"annotations": evaluation.segments}, folder / "panoptic.json")
    if not evaluation.shown:
        return
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    drawn = []
    for info, detections in evaluation.shown:
        picture = dataset.picture(info.image_id)
        image = draw(picture, detections, dataset.classes.things_and_stuff, SHOW_SCORE, _enlarged(picture.shape))
        cv2.imwrite(str(pictures / f"{Path(info.name).stem}.png"), image[..., ::-1])
        drawn.append(image)
    cv2.imwrite(str(pictures / "all.png"), contact_sheet(drawn, columns=4)[..., ::-1])


def _enlarged(shape: tuple[int, ...]) -> int:
    """Return the factor that a picture of `shape` [H,W,3] is drawn at."""
    return max(1, round(SHOW_SIDE / max(shape[:2])))
