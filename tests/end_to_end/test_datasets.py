"""LVIS, Cityscapes and PASCAL VOC as a user has them: folders as they are downloaded, from a command line."""

import json

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_utils

from detcli.data.export import convert
from detcli.data.shapes import shapes

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

COUNTS = {"train": 6, "val": 4}
TINY = [
    *("--sched", "demo", "--iters", "2", "--batch", "2", "--workers", "0", "--backbone", "r18"),
    *("--set", "data.resize=[[96,64]]", "--set", "data.test_resize=[96,64]"),
    *("--set", "model.neck.out_channels=32", "--set", "model.roi_head.bbox_head.channels=64"),
    *("--set", "model.rpn_head.train_proposals=50", "--set", "model.rpn_head.test_proposals=20"),
    *("--set", "model.roi_head.max_per_image=10"),
]


@pytest.fixture
def detcli(run_detcli):
    """Return a function that runs a command, holds it to its exit code and returns what it printed."""

    def run(*arguments, code=0):
        done = run_detcli(*arguments)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    return run


def scenes(split):
    """Yield the number, the pixels (BGR) and the annotations of small scenes."""
    source = shapes(split=split, size=(96, 64), train_images=COUNTS["train"], val_images=COUNTS["val"])
    for index in range(COUNTS[split]):
        pixels, annotations = source.read(index)
        yield index + 1, pixels[..., ::-1], annotations


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


def write_lvis(folder):
    for split in COUNTS:
        data = {"images": [], "annotations": []}
        data["categories"] = [{"id": n, "name": f"thing {n}", "frequency": "rcff"[n - 1]} for n in (1, 2, 3, 4)]
        for number, pixels, annotations in scenes(split):
            place = f"{split}2017/{number:012d}.jpg"
            save(folder / place, pixels)
            present = {int(category) + 1 for category in annotations.categories}
            size = {"height": annotations.size[0], "width": annotations.size[1]}
            searched = {"neg_category_ids": sorted({1, 2, 3, 4} - present), "not_exhaustive_category_ids": []}
            address = f"http://images.cocodataset.org/{place}"
            data["images"].append({"id": number, "coco_url": address, **size, **searched})
            for category, box, runs in zip(
                annotations.categories.tolist(), annotations.xywh.tolist(), annotations.segmentations, strict=True
            ):
                item = {"id": len(data["annotations"]) + 1, "image_id": number, "category_id": category + 1}
                segmentation = {"size": list(runs["size"]), "counts": runs["counts"].decode()}
                area = float(mask_utils.area(runs))
                data["annotations"].append({**item, "bbox": box, "area": area, "segmentation": segmentation})
        (folder / f"lvis_v1_{split}.json").write_text(json.dumps(data))


def write_cityscapes(folder):
    for split in COUNTS:
        for number, pixels, annotations in scenes(split):
            labels = np.full(annotations.size, 7, np.uint16)
            for position, (category, runs) in enumerate(
                zip(annotations.categories.tolist(), annotations.segmentations, strict=True)
            ):
                labels[mask_utils.decode(runs) > 0] = 1000 * (24 + category) + position
            name = f"ulm_{number:06d}_000019"
            save(folder / "gtFine" / split / "ulm" / f"{name}_gtFine_instanceIds.png", labels)
            save(folder / "leftImg8bit" / split / "ulm" / f"{name}_leftImg8bit.png", pixels)


def write_voc(folder):
    names = ("car", "dog", "cat", "boat")
    for split, listed in (("train", "trainval"), ("val", "test")):
        year = folder / "VOC2007"
        for part in ("Annotations", "ImageSets/Main"):
            (year / part).mkdir(parents=True, exist_ok=True)
        keys = []
        for number, pixels, annotations in scenes(split):
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
            size = f"<size><width>{width}</width><height>{height}</height></size>"
            (year / "Annotations" / f"{keys[-1]}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
        (year / "ImageSets" / "Main" / f"{listed}.txt").write_text("\n".join(keys))


def figures(folder):
    content = json.loads((folder / "metrics.json").read_text())
    return {name for name, value in content.items() if isinstance(value, float)}


BOXES = {f"box_{name}" for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "ARs", "ARm", "ARl")}
LVIS = {*BOXES, "box_APr", "box_APc", "box_APf", "box_AR300"}


def test_lvis(detcli, tmp_path):
    write_lvis(tmp_path / "lvis")
    detcli("train", "mask_rcnn_lvis", "--data", tmp_path / "lvis", "--out", tmp_path / "run", *TINY)
    assert figures(tmp_path / "run") == LVIS | {name.replace("box", "mask") for name in LVIS}
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["data"]["repeat_threshold"], config["data"]["repeat_rounding"]) == (0.001, "up")
    assert config["eval"]["evaluator"] == "lvis"
    wrong = detcli("eval", tmp_path / "run", "--data", "shapes", "--set", "data.args.val_images=2", code=1)
    assert "the data are not LVIS'" in wrong


def test_cityscapes(detcli, tmp_path):
    write_cityscapes(tmp_path / "cityscapes")
    detcli("data", "convert", "cityscapes", tmp_path / "cityscapes", tmp_path / "coco")
    run = tmp_path / "run"
    detcli("train", "mask_rcnn_cityscapes", "--data", tmp_path / "coco", "--out", run, *TINY)
    assert {"box_AR100", "mask_AR100"} <= figures(run)
    said = detcli("eval", run, "--data", tmp_path / "coco", "--evaluator", "cityscapes", "--workers", "0")
    found = figures(run / "eval")
    assert {name for name in found if name.startswith("mask")} == {"mask_AP", "mask_AP50"}
    assert "box_AP is that of faster: the evaluator cityscapes has none" in " ".join(said.split())
    assert "which pixels are void" not in said


def test_voc(detcli, tmp_path):
    write_voc(tmp_path / "VOCdevkit")
    run = tmp_path / "run"
    detcli("train", "faster_rcnn_voc", "--data", tmp_path / "VOCdevkit", "--out", run, *TINY)
    assert figures(run) == {"box_AP", "box_AP50", "box_AP75"}
    convert("voc", tmp_path / "VOCdevkit", tmp_path / "yolo", "yolo", lambda done, total: None)
    detcli("eval", run, "--data", tmp_path / "yolo", "--evaluator", "voc", "--workers", "0", "--out", tmp_path / "eval")
    assert figures(tmp_path / "eval") == figures(run)
