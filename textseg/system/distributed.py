"""Several processes that train one model: their ranks and the exchange of values between them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

Item = TypeVar("Item")
Result = TypeVar("Result")

_talk: Any = None  # the group for plain Python, which no GPU waits for


def connect() -> None:
    """Open the group for plain Python values; every process calls this once torch has connected them."""
    global _talk
    _talk = dist.new_group(backend="gloo") if dist.get_backend() != "gloo" else dist.group.WORLD


def disconnect() -> None:
    """Close the group after the last exchange: if a thread of the group outlives Python, the process may abort.

    The last reference to the group is deleted at the end. Then torch waits for the threads without holding Python's
    lock, which they may need to end.
    """
    global _talk
    if _talk is not None:
        gc.collect()  # what wraps a model holds the group, and is part of a circle
        dist.destroy_process_group()
        _talk = None


def group() -> Any:
    """Return the group for values on the CPU; None if a run has one device."""
    return _talk


def count() -> int:
    """Return the number of processes; 1 if a run has one device."""
    return 1 if _talk is None else dist.get_world_size()


def rank() -> int:
    """Return the rank of this process, from 0. Only rank 0 writes files and prints."""
    return 0 if _talk is None else dist.get_rank()


def gathered(value: Item) -> list[Item]:
    """Return the values of all processes by rank; each process waits here for the others."""
    if _talk is None:
        return [value]
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value, group=_talk)
    return values


def any_says(flag: bool) -> bool:
    """Return True in every process if the flag is set in any of them."""
    if _talk is None:
        return flag
    any_flag = torch.tensor(int(flag))
    dist.all_reduce(any_flag, dist.ReduceOp.MAX, group=_talk)
    return bool(any_flag)


def in_turns(items: Sequence[Item], work: Callable[[Item], Result]) -> Iterator[Result]:
    """Yield the results of all items in order, in every process; each item is worked on once, by one process."""
    for start in range(0, len(items), count()):
        own = items[start + rank() : start + rank() + 1]  # empty for some processes in the last turn
        for results in gathered([work(item) for item in own]):
            yield from results


def summed(tensor: Tensor) -> Tensor:
    """Return the sum over all processes, with gradients: for a loss over the batches of all of them."""
    return tensor if _talk is None else _Summed.apply(tensor)  # type: ignore[no-untyped-call]


def same_buffers(module: nn.Module) -> None:
    """Give every process the buffers of the first one."""
    if _talk is not None:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


class _Summed(torch.autograd.Function):
    """A sum over processes; its gradient is the sum of the gradients of all processes."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total
