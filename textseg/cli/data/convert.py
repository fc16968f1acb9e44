"""`textseg data convert`: masks with other label values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def convert(
    mask: Annotated[Path, Argument(metavar="MASK", help="A mask: MHA, NRRD or NIfTI.")],
    output: Annotated[Path, Argument(metavar="OUTPUT", help="The mask to write.")],
    source: Annotated[str, Option("--from", metavar="SCHEME", help="The label scheme that it has now.")],
    target: Annotated[str, Option("--to", metavar="SCHEME", help="The label scheme to write.")],
    drop: Annotated[bool, Option("--drop", help="Leave out structures that the new scheme has no value for.")] = False,
) -> None:
    """Write a mask with the label values of another scheme.

    Example: textseg data convert mask.mha converted.nii.gz --from spider --to totalspineseg
    """
    from textseg.data.conversion import convert_file

    for value, name in convert_file(mask, output, source, target, drop=drop).items():
        print(f"left out: {value} ({name or f'no value of {source}'})")
    print(output)
