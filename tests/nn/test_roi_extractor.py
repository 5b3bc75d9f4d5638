import gzip
import json
from pathlib import Path

import pytest
import torch

from detcli.nn.roi_extractor import single_level
from detcli.registry import build

GOLDEN = json.loads(gzip.decompress((Path(__file__).parent / "data" / "roi_align.json.gz").read_bytes()))


def tensor(record):
    return torch.tensor(record["data"], dtype=getattr(torch, record["dtype"])).reshape(record["shape"])


def pyramid(size=256, levels=5, batch=2):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, 3, size >> (level + 2), size >> (level + 2), generator=generator) for level in range(levels)
    ]


@pytest.mark.parametrize("record", GOLDEN["mmdetection"], ids=lambda record: str(record["params"]))
def test_roi_align_as_mmdetection(record):
    params = record["params"]
    extract = single_level(
        strides=(int(1 / params["spatial_scale"]),),
        output_size=params["output_size"],
        sampling_ratio=params["sampling_ratio"],
        aligned=params["aligned"],
    )
    feature = tensor(record["inputs"]["x"]).requires_grad_()
    pooled = extract([feature], tensor(record["inputs"]["rois"]))
    pooled.sum().backward()
    torch.testing.assert_close(pooled.detach(), tensor(record["output"]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(feature.grad, tensor(record["grad_of_sum"]["x"]), rtol=1e-5, atol=1e-6)


def test_levels_as_detectron2():
    table = GOLDEN["detectron2"]["levels"]
    levels = single_level(strides=(4, 8, 16, 32)).levels(torch.tensor(table["boxes"]))
    assert (levels + 2).tolist() == table["level_2_to_5_canonical_224_at_4"]


def test_each_roi_comes_from_its_level_in_order():
    extract = build("roi_extractors", {"name": "roi_align", "output_size": 5}, strides=(4, 8, 16, 32, 64))
    rois = torch.tensor(
        [
            [1, 0, 0, 250, 250],
            [0, 20, 30, 40, 60],
            [0, 0, 10, 130, 140],
            [1, 5, 5, 11, 12],
            [0, 0, 0, 256, 256],
            [1, 7, 7, 7, 7],
        ],
        dtype=torch.float32,
    )
    features = pyramid()
    pooled = extract(features, rois)
    assert pooled.shape == (6, 3, 5, 5)
    for roi, result, level in zip(rois, pooled, [2, 0, 1, 0, 2, 0], strict=True):
        alone = single_level(strides=(4 << level,), output_size=5)
        torch.testing.assert_close(result, alone(features[level : level + 1], roi[None])[0])


def test_rois_up_to_their_last_pixel_keep_their_level():
    features = pyramid()
    rois = torch.tensor(
        [[0, 10.0, 20.0, 122.0, 132.0], [1, 5.0, 5.0, 11.0, 12.0]]
    )  # the first: just on the second level
    pooled = single_level(strides=(4, 8), aligned=False, last_pixel=True)(features, rois)
    for index, level in ((0, 1), (1, 0)):
        part = slice(index, index + 1)
        ends = rois[part] - torch.tensor([0, 0, 0, 1, 1])
        alone = single_level(strides=(4 << level,), aligned=False)(features[level : level + 1], ends)
        torch.testing.assert_close(pooled[part], alone)


def test_no_rois():
    features = [feature.requires_grad_() for feature in pyramid()]
    pooled = single_level(strides=(4, 8, 16, 32, 64))(features, torch.zeros(0, 5))
    assert pooled.shape == (0, 3, 7, 7)
    pooled.sum().backward()


def test_coordinates_are_not_rounded_to_half_precision():
    roi = torch.tensor([[0, 100.3, 50.7, 201.9, 203.1]])
    extract = single_level(strides=(4, 8, 16, 32))
    features = [feature.bfloat16() for feature in pyramid()]
    torch.testing.assert_close(extract(features, roi), extract([feature.float() for feature in features], roi))
