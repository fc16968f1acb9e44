"""`textseg reproduce`: a finished run once more, and what differs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from textseg.cli.options import ChangedCode, DryRun, Fresh, RecipeOverrides, TrustCode


def reproduce(
    run: Annotated[Path, Argument(metavar="RUN", help="The folder of the run to repeat.")],
    overrides: RecipeOverrides = None,
    output: Annotated[Path, Option(metavar="DIR", help="The folder for the new run folder.")] = Path("repeated"),
    fresh: Fresh = False,
    dry_run: DryRun = False,
    trust_code: TrustCode = False,
    changed_code: ChangedCode = False,
) -> None:
    """Repeat a run from its folder, and report what differs: settings, versions, data, weights, scores.

    Example: textseg reproduce runs/quickstart/seed2025
    """
    from textseg.registry.discovery import warn_of_faults
    from textseg.training.reproduce import reproduce as reproduce_run

    warn_of_faults()
    options = {"fresh": fresh, "dry_run": dry_run, "trust_code": trust_code, "changed_code": changed_code}
    reproduce_run(run, overrides=overrides or [], output=output, **options)
