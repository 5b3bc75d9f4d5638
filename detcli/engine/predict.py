"""Detect in files: pictures, folders, globs and videos; annotated pictures and one COCO results file come out."""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from detcli.data import load_image
from detcli.data.panoptic import write_panoptic
from detcli.engine.predictor import Predictor
from detcli.errors import DetcliError, unknown
from detcli.eval.results import to_coco, to_coco_panoptic
from detcli.structures import Detections, ImageInfo
from detcli.visual import draw

PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"}


@dataclass(slots=True)
class Predicted:
    """What came of a prediction: COCO `results` and `segments`, their `images`, how many pictures were `skipped`."""

    results: list[dict[str, Any]] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    segments: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def find_inputs(patterns: Sequence[str]) -> list[Path]:
    """Return the pictures and videos that files, folders and globs stand for, each once, folders in order of name.

    Raises `DetcliError` for a pattern that gives none.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            inside = sorted(item for item in path.rglob("*") if item.suffix.lower() in PICTURES | VIDEOS)
        elif path.is_file():
            inside = [path]
        else:
            inside = [Path(item) for item in sorted(glob.glob(pattern, recursive=True)) if Path(item).is_file()]
        if not inside:
            raise DetcliError(
                f"{pattern} is no picture, video, or folder with some; it was looked for in {Path.cwd()}."
            )
        found.update(dict.fromkeys(inside))
    return list(found)


def class_labels(predictor: Predictor, names: Sequence[str]) -> list[int]:
    """Return the labels of the classes called `names`; all of them where `names` is empty."""
    known = {name: label for label, name in enumerate(predictor.names)}
    for name in names:
        if name not in known:
            raise unknown("class", name, known)
    return [known[name] for name in names] or list(known.values())


def predict_files(
    predictor: Predictor,
    paths: Sequence[Path],
    folder: Path,
    *,
    batch: int = 1,
    score: float = 0.3,
    classes: Sequence[str] = (),
    warn: Callable[[str], None] = print,
    advance: Callable[[], None] = lambda: None,
) -> Predicted:
    """Detect in `paths` and write annotated pictures and results.json into `folder`.

    A picture that can't be decoded is named through `warn` and left out. results.json holds the COCO results with
    `images` (id and file name; a video has one image a frame). A panoptic model's segments are in panoptic.json and
    panoptic/, in COCO's format. `advance` is called after each file.
    """
    labels = class_labels(predictor, classes)
    folder.mkdir(parents=True, exist_ok=True)
    predicted = Predicted()
    names = _output_names(paths)

    def keep(detections: Detections, name: str, size: tuple[int, int], **extra: Any) -> Detections:
        wanted = [index for index, label in enumerate(detections.labels.tolist()) if label in labels]
        detections = detections[wanted]
        info = ImageInfo(len(predicted.images) + 1, name, size, size)
        predicted.images.append({"id": info.image_id, "file_name": name, "height": size[0], "width": size[1], **extra})
        predicted.results += to_coco(detections, info, predictor.classes)
        if detections.panoptic is not None:
            segments = to_coco_panoptic(detections.panoptic, info, predictor.classes)
            predicted.segments.append(segments | {"file_name": f"{info.image_id:06d}.png"})
        return detections

    pictures = [path for path in paths if path.suffix.lower() not in VIDEOS]
    readable = _readable(pictures, predicted.skipped, warn)
    for group in _groups(readable, batch):
        found = predictor.predict([image for _, image in group], batch=batch, score=score)
        for (path, image), detections in zip(group, found, strict=True):
            kept = keep(detections, str(path), image.shape[:2])
            drawn = draw(image, kept, predictor.classes.things_and_stuff, score)
            cv2.imwrite(str(folder / names[path]), drawn[..., ::-1])
            advance()
    for path in paths:
        if path.suffix.lower() in VIDEOS:
            _predict_video(predictor, path, folder / names[path], batch, score, keep)
            advance()
    (folder / "results.json").write_text(json.dumps({"images": predicted.images, "annotations": predicted.results}))
    if predicted.segments:
        write_panoptic({"images": predicted.images, "annotations": predicted.segments}, folder / "panoptic.json")
    return predicted


def _predict_video(predictor: Predictor, path: Path, out: Path, batch: int, score: float, keep: Any) -> None:
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise DetcliError(f"{path} can't be opened as a video.")
    rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
    writer = None
    frames = 0
    for group in _groups(_frames(capture), batch):
        found = predictor.predict(group, batch=batch, score=score)
        for image, detections in zip(group, found, strict=True):
            kept = keep(detections, str(path), image.shape[:2], frame=frames)
            height, width = image.shape[:2]
            writer = writer or cv2.VideoWriter(str(out), cv2.VideoWriter.fourcc(*"mp4v"), rate, (width, height))
            writer.write(np.ascontiguousarray(draw(image, kept, predictor.classes.things_and_stuff, score)[..., ::-1]))
            frames += 1
    capture.release()
    if writer is None:
        raise DetcliError(f"{path} holds no frame that can be decoded.")
    writer.release()


def _frames(capture: cv2.VideoCapture) -> Iterator[NDArray[np.uint8]]:
    while True:
        there, frame = capture.read()
        if not there:
            return
        yield np.ascontiguousarray(frame[..., ::-1])


def _readable(
    paths: Iterable[Path], skipped: list[str], warn: Callable[[str], None]
) -> Iterator[tuple[Path, NDArray[np.uint8]]]:
    for path in paths:
        try:
            yield path, load_image(path)
        except DetcliError as error:
            skipped.append(str(path))
            warn(f"skipped: {error}")


def _groups(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    group: list[Any] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _output_names(paths: Sequence[Path]) -> dict[Path, str]:
    """Give each input a file name of its own: pictures stay JPEG or become PNG, videos become MP4."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in paths:
        suffix = path.suffix.lower()
        ending = ".mp4" if suffix in VIDEOS else suffix if suffix in (".jpg", ".jpeg") else ".png"
        name, count = path.stem + ending, 1
        while name in taken:
            count += 1
            name = f"{path.stem}_{count}{ending}"
        taken.add(name)
        names[path] = name
    return names
