"""`textseg data check`: faults in the files of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Exit, Option

from textseg.cli.options import (
    Code,
    DatasetFolder,
    DatasetName,
    DatasetOverrides,
    dataset_of,
    recipe_of,
    split_parts,
)


def check(
    dataset: DatasetName,
    folder: DatasetFolder = None,
    overrides: DatasetOverrides = None,
    split: Annotated[Path | None, Option(metavar="FILE", help="Also check the patients of this split file.")] = None,
    json: Annotated[Path | None, Option("--json", metavar="FILE", help="Write the result into this file, too.")] = None,
    code: Code = None,
) -> None:
    """Look for faults in each case of a data set; exit code 1 when there is one.

    Example: textseg data check spider --folder data/spider --json check.json
    """
    from textseg.data.checking import check_dataset
    from textseg.system.commands import leave_out
    from textseg.system.files import write_atomically
    from textseg.system.messages import counted
    from textseg.system.progress import counting

    source, parts = dataset_of(dataset, folder, overrides, code), split_parts(split)
    recipe = recipe_of(dataset)
    resample = recipe is not None and recipe.preparation.resample_channels
    reports = recipe.prompts.report if recipe is not None and recipe.prompts is not None else None
    with counting("checking cases", transient=True) as progress:
        checked = check_dataset(source, parts, resample=resample, reports=reports, progress=progress)
    if json is not None:
        write_atomically(json, checked.as_json())
    print(*checked.lines, sep="\n", end="\n" * bool(checked.lines))
    doubts = sum(finding.severity == "doubt" for finding in checked.findings)
    sound, are = len(checked.sound), "is" if 1 in (len(checked.sound), len(checked.cases)) else "are"
    print(f"{sound} of {counted(len(checked.cases), 'case')} {are} sound; {counted(doubts, 'doubt')}")
    if checked.faulty and checked.sound:
        print(f"To train on the sound ones: {leave_out(checked.faulty)}")
    if not checked.clean:
        raise Exit(1)
