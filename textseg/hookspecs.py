"""The hooks of textseg; docs/reference/hooks.md explains each one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from textseg.metrics.scores import Score
    from textseg.registry.discovery import Register

hookspec = pluggy.HookspecMarker("textseg")
hookimpl = pluggy.HookimplMarker("textseg")
MARK = "textseg_impl"  # the attribute that it gives to a function


@dataclass(frozen=True)
class Run:
    """The run that a hook gets: its `folder` (docs/reference/run_folder.md) and the content of two files in it.

    For scores with prompts of another source, `folder` is the folder of that source below `evaluations`.
    """

    folder: Path
    recipe: Mapping[str, Any]  # recipe.yaml: every key, every default
    record: Mapping[str, Any]  # the part of run.json that is already written


@dataclass(frozen=True)
class Fit:
    """The training of a run, when it starts and when it is finished."""

    epochs: int  # of the recipe
    steps: int  # of all epochs
    step: int  # the steps that are done: at the start above 0 if the run resumes, at the end less after early stopping
    history: Sequence[Mapping[str, float]]  # the `numbers` of each finished epoch
    best_epoch: int  # the epoch of the checkpoint `best`, from 1; 0 if there is none yet


@dataclass(frozen=True)
class Epoch:
    """A finished epoch of a training; the checkpoints that it has changed are written."""

    number: int  # from 1
    epochs: int  # of the recipe
    step: int  # the steps that are done
    numbers: Mapping[str, float]  # its row of log/metrics.csv, such as train_loss and learning_rate
    validation: Mapping[str, float] | None  # the scores among them, such as dsc and dsc_discs; None without validation
    best: bool  # True if its validation is the best so far


@dataclass(frozen=True)
class ReportSection:
    """A section of report.html. `html` is inserted unchanged; scripts and links to other files do not load."""

    heading: str
    html: str


@dataclass(frozen=True)
class PublishedMethod:
    """The results of one method in a published table, by metric, in the units of the table."""

    name: str
    means: dict[str, float]  # as printed
    by_structure: dict[str, dict[str, float]] = field(default_factory=dict)  # NaN for a structure that was never found
    parameters: float | None = None
    milliseconds_per_slice: float | None = None


@dataclass(frozen=True)
class PublishedTable:
    """Results that a publication gives for one data set; they are shown beside runs and never ranked with them."""

    dataset: str  # its name in a recipe
    source: str  # the publication, as text for readers
    protocol: str  # the differences of its scoring protocol, as text for readers
    units: Mapping[str, str]  # of each metric: "percent", "mm", "pixel", or "" for a ratio from 0 to 1
    methods: Sequence[PublishedMethod]
    rare: Sequence[str] = ()  # structures that one of the recomputed means leaves out


@hookspec
def textseg_register(register: Register) -> None:
    """Register the components of this plug-in: `register.<kind>(name, builder)`.

    A builder is an object or a string "module:name"; with a string, the module is imported only when a recipe needs it.
    """


@hookspec
def textseg_recipes() -> os.PathLike[str]:
    """Return the folder with the recipes of this plug-in: `textseg recipes` lists them, `textseg run NAME` runs one.

    A folder inside the package becomes part of its wheel: `Path(__file__).with_name("recipes")`.
    """
    raise NotImplementedError


@hookspec
def textseg_run_started(run: Run) -> None:
    """Note that a run is about to train, for the first time or after an interruption."""


@hookspec
def textseg_run_finished(run: Run) -> None:
    """Note that a run was trained, scored and reported; not called if it was interrupted or failed."""


@hookspec
def textseg_fit_started(run: Run, fit: Fit) -> None:
    """Note that the training starts, or resumes at `fit.step`. Only the first of several processes calls it."""


@hookspec
def textseg_epoch_finished(run: Run, epoch: Epoch) -> None:
    """Note that an epoch was trained, validated and saved. Only the first of several processes calls it."""


@hookspec
def textseg_fit_finished(run: Run, fit: Fit) -> None:
    """Note that the training is finished; the best weights are not yet scored. Only the first process calls it."""


@hookspec
def textseg_evaluated(run: Run, scores: Sequence[Score]) -> None:
    """Note that the test cases were scored, after a training or by `textseg evaluate`; the report is written."""


@hookspec
def textseg_report_sections(run: Run) -> Sequence[ReportSection]:
    """Return sections for a report; scores.csv and enumeration.json are already in the folder."""
    return ()


@hookspec
def textseg_published_results() -> Sequence[PublishedTable]:
    """Return published tables, for `textseg published` and `textseg compare --published`."""
    return ()
