"""The comparison of runs: a leaderboard, or an error with the reasons why the runs cannot be compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from textseg.comparison.comparability import mismatches
from textseg.comparison.data_files import as_csv, as_json
from textseg.comparison.finished_runs import FinishedRuns, grouped, read_runs
from textseg.comparison.latex import as_latex
from textseg.comparison.leaderboard import Leaderboard, make_leaderboard
from textseg.comparison.page import as_html
from textseg.comparison.published import published_rows
from textseg.comparison.text import FORMATS, as_markdown
from textseg.errors import RunError
from textseg.system.files import write_atomically

LISTED = 10  # differences that a message shows


def compare(
    runs: Sequence[Path],
    *,
    output: Path | None = None,
    published: str | None = None,
    rare: float = 0.2,
    single_runs: bool = False,
    force: bool = False,
) -> Leaderboard:
    """Return the leaderboard of runs; with `output` also write it there, in every format.

    A path is `runs/<name>/seed<seed>`, or `runs/<name>` for all its seeds and folds. Runs with the same name form one
    row, unless `single_runs` is set. Means are over the structures that occur in the training data of every run. An
    additional mean leaves out rare structures, which a share of the test cases below `rare` shows. Runs with prompts
    from the ground truth (oracles) have a separate table, and so do `published` results.

    Raises RunError if a run is missing, or if the scores of the runs cannot be compared. With `force`, the table shows
    these differences instead.
    """
    beside = published_rows(published) if published else []
    compared = grouped(read_runs(runs), apart=single_runs)
    different = mismatches(compared)
    if different and not force:
        raise RunError(
            "These runs can't be compared, because their scores do not mean the same:\n  "
            + "\n  ".join(mismatch.line for mismatch in different[:LISTED])
            + (f"\n  and {len(different) - LISTED} more differences" if len(different) > LISTED else "")
            + "\nCompare runs of the same data, split and preparation; where `evaluation` differs, evaluate again with "
            "equal settings (`textseg evaluate RUN`). --force makes a table anyway, marked as not comparable."
        )
    board = make_leaderboard(compared, rare_share=rare, mismatches=different, published=beside)
    if output is not None:
        for name, content in zip(FORMATS, (as_html, as_csv, as_json, as_markdown, as_latex), strict=True):
            write_atomically(output / f"leaderboard.{name}", content(board))
    return board


def comparable(runs: Sequence[Path]) -> list[list[Path]]:
    """Return run folders in groups that may be compared, in the given order; raises RunError for unreadable runs."""
    if not runs:
        return []
    finished = read_runs(runs)
    try:
        rows = grouped(finished)
    except RunError:  # a seed or a fold is missing: each run becomes a row
        rows = grouped(finished, apart=True)
    groups: list[list[FinishedRuns]] = []
    for row in rows:
        matching = next((members for members in groups if not mismatches([members[0], row])), None)
        if matching is None:
            groups.append([row])
        else:
            matching.append(row)
    return [[run.folder for row in members for run in row.runs] for members in groups]
