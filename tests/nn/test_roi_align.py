import pytest
import torch
from torchvision import ops

from detcli.nn.roi_align import separable_roi_align


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
