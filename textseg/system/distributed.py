"""Several processes that train one model: which of them this is, and what they tell one another."""

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
    """Open the way for what is no tensor of the model; every process calls it, once they are connected."""
    global _talk
    _talk = dist.new_group(backend="gloo") if dist.get_backend() != "gloo" else dist.group.WORLD


def disconnect() -> None:
    """Part, when all is done; the threads that talk end here, since one that outlives Python may abort the process.

    The group goes last, for torch then waits for them without Python's lock, which they may need to end.
    """
    global _talk
    if _talk is not None:
        gc.collect()  # what wraps a model holds the group, and is part of a circle
        dist.destroy_process_group()
        _talk = None


def count() -> int:
    """How many there are; 1 where a run has one device."""
    return 1 if _talk is None else dist.get_world_size()


def rank() -> int:
    """Which of them this is, counted from 0; the first one writes and speaks."""
    return 0 if _talk is None else dist.get_rank()


def gathered(value: Item) -> list[Item]:
    """What every process has, by rank; each waits here for the others."""
    if _talk is None:
        return [value]
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value, group=_talk)
    return values


def any_says(flag: bool) -> bool:
    """Whether one of them says so."""
    if _talk is None:
        return flag
    said = torch.tensor(int(flag))
    dist.all_reduce(said, dist.ReduceOp.MAX, group=_talk)
    return bool(said)


def in_turns(items: Sequence[Item], work: Callable[[Item], Result]) -> Iterator[Result]:
    """The results of all items in their order, in every process; each item is worked on by one process, once."""
    for start in range(0, len(items), count()):
        mine = items[start + rank() : start + rank() + 1]  # none where the last turn is not full
        for results in gathered([work(item) for item in mine]):
            yield from results


def summed(tensor: Tensor) -> Tensor:
    """The sum over all processes, through which gradients flow: for a loss over the batch of all of them."""
    return tensor if _talk is None else _Summed.apply(tensor)  # type: ignore[no-untyped-call]


def same_buffers(module: nn.Module) -> None:
    """Give every process the buffers of the first one."""
    if _talk is not None:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


class _Summed(torch.autograd.Function):
    """A sum that counts in the loss of each process takes the gradient of all of them."""

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
