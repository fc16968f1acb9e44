"""What a training goes on from: how far it has come, and the weights that it starts with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from textseg.errors import RunError
from textseg.models.segmenter import Segmenter
from textseg.models.stages import Stage
from textseg.runs.folder import RunFolder, first_line, load_checkpoint, load_weights
from textseg.system.messages import counted

if TYPE_CHECKING:
    from textseg.recipe.loading import TrainingSettings


class Part(Protocol):
    """What is saved and goes on: model, optimiser, moving average, scale of the loss."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state_dict: Any) -> Any: ...


@dataclass
class Progression:
    """How far a run has come; plain Python, saved in every checkpoint."""

    step: int = 0
    stage: int = 0  # of the network's stages, counted from 0
    best_dsc: float = -1.0
    best_epoch: int = 0  # counted from 1, as a person reads it in the log
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)  # a row per finished epoch
    sums: dict[str, float] = field(default_factory=dict)  # of the losses, where the run stopped inside an epoch
    planned_epochs: int | None = None  # what the schedule was made for

    def plan(self, settings: TrainingSettings, *, staged: bool = False) -> str:
        """Plan what is left for the recipe's epochs; a line says so where the checkpoint was planned for others."""
        before, self.planned_epochs = self.planned_epochs, settings.epochs
        if before in (None, settings.epochs) or (settings.schedule == "constant" and not staged):
            return ""
        return (
            f"training.epochs is {settings.epochs} and was {before}: the schedule is planned anew, and what is left "
            f"follows that of {counted(settings.epochs, 'epoch')}; a run of {settings.epochs} from its start "
            "gives other weights"
        )


def restore(folder: RunFolder, parts: Mapping[str, Part | None], stages: Sequence[Stage], epochs: int) -> Progression:
    """Put the parts back to where `last` stands; raises RunError for one that doesn't fit, or that has more epochs."""
    state = folder.load_checkpoint("last")
    try:
        for key, part in parts.items():
            if part is not None:
                part.load_state_dict(state[key])
        progression = Progression(**state["progression"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RunError(
            f"'{folder.checkpoint('last')}' does not fit this recipe and this version of textseg: "
            f"{first_line(error)} Add --fresh to move the old run aside and start anew."
        ) from error
    trained = len(progression.history)
    if trained > epochs:
        raise RunError(
            f"'{folder.path}' has trained {counted(trained, 'epoch')}, more than training.epochs ({epochs}). "
            "Raise it, or add --fresh to move the old run aside."
        )
    now = stages[min(progression.stage, len(stages) - 1)]
    if now.first > trained:
        raise RunError(
            f"'{folder.path}' is in stage '{now.name}' after {counted(trained, 'epoch')}, which with "
            f"training.epochs {epochs} would begin after {now.first}. Let the run end before "
            "you raise it so far, or add --fresh to move the old run aside."
        )
    return progression


def initialize(segmenter: Segmenter, place: Path) -> None:
    """Take the weights of a run or a checkpoint; raises RunError for those of another model."""
    path = place if place.suffix == ".ckpt" else RunFolder.existing(place).checkpoint("best")
    mismatch = f"training.initialize_from: '{path}' does not fit the model of this recipe"
    load_weights(segmenter, load_checkpoint(path), mismatch)
