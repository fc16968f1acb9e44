from __future__ import annotations

import csv
import math
from dataclasses import replace

import numpy as np
import pytest

from textseg.errors import RunError
from textseg.metrics.scores import COLUMNS, Score, read_scores, summarise, write_scores

ROW = Score("c1", "p1", None, "L4", "dsc", "", "native", 0.5, 0.0, "ok", "template")


def same(first: Score, second: Score) -> bool:
    return replace(first, value=0.0) == replace(second, value=0.0) and np.array_equal(
        first.value, second.value, equal_nan=True
    )


def test_reading_gives_back_what_was_written(tmp_path):
    rows = [
        replace(ROW, value=0.1 + 0.2),
        replace(ROW, slice=0, metric="hd95", unit="mm", value=math.nan, worst=412.5, status="missed"),
        replace(ROW, case='a "quoted", case', structure="L4/L5", value=np.float64(1 / 3)),
        replace(ROW, slice=12, value=1e-300, status="spurious", prompt_source="none"),
    ]
    write_scores(tmp_path / "scores.csv", rows)
    back = read_scores(tmp_path / "scores.csv")
    assert len(back) == 4
    assert all(map(same, rows, back))


def test_the_file_is_plain_csv_with_the_promised_columns(tmp_path):
    write_scores(tmp_path / "scores.csv", [replace(ROW, value=0.1 + 0.2)])
    header = "case,patient,slice,structure,metric,unit,space,value,worst,status,prompt_source"
    assert (
        tmp_path / "scores.csv"
    ).read_text() == f"{header}\nc1,p1,,L4,dsc,,native,0.30000000000000004,0.0,ok,template\n"
    with (tmp_path / "scores.csv").open() as file:
        assert tuple(next(csv.reader(file))) == COLUMNS


def test_a_write_that_fails_leaves_the_old_table_and_no_litter(tmp_path):
    path = tmp_path / "scores.csv"
    write_scores(path, [ROW])
    old = path.read_text()

    def rows():
        yield ROW
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        write_scores(path, rows())
    with pytest.raises(UnicodeEncodeError):
        write_scores(path, [replace(ROW, case="\ud800")])
    assert path.read_text() == old
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is nothing"),
        ("a,b\n1,2\n", "it is a, b"),
        (",".join(COLUMNS) + "\nc1,p1\n", "line 2: 2 columns instead of 11"),
        (",".join(COLUMNS) + "\nc1,p1,,L4,dsc,,native,x,0,ok,template\n", "line 2: .*value 'x'"),
        (",".join(COLUMNS) + "\nc1,p1,,L4,dsc,,native,1,far,ok,template\n", "line 2: .*worst 'far'"),
        (",".join(COLUMNS) + "\nc1,p1,1.5,L4,dsc,,native,1,0,ok,template\n", "line 2: slice '1.5'"),
        (",".join(COLUMNS) + "\nc1,p1,,L4,dsc,,native,1,0,mised,template\n", "line 2: .*Did you mean 'missed'"),
    ],
)
def test_a_damaged_table_is_refused_with_its_place(tmp_path, text, message):
    (tmp_path / "scores.csv").write_text(text)
    with pytest.raises(RunError, match=message):
        read_scores(tmp_path / "scores.csv")


def test_names_that_a_spreadsheet_takes_for_formulas_are_read_as_they_were(tmp_path):
    scores = [replace(ROW, case="=cmd|' /C calc'!A0", patient="-1")]
    write_scores(tmp_path / "scores.csv", scores)
    assert "\n'=cmd" in (tmp_path / "scores.csv").read_text()
    assert read_scores(tmp_path / "scores.csv") == scores


def test_a_missing_table_says_how_to_make_it(tmp_path):
    with pytest.raises(RunError, match="textseg evaluate"):
        read_scores(tmp_path / "scores.csv")


def test_means_by_hand():
    def dsc(case, structure, value, status="ok"):
        return replace(ROW, case=case, structure=structure, value=value, status=status)

    def hd95(case, structure, value, status="ok"):
        return replace(dsc(case, structure, value, status), metric="hd95", unit="mm")

    rows = [
        *(dsc("c1", "L4", 0.9), dsc("c2", "L4", 0.6), dsc("c3", "L4", 0.0, "missed")),
        *(dsc("c1", "L5", 0.8), dsc("c2", "L5", 0.0, "spurious"), dsc("c3", "L5", math.nan, "absent")),
        *(hd95("c1", "L4", 2.0), hd95("c2", "L4", 3.0), hd95("c3", "L4", math.nan, "missed")),
        *(hd95("c1", "L5", 4.0), hd95("c2", "L5", math.nan, "spurious"), hd95("c3", "L5", math.nan, "absent")),
        dsc("c1", "T10", 0.1),
    ]
    summary = summarise(rows, structures=["L4", "L5", "S1"])
    l4, l5, s1 = (summary.per_structure[name, "dsc"] for name in ("L4", "L5", "S1"))
    assert (l4.value, l4.n, l4.missed, l4.spurious) == (pytest.approx(0.5), 3, 1, 0)
    assert (l5.value, l5.n, l5.missed, l5.spurious) == (pytest.approx(0.4), 2, 0, 1)
    assert (math.isnan(s1.value), s1.n) == (True, 0)
    assert ("T10", "dsc") not in summary.per_structure
    assert summary.per_structure["L4", "hd95"].value == pytest.approx(2.5)
    assert summary.per_structure["L4", "hd95"].n == 2
    mean = summary.overall["dsc"]
    assert (mean.structure, mean.value, mean.n, mean.missed, mean.spurious) == (None, pytest.approx(0.45), 2, 1, 1)
    assert summary.overall["hd95"].value == pytest.approx((2.5 + 4.0) / 2)
    assert list(summary.overall) == ["dsc", "hd95"]


def test_means_agree_with_numpy():
    generator = np.random.default_rng(0)
    table = generator.random((30, 4))
    table[generator.random(table.shape) < 0.2] = np.nan
    rows = [
        replace(ROW, case=f"c{i // 3}", slice=i % 3, structure=f"s{j}", value=float(table[i, j]))
        for i in range(30)
        for j in range(4)
    ]
    summary = summarise(rows, structures=["s0", "s1", "s2", "s3"])
    means = [summary.per_structure[f"s{j}", "dsc"].value for j in range(4)]
    np.testing.assert_allclose(means, np.nanmean(table, axis=0))
    assert summary.overall["dsc"].value == pytest.approx(np.nanmean(table, axis=0).mean())


def test_nothing_to_average_is_nan():
    assert summarise([], structures=["L4"]).overall == {}
    summary = summarise([replace(ROW, value=math.nan, status="absent")], structures=["L4"])
    assert math.isnan(summary.overall["dsc"].value)
    assert summary.overall["dsc"].n == 0


def test_a_thing_scored_twice_is_refused():
    with pytest.raises(RunError, match="dsc of 'L4' in case 'c1', slice 3"):
        summarise([replace(ROW, slice=3), replace(ROW, slice=3, prompt_source="interactive")], structures=["L4"])


@pytest.mark.parametrize("changes", [{"unit": "pixel"}, {"space": "prepared"}])
def test_units_and_spaces_are_not_mixed(changes):
    rows = [
        replace(ROW, metric="asd", unit="mm"),
        replace(ROW, **{"metric": "asd", "unit": "mm", "case": "c2", **changes}),
    ]
    with pytest.raises(RunError, match="asd in mm native and in"):
        summarise(rows, structures=["L4"])
