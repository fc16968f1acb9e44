from __future__ import annotations

import io
import math
import re
from pathlib import Path

import pytest

from textseg.comparison.comparability import Mismatch
from textseg.comparison.finished_runs import FinishedRuns, Run
from textseg.comparison.leaderboard import make_leaderboard
from textseg.comparison.published import published_rows
from textseg.comparison.sections import picked, sections
from textseg.comparison.text import as_markdown, as_text, print_leaderboard
from textseg.metrics.definitions import POLICY
from textseg.metrics.scores import Score

NAMES = {"cases": 3, "level_shift_rate": 1 / 3, "matched": 4, "misnamed": 1, "order_violations": 3, "duplicates": 6,
         "dsc": 0.5, "dsc_without_names": 0.75}  # fmt: skip


def run(name, values, *, seed=1, source="template", **facts):
    """Values are (dsc, hd95) by case."""
    rows = []
    for case, pair in enumerate(values):
        for metric, unit, value in zip(("dsc", "hd95"), ("", "mm"), pair, strict=True):
            status = "missed" if math.isnan(pair[1]) else "ok"
            rows.append(
                Score(
                    f"c{case}",
                    f"p{case}",
                    None,
                    "L5",
                    metric,
                    unit,
                    "native",
                    value,
                    90.0 if unit else 0.0,
                    status,
                    source,
                )
            )
    known = {"name": name, "seed": seed, "structures_in_training": ["L5", "T9"], "groups": {"vertebrae": ["L5", "T9"]},
             "dataset": "phantom", "evaluation": {"per": "volume", "space": "native", "unit": "mm"}}  # fmt: skip
    return Run(Path(name), {**known, **facts}, rows)


CAREFUL = run("careful", [(0.9, 2.0), (0.8, 4.0), (0.5, 9.0)], enumeration=NAMES, parameters=2_000_000,
              multiply_accumulates=3.5e9, milliseconds_per_slice=12.34, peak_memory_bytes=2**30)  # fmt: skip
HASTY = run("hasty", [(0.7, 3.0), (0.6, 3.0), (0.0, math.nan)])


def board(*rows, **options):
    compared = [FinishedRuns(tuple(row) if isinstance(row, list) else (row,)) for row in rows]
    return make_leaderboard(compared, rare_share=0.5, **options)


def line(text, start):
    return re.sub(r" {2,}", " | ", next(line for line in text.splitlines() if line.startswith(start)))


def test_every_number_stands_with_what_it_is_made_of():
    text = as_text(board(CAREFUL, HASTY))
    assert line(text, "careful (seed 1)") == (
        "careful (seed 1) | 1 | 0.7333 [0.500, 0.867] | 5.00 [2.7, 9.0] | 0 | 0 | template"
    )
    three = [re.sub(r" {2,}", " | ", row) for row in text.splitlines() if row.startswith("hasty (seed 1)")][1:4]
    assert three == [
        "hasty (seed 1) | as_published | 0.4333 (2) | 3 | 3.00 (1) | 2 | 1 | 0",
        "hasty (seed 1) | common | 0.6500 (2) | 2 | 3.00 (1) | 2 | 1 | 0",
        "hasty (seed 1) | penalised | 0.4333 (2) | 3 | 32.00 (2) | 3 | 1 | 0",
    ]
    assert "Warning: ranks by HD95 (mm) depend" in text
    assert "Rare, below 50% of the test cases: T9 (0 of 3 cases)." in text
    assert "careful (seed 1) - hasty (seed 1)" in text
    assert "Kendall's tau" in text
    assert "33.3 % | 25.0 % | 1.00 | 2.00 | 0.5000 | 0.7500" in re.sub(r" {2,}", " | ", text)
    assert "2.00 | 3.50 | 12.3 | 1024" in re.sub(r" {2,}", " | ", text)
    assert text.count(POLICY) == 1
    assert "3 patients: intervals and tests of fewer than 50 are rough" in text


def test_seeds_have_a_table_and_single_runs_have_none():
    titles = [section.title for section in sections(board(CAREFUL, HASTY))]
    assert titles == ["Leaderboard", "Three ways to count a miss", "DSC, penalised, by what is averaged", "Names",
                      "Size and speed", "Differences in DSC", "Ranks by DSC, penalised"]  # fmt: skip
    twice = [run("a", [(0.9, 2.0), (0.8, 4.0)]), run("a", [(0.7, 2.0), (0.6, 4.0)], seed=2)]
    result = {section.title: section for section in sections(board(twice))}
    assert result["Seeds and folds"].rows == [["a (2 seeds)", "2", "0.7500", "0.1414", "–", "3.00", "0.00", "–"]]
    assert "Differences in DSC" not in result


def test_a_row_of_runs_with_other_code_is_marked():
    film = {"distribution": "textseg-film", "version": "0.1.0", "source": {"film.py": "a"}}
    changed = {"fusion film": film | {"source": {"film.py": "b"}}, "metric sharp": film}
    values = [(0.9, 2.0), (0.8, 4.0)]
    runs = [run("a", values, components={"fusion film": film}), run("a", values, seed=2, components=changed)]
    for details in (False, True):
        text = " ".join(printed(board(runs), details=details).split())
        assert "was trained with other code than a: fusion 'film': its code changed: film.py (of textseg-film)." in text
    assert "other code" not in printed(board(runs[:1] * 2, [run("b", values, components=changed)]))


class Terminal(io.StringIO):
    def isatty(self):
        return True


def printed(board, **options):
    text = io.StringIO()
    print_leaderboard(board, text, **options)
    return text.getvalue()


def test_the_same_bytes_each_time_and_colours_only_on_a_terminal():
    leaderboard = board(CAREFUL, HASTY, published=published_rows("spider"))
    again = board(CAREFUL, HASTY, published=published_rows("spider"))
    for details in (False, True):
        plain, terminal = printed(leaderboard, details=details), Terminal()
        assert plain == printed(again, details=details)
        assert "\x1b" not in plain
        print_leaderboard(leaderboard, terminal, details=details, width=100)
        shown = terminal.getvalue()
        assert "\x1b[1m" in shown
        flat = re.sub(r"\x1b\[[\d;]*m", "", shown)
        assert "Leaderboard" in flat
        assert "[95 %]" in flat  # no mark-up of rich's
        assert "hasty" in flat
    assert printed(leaderboard, details=True) == as_text(again)


METHODS = [f"method_{number}_of_the_spine" for number in range(12)]


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_the_short_form_fits_the_width(width):
    rows = [run(name, [(0.9 - n / 50, 2.0 + n), (0.8 - n / 50, 4.0)]) for n, name in enumerate(METHODS)]
    text = printed(board(*rows), width=width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= (40 if width == 60 else 24)
    assert ("[95 %]" in text, "M params" in text) == (width > 80, width > 60)
    assert all(name[:12] in text for name in METHODS), "a long name is folded, not cut"
    assert text.count("ine ") + text.count("ine\n") >= 12
    assert "(seed 1)" not in text, "every row has the same seed: it stands in the title"
    assert lines[0] == "Leaderboard: phantom, seed 1"


def test_the_short_form_names_what_it_shows_and_where_the_rest_is():
    text = printed(board(CAREFUL, HASTY))
    assert line(text, "   1") == " | 1 | careful | 0.7333 [0.500, 0.867] | 5.00 [2.7, 9.0] | 0 | template | 2.00"
    assert line(text, "   2") == " | 2 | hasty | 0.4333 [0.000, 0.667] | 3.00 [3.0, 3.0] | 1 | template | –"
    flat = " ".join(text.split())
    assert "Means over 2 structures and 3 test patients. Ranks are by DSC, where a missed structure" in flat
    assert "HD95 leaves missed structures out" in flat
    assert "No other method differs significantly from the first (p < 0.05, Holm)." in flat
    assert "Ranks depend on how misses are counted." in flat
    assert "--details" in flat
    assert "--output DIR" in flat
    written = printed(board(CAREFUL), output=Path("table"))
    assert "table/leaderboard.html and .csv, .json, .md, .tex" in written


def test_the_short_form_ranks_no_oracle_and_no_published_result():
    oracle = run("oracle", [(1.0, 0.0)] * 3, source="ground_truth")
    text = printed(board(HASTY, oracle, published=published_rows("spider")))
    assert line(text, "   –").startswith(" | – | oracle ORACLE | 1.0000 | 0.00 | 0 | ground truth")
    assert re.search(r"– +atmnet \(published\) +0.7939 +9.91 pixel", text)


def test_the_short_form_of_many_runs_counts_those_that_it_leaves_out():
    rows = [run(f"trial{number}", [(number / 200, 3.0)]) for number in range(40)]
    text = printed(board(*rows))
    assert "trial39 " in text
    assert "trial24 " not in text
    assert "... and 25 more" in text
    assert "trial0 " in printed(board(*rows), details=True)


def test_published_results_are_beside_in_their_own_unit():
    text = as_text(board(CAREFUL, published=published_rows("spider")))
    assert "Published on spider: another protocol, not ranked" in text
    assert line(text, "atmnet") == "atmnet | 0.7939 | 9.91 pixel | 19 | 64.87 | 75.00"
    assert "another protocol (2-D slices after resizing, distances in pixels" in text
    assert len(board(CAREFUL, published=published_rows("spider")).tables[0].rows) == 1


def test_a_forced_comparison_says_so_above_everything_and_picks_nobody():
    second = run("other", [(0.7, 3.0)], evaluation={"per": "slice", "space": "native", "unit": "mm"})
    different = [Mismatch("evaluation.per", "'volume'", "'slice'", "evaluation.per: a has 'volume', b has 'slice'")]
    result = board(CAREFUL, second, mismatches=different)
    for text in (as_text(result), as_markdown(result)):
        first, second, *_ = (line for line in text.splitlines() if line)
        assert "NOT COMPARABLE: these runs differ in evaluation.per." in first
        assert "evaluation.per: a has 'volume', b has 'slice'" in second
        assert "NOT COMPARABLE: Leaderboard" in text
    assert not any(section.best or section.second for section in sections(result))
    short = printed(result)
    assert short.startswith("NOT COMPARABLE: these runs differ in evaluation.per.\n")
    assert "significantly" not in short


def test_a_unit_that_is_not_the_headings_stands_in_the_cell():
    pixels = run("pixels", [(0.7, 3.0)])
    pixels = Run(pixels.folder, pixels.facts, [Score(**{**vars(row), "unit": row.unit and "pixel"})
                                               for row in pixels.scores])  # fmt: skip
    text = as_text(board(CAREFUL, pixels))
    assert "3.00 pixel" in text
    assert "5.00 mm" not in text


def test_only_what_can_be_seen_wins():
    assert picked(["0.8000", "0.8000", "0.7000", "–"], lower=False) == ([0, 1], [])
    assert picked(["3.00", "1.00", "2.00", "2.00"], lower=True) == ([1], [2, 3])
    assert picked(["–", "–"], lower=True) == ([], [])
    assert picked(["1.00"], lower=True) == ([0], [])


def test_a_number_that_does_not_fit_ends_with_an_ellipsis():
    text = printed(board(run("careful", [(0.5678, 2.0)])), width=14)
    assert "0.5678" not in text
    assert "…" in text
    assert not re.search(r"0\.5\d*(?!…)(\s|$)", text, re.MULTILINE)
