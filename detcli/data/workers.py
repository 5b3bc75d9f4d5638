"""Worker processes that may die: what one of them was at is done again, and results keep their order.

Each worker has a pipe of its own and shares no lock with the others, so that one that is killed at any moment,
even in the middle of an answer, can hold up neither the others nor us, and is noticed at once, while we wait for
results and at no other time. That is why this is no `torch.utils.data.DataLoader`, whose workers share a queue and
whose handler of SIGCHLD raises wherever the program happens to be.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import time
import traceback
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any

import cv2
import torch
from torch import Tensor

from detcli.errors import DetcliError

PREFETCH = 2
"""How many tasks are handed out ahead, for each worker."""

LOSSES_BORNE = 3
"""How many times in one run workers may die; those that die together count once."""

TOGETHER_SECONDS = 0.2
"""How long after the first one the others that are killed with it may take to be gone."""

EXIT_SECONDS = 5.0
"""How long a process whose pipe is broken may take to be gone."""

SENT_BY_VALUE = 2**16
"""Smaller tensors, in bytes, are sent through the pipe."""

ALIGNMENT = 64
"""Where tensors begin in a block of shared memory, in bytes."""

FREE_BLOCKS = PREFETCH + 1
"""How many blocks that are not in use a worker keeps."""

_PENDING, _NO_MORE = object(), object()


@dataclass(slots=True, eq=False)
class _Worker:
    """A process, our end of its pipe, and the tasks by number that it has not answered, in their order.

    `blocks` is its shared memory by number, `released` the numbers of those that are no longer in use.
    """

    process: Any
    pipe: Connection
    tasks: dict[int, Any] = field(default_factory=dict)
    blocks: dict[int, Tensor] = field(default_factory=dict)
    released: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Failure:
    """An exception in a worker, as a traceback."""

    text: str


class WorkerPool:
    """Calls `work` on tasks in `count` processes, which start with the first run and stay for the next ones.

    `work` and tasks must give the same result in any process and at any time. `receive` is called on every result
    as it arrives; where it returns a future, the future's result is what a run yields. The processes end with the
    pool.
    """

    def __init__(
        self, work: Callable[[Any], Any], count: int, receive: Callable[[Any], Any] = lambda result: result
    ) -> None:
        self._work = work
        self._count = count
        self._on_receive = receive
        # Workers that are forked share the memory of what `work` reads instead of each reading a copy.
        self._context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
        self._workers: list[_Worker] = []
        self._next_number = 0
        # The tasks that a run still waits for. Numbers are never used twice, so that answers to tasks of a run that
        # was given up are known as such.
        self._answers: dict[int, Any] = {}
        weakref.finalize(self, _stop, self._workers, os.getpid())

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers that were started."""
        return [worker.process.pid for worker in self._workers]

    def run(self, tasks: Iterable[Any]) -> Iterator[Any]:
        """Yield the results of `tasks` in their order.

        A worker that dies is named in a warning and replaced. Raises `DetcliError` when that happens more than
        `LOSSES_BORNE` times, and `RuntimeError` with the traceback of an exception in `work`.
        """
        remaining = iter(tasks)
        numbers: deque[int] = deque()
        losses = 0
        while len(self._workers) < self._count:
            self._workers.append(self._start())
        try:
            self._hand_out(remaining, numbers)
            while numbers:
                self._receive(0.0)
                while self._answers[numbers[0]] is _PENDING:
                    self._receive(None)
                    dead = self._take_dead()
                    if dead:
                        losses += 1
                        self._replace(dead, losses)
                result = self._answers.pop(numbers.popleft())
                # Before the caller goes to work on the result, so that no worker is idle meanwhile.
                self._hand_out(remaining, numbers)
                if isinstance(result, Future):
                    result = result.result()
                if isinstance(result, _Failure):
                    raise RuntimeError(f"in a worker process:\n{result.text}")
                yield result
        except GeneratorExit:
            raise
        except BaseException:
            # Ctrl-C may have come in the middle of an answer, of which the rest would be taken for the next one.
            _stop(self._workers, os.getpid())
            self._workers.clear()
            self._answers.clear()
            raise
        finally:
            for number in numbers:
                self._answers.pop(number, None)

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        inherited = ours if self._context.get_start_method() == "fork" else None
        process = self._context.Process(target=_serve, args=(self._work, theirs, inherited), daemon=True)
        process.start()
        # Once only the worker has its end, the pipe is broken when it dies.
        theirs.close()
        return _Worker(process, ours)

    def _hand_out(self, remaining: Iterator[Any], numbers: deque[int]) -> None:
        """Give the tasks that follow to the least busy workers, and append their numbers."""
        while len(numbers) < PREFETCH * self._count:
            task = next(remaining, _NO_MORE)
            if task is _NO_MORE:
                return
            self._answers[self._next_number] = _PENDING
            numbers.append(self._next_number)
            _send(min(self._workers, key=lambda worker: len(worker.tasks)), self._next_number, task)
            self._next_number += 1

    def _receive(self, timeout: float | None) -> None:
        """Take what has arrived; without `timeout`, wait until an answer has or a worker has died."""
        by_pipe: dict[Any, _Worker] = {worker.pipe: worker for worker in self._workers}
        ends = [worker.process.sentinel for worker in self._workers] if timeout is None else []
        for ready in wait([*by_pipe, *ends], timeout):
            worker = by_pipe.get(ready)
            if worker is None:
                continue
            try:
                number, result = _unpack(worker.pipe.recv_bytes(), worker)
            except Exception:
                # The pipe of a process that was killed, and what it shared, break before the process is gone.
                worker.process.join(EXIT_SECONDS)
                if worker.process.is_alive():
                    raise
                continue
            del worker.tasks[number]
            if number in self._answers:
                self._answers[number] = self._on_receive(result)

    def _take_dead(self) -> list[_Worker]:
        """Remove and return the workers that are dead, and those that are just dying."""
        if all(worker.process.is_alive() for worker in self._workers):
            return []
        time.sleep(TOGETHER_SECONDS)
        dead = [worker for worker in self._workers if not worker.process.is_alive()]
        self._workers[:] = [worker for worker in self._workers if worker not in dead]
        return dead

    def _replace(self, dead: list[_Worker], losses: int) -> None:
        """Start new workers with what those that are `dead` did not answer."""
        how = ", ".join(f"{worker.process.pid} {_end(worker.process.exitcode)}" for worker in dead)
        for worker in dead:
            worker.pipe.close()
        if losses > LOSSES_BORNE:
            raise DetcliError(
                f"data workers died {losses} times in one epoch, the last time process {how}: there may be too little "
                "memory (or shared memory, if by SIGBUS). "
                f"Use fewer with `--workers {max(self._count // 2, 1)}`, or none with `--workers 0`."
            )
        warnings.warn(f"a data worker died (process {how}); a new one goes on where it was", stacklevel=3)
        for worker in dead:
            new = self._start()
            self._workers.append(new)
            for number, task in worker.tasks.items():
                if number in self._answers:
                    _send(new, number, task)


def _send(worker: _Worker, number: int, task: Any) -> None:
    worker.tasks[number] = task
    # A worker that is dead is found while we wait for its answer.
    with suppress(OSError):
        released = [worker.released.pop() for _ in range(len(worker.released))]
        worker.pipe.send((number, task, released))


def _end(exit_code: int) -> str:
    if exit_code >= 0:
        return f"ended with exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    return f"was killed by {name}"


def _stop(workers: list[_Worker], owner: int) -> None:
    """End the processes: they hold nothing that others wait for. A fork of `owner` leaves them alone."""
    if os.getpid() != owner:
        return
    for worker in workers:
        worker.process.kill()
    for worker in workers:
        worker.process.join(EXIT_SECONDS)
        worker.pipe.close()


@dataclass(slots=True)
class _Message:
    """An answer as bytes, the block where its large tensors are, that block if it is new, and those given up."""

    answer: bytes
    block: int | None
    new: Tensor | None
    dropped: list[int]


class _Packer:
    """Makes messages of answers in a worker.

    Large tensors are copied to blocks of shared memory that are used again: to map new memory costs several times as
    much as to fill it.
    """

    def __init__(self) -> None:
        self._blocks: dict[int, Tensor] = {}
        self._free: list[int] = []
        self._next = 0

    def release(self, blocks: list[int]) -> None:
        """Take back blocks that the receiver no longer uses."""
        self._free += blocks

    def pack(self, answer: Any) -> memoryview:
        """Return the message of an `answer`."""
        buffer = BytesIO()
        pickler = _TensorPickler(buffer)
        pickler.dump(answer)
        if not pickler.tensors:
            return _dumps(_Message(buffer.getvalue(), None, None, []))
        dropped = []
        fitting = [block for block in self._free if len(self._blocks[block]) >= pickler.size]
        new = None
        if fitting:
            block = min(fitting, key=lambda one: len(self._blocks[one]))
            self._free.remove(block)
        else:
            if self._free:
                dropped.append(self._free.pop())
            block, self._next = self._next, self._next + 1
            new = torch.empty(pickler.size, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
            self._blocks[block] = new
        while len(self._free) > FREE_BLOCKS:
            dropped.append(self._free.pop(0))
        for one in dropped:
            del self._blocks[one]
        for place, tensor in pickler.tensors:
            place.of(self._blocks[block]).copy_(tensor)
        return _dumps(_Message(buffer.getvalue(), block, new, dropped))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in a block a tensor is, and how it lies there."""

    offset: int
    count: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def of(self, block: Tensor) -> Tensor:
        """Return the tensor, in the memory of `block`."""
        return block[self.offset : self.offset + self.count].view(self.dtype).as_strided(self.shape, self.stride)


class _TensorPickler(pickle.Pickler):
    """Leaves large tensors out, and says where in a block of `size` bytes they are to go."""

    def __init__(self, buffer: BytesIO) -> None:
        super().__init__(buffer, pickle.HIGHEST_PROTOCOL)
        self.tensors: list[tuple[_Place, Tensor]] = []
        self.size = 0

    def persistent_id(self, value: Any) -> _Place | None:
        """Return the place of a large tensor."""
        if type(value) is not Tensor or value.nbytes < SENT_BY_VALUE:
            return None
        span = sum((side - 1) * step for side, step in zip(value.shape, value.stride(), strict=True)) + 1
        if span != value.numel():
            value = value.contiguous()
        place = _Place(self.size, value.nbytes, value.dtype, tuple(value.shape), value.stride())
        self.tensors.append((place, value))
        self.size += -(-value.nbytes // ALIGNMENT) * ALIGNMENT
        return place

    def reducer_override(self, value: Any) -> Any:
        """Return how a small tensor is made from its values."""
        if type(value) is Tensor:
            return torch.from_numpy, (value.numpy(),)
        return NotImplemented


class _TensorUnpickler(pickle.Unpickler):
    """Puts tensors in the places of a block where they were left out."""

    def __init__(self, answer: bytes, block: Tensor | None) -> None:
        super().__init__(BytesIO(answer))
        self._block = block

    def persistent_load(self, place: Any) -> Tensor:
        """Return the tensor at that place."""
        tensor: Tensor = place.of(self._block)
        return tensor


def _unpack(data: bytes, worker: _Worker) -> Any:
    """Return the answer of a message; its block is released when the last of its tensors is gone."""
    message: _Message = pickle.loads(data)
    for block in message.dropped:
        del worker.blocks[block]
    if message.block is None:
        return _TensorUnpickler(message.answer, None).load()
    if message.new is not None:
        worker.blocks[message.block] = message.new
    # Tensors made of an array keep it, and nothing else does.
    lease = worker.blocks[message.block].numpy()[:]
    weakref.finalize(lease, worker.released.append, message.block).atexit = False
    return _TensorUnpickler(message.answer, torch.from_numpy(lease)).load()


def _dumps(message: _Message) -> memoryview:
    buffer = BytesIO()
    ForkingPickler(buffer, pickle.HIGHEST_PROTOCOL).dump(message)
    return buffer.getbuffer()


def _serve(work: Callable[[Any], Any], pipe: Connection, inherited: Connection | None) -> None:
    """Answer tasks until the pipe breaks, which it does when the process at its other end is gone.

    A worker that is forked has a copy of that end, `inherited`, and one of those of the workers before it, which
    break when this one ends.
    """
    if inherited is not None:
        inherited.close()
    # Ctrl-C reaches the whole group, and what to do then is for the process that started us to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    packer = _Packer()
    with suppress(EOFError, OSError):
        while True:
            number, task, released = pipe.recv()
            packer.release(released)
            try:
                message = packer.pack((number, work(task)))
            except Exception:
                message = packer.pack((number, _Failure(traceback.format_exc())))
            pipe.send_bytes(message)
