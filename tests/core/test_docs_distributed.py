"""The tables of docs/distributed.md are those of the models of now."""

import pytest

from benchmarks import scaling


def test_tables_are_current() -> None:
    document = scaling.DOCUMENT.read_text(encoding="utf-8")
    assert scaling.written(document) == document, "run `python -m benchmarks.scaling`"


def test_a_ring_sends_almost_twice_the_gradient_and_fewer_bits_take_longer() -> None:
    assert scaling.all_reduce(10**9, 2, None) == pytest.approx(1 / 450)
    assert scaling.all_reduce(10**9, 512, 8) == pytest.approx(2 * 511 / 512)
    model = scaling.Size("model", 44_000_000, 45_000_000, (64,))
    shares = [scaling.efficiency(model, 64, gigabits) for gigabits in scaling.NETWORKS]
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] < 1


def test_a_resnet_50_has_53_batch_norms() -> None:
    size = scaling.size("retinanet")
    assert len(size.norm_channels) == 53
    assert sum(size.norm_channels) == 26_560
    assert size.trained < size.parameters
