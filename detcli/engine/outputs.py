"""What an evaluation leaves in its folder: metrics.json, COCO results and annotated pictures."""

from __future__ import annotations

import json
from pathlib import Path

from detcli.data import DetectionDataset
from detcli.engine.evaluate import Evaluation
from detcli.eval.report import write_metrics

SHOW_SCORE = 0.3
SHOW_SIDE = 480
"""Pictures whose longer side is far below this are drawn larger, so that labels do not hide the objects."""


def write_evaluation(folder: Path, evaluation: Evaluation, dataset: DetectionDataset) -> None:
    """Write metrics.json, results.json (COCO results) and pictures/ with the kept detections drawn.

    metrics.json is in percent, with AP by class and notes.
    """
    import cv2

    from detcli.visual import contact_sheet, draw

    folder.mkdir(parents=True, exist_ok=True)
    write_metrics(folder / "metrics.json", evaluation.metrics, evaluation.per_class, evaluation.notes)
    (folder / "results.json").write_text(json.dumps(evaluation.results))
    if not evaluation.shown:
        return
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    drawn = []
    for info, detections in evaluation.shown:
        picture = dataset.picture(info.image_id)
        scale = max(1, round(SHOW_SIDE / max(picture.shape[:2])))
        image = draw(picture, detections, dataset.classes.names, SHOW_SCORE, scale)
        cv2.imwrite(str(pictures / f"{Path(info.name).stem}.png"), image[..., ::-1])
        drawn.append(image)
    cv2.imwrite(str(pictures / "all.png"), contact_sheet(drawn, columns=4)[..., ::-1])
