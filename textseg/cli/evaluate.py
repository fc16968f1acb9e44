"""`textseg evaluate`: the best checkpoint of a run, scored again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, BadParameter, Option

from textseg.cli.options import TrainedOverrides, TrustCode, numbers


def evaluate(
    run: Annotated[Path, Argument(metavar="RUN", help="A run folder.")],
    prompts: Annotated[
        str | None,
        Option(
            metavar="SOURCE",
            help="template, interactive, report, predicted, ground_truth. Default: as the recipe says.",
        ),
    ] = None,
    visible: Annotated[
        str | None,
        Option(metavar="FIRST:LAST", help="With --prompts interactive: what the volumes show, or a CSV file."),
    ] = None,
    fields_of_view: Annotated[
        str | None,
        Option(metavar="SHARES", help="Also score windows with these shares of the rows, such as 0.7,0.5."),
    ] = None,
    overrides: TrainedOverrides = None,
    trust_code: TrustCode = False,
) -> None:
    """Score the best checkpoint of a run again, also with other prompts.

    Example: textseg evaluate runs/quickstart/seed2025 --prompts ground_truth
    """
    shares = None if fields_of_view is None else numbers(fields_of_view, "0.7,0.5", float)
    if shares and not all(0 < share < 1 for share in shares):
        raise BadParameter(f"'{fields_of_view}': each share must be above 0 and below 1; half of the rows is 0.5.")
    from textseg.reports.run_evaluation import evaluate_run

    evaluate_run(
        run, prompts=prompts, visible=visible, fields_of_view=shares, overrides=overrides or [], trust_code=trust_code
    )
