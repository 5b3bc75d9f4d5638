"""Every method learns from random weights, through the command line.

The short form learns two small pictures by heart. DETCLI_LEARN=full trains the whole demo schedule and asks for the
figures that a method must reach on scenes that it was not trained on; it takes in what changes parts of other methods
and other formats of data, too, which the rest of the tests train a step or two. Both train a ResNet-18 without its last
stage, which has most of the weights: it learns as much in fewer steps.
"""

import json
import os
import time

import pytest
from dataset_folders import write_cityscapes, write_lvis, write_voc

from detcli.cli import app

FULL = os.environ.get("DETCLI_LEARN") == "full"

FIGURES = {
    "detr": {"box_AP": 40},
    "htc": {"box_AP": 40, "mask_AP": 30},
    "cascade_mask_rcnn": {"box_AP": 40, "mask_AP": 30},
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
    "gcb": {"box_AP": 40, "mask_AP": 30},
    "grid_rcnn": {"box_AP": 40},
    "dconv": {"box_AP": 40},
    "mdconv": {"box_AP": 40},
    "instaboost": {"box_AP": 40, "mask_AP": 30},
    "mask_rcnn_lvis": {"box_AP": 40, "mask_AP": 30},
    "mask_rcnn_cityscapes": {"mask_AP": 30},
    "faster_rcnn_voc": {"box_AP50": 70},
    "tta": {"box_AP": 50, "mask_AP": 40},
    "fp16": {"box_AP50": 30},
}
SHORT_FIGURES = {
    "rpn": {"prop_AR": 50},
    "retinanet": {"box_AP50": 30},
    "fcos": {"box_AP50": 30},
    "atss": {"box_AP50": 30},
    "paa": {"box_AP50": 30},
    "detr": {"box_AP50": 30},
    "yolact": {"box_AP50": 30, "mask_AP50": 30},
    "faster_rcnn": {"box_AP50": 30},
    "mask_rcnn": {"box_AP50": 30, "mask_AP50": 30},
    "cascade_mask_rcnn": {"box_AP50": 30, "mask_AP50": 30},
    "htc": {"box_AP50": 30, "mask_AP50": 30},
    "keypoint_rcnn": {"box_AP50": 30, "keypoint_AP50": 30},
    "panoptic_fpn": {"box_AP50": 30, "mask_AP50": 30, "PQ": 30},
    "fast_rcnn": {"box_AP50": 30},
}
LEAST = FIGURES if FULL else SHORT_FIGURES

MODELS = {"res2net": ("faster_rcnn", "--backbone", "res2net50")}
"""What is trained for a paper that brings a backbone alone."""

MORE = {
    # Without anchors, places are learned from as many pictures as can be; they are drawn as small as it sees them.
    "detr": ("--set", "data.args.train_images=4000", "--set", "data.args.size=[80,64]"),
    "keypoint_rcnn": ("--set", "data.args.keypoints=true"),
    "ghm": ("--iters", "2000"),
    # At stride 8, their gradients on a CPU cost more than all the rest.
    "dconv": ("--set", "model.backbone.dcn_stages=[3]"),
    "mdconv": ("--set", "model.backbone.dcn_stages=[3]"),
}
"""What a method is told in the full form."""

LONGER = {"keypoint_rcnn": ("--iters", "60")}
"""What does not settle in as few steps as the others."""

SHORT = (
    *("--iters", "40", "--batch", "2", "--workers", "0", "--lr", "1e-3"),
    *("--set", "sched.warmup_iters=5", "--set", "train.ema=null", "--set", "eval.show=0"),
    *("--set", "data.flip=0", "--set", "data.resize=[[96,64]]", "--set", "data.test_resize=[96,64]"),
)
WITHOUT_LAST_STAGE = ("--set", "model.backbone.out_stages=[1,2,3]")

COUNTS = {"train": 1000, "val": 100}
SIZE = (160, 128)
"""How many scenes are written in other formats, and their size: those of the drawn scenes in memory."""


def detcli(*arguments):
    app([str(argument) for argument in arguments], standalone_mode=False)


def as_lvis(folder):
    write_lvis(folder, COUNTS, SIZE)
    # Each shape is in more than half of the pictures: a threshold above that repeats some of them.
    return ("--data", folder, "--set", "data.repeat_threshold=0.7")


def as_cityscapes(folder):
    write_cityscapes(folder / "cityscapes", COUNTS, SIZE)
    detcli("data", "convert", "cityscapes", folder / "cityscapes", folder / "coco")
    return ("--data", folder / "coco", "--evaluator", "cityscapes")


def as_voc(folder):
    write_voc(folder / "VOCdevkit", COUNTS, SIZE)
    return ("--data", folder / "VOCdevkit")


FORMATS = {"mask_rcnn_lvis": as_lvis, "mask_rcnn_cityscapes": as_cityscapes, "faster_rcnn_voc": as_voc}
"""What writes the drawn scenes in the format of a recipe, and returns what names them on the command line."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def data(runs):
    """Return what names the data on the command line."""
    if not FULL:
        return two_pictures(runs / "shapes")
    return ("--data", "shapes", "--set", f"data.args.val_images={COUNTS['val']}")


def two_pictures(folder):
    detcli("data", "synth", folder, "--train", "2", "--val", "1", "--size", "96", "64", "--keypoints")
    pictures = folder / "annotations" / "instances_train.json"
    return ("--train", pictures, "--val", pictures)


@pytest.fixture(scope="module")
def learn(runs):
    """Return a function that trains a method and returns the figures that it is held to, and the seconds it took."""

    def run(method, *arguments):
        started = time.monotonic()
        model = MODELS.get(method, (method, "--backbone", "r18"))
        form = MORE.get(method, ()) if FULL else (*SHORT, *LONGER.get(method, ()))
        stages = () if method == "detr" else WITHOUT_LAST_STAGE  # DETR sees the second one alone
        detcli("train", *model, "--sched", "demo", "--out", runs / method, *stages, *form, *arguments)
        return read_figures(method, runs / method), round(time.monotonic() - started)

    return run


def read_figures(method, folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    return {name: metrics[name] for name in LEAST[method]}


@pytest.fixture
def hold(record_property):
    """Return a function that holds a method to its figures and has them shown when all tests are done."""

    def check(method, learned):
        figures, seconds = learned
        record_property(method, f"{', '.join(f'{name} {value:.1f}' for name, value in figures.items())} in {seconds} s")
        assert all(figures[name] >= value for name, value in LEAST[method].items()), figures

    return check


@pytest.fixture(scope="module")
def learned_rpn(learn, data):
    return learn("rpn", *data)


@pytest.fixture(scope="module")
def learned_mask_rcnn(learn, data):
    return learn("mask_rcnn", *data)


OWN_TEST = ("rpn", "fast_rcnn", "mask_rcnn", "tta", "fp16")


@pytest.mark.parametrize("method", [name for name in LEAST if name not in OWN_TEST])
def test_method_learns(method, learn, hold, data, tmp_path):
    hold(method, learn(method, *(FORMATS[method](tmp_path) if method in FORMATS else data)))


# One process, so that both have the same proposals.
@pytest.mark.xdist_group("proposals")
def test_rpn_learns(learned_rpn, hold):
    hold("rpn", learned_rpn)


@pytest.mark.xdist_group("proposals")
def test_fast_rcnn_learns_on_proposals_of_rpn(learned_rpn, learn, hold, data, runs):
    source = data[1]
    files = {split: runs / f"{split}_proposals.safetensors" for split in ("train", "val")}
    for split, file in files.items():
        detcli("predict", runs / "rpn", "--data", source, "--split", split, "--proposals", file)
    settings = ["--set", f"data.proposals={files['train']}", "--set", f"data.val_proposals={files['val']}"]
    hold("fast_rcnn", learn("fast_rcnn", *data, *settings))


# One process, so that both have the same model.
@pytest.mark.xdist_group("mask_rcnn")
def test_mask_rcnn_learns(learned_mask_rcnn, hold):
    hold("mask_rcnn", learned_mask_rcnn)


if FULL:

    @pytest.mark.xdist_group("mask_rcnn")
    def test_mirrored_views_find_as_much(learned_mask_rcnn, hold, runs):
        started = time.monotonic()
        views = ("--with", "tta", "--set", "eval.tta.scales=[1]")
        detcli("eval", runs / "mask_rcnn", "--data", "shapes", *views, "--out", runs / "tta")
        hold("tta", (read_figures("tta", runs / "tta"), round(time.monotonic() - started)))

    def test_float16_learns_two_pictures(hold, runs, tmp_path):
        """Processors compute float16 a tenth as fast as float32, or slower: of the demo schedule, the short form."""
        started = time.monotonic()
        pictures = two_pictures(tmp_path / "shapes")
        form = (*WITHOUT_LAST_STAGE, *SHORT, *pictures)
        detcli("train", "fp16", "--backbone", "r18", "--sched", "demo", "--out", runs / "fp16", *form)
        hold("fp16", (read_figures("fp16", runs / "fp16"), round(time.monotonic() - started)))
