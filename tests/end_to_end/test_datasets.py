"""LVIS, Cityscapes and PASCAL VOC as a user has them: folders as they are downloaded, from a command line."""

import json

import pytest
from dataset_folders import write_cityscapes, write_lvis, write_voc

from detcli.data.export import convert

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

COUNTS = {"train": 6, "val": 4}
SIZE = (96, 64)
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


def figures(folder):
    content = json.loads((folder / "metrics.json").read_text())
    return {name for name, value in content.items() if isinstance(value, float)}


BOXES = {f"box_{name}" for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "ARs", "ARm", "ARl")}
LVIS = {*BOXES, "box_APr", "box_APc", "box_APf", "box_AR300"}


def test_lvis(detcli, tmp_path):
    write_lvis(tmp_path / "lvis", COUNTS, SIZE)
    detcli("train", "mask_rcnn_lvis", "--data", tmp_path / "lvis", "--out", tmp_path / "run", *TINY)
    assert figures(tmp_path / "run") == LVIS | {name.replace("box", "mask") for name in LVIS}
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["data"]["repeat_threshold"], config["data"]["repeat_rounding"]) == (0.001, "up")
    assert config["eval"]["evaluator"] == "lvis"
    wrong = detcli("eval", tmp_path / "run", "--data", "shapes", "--set", "data.args.val_images=2", code=1)
    assert "the data are not LVIS'" in wrong


def test_cityscapes(detcli, tmp_path):
    write_cityscapes(tmp_path / "cityscapes", COUNTS, SIZE)
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
    write_voc(tmp_path / "VOCdevkit", COUNTS, SIZE)
    run = tmp_path / "run"
    detcli("train", "faster_rcnn_voc", "--data", tmp_path / "VOCdevkit", "--out", run, *TINY)
    assert figures(run) == {"box_AP", "box_AP50", "box_AP75"}
    convert("voc", tmp_path / "VOCdevkit", tmp_path / "yolo", "yolo", lambda done, total: None)
    detcli("eval", run, "--data", tmp_path / "yolo", "--evaluator", "voc", "--workers", "0", "--out", tmp_path / "eval")
    assert figures(tmp_path / "eval") == figures(run)
