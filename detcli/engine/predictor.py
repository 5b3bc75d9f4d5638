"""From pictures to detections, with a trained model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import torch
from numpy.typing import NDArray

from detcli.config import RunConfig, revise
from detcli.data import Preprocess, collate, load_image
from detcli.engine.checkpoint import open_checkpoint
from detcli.engine.device import Precision, autocast, find_device
from detcli.engine.evaluate import merged
from detcli.engine.model import Normalizer, load_model
from detcli.engine.tta import Augmented
from detcli.eval.results import paste, rescale_boxes
from detcli.nn.detector import Detector
from detcli.structures import ClassMap, Detections, ImageInfo

Picture = str | os.PathLike[str] | NDArray[Any]


class Predictor:
    """A trained model that takes pictures; `names` are its class names in label order."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        device: str = "auto",
        precision: Precision = "fp32",
        *,
        overlays: Iterable[str] = (),
        settings: Iterable[str] = (),
    ) -> None:
        checkpoint = open_checkpoint(path)
        self.path: Path = checkpoint.path
        self.metrics = checkpoint.metrics
        config = revise(checkpoint.config, overlays=overlays, settings=settings)
        target = find_device(device)
        self._use(load_model(checkpoint, config, target, precision), config, checkpoint.classes, target, precision)

    @classmethod
    def of(
        cls, model: Detector, config: RunConfig, classes: ClassMap, device: torch.device, precision: Precision = "fp32"
    ) -> Self:
        """Return the predictor of a model in memory that is `detcli.engine.model.prepare`d for `device`."""
        predictor = cls.__new__(cls)
        predictor.path, predictor.metrics = Path(), {}
        predictor._use(model, config, classes, device, precision)
        return predictor

    def _use(
        self, model: Detector, config: RunConfig, classes: ClassMap, device: torch.device, precision: Precision
    ) -> None:
        self.model, self.config, self.classes = model, config, classes
        self.device = device
        self.precision: Precision = precision
        self._normalize = Normalizer(config.input, device)
        self._preprocess = Preprocess(config.data)
        self._augmented: Augmented | None = None
        if config.eval.tta.active:
            self._augmented = Augmented(model, config, classes, device, precision)

    @property
    def names(self) -> tuple[str, ...]:
        """Class names in label order."""
        return self.classes.names

    # A path as str is a sequence of str, too; the first overload is meant.
    @overload
    def predict(  # type: ignore[overload-overlap]
        self, images: Picture, *, batch: int = ..., score: float = ...
    ) -> Detections: ...
    @overload
    def predict(self, images: Sequence[Picture], *, batch: int = ..., score: float = ...) -> list[Detections]: ...

    def predict(
        self, images: Picture | Sequence[Picture], *, batch: int = 1, score: float = 0.0
    ) -> Detections | list[Detections]:
        """Detect in one picture or in several: paths, or uint8 RGB arrays [H,W,3].

        Returns `Detections` on the CPU, one for each picture, with boxes, masks [D,H,W] and keypoints in the
        picture's own pixels, best first, those of at least `score`; of a panoptic model with the segments, too.
        Raises `DetcliError` for a file that can't be read as a picture.
        """
        if isinstance(images, str | os.PathLike | np.ndarray):
            return next(self.stream(iter([images]), batch=1, score=score))
        return list(self.stream(iter(images), batch=batch, score=score))

    def stream(self, images: Iterator[Picture], *, batch: int = 1, score: float = 0.0) -> Iterator[Detections]:
        """Yield the detections of each of `images`, as `predict` does, `batch` at a time.

        With test-time augmentation, the views of one picture are what is detected in at a time.
        """
        samples = []
        for index, image in enumerate(images):
            pixels = image if isinstance(image, np.ndarray) else load_image(image)
            if self._augmented:
                found = self._augmented(pixels)
                size = pixels.shape[0], pixels.shape[1]
                yield self._finished(found, ImageInfo(index, "", size, size), score)
                continue
            name = str(index) if isinstance(image, np.ndarray) else os.fspath(image)
            samples.append(self._preprocess(pixels, image_id=index, name=name))
            if len(samples) == batch:
                yield from self._detect(samples, score)
                samples = []
        if samples:
            yield from self._detect(samples, score)

    @torch.inference_mode()
    def _detect(self, samples: list[Any], score: float) -> Iterator[Detections]:
        batch = collate(samples, self.config.input.pad_divisor)
        with autocast(self.device, self.precision):
            found = self.model(self._normalize(batch, self.config.train.channels_last))
        infos: list[ImageInfo] = batch.infos
        for info, detections in zip(infos, found, strict=True):
            yield self._finished(merged(self.model, rescale_boxes(detections, info), info), info, score)

    @staticmethod
    def _finished(detections: Detections, info: ImageInfo, score: float) -> Detections:
        """Return detections in pixels of the original picture with whole masks, those of at least `score`."""
        return paste(detections[detections.scores >= score], info).to("cpu")


def load(
    path: str | os.PathLike[str],
    device: str = "auto",
    precision: Precision = "fp32",
    *,
    overlays: Iterable[str] = (),
    settings: Iterable[str] = (),
) -> Predictor:
    """Return the trained model in the checkpoint (or run folder) at `path`, ready to take pictures.

    `overlays` are names of those that change how it detects, as ``["tta"]``, and `settings` are texts, as
    ``["eval.tta.flip=false"]``.

    Raises `DetcliError` when the file is not a whole checkpoint of detcli, or `device` is not there, and `UsageError`
    for an overlay or a setting that is unknown or does not fit.
    """
    return Predictor(path, device, precision, overlays=overlays, settings=settings)
