"""Cut test scans to half of their rows as files, predict them, and compare with the windows of the evaluation.

Run: `python benchmarks/cut_files.py RUN...`. Each run needs `evaluation.fields_of_view` with 0.5. SimpleITK cuts image
and mask; the file goes through `textseg.load` like any scan. The last column is the largest difference in the DSC of a
structure between the file and the window of `fields_of_view.csv`.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

import textseg
from textseg.data.field_of_view import Window, fixed_windows
from textseg.drawing.tables import markdown_table
from textseg.metrics.definitions import score
from textseg.metrics.window_scores import WindowScore, read_window_scores
from textseg.recipe.loading import load_recipe
from textseg.runs.experiment import build
from textseg.runs.folder import RunFolder
from textseg.volumes.files import read_geometry
from textseg.volumes.itk import sitk

SHARE = 0.5
PLACES = ("upper", "middle", "lower")  # in the order of `fixed_windows`


def main() -> None:
    """Print a line for each run, test case, half and text."""
    lines = []
    for name in sys.argv[1:]:
        folder = RunFolder.existing(Path(name))
        experiment, model = build(load_recipe(folder.recipe)), textseg.load(folder.path)
        rows = [row for row in read_window_scores(folder.fields_of_view) if row.share == SHARE and row.metric == "dsc"]
        for prepared in experiment.cases["test"]:
            case, label_map = prepared.case, experiment.dataset.label_map(prepared.case)
            windows = dict(zip(PLACES, fixed_windows(SHARE, prepared.slice_geometry.native_size), strict=True))
            for location in ("upper", "lower"):
                scores = [row for row in rows if (row.case, row.location) == (case.id, location)]
                with tempfile.TemporaryDirectory() as temporary:
                    image = _cut(case.image, Path(temporary) / "image.mha", windows[location])
                    mask = _cut(case.mask or Path(), Path(temporary) / "mask.mha", windows[location])
                    reference, _ = replace(prepared, case=replace(case, mask=mask)).native_mask(label_map)
                    for author in dict.fromkeys(row.stated_by for row in scores):
                        stated = {row.structure: row for row in scores if row.stated_by == author}
                        text = next(iter(stated.values())).statement
                        prediction = model(image, visible=text or None).array
                        lines.append([folder.path.name, case.id, location, author, text or "–",
                                      *_numbers(prediction, reference, stated, experiment.atlas.names)])  # fmt: skip
    header = ["run", "case", "half", "text", "statement", "DSC of the file", "DSC of the window", "largest difference"]
    print(markdown_table(header, lines))


def _cut(source: Path, target: Path, window: Window) -> Path:
    """Write the rows of a window to a file of its own."""
    geometry = read_geometry(source)
    axis, flipped = geometry.axes[1]
    start, size = [0, 0, 0], list(geometry.size)
    start[axis] = geometry.size[axis] - window.top - window.height if flipped else window.top
    size[axis] = window.height
    sitk.WriteImage(sitk.RegionOfInterest(sitk.ReadImage(str(source)), size, start), str(target))
    return target


def _numbers(
    prediction: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
    reference: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
    stated: dict[str, WindowScore],
    names: tuple[str, ...],
) -> list[str]:
    indices = [names.index(name) + 1 for name in stated]
    # Structures that a person would not name in the window are not scored.
    shown = np.where(np.isin(reference, indices), reference, 0)
    scores = score(prediction, shown, spacing=(1.0, 1.0, 1.0), structures=indices, metrics=["dsc"])
    of_file = np.array([scores[index].values["dsc"] for index in indices])
    of_window = np.array([row.value for row in stated.values()])
    difference = float(np.abs(np.nan_to_num(of_file) - np.nan_to_num(of_window)).max())
    return [f"{np.nanmean(of_file):.6f}", f"{np.nanmean(of_window):.6f}", f"{difference:.2g}"]


if __name__ == "__main__":
    main()
