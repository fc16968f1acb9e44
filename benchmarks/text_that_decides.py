"""DSC in windows of the test scans, for methods that were trained with and without reasons to read their text.

    python benchmarks/text_that_decides.py runs/A runs/B runs/C

Each argument is a folder `runs/<name>` with all folds of a method; the first is the method that the others are compared
with. Each run needs `evaluation.fields_of_view`, or: textseg evaluate RUN --fields-of-view 0.7,0.5. Intervals are over
the pooled patients of all folds. Differences are paired: the same windows of the same patients.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from textseg.comparison.finished_runs import FinishedRuns, grouped, read_runs
from textseg.drawing.tables import LANDMARKS, format_interval, markdown_table, share_title, window_table
from textseg.metrics.statistics import Interval, small_sample_warning
from textseg.metrics.window_scores import (
    POLICY,
    Position,
    WindowScore,
    expected_values,
    interval_over_patients,
    summarise_windows,
    window_values,
)

# The texts of the second and of the first method in a difference. A method that never learnt from a person's text may
# be at its best under the template, so the right text is also compared with that.
TEXTS = {
    "right": ("simulated", "simulated"),
    "template": ("template", "template"),
    "right, against the template": ("simulated", "template"),
    "14 % errors": ("expected", "expected"),
}
GAIN, OBEDIENCE, LOSS = 0.10, 0.8, 0.02  # the goals of a model that listens


def main(paths: Sequence[str]) -> int:
    """Print the scores of each method, the differences to the first one, and the goals."""
    if not paths:
        print(__doc__, file=sys.stderr)
        return 2
    methods = grouped(read_runs([Path(path) for path in paths]))
    lacking = [str(run.folder) for method in methods for run in method.runs if not run.windows]
    if lacking:
        print(f"No windows in: {', '.join(lacking)}. Add them: textseg evaluate RUN --fields-of-view 0.7,0.5")
        return 2
    trained = [method.trained_on for method in methods]
    structures = [name for name in trained[0] if all(name in names for names in trained)]
    rows = {method.label: [row for row in method.windows if _counts(row, structures)] for method in methods}
    patients = {row.case: row.patient for scores in rows.values() for row in scores}
    print(_scores(rows, structures))
    first, *others = methods
    for method in others:
        print(_differences(first, method, rows, patients))
    for method in others:
        print(_goals(first, method, rows, patients))
    notes = [POLICY, small_sample_warning(len(set(patients.values())))]
    print("\n\n".join(note for note in notes if note))
    return 0


def _counts(row: WindowScore, structures: Sequence[str]) -> bool:
    return not row.structure or row.structure in structures


def _scores(rows: Mapping[str, Sequence[WindowScore]], structures: Sequence[str]) -> str:
    header, lines = list[str](), list[list[str]]()
    for label, scores in rows.items():
        header, cells = window_table(summarise_windows(scores, structures))
        lines += [[label, *line] for line in cells]
    return f"## Scores\n\n{markdown_table(['method', *header], lines)}"


def _values(rows: Sequence[WindowScore], text: str) -> dict[Position, float]:
    """Return the DSC at each position under a text; a model without text has one value for every text."""
    unaided = window_values(rows, "none", "dsc")
    if text == "expected":
        return unaided or expected_values(rows)
    return unaided or window_values(rows, "template" if text == "template" else "simulated", "dsc")


def _difference(
    first: Sequence[WindowScore], second: Sequence[WindowScore], texts: str, patients: Mapping[str, str]
) -> Interval:
    """Return the DSC of the second method minus that of the first, at the positions that both have."""
    second_text, first_text = TEXTS[texts]
    before, after = _values(first, first_text), _values(second, second_text)
    pairs = {position: after[position] - before[position] for position in sorted(after.keys() & before.keys())}
    return interval_over_patients(pairs, patients)


def _part(rows: Sequence[WindowScore], share: float, landmark: str) -> list[WindowScore]:
    return [row for row in rows if row.share == share and landmark in ("all", row.landmark)]


def _differences(
    first: FinishedRuns,
    second: FinishedRuns,
    rows: Mapping[str, Sequence[WindowScore]],
    patients: Mapping[str, str],
) -> str:
    lines = []
    for share in sorted({row.share for row in rows[first.label]}, reverse=True):
        for landmark, title in LANDMARKS.items():
            before, after = (_part(rows[method.label], share, landmark) for method in (first, second))
            for texts in TEXTS:
                difference = _difference(before, after, texts, patients)
                if difference.patients:
                    cells = [share_title(share), title or "all", texts, format_interval(difference)]
                    lines.append([*cells, str(difference.patients)])
    header = ["picture", "landmark", "text", "difference in DSC [95 %]", "patients"]
    return f"## {second.label} minus {first.label}\n\n{markdown_table(header, lines)}"


def _goals(
    first: FinishedRuns,
    second: FinishedRuns,
    rows: Mapping[str, Sequence[WindowScore]],
    patients: Mapping[str, str],
) -> str:
    """Return a table of the goals: what is asked of the second method, what was measured, and whether it is enough."""

    def gained(share: float, landmark: str, texts: str) -> Interval:
        before, after = (_part(rows[method.label], share, landmark) for method in (first, second))
        return _difference(before, after, texts, patients)

    moved = [row for row in _part(rows[second.label], 0.5, "no") if row.metric == "obedience"]
    followed = interval_over_patients(_obedience(moved), patients)
    half, whole = "50 % of the rows, without landmark", "whole picture"
    lines = [(f"{half}: obedience of at least {OBEDIENCE:g}", followed, followed.value >= OBEDIENCE)]
    for texts in ("right", "right, against the template"):
        gain, above = gained(0.5, "no", texts), gained(1.0, "all", texts)
        lines.append((f"{half}, {texts}: lower bound above {GAIN:.2f}", gain, gain.low > GAIN))
        lines.append((f"{whole}, {texts}: above", above, above.value > 0))
    kept = gained(1.0, "all", "template")
    lines.append((f"{whole}, template: at most {LOSS:.2f} below", kept, kept.value >= -LOSS))
    cells = [[goal, format_interval(measured), "yes" if reached else "no"] for goal, measured, reached in lines]
    table = markdown_table(["goal", "measured [95 %]", "reached"], cells)
    return f"## Goals of {second.label} beside {first.label}\n\n{table}"


def _obedience(rows: Sequence[WindowScore]) -> dict[Position, float]:
    """Return the obedience of each window: the mean of both directions, where both are possible."""
    up, down = (window_values(rows, author, "obedience") for author in ("moved up", "moved down"))
    both = {
        position: [v[position] for v in (up, down) if position in v] for position in sorted(up.keys() | down.keys())
    }
    return {position: sum(values) / len(values) for position, values in both.items()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
