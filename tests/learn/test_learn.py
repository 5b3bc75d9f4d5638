"""Every method learns the built-in shapes from random weights, through the command line.

The short form trains a fraction of the demo schedule and asks for clearly more than chance; DETCLI_LEARN=full trains
all of it and asks for the figures that a method must reach.
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
    "faster_rcnn": {"box_AP": 50},
    "mask_rcnn": {"box_AP": 50, "mask_AP": 40},
    "fast_rcnn": {"box_AP": 50},
}
SHORT_FIGURES = {
    "rpn": {"prop_AR": 30},
    "retinanet": {"box_AP50": 5},
    "fcos": {"box_AP50": 5},
    "atss": {"box_AP50": 5},
    "faster_rcnn": {"box_AP50": 5},
    "mask_rcnn": {"box_AP50": 5, "mask_AP50": 5},
    "fast_rcnn": {"box_AP50": 5},
}
SHORT = ["--iters", "60", "--set", "data.args.val_images=40", "--set", "sched.warmup_iters=10"]


def detcli(*arguments):
    subprocess.run([sys.executable, "-m", "detcli", *map(str, arguments)], check=True)


def learn(method, folder, *arguments):
    started = time.monotonic()
    detcli(
        "train",
        method,
        "--backbone",
        "r18",
        "--data",
        "shapes",
        "--sched",
        "demo",
        "--out",
        folder,
        *arguments,
    )
    metrics = json.loads((folder / "metrics.json").read_text())
    figures = {name: metrics[name] for name in (FIGURES if FULL else SHORT_FIGURES)[method]}
    print(f"{method}: {figures} in {time.monotonic() - started:.0f} s")
    return figures


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def learned_rpn(runs):
    return learn("rpn", runs / "rpn", *([] if FULL else SHORT))


def least(method):
    return (FIGURES if FULL else SHORT_FIGURES)[method]


def test_rpn_learns(learned_rpn):
    assert all(learned_rpn[name] >= value for name, value in least("rpn").items()), learned_rpn


@pytest.mark.parametrize("method", [name for name in FIGURES if name not in ("rpn", "fast_rcnn")])
def test_method_learns(method, runs):
    figures = learn(method, runs / method, *([] if FULL else SHORT))
    assert all(figures[name] >= value for name, value in least(method).items()), figures


def test_fast_rcnn_learns_on_proposals_of_rpn(learned_rpn, runs):
    files = {split: runs / f"{split}_proposals.safetensors" for split in ("train", "val")}
    for split, file in files.items():
        detcli("predict", runs / "rpn", "--data", "shapes", "--split", split, "--proposals", file)
    settings = ["--set", f"data.proposals={files['train']}", "--set", f"data.val_proposals={files['val']}"]
    figures = learn("fast_rcnn", runs / "fast_rcnn", *settings, *([] if FULL else SHORT))
    assert all(figures[name] >= value for name, value in least("fast_rcnn").items()), figures
