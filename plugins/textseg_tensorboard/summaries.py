"""Summaries of a run for TensorBoard: the recipe as text, and one row with settings and test scores."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.tensorboard.summary import hparams
from torch.utils.tensorboard.writer import SummaryWriter

from textseg import Run
from textseg.metrics import read_scores, summarise

LOG = "log"  # where the curves of the training stand, so that all is one run there


def write_recipe(run: Run) -> None:
    """The recipe under TEXT."""
    text = "\n".join(f"    {line}" for line in (run.folder / "recipe.yaml").read_text(encoding="utf-8").splitlines())
    with SummaryWriter(str(run.folder / LOG)) as writer:
        writer.add_text("recipe", text, 0)


def write_results(run: Run) -> None:
    """The recipe's settings and the means over structures under HPARAMS, to be sorted and filtered with other runs."""
    structures = run.record["structures_in_training"]
    overall = summarise(read_scores(run.folder / "scores.csv"), structures=structures).overall
    results = {f"test/{metric}": mean.value for metric, mean in overall.items()}
    settings = dict(_flat(run.recipe))
    with SummaryWriter(str(run.folder / LOG)) as writer:
        for metric, value in results.items():
            writer.add_scalar(metric, value, run.record["scored_step"])
        for summary in hparams(settings, results):  # type: ignore[no-untyped-call]
            writer.file_writer.add_summary(summary)


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, bool | float | str]]:
    """Settings by dotted key; what is no number, flag or text stands as JSON."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        elif isinstance(value, bool | int | float | str):
            yield f"{above}{key}", value
        elif value is not None:
            yield f"{above}{key}", json.dumps(value)
