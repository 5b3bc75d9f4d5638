"""What tells tokens their place, and what attention must not see."""

import math

import pytest
import torch

from detcli.nn.transformer import Attention, DecoderLayer, EncoderLayer, cells_inside, padding_mask, sine_positions


def test_cells_are_inside_when_their_first_pixel_is():
    sizes = torch.tensor([[64, 96], [33, 32], [32, 1]])
    inside = cells_inside(sizes, (64, 96), (2, 3))
    assert inside.tolist() == [[2, 3], [2, 1], [1, 1]]
    # A map of 3 rows for 70 pixels: rows begin at 0, 23 and 46.
    assert cells_inside(torch.tensor([[46, 9], [47, 9]]), (70, 9), (3, 1)).tolist() == [[2, 1], [3, 1]]


def test_padding_is_what_is_not_inside():
    mask = padding_mask(torch.tensor([[2, 3], [1, 2]]), (2, 3))
    assert mask.tolist() == [[False] * 6, [False, False, True, True, True, True]]


@pytest.mark.parametrize("offset", [0.0, -0.5])
def test_positions_are_sines_of_the_share_of_the_image_rows_first(offset):
    inside = torch.tensor([[4, 5], [2, 3]])
    positions = sine_positions(inside, (4, 5), 8, offset=offset).unflatten(1, (4, 5))
    assert positions.shape == (2, 4, 5, 8)
    for image, row, column in ((0, 2, 4), (1, 1, 0)):
        rows, columns = inside[image].tolist()
        expected = []
        for place, count in ((row, rows), (column, columns)):
            angle = 2 * math.pi * (place + 1 + offset) / count
            for frequency in (1, 1 / 10000 ** (2 / 4)):
                expected += [math.sin(angle * frequency), math.cos(angle * frequency)]
        torch.testing.assert_close(positions[image, row, column], torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_padding_is_not_seen():
    torch.manual_seed(0)
    encoder, decoder = EncoderLayer(16, 2, 32).eval(), DecoderLayer(16, 2, 32).eval()
    tokens, positions, queries = torch.randn(1, 6, 16), torch.randn(1, 6, 16), torch.randn(1, 3, 16)
    padding = torch.tensor([[False, False, False, False, True, True]])

    def outputs(tokens):
        memory = encoder(tokens, positions, padding)
        return torch.cat([memory[:, :4], decoder(queries, queries, memory, positions, padding)], dim=1)

    with torch.no_grad():
        before = outputs(tokens)
        other = torch.where(padding[..., None], 100.0, tokens)
        torch.testing.assert_close(outputs(other), before)
        assert not torch.allclose(outputs(tokens + 1), before)


def test_positions_are_added_to_queries_and_keys_and_not_to_values():
    attention = Attention(4, 1).eval()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.zero_()
        attention.attn.in_proj_weight[8:] = torch.eye(4)  # values as they are, all keys alike
        attention.attn.out_proj.weight[:] = torch.eye(4)
        queries, keys = torch.randn(1, 2, 4), torch.randn(1, 3, 4)
        seen = attention(queries, torch.randn(1, 2, 4), keys, torch.randn(1, 3, 4))
        torch.testing.assert_close(seen, queries + keys.mean(1, keepdim=True))
        attention.attn.in_proj_weight[:4] = torch.eye(4)
        attention.attn.in_proj_weight[4:8] = torch.eye(4) * 100
        places = torch.eye(4)[:3][None]
        keys = torch.tensor([[[0.0, 0, 0, 5], [0, 0, 0, 6], [0, 0, 0, 7]]])
        seen = attention(torch.zeros(1, 1, 4), places[:, [1]], keys, places)
        torch.testing.assert_close(seen[0, 0, 3], torch.tensor(6.0))
