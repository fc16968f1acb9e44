"""`textseg rename`: levels of masks get the names that a person states."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from textseg.cli.predict import write_masks


def rename(
    masks: Annotated[list[str], Argument(metavar="MASK", help="Masks of any tool: files, folders, or patterns.")],
    output: Annotated[Path, Option(metavar="DIR", help="The folder for the renamed masks.")],
    visible: Annotated[
        str | None, Option(metavar="FIRST:LAST", help="The levels that a person sees in the masks, or a CSV file.")
    ] = None,
    level: Annotated[
        str | None, Option(metavar="NAME@X,Y,Z", help="One level and a point in it, in mm (RAS). For a single mask.")
    ] = None,
    labels: Annotated[
        str, Option(metavar="SCHEME", help="Label values of the masks: atlas, or a scheme such as spider.")
    ] = "atlas",
    atlas: Annotated[
        str | None, Option(metavar="ATLAS", help="The atlas of the levels. Default: the only one with these labels.")
    ] = None,
) -> None:
    """Name the levels of masks as a person states; geometry and label values are kept.

    Example: textseg rename masks --visible T11:L3 --labels spider --atlas lumbar_spider --output renamed
    """
    from textseg.contracts import Visibility
    from textseg.errors import PromptError
    from textseg.inference.files import find_inputs, plan_jobs
    from textseg.inference.renaming import Point, check_statement, find_convention, read_point, rename_files
    from textseg.registry.discovery import installed_registry
    from textseg.text.reading import read_cases, readings

    if (visible is None) == (level is None):
        raise PromptError("State the levels: either with --visible FIRST:LAST or with --level NAME@X,Y,Z.")
    convention = find_convention(installed_registry(), labels, atlas)
    jobs = plan_jobs(find_inputs(masks, output, masks=True), output)
    names = [job.name for job in jobs]
    stated: list[Visibility | Point]
    if level is not None:
        if len(jobs) > 1:
            raise PromptError(f"--level: a point lies in one mask, and these are {len(jobs)}. Name one of them.")
        stated = [read_point(convention.atlas, level)]
    else:
        read = read_cases(convention.atlas, visible or "", names)
        if silent := [name for name in names if name not in read]:
            raise PromptError(
                f"--visible: '{visible}' does not state the levels of '{silent[0]}'. Add them to the table."
            )
        for name in names:
            check_statement(convention, read[name], name)
        stated = [read[name] for name in names]
        print(*readings(convention.atlas, read), sep="\n")
    write_masks(rename_files(jobs, convention, stated), len(jobs), output, "mask", "renaming")
