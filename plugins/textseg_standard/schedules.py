"""Schedules of the learning rate: functions of the step, and those of PyTorch by their names."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch.optim import lr_scheduler

from textseg.contracts import Schedule
from textseg_standard.by_name import builds_by_name

WARM_UP = 0.1  # share of the steps in which `one_cycle` climbs to the learning rate
FINAL = 1e-6
LENGTHS = {"T_max", "total_steps", "total_iters"}  # PyTorch's names of the number of steps
# Of the scores, of functions, of further schedules; the first is no schedule.
UNFIT = {"LRScheduler", "ReduceLROnPlateau", "LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler"}
OURS = {"optimizer", "last_epoch", "epochs", "steps_per_epoch", "max_lr", "scale_fn"}
OURS |= {"cycle_momentum", "base_momentum", "max_momentum"}


def constant(learning_rate: float, steps: int) -> Schedule:
    """The same learning rate in all steps.

    Args:
        learning_rate: of every step.
        steps: not needed.
    """
    return lambda step: learning_rate


def cosine(learning_rate: float, steps: int, *, final_learning_rate: float = FINAL) -> Schedule:
    """Half a cosine from the learning rate to the final one.

    Args:
        learning_rate: of the first step.
        steps: the number of steps.
        final_learning_rate: of the end.
    """
    return lambda step: _falling(step / steps, learning_rate, final_learning_rate)


def one_cycle(learning_rate: float, steps: int, *, final_learning_rate: float = FINAL) -> Schedule:
    """A tenth of the steps from 4 % of the learning rate to all of it, then half a cosine to the final one.

    Args:
        learning_rate: the highest.
        steps: the number of steps.
        final_learning_rate: of the end.
    """

    def rate(step: int) -> float:
        done = step / steps
        if done < WARM_UP:
            return learning_rate * (0.04 + 0.96 * (1 - math.cos(math.pi * done / WARM_UP)) / 2)
        return _falling((done - WARM_UP) / (1 - WARM_UP), learning_rate, final_learning_rate)

    return rate


def polynomial(learning_rate: float, steps: int, *, power: float = 0.9, warm_up_steps: int = 0) -> Schedule:
    """A power of the remaining share of the steps, which ends at 0; before it, the learning rate may rise in a line.

    Args:
        learning_rate: of the first step.
        steps: the number of steps.
        power: 1 gives a straight line.
        warm_up_steps: steps of the rise, which end at the learning rate.
    """

    def rate(step: int) -> float:
        if step < warm_up_steps:
            return learning_rate * (step + 1) / warm_up_steps
        return float(learning_rate * (1 - (step - warm_up_steps) / max(1, steps - warm_up_steps)) ** power)

    return rate


def _falling(done: float, high: float, low: float) -> float:
    return low + (high - low) * (1 + math.cos(math.pi * done)) / 2


def known_schedules() -> dict[str, Any]:
    """Return the schedules of `torch.optim.lr_scheduler` whose rate follows from the step."""
    return {
        name: item
        for name, item in vars(lr_scheduler).items()
        if inspect.isclass(item) and issubclass(item, lr_scheduler.LRScheduler) and name not in UNFIT | {"_LRScheduler"}
    }


@builds_by_name(known_schedules, without=OURS, filled=LENGTHS)
class TorchSchedule:
    """A schedule of PyTorch by its name, such as StepLR, with PyTorch's settings and defaults; it counts steps.

    `T_max`, `total_steps` and `total_iters` are the number of steps of the run unless the recipe gives them. Momentum
    stays as it is.

    Args:
        learning_rate: of an optimizer before the schedule changes it; the highest of OneCycleLR and CyclicLR.
        steps: the number of steps.
        name: the class in `torch.optim.lr_scheduler`.
        settings: further settings of the class, such as `gamma`.
    """

    def __init__(self, learning_rate: float, steps: int, *, name: str, **settings: Any) -> None:
        build = known_schedules()[name]
        parameters = inspect.signature(build).parameters
        own: dict[str, Any] = dict.fromkeys(LENGTHS & parameters.keys(), steps)
        own |= {"max_lr": learning_rate} if "max_lr" in parameters else {}
        own |= {"cycle_momentum": False} if "cycle_momentum" in parameters else {}
        given = {key: value for key, value in settings.items() if value is not None}
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], learning_rate)
        self.scheduler: lr_scheduler.LRScheduler = build(optimizer, **own | given)
        self.rates = [float(self.scheduler.get_last_lr()[0])]  # a schedule of PyTorch knows only the next step

    def __call__(self, step: int) -> float:
        """Return the learning rate of a step."""
        while len(self.rates) <= step:
            self.scheduler.optimizer.step()
            self.scheduler.step()
            self.rates.append(float(self.scheduler.get_last_lr()[0]))
        return self.rates[step]
