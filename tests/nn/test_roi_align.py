import pytest
import torch
from torchvision import ops

from detcli.nn import roi_align
from detcli.nn.roi_align import pyramid_roi_align


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
    sizes = ((40, 52), (20, 26), (10, 13))
    features = [torch.randn(2, 6, *size, generator=generator).requires_grad_() for size in sizes]
    scales = [1 / 4, 1 / 8, 1 / 16]
    weight = torch.randn(90, 6, 7, 7, generator=generator)
    pooled = pyramid_roi_align(features, levels, rois, 7, scales, sampling_ratio, aligned)
    gradients = torch.autograd.grad((pooled * weight).sum(), features)
    for level, (feature, scale, gradient) in enumerate(zip(features, scales, gradients, strict=True)):
        expected = ops.roi_align(feature, rois[levels == level], 7, scale, sampling_ratio, aligned)
        torch.testing.assert_close(pooled[levels == level], expected, rtol=1e-4, atol=2e-5)
        (expected_gradient,) = torch.autograd.grad((expected * weight[levels == level]).sum(), feature)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-4)


def test_sums_over_a_pyramid_of_no_rois_are_empty():
    features = [torch.randn(1, 4, 8, 8)]
    pooled = pyramid_roi_align(features, torch.zeros(0).long(), torch.zeros(0, 5), 7, [0.25], 0, True)
    assert pooled.shape == (0, 4, 7, 7)
