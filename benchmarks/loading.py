"""Pictures a second of one data worker at 1333x800, against torchvision's reference transforms with PIL."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from pycocotools import mask as mask_utils
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from benchmarks.report import Row, at_least, interleaved
from detcli.config import DataConfig, InputConfig
from detcli.data import make_loader, open_dataset

SIZE = (480, 640)
SCALE = (1333, 800)
PICTURES = 32
OBJECTS = 7
BATCH = 2
RUNS = 5
TIMES = 2.0


def write_dataset(folder: Path, pictures: int = PICTURES) -> Path:
    """Write a COCO folder of photo-like JPEGs, about `OBJECTS` outlined objects in each; return its JSON file."""
    random = np.random.default_rng(0)
    images, annotations = [], []
    (folder / "train2017").mkdir(parents=True)
    (folder / "annotations").mkdir()
    for number in range(1, pictures + 1):
        name = f"{number:012}.jpg"
        cv2.imwrite(str(folder / "train2017" / name), _picture(random), [cv2.IMWRITE_JPEG_QUALITY, 90])
        images.append({"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
        for _ in range(random.integers(OBJECTS - 3, OBJECTS + 4)):
            polygon = _outline(random)
            low, high = polygon.min(0), polygon.max(0)
            annotation = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": int(random.integers(1, 81)),
                "bbox": [*low.tolist(), *(high - low).tolist()],
                "area": float(cv2.contourArea(polygon.astype(np.float32))),
                "iscrowd": 0,
                "segmentation": [polygon.reshape(-1).tolist()],
            }
            annotations.append(annotation)
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, 81)]
    file = folder / "annotations" / "instances_train2017.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file


def _picture(random: np.random.Generator) -> np.ndarray:
    """Return a picture with structure at every scale, less of it the finer, as photos have."""
    image = np.zeros((*SIZE, 3), np.float32)
    for cells in (4, 16, 64, 256):
        noise = random.normal(size=(cells * 3 // 4, cells, 3)).astype(np.float32)
        image += cv2.resize(noise, SIZE[::-1], interpolation=cv2.INTER_CUBIC) * 90 / cells**0.4
    image += random.normal(size=image.shape) * 11
    return (image + 120).clip(0, 255).astype(np.uint8)


def _outline(random: np.random.Generator) -> np.ndarray:
    """Return a star-shaped polygon [P,2] inside the picture, as many points and as large as those of COCO are."""
    count = random.integers(12, 45)
    radius = np.exp(random.uniform(np.log(8), np.log(180)))
    angles = np.sort(random.uniform(0, 2 * np.pi, count))
    radii = radius * random.uniform(0.6, 1.0, count)
    center = random.uniform((0, 0), SIZE[::-1])
    points = center + np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]
    return points.clip((0, 0), SIZE[::-1]).round(2)


class Reference(Dataset[Any]):
    """What torchvision's detection references do to a picture of COCO, with PIL as the backend.

    Decode to RGB, boxes and (as the references do for mask models) masks from polygons, resize, flip, to a float
    tensor in 0..1.
    """

    def __init__(self, file: Path, masks: bool) -> None:
        data = json.loads(file.read_text())
        self.folder = file.parents[1] / "train2017"
        self.images = data["images"]
        self.masks = masks
        self.annotations: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in self.images}
        for annotation in data["annotations"]:
            self.annotations[annotation["image_id"]].append(annotation)
        self.transform = v2.Compose(
            [
                v2.RandomShortestSize([SCALE[1]], SCALE[0]),
                v2.RandomHorizontalFlip(0.5),
                v2.PILToTensor(),
                v2.ToDtype(torch.float, scale=True),
                v2.SanitizeBoundingBoxes(),
                v2.ToPureTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        record = self.images[index]
        image = Image.open(self.folder / record["file_name"]).convert("RGB")
        size = (record["height"], record["width"])
        objects = [item for item in self.annotations[record["id"]] if not item["iscrowd"]]
        boxes = torch.as_tensor([item["bbox"] for item in objects], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        target: dict[str, Any] = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            "labels": torch.tensor([item["category_id"] for item in objects], dtype=torch.int64),
            "image_id": record["id"],
        }
        if self.masks:
            masks = []
            for item in objects:
                runs = mask_utils.frPyObjects(item["segmentation"], *size)
                masks.append(torch.as_tensor(mask_utils.decode(runs), dtype=torch.uint8).any(dim=2))
            target["masks"] = tv_tensors.Mask(torch.stack(masks))
        transformed: tuple[Tensor, dict[str, Any]] = self.transform(image, target)
        return transformed


def _pairs(samples: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(zip(*samples, strict=True))


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(0)


def epochs(file: Path, masks: bool) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return functions that load all pictures once, detcli's way and torchvision's, each in one worker that stays."""
    config = DataConfig(train=str(file), resize=[SCALE], flip=0.5)
    ours = make_loader(
        open_dataset(config, "train", InputConfig(), masks=masks),
        batch=BATCH,
        train=True,
        seed=0,
        workers=1,
        pad_divisor=32,
        group_aspect=True,
    )
    theirs: DataLoader[Any] = DataLoader(
        Reference(file, masks),
        BATCH,
        shuffle=True,
        num_workers=1,
        persistent_workers=True,
        collate_fn=_pairs,
        worker_init_fn=_one_thread,
    )

    def pass_over(batches: Iterator[Any]) -> None:
        for _ in batches:
            pass

    return lambda: pass_over(iter(ours)), lambda: pass_over(iter(theirs))


def run(runs: int = RUNS) -> list[Row]:
    """Return rows of pictures a second with boxes alone and with masks."""
    rows = []
    with TemporaryDirectory() as folder:
        file = write_dataset(Path(folder))
        for name, masks in (("boxes", False), ("boxes and masks", True)):
            ours, theirs = (PICTURES / seconds for seconds in interleaved(epochs(file, masks), runs))
            note = f"{SIZE[1]}x{SIZE[0]} JPEGs to {SCALE[0]}x{SCALE[1]}, batches of {BATCH}"
            rows.append(at_least(f"loading {name}, one worker", ours, theirs, "pictures/s", TIMES, note))
    return rows
