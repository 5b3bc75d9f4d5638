"""Processes that train together: which one this is, and what they tell each other.

A launcher (``--devices`` or torchrun) says in the environment who a process is. Tensors of training go through the
device's own backend (NCCL or gloo); what the CPU decides goes through a gloo group of its own, so that nothing waits
for the device.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")

PATIENCE = timedelta(hours=2)
"""How long processes wait for one that evaluates; one that died is noticed at once."""


def rank() -> int:
    """Return the number of this process, 0 for the first or only one."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Return the number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """Return how many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched() -> bool:
    """Return whether a launcher started this process."""
    return "WORLD_SIZE" in os.environ


def is_main() -> bool:
    """Return whether this is the process that writes files and talks to the user."""
    return rank() == 0


def restarts() -> int:
    """Return how often the launcher has restarted the processes."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


class _Group:
    """The gloo group of what the CPU decides."""

    control: dist.ProcessGroup | None = None


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Join the other processes, if there are any, for as long as the context lasts."""
    if world_size() == 1:
        yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    store, rank, size = next(rendezvous("env://"))
    # The launcher's store outlives its processes; those that are restarted must not read the addresses of the dead.
    store = PrefixStore(f"start_{restarts()}", store)
    device_id = device if device.type == "cuda" else None
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, device_id=device_id)
    control = dist.new_group(backend="gloo", timeout=PATIENCE)
    assert isinstance(control, dist.ProcessGroup)
    _Group.control = control
    try:
        yield
    finally:
        _Group.control = None
        dist.destroy_process_group()


def everyones(value: T) -> list[T]:
    """Return the `value` of each process, in order of rank."""
    if world_size() == 1:
        return [value]
    values: list[T | None] = [None] * world_size()
    dist.all_gather_object(values, value, group=_Group.control)
    return values  # type: ignore[return-value]


def gathered(value: T) -> list[T]:
    """Return the `value` of each process, in order of rank, to the main process, and nothing to the others."""
    if world_size() == 1:
        return [value]
    values: list[T | None] | None = [None] * world_size() if is_main() else None
    dist.gather_object(value, values, group=_Group.control)
    return values or []  # type: ignore[return-value]


def of_main(value: T) -> T:
    """Return the `value` of the main process."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=_Group.control)
    return values[0]


def parallel(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    """Return `model` with gradients averaged over processes; each process has its own running statistics."""
    with warnings.catch_warnings():
        # Newer torch has another name for broadcast_buffers, which older ones do not know.
        warnings.filterwarnings("ignore", "`broadcast_buffers`")
        return DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )


def share_buffers(module: nn.Module) -> None:
    """Give `module` the buffers (running statistics) of the main process."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


class Agreement:
    """Lets all processes do the same at the same step: each says numbers, and learns the largest that any said."""

    def say(self, *numbers: int) -> None:
        """Begin to tell the others; it goes on in the background until `hear`."""
        self._numbers = torch.tensor(numbers)
        self._work = None
        if world_size() > 1:
            self._work = dist.all_reduce(self._numbers, dist.ReduceOp.MAX, group=_Group.control, async_op=True)

    def hear(self) -> list[int]:
        """Return the largest of each number that was said."""
        if self._work is not None:
            self._work.wait()
        numbers: list[int] = self._numbers.tolist()
        return numbers


def random_state() -> dict[str, Tensor]:
    """Return the states of torch's generators in this process."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Tensor]) -> None:
    """Continue torch's generators from what `random_state` returned, as far as the devices are there."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
