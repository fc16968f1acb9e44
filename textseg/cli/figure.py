"""`textseg figure`: pictures of several runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, BadParameter, Option

from textseg.cli.options import SliceNumber, TrainedOverrides, TrustCode

Shown = Literal["predictions", "probabilities", "features"]


def figure(
    runs: Annotated[list[Path], Argument(metavar="RUN", help="Run folders.")],
    output: Annotated[Path, Option(metavar="FILE", help="The PNG to write.")],
    of: Annotated[
        Shown, Option(help="Draw predictions, probabilities of a slice, or a t-SNE of the features of pixels.")
    ] = "predictions",
    case: Annotated[list[str] | None, Option(metavar="ID", help="Default: best, median, worst. Repeatable.")] = None,
    slice_number: SliceNumber = None,
    structures: Annotated[
        str | None, Option(metavar="NAMES", help="With --of probabilities: such as L4,L4/L5. Default: the largest.")
    ] = None,
    overrides: TrainedOverrides = None,
    trust_code: TrustCode = False,
) -> None:
    """Draw the same slices under every run, side by side.

    Example: textseg figure runs/atmnet_spider runs/swin_unetr_spider --output figure.png
    """
    if output.suffix.lower() != ".png":
        raise BadParameter(f"'{output}' must end in .png.", param_hint="--output")
    if structures is not None and of != "probabilities":
        raise BadParameter("it goes with --of probabilities.", param_hint="--structures")
    if slice_number is not None and of == "features":
        raise BadParameter("features are of whole cases.", param_hint="--slice")
    if of == "probabilities" and len(case or []) > 1:
        raise BadParameter("--of probabilities shows one slice of one case.", param_hint="--case")
    from textseg.reports.figure import features_figure, predictions_figure, probabilities_figure
    from textseg.system.files import write_atomically

    values = overrides or []
    index = None if slice_number is None else slice_number - 1
    if of == "predictions":
        png = predictions_figure(runs, cases=case or [], slice_number=index, overrides=values)
    elif of == "probabilities":
        names = [name.strip() for name in structures.split(",")] if structures else []
        png = probabilities_figure(
            runs,
            case=case[0] if case else None,
            slice_number=index,
            structures=names,
            overrides=values,
            trust_code=trust_code,
        )
    else:
        png = features_figure(runs, cases=case or [], overrides=values, trust_code=trust_code)
    write_atomically(output, png)
    print(output)
