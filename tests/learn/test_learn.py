"""Every method learns from random weights, through the command line.

The short form learns two pictures by heart. DETCLI_LEARN=full trains the whole demo schedule and asks for the figures
that a method must reach on scenes that it was not trained on.
"""

import json
import os
import subprocess
import sys
import time

import pytest

FULL = os.environ.get("DETCLI_LEARN") == "full"

FIGURES = {
    "rpn": {"prop_AR": 60},
    "retinanet": {"box_AP": 50},
    "fcos": {"box_AP": 50},
    "atss": {"box_AP": 50},
    "paa": {"box_AP": 50},
    "ghm": {"box_AP": 40},
    "faster_rcnn": {"box_AP": 50},
    "mask_rcnn": {"box_AP": 50, "mask_AP": 40},
    "cascade_rcnn": {"box_AP": 50},
    "keypoint_rcnn": {"box_AP": 50, "keypoint_AP": 25},
    "panoptic_fpn": {"box_AP": 40, "mask_AP": 30, "PQ": 50},
    "fast_rcnn": {"box_AP": 50},
    "yolact": {"box_AP": 40, "mask_AP": 30},
    "gn": {"box_AP": 40, "mask_AP": 30},
    "gn_ws": {"box_AP": 40, "mask_AP": 30},
    "pafpn": {"box_AP": 40},
    "mask_rcnn_groie": {"box_AP": 40, "mask_AP": 30},
    "res2net": {"box_AP": 40},
}
SHORT_FIGURES = {
    "rpn": {"prop_AR": 50},
    "retinanet": {"box_AP50": 30},
    "fcos": {"box_AP50": 30},
    "atss": {"box_AP50": 30},
    "detr": {"box_AP50": 30},
    "paa": {"box_AP50": 30},
    "ghm": {"box_AP50": 30},
    "faster_rcnn": {"box_AP50": 30},
    "mask_rcnn": {"box_AP50": 30, "mask_AP50": 30},
    "cascade_rcnn": {"box_AP50": 30},
    "keypoint_rcnn": {"box_AP50": 30, "keypoint_AP50": 30},
    "panoptic_fpn": {"box_AP50": 30, "mask_AP50": 30, "PQ": 30},
    "fast_rcnn": {"box_AP50": 30},
    "yolact": {"box_AP50": 30, "mask_AP50": 30},
    "gn": {"box_AP50": 30, "mask_AP50": 30},
    "gn_ws": {"box_AP50": 30, "mask_AP50": 30},
    "pafpn": {"box_AP50": 30},
    "mask_rcnn_groie": {"box_AP50": 30, "mask_AP50": 30},
    "res2net": {"box_AP50": 30},
}
OF_BACKBONES = {"res2net": ("faster_rcnn", "--backbone", "res2net50")}
"""What is trained for a paper that brings a backbone alone."""
LEAST = FIGURES if FULL else SHORT_FIGURES


def detcli(*arguments):
    subprocess.run([sys.executable, "-m", "detcli", *map(str, arguments)], check=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def learn(runs):
    """Return a function that trains a method and returns the figures that it is held to."""
    data = ["--data", "shapes"]
    if not FULL:
        detcli("data", "synth", runs / "shapes", "--train", "2", "--val", "1", "--keypoints")
        pictures = runs / "shapes" / "annotations" / "instances_train.json"
        data = ["--train", pictures, "--val", pictures, "--iters", "100", "--batch", "2", "--workers", "0"]
        data += ["--set", "data.flip=0", "--set", "optim.batch=2"]

    def run(method, *arguments):
        started = time.monotonic()
        out = runs / method
        detcli(
            "train",
            *OF_BACKBONES.get(method, (method, "--backbone", "r18")),
            "--sched",
            "demo",
            "--out",
            out,
            *data,
            *arguments,
        )
        metrics = json.loads((out / "metrics.json").read_text())
        figures = {name: metrics[name] for name in LEAST[method]}
        print(f"{method}: {figures} in {time.monotonic() - started:.0f} s")
        return figures

    return run


@pytest.fixture(scope="module")
def learned_rpn(learn):
    return learn("rpn")


def reached(method, figures):
    return all(figures[name] >= value for name, value in LEAST[method].items())


def test_rpn_learns(learned_rpn):
    assert reached("rpn", learned_rpn), learned_rpn


@pytest.mark.parametrize("method", [name for name in LEAST if name not in ("rpn", "fast_rcnn")])
def test_method_learns(method, learn):
    keypoints = ["--set", "data.args.keypoints=true"] if FULL and method == "keypoint_rcnn" else []
    figures = learn(method, *keypoints)
    assert reached(method, figures), figures


def test_fast_rcnn_learns_on_proposals_of_rpn(learned_rpn, learn, runs):
    source = "shapes" if FULL else runs / "shapes" / "annotations" / "instances_train.json"
    files = {split: runs / f"{split}_proposals.safetensors" for split in ("train", "val")}
    for split, file in files.items():
        detcli("predict", runs / "rpn", "--data", source, "--split", split, "--proposals", file)
    settings = ["--set", f"data.proposals={files['train']}", "--set", f"data.val_proposals={files['val']}"]
    figures = learn("fast_rcnn", *settings)
    assert reached("fast_rcnn", figures), figures
