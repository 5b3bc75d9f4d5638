"""Anchors and points, against tables of MMDetection and Detectron2."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from detcli.nn.anchors import AnchorGenerator, PointGenerator, inside_images

TABLES = json.loads(gzip.decompress((Path(__file__).parent / "data/anchors.json.gz").read_bytes()))


def generator(config):
    settings = dict(config)
    style = "v1" if settings.pop("type") == "LegacyAnchorGenerator" else "exact"
    return AnchorGenerator(settings.pop("strides"), style=style, **{"center_offset": 0.0, **settings})


@pytest.mark.parametrize("record", TABLES["mmdetection"], ids=lambda record: str(record["cfg"]))
def test_anchors_are_those_of_mmdetection(record):
    anchors = generator(record["cfg"])
    assert [anchors.num_base_anchors] * len(record["num_base"]) == record["num_base"]
    torch.testing.assert_close(anchors.base_anchors, torch.tensor(record["base_anchors"]), rtol=1e-6, atol=1e-5)
    sizes = [tuple(size) for size in record["grid"]["sizes"]]
    for level, size, rows in zip(anchors(sizes, "cpu"), sizes, record["grid"]["rows"], strict=True):
        assert len(level) == size[0] * size[1] * anchors.num_base_anchors
        shown = torch.cat([level[:12], level[-3:]])
        torch.testing.assert_close(shown, torch.tensor(rows), rtol=1e-6, atol=1e-4)


def test_anchors_in_scale_order_are_those_of_detectron2():
    rpn = AnchorGenerator((4, 8, 16, 32, 64), order="scale")
    torch.testing.assert_close(rpn.base_anchors, torch.tensor(TABLES["detectron2"]["rpn_fpn_cell"]))
    retina = AnchorGenerator((8,), octave_base_scale=4, scales_per_octave=3, order="scale")
    torch.testing.assert_close(retina.base_anchors[0], torch.tensor(TABLES["detectron2"]["retina_cell_p3"]))


def test_anchors_of_detectron_round_the_sides_of_each_ratio_before_they_are_scaled():
    one_map = AnchorGenerator((16,), scales=(8, 16, 32), style="detectron").base_anchors[0]
    one_map = one_map - torch.tensor([0, 0, 1, 1])  # to the last pixels
    # 16 x 16 pixels make 23 x 12, 16 x 16 and 11 x 22. Detectron lists the same corners, counted from 1.
    assert one_map[:4].tolist() == [
        [-84, -40, 99, 55],
        [-176, -88, 191, 103],
        [-360, -184, 375, 199],
        [-56, -56, 71, 71],
    ]
    assert one_map[-1].tolist() == [-168, -344, 183, 359]
    pyramid = AnchorGenerator((4, 8), scales=(8,), style="detectron").base_anchors
    # 11 x 5.5 pixels become 11 x 6: halves are rounded to even numbers.
    assert pyramid[1, 0].tolist() == [4 - 44, 4 - 24, 4 + 44, 4 + 24]
    octaves = AnchorGenerator((8,), octave_base_scale=4, scales_per_octave=3, order="scale", style="detectron")
    sides = octaves.base_anchors[0, :, 2:] - octaves.base_anchors[0, :, :2]
    torch.testing.assert_close(sides[3:6], torch.tensor([[11.0, 6.0], [8.0, 8.0], [6.0, 12.0]]) * 4 * 2 ** (1 / 3))


@pytest.mark.parametrize(("style", "middle"), [("exact", 0), ("v1", 3.5), ("detectron", 4)])
def test_where_anchors_lie_in_their_cell(style, middle):
    base = AnchorGenerator((8,), ratios=(1.0,), style=style).base_anchors[0, 0]
    assert ((base[:2] + base[2:]) / 2).tolist() == [middle, middle]


def test_points_lie_in_the_middle_of_their_cells():
    (points,) = PointGenerator((8,))([(2, 3)], "cpu")
    assert points.tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]]


def test_locations_beyond_an_image_of_a_batch_are_outside():
    inside = inside_images([(8, 8), (2, 2)], (8, 32), torch.tensor([[64, 64], [20, 33]]))
    assert inside[0].all()
    first, second = inside[1, :64].reshape(8, 8), inside[1, 64:].reshape(2, 2)
    # 20 x 33 pixels count as 32 x 64
    assert first[:4].all()
    assert not first[4:].any()
    assert second.tolist() == [[True, True], [False, False]]
