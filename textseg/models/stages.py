"""Stages of networks whose parts one run trains in sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from textseg.errors import PluginError, RecipeError
from textseg.system.messages import counted


@dataclass(frozen=True)
class Stage:
    """A range of epochs, counted from 0; its name is empty if the network has no stages."""

    name: str
    first: int
    end: int  # the epoch after its last


def divide_epochs(shares: Mapping[str, float], epochs: int) -> tuple[Stage, ...]:
    """Give each stage its share of the epochs, rounded, at least one; without shares, return one stage without a name.

    Raises RecipeError for fewer epochs than stages, and PluginError for a share that is not above 0.
    """
    shares = shares or {"": 1.0}
    if empty := [name for name, share in shares.items() if not share > 0]:
        raise PluginError(f"The network gives its stage '{empty[0]}' {shares[empty[0]]} of the epochs; give it more.")
    if epochs < len(shares):
        raise RecipeError(
            f"training.epochs is {epochs}, and the network is trained in {counted(len(shares), 'stage')} "
            f"({', '.join(shares)}), one after the other. Give it at least {len(shares)}."
        )
    total, done, first = sum(shares.values()), 0.0, 0
    stages: list[Stage] = []
    for left, (name, share) in zip(reversed(range(len(shares))), shares.items(), strict=True):
        done += share
        end = min(max(round(epochs * done / total), first + 1), epochs - left)  # one for each that is still to come
        stages.append(Stage(name, first, end))
        first = end
    return tuple(stages)
