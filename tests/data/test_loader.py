from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from detcli.config import DataConfig, InputConfig
from detcli.data import DetectionDataset, Loader, collate, make_loader, open_dataset
from detcli.data.loader import BatchOrder
from detcli.data.sampling import repeat_factors
from detcli.errors import DetcliError
from detcli.structures import Batch

Config = Callable[..., DataConfig]
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def dataset(config: Config, rgb: InputConfig) -> DetectionDataset:
    settings = config(
        "shapes",
        args={"train_images": 21, "size": [64, 48]},
        resize=[(64, 48), (48, 36)],
        flip=0.5,
        transforms=[{"name": "photometric"}],
    )
    return open_dataset(settings, "train", rgb, masks=True, semantic=True)


def loader(dataset: DetectionDataset, **settings: Any) -> Loader:
    given = {"batch": 4, "train": True, "seed": 0, "workers": 0, "pad_divisor": 32, "group_aspect": True}
    return make_loader(dataset, **{**given, **settings})


def epoch(loader: Loader, number: int, start: int = 0) -> list[Batch]:
    loader.set_epoch(number, start)
    return list(loader)


def ids(batches: list[Batch]) -> list[list[int]]:
    return [[info.image_id for info in batch.infos] for batch in batches]


def same(one: list[Batch], other: list[Batch]) -> bool:
    return ids(one) == ids(other) and all(
        torch.equal(a.images, b.images)
        and all(torch.equal(x.boxes, y.boxes) for x, y in zip(a.targets, b.targets, strict=True))
        for a, b in zip(one, other, strict=True)
    )


def test_batches_are_padded_to_the_divisor(dataset: DetectionDataset) -> None:
    for batch in epoch(loader(dataset), 0):
        assert batch.images.dtype == torch.uint8
        assert all(side % 32 == 0 for side in batch.images.shape[2:])
        for image, (height, width), target in zip(batch.images, batch.sizes.tolist(), batch.targets, strict=True):
            assert image[:, height:].sum() == image[:, :, width:].sum() == 0
            assert image[:, :height, :width].float().mean() > 10
            assert target.masks.shape == (len(target.boxes), *batch.images.shape[2:])
            assert target.masks[:, height:].sum() == target.masks[:, :, width:].sum() == 0
            assert (target.semantic[height:] == 255).all()
            assert (target.semantic[:height, :width] < 7).all()


def test_every_picture_comes_once_an_epoch_but_for_the_filling(dataset: DetectionDataset) -> None:
    batches = loader(dataset)
    orders = [ids(epoch(batches, number)) for number in range(3)]
    for order in orders:
        assert len(order) == len(batches)
        assert {image for batch in order for image in batch} == set(dataset.image_ids)
        assert all(len(batch) == 4 for batch in order)
    assert orders[0] != orders[1] != orders[2]


def test_wide_and_tall_pictures_do_not_mix(dataset: DetectionDataset) -> None:
    tall = dict(zip(dataset.image_ids, dataset.aspect_ratios < 1, strict=True))
    assert 0 < sum(tall.values()) < len(tall)
    kinds = [{tall[image] for image in batch} for batch in ids(epoch(loader(dataset), 0))]
    assert all(len(kind) == 1 for kind in kinds)
    mixed = [{tall[image] for image in batch} for batch in ids(epoch(loader(dataset, group_aspect=False), 0))]
    assert any(len(kind) == 2 for kind in mixed)


def test_batches_depend_on_seed_and_epoch_alone(dataset: DetectionDataset) -> None:
    plain = [epoch(loader(dataset), number) for number in range(2)]
    torch.manual_seed(123)
    workers = loader(dataset, workers=2)
    assert same(epoch(workers, 1), plain[1])
    assert same(epoch(workers, 0), plain[0])
    assert not same(epoch(loader(dataset, seed=1), 0), plain[0])


def test_resumed_epoch_goes_on_where_it_was(dataset: DetectionDataset) -> None:
    whole = epoch(loader(dataset), 3)
    assert same(epoch(loader(dataset), 3, start=2), whole[2:])
    assert same(list(loader(dataset, start=2)), epoch(loader(dataset), 0)[2:])


def test_loading_leaves_the_random_state_alone(dataset: DetectionDataset) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    dataset.sample(0, 7)
    assert torch.equal(torch.get_rng_state(), before)


def test_processes_share_the_batches_of_one(dataset: DetectionDataset) -> None:
    whole = ids(epoch(loader(dataset, batch=4), 1))
    parts = [ids(epoch(loader(dataset, batch=2, rank=rank, world_size=2), 1)) for rank in range(2)]
    assert [one + other for one, other in zip(*parts, strict=True)] == whole


def test_evaluation_is_in_order_and_complete(dataset: DetectionDataset) -> None:
    assert ids(list(loader(dataset, train=False, batch=5))) == [
        dataset.image_ids[first : first + 5] for first in range(0, 21, 5)
    ]
    parts = [ids(list(loader(dataset, train=False, rank=rank, world_size=3))) for rank in range(3)]
    assert sorted(image for part in parts for batch in part for image in batch) == dataset.image_ids


@pytest.mark.parametrize("count", [1, 3, 8, 9])
def test_order_with_few_pictures(count: int) -> None:
    ratios = np.where(np.arange(count) % 3 == 0, 0.5, 2.0)
    order = BatchOrder(ratios, 4, train=True, seed=0, group_aspect=True)
    batches = list(order)
    assert len(batches) == len(order)
    assert {index for batch in batches for _, index in batch} == set(range(count))
    assert all(len(batch) == 4 for batch in batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_picture_is_one_clear_error(folder: Any, config: Config, rgb: InputConfig, workers: int) -> None:
    (folder.pictures / "grey.png").write_bytes(b"no picture")
    folder.write()
    batches = loader(open_dataset(config(folder.path), "val", rgb), train=False, workers=workers)
    with pytest.raises(DetcliError, match=r"grey\.png") as error:
        list(batches)
    assert "\n" not in str(error.value)


def test_collate_without_targets(dataset: DetectionDataset) -> None:
    samples = [dataset[0], dataset[1]]
    for sample in samples:
        sample.target = None
    batch = collate(samples, 64)
    assert batch.targets is None
    assert batch.images.shape[2:] == (64, 64)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_pictures_with_rare_classes_are_repeated() -> None:
    # 16 pictures: class 0 in all of them, class 1 in one, class 2 in four.
    pictures = np.array([*range(16), 3, 3, 4, 5, 6, 7])
    labels = np.array([0] * 16 + [1, 1] + [2] * 4)
    factors = repeat_factors(pictures, labels, 16, 0.5)
    expected = np.ones(16)
    expected[3], expected[4:8] = np.sqrt(0.5 / (1 / 16)), np.sqrt(0.5 / (4 / 16))
    np.testing.assert_allclose(factors, expected)
    assert (repeat_factors(pictures, labels, 16, 1 / 16) == 1).all()


def repeated(repeats: list[float], **settings: Any) -> BatchOrder:
    ratios = np.array([2.0, 0.5] * (len(repeats) // 2))
    given = {"train": True, "seed": 0, "group_aspect": False, "repeats": np.array(repeats)}
    return BatchOrder(ratios, 2, **{**given, **settings})


def test_a_repeated_picture_is_there_as_often_as_said_each_time_with_a_seed_of_its_own() -> None:
    keys = [key for batch in repeated([3.0, 1.0, 1.0, 1.0]) for key in batch]
    assert sorted(index for _, index in keys) == [0, 0, 0, 1, 2, 3]
    assert len({seed for seed, _ in keys}) == 6


@pytest.mark.parametrize("group_aspect", [False, True])
def test_a_fraction_is_the_chance_of_one_more(group_aspect: bool) -> None:
    order = repeated([1.25, 1.0, 2.5, 1.0] * 10, group_aspect=group_aspect)
    counts = np.zeros(40)
    for number in range(400):
        order.epoch = number
        batches = list(order)
        assert len(batches) == len(order) == (29 if not group_aspect else 19 + 10)
        np.add.at(counts, [index for batch in batches for _, index in batch], 1)
    mean = counts / 400
    np.testing.assert_allclose(mean[0::4].mean(), 1.25, atol=0.03)
    np.testing.assert_allclose(mean[2::4].mean(), 2.5, atol=0.05)


def test_processes_share_the_repeated_pictures() -> None:
    repeats = [2.0, 1.0, 3.0, 1.0, 1.0, 2.0]
    shares = [repeated(repeats, rank=rank, world_size=2) for rank in (0, 1)]
    assert [len(share) for share in shares] == [3, 3]
    found = np.bincount([index for share in shares for batch in share for _, index in batch])
    assert (found >= repeats).all()
    assert found.sum() == 12


def test_the_dataset_says_how_often(config: Config, rgb: InputConfig) -> None:
    args = {"train_images": 30, "size": [64, 48]}
    shapes = config("shapes", args=args, repeat_threshold=1.0)
    data = open_dataset(shapes, "train", rgb)
    labels = [set(data.annotations(index).categories.tolist()) for index in range(len(data))]
    share = [np.mean([label in own for own in labels]) for label in range(4)]
    expected = [max(np.sqrt(1 / share[label]) for label in own) for own in labels]
    np.testing.assert_allclose(data.repeats(config("shapes", repeat_threshold=1.0, repeat_rounding="drawn")), expected)
    np.testing.assert_array_equal(data.repeats(shapes), np.ceil(expected))
    assert data.repeats(config("shapes")) is None
