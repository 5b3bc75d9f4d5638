"""The mixture of two Gaussians, what it leaves positive, and score voting."""

import pytest
import torch
from detcli.plugins.paa import model
from detcli.plugins.paa.model import fit_mixture, separate, vote

from detcli.config import resolve
from detcli.errors import UsageError
from detcli.registry import build
from detcli.testing import random_batch

# Values, and what GaussianMixture of scikit-learn 1.9.1 with PAA's settings says: predict and score_samples.
MIXTURES = [
    (
        [0.103, 0.11, 0.258, 0.343, 0.39, 0.435, 1.001, 1.4, 2.2],
        [0, 0, 0, 0, 0, 0, 1, 1, 1],
        [-0.1416, -0.0727, 0.7054, 0.5664, 0.3093, -0.0519, -1.772, -1.3769, -2.2303],
    ),
    (
        [0.789, 0.866, 0.929, 0.944, 1.045, 1.665, 2.726, 2.833, 2.86, 3.337, 3.67],
        [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1],
        [-0.6603, -0.4663, -0.36, -0.3417, -0.2878, -2.6122, -1.1805, -0.9314, -0.8824, -0.9341, -2.0002],
    ),
    (
        [86.874, 133.255, 161.614, 203.661, 211.058, 226.804, 228.022, 240.852],
        [0, 0, 0, 1, 1, 1, 1, 1],
        [-6.1954, -5.374, -5.8613, -4.9308, -4.3269, -4.0354, -4.0719, -4.9755],
    ),
    (
        [0.495, 0.918, 1.202, 1.329, 1.466, 1.739, 1.752, 1.774, 1.83, 1.889, 2.747, 3.021],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1],
        [-2.4038, -1.0285, -0.5405, -0.4347, -0.3946, -0.5192, -0.5309, -0.5518, -0.6103, -0.6793, -1.8721, -2.3141],
    ),
    ([0.5, 0.9], [0, 1], [0.1905, 0.1905]),
    ([1.25, 1.25, 1.25], [0, 0, 0], [5.9888, 5.9888, 5.9888]),
]


def test_mixtures_are_those_of_scikit_learn():
    """They take 3 to 7 rounds, and all of them are fitted at once."""
    length = max(len(values) for values, _, _ in MIXTURES)
    values = torch.full((len(MIXTURES), length), torch.inf, dtype=torch.float64)
    for row, (given, _, _) in zip(values, MIXTURES, strict=True):
        row[: len(given)] = torch.tensor(given)
    components, densities = fit_mixture(values, values.isfinite())
    for ours, density, (given, component, score) in zip(components, densities, MIXTURES, strict=True):
        assert ours[: len(given)].tolist() == component
        assert density[: len(given)].tolist() == pytest.approx(score, abs=2e-4)


def separated_one_by_one(losses, gt_index, level_counts, topk):
    """Return the positive anchors of one image, object by object and level by level."""
    positive = torch.zeros(len(losses), dtype=torch.bool)
    for number in range(int(gt_index.max()) + 1):
        own = []
        for level in torch.arange(len(losses)).split(level_counts):
            candidates = level[gt_index[level] == number].tolist()
            own += sorted(candidates, key=lambda anchor: float(losses[anchor]))[:topk]
        own.sort(key=lambda anchor: float(losses[anchor]))
        if len(own) > 1:
            values = losses[own][None].double()
            component, density = fit_mixture(values, torch.ones_like(values, dtype=torch.bool))
            first = [place for place in range(len(own)) if component[0, place] == 0]
            end = max(range(len(first)), key=lambda place: float(density[0, first[place]])) + 1
            positive[[own[place] for place in first[:end]]] = True
    return positive


def test_all_images_and_objects_are_separated_at_once():
    random = torch.Generator().manual_seed(0)
    counts = [300, 80, 20]
    losses = torch.rand(3, sum(counts), generator=random) ** 2 * 4
    gt_index = torch.randint(-3, 5, losses.shape, generator=random)
    gt_index[1] = -1  # an image without objects
    gt_index[2] = gt_index[2].clamp(max=3)
    gt_index[2, 7] = 4  # an object with one candidate
    chosen = separate(losses, gt_index, 5, counts, 9)
    for image in range(3):
        expected = separated_one_by_one(losses[image], gt_index[image], counts, 9)
        assert torch.equal(chosen[image], expected)
    assert 20 < chosen[0].sum() < 5 * 27
    assert not chosen[1].any()
    assert not chosen[2, 7]


def test_without_any_object_nothing_is_positive():
    assert not separate(torch.rand(2, 10), torch.full((2, 10), -1), 0, [8, 2], 9).any()


def test_neighbours_vote_with_their_scores():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 50.0, 0.0, 60.0]])
    candidates = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 0.0, 10.0, 10.0], [2.0, 0.0, 10.0, 10.0]])
    votes = torch.tensor([[0.8, 0.4, 0.0], [0.8, 0.4, 0.0]])
    weight = 0.4 * 2.718281828 ** (-0.01 / 0.025)
    moved = vote(boxes, candidates, votes)
    torch.testing.assert_close(moved[0], torch.tensor([weight / (0.8 + weight), 0.0, 10.0, 10.0]))
    assert torch.equal(moved[1], boxes[1])  # without an area, it has no neighbours


def test_voting_moves_boxes_and_nothing_else():
    torch.manual_seed(0)
    settings = ["model.neck.out_channels=32", "model.stacked_convs=1", "weights=none"]
    config = resolve("paa", backbone="r18", settings=settings).config.model
    paa = build("models", config, num_classes=3).eval()
    batch = random_batch()
    voted = paa(batch)
    paa.bbox_head.score_voting = False
    for ours, plain in zip(voted, paa(batch), strict=True):
        assert torch.equal(ours.scores, plain.scores)
        assert torch.equal(ours.labels, plain.labels)
        assert not torch.equal(ours.boxes, plain.boxes)


def test_losses_are_divided_by_what_all_processes_find(monkeypatch):
    torch.manual_seed(0)
    settings = ["model.neck.out_channels=32", "model.stacked_convs=1", "weights=none"]
    config = resolve("paa", backbone="r18", settings=settings).config.model
    paa, batch = build("models", config, num_classes=3).train(), random_batch()
    alone = paa(batch)
    monkeypatch.setattr(model, "reduce_mean", lambda value: 4 * value)
    for name, loss in paa(batch).items():
        torch.testing.assert_close(loss, alone[name] / 4)


def test_losses_that_are_not_of_elements_are_refused():
    with pytest.raises(UsageError, match=r"model.loss_cls must be a loss of single elements.* `detcli list losses`"):
        build("models", resolve("paa", settings=["model.loss_cls=ghm_c"]).config.model, num_classes=3)
