"""Worker processes that are killed, by a pool's own hand and by others'."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detcli.config import DataConfig, InputConfig
from detcli.data import Loader, make_loader, open_dataset, workers
from detcli.data.workers import WorkerPool
from detcli.errors import DetcliError
from detcli.structures import Batch

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX"),
]

SECONDS = 3.0
"""How long anything may take that a death could hold up; torch's loader looks every five."""


def gone(pids: list[int]) -> bool:
    """Say whether none of the processes is alive, within a while."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if not any(alive(pid) for pid in pids):
            return True
        time.sleep(0.02)
    return False


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def tensors(number: int) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Return what goes through shared memory and what goes through the pipe."""
    return number, torch.full((300, 300), float(number)), torch.full((number % 5, 4), number)


def check(results: list[Any], count: int) -> None:
    assert [number for number, _, _ in results] == list(range(count))
    for number, large, small in results:
        assert torch.equal(large, torch.full((300, 300), float(number)))
        assert torch.equal(small, torch.full((number % 5, 4), number))


class DiesAt:
    """Does nothing but die of a signal at some numbers, `times` times each."""

    def __init__(self, folder: Path, numbers: set[int], times: int, how: Callable[[], None]) -> None:
        self.folder, self.numbers, self.times, self.how = folder, numbers, times, how

    def __call__(self, number: int) -> int:
        if number in self.numbers:
            done = len(list(self.folder.glob(f"{number}-*")))
            if done < self.times:
                (self.folder / f"{number}-{done}").touch()
                self.how()
        return number


@pytest.fixture
def loader(config: Callable[..., DataConfig], rgb: InputConfig) -> Callable[..., Loader]:
    settings = config("shapes", args={"train_images": 40, "size": [64, 48]}, resize=[(64, 48), (48, 36)], flip=0.5)
    dataset = open_dataset(settings, "train", rgb, masks=True)

    def make(workers: int) -> Loader:
        return make_loader(
            dataset, batch=2, train=True, seed=0, workers=workers, pad_divisor=32, group_aspect=True, start=0
        )

    return make


def same(one: Batch, other: Batch) -> bool:
    assert one.targets is not None
    assert other.targets is not None
    return (
        one.infos == other.infos
        and torch.equal(one.images, other.images)
        and all(
            torch.equal(a.boxes, b.boxes) and torch.equal(a.masks, b.masks)
            for a, b in zip(one.targets, other.targets, strict=True)
        )
    )


@pytest.mark.parametrize("every", [False, True], ids=["one", "all"])
def test_batches_do_not_show_that_workers_were_killed(loader: Callable[..., Loader], every: bool) -> None:
    expected = list(loader(0))
    batches = loader(5)
    iterator = iter(batches)
    found = [next(iterator) for _ in range(4)]
    before = signal.getsignal(signal.SIGCHLD)
    victims = batches.worker_pids if every else batches.worker_pids[2:3]
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    assert gone(victims)
    assert signal.getsignal(signal.SIGCHLD) is before
    started = time.monotonic()
    with pytest.warns(UserWarning, match=f"process {victims[0]} was killed by SIGKILL") as warned:
        found += list(iterator)
    assert time.monotonic() - started < SECONDS
    assert len(warned) == 1
    assert "\n" not in str(warned[0].message)
    assert len(found) == len(expected)
    assert all(same(one, other) for one, other in zip(found, expected, strict=True))
    assert len(batches.worker_pids) == 5
    batches.set_epoch(1)
    other = loader(0)
    other.set_epoch(1)
    assert all(same(one, another) for one, another in zip(batches, other, strict=True))


def test_a_death_is_noticed_only_where_results_are_awaited(loader: Callable[..., Loader]) -> None:
    batches = loader(2)
    next(iter(batches))
    os.kill(batches.worker_pids[0], signal.SIGKILL)
    # Handlers of signals run between any two steps of this loop.
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        sum(range(100))


def test_workers_killed_at_any_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "LOSSES_BORNE", 10**6)
    pool = WorkerPool(tensors, 3)
    stop = threading.Event()
    killed = []

    def kill() -> None:
        draw = random.Random(0)
        while len(killed) < 15 and not stop.wait(draw.uniform(0, 0.1)):
            for pid in draw.sample(pids := pool.pids, min(len(pids), 1)):
                with suppress(ProcessLookupError):  # one that was reaped a moment ago
                    if alive(pid):
                        os.kill(pid, signal.SIGKILL)
                        killed.append(pid)

    def results() -> Iterator[Any]:
        run = pool.run(range(10**6))
        yield next(run)
        killer.start()
        while killer.is_alive():
            yield next(run)

    killer = threading.Thread(target=kill)
    try:
        with pytest.warns(UserWarning, match="SIGKILL"):
            found = list(results())
    finally:
        stop.set()
        killer.join()
    check(found, len(found))
    assert len(killed) == 15


def test_one_death_too_many_is_an_error(tmp_path: Path) -> None:
    pool = WorkerPool(DiesAt(tmp_path, {7}, 4, lambda: os.kill(os.getpid(), signal.SIGTERM)), 2)
    pids: list[int] = []

    def run() -> None:
        for number in pool.run(range(20)):
            pids.extend(pool.pids)
            assert number < 7

    with pytest.warns(UserWarning, match="SIGTERM") as warned, pytest.raises(DetcliError, match="--workers 1") as error:
        run()
    assert len(warned) == workers.LOSSES_BORNE
    assert "killed by SIGTERM" in str(error.value)
    assert "\n" not in str(error.value)
    assert gone(pids)


def test_deaths_are_counted_for_each_epoch(tmp_path: Path) -> None:
    pool = WorkerPool(DiesAt(tmp_path, {7, 25}, 3, lambda: os._exit(3)), 2)
    for tasks in (range(20), range(20, 40)):
        with pytest.warns(UserWarning, match="ended with exit code 3") as warned:
            assert list(pool.run(tasks)) == list(tasks)
        assert len(warned) == 3


def fails(number: int) -> int:
    return number // (number - 3)


def test_an_exception_in_a_worker_arrives_with_its_traceback() -> None:
    pool = WorkerPool(fails, 2)
    pids: list[int] = []

    def run() -> None:
        for _ in pool.run(range(9)):
            pids.extend(pool.pids)

    with pytest.raises(RuntimeError, match=r"(?s)in fails.*ZeroDivisionError"):
        run()
    assert gone(pids)
    assert list(pool.run([8])) == [1]


def test_a_run_that_is_given_up_leaves_nothing_to_the_next() -> None:
    pool = WorkerPool(tensors, 2)
    for _ in range(5):
        assert next(pool.run(iter(range(100, 200))))[0] == 100
    first, second = pool.run(range(30)), pool.run(range(30))
    pairs = list(zip(first, second, strict=True))
    check([one for one, _ in pairs], 30)
    check([other for _, other in pairs], 30)
    assert list(pool.run([])) == []


def layouts(number: int) -> list[torch.Tensor]:
    """Return tensors above and below what is sent by value, of several types and layouts."""
    count = 1000 * (1 + number % 7)
    plain = torch.arange(60 * count).reshape(3, 20, count) + number
    return [
        plain,
        plain.permute(2, 0, 1),
        plain[:, ::2],
        plain[:1].expand(4, 20, count),
        plain % 2 == 0,
        plain.to(torch.uint8)[None].contiguous(memory_format=torch.channels_last),
        plain[0, 0, :5].float(),
        plain[:0],
        torch.tensor(number),
    ]


def test_tensors_arrive_as_they_were_and_stay_so() -> None:
    results = list(WorkerPool(layouts, 2).run(range(30)))
    for number, found in enumerate(results):
        for one, other in zip(found, layouts(number), strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)
        assert found[1].stride() == layouts(number)[1].stride()
        assert found[5].is_contiguous(memory_format=torch.channels_last)


def test_shared_memory_is_used_again_but_not_while_anything_looks_at_it() -> None:
    pool = WorkerPool(tensors, 1)
    held: list[torch.Tensor] = []
    places = set()
    for number, large, _ in pool.run(range(60)):
        places.add(large.data_ptr())
        if number < 5:
            held.append(large[7:9, 3:])
    assert all((part == number).all() for number, part in enumerate(held))
    assert len(places) <= 5 + 2 * workers.PREFETCH + workers.FREE_BLOCKS


def test_tasks_are_taken_only_a_few_ahead() -> None:
    taken = []

    def tasks() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    results = WorkerPool(tensors, 3).run(tasks())
    next(results)
    assert len(taken) == 1 + 3 * workers.PREFETCH


def test_an_abandoned_iterator_leaves_no_process(loader: Callable[..., Loader]) -> None:
    batches = loader(2)
    iterator = iter(batches)
    next(iterator)
    pids = batches.worker_pids
    assert all(alive(pid) for pid in pids)
    del batches, iterator
    gc.collect()
    assert gone(pids)


ORPHANS = """
import os, signal, sys, time
from detcli.data.workers import WorkerPool
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
pools = [WorkerPool(str, 2), WorkerPool(str, 2)]
runs = [pool.run(range(1000)) for pool in pools]
for run in runs:
    next(run)
print(*(pid for pool in pools for pid in pool.pids), flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only forked workers take a function of -c")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_do_not_outlive_the_process_that_started_them(how: signal.Signals) -> None:
    process = subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    with process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 4
        process.send_signal(how)
        process.wait(SECONDS)
    assert gone(pids)


class Noise:
    """A transform of someone who draws from the generators of Python and NumPy."""

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        drawn = random.randrange(100) + np.random.randint(100)  # noqa: NPY002
        return {**record, "labels": record["labels"] * 0 + drawn}


def test_all_generators_are_seeded(config: Callable[..., DataConfig], rgb: InputConfig) -> None:
    dataset = open_dataset(config("shapes", args={"train_images": 9, "size": [64, 48]}), "train", rgb)
    dataset._transforms = [Noise()]
    epochs = []
    for count in (0, 0, 2, 3):
        states = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
        batches = make_loader(
            dataset, batch=2, train=True, seed=0, workers=count, pad_divisor=32, group_aspect=False, start=0
        )
        epochs.append([target.labels.tolist() for batch in batches for target in batch.targets or []])
        assert states == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    assert epochs[0] == epochs[1] == epochs[2] == epochs[3]
    assert len({labels[0] for labels in epochs[0]}) > 3
