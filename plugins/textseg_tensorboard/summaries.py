"""Summaries of a run for TensorBoard: the recipe as text, and one row with settings and test scores."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.tensorboard.summary import hparams
from torch.utils.tensorboard.writer import SummaryWriter

from textseg import Run
from textseg.metrics import read_scores, summarise

LOG = "log"  # the folder of the curves, so that TensorBoard shows one run


def write_recipe(run: Run) -> None:
    """Write the recipe to the TEXT tab."""
    text = "\n".join(f"    {line}" for line in (run.folder / "recipe.yaml").read_text(encoding="utf-8").splitlines())
    with SummaryWriter(str(run.folder / LOG)) as writer:
        writer.add_text("recipe", text, 0)


def write_results(run: Run) -> None:
    """Write settings and means over structures to the HPARAMS tab, where runs can be sorted and filtered."""
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
    """Yield settings by dotted key; values that are no number, flag or text become JSON."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        elif isinstance(value, bool | int | float | str):
            yield f"{above}{key}", value
        elif value is not None:
            yield f"{above}{key}", json.dumps(value)
