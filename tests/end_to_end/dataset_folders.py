"""Writes drawn scenes as LVIS, Cityscapes and PASCAL VOC have theirs: folders as they are downloaded."""

import json

import cv2
import numpy as np
from pycocotools import mask as mask_utils

from detcli.data.shapes import shapes


def scenes(split, count, size):
    """Yield the number, the pixels (BGR) and the annotations of `count` scenes."""
    source = shapes(split=split, size=size, train_images=count, val_images=count)
    for index in range(count):
        pixels, annotations = source.read(index)
        yield index + 1, pixels[..., ::-1], annotations


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


def write_lvis(folder, counts, size):
    """Write `counts` pictures of each split; circles count as rare, squares as common."""
    for split, count in counts.items():
        data = {"images": [], "annotations": []}
        data["categories"] = [{"id": n, "name": f"thing {n}", "frequency": "rcff"[n - 1]} for n in (1, 2, 3, 4)]
        for number, pixels, annotations in scenes(split, count, size):
            place = f"{split}2017/{number:012d}.jpg"
            save(folder / place, pixels)
            present = {int(category) + 1 for category in annotations.categories}
            sides = {"height": annotations.size[0], "width": annotations.size[1]}
            searched = {"neg_category_ids": sorted({1, 2, 3, 4} - present), "not_exhaustive_category_ids": []}
            address = f"http://images.cocodataset.org/{place}"
            data["images"].append({"id": number, "coco_url": address, **sides, **searched})
            for category, box, runs in zip(
                annotations.categories.tolist(), annotations.xywh.tolist(), annotations.segmentations, strict=True
            ):
                item = {"id": len(data["annotations"]) + 1, "image_id": number, "category_id": category + 1}
                segmentation = {"size": list(runs["size"]), "counts": runs["counts"].decode()}
                area = float(mask_utils.area(runs))
                data["annotations"].append({**item, "bbox": box, "area": area, "segmentation": segmentation})
        (folder / f"lvis_v1_{split}.json").write_text(json.dumps(data))


def write_cityscapes(folder, counts, size):
    """Write `counts` pictures of each split; shapes are persons, riders, cars and trucks."""
    for split, count in counts.items():
        for number, pixels, annotations in scenes(split, count, size):
            labels = np.full(annotations.size, 7, np.uint16)
            for position, (category, runs) in enumerate(
                zip(annotations.categories.tolist(), annotations.segmentations, strict=True)
            ):
                labels[mask_utils.decode(runs) > 0] = 1000 * (24 + category) + position
            name = f"ulm_{number:06d}_000019"
            save(folder / "gtFine" / split / "ulm" / f"{name}_gtFine_instanceIds.png", labels)
            save(folder / "leftImg8bit" / split / "ulm" / f"{name}_leftImg8bit.png", pixels)


def write_voc(folder, counts, size):
    """Write `counts` pictures of each split as VOC2007's trainval and test."""
    names = ("car", "dog", "cat", "boat")
    for split, listed in (("train", "trainval"), ("val", "test")):
        year = folder / "VOC2007"
        for part in ("Annotations", "ImageSets/Main"):
            (year / part).mkdir(parents=True, exist_ok=True)
        keys = []
        for number, pixels, annotations in scenes(split, counts[split], size):
            keys.append(f"{split}_{number}")
            save(year / "JPEGImages" / f"{keys[-1]}.jpg", pixels)
            objects = ""
            for category, (left, top, width, height) in zip(
                annotations.categories.tolist(), annotations.xywh.tolist(), strict=True
            ):
                sides = {"xmin": left + 1, "ymin": top + 1, "xmax": left + width, "ymax": top + height}
                box = "".join(f"<{side}>{value:.0f}</{side}>" for side, value in sides.items())
                objects += f"<object><name>{names[category]}</name><bndbox>{box}</bndbox></object>"
            height, width = annotations.size
            sides = f"<size><width>{width}</width><height>{height}</height></size>"
            (year / "Annotations" / f"{keys[-1]}.xml").write_text(f"<annotation>{sides}{objects}</annotation>")
        (year / "ImageSets" / "Main" / f"{listed}.txt").write_text("\n".join(keys))
