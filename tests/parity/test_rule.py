"""The rule that makes weights, against values that are written down with the reference cases."""

import numpy as np
import pytest
import rule


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        (
            "backbone.fpn_lateral2.weight",
            [256, 256, 1, 1],
            [-0.08826898, -0.070092872, 0.027029935, -0.0262272],
        ),
        (
            "backbone.bottom_up.res2.0.conv1.norm.running_var",
            [64],
            [1.2602036, 0.56688774, 1.1658543, 1.1503372],
        ),
    ],
)
def test_weights_of_detectron2(name, shape, expected):
    values = rule.fill_detectron2(name, shape, "float32", 1.0)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values.ravel()[:4], expected, rtol=1e-6)


def test_objects():
    boxes, labels, masks = rule.make_targets(256, 320, 80)
    np.testing.assert_allclose(boxes[0], [0.027368179, 40.523411, 80.742363, 162.48753], rtol=1e-6)
    assert labels.shape == (5,)
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    np.testing.assert_allclose(masks.sum((1, 2)), np.pi / 4 * width * height, rtol=0.01)
