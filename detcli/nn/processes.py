"""What the processes of a distributed run share within a model; without one, there is one process."""

from __future__ import annotations

from torch import Tensor
from torch import distributed as dist


def process_count() -> int:
    """Return how many processes compute a step together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def reduce_mean(value: Tensor, least: float = 0.0) -> Tensor:
    """Return the mean of a number over the processes of a distributed run; without one, the number.

    Their total counts as `least` where it is less. A loss divided by the mean over processes of its divisor is, once
    gradients are averaged, that of one process with all the images.
    """
    processes = process_count()
    if processes > 1:
        value = value.float() / processes
        dist.all_reduce(value)
    return value.clamp(min=least / processes) if least else value
