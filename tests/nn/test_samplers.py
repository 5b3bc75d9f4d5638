import pytest
import torch

from detcli.nn.assigners import IGNORED, NEGATIVE, Assignment
from detcli.nn.samplers import hardest, random, uniform


def assignment(positives, negatives, ignored=0):
    """Return positives of objects 0, 1, 2, ... mixed with the rest."""
    kinds = torch.cat([torch.arange(positives), torch.full((negatives,), NEGATIVE), torch.full((ignored,), IGNORED)])
    order = torch.randperm(len(kinds), generator=torch.Generator().manual_seed(0))
    return Assignment(kinds[order], torch.zeros(len(kinds)))


def counts(sample):
    return int(sample.positive.sum()), int((sample.valid & ~sample.positive).sum())


@pytest.mark.parametrize(
    ("positives", "negatives", "ignored", "expected"),
    [
        (50, 500, 10, (8, 24)),  # more of both than wanted
        (3, 500, 10, (3, 29)),  # negatives fill up
        (50, 10, 10, (8, 10)),  # positives do not
        (0, 500, 0, (0, 32)),
        (50, 0, 5, (8, 0)),
        (0, 0, 40, (0, 0)),
        (2, 3, 4, (2, 3)),  # fewer candidates than rows
        (0, 0, 0, (0, 0)),
    ],
)
def test_share_of_positives(positives, negatives, ignored, expected):
    given = assignment(positives, negatives, ignored)
    sample = random(num=32, positive_fraction=0.25)(given)
    rows = min(32, positives + negatives + ignored)
    assert {len(value) for value in (sample.index, sample.positive, sample.valid, sample.gt_index)} == {rows}
    assert counts(sample) == expected
    chosen = sample.index[sample.valid]
    assert len(chosen.unique()) == len(chosen)
    drawn = given.gt_index[sample.index]
    assert (drawn[sample.positive] >= 0).all()
    assert (drawn[sample.valid & ~sample.positive] == NEGATIVE).all()
    assert torch.equal(sample.gt_index, torch.where(sample.positive, drawn, NEGATIVE))
    kinds = sample.positive.int() + sample.valid.int()  # 2 positive, 1 negative, 0 filling
    assert (kinds.diff() <= 0).all()
    assert expected[0] <= sample.positive_limit <= rows


def test_large_number_takes_everything():
    given = assignment(40, 300, 20)
    sample = random(num=100000, positive_fraction=0.25)(given)
    assert counts(sample) == (40, 300)
    assert sample.index[sample.valid].sort().values.tolist() == (given.gt_index != IGNORED).nonzero()[:, 0].tolist()


def test_the_first_rows_are_drawn_at_random_too():
    given = assignment(40, 300)
    sampler = random(num=100000, positive_fraction=0.25)
    first = [sampler(given, torch.tensor(seed)).gt_index[:10] for seed in range(200)]
    counts = torch.bincount(torch.cat(first), minlength=40)  # 50 of each are expected, give or take 6
    assert 25 < counts.min() < counts.max() < 75


def test_negatives_are_bounded_by_positives():
    sampler = random(num=256, positive_fraction=0.5, negative_ratio=3)
    assert counts(sampler(assignment(5, 500))) == (5, 15)
    assert counts(sampler(assignment(0, 500))) == (0, 3)
    assert counts(sampler(assignment(128, 500))) == (128, 128)


def test_every_candidate_is_equally_likely():
    torch.manual_seed(0)
    given = assignment(20, 60)
    sampler = random(num=16, positive_fraction=0.5)
    drawn = torch.zeros(80)
    for _ in range(3000):
        sample = sampler(given)
        drawn[sample.index[sample.valid]] += 1
    positive = given.gt_index >= 0
    # Five standard deviations of a binomial of 3000 draws.
    for share, chosen in [(8 / 20, positive), (8 / 60, ~positive)]:
        bound = 5 * (share * (1 - share) / 3000) ** 0.5
        assert (drawn[chosen] / 3000 - share).abs().max() < bound


def test_seed_decides():
    given, sampler = assignment(100, 900), random(num=64, positive_fraction=0.5)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(sampler(given).index.tolist())
    assert draws[0] == draws[1] != draws[2]


def test_a_seed_decides_what_is_drawn():
    sampler = random(num=32, positive_fraction=0.25)
    first, again, other = (sampler(assignment(50, 500), torch.tensor(seed)) for seed in (7, 7, 8))
    assert torch.equal(first.index, again.index)
    assert not torch.equal(first.index, other.index)


def test_numbers_of_a_seed_are_even_and_unrelated():
    many = torch.stack([uniform(torch.tensor(seed), 100_000) for seed in (0, 1, 2**31, 2**32 - 1)])
    assert many.min() >= 0
    assert many.max() < 1
    shares = torch.stack([row.histc(10, 0, 1) for row in many]) / many.shape[1]
    torch.testing.assert_close(shares, torch.full_like(shares, 0.1), rtol=0, atol=0.005)
    rows = torch.cat([many[:, :-1], many[:, 1:]])  # neighbours, too
    assert (torch.corrcoef(rows) - torch.eye(len(rows))).abs().max() < 0.02


def test_hardest_of_each_image():
    losses = torch.tensor([[5.0, 1, 9, 3, 7], [2, 8, 6, 4, 0], [1, 2, 3, 4, 5]])
    candidates = torch.tensor([[1, 1, 0, 1, 1], [1, 1, 1, 1, 1], [0, 1, 0, 1, 0]]).bool()
    chosen = hardest(losses, candidates, torch.tensor([2, 0, 4]))
    assert chosen.int().tolist() == [[1, 0, 0, 0, 1], [0, 0, 0, 0, 0], [0, 1, 0, 1, 0]]
