"""The state from which a training starts or resumes: progress, checkpoint, initial weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pydantic import TypeAdapter

from textseg.errors import RunError
from textseg.models.segmenter import Segmenter
from textseg.models.stages import Stage
from textseg.recipe.schema import TrainingSettings
from textseg.runs.folder import RunFolder, first_line, load_checkpoint, load_weights
from textseg.system.messages import counted


class Part(Protocol):
    """A part of the state: model, optimiser, moving average, scale of the loss."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state_dict: Any) -> Any: ...


@dataclass
class Progression:
    """The progress of a run, in plain Python; every checkpoint holds it."""

    step: int = 0
    stage: int = 0  # of the network's stages, counted from 0
    best_score: float = -1.0  # of the validation: see `textseg.evaluation.evaluate.Validation`
    best_epoch: int = 0  # counted from 1, as a person reads it in the log
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)  # a row per finished epoch
    sums: dict[str, float] = field(default_factory=dict)  # of the losses of an epoch in which the run was stopped
    planned_epochs: int | None = None  # number of epochs of the learning-rate schedule

    def is_over(self, settings: TrainingSettings, epochs: int) -> bool:
        """Return True after the last epoch, and after early stopping."""
        later = [row for row in self.history if row["epoch"] > self.best_epoch]
        waited, patience = sum("validation_dsc" in row for row in later), settings.patience
        return len(self.history) >= epochs or (patience is not None and waited >= patience)

    def plan(self, epochs: int, changes: Callable[[int], bool]) -> str:
        """Plan the remaining epochs; returns a line where the checkpoint was planned for another number of epochs.

        `changes` gives True if stages or learning rates of the steps so far differ with that number.
        """
        before, self.planned_epochs = self.planned_epochs, epochs
        if before in (None, epochs) or not changes(before):
            return ""
        return (
            f"the length of the training is {counted(epochs, 'epoch')} and was {before}: the schedule is planned anew, "
            f"and what is left follows that of {counted(epochs, 'epoch')}; a run of {epochs} from its start gives "
            "other weights"
        )


def read_progression(checkpoint: Mapping[str, Any]) -> Progression:
    """Return the progress in a checkpoint. Raises KeyError, TypeError or ValueError for one that holds none."""
    TypeAdapter(Progression).validate_python(checkpoint["progression"])
    return Progression(**checkpoint["progression"])


def restore(folder: RunFolder, parts: Mapping[str, Part | None], stages: Sequence[Stage], epochs: int) -> Progression:
    """Load the state of the checkpoint `last` into the parts, and return the progress.

    Raises RunError for a checkpoint that does not fit, or that has more epochs than the recipe.
    """
    state = folder.load_checkpoint("last")
    try:
        progression = read_progression(state)
        for key, part in parts.items():
            # A run that began at a precision without a scale of the loss has no state of it.
            if part is not None and (state[key] or key != "precision"):
                part.load_state_dict(state[key])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = f"it has no {error}." if isinstance(error, KeyError) else first_line(error)
        raise RunError(
            f"'{folder.checkpoint('last')}' does not fit this recipe and this version of textseg: "
            f"{reason} Add --fresh to move the old run aside and start anew."
        ) from error
    trained = len(progression.history)
    if trained > epochs:
        raise RunError(
            f"'{folder.path}' has trained {counted(trained, 'epoch')}, more than the recipe asks for ({epochs}). "
            "Raise training.epochs or training.steps, or add --fresh to move the old run aside."
        )
    # With more epochs in the recipe, the stage at hand may now begin later than the run stands.
    stage = stages[min(progression.stage, len(stages) - 1)]
    if stage.first > trained:
        raise RunError(
            f"'{folder.path}' is in stage '{stage.name}' after {counted(trained, 'epoch')}, which in a training "
            f"of {counted(epochs, 'epoch')} would begin after {stage.first}. Let the run end before "
            "you raise it so far, or add --fresh to move the old run aside."
        )
    return progression


def initialize(segmenter: Segmenter, source: Path) -> None:
    """Load the weights of a run folder or a checkpoint; raises RunError for another file and for another model."""
    setting = f"training.initialize_from: '{source}'"
    fits = "Name a run folder or its checkpoints/best.ckpt, of a run with the model of this recipe."
    if not source.exists():
        raise RunError(f"{setting} does not exist. {fits}")
    try:
        path = RunFolder.existing(source).checkpoint("best") if source.is_dir() else source
    except RunError as error:
        raise RunError(f"training.initialize_from: {error}") from error
    try:
        checkpoint = load_checkpoint(path)
    except RunError as error:
        state = "is damaged, or no checkpoint of textseg" if path.exists() else "has no checkpoint 'best' yet"
        raise RunError(f"{setting} {state}. {fits}") from error
    if not isinstance(checkpoint.get("model"), Mapping):
        kind = "a checkpoint of Lightning" if "state_dict" in checkpoint else "no checkpoint of textseg"
        raise RunError(
            f"{setting} is {kind}: it has no key 'model' with the weights. {fits} Weights of another origin fit if "
            "their names and sizes do; store them with torch.save({'model': weights}, 'weights.ckpt')."
        )
    load_weights(segmenter, checkpoint, f"{setting} does not fit the model of this recipe", fits)
