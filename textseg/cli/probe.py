"""`textseg probe`: how much the result of a run depends on its text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from textseg.cli.options import TrainedOverrides, TrustCode


def probe(
    run: Annotated[Path, Argument(metavar="RUN", help="A run whose model reads text.")],
    output: Annotated[Path | None, Option(metavar="DIR", help="The folder for the tables. Default: RUN/probe.")] = None,
    overrides: TrainedOverrides = None,
    trust_code: TrustCode = False,
) -> None:
    """Evaluate one checkpoint with other texts, to measure how much the result depends on the text.

    Example: textseg probe runs/quickstart/seed2025
    """
    from textseg.reports.probe_report import probe_run

    print(probe_run(run, output=output, overrides=overrides or [], trust_code=trust_code))
