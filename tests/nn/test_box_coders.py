"""Box coders, against tables of MMDetection and Detectron2."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from detcli.nn.box_coders import DeltaBoxCoder, DistanceBoxCoder

TABLES = json.loads(gzip.decompress((Path(__file__).parent / "data/box_coders.json.gz").read_bytes()))
RECORDS = TABLES["mmdetection"]


def tensor(record):
    return torch.tensor(record["data"], dtype=torch.float32).reshape(record["shape"])


def label(record):
    return f"{record['op']}-{record['params']}"


def delta_coder(params):
    return DeltaBoxCoder(
        stds=tuple(params.get("target_stds", (1.0, 1.0, 1.0, 1.0))),
        style="v1" if params["type"].startswith("Legacy") else "exact",
    )


def max_size(params):
    return torch.tensor(params["max_shape"]) if params.get("clip_border", True) else None


@pytest.mark.parametrize("record", [r for r in RECORDS if "bboxes" in r["inputs"]], ids=label)
def test_deltas_are_those_of_mmdetection(record):
    params, inputs = record["params"], {name: tensor(value) for name, value in record["inputs"].items()}
    coder = delta_coder(params)
    if record["op"] == "coder.encode":
        ours = coder.encode(inputs["bboxes"], inputs["gt_bboxes"])
    else:
        deltas = inputs["pred_bboxes"].unflatten(1, (-1, 4))
        ours = coder.decode(inputs["bboxes"][:, None], deltas, max_size(params)).flatten(1)
    torch.testing.assert_close(ours, tensor(record["output"]), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("record", [r for r in RECORDS if "points" in r["inputs"]], ids=label)
def test_distances_are_those_of_mmdetection(record):
    params, inputs = record["params"], {name: tensor(value) for name, value in record["inputs"].items()}
    coder = DistanceBoxCoder()
    if record["op"] == "coder.encode":
        ours = coder.encode(inputs["points"], inputs["gt_bboxes"], params["max_dis"], params["eps"])
    else:
        ours = coder.decode(inputs["points"], inputs["pred_bboxes"], max_size(params))
    torch.testing.assert_close(ours, tensor(record["output"]), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("weights", ["(1.0, 1.0, 1.0, 1.0)", "(10.0, 10.0, 5.0, 5.0)"])
def test_deltas_are_those_of_detectron2(weights):
    table = TABLES["detectron2"]
    stds = tuple(1 / float(weight) for weight in weights.strip("()").split(","))
    coder = DeltaBoxCoder(stds=stds, clamp_below=False)
    source, target = torch.tensor(table["src"]), torch.tensor(table["dst"])
    expected = torch.tensor(table[weights]["get_deltas"])
    torch.testing.assert_close(coder.encode(source, target), expected, rtol=1e-5, atol=1e-5)
    deltas = torch.tensor(table["deltas_k2"]).unflatten(1, (2, 4))
    expected = torch.tensor(table[weights]["apply_deltas"])
    decoded = coder.decode(source[:, None], deltas).flatten(1)
    torch.testing.assert_close(decoded, expected, rtol=1e-5, atol=2e-3)


def test_decoding_undoes_encoding():
    torch.manual_seed(0)
    corners = torch.rand(2, 50, 2) * 100
    boxes, gt = torch.cat([corners, corners + 1 + torch.rand(2, 50, 2) * 60], dim=-1)
    coder = DeltaBoxCoder(means=(0.1, 0.0, 0.0, 0.2), stds=(0.1, 0.1, 0.2, 0.2))
    torch.testing.assert_close(coder.decode(boxes, coder.encode(boxes, gt)), gt, rtol=1e-4, atol=1e-3)
    points = boxes[:, :2]
    distances = DistanceBoxCoder().encode(points, gt)
    torch.testing.assert_close(DistanceBoxCoder().decode(points, distances), gt, rtol=1e-5, atol=1e-4)


def test_a_coder_that_decoded_predictions_can_be_trained_through():
    coder, boxes = DeltaBoxCoder(), torch.zeros(3, 4, device="meta")
    with torch.inference_mode():
        coder.decode(boxes, torch.zeros(3, 4, device="meta"))
    deltas = torch.zeros(3, 4, device="meta", requires_grad=True)
    coder.decode(boxes, deltas).sum().backward()
    assert deltas.grad.shape == (3, 4)
