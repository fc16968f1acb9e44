from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from textseg.errors import RunError
from textseg.metrics.window_scores import (
    WindowScore,
    expected_values,
    means_as_json,
    read_window_scores,
    summarise_windows,
    write_window_scores,
)

ROW = WindowScore("a_t2", "a", 0.5, "upper", "no", "T12:L3", "simulated", "L3", "dsc", 0.9)


def picture(case: str, landmark: str, location: str = "upper") -> list[WindowScore]:
    """Return the rows of a window whose texts can be moved upwards only."""
    base = replace(ROW, case=case, patient=case[0], landmark=landmark, location=location)
    right = [replace(base, structure=name, value=value) for name, value in (("L2", 1.0), ("L3", 0.5), ("S9", 0.0))]
    up = [replace(row, stated_by="moved up", statement="T11:L2", value=0.25) for row in right]
    whole = replace(base, structure="")
    return [
        *right,
        *up,
        replace(whole, metric="level_shift", value=0.0),
        replace(whole, metric="level_shift", stated_by="moved up", value=-1.0),
        replace(whole, metric="dsc_without_names", value=0.75),
        replace(whole, metric="obedience", stated_by="moved up", value=1.0 if case == "a" else 0.5),
    ]


def test_means_by_hand() -> None:
    rows = [*picture("a", "no"), *picture("b", "yes"), *picture("b", "yes", "lower")]
    means = {(m.landmark, m.stated_by): m for m in summarise_windows(rows, ["L2", "L3"])}
    assert list(means) == [(mark, author) for mark in ("all", "yes", "no") for author in ("simulated", "moved up")]
    right, up = means["all", "simulated"], means["all", "moved up"]
    assert (right.share, right.windows, right.dsc.patients) == (0.5, 3, 2)
    assert right.dsc.value == pytest.approx(0.75)  # S9 was never trained on
    assert right.dsc_without_names.value == pytest.approx(0.75)
    assert (right.level_shift_rate.value, up.level_shift_rate.value) == (0, 1)
    assert up.obedience.value == pytest.approx(0.75)  # each patient counts once, whatever the number of windows
    assert right.expected_dsc.value == pytest.approx(0.86 * 0.75 + 0.14 * 0.25)
    assert (right.expected_windows, up.expected_windows) == (3, 0)
    assert math.isnan(up.expected_dsc.value)
    assert math.isnan(right.obedience.value)
    (json_row, *_) = means_as_json([right])
    assert json_row["obedience"]["value"] is None
    assert json_row["dsc"]["value"] == pytest.approx(0.75)


def test_one_answer_about_landmarks_gives_no_second_line() -> None:
    assert {row.landmark for row in summarise_windows(picture("a", "no"), ["L2"])} == {"all"}
    assert {row.landmark for row in summarise_windows(picture("a", ""), ["L2"])} == {"all"}


def test_the_expected_score_is_over_texts_that_can_be_moved() -> None:
    both = [ROW, replace(ROW, stated_by="moved up", value=0.1), replace(ROW, stated_by="moved down", value=0.3)]
    alone = replace(ROW, location="lower")
    assert expected_values([*both, alone]) == {ROW.position: pytest.approx(0.86 * 0.9 + 0.14 * 0.2)}


def test_a_model_without_text_expects_its_own_score() -> None:
    (row,) = summarise_windows([replace(ROW, stated_by="none", statement="")], ["L3"])
    assert row.expected_dsc == row.dsc


def test_several_runs_of_a_window_count_as_their_mean() -> None:
    (row,) = summarise_windows([ROW, replace(ROW, value=0.5)], ["L3"])
    assert row.dsc.value == pytest.approx(0.7)


def test_files_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "fields_of_view.csv"
    rows = [ROW, replace(ROW, structure="", metric="obedience", value=1 / 3)]
    write_window_scores(path, rows)
    assert read_window_scores(path) == rows
    assert path.read_text().startswith("case,patient,share,place,landmark,statement,stated_by,structure,metric,value\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist. It is a table of scores in windows"),
        ("case,patient\n", "its first line must be"),
        ("", "its first line must be"),
        ("{header}\na,a,0.5\n", "line 2"),
        ("{header}\na,a,half,upper,no,,template,L3,dsc,1\n", "line 2"),
    ],
)
def test_damaged_files(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "fields_of_view.csv"
    write_window_scores(path, [])
    header = path.read_text().strip()
    path.unlink()
    if content is not None:
        path.write_text(content.format(header=header))
    with pytest.raises(RunError, match=message) as error:
        read_window_scores(path)
    assert f"textseg evaluate {tmp_path} --fields-of-view" in str(error.value)
