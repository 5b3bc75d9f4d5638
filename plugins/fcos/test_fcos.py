"""Which object each location predicts."""

import pytest
import torch
from detcli.plugins.fcos import model
from detcli.plugins.fcos.model import PointAssigner

from detcli.errors import UsageError
from detcli.nn.anchors import PointGenerator
from detcli.structures import Target

STRIDES, LIMITS = (8, 16), (64.0,)
SIZES = [(16, 16), (8, 8)]


def assign(boxes, center_radius=None):
    """Return which object each location has, [H,W] of each level; -1 for none."""
    levels = PointGenerator(STRIDES)(SIZES, "cpu")
    target = Target(torch.tensor(boxes).reshape(-1, 4), torch.zeros(len(boxes)).long())
    index = PointAssigner(STRIDES, LIMITS, center_radius)(levels, target)
    return [part.reshape(size) for part, size in zip(index.split([256, 64]), SIZES, strict=True)]


def test_locations_inside_an_object_of_their_size_have_it():
    fine, coarse = assign([[0.0, 0.0, 40.0, 24.0]])
    assert (fine[:3, :5] == 0).all()
    assert (fine >= 0).sum() == 15
    assert (coarse == -1).all()


def test_large_objects_go_to_the_coarse_level():
    fine, coarse = assign([[0.0, 0.0, 128.0, 128.0]])
    # Locations within 64 pixels of all four sides are in the middle alone.
    assert (fine >= 0).sum() == 0
    assert (coarse == 0).all()


def test_of_several_objects_a_location_has_the_smallest():
    fine, _ = assign([[0.0, 0.0, 60.0, 60.0], [20.0, 20.0, 40.0, 40.0], [0.0, 0.0, 62.0, 62.0]])
    assert fine[3, 3] == 1
    assert fine[0, 0] == 0


def test_center_sampling_keeps_locations_near_the_centre():
    fine, _ = assign([[0.0, 0.0, 64.0, 48.0]], center_radius=1.5)
    # The centre is (32, 24): locations less than 12 pixels from it along both axes.
    expected = torch.full((16, 16), -1)
    expected[2:4, 3:5] = 0
    assert torch.equal(fine, expected)


def test_center_sampling_stays_inside_the_object():
    fine, _ = assign([[30.0, 0.0, 34.0, 48.0]], center_radius=1.5)
    assert (fine == -1).all()


def test_many_objects_in_parts_are_assigned_as_at_once(monkeypatch):
    torch.manual_seed(0)
    corners = torch.rand(60, 2) * 90
    boxes = torch.cat([corners, corners + 5 + torch.rand(60, 2) * 60], dim=1).tolist()
    whole = assign(boxes)
    assert len(whole[0].unique()) > 10
    monkeypatch.setattr(model, "MAX_PAIRS", 1000)
    assert all(torch.equal(*pair) for pair in zip(whole, assign(boxes), strict=True))


def test_without_objects_every_location_is_background():
    assert all((level == -1).all() for level in assign([]))


def test_limits_must_fit_the_levels():
    with pytest.raises(UsageError, match=r"has 1 numbers.* 3 levels.* 2"):
        PointAssigner((8, 16, 32), LIMITS, None)
