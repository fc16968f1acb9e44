"""`textseg data fetch`: a data set from its publisher."""

from __future__ import annotations

from textseg.cli.options import Code, DatasetFolder, DatasetName, DatasetOverrides, dataset_of
from textseg.errors import DataError


def fetch(
    dataset: DatasetName, folder: DatasetFolder = None, overrides: DatasetOverrides = None, code: Code = None
) -> None:
    """Download a data set, or say how to get it. What is there already stays.

    Example: textseg data fetch spider --folder data/spider
    """
    from textseg.system.progress import bytes_bar

    source = dataset_of(dataset, folder, overrides, code)
    if not hasattr(source, "fetch"):
        raise DataError(f"The data set '{dataset}' can't be fetched: put its files in place yourself.")
    with bytes_bar() as progress:
        outcome = source.fetch(progress=progress)
    print(outcome)
