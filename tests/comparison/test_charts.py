from __future__ import annotations

import math
import re

import numpy as np
import pytest

from textseg.comparison.charts import Strip, heat_map, rank_plot, significance_matrix, strips
from textseg.comparison.significance import Difference, ranking
from textseg.metrics.scores import Mean
from textseg.metrics.statistics import PairedTest


def mean(structure: str, value: float, unit: str = "", missed: int = 0) -> Mean:
    return Mean(structure, "m", unit, value, 3, missed, 0)


def test_a_better_mean_has_a_stronger_colour() -> None:
    html = heat_map(["x"], [{"A": mean("A", 0.25), "B": mean("B", 0.75), "C": mean("C", math.nan)}], "ABC", lower=False)
    assert re.findall(r'style="--s:([\d.]+)"', html) == ["0.250", "0.750", "0.000"]
    html = heat_map(["x"], [{"A": mean("A", 5.0, "mm"), "B": mean("B", 20.0, "mm", missed=2)}], "AB", lower=True)
    assert re.findall(r'style="--s:([\d.]+)"', html) == ["0.750", "0.000"]
    assert 'title="x, B: 20.00 mm (3 values, 2 missed, 0 spurious)"' in html
    assert '<sup aria-hidden="true">2</sup>' in html
    assert '<span class="sr">20.00, 3 values, 2 missed, 0 spurious</span>' in html


def test_dots_stand_at_their_values() -> None:
    html = strips([Strip("x", np.array([0.0, 0.5, 1.0, math.nan]), ["a", "b", "c", "d"])], "")
    dots = re.findall(r'<circle cx="([\d.]+)%"[^>]*><title>(.*?)</title>', html)
    assert dots == [("2.00", "a: 0.0000"), ("50.00", "b: 0.5000"), ("98.00", "c: 1.0000")]
    (box,) = re.findall(r'<rect class="box" x="([\d.]+)%" width="([\d.]+)%"', html)
    assert [float(part) for part in box] == [pytest.approx(26.0), pytest.approx(48.0)]
    assert "median 0.5000, quartiles 0.2500 and 0.7500, from 0.0000 to 1.0000; 1 without a value" in html


def test_distances_have_an_axis_that_holds_them_all() -> None:
    html = strips([Strip("x", np.array([3.0, 41.0]), ["a", "b"]), Strip("y", np.array([math.nan]), ["a"])], "mm")
    positions = [float(position) for position in re.findall(r'<circle cx="([\d.]+)%"', html)]
    assert positions == sorted(positions)
    assert 2 < positions[0] < positions[1] < 98
    assert 'aria-label="y: no value; 1 without a value"' in html
    assert strips([Strip("y", np.array([math.nan]), ["a"])], "mm") == '<p class="quiet">No method has a value.</p>'


def test_ranks_of_the_draws() -> None:
    patients = np.array([[0.9, 0.8, 0.95], [0.5, 0.85, 0.4]])
    ones = np.ones((3, 1))
    sums = {name: (values[:, None], ones) for name, values in zip(("good", "bad"), patients, strict=True)}
    result = ranking("dsc", sums, list(patients), lower_is_better=False)
    html = rank_plot(result)
    share = result.distribution[0][0]
    assert share > 0.8
    assert f'title="good: rank 1 in {100 * share:.1f} % of the draws"><i style="--s:{math.sqrt(share):.3f}">' in html
    assert html.count("<tr class=") == 2


def test_the_matrix_reads_both_ways_and_colours_what_is_significant() -> None:
    pairs = [
        Difference("hd95", "a", "b", -3.0, PairedTest(0.001, 0.9, 20), 0.003),  # a is better: lower
        Difference("hd95", "a", "c", 1.0, PairedTest(0.4, -0.2, 20), 0.8),
        Difference("hd95", "b", "c", math.nan, PairedTest(math.nan, math.nan, 0), math.nan),
    ]
    html = significance_matrix(["a", "b", "c"], pairs, "mm", lower=True)
    cells = re.findall(r'<td class="(\w+)" (?:title="(.*?)"|aria-label="the same method")>(?:<b>(.*?)</b>)?', html)
    assert [(kind, value) for kind, _, value in cells] == [
        ("same", ""), ("better", "-3.00"), ("unknown", "+1.00"),
        ("worse", "+3.00"), ("same", ""), ("unknown", "–"),
        ("unknown", "-1.00"), ("unknown", "–"), ("same", ""),
    ]  # fmt: skip
    assert cells[1][1] == (
        "a - b: mean -3.00 mm, effect +0.90, p 0.001, p (Holm) 0.003, 20 patients; significantly better"
    )
