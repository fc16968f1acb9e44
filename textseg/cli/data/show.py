"""`textseg data show`: pictures of cases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, BadParameter, Option

from textseg.cli.options import Code, DatasetFolder, DatasetName, DatasetOverrides, dataset_of, numbers
from textseg.errors import DataError, suggestion


def show(
    dataset: DatasetName,
    case: Annotated[str | None, Argument(metavar="CASE", help="The id of a case; else the whole data set.")] = None,
    output: Annotated[Path | None, Option(metavar="FILE", help="PNG. Default: <case>.png or <data set>.png.")] = None,
    slices: Annotated[str | None, Option(help="Slices of the case, from 1, such as 7,8.")] = None,
    folder: DatasetFolder = None,
    overrides: DatasetOverrides = None,
    code: Code = None,
) -> None:
    """Draw a case with its structures named, or how often each structure is seen in the data set.

    Example: textseg data show spider 5_t2_SPACE --output case.png
    """
    from textseg.data.checking import check_dataset
    from textseg.drawing.volume_pictures import case_png, frequency_png
    from textseg.system.files import file_name, write_atomically
    from textseg.system.messages import counted
    from textseg.system.progress import counting

    source = dataset_of(dataset, folder, overrides, code)
    if case is None:
        if slices is not None:
            raise BadParameter("--slices goes with a case.")
        with counting("checking cases", transient=True) as progress:
            checked = check_dataset(source, progress=progress)
        visible = [checked_case.slices for checked_case in checked.cases if checked_case.slices]
        title = f"{Path(dataset).stem}: {counted(len(visible), 'case')} with masks"
        name, content = Path(dataset).stem, frequency_png(title, source.atlas, visible)
    else:
        cases = {candidate.id: candidate for candidate in source.cases()}
        if case not in cases:
            raise DataError(f"The data set has no case '{case}'.{suggestion(case, cases)}")
        indices = None if slices is None else [number - 1 for number in numbers(slices, "7,8", int)]
        name, content = case, case_png(cases[case], source.label_map(cases[case]), source.atlas, indices)
    target = output or Path(file_name(name, ".png"))
    write_atomically(target, content)
    print(target)
