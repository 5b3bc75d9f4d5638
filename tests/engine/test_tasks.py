"""Keypoints and segments through evaluation and prediction, with random weights."""

import json

import numpy as np
import pytest
import torch

from detcli.config import resolve
from detcli.data import open_dataset
from detcli.data.panoptic import decode_ids
from detcli.engine.evaluate import evaluate_model, primary_metric
from detcli.engine.model import build_model, fitted
from detcli.engine.outputs import write_evaluation
from detcli.engine.predictor import Predictor

CPU = torch.device("cpu")
SETTINGS = ["data.args.train_images=2", "data.args.val_images=2", "data.args.keypoints=true", "data.workers=0"]


def prepared(method, *settings):
    """Return a small model with random weights, its data, and its config as the data want it."""
    settings = [*SETTINGS, "model.neck.out_channels=32", "model.rpn_head.test_proposals=20", *settings]
    flags = {"data.source": "shapes"}
    config = resolve(method, backbone="r18", sched="demo", settings=settings, flags=flags).config
    data = open_dataset(config.data, "val", config.input, keypoints=True, semantic=True)
    config = fitted(config, data.classes)
    torch.manual_seed(0)
    return build_model(config, len(data.classes)), data, config


@pytest.fixture(scope="module")
def panoptic():
    return prepared("panoptic_fpn", "model.segment_score=0.0", "model.score_threshold=0.0")


def test_numbers_of_keypoints_and_stuff_are_those_of_the_data(panoptic):
    assert panoptic[2].model["num_stuff_classes"] == 3
    assert prepared("keypoint_rcnn")[2].model["num_keypoints"] == 7


def test_segments_are_measured_and_written(panoptic, tmp_path):
    model, data, config = panoptic
    found = evaluate_model(model, data, config, CPU, show=1)
    assert primary_metric(model) == "PQ"
    assert {"PQ", "things_SQ", "stuff_RQ", "box_AP", "mask_AP"} <= found.metrics.keys()
    assert list(found.per_class["panoptic"]) == [*data.classes.names, *data.classes.stuff]
    write_evaluation(tmp_path, found, data)
    written = json.loads((tmp_path / "panoptic.json").read_text())["annotations"]
    assert [item["image_id"] for item in written] == data.image_ids
    for item, truth in zip(written, data.segments()["images"], strict=True):
        path = tmp_path / "panoptic" / item["file_name"]
        ids = decode_ids(path.read_bytes(), (truth["height"], truth["width"]), path)
        assert set(np.unique(ids)) - {0} == {info["id"] for info in item["segments_info"]} != set()
    assert (tmp_path / "pictures" / "all.png").is_file()


def test_a_picture_has_its_segments(panoptic):
    model, data, config = panoptic
    predictor = Predictor.of(model.eval(), config, data.classes, CPU)
    picture = data.picture(data.image_ids[0])
    found = predictor.predict(picture)
    assert found.panoptic.segments.shape == picture.shape[:2]
    assert found.semantic is None
    assert found.panoptic.segments.max() == len(found.panoptic.labels) > 0


def test_data_without_segments_are_not_measured_by_them(panoptic):
    model, data, config = panoptic
    stuff = data.source.stuff
    try:
        del data.source.stuff
        found = evaluate_model(model, data, config, CPU)
    finally:
        data.source.stuff = stuff
    assert "PQ" not in found.metrics
    assert "PQ was not measured: the data have no segments of things and stuff" in found.notes


def test_keypoints_are_measured(tmp_path):
    model, data, config = prepared("keypoint_rcnn", "model.score_threshold=0.0", "model.max_per_image=5")
    found = evaluate_model(model, data, config, CPU, show=1)
    assert primary_metric(model) == "keypoint_AP"
    assert 0 <= found.metrics["keypoint_AP"] <= 100
    assert all(len(result["keypoints"]) == 3 * 7 for result in found.results)
    write_evaluation(tmp_path, found, data)
    assert not (tmp_path / "panoptic.json").exists()
