from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import pytest

from textseg.comparison.comparability import Mismatch
from textseg.comparison.data_files import as_csv, as_json
from textseg.comparison.finished_runs import FinishedRuns, Run
from textseg.comparison.leaderboard import make_leaderboard
from textseg.comparison.published import published_rows
from textseg.metrics.aggregation import AGGREGATES, DEFINITIONS
from textseg.metrics.definitions import POLICY
from textseg.metrics.scores import Score


def run(name, values, *, seed=1, source="template"):
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
    facts = {"name": name, "seed": seed, "structures_in_training": ["L5"], "dataset": "phantom", "parameters": 10,
             "evaluation": {"per": "volume", "space": "native", "unit": "mm"}}  # fmt: skip
    return Run(Path(f"runs/{name}"), facts, rows)


GOOD = FinishedRuns((run("good", [(0.9, 2.0), (0.8, 4.0)]), run("good", [(0.7, 2.0), (0.6, 4.0)], seed=2)))
HASTY = FinishedRuns((run("hasty", [(0.5, 1.0), (0.0, math.nan)]),))
ORACLE = FinishedRuns((run("oracle", [(1.0, 0.0), (1.0, 0.0)], source="ground_truth"),))
BOARD = make_leaderboard([GOOD, HASTY, ORACLE], rare_share=0.2, published=published_rows("spider"))
DIFFERENT = [Mismatch("dataset", "'a'", "'b'", "dataset: x has 'a', y has 'b'")]


def rows(board):
    return list(csv.DictReader(io.StringIO(as_csv(board))))


def test_a_line_of_csv_for_each_row():
    good, hasty, oracle, *published = rows(BOARD)
    assert [(row["table"], row["rank"], row["run"]) for row in (good, hasty, oracle)] == [
        ("ranked", "1", "good"),
        ("ranked", "2", "hasty"),
        ("oracle", "", "oracle"),
    ]
    assert (good["seeds"], good["folds"], good["runs"], good["folders"]) == ("1+2", "", "2", "runs/good+runs/good")
    assert float(good["dsc_as_published"]) == pytest.approx(0.75)
    assert float(good["dsc_seed_sd"]) == pytest.approx(0.2 / math.sqrt(2))
    assert (hasty["hd95_mm_as_published_n"], hasty["hd95_mm_penalised_n"], hasty["missed"]) == ("1", "2", "1")
    assert [hasty[f"hd95_mm_{aggregate}_rank"] for aggregate in AGGREGATES] == ["1", "1", "2"]
    assert oracle["dsc_common_rank"] == ""
    assert oracle["prompts"] == "ground_truth"
    assert len(published) == 13
    assert {row["table"] for row in published} == {"published"}
    assert {row["rank"] for row in published} == {""}
    atmnet = next(row for row in published if row["run"] == "atmnet")
    assert float(atmnet["dsc_as_published"]) == pytest.approx(0.7939)
    assert atmnet["hd95_mm_as_published"] == "nan"  # the paper's is in pixels
    assert atmnet["not_comparable"] == "another protocol"
    assert atmnet["parameters"] == "64870000"


def test_json_holds_every_number_with_what_it_means():
    content = json.loads(as_json(BOARD))
    assert (content["format"], content["comparable"], content["mismatches"]) == (1, True, [])
    definitions = content["definitions"]
    assert definitions["policy"] == POLICY
    assert definitions["aggregates"] == dict(DEFINITIONS)
    assert definitions["metrics"]["hd95"]["lower_is_better"] is True
    assert definitions["metrics"]["hd95"]["missed"] is None
    assert definitions["metrics"]["hd95"]["definition"].startswith("95 % Hausdorff distance over the pooled distances")
    assert set(definitions["scopes"]) == set(content["scopes"]) == set(BOARD.scopes)
    ranked, oracle = content["tables"]
    good, hasty = ranked["rows"]
    assert good["rank"] == 1
    assert good["seeds"] == [1, 2]
    number = good["means"]["structures"]["as_published"]["dsc"]
    assert number["value"] == pytest.approx(0.75)
    assert number["fold_sd"] is None
    assert set(definitions["numbers"]) <= set(number)
    assert hasty["by_structure"]["penalised"]["hd95"]["L5"]["value"] == pytest.approx(45.5)
    assert hasty["by_case"]["as_published"]["hd95"] == [1.0, None]
    assert ranked["differences"]["dsc"][0]["test"]["patients"] == 2
    assert ranked["rankings"]["dsc"]["methods"] == ["good (2 seeds)", "hasty (seed 1)"]
    assert ranked["warnings"][0].startswith("Warning: ranks by HD95 (mm)")
    assert (oracle["kind"], oracle["rows"][0]["oracle"], oracle["rows"][0]["rank"]) == ("oracle", True, None)
    assert oracle["rows"][0]["ranks"] is None
    assert oracle["differences"] == oracle["rankings"] == {}
    assert len(content["published"]["rows"]) == 13


def test_a_forced_comparison_is_marked_in_both():
    board = make_leaderboard([GOOD, HASTY], rare_share=0.2, mismatches=DIFFERENT)
    assert {row["not_comparable"] for row in rows(board)} == {"dataset"}
    content = json.loads(as_json(board))
    assert content["comparable"] is False
    assert content["mismatches"][0]["key"] == "dataset"


def test_the_same_bytes_each_time():
    again = make_leaderboard([GOOD, HASTY, ORACLE], rare_share=0.2, published=published_rows("spider"))
    assert as_json(again) == as_json(BOARD)
    assert as_csv(again) == as_csv(BOARD)
