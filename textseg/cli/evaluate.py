"""`textseg evaluate`: the best checkpoint of a run, scored again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def evaluate(
    run: Annotated[Path, Argument(metavar="RUN", help="A run folder.")],
    prompts: Annotated[
        str | None,
        Option(metavar="SOURCE", help="template, interactive, predicted or ground_truth. Default: as the recipe says."),
    ] = None,
    visible: Annotated[
        str | None,
        Option(metavar="FIRST:LAST", help="With --prompts interactive: what the volumes show, or a CSV file."),
    ] = None,
) -> None:
    """Score the best checkpoint of a run again, also with other prompts.

    Example: textseg evaluate runs/quickstart/seed2025 --prompts ground_truth
    """
    from textseg.reports.run_evaluation import evaluate_run

    evaluate_run(run, prompts=prompts, visible=visible)
