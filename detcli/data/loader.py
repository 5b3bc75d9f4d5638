"""Batches in an order that depends on seed and epoch alone, loaded by worker processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detcli.data.dataset import DetectionDataset, Sample
from detcli.data.workers import WorkerPool
from detcli.errors import DetcliError
from detcli.structures import UNLABELLED, Batch, Target

Key = tuple[int, int]
"""The seed of a sample's random transforms, and its position in the dataset."""


def collate(samples: Sequence[Sample], pad_divisor: int) -> Batch:
    """Put samples into a batch; pictures, masks and labels are padded to multiples of `pad_divisor`.

    Images are in channels-last memory. Targets are None where a sample has none.
    """
    sizes = torch.tensor([sample.info.size for sample in samples])
    height, width = (-(-int(side) // pad_divisor) * pad_divisor for side in sizes.amax(0))
    images = torch.zeros(len(samples), height, width, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    targets: list[Target] = []
    for image, sample in zip(images, samples, strict=True):
        image[:, : sample.info.size[0], : sample.info.size[1]] = sample.image
        target = sample.target
        if target is not None:
            if target.masks is not None:
                target.masks = _pad(target.masks, height, width, 0)
            if target.semantic is not None:
                target.semantic = _pad(target.semantic, height, width, UNLABELLED)
            targets.append(target)
    infos = [sample.info for sample in samples]
    seeds = torch.tensor([info.seed for info in infos])
    return Batch(images, sizes, targets if len(targets) == len(samples) else None, infos, seeds)


class BatchOrder:
    """The batches of an epoch, for one of `world_size` processes.

    In training, pictures are shuffled by (seed, epoch). With `group_aspect`, a batch has pictures that are
    all wide or all tall; the last batch of either kind is filled up with pictures from its beginning. With
    `repeats` [N], a picture is there that many times, a fraction being the chance of one more. Over
    processes, a batch of each is a part of one larger batch. In evaluation the order is that of the dataset,
    and process r has every `world_size`-th picture.
    """

    def __init__(
        self,
        aspect_ratios: NDArray[np.float64],
        batch: int,
        *,
        train: bool,
        seed: int,
        group_aspect: bool,
        repeats: NDArray[np.float64] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.batch, self.train, self.seed = batch, train, seed
        self.rank, self.world_size = rank, world_size
        self.count = len(aspect_ratios)
        tall = aspect_ratios < 1
        kinds = [~tall, tall] if train and group_aspect else [np.ones_like(tall)]
        self.groups = [group for group in map(np.flatnonzero, kinds) if len(group)]
        self.repeats = np.ones(self.count) if repeats is None else repeats
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        if self.train:
            return sum(self._batches(group) for group in self.groups)
        return -(-len(range(self.rank, self.count, self.world_size)) // self.batch)

    def __iter__(self) -> Iterator[list[Key]]:
        batches = self._shuffled() if self.train else self._in_order()
        for batch in batches[self.start :]:
            yield [(self._sample_seed(index, time), index) for index, time in batch]

    def _batches(self, group: NDArray[np.intp]) -> int:
        """Return how many batches over all processes the pictures of a group fill, the same in every epoch."""
        return math.ceil(float(self.repeats[group].sum()) / (self.batch * self.world_size))

    def _in_order(self) -> list[list[tuple[int, int]]]:
        own = [(index, 0) for index in range(self.rank, self.count, self.world_size)]
        return [own[first : first + self.batch] for first in range(0, len(own), self.batch)]

    def _shuffled(self) -> list[list[tuple[int, int]]]:
        generator = np.random.default_rng((self.seed, self.epoch))
        whole = self.batch * self.world_size
        batches = []
        for group in self.groups:
            batches.append(np.resize(self._drawn(generator, group), (self._batches(group), whole, 2)))
        every = generator.permutation(np.concatenate(batches))
        mine: list[list[tuple[int, int]]] = every[:, self.rank * self.batch : (self.rank + 1) * self.batch].tolist()
        return mine

    def _drawn(self, generator: np.random.Generator, group: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return the pictures of a group in the order of an epoch, each as often as it is repeated.

        [P,2]: the picture, and how often it has been there before.
        """
        repeats = self.repeats[group]
        counts = np.floor(repeats).astype(np.int64)
        if (counts < repeats).any():
            counts += generator.random(len(group)) < repeats - counts
        times = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        order = generator.permutation(np.arange(len(times)))
        drawn: NDArray[np.intp] = np.stack([np.repeat(group, counts), times], axis=1)[order]
        return drawn

    def _sample_seed(self, index: int, time: int) -> int:
        key = (self.seed, self.epoch, index, time) if time else (self.seed, self.epoch, index)
        return int(np.random.SeedSequence(key).generate_state(1)[0])


class Loader:
    """Batches of one epoch each time it is iterated; worker processes stay alive in between."""

    def __init__(self, dataset: DetectionDataset, order: BatchOrder, pad_divisor: int, workers: int) -> None:
        self._order = order
        self._work = _Batches(dataset, pad_divisor)
        self._pool = WorkerPool(self._work, workers, _pinning()) if workers else None

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        return len(self._order)

    @property
    def worker_pids(self) -> list[int]:
        """The process ids of the workers; none before the first batch."""
        return self._pool.pids if self._pool else []

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Choose the epoch of the next iteration, and the batch in it to start from."""
        self._order.epoch, self._order.start = epoch, start

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches, the same ones whether or not a worker dies.

        Raises `DetcliError` for a picture that can't be read, and where workers die again and again.
        """
        for batch in self._pool.run(self._order) if self._pool else map(self._work, self._order):
            if isinstance(batch, DetcliError):
                raise batch
            yield batch


def make_loader(
    dataset: DetectionDataset,
    *,
    batch: int,
    train: bool,
    seed: int,
    workers: int,
    pad_divisor: int,
    group_aspect: bool,
    repeats: NDArray[np.float64] | None = None,
    start: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> Loader:
    """Return the loader of `dataset`, `batch` pictures at a time for this process.

    What is drawn for a picture depends on (seed, epoch, picture) alone: not on workers, their order or where
    a run was resumed. `start` is the batch of epoch 0 to begin with; `Loader.set_epoch` moves on.
    """
    order = BatchOrder(
        dataset.aspect_ratios,
        batch,
        train=train,
        seed=seed,
        group_aspect=group_aspect,
        repeats=repeats,
        rank=rank,
        world_size=world_size,
    )
    order.start = start
    return Loader(dataset, order, pad_divisor, workers)


class _Batches:
    """Makes batches in the worker; an error travels as a value, since a raised one arrives as a traceback."""

    def __init__(self, dataset: DetectionDataset, pad_divisor: int) -> None:
        self.dataset = dataset
        self.pad_divisor = pad_divisor

    def __call__(self, keys: list[Key]) -> Batch | DetcliError:
        try:
            return collate([self.dataset.sample(index, seed) for seed, index in keys], self.pad_divisor)
        except DetcliError as error:
            return error


def _pinning() -> Callable[[Any], Any]:
    """Return what is done to a batch that arrives: with a GPU, a thread copies it to page-locked memory."""
    if not torch.cuda.is_available():
        return lambda batch: batch
    copier = ThreadPoolExecutor(1, "pin_memory")
    return lambda batch: copier.submit(batch.pin_memory) if isinstance(batch, Batch) else batch


def _pad(labels: Tensor, height: int, width: int, value: int) -> Tensor:
    padding = (0, width - labels.shape[-1], 0, height - labels.shape[-2])
    return torch.nn.functional.pad(labels, padding, value=value) if any(padding) else labels
