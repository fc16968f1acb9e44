"""The command that draws figures of finished runs; what it needs is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

Shown = Literal["predictions", "probabilities", "features"]


def figure(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders.")],
    output: Annotated[Path, typer.Option(metavar="FILE", help="The PNG to write.")],
    of: Annotated[
        Shown,
        typer.Option(help="Predictions side by side, probabilities over a slice, pixels by t-SNE of their features."),
    ] = "predictions",
    case: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Which case; else best, median and worst; may be repeated.")
    ] = None,
    slice_number: Annotated[
        int | None, typer.Option("--slice", metavar="N", help="Which slice, from 1; else the one that shows most.")
    ] = None,
    structures: Annotated[
        str | None, typer.Option(metavar="NAMES", help="With probabilities: which, such as L4,L4/L5; else the largest.")
    ] = None,
) -> None:
    """Draw runs as papers print them: the same slices under every method.

    Example: textseg figure runs/atmnet_spider runs/swin_unetr_spider --output figure.png
    """
    if output.suffix.lower() != ".png":
        raise typer.BadParameter(f"'{output}' must end in .png.", param_hint="--output")
    if structures is not None and of != "probabilities":
        raise typer.BadParameter("it goes with --of probabilities.", param_hint="--structures")
    if slice_number is not None and of == "features":
        raise typer.BadParameter("features are of whole cases.", param_hint="--slice")
    if of == "probabilities" and len(case or []) > 1:
        raise typer.BadParameter("--of probabilities shows one slice of one case.", param_hint="--case")
    from textseg.reports.figure import features_figure, predictions_figure, probabilities_figure
    from textseg.system.files import write_atomically

    index = None if slice_number is None else slice_number - 1
    if of == "predictions":
        png = predictions_figure(runs, cases=case or [], slice_number=index)
    elif of == "probabilities":
        names = [name.strip() for name in structures.split(",")] if structures else []
        png = probabilities_figure(runs, case=case[0] if case else None, slice_number=index, structures=names)
    else:
        png = features_figure(runs, cases=case or [])
    write_atomically(output, png)
    print(output)
