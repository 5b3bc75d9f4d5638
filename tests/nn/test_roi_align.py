import pytest
import torch
from torchvision import ops

from detcli.nn import roi_align
from detcli.nn.roi_align import pyramid_roi_align, separable_roi_align
from detcli.nn.roi_extractor import SingleLevelExtractor


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_matrix_products_give_what_torchvision_gives(aligned, sampling_ratio):
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(40, 2, generator=generator) * 150 - 20  # some reach outside the map
    sides = torch.rand(40, 2, generator=generator) * 90
    sides[0] = 0.0  # no area
    sides[1] = torch.tensor([300.0, 0.5])
    corners[2] = 500.0  # outside altogether
    image = torch.randint(3, (40, 1), generator=generator).float()
    rois = torch.cat([image, corners, corners + sides], dim=1)
    maps = [torch.randn(3, 5, 17, 23, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)]
    outputs = [
        align(feature, rois, 7, 1 / 8, sampling_ratio, aligned)
        for align, feature in zip((separable_roi_align, ops.roi_align), maps, strict=True)
    ]
    weight = torch.randn(outputs[0].shape, generator=generator)
    for output in outputs:
        (output * weight).sum().backward()
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(maps[0].grad, maps[1].grad, rtol=1e-4, atol=1e-4)


def test_no_rois_give_an_empty_result():
    features = torch.randn(2, 4, 8, 8, requires_grad=True)
    assert separable_roi_align(features, torch.zeros(0, 5), 7, 0.25, 0, True).shape == (0, 4, 7, 7)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2, 3])
def test_sums_over_a_pyramid_give_what_torchvision_gives(aligned, sampling_ratio, monkeypatch):
    monkeypatch.setattr(roi_align, "MAX_TERMS", 20_000)  # several parts
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(90, 2, generator=generator) * 200 - 40  # some reach outside the map
    sides = torch.rand(90, 2, generator=generator) ** 2 * 150
    sides[0] = 0.0
    sides[1] = -5.0
    corners[2] = 900.0
    rois = torch.cat([torch.randint(2, (90, 1), generator=generator).float(), corners, corners + sides], dim=1)
    levels = torch.randint(3, (90,), generator=generator)
    features = [torch.randn(2, 6, *size, generator=generator) for size in ((40, 52), (20, 26), (10, 13))]
    scales = [1 / 4, 1 / 8, 1 / 16]
    pooled = pyramid_roi_align(features, levels, rois, 7, scales, sampling_ratio, aligned)
    for level, (feature, scale) in enumerate(zip(features, scales, strict=True)):
        expected = ops.roi_align(feature, rois, 7, scale, sampling_ratio, aligned)
        torch.testing.assert_close(pooled[levels == level], expected[levels == level], rtol=1e-4, atol=2e-5)


def test_sums_over_a_pyramid_of_no_rois_are_empty():
    features = [torch.randn(1, 4, 8, 8)]
    pooled = pyramid_roi_align(features, torch.zeros(0).long(), torch.zeros(0, 5), 7, [0.25], 0, True)
    assert pooled.shape == (0, 4, 7, 7)


def test_the_extractor_gives_gradients_where_they_are_asked_for():
    extractor = SingleLevelExtractor((4, 8), 7, 0, True, 56)
    features = [torch.randn(1, 4, side, side, requires_grad=True) for side in (16, 8)]
    rois = torch.tensor([[0.0, 3.0, 5.0, 40.0, 50.0]])
    trained = extractor(features, rois)
    assert trained.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(extractor(features, rois), trained.detach(), rtol=1e-4, atol=1e-5)
