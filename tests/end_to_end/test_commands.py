"""The commands as a user types them, on a folder that nobody prepared."""

import json
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

CATEGORIES = [{"id": 7, "name": "disc"}, {"id": 90, "name": "bar"}]
TINY = [
    "--set",
    "model.neck.out_channels=32",
    "--set",
    "data.resize=[[160,128]]",
    "--set",
    "data.test_resize=[160,128]",
]
TINY_RUN = [*TINY, "--sched", "demo", "--iters", "3", "--batch", "2", "--workers", "0", "--backbone", "r18"]


@pytest.fixture(scope="module")
def detcli(run_detcli):
    """Return a function that runs a command, holds it to its exit code and returns what it printed."""

    def run(*arguments, code=0):
        done = run_detcli(*arguments)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    return run


def draw_object(picture, number):
    """Draw a disc or a bar; return its category id and its bitmap."""
    height, width = picture.shape[:2]
    bitmap = np.zeros((height, width), np.uint8)
    center = (30 + 13 * number % (width - 60), 30 + 7 * number % (height - 60))
    if number % 2:
        cv2.circle(bitmap, center, 18, 1, -1)
    else:
        cv2.rectangle(bitmap, (center[0] - 24, center[1] - 8), (center[0] + 24, center[1] + 8), 1, -1)
    picture[bitmap > 0] = (200, 60, 30) if number % 2 else (20, 90, 220)
    return (7 if number % 2 else 90), bitmap


def annotation(number, image_id, category, bitmap, crowd=False):
    runs = mask_utils.encode(np.asfortranarray(bitmap))
    box = mask_utils.toBbox(runs).tolist()
    if crowd:  # uncompressed run lengths, as COCO writes crowds
        flat = bitmap.ravel(order="F")
        edges = np.flatnonzero(np.diff(np.r_[0, flat, 0]))
        counts = np.diff(np.r_[0, edges, flat.size]).tolist()
        segmentation = {"size": list(bitmap.shape), "counts": counts}
    else:
        outline, _ = cv2.findContours(bitmap, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        segmentation = [outline[0].ravel().astype(float).tolist()]
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category,
        "bbox": box,
        "area": float(bitmap.sum()),
        "iscrowd": int(crowd),
        "segmentation": segmentation,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """COCO with gaps in its category ids, a crowd, a rotated JPEG, a grey PNG and a picture without objects."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "annotations").mkdir()
    for split in ("train", "val"):
        (root / split).mkdir()
        images, annotations = [], []
        for number in range(1, 9):
            picture = np.full((128, 160, 3), 90, np.uint8)
            name = f"{number:03d}.png"
            objects = [] if number == 4 else [draw_object(picture, number), draw_object(picture, number + 5)]
            if number == 2:
                name = "002.jpg"  # stored on its side, with the orientation that turns it upright
                stored = Image.fromarray(np.ascontiguousarray(np.rot90(picture)))
                exif = Image.Exif()
                exif[0x0112] = 6
                stored.save(root / split / name, quality=95, exif=exif)
            elif number == 3:
                cv2.imwrite(str(root / split / name), cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))
            else:
                cv2.imwrite(str(root / split / name), picture[..., ::-1])
            images.append({"id": number * 11, "file_name": name, "width": 160, "height": 128})
            for category, bitmap in objects:
                annotations.append(annotation(len(annotations) + 1, number * 11, category, bitmap))
            if number == 5:
                crowd = np.zeros((128, 160), np.uint8)
                crowd[90:120, 20:120] = 1
                annotations.append(annotation(len(annotations) + 1, number * 11, 7, crowd, crowd=True))
        content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def run(detcli, folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "mask"
    printed = detcli("train", "mask_rcnn", "--data", folder, *TINY_RUN, "--out", out)
    assert "on 7 pictures of 2 classes, evaluated on 8" in printed
    return out


def test_a_folder_that_nobody_prepared_passes_the_check(detcli, folder):
    printed = detcli("data", "check", folder)
    assert "002.jpg" in printed
    assert "EXIF" in printed


def test_it_trains_evaluates_and_predicts(detcli, folder, run, tmp_path):
    assert {"box_AP", "mask_AP"} <= json.loads((run / "metrics.json").read_text()).keys()
    detcli("eval", run, "--data", folder, "--out", tmp_path / "eval", "--set", "model.roi_head.score_threshold=0.0001")
    detcli("eval", run, "--data", folder, "--out", tmp_path / "slow", "--evaluator", "pycocotools")
    results = json.loads((tmp_path / "eval" / "results.json").read_text())
    (table,) = json.loads(detcli("table", "--fields", "box_AP", "--runs", tmp_path / "eval", "--format", "json"))
    measured = json.loads((tmp_path / "eval" / "metrics.json").read_text())["box_AP"]
    assert [row["values"]["box_AP_run"] for row in table["rows"]] == [measured]
    assert {result["category_id"] for result in results} <= {7, 90}
    assert {result["image_id"] for result in results} <= {number * 11 for number in range(1, 9)}

    printed = detcli("predict", run, folder / "val", "--out", tmp_path / "out", "--score", "0", "--batch", "3")
    assert "in 8 pictures" in printed
    predicted = json.loads((tmp_path / "out" / "results.json").read_text())
    assert sorted(path.name for path in (tmp_path / "out").glob("0*")) == sorted(
        path.name for path in (folder / "val").iterdir()
    )
    upright = next(image for image in predicted["images"] if image["file_name"].endswith("002.jpg"))
    assert (upright["height"], upright["width"]) == (128, 160)
    assert all("segmentation" in result for result in predicted["annotations"])


def test_the_same_folder_with_bad_parts_is_refused_by_name(detcli, folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "train" / "005.png").write_bytes(b"\x89PNG\r\n\x1a\nand no more")
    path = broken / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"][2] = float("nan")
    path.write_text(json.dumps(content))
    printed = detcli("data", "check", broken, code=1)
    assert "005.png" in printed
    assert "nan" in printed
    assert f"annotation {content['annotations'][0]['id']}" in printed


def test_pictures_that_cannot_be_read_are_named_and_left_out(detcli, folder, run, tmp_path):
    (tmp_path / "in").mkdir()
    shutil.copy(folder / "val" / "001.png", tmp_path / "in")
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    printed = detcli("predict", run, tmp_path / "in", "--out", tmp_path / "out")
    assert "bad.png" in printed
    assert "in 1 pictures" in printed
    detcli("predict", run, tmp_path / "in" / "bad.png", "--out", tmp_path / "none", code=1)


def test_a_video_becomes_a_video(detcli, folder, run, tmp_path):
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 5, (160, 128))
    for number in (1, 5, 6):
        writer.write(cv2.imread(str(folder / "val" / f"{number:03d}.png")))
    writer.release()
    detcli("predict", run, path, "--out", tmp_path / "out", "--score", "0.01", "--batch", "2")
    capture = cv2.VideoCapture(str(tmp_path / "out" / "clip.mp4"))
    assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == 3
    images = json.loads((tmp_path / "out" / "results.json").read_text())["images"]
    assert [image["frame"] for image in images] == [0, 1, 2]


def test_classes_and_unknown_classes(detcli, folder, run, tmp_path):
    detcli("predict", run, folder / "val", "--out", tmp_path / "out", "--score", "0", "--classes", "bar")
    found = json.loads((tmp_path / "out" / "results.json").read_text())["annotations"]
    assert {result["category_id"] for result in found} <= {90}
    printed = detcli("predict", run, folder / "val", "--out", tmp_path / "out", "--classes", "bra", code=2)
    assert "did you mean 'bar'" in printed


def test_mistakes_are_one_line(detcli, folder, run, tmp_path):
    for arguments, code, said in [
        (["train", "atts", "--data", "shapes"], 2, "did you mean 'atss'"),
        (["train", "atss", "--data", "shapes", "--backbone", "r51"], 2, "'r50'"),
        (["train", "atss", "--data", "shapes", "--sched", "1y"], 2, "'1x'"),
        (["train", "atss", "--data", "shapes", "--set", "optim.weigth_decay=1"], 2, "weight_decay"),
        (["train", "atss", "--data", tmp_path / "none.json"], 2, "none.json"),
        (["train", "atss", "--data", folder, "--out", run], 1, "already holds a run"),
        (["eval", tmp_path / "none.safetensors", "--data", folder], 1, "none.safetensors"),
        (
            ["eval", folder / "annotations" / "instances_val.json", "--data", folder],
            1,
            "not a readable safetensors",
        ),
        (["eval", run, "--data", "shapes"], 1, "disc"),
        (["predict", run, tmp_path / "nothing-here"], 1, "nothing-here"),
        (["predict", run, folder / "val", "--device", "cuda:9"], 1, "cuda:9"),
    ]:
        printed = detcli(*arguments, code=code)
        assert said in printed
        assert len(printed.strip().splitlines()) == 1, printed


def test_resume_goes_on_with_more_steps(detcli, folder, run, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(run, again)
    printed = detcli("train", "--resume", again, "--iters", "5")
    assert "iteration 3" in printed
    steps = [json.loads(line)["iter"] for line in (again / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == 5
    assert "already" in detcli("train", "--resume", again, "--iters", "5", code=1)
