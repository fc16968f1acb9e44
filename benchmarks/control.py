"""The control: level names that are given afterwards from the same statement, beside a model that reads the statement.

    python benchmarks/control.py VISUAL LISTENING

Each argument is a folder `runs/<name>` with the folds of a method, or a run; both have the same folds. The test cases
are cut to the windows of `fields_of_view.csv`. `rename_levels` names the pieces of a label map after what
a person states, rightly or one level off. A model that reads its text deserves credit only for what it adds to that.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from textseg.comparison.finished_runs import grouped, read_runs
from textseg.contracts import Atlas
from textseg.drawing.tables import LANDMARKS, format_interval, markdown_table, share_title
from textseg.evaluation.evaluate import load_segmenter
from textseg.evaluation.fields_of_view import CutCase, cut_windows, predict_window, window_texts
from textseg.inference.trained_model import EncodedTexts
from textseg.levels.level_order import Stretch, rename_levels
from textseg.metrics.definitions import score
from textseg.metrics.statistics import small_sample_warning
from textseg.metrics.window_scores import MOVED, Position, interval_over_patients
from textseg.recipe.loading import load_recipe
from textseg.runs.experiment import Experiment, build
from textseg.runs.folder import RunFolder

SHARES = (1.0, 0.7, 0.5)
ROWS = (
    "visual",
    "visual + control",
    "visual + control, statement one level off",
    "listening",
    "listening, statement one level off",
    "listening + control",
)
Values = dict[tuple[str, float, str], dict[Position, list[float]]]  # (row, share, landmark) -> position -> DSC


def main(visual: str, listening: str) -> None:
    """Print the DSC of each row, for all windows and apart for those with and without a landmark."""
    values: Values = defaultdict(lambda: defaultdict(list))
    patients: dict[str, str] = {}
    for path, row in ((visual, "visual"), (listening, "listening")):
        for run in grouped(read_runs([Path(path)]))[0].runs:
            _add(run.folder, row, values, patients)
    lines = []
    for share in SHARES:
        for landmark, title in LANDMARKS.items():
            for row in ROWS:
                if scores := values.get((row, share, landmark)):
                    means = {position: sum(dsc) / len(dsc) for position, dsc in scores.items()}
                    interval = interval_over_patients(means, patients)
                    lines.append([share_title(share), title or "all", row, format_interval(interval)])
    print(markdown_table(["picture", "landmark", "names from", "DSC [95 %]"], lines))
    print(f"\n{small_sample_warning(len(set(patients.values()))) or ''}")


def _add(path: Path, row: str, values: Values, patients: dict[str, str]) -> None:
    """Add the DSC of a run in all windows of its test cases, with and without the control."""
    folder, device = RunFolder.existing(path), torch.device("cpu")
    experiment = build(load_recipe(folder.recipe))
    segmenter = load_segmenter(experiment, folder)
    encoded = EncodedTexts(experiment.recipe, experiment.registry, experiment.task)
    for prepared in experiment.cases["test"]:
        patients[prepared.case.id] = prepared.case.patient
        for cut in cut_windows(experiment, prepared, SHARES):
            texts = {text.author: text for text in window_texts(experiment, prepared, cut)}
            maps = {
                author: predict_window(experiment, segmenter, cut, text, encoded, device)
                for author, text in texts.items()
                if author != "template" or row == "visual"
            }
            for name, label_map in _rows(row, maps, cut, experiment.atlas):
                for position, dsc in _scores(label_map, cut, experiment, prepared.case.id).items():
                    for landmark in {"all", cut.landmark}:
                        values[name, cut.share, landmark][position].append(dsc)


def _rows(row: str, maps: Mapping[Any, NDArray[Any]], cut: CutCase, atlas: Atlas) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the label map of each row of the table; a wrong statement gives one in each possible direction."""
    stretch = [name for name in atlas.sequence if name in cut.named]
    if not stretch:
        return
    right = Stretch(stretch[0], stretch[-1])
    if row == "listening":
        yield "listening", maps["simulated"]
        yield "listening + control", rename_levels(maps["simulated"], atlas, right)[0]
        for author in MOVED.keys() & maps.keys():
            yield "listening, statement one level off", maps[author]
        return
    # A model that was trained without knowledge gets the template, or no text at all.
    unaided = next(maps[author] for author in ("none", "template") if author in maps)
    yield "visual", unaided
    yield "visual + control", rename_levels(unaided, atlas, right)[0]
    for levels in MOVED.values():
        first, last = (atlas.neighbour(name, levels) for name in (stretch[0], stretch[-1]))
        if first and last:
            moved = rename_levels(unaided, atlas, Stretch(first, last))[0]
            yield "visual + control, statement one level off", moved


def _scores(label_map: NDArray[Any], cut: CutCase, experiment: Experiment, case: str) -> dict[Position, float]:
    labels = [experiment.atlas[name].index for name in cut.named]
    result = score(label_map, cut.reference, spacing=(1.0, 1.0, 1.0), structures=labels, metrics=["dsc"])
    names = experiment.atlas.names
    values = {(case, cut.share, cut.location, names[i - 1]): result[i].values["dsc"] for i in labels}
    return {position: dsc for position, dsc in values.items() if dsc == dsc}  # a gap in a stretch has no DSC


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
